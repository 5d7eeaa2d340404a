"""What the tests of self-checks share: a ranker whose circuit is known, and documents for it."""

from __future__ import annotations

import pyterrier as pt
import pytest

from pyterrier_mechir import known_circuit


@pytest.fixture(scope="module")
def known():
    return known_circuit("query")


@pytest.fixture(scope="module")
def candidates():
    dataset = pt.get_dataset("mechir:lab")
    few = dataset.get_topics().head(8)
    rows = dataset.get_qrels().merge(few, on="qid").groupby("qid").head(6)
    return dataset.text_loader()(rows[["qid", "query", "docno"]].reset_index(drop=True))
