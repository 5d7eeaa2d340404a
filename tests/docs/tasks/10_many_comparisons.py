"""P-values are adjusted for the number of heads, are never below what so few queries allow, and one query has none."""

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1

patched = (bm25 >> PerturbDocs(TFC1()) >> PatchScorer(ranker))(topics)
heads = AggregateHeads(by=None)(patched)
assert (heads["p_adjusted"] >= heads["p_value"]).all()
assert heads["p_value"].min() >= 2 / 2 ** patched["qid"].nunique()
one = AggregateHeads(by=None)(patched[patched["qid"] == patched["qid"].iloc[0]])
assert one[["ci_low", "ci_high", "p_value"]].isna().all(axis=None)
