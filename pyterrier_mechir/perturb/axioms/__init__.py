"""Perturbations that test axioms of information retrieval: which of two texts a ranker should prefer."""
