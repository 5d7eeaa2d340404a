"""The heads that write straight to the end are found, and what feeds the first of them."""

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1

pairs = (bm25 >> PerturbDocs(TFC1()))(topics)
last = AggregateHeads(by=None)(PatchScorer(ranker, receivers="final")(pairs)).iloc[0]["docno"]
assert last in ("L2H0", "L2H3")  # the heads that gather
values = AggregateHeads(by=None)(PatchScorer(ranker, receivers=f"{last}.v")(pairs))
assert values.iloc[0]["docno"] == "L1H2"  # the head that matches
