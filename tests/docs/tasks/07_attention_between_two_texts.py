"""Attention is summarised by token class, over all documents: how much the query gives to its words in them."""

from pyterrier_mechir import AttentionPatterns, PerturbDocs
from pyterrier_mechir.perturb import TFC1

out = (bm25 >> PerturbDocs(TFC1()) >> AttentionPatterns(ranker, heads=["L1H2", "L1H1"]))(topics)
mean = np.nanmean(np.stack(out["attention"]), axis=0)
classes = out.attrs["mechir"]["classes"]
matching, inert = mean[:, classes.index("Q+"), classes.index("EDIT")]
assert matching > 0.2 > inert
