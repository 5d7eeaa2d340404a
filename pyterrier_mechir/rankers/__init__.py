"""Rankers: what is interpreted."""
