"""Interventions: a ranker's model that runs under edits of its activations, such as steering."""
