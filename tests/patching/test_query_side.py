"""Minimal pairs that vary in the query: how they are made, patched, classed and cut."""

from __future__ import annotations

import io
import unittest
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from reference import COMPONENTS, Reference
from small_models import TEXTS, build
from tolerance import assert_near_effects, widened

from pyterrier_mechir import BiEncoder, CrossEncoder, PairScorer, PatchScorer, PerturbDocs, PerturbQueries
from pyterrier_mechir.perturb import TFC1, TFC2, Identity, RemoveTerm, ShuffleWords, Typos, perturbation
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

ADDED = ["query_perturbed", "perturbation", "alignment", "expected_sign"]


@perturbation(sign="+")
def warmer(text):
    return f"{text} heat" if "heat" not in text else None


@pytest.fixture
def topics():
    return pd.DataFrame({"qid": ["q1", "q2", "q3"], "query": ["bats night", "heat pump house", ""], "extra": [1, 2, 3]})


@pytest.fixture
def results():
    return pd.DataFrame(
        {
            "qid": ["q1", "q1", "q2"],
            "query": ["bats night", "bats night", "heat pump house"],
            "docno": ["d0", "d1", "d1"],
            "text": [TEXTS[1], TEXTS[2], TEXTS[2]],
            "score": [2.0, 5.0, 1.0],
            "rank": [1, 0, 0],
        },
        index=[7, 7, 3],
    )


# PerturbQueries


def test_topics_get_the_perturbed_query_beside_their_own(topics):
    before, out = topics.copy(deep=True), PerturbQueries(warmer)(topics)
    assert list(out.columns) == [*topics.columns, *ADDED]
    assert out["query_perturbed"].tolist()[::2] == ["bats night heat", " heat"]
    assert out["query_perturbed"].isna().tolist() == [False, True, False]
    assert out["perturbation"].tolist() == ["warmer"] * 3
    pd.testing.assert_frame_equal(out[list(topics.columns)], before)
    pd.testing.assert_frame_equal(topics, before)


def test_results_keep_their_rows_order_and_ranks(results):
    out = PerturbQueries(warmer)(results)
    assert list(out.columns) == [*results.columns, *ADDED]
    pd.testing.assert_frame_equal(out[list(results.columns)], results)
    assert out["query_perturbed"].tolist()[:2] == ["bats night heat"] * 2
    assert pd.isna(out["query_perturbed"].iloc[2])


def test_the_query_is_both_the_text_and_the_query(topics):
    out = PerturbQueries(lambda text, query: f"{text}/{query}")(topics)
    assert out["query_perturbed"].tolist() == [f"{query}/{query}" for query in topics["query"]]


@pytest.mark.parametrize("made", [Typos(terms="query"), RemoveTerm(), ShuffleWords(), TFC1()])
def test_a_query_is_perturbed_alike_in_every_row_and_order(made, results):
    out = PerturbQueries(made)(results)
    assert out["query_perturbed"].iloc[0] == out["query_perturbed"].iloc[1] != "bats night"
    reverse = PerturbQueries(made)(results.iloc[::-1])
    assert reverse["query_perturbed"].tolist() == out["query_perturbed"].tolist()[::-1]


def test_a_baseline_of_its_own_is_the_baseline_of_the_query(topics):
    out = PerturbQueries(TFC2(term="heat"))(topics)
    assert out["query_baseline"].tolist() == ["bats night heat", "heat pump house heat", "heat"]
    assert out["query_perturbed"].tolist() == ["bats night heat heat", "heat pump house heat heat", "heat heat"]
    assert out["query"].tolist() == topics["query"].tolist()


def test_alignment_and_sign_are_told_as_for_documents(topics):
    out = PerturbQueries(ShuffleWords())(topics)
    assert (set(out["alignment"]), set(out["expected_sign"])) == ({"permute"}, {"-0"})


@pytest.mark.parametrize("kind", ["topics", "results"])
def test_an_empty_frame_has_the_columns_of_a_full_one(kind, request):
    frame = request.getfixturevalue(kind)
    for made in (warmer, TFC2(), ShuffleWords()):
        full, out = PerturbQueries(made)(frame), PerturbQueries(made)(frame.iloc[:0])
        assert len(out) == 0
        assert list(out.columns) == list(full.columns)
        assert [str(dtype) for dtype in out.dtypes] == [str(dtype) for dtype in full.dtypes]


@pytest.mark.parametrize("column", ["qid", "query"])
def test_a_missing_column_is_named(topics, column):
    with pytest.raises(pt.validate.InputValidationError, match=column):
        PerturbQueries(warmer)(topics.drop(columns=column))


@pytest.mark.parametrize("value", [None, 3, float("nan")])
def test_a_query_that_is_no_string_is_named(topics, value):
    with pytest.raises(ValueError, match=r"'query' is .*qid 'q2'"):
        PerturbQueries(warmer)(topics.assign(query=["a", value, "b"]))


def test_perturb_queries_keeps_the_conventions_of_pyterrier(monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    stage = PerturbQueries(TFC1())
    case = pt.testing.transformer_test_class(lambda: stage)
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), result.failures + result.errors
    assert ["qid", "query"] in pt.inspect.transformer_inputs(stage)
    assert set(pt.inspect.transformer_outputs(stage, ["qid", "query"])) == {"qid", "query", *ADDED}
    assert stage == PerturbQueries(TFC1()) != PerturbDocs(TFC1())
    assert hash(stage) == hash(PerturbQueries(TFC1()))
    assert repr(stage) == "PerturbQueries(TFC1())"
    assert pt.inspect.transformer_apply_attributes(stage, perturbation=Typos()) == PerturbQueries(Typos())


# Patching


class Row(NamedTuple):
    """A query, its perturbed form, the baseline as it is read (with fillers), a document, and the alignment."""

    query: str
    perturbed: str
    read: str
    text: str
    alignment: str


ROWS = [
    Row("bats night", "bats night heat", "bats night a", TEXTS[1], "fill"),
    Row("two high", "two high tides day tides", "two high a a a", TEXTS[5], "fill"),
    Row("iron bridge", "iron bridge heat", "iron bridge a", TEXTS[5], "mask"),
    Row("two high tides", "two high heat", "two high tides", TEXTS[0], "swap"),
    Row("tides two high heat", "tides heat two high", "tides two high heat", TEXTS[4], "permute"),
]
"""Rows that no tokenizer cuts differently on the two sides; two have the same document."""

FRAME = pd.DataFrame(
    {
        "qid": [str(i) for i in range(len(ROWS))],
        "query": [row.query for row in ROWS],
        "docno": "d",
        "text": [row.text for row in ROWS],
        "query_perturbed": [row.perturbed for row in ROWS],
        "alignment": [row.alignment for row in ROWS],
    }
)

BI_ENCODERS = [
    ("bert", "cls", "dot"),
    ("bert", "mean", "cosine"),
    ("roberta", "cls", "cosine"),
    ("mpnet", "mean", "dot"),
    ("distilbert", "mean", "cosine"),
    ("modernbert", "cls", "dot"),
]
CASES = [*BI_ENCODERS, *((name, "cross", "") for name in ("bert", "electra", "roberta", "xlm-roberta", "modernbert"))]


@cache
def ranker_of(architecture: str, pooling: str, similarity: str) -> Ranker:
    """Cross-encoders cut the longest documents; prefixes and lengths of bi-encoders differ by side."""
    model = build(architecture, classifier=pooling == "cross")
    if pooling == "cross":
        return CrossEncoder(model, max_length=60)
    lengths = {"max_query_length": 24, "max_length": 40}
    prefixes = {"query_prefix": "heat house: ", "doc_prefix": "day "}
    return BiEncoder(model, pooling=pooling, similarity=similarity, **lengths, **prefixes)


def references(ranker: Ranker, row: Row) -> tuple[Reference, dict, dict]:
    """A reference on the unmodified model, and what its own tokenizer makes of the two sides."""
    tokenizer, model = ranker.tokenizer, ranker.model
    options = {"return_tensors": "pt", "max_length": ranker.max_length}
    if isinstance(ranker, CrossEncoder):
        reference = Reference.cross_encoder(model)
        sides = [tokenizer(q, row.text, truncation="only_second", **options) for q in (row.read, row.perturbed)]
    else:
        document = tokenizer(ranker.doc_prefix + row.text, truncation=True, **options)
        reference = Reference.bi_encoder(model, dict(document), ranker.pooling, ranker.similarity)
        sides = [tokenizer(ranker.query_prefix + q, return_tensors="pt") for q in (row.read, row.perturbed)]
    baseline, perturbed = map(dict, sides)
    if row.alignment == "mask":
        (pair,) = ranker.facing("query").align([row.text], [row.query], [row.perturbed], alignments=["mask"])
        hidden = baseline["input_ids"] != perturbed["input_ids"]
        baseline["attention_mask"] = (~hidden).long()
        baseline["input_ids"][hidden] = torch.tensor(pair.baseline.ids)[hidden[0]]
    return reference, baseline, perturbed


@cache
def expected(case: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """Scores of both sides and of all sites of all components in both directions, row by row."""
    found = {"baseline": [], "perturbed": [], "denoise": [], "noise": []}
    for row in ROWS:
        reference, baseline, perturbed = references(ranker_of(*case), row)
        sites = [(component, *site) for component in COMPONENTS for site in reference.sites(component)]
        found["baseline"].append(reference.score(baseline))
        found["perturbed"].append(reference.score(perturbed))
        found["denoise"].append(reference.patched_each(baseline, perturbed, sites)[:, 0])
        found["noise"].append(reference.patched_each(perturbed, baseline, sites)[:, 0])
    return {name: np.array(values) for name, values in found.items()}


def assert_exact(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (np.abs(found - wanted) / np.maximum(1, np.abs(wanted))).max() <= widened(1e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_site_is_that_of_one_hook_on_the_plain_model(case, direction):
    wanted = expected(case)
    for batch_size in (len(ROWS), None):
        out = PatchScorer(ranker_of(*case), COMPONENTS, direction=direction, batch_size=batch_size)(FRAME)
        assert_exact(out["score_baseline"].to_numpy(), wanted["baseline"])
        assert_exact(out["score_perturbed"].to_numpy(), wanted["perturbed"])
        assert_exact(np.stack(list(out["patch_scores"])), wanted[direction])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(case):
    wanted = expected(case)
    ranker = ranker_of(*case)
    parts = slice(0, 4 * ranker.n_layers * ranker.n_heads + 2 * ranker.n_layers)
    denoise, noise, baseline = wanted["denoise"][:, parts], wanted["noise"][:, parts], wanted["baseline"][:, None]
    for other in (baseline, noise, np.roll(denoise, 1, axis=1), np.roll(denoise, 1, axis=0)):
        assert np.mean(np.abs(denoise - other) / np.maximum(1, np.abs(baseline)) > 1e-5) > 0.85


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_side_without_fillers_keeps_the_score_of_its_query(case):
    ranker, out = ranker_of(*case), PairScorer(ranker_of(*case))(FRAME)
    plain = ranker.score([row.perturbed for row in ROWS], [row.text for row in ROWS])
    assert_exact(out["score_perturbed"].to_numpy(), plain)
    bare = [i for i, row in enumerate(ROWS) if row.alignment in ("swap", "permute")]
    assert_exact(out["score_baseline"].to_numpy()[bare], out["score"].to_numpy()[bare])
    assert_exact(out["score"].to_numpy(), ranker.score([row.query for row in ROWS], [row.text for row in ROWS]))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_input_of_the_first_layer_carries_the_whole_difference(case, direction):
    rows = FRAME[FRAME["alignment"] != "mask"]
    out = PatchScorer(ranker_of(*case), "resid_pre", layers=[0], direction=direction, min_delta=0)(rows)
    source = "score_perturbed" if direction == "denoise" else "score_baseline"
    assert_exact(np.stack(list(out["patch_scores"]))[:, 0], out[source].to_numpy())
    assert_near_effects(np.stack(list(out["patch_effect"]))[:, 0], 1, out)


@pytest.mark.parametrize("case", [("bert", "mean", "cosine"), ("roberta", "cross", "")], ids="-".join)
def test_a_batch_gives_what_its_rows_give_one_by_one(case):
    stage = PatchScorer(ranker_of(*case), COMPONENTS)
    together = stage(FRAME)
    alone = pd.concat([stage(FRAME.iloc[[i]]) for i in range(len(FRAME))])
    for column in ("score", "score_baseline", "score_perturbed"):
        assert_exact(together[column].to_numpy(), alone[column].to_numpy())
    assert_exact(np.stack(list(together["patch_scores"])), np.stack(list(alone["patch_scores"])))


def test_identical_queries_have_no_effect(ranker, results):
    with pytest.warns(UserWarning, match="3 of 3 queries are the same"):
        out = (PerturbQueries(Identity()) >> PatchScorer(ranker))(results)
    assert np.isnan(np.stack(list(out["patch_effect"]))).all()
    assert_exact(out["score_baseline"].to_numpy(), out["score"].to_numpy())
    assert_exact(out["score_perturbed"].to_numpy(), out["score"].to_numpy())


def test_a_row_whose_query_is_not_perturbed_is_missing(ranker, results):
    out = (PerturbQueries(warmer) >> PatchScorer(ranker))(results)
    assert out["score_perturbed"].isna().tolist() == [False, False, True]
    assert [bool(np.isnan(array).all()) for array in out["patch_scores"]] == [False, False, True]
    assert np.isfinite(out["score"]).all()


def test_a_query_baseline_takes_the_place_of_the_query(ranker, results):
    given = results.assign(query_perturbed="two high heat", query_baseline=["two high tides", None, "two high tides"])
    given["alignment"] = "swap"
    out = PairScorer(ranker)(given)
    texts = results["text"].tolist()
    wanted = ranker.score(["two high tides", "bats night", "two high tides"], texts)
    assert_exact(out["score_baseline"].to_numpy()[[0, 2]], wanted[[0, 2]])
    assert_exact(out["score_perturbed"].to_numpy(), ranker.score(["two high heat"] * 3, texts))
    assert_exact(out["score"].to_numpy(), ranker.score(results["query"].tolist(), texts))
    assert abs(out["score_baseline"].iloc[1] - wanted[0]) > 1e-3


@pytest.mark.parametrize("stage", [PairScorer, PatchScorer])
def test_both_sides_at_once_are_an_error(ranker, results, stage):
    pipeline = PerturbDocs(TFC1()) >> PerturbQueries(warmer) >> stage(ranker)
    with pytest.raises(ValueError, match="text_perturbed and query_perturbed"):
        pipeline(results)


@pytest.mark.parametrize("stage", [PairScorer, PatchScorer])
def test_a_perturbed_query_that_is_no_string_is_named(ranker, results, stage):
    with pytest.raises(ValueError, match="'query_perturbed' is a int"):
        stage(ranker)(results.assign(query_perturbed=3))


# Token classes


def classes(ranker: Ranker, text: str, query: str, perturbed: str, alignment: str = "fill") -> str:
    (pair,) = ranker.facing("query").align([text], [query], [perturbed], alignments=[alignment])
    return " ".join(TOKEN_CLASSES[i] for i in pair.classes)


DOCUMENT = "high tides day heat"


@pytest.mark.parametrize(
    ("query", "perturbed", "alignment", "of_query", "of_document"),
    [
        ("high tides", "high tides tides", "fill", "Q- Q+ EDIT", "D- D+ OTHER OTHER"),
        ("high tides", "heat high tides", "fill", "EDIT Q- Q-", "D- D- OTHER D+"),
        ("high tides", "high tides night", "mask", "Q- Q- EDIT", "D- D- OTHER OTHER"),
        ("high tides day", "high day", "fill", "Q- EDIT Q-", "D- D+ D- OTHER"),
        ("high tides", "high heat", "swap", "Q- EDIT", "D- D+ OTHER D+"),
        ("high tides day", "day tides high", "permute", "EDIT Q- EDIT", "D+ D- D+ OTHER"),
        ("", "tides", "fill", "EDIT", "OTHER D+ OTHER OTHER"),
    ],
)
def test_classes_of_a_pair_that_varies_in_the_query(
    bi_encoder, cross_encoder, query, perturbed, alignment, of_query, of_document
):
    assert classes(bi_encoder, DOCUMENT, query, perturbed, alignment) == f"CLS {of_query} SEP"
    assert classes(cross_encoder, DOCUMENT, query, perturbed, alignment) == f"CLS {of_query} SEP {of_document} SEP"


def test_facing_the_other_side_and_back_changes_nothing(ranker):
    assert ranker.facing("document") is ranker
    back = ranker.facing("query").facing("document")
    assert back == ranker
    assert back.varies == ranker.varies == "document"
    with pytest.raises(ValueError, match="unknown side 'text'"):
        ranker.facing("text")


def test_a_ranker_that_faces_the_query_ranks_as_itself(results):
    for case in (CASES[0], CASES[-1]):
        out, facing = (PairScorer(ranker_of(*case).facing(side))(results) for side in ("document", "query"))
        for column in ("score", "score_perturbed"):
            assert_exact(facing[column].to_numpy(), out[column].to_numpy())


# Long queries and documents

LONG = "day " * 30


def test_a_long_query_of_a_bi_encoder_is_cut_to_its_own_length():
    ranker = BiEncoder(build("bert", classifier=False), max_query_length=8, max_length=100)
    with pytest.warns(UserWarning, match="1 of 1 queries are longer"):
        assert classes(ranker, TEXTS[0], LONG, f"{LONG}heat") == "CLS Q- Q- Q- Q- Q- EDIT SEP"


def test_a_long_query_leaves_a_cross_encoder_its_document():
    ranker = CrossEncoder(build("bert", classifier=True), max_length=12)
    with pytest.warns(UserWarning, match="1 of 1 queries are longer"):
        found = classes(ranker, "high tides", LONG, f"{LONG}heat")
    assert found == "CLS Q- Q- Q- Q- Q- Q- EDIT SEP OTHER OTHER SEP"


@pytest.mark.filterwarnings("ignore:.*queries are longer")
@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_a_query_longer_than_the_model_scores_as_it_does_plainly(kind):
    limits = {"max_query_length": 10, "max_length": 20} if kind == "bi" else {"max_length": 20}
    ranker = (BiEncoder if kind == "bi" else CrossEncoder)(build("bert", classifier=kind == "cross"), **limits)
    row = {"qid": "1", "query": f"tides {LONG * 6}", "docno": "d", "text": TEXTS[5], "alignment": "swap"}
    frame = pd.DataFrame([row | {"query_perturbed": f"heat {LONG * 6}"}])
    out = PairScorer(ranker)(frame)
    assert_exact(out["score_baseline"].to_numpy(), out["score"].to_numpy())
    assert_exact(out["score_perturbed"].to_numpy(), ranker.score(frame["query_perturbed"], frame["text"]))


def test_an_edit_of_a_query_that_is_too_long_by_itself_is_missing(results):
    ranker = BiEncoder(build("bert", classifier=False), max_query_length=6)
    given = results.assign(query_perturbed=[f"bats night {LONG}", "bats night heat", f"{LONG} heat pump house"])
    with pytest.warns(UserWarning, match="queries are longer than the 6 tokens"):
        out = PairScorer(ranker)(given)
    assert out["score_perturbed"].isna().tolist() == [True, False, True]
