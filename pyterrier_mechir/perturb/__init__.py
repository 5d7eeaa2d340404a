"""Perturbations: minimal pairs of texts, from the axioms of information retrieval or from a function of yours."""

from pyterrier_mechir.perturb.axioms.coverage import AND, ANTI_REG, LB1, LB2, REG
from pyterrier_mechir.perturb.axioms.discrimination import MTDC, TDC
from pyterrier_mechir.perturb.axioms.frequency import TFC1, TFC2, TFC3
from pyterrier_mechir.perturb.axioms.length import LNC1, LNC2, TFLNC
from pyterrier_mechir.perturb.axioms.proximity import PROX1, PROX2, PROX3, PROX4, PROX5, QPHRA
from pyterrier_mechir.perturb.axioms.semantics import DIV, STMC1, STMC2, STMC3, Synonym
from pyterrier_mechir.perturb.base import Chain, Pair, Perturbation, perturbation
from pyterrier_mechir.perturb.compose import OneOf
from pyterrier_mechir.perturb.control import Identity, RandomTerm
from pyterrier_mechir.perturb.probes.order import (
    AddSentence,
    DeleteSentence,
    PrependQuery,
    ReverseSentences,
    ReverseWords,
    ShuffleSentences,
    ShuffleWords,
    SwapEntities,
)
from pyterrier_mechir.perturb.probes.terms import AddTerm, RemoveTerm
from pyterrier_mechir.perturb.probes.wording import (
    CaseFold,
    Lemmatize,
    Negate,
    RemovePunctuation,
    RemoveStopWords,
    SwapNumbers,
    Typos,
)
from pyterrier_mechir.text.fillers import RandomFiller
from pyterrier_mechir.text.idf import Idf
from pyterrier_mechir.text.similar import WordNet

__all__ = [
    "AND",
    "ANTI_REG",
    "DIV",
    "LB1",
    "LB2",
    "LNC1",
    "LNC2",
    "MTDC",
    "PROX1",
    "PROX2",
    "PROX3",
    "PROX4",
    "PROX5",
    "QPHRA",
    "REG",
    "STMC1",
    "STMC2",
    "STMC3",
    "TDC",
    "TFC1",
    "TFC2",
    "TFC3",
    "TFLNC",
    "AddSentence",
    "AddTerm",
    "CaseFold",
    "Chain",
    "DeleteSentence",
    "Identity",
    "Idf",
    "Lemmatize",
    "Negate",
    "OneOf",
    "Pair",
    "Perturbation",
    "PrependQuery",
    "RandomFiller",
    "RandomTerm",
    "RemovePunctuation",
    "RemoveStopWords",
    "RemoveTerm",
    "ReverseSentences",
    "ReverseWords",
    "ShuffleSentences",
    "ShuffleWords",
    "SwapEntities",
    "SwapNumbers",
    "Synonym",
    "Typos",
    "WordNet",
    "perturbation",
]
