"""Candidates and judgments to learn from."""

from __future__ import annotations

import pandas as pd
import pyterrier as pt
import torch
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm

from pyterrier_mechir import BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade

FAMILIES = {
    "cross-encoder": lambda: CrossEncoder(build("bert", True)),
    "bi-encoder": lambda: BiEncoder(build("distilbert", False), pooling="mean", similarity="cosine"),
    "splade": lambda: Splade(masked_lm("bert")),
    "splade of two models": lambda: Splade(masked_lm("bert"), query_model=masked_lm("bert", num_hidden_layers=3)),
    "colbert": lambda: ColBERT(
        build("modernbert", False),
        projection=torch.randn(8, 32, generator=torch.Generator().manual_seed(1)),
        query_marker="",
        doc_marker="",
    ),
    "monot5 encoder": lambda: MonoT5(build_t5()),
    "monot5 decoder": lambda: MonoT5(build_t5(), stack="decoder"),
    "decoder": lambda: GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM")),
}
"""A ranker of each family."""


def candidates(first: int, last: int, n_texts: int = len(TEXTS)) -> pd.DataFrame:
    """Some queries with all texts, and a first stage's scores."""
    rows = [
        (f"q{q}", QUERIES[q], f"d{d}", TEXTS[d], float((q + d) % 4)) for q in range(first, last) for d in range(n_texts)
    ]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])


def judgments() -> pd.DataFrame:
    """A text that answers each query, one that half does, and one that does not."""
    n = len(QUERIES)
    rows = [(f"q{q}", f"d{(q + step) % n}", label) for q in range(n) for step, label in ((0, 2), (1, 1), (2, 0))]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


def favourite(docno: str) -> pd.DataFrame:
    """Judgments that one text alone answers every query, which is easy to learn."""
    return pd.DataFrame([(f"q{q}", docno, 1) for q in range(len(QUERIES))], columns=["qid", "docno", "label"])


def of_the_lab() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The judged passages of the lab's topics, cut short, and the judgments."""
    dataset = pt.get_dataset("mechir:lab")
    qrels = dataset.get_qrels()
    found = dataset.text_loader()(qrels[["qid", "docno"]].merge(dataset.get_topics(), on="qid"))
    return found.assign(text=found["text"].str.split().str[:12].str.join(" ")), qrels
