"""Perturbations that probe robustness: changes of a text or a query to which a ranker should respond little or not."""
