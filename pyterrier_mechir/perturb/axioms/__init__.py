"""Perturbations that test axioms of information retrieval."""
