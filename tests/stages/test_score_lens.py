"""The score after each layer is that of the model without the layers that follow."""

from __future__ import annotations

import io
import pickle
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from reference import PATHS, Inputs, Reference
from small_models import ARCHITECTURES, QUERIES, TEXTS, build
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder, PatchScorer, ScoreLens, lens_agreement
from pyterrier_mechir.rankers.base import Ranker

pytestmark = pytest.mark.usefixtures("one_thread")

POOLED = {
    "cls dot": ("cls", "dot"),
    "cls cosine": ("cls", "cosine"),
    "mean dot": ("mean", "dot"),
    "mean cosine": ("mean", "cosine"),
    "last dot": ("last", "dot"),
}

CASES = [
    *((architecture, kind) for architecture in ARCHITECTURES for kind in ("cls dot", "mean cosine", "cross")),
    *(("bert", kind) for kind in ("last dot", "cls cosine", "mean dot", "cross eager")),
    ("modernbert", "last dot"),
    ("modernbert", "cross mean"),
]

FRAME = pd.DataFrame(
    [
        (f"q{q}", QUERIES[q], f"d{d}", TEXTS[d], 7.0, 0)
        for q, d in [(0, 0), (0, 1), (0, 4), (1, 1), (1, 5), (0, 5), (5, 5), (2, 4)]
    ],
    columns=["qid", "query", "docno", "text", "score", "rank"],
)
"""Documents of 3 to 80 tokens, some of them retrieved for several queries."""


@cache
def make(architecture: str, kind: str) -> Ranker:
    changes = {"classifier_pooling": "mean"} if kind == "cross mean" else {}
    model, tokenizer = build(architecture, kind.startswith("cross"), **changes)
    if kind.endswith("eager"):
        model.set_attn_implementation("eager")
    if kind.startswith("cross"):
        return CrossEncoder((model, tokenizer))
    pooling, similarity = POOLED[kind]
    return BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)


def inputs_and_reference(ranker: Ranker, query: str, text: str) -> tuple[Inputs, Reference]:
    """The model's inputs for a row, unpadded, and what scores them."""
    if isinstance(ranker, CrossEncoder):
        return dict(ranker.tokenizer(query, text, return_tensors="pt")), Reference.cross_encoder(ranker.model)
    encoded = dict(ranker.tokenizer(query, return_tensors="pt"))
    reference = Reference.bi_encoder(ranker.model, encoded, ranker.pooling, ranker.similarity)
    return dict(ranker.tokenizer(text, return_tensors="pt")), reference


@contextmanager
def truncated(model: torch.nn.Module, n: int) -> Iterator[None]:
    """The model with its first layers only."""
    paths = PATHS[model.config.model_type]
    prefix = paths.prefix if type(model).__name__.endswith("ForSequenceClassification") else ""
    parent, _, name = (prefix + paths.layer.removesuffix(".{}")).rpartition(".")
    owner = model.get_submodule(parent)
    layers = getattr(owner, name)
    setattr(owner, name, layers[:n])
    yield
    setattr(owner, name, layers)


@cache
def expected(architecture: str, kind: str) -> np.ndarray:
    ranker = make(architecture, kind)
    rows = []
    for query, text in zip(FRAME["query"], FRAME["text"], strict=True):
        inputs, reference = inputs_and_reference(ranker, query, text)
        scores = []
        for n in range(ranker.n_layers + 1):
            with truncated(ranker.model, n):
                scores.append(reference.score(inputs))
        rows.append(scores)
    return np.array(rows)


def stacked(out: pd.DataFrame, column: str = "layer_scores") -> np.ndarray:
    return np.stack(list(out[column]))


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert (np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max() <= widened(1e-5)


@pytest.mark.parametrize("batch_size", [len(FRAME), None], ids=["padded", "by length"])
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_every_layer_scores_as_the_truncated_model(architecture, kind, batch_size):
    out = ScoreLens(make(architecture, kind), batch_size=batch_size)(FRAME)
    assert_same(stacked(out), expected(architecture, kind))


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_layers_score_differently_so_that_a_wrong_one_would_be_seen(architecture, kind):
    scores = expected(architecture, kind)
    for layer in range(scores.shape[1] - 1):
        assert np.median(np.abs(scores[:, layer] - scores[:, layer + 1])) > 1e-3


def test_the_output_is_the_plain_re_ranking_with_the_scores_of_layers(ranker):
    before = FRAME.copy(deep=True)
    out = ScoreLens(ranker)(FRAME)
    plain = ranker.scorer()(FRAME)
    assert list(out.columns) == ["qid", "query", "docno", "text", "score", "layer_scores", "rank"]
    pd.testing.assert_frame_equal(
        out.drop(columns="layer_scores"),
        plain[list(out.columns.drop("layer_scores"))],
        rtol=widened(1e-5),
        atol=widened(1e-6),
    )
    assert all(scores.dtype == np.float32 for scores in out["layer_scores"])
    np.testing.assert_array_equal(stacked(out)[:, -1], out["score"])
    pd.testing.assert_frame_equal(FRAME, before)


def test_each_distinct_sequence_is_run_once(ranker):
    rows = []
    first = ranker.anatomy.out_proj(0)
    hook = first.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    queries = ranker.query_inputs(sorted(set(FRAME["query"])))
    n_queries = sum(rows)
    rows.clear()
    ScoreLens(ranker)(pd.concat([FRAME, FRAME.assign(docno=FRAME["docno"] + "'")]))
    hook.remove()
    n_distinct = len(FRAME) if ranker.reads_query else FRAME["text"].nunique()
    assert sum(rows) == n_distinct + n_queries
    assert bool(queries) == (not ranker.reads_query)


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet"])
def test_the_model_is_left_as_it_was(architecture, kind):
    ranker = make(architecture, kind)
    before = ranker.scorer()(FRAME)
    ScoreLens(ranker)(FRAME)
    pd.testing.assert_frame_equal(ranker.scorer()(FRAME), before)
    assert not any("forward" in module.__dict__ for module in ranker.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ranker.model.modules())


def test_the_stage_passes_the_checks_of_pyterrier(ranker, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    stage = ScoreLens(ranker)
    case = pt.testing.transformer_test_class(lambda: stage)
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), result.failures + result.errors
    outputs = pt.inspect.transformer_outputs(stage, ["qid", "query", "docno", "text"])
    assert outputs == ["qid", "query", "docno", "text", "score", "layer_scores", "rank"]
    assert pt.inspect.subtransformers(stage) == {}


@pytest.mark.bits
def test_equal_stages_are_equal_and_pickled(bi_encoder, cross_encoder):
    assert ScoreLens(bi_encoder) == ScoreLens(bi_encoder) != ScoreLens(cross_encoder)
    assert hash(ScoreLens(bi_encoder)) == hash(ScoreLens(bi_encoder))
    assert ScoreLens(bi_encoder) != ScoreLens(bi_encoder, batch_size=2)
    assert ScoreLens(bi_encoder) != bi_encoder.scorer()
    assert repr(ScoreLens(bi_encoder, batch_size=2)) == "ScoreLens(BiEncoder('BertModel'), batch_size=2)"
    loaded = pickle.loads(pickle.dumps(ScoreLens(bi_encoder)))
    np.testing.assert_array_equal(stacked(loaded(FRAME)), stacked(ScoreLens(bi_encoder)(FRAME)))


def test_what_cannot_be_used_is_an_error(bi_encoder):
    with pytest.raises(TypeError, match="should be a ranker"):
        ScoreLens("tasb")
    with pytest.raises(ValueError, match="batch_size is 0"):
        ScoreLens(bi_encoder, batch_size=0)
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        ScoreLens(bi_encoder)(FRAME.drop(columns="text"))
    with pytest.raises(ValueError, match="more than once"):
        ScoreLens(bi_encoder)(pd.concat([FRAME, FRAME]))


def test_what_a_stage_before_said_of_its_arrays_stays(bi_encoder):
    patched = PatchScorer(bi_encoder, layers=[1])(FRAME.head(3))
    assert ScoreLens(bi_encoder)(patched).attrs == patched.attrs


# Agreement


def frame_of(**of_queries: list[list[float]]) -> pd.DataFrame:
    """Documents of each query in turn."""
    rows = [(i, qid, np.array(scores, np.float32)) for qid, of in of_queries.items() for i, scores in enumerate(of)]
    return pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=["i", "qid", "layer_scores"])


def test_agreement_is_kendalls_tau_averaged_over_queries():
    frame = frame_of(
        a=[[0, 3, 1], [0, 1, 2], [0, 2, 3]],  # layer 1 has one of three pairs in the final order: (1 - 2) / 3
        b=[[0, 4, 10], [0, 5, 20], [1, 6, 30]],  # layer 0 ties one of three: tau-b 2 / sqrt(2 * 3)
        c=[[5, 5, 5]],
    )
    found = lens_agreement(frame)
    assert found.columns.tolist() == ["layer", "tau", "n_queries"]
    assert found["layer"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found["tau"], [2 / 6**0.5, (1 - 1 / 3) / 2, 1])
    assert found["n_queries"].tolist() == [1, 2, 2]


def test_scores_that_differ_by_rounding_rank_nothing():
    frame = frame_of(a=[[97.0, 1.0], [97.00001, 2.0], [96.99999, 3.0]], b=[[1.0, 4.0], [2.0, 4.0], [3.0, 4.0], [4, 4]])
    found = lens_agreement(frame)
    assert found["n_queries"].tolist() == [0, 1]
    assert np.isnan(found["tau"][0])
    assert found["tau"][1] == 1


def test_the_first_layer_of_cls_pooling_ranks_nothing_and_the_last_as_the_model(ranker):
    found = lens_agreement(ScoreLens(ranker, batch_size=2)(FRAME))
    assert found["layer"].tolist() == list(range(ranker.n_layers + 1))
    assert found["tau"].isna().tolist() == [True, False, False, False]
    assert found["tau"].iloc[-1] == 1
    assert found["n_queries"].tolist() == [0, 2, 2, 2]


def test_an_empty_frame_agrees_on_nothing(bi_encoder):
    found = lens_agreement(ScoreLens(bi_encoder)(FRAME.head(0)))
    assert found.columns.tolist() == ["layer", "tau", "n_queries"]
    assert found.dtypes.astype(str).tolist() == ["int64", "float64", "int64"]
    assert found.empty


def test_agreement_needs_the_output_of_one_lens():
    with pytest.raises(pt.validate.InputValidationError, match="layer_scores"):
        lens_agreement(FRAME)
    with pytest.raises(ValueError, match="several lengths"):
        lens_agreement(frame_of(a=[[1, 2], [1, 2, 3]]))
