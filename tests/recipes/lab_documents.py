"""Documents of the lab collection for recipes, without retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pandas as pd
import pyterrier as pt


@cache
def lab_documents(n_queries: int = 12, grades: Sequence[int] = (0, 3)) -> pd.DataFrame:
    """``qid, query, docno, text, label``: of each query, a document of each grade."""
    lab = pt.get_dataset("mechir:lab")
    topics, qrels = lab.get_topics().head(n_queries), lab.get_qrels()
    judged = qrels[qrels["label"].isin(grades)].merge(topics, on="qid").groupby(["qid", "label"]).head(1)
    return lab.text_loader()(judged)[["qid", "query", "docno", "text", "label"]].reset_index(drop=True)
