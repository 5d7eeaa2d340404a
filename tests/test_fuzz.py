"""Rows of any characters are scored and patched by every family: nothing is missing, and no row changes another's."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from any_text import rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import build, build_decoder, build_t5, masked_lm
from tolerance import assert_near

from pyterrier_mechir import (
    BiEncoder,
    ColBERT,
    CrossEncoder,
    GenerativeReranker,
    MonoT5,
    PatchScorer,
    Splade,
)
from pyterrier_mechir.perturb import LNC2, AddTerm, CaseFold, OneOf, RemovePunctuation, ReverseWords, Typos
from pyterrier_mechir.rankers.base import Ranker

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*of .* documents")]

TEMPLATE = "Query: {query} Document: {document} Relevant:"

FAMILIES = {
    "BiEncoder": lambda: BiEncoder(build("bert", False)),
    "BiEncoder of bytes": lambda: BiEncoder(build("roberta", False), pooling="mean"),
    "CrossEncoder": lambda: CrossEncoder(build("xlm-roberta", True)),
    "Splade": lambda: Splade(masked_lm("bert")),
    "ColBERT": lambda: ColBERT(
        build("bert", False),
        projection=torch.randn(8, 32, generator=torch.Generator().manual_seed(0)),
        query_marker="",
        doc_marker="",
    ),
    "MonoT5": lambda: MonoT5(build_t5()),
    "GenerativeReranker": lambda: GenerativeReranker(
        build_decoder("qwen2", "AutoModelForCausalLM"), template=TEMPLATE, yes=5, no=7
    ),
}

PERTURBATION = OneOf([AddTerm("rivers"), CaseFold(), LNC2(), RemovePunctuation(), ReverseWords(), Typos()])

family = cache(lambda name: FAMILIES[name]())


@pytest.mark.parametrize("name", FAMILIES)
@given(made=st.lists(rows(), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_rows_of_any_characters_are_scored_and_patched_each_by_itself(name, made):
    ranker: Ranker = family(name)
    frame = pd.DataFrame(made, columns=["text", "query"], dtype=object).assign(qid=[str(i) for i in range(len(made))])
    frame["docno"] = frame["qid"]
    out = PatchScorer(ranker, perturbation=PERTURBATION, heads=[(0, 1), (1, 0)])(frame).sort_values("docno")
    assert list(out["text"]) == list(frame["text"])
    alone = [float(ranker.score([query], [text])[0]) for text, query in made]
    assert np.isfinite(alone).all()
    assert_near(out["score"], alone)
    for number, (text, query) in enumerate(made):
        row = out.iloc[number]
        pair = PERTURBATION.pair(text, query)
        (aligned,) = (
            [None]
            if pair is None
            else ranker.align([query], [pair.baseline], [pair.perturbed], alignments=[pair.by.alignment])
        )
        sides = np.array([row["score_baseline"], row["score_perturbed"]], dtype=float)
        assert np.isfinite(sides).all() == (aligned is not None)
        patched = np.asarray(row["patch_scores"])[[0, 1], [1, 0]]
        assert np.isfinite(patched).all() == (aligned is not None)
        if pair is not None and aligned is not None:
            single = PatchScorer(ranker, perturbation=PERTURBATION, heads=[(0, 1), (1, 0)])(frame.iloc[[number]])
            assert_near(patched, np.asarray(single["patch_scores"].iloc[0])[[0, 1], [1, 0]])
