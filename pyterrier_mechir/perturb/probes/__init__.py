"""Perturbations that probe robustness."""
