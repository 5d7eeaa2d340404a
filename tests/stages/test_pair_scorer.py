"""Scores of both sides of minimal pairs without patching, and the columns that say what a pair is."""

from __future__ import annotations

import io
import pickle
import unittest

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import TEXTS, build
from tolerance import widened

from pyterrier_mechir import BiEncoder, PairScorer, PatchScorer, PerturbDocs, PerturbQueries
from pyterrier_mechir.patching import methods
from pyterrier_mechir.perturb import (
    LNC2,
    STMC1,
    TFC1,
    TFC2,
    TFLNC,
    AddTerm,
    CaseFold,
    Identity,
    OneOf,
    Perturbation,
    RandomFiller,
    RandomTerm,
    ShuffleWords,
    perturbation,
)
from pyterrier_mechir.results.measures import axiom_agreement
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.sequences import Sequences

pytestmark = pytest.mark.usefixtures("one_thread")

TIDES, HEAT = "why are there two high tides", "heat pump house"
PERTURBED = ["text_perturbed", "perturbation", "alignment", "expected_sign"]
SCORED = ["score", "rank", "score_baseline", "score_perturbed"]
PATCHES = ["patch_scores", "patch_effect", "patch_effect_noise"]

free = perturbation(alignment="free")(lambda text: " ".join(text.split()[::-2]))


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "qid": ["q1", "q1", "q1", "q2", "q2"],
            "query": [TIDES, TIDES, TIDES, HEAT, HEAT],
            "docno": ["d0", "d1", "d2", "d2", "d3"],
            "text": [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[2], TEXTS[3]],
            "score": [3.0, 2.0, 1.0, 2.0, 1.0],
            "rank": [0, 1, 2, 0, 1],
        },
        index=[4, 4, 1, 0, 9],
    )


def assert_same_scores(found: pd.DataFrame, expected: pd.DataFrame, atol: float = 1e-4) -> None:
    for column in SCORED:
        np.testing.assert_allclose(found[column].astype(float), expected[column].astype(float), atol=widened(atol))


# PairScorer


@pytest.mark.parametrize("stage", [PerturbDocs, PerturbQueries])
@pytest.mark.parametrize("made", [TFC1(), TFC2(), LNC2(), CaseFold(), ShuffleWords()], ids=repr)
@pytest.mark.filterwarnings("ignore:.*the same after the perturbation")
def test_the_scores_are_those_of_patch_scorer(ranker, frame, stage, made):
    perturbed = stage(made)(frame)
    out = PairScorer(ranker)(perturbed)
    for direction in ("denoise", "noise"):
        assert_same_scores(out, PatchScorer(ranker, layers=[0], direction=direction)(perturbed))


@pytest.mark.bits
def test_columns_are_added_and_nothing_else_changes(ranker, frame):
    before = frame.copy(deep=True)
    out = PairScorer(ranker)(frame)
    assert sorted(out.columns) == sorted({*frame.columns, *PERTURBED, *SCORED})
    pd.testing.assert_frame_equal(frame, before)
    assert out.index.tolist() == frame.index.tolist()
    for column in ("qid", "query", "docno", "text"):
        assert out[column].tolist() == frame[column].tolist()
    for column in ("score", "score_baseline", "score_perturbed"):
        assert out[column].dtype == np.float32
    plain = ranker.scorer()(frame)
    assert (out["score"].tolist(), out["rank"].tolist()) == (plain["score"].tolist(), plain["rank"].tolist())


def test_results_of_patching_are_replaced(ranker, frame):
    patched = PatchScorer(ranker, direction="both")(frame)
    out = PairScorer(ranker)(patched)
    assert not set(PATCHES) & set(out.columns)
    assert_same_scores(out, patched)


def test_free_sides_are_scored_as_they_stand(ranker, frame):
    out = (PerturbDocs(OneOf([free, TFC1()])) >> PairScorer(ranker))(frame)
    assert set(out["alignment"]) == {"free", "fill"}
    plain = ranker.score(out["query"].tolist(), out["text_perturbed"].tolist())
    np.testing.assert_allclose(out["score_perturbed"], plain, atol=widened(1e-4))
    rows = (out["alignment"] == "free").tolist()
    np.testing.assert_allclose(out["score_baseline"][rows], out["score"][rows], atol=widened(1e-4))
    assert (abs(out["score_baseline"] - out["score"])[[not free for free in rows]] > 1e-3).all()


def test_free_queries_and_baselines_are_scored_as_they_stand(ranker, frame):
    queries = (PerturbQueries(free) >> PairScorer(ranker))(frame)
    plain = ranker.score(queries["query_perturbed"].tolist(), frame["text"].tolist())
    np.testing.assert_allclose(queries["score_perturbed"], plain, atol=widened(1e-4))
    np.testing.assert_allclose(queries["score_baseline"], queries["score"], atol=widened(1e-4))
    both = perturbation(alignment="free", own_baseline=True)(lambda text: (f"heat {text}", "tides"))
    out = PairScorer(ranker, perturbation=both)(frame)
    plain = ranker.score(frame["query"].tolist(), [f"heat {text}" for text in frame["text"]])
    np.testing.assert_allclose(out["score_baseline"], plain, atol=widened(1e-4))


@pytest.mark.bits
def test_rows_to_which_nothing_applies_are_missing(ranker, frame):
    given = PerturbDocs(TFC1())(frame)
    given["text_perturbed"] = given["text_perturbed"].where([True, False, True, False, True])
    out = PairScorer(ranker)(given)
    for column in ("score_baseline", "score_perturbed"):
        assert out[column].isna().tolist() == [False, True, False, True, False]
    assert np.isfinite(out["score"]).all()
    none = PairScorer(ranker, perturbation=lambda text: None)(frame)
    assert none[["score_baseline", "score_perturbed"]].isna().all(axis=None)
    assert none["score"].tolist() == out["score"].tolist()


def test_sides_that_stay_the_same_have_the_score_of_the_text(ranker, frame):
    with pytest.warns(UserWarning, match="5 of 5 documents are the same"):
        out = PairScorer(ranker, perturbation=Identity())(frame)
    np.testing.assert_allclose(out["score_baseline"], out["score"], atol=widened(1e-5))
    np.testing.assert_allclose(out["score_perturbed"], out["score"], atol=widened(1e-5))


@pytest.mark.filterwarnings("ignore:.*longer than the 8 tokens")
def test_a_pair_longer_than_the_model_takes_is_missing(frame):
    short = BiEncoder(build("bert", classifier=False), max_length=8)
    flood = perturbation(lambda text, query: text + " day" * (20 if "heat" in query else 1))
    out = PairScorer(short, perturbation=flood)(frame)
    assert out["score_perturbed"].isna().tolist() == [False, False, False, True, True]


@pytest.mark.bits
def test_several_fillers_are_averaged(ranker, frame):
    several, *single = (
        PairScorer(ranker, filler=filler)(frame) for filler in (["a", "heat", "mask"], "a", "heat", "mask")
    )
    for column in ("score_baseline", "score_perturbed"):
        np.testing.assert_allclose(
            several[column], np.mean([out[column] for out in single], axis=0), atol=widened(1e-4)
        )
    draws = PairScorer(ranker, filler=RandomFiller(draws=2))(frame)
    assert_same_scores(draws, PairScorer(ranker, filler=[RandomFiller(draws=2)])(frame), atol=0)
    assert abs(draws["score_baseline"] - single[0]["score_baseline"]).max() > 1e-3


@pytest.mark.bits
def test_tfc1_is_applied_unless_another_is_given(bi_encoder, frame):
    assert PairScorer(bi_encoder)(frame)["perturbation"].tolist() == ["TFC1"] * 5
    out = PairScorer(bi_encoder, perturbation=AddTerm("night"))(frame)
    assert set(out["expected_sign"]) == {"-0"}
    assert_same_scores(out, (PerturbDocs(AddTerm("night")) >> PairScorer(bi_encoder))(frame), atol=0)
    given = PairScorer(bi_encoder, perturbation=AddTerm("night"))(frame.assign(text_perturbed=frame["text"] + " day"))
    assert "perturbation" not in given.columns


@pytest.mark.parametrize(
    "made", [STMC1(), STMC1() | CaseFold(), OneOf([STMC1()]), RandomTerm(STMC1(), TEXTS)], ids=repr
)
@pytest.mark.parametrize("stage", [PairScorer, PatchScorer])
def test_what_needs_similar_words_takes_those_of_the_ranker(ranker, frame, stage, made):
    out = stage(ranker, perturbation=made)(frame)
    assert out["text_perturbed"].notna().any()
    expected = PerturbDocs(made.bind(ranker))(frame)
    pd.testing.assert_series_equal(out["text_perturbed"], expected["text_perturbed"])
    if made == STMC1():
        assert expected.equals(PerturbDocs(STMC1(ranker))(frame))
    assert repr(stage(ranker, perturbation=made)).count("Encoder") == 1


@pytest.mark.parametrize("made", [STMC1(), STMC1() | CaseFold(), OneOf([STMC1()])], ids=repr)
def test_similar_words_that_nobody_gives_are_an_error(frame, made):
    with pytest.raises(ValueError, match=r"STMC1\(\) has no similar words: write STMC1\(similar=ranker\)"):
        PerturbDocs(made)(frame)


@pytest.mark.parametrize("made", [None, AddTerm("night"), TFC2()])
def test_an_empty_frame_has_the_columns_of_a_full_one(ranker, frame, made):
    stage = PairScorer(ranker, perturbation=made)
    full, out = stage(frame), stage(frame.iloc[:0])
    assert len(out) == 0
    assert list(out.columns) == list(full.columns)
    assert [str(dtype) for dtype in out.dtypes] == [str(dtype) for dtype in full.dtypes]
    assert len(stage(pd.DataFrame(columns=["qid", "query", "docno", "text"]))) == 0


@pytest.mark.bits
def test_another_text_field(ranker, frame):
    body = frame.rename(columns={"text": "body"})
    out = PairScorer(ranker, text_field="body", perturbation=TFC2())(body)
    assert {"body_perturbed", "body_baseline"} <= set(out.columns)
    assert_same_scores(out, PairScorer(ranker, perturbation=TFC2())(frame), atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_batch_has_no_more_than_its_size(ranker, frame, batch_size, monkeypatch):
    expected = PairScorer(ranker)(frame)
    rows, collate = [], ranker.collate

    def counted(sequences, *rest):
        rows.append(len(sequences))
        return collate(sequences, *rest)

    monkeypatch.setattr(ranker, "collate", counted)
    out = PairScorer(ranker, batch_size=batch_size)(frame)
    assert_same_scores(out, expected)
    n_queries = 0 if ranker.reads_query else 2
    assert max(rows) <= max(2 * batch_size, n_queries)


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_the_stage_passes_the_checks_of_pyterrier(kind, bi_encoder, cross_encoder, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    stage = PairScorer(bi_encoder if kind == "bi" else cross_encoder, filler=["a", "mask"])
    case = pt.testing.transformer_test_class(lambda: stage)
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), result.failures + result.errors
    assert pt.inspect.subtransformers(stage) == {}
    outputs = pt.inspect.transformer_outputs(stage, ["qid", "query", "docno", "text"])
    assert set(outputs) == {"qid", "query", "docno", "text", *PERTURBED, *SCORED}
    assert pt.inspect.transformer_apply_attributes(stage, filler="a") == PairScorer(stage.ranker)


@pytest.mark.bits
def test_equal_stages_are_equal_and_pickled(bi_encoder, cross_encoder, frame):
    def make(**options):
        return PairScorer(bi_encoder, perturbation=STMC1({"tides": ["moon"]}), filler=["a", "mask"], **options)

    assert make() == make() != make(batch_size=3)
    assert hash(make()) == hash(make())
    assert PairScorer(bi_encoder) != PatchScorer(bi_encoder)
    assert PairScorer(bi_encoder) != PairScorer(cross_encoder)
    assert PairScorer(bi_encoder) != PairScorer(bi_encoder, perturbation=TFC1())
    assert repr(PairScorer(bi_encoder, filler="mask")) == "PairScorer(BiEncoder('BertModel'), filler='mask')"
    assert_same_scores(pickle.loads(pickle.dumps(make()))(frame), make()(frame), atol=0)


def test_what_cannot_be_used_is_an_error_at_once(bi_encoder):
    with pytest.raises(TypeError, match="should be a ranker"):
        PairScorer("tasb")
    with pytest.raises(TypeError, match="should be a Perturbation"):
        PairScorer(bi_encoder, perturbation=3)
    with pytest.raises(ValueError, match="no filler given"):
        PairScorer(bi_encoder, filler=[])
    with pytest.raises(ValueError, match="batch_size is 0"):
        PairScorer(bi_encoder, batch_size=0)


@pytest.mark.parametrize("column", ["qid", "query", "docno", "text"])
def test_a_missing_column_is_named(cross_encoder, frame, column):
    with pytest.raises(pt.validate.InputValidationError, match=column):
        PairScorer(cross_encoder)(frame.drop(columns=column))


def test_an_unknown_alignment_in_the_frame_is_an_error(ranker, frame):
    with pytest.raises(ValueError, match="unknown alignment 'diagonal'"):
        PairScorer(ranker)(frame.assign(text_perturbed="a", alignment="diagonal"))


# What PerturbDocs says of its pairs


class Own(Perturbation):
    """Adds a word to both sides."""

    own_baseline = True

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        return (f"{text} day", f"{text} night") if "heat" in query else None


@pytest.mark.parametrize(
    ("made", "alignment", "sign"),
    [
        (TFC1(), "fill", "+"),
        (TFC1(replace="all"), "fill", "-"),
        (ShuffleWords(), "permute", "-0"),
        (perturbation(alignment="swap", sign="+")(lambda text: text.upper()), "swap", "+"),
        (perturbation(lambda text: f"{text} a"), "fill", "none"),
        (perturbation(sign="0")(lambda text: None), "fill", "0"),
    ],
    ids=repr,
)
def test_every_row_says_how_its_sides_correspond_and_what_is_expected(frame, made, alignment, sign):
    out = PerturbDocs(made)(frame)
    assert list(out.columns) == [*frame.columns, "text_perturbed", "perturbation", "alignment", "expected_sign"]
    assert (set(out["alignment"]), set(out["expected_sign"])) == ({alignment}, {sign})
    assert list(PerturbDocs(made)(frame.iloc[:0]).columns) == list(out.columns)


def test_perturbed_frames_put_together_keep_their_meaning(frame, bi_encoder):
    made = [TFC1(), TFC1(replace="all"), ShuffleWords()]
    rows = frame.assign(docno=[f"d{i}" for i in range(len(frame))])
    parts = [PerturbDocs(one)(rows.assign(qid=f"q{i}")) for i, one in enumerate(made)]
    scored = PairScorer(bi_encoder)
    joint = axiom_agreement(scored(pd.concat(parts))).set_index("qid")
    for i, part in enumerate(parts):
        alone = axiom_agreement(scored(part)).set_index("qid")
        pd.testing.assert_frame_equal(joint.loc[[f"q{i}"]], alone)


def test_a_baseline_of_its_own_has_a_column(frame):
    out = PerturbDocs(Own())(frame)
    added = ["text_perturbed", "perturbation", "text_baseline", "alignment", "expected_sign"]
    assert list(out.columns[-5:]) == added
    assert out["text_baseline"].isna().tolist() == out["text_perturbed"].isna().tolist() == [True] * 3 + [False] * 2
    assert out["text_baseline"].iloc[3] == f"{TEXTS[2]} day"
    assert set(out["perturbation"]) == {"Own"}
    assert {"body_baseline"} <= set(
        PerturbDocs(Own(), text_field="body")(frame.rename(columns={"text": "body"})).columns
    )


def test_nothing_of_an_earlier_perturbation_is_left(frame):
    for earlier in (Own(), ShuffleWords(), TFC2()):
        again = PerturbDocs(TFC1())(PerturbDocs(earlier)(frame))
        pd.testing.assert_frame_equal(again, PerturbDocs(TFC1())(frame), check_like=True)
        queries = PerturbQueries(TFC1())(PerturbQueries(earlier)(frame))
        pd.testing.assert_frame_equal(queries, PerturbQueries(TFC1())(frame), check_like=True)


def test_pairs_with_a_baseline_of_their_own_are_scored_against_it(ranker, frame):
    out = (PerturbDocs(Own()) >> PairScorer(ranker))(frame)
    sides = [ranker.score([HEAT] * 2, [f"{text} {word}" for text in TEXTS[2:4]]) for word in ("day", "night")]
    np.testing.assert_allclose(out["score_baseline"].iloc[3:], sides[0], atol=widened(1e-4))
    np.testing.assert_allclose(out["score_perturbed"].iloc[3:], sides[1], atol=widened(1e-4))


def test_equal_pairs_of_several_fillers_are_run_once(bi_encoder, frame, monkeypatch):
    seen = []
    sweep = methods.sweeper("exact", None)
    counting = lambda *args, **options: seen.append(len(args[1])) or sweep(*args, **options)  # noqa: E731
    monkeypatch.setattr(methods, "sweeper", lambda *args: counting)
    fillers = ["a", "mask", "heat"]
    swapped, filled = (PerturbDocs(made)(frame) for made in (ShuffleWords(), TFC1()))
    out = PairScorer(bi_encoder, filler=fillers)(swapped)
    PairScorer(bi_encoder, filler=fillers)(filled)
    n = len(frame.drop_duplicates(["query", "text"]))
    assert seen == [n, 3 * n]
    assert_same_scores(out, PairScorer(bi_encoder)(swapped))


def test_what_does_not_correspond_and_is_cut_is_told(frame):
    ranker = BiEncoder(build("bert", classifier=False), max_length=12)
    appended = perturbation(alignment="free")(lambda text: f"{text} heat")
    with pytest.warns(UserWarning, match=r"\d of 5 pairs are scored as they stand and are longer than the 12 tokens"):
        PairScorer(ranker, perturbation=appended)(frame)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_masked_positions_are_not_patched(cross_encoder, frame, direction, monkeypatch):
    """What stands at a masked position of the baseline, which nothing attends to, decides nothing."""
    masked = PerturbDocs(TFLNC())(frame)
    stage = PatchScorer(cross_encoder, ["resid_pre", "head"], direction=direction, positions="class")
    out = stage(masked)
    monkeypatch.setattr(Sequences, "masked_ids", lambda self, n: np.full(n, 7))
    other = stage(masked)
    for one, two in zip(out["patch_scores"], other["patch_scores"], strict=True):
        np.testing.assert_allclose(one, two, rtol=widened(1e-5), atol=widened(1e-5))
        assert np.isnan(one[:, TOKEN_CLASSES.index("EDIT")]).all()


def test_a_text_that_does_not_fit_twice_has_no_pair(frame):
    ranker = BiEncoder(build("bert", classifier=False), max_length=12)
    with pytest.warns(UserWarning, match="cannot be cut without losing the perturbation"):
        out = (PerturbDocs(LNC2()) >> PairScorer(ranker))(frame)
    assert out["score_perturbed"].isna().any()


def test_attention_weights_of_masked_pairs_are_an_error(bi_encoder, frame):
    with pytest.raises(ValueError, match="attention weights cannot be patched in pairs of alignment 'mask'"):
        (PerturbDocs(TFLNC()) >> PatchScorer(bi_encoder, "pattern"))(frame)
    with pytest.raises(ValueError, match="'free' has sides that do not correspond"):
        PatchScorer(bi_encoder, positions="each", perturbation=perturbation(alignment="free")(lambda text: "heat"))(
            frame
        )
