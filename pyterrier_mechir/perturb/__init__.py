"""Perturbations: minimal pairs of texts, from the axioms of information retrieval or from a function of yours."""

from pyterrier_mechir.perturb.base import Identity, Perturbation, perturbation
from pyterrier_mechir.perturb.frequency import TDC, TFC1
from pyterrier_mechir.perturb.terms import Idf

__all__ = ["TDC", "TFC1", "Identity", "Idf", "Perturbation", "perturbation"]
