# Exercise 2.2
of_lb1 = (PerturbDocs(LB1()) >> PairScorer(minilm))(retrieved)
with_pair = of_lb1.dropna(subset=["score_perturbed"])
share = (with_pair["score_perturbed"] > with_pair["score_baseline"]).mean()

checks.agreement_by_hand(share, of_lb1)
