"""Rankers under edits."""
