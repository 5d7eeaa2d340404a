"""Scores are logits; squashed they lie between 0 and 1, in the same order."""

scores = ranker.scorer()(frame)["score"].to_numpy()
squashed = 1 / (1 + np.exp(-scores))
assert ((squashed > 0) & (squashed < 1)).all()
assert (np.argsort(squashed, kind="stable") == np.argsort(scores, kind="stable")).all()
