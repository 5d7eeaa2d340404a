# Exercise 3.3
both = PatchScorer(ranker, heads=[[(2, 0), (2, 3)]])(pairs)
together = AggregateHeads(by=None)(both)["score"].iloc[0]

alone = maps["denoise"].set_index("docno")["score"][["L2H0", "L2H3"]].to_dict()
checks.patched_together(together, ranker, pairs, alone)
