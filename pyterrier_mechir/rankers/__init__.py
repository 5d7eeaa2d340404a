"""Rankers: the models that are interpreted, how each encodes queries and documents, and how it scores them."""
