"""Texts as words, tokens and sequences: nothing here knows a model."""
