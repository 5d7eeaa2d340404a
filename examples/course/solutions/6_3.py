# Exercise 6.3
of_test = RankingEffects(qrels, [nDCG @ 10])(scored[scored["qid"].isin(test)]).set_index("docno")
change = of_test.loc[effects["docno"].iloc[0], ["score", "ci_low", "ci_high"]]

checks.held_out_change(change, scored, qrels, train, test, effects["docno"].iloc[0])
