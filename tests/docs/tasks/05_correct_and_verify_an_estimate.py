"""Queries are estimated with the QK fix, the best are verified exactly, and the error of the rest is told."""

from pyterrier_mechir import Attribution, PatchScorer, PerturbDocs, head_agreement
from pyterrier_mechir.perturb import TFC1

pairs = (bm25 >> PerturbDocs(TFC1()))(topics)
exact = PatchScorer(ranker, "q")(pairs)
fixed = PatchScorer(ranker, "q", method="attribution")(pairs)
first_order = PatchScorer(ranker, "q", method=Attribution(qk_fix=False))(pairs)
agreement = [head_agreement(exact, told, k=1).set_index("measure")["value"] for told in (fixed, first_order)]
assert agreement[0]["overlap@1"] == 1
assert agreement[0]["spearman"] >= agreement[1]["spearman"]
screened = PatchScorer(ranker, "q", method="attribution", screen=2)(pairs)
assert len(screened.attrs["mechir"]["screen"]["verified"]) == 2
assert screened.attrs["mechir"]["screen"]["mean_abs_error"] < 0.1
