"""The stages keep the conventions of PyTerrier and compute what they say."""

from __future__ import annotations

import functools
import io
import pickle
import unittest
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import TEXTS, build
from tolerance import assert_near, assert_near_effects, widened

from pyterrier_mechir import AggregateHeads, BiEncoder, CrossEncoder, PatchScorer, PerturbDocs, plot_heads
from pyterrier_mechir.perturb import TDC, TFC1, Identity, perturbation

matplotlib.use("Agg")

PERTURBED = ["text_perturbed", "perturbation", "alignment", "expected_sign"]
PATCHED = ["score_baseline", "score_perturbed", "patch_scores", "patch_effect"]
AGGREGATED = [
    *["qid", "docno", "score", "rank", "component", "layer", "head", "n_pairs", "n_skipped", "mean_delta"],
    *["ci_low", "ci_high", "p_value", "p_adjusted"],
]
TIDES, HEAT = "why are there two high tides", "heat pump house"


pytestmark = pytest.mark.usefixtures("one_thread")


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
            "relevance": [3, 0, 0, 3, 0],
        }
    )


def stacked(out: pd.DataFrame, column: str = "patch_scores") -> np.ndarray:
    return np.stack(list(out[column]))


def assert_same_results(left: pd.DataFrame, right: pd.DataFrame, atol: float = 1e-4) -> None:
    """The same pairs with the same numbers, whatever their order and docnos."""
    for column in ("score", "score_baseline", "score_perturbed"):
        np.testing.assert_allclose(left[column], right[column], atol=widened(atol))
    np.testing.assert_allclose(stacked(left), stacked(right), atol=widened(atol))


def all_missing(array: np.ndarray) -> bool:
    return bool(np.isnan(array).all())


# Columns


def test_perturb_docs_adds_its_columns_and_leaves_the_rest(frame):
    before = frame.copy(deep=True)
    out = PerturbDocs(TFC1("tides"))(frame)
    assert list(out.columns) == [*frame.columns, *PERTURBED]
    assert out["text_perturbed"].tolist() == [f"{text} tides" for text in frame["text"]]
    assert out["perturbation"].tolist() == ["TFC1"] * 5
    pd.testing.assert_frame_equal(out[list(frame.columns)], before)
    pd.testing.assert_frame_equal(frame, before)


def test_perturb_docs_depends_on_the_row_alone(frame):
    stage = PerturbDocs(TFC1(position="random", seed=2))
    shuffled = frame.iloc[[3, 0, 4, 2, 1]]
    assert stage(shuffled)["text_perturbed"].tolist() == stage(frame)["text_perturbed"].iloc[[3, 0, 4, 2, 1]].tolist()


def test_perturb_docs_leaves_a_row_missing_where_nothing_applies(frame):
    @perturbation
    def only_heat(text, query):
        return f"{text} heat" if "heat" in query else None

    out = PerturbDocs(only_heat)(frame)
    assert out["text_perturbed"].isna().tolist() == [True, True, True, False, False]
    assert out["perturbation"].tolist() == ["only_heat"] * 5


def test_perturb_docs_takes_a_plain_function(frame):
    def shorten(text):
        return text[:4]

    out = PerturbDocs(shorten)(frame)
    assert out["text_perturbed"].tolist() == [text[:4] for text in frame["text"]]
    assert out["perturbation"].iloc[0] == "shorten"


class Append:
    def __init__(self, word: str):
        self.word = word

    def __call__(self, text: str) -> str:
        return f"{text} {self.word}"


@pytest.mark.parametrize("function", [Append("heat"), functools.partial(lambda word, text: f"{text} {word}", "heat")])
def test_perturb_docs_takes_a_callable_without_a_name(frame, function):
    out = PerturbDocs(function)(frame)
    assert out["text_perturbed"].tolist() == [f"{text} heat" for text in frame["text"]]
    assert len(repr(PerturbDocs(function))) < 200


def test_perturb_docs_refuses_a_perturbed_text_that_is_no_string(frame):
    def count(text):
        return len(text)

    with pytest.raises((TypeError, ValueError), match="count"):
        PerturbDocs(count)(frame)


@pytest.mark.parametrize("value", [3, None, "TFC1", TFC1])
def test_perturb_docs_refuses_what_is_no_perturbation(value):
    with pytest.raises(
        TypeError, match="TFC1 is a class" if value is TFC1 else "should be a Perturbation or a function"
    ):
        PerturbDocs(value)


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
def test_patch_scorer_adds_its_columns(ranker, frame, direction):
    before = frame.copy(deep=True)
    out = PatchScorer(ranker, direction=direction)(frame)
    added = [*PERTURBED, *PATCHED, *(["patch_effect_noise"] if direction == "both" else [])]
    assert sorted(out.columns) == sorted([*frame.columns, *added])
    pd.testing.assert_frame_equal(frame, before)
    assert frame.attrs == {}
    for column in ("qid", "query", "docno", "text", "relevance"):
        assert out[column].tolist() == frame[column].tolist()
    for column in ("score", "score_baseline", "score_perturbed"):
        assert out[column].dtype == np.float32
        assert np.isfinite(out[column]).all()
    for array in [*out["patch_scores"], *out["patch_effect"]]:
        assert (array.dtype, array.shape) == (np.float32, (3, 4))


@pytest.mark.bits
def test_the_output_is_the_plain_re_ranking(ranker, frame):
    plain = ranker.scorer()(frame)
    out = PatchScorer(ranker)(frame)
    assert sorted(plain.columns) == sorted(frame.columns)
    assert plain["score"].tolist() == out["score"].tolist()
    assert plain["rank"].tolist() == out["rank"].tolist()
    np.testing.assert_allclose(plain["score"], ranker.score(frame["query"].tolist(), frame["text"].tolist()))
    for _, group in out.groupby("qid"):
        by_rank = group.sort_values("rank")
        assert by_rank["rank"].tolist() == list(range(len(group)))
        assert by_rank["score"].is_monotonic_decreasing


def test_scorer_needs_no_first_ranking_and_mutates_nothing(ranker, frame):
    unranked = frame.drop(columns=["score", "rank"])
    before = unranked.copy(deep=True)
    out = ranker.scorer()(unranked)
    assert sorted(out.columns) == sorted([*unranked.columns, "score", "rank"])
    pd.testing.assert_frame_equal(unranked, before)


def test_the_index_of_the_frame_does_not_matter(bi_encoder, frame):
    stage = PerturbDocs(TFC1()) >> PatchScorer(bi_encoder)
    assert_same_results(stage(frame.set_axis([7, 7, 3, 1, 9])), stage(frame))


# What is computed


def test_patch_scorer_applies_tfc1_by_itself(bi_encoder, frame):
    out = PatchScorer(bi_encoder)(frame)
    explicit = (PerturbDocs(TFC1()) >> PatchScorer(bi_encoder))(frame)
    assert out["text_perturbed"].tolist() == explicit["text_perturbed"].tolist()
    assert out["perturbation"].tolist() == ["TFC1"] * 5
    assert_same_results(out, explicit)


def test_patch_scorer_applies_the_perturbation_it_is_given(bi_encoder, frame):
    made = TFC1("heat", position="start")
    out = PatchScorer(bi_encoder, perturbation=made)(frame)
    assert out["text_perturbed"].tolist() == [f"heat {text}" for text in frame["text"]]
    assert_same_results(out, (PerturbDocs(made) >> PatchScorer(bi_encoder))(frame))


def test_perturbed_texts_of_the_input_come_first(bi_encoder, frame):
    given = frame.assign(text_perturbed=frame["text"] + " moon")
    out = PatchScorer(bi_encoder, perturbation=TFC1("heat"))(given)
    assert out["text_perturbed"].tolist() == given["text_perturbed"].tolist()
    assert "perturbation" not in out.columns
    expected = bi_encoder.score(given["query"].tolist(), given["text_perturbed"].tolist())
    np.testing.assert_allclose(out["score_perturbed"], expected, atol=widened(1e-4))


@pytest.mark.parametrize("component", ["head", "mlp_out"])
def test_effects_follow_their_definitions(ranker, frame, component):
    for direction in ("denoise", "noise"):
        out = PatchScorer(ranker, component, direction=direction, min_delta=0)(frame)
        baseline, perturbed = (
            out[name].to_numpy(np.float64).reshape(-1, *[1] * (stacked(out).ndim - 1))
            for name in ("score_baseline", "score_perturbed")
        )
        moved = stacked(out) - baseline if direction == "denoise" else perturbed - stacked(out)
        assert_near_effects(stacked(out, "patch_effect"), moved / (perturbed - baseline), out, 1e-6)


def test_both_directions_are_the_single_ones(ranker, frame):
    both, denoise, noise = (
        PatchScorer(ranker, direction=direction, min_delta=1e-2)(frame) for direction in ("both", "denoise", "noise")
    )
    assert_same_results(both, denoise)
    assert_near_effects(stacked(both, "patch_effect"), stacked(denoise, "patch_effect"), both)
    assert_near_effects(stacked(both, "patch_effect_noise"), stacked(noise, "patch_effect"), both)


def test_chosen_sites_equal_the_full_sweep(bi_encoder, frame):
    full, mlp = PatchScorer(bi_encoder)(frame), PatchScorer(bi_encoder, "mlp_out")(frame)
    assert stacked(mlp).shape == (5, 3)
    heads = PatchScorer(bi_encoder, heads=[(2, 1), (0, 3)])(frame)
    np.testing.assert_allclose(stacked(heads)[:, [2, 0], [1, 3]], stacked(full)[:, [2, 0], [1, 3]], atol=widened(1e-4))
    assert np.isfinite(stacked(heads)).sum() == 5 * 2
    layers = PatchScorer(bi_encoder, layers=[2, 0])(frame)
    np.testing.assert_allclose(stacked(layers)[:, [2, 0]], stacked(full)[:, [2, 0]], atol=widened(1e-4))
    assert np.isnan(stacked(layers)[:, 1]).all()
    mlp_layers = PatchScorer(bi_encoder, "mlp_out", layers=[1])(frame)
    np.testing.assert_allclose(stacked(mlp_layers)[:, 1], stacked(mlp)[:, 1], atol=widened(1e-4))
    assert np.isnan(stacked(mlp_layers)[:, [0, 2]]).all()
    several = PatchScorer(bi_encoder, ["head", "mlp_out"])(frame)
    flat = np.concatenate([stacked(full).reshape(5, -1), stacked(mlp)], axis=1)
    np.testing.assert_allclose(stacked(several), flat, atol=widened(1e-4))


def test_several_fillers_are_averaged(ranker, frame):
    several, *single = (
        PatchScorer(ranker, filler=filler)(frame) for filler in (["a", "heat", "mask"], "a", "heat", "mask")
    )
    for column in ("score_baseline", "score_perturbed"):
        np.testing.assert_allclose(
            several[column], np.mean([out[column] for out in single], axis=0), atol=widened(1e-4)
        )
    np.testing.assert_allclose(stacked(several), np.mean([stacked(out) for out in single], axis=0), atol=widened(1e-4))
    assert np.ptp([stacked(out) for out in single], axis=0).max() > 1e-3


def test_small_differences_have_no_effect(bi_encoder, frame):
    out = PatchScorer(bi_encoder, min_delta=1e6)(frame)
    assert all_missing(stacked(out, "patch_effect"))
    assert np.isfinite(stacked(out)).all()
    assert AggregateHeads(by=None, estimator="median")(out)["n_skipped"].tolist() == [5] * 12


def test_a_row_without_a_perturbed_text_is_missing(ranker, frame):
    given = PerturbDocs(TFC1())(frame)
    given.loc[[1, 3], "text_perturbed"] = None
    out = PatchScorer(ranker)(given)
    assert np.isfinite(out["score"]).all()
    assert out["score_baseline"].isna().tolist() == [False, True, False, True, False]
    assert out["score_perturbed"].isna().tolist() == [False, True, False, True, False]
    for column in ("patch_scores", "patch_effect"):
        assert [all_missing(array) for array in out[column]] == [False, True, False, True, False]
        assert {array.shape for array in out[column]} == {(3, 4)}
    assert_same_results(out.iloc[[0, 2, 4]], PatchScorer(ranker)(frame).iloc[[0, 2, 4]])
    for estimator in ("ratio_of_means", "mean_of_ratios"):
        effects = AggregateHeads(by=None, estimator=estimator)(out)
        assert set(effects["n_skipped"]) == {2}
        assert set(effects["n_pairs"]) == {3}
        assert np.isfinite(effects["score"]).all()


def test_a_frame_without_any_perturbed_text_is_all_missing(bi_encoder, frame):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        out = PatchScorer(bi_encoder)(frame.assign(text_perturbed=pd.Series([None] * 5, dtype="str")))
        assert all_missing(stacked(out))
        assert np.isfinite(out["score"]).all()
        for estimator in ("ratio_of_means", "mean_of_ratios", "median", "difference"):
            effects = AggregateHeads(by=None, estimator=estimator)(out)
            assert (set(effects["n_pairs"]), set(effects["n_skipped"])) == ({0}, {5})
            assert effects["score"].isna().all()


def test_texts_that_stay_the_same_are_counted_in_one_warning(ranker, frame):
    given = PerturbDocs(TFC1())(frame)
    given.loc[[0, 4], "text_perturbed"] = given.loc[[0, 4], "text"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = PatchScorer(ranker, direction="both")(given)
    caught = [warning for warning in caught if "same after the perturbation" in str(warning.message)]
    assert [(str(warning.message)[:6], warning.category) for warning in caught] == [("2 of 5", UserWarning)]
    unchanged = out.iloc[[0, 4]]
    np.testing.assert_allclose(unchanged["score_baseline"], unchanged["score"], atol=widened(1e-5))
    np.testing.assert_allclose(unchanged["score_perturbed"], unchanged["score"], atol=widened(1e-5))
    for column in ("patch_scores", "patch_effect", "patch_effect_noise"):
        assert [all_missing(array) for array in out[column]] == [True, False, False, False, True]


@pytest.mark.filterwarnings("ignore:.*same after the perturbation")
def test_identity_is_a_control_without_effects(bi_encoder, frame):
    out = (PerturbDocs(Identity()) >> PatchScorer(bi_encoder))(frame)
    assert all_missing(stacked(out, "patch_effect"))
    assert_near(out["score_perturbed"], out["score_baseline"])


def test_a_baseline_of_its_own_takes_the_place_of_the_text(ranker, frame):
    given = PerturbDocs(TFC1())(frame).assign(text_baseline=[f"the night. {text}" for text in frame["text"]])
    given.loc[2, "text_baseline"] = None
    out = PatchScorer(ranker)(given)
    as_text = PatchScorer(ranker)(
        given.assign(text=given["text_baseline"].fillna(given["text"])).drop(columns="text_baseline")
    )
    np.testing.assert_allclose(out["score_baseline"], as_text["score_baseline"], atol=widened(1e-4))
    np.testing.assert_allclose(stacked(out), stacked(as_text), atol=widened(1e-4))
    np.testing.assert_allclose(
        out["score"], ranker.score(frame["query"].tolist(), frame["text"].tolist()), atol=widened(1e-4)
    )
    assert abs(out["score_baseline"] - PatchScorer(ranker)(frame)["score_baseline"]).max() > 1e-3


def test_another_text_field(bi_encoder, frame):
    body = frame.rename(columns={"text": "body"})
    perturbed = PerturbDocs(TFC1(), text_field="body")(body)
    assert list(perturbed.columns) == [*body.columns, "body_perturbed", *PERTURBED[1:]]
    out = PatchScorer(bi_encoder, text_field="body")(perturbed)
    assert_same_results(out, PatchScorer(bi_encoder)(frame))
    assert not [column for column in out.columns if column.startswith("text")]
    assert_same_results(PatchScorer(bi_encoder, text_field="body")(body), out)
    assert_near(bi_encoder.scorer(text_field="body")(body)["score"], out["score"])
    baseline = perturbed.assign(body_baseline="tides rise")
    expected = PatchScorer(bi_encoder)(PerturbDocs(TFC1())(frame).assign(text_baseline="tides rise"))
    assert_same_results(PatchScorer(bi_encoder, text_field="body")(baseline), expected)


def test_equal_pairs_are_computed_once(ranker, frame, monkeypatch):
    rows = []
    forward = ranker.forward

    def counted(batch):
        rows.append(len(batch["input_ids"]))
        return forward(batch)

    monkeypatch.setattr(ranker, "forward", counted)
    once = PatchScorer(ranker)(frame)
    n_rows, rows[:] = sum(rows), []
    again = frame.assign(docno=["e0", "e1", "e2", "e3", "e4"])
    twice = PatchScorer(ranker)(pd.concat([frame, again], ignore_index=True))
    assert sum(rows) == n_rows > 0
    assert_same_results(twice.iloc[:5], once)
    assert_same_results(twice.iloc[5:], once)


def test_the_order_of_documents_does_not_matter(ranker, frame):
    order = [4, 2, 0, 3, 1]
    assert_same_results(PatchScorer(ranker)(frame.iloc[order]), PatchScorer(ranker)(frame).iloc[order])
    assert ranker.scorer()(frame.iloc[order])["rank"].tolist() == ranker.scorer()(frame)["rank"].iloc[order].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_size_does_not_matter(ranker, frame, batch_size):
    out = PatchScorer(ranker, batch_size=batch_size)(frame)
    assert_same_results(out, PatchScorer(ranker)(frame))
    np.testing.assert_allclose(ranker.scorer(batch_size=batch_size)(frame)["score"], out["score"], atol=widened(1e-4))


def test_a_perturbation_longer_than_the_model_takes_is_missing(frame):
    short = BiEncoder(build("bert", classifier=False), max_length=8)

    @perturbation
    def flood(text, query):
        return text + " day" * (20 if "heat" in query else 1)

    with pytest.warns(UserWarning, match="longer than the 8 tokens"):
        out = (PerturbDocs(flood) >> PatchScorer(short))(frame)
    assert np.isfinite(out["score"]).all()
    assert [all_missing(array) for array in out["patch_scores"]] == [False, False, False, True, True]


def test_cut_documents_are_counted_in_one_warning(frame):
    short = BiEncoder(build("bert", classifier=False), max_length=12)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = PatchScorer(short, filler=["a", "heat"])(frame)
    caught = [str(warning.message) for warning in caught if "longer than the 12 tokens" in str(warning.message)]
    assert [message[:6] for message in caught] == ["5 of 5"]
    assert np.isfinite(stacked(out)).all()


# Limits


@pytest.mark.parametrize("direction", ["denoise", "both"])
@pytest.mark.parametrize("component", ["head", ["head", "mlp_out"]])
def test_an_empty_frame_has_the_columns_of_a_full_one(bi_encoder, frame, component, direction):
    empty = frame.iloc[:0]
    stages = [PerturbDocs(TFC1()), bi_encoder.scorer(), PatchScorer(bi_encoder, component, direction=direction)]
    for stage in [*stages, stages[2] >> AggregateHeads()]:
        full, out = stage(frame), stage(empty)
        assert len(out) == 0
        assert list(out.columns) == list(full.columns)
        assert [str(dtype) for dtype in out.dtypes] == [str(dtype) for dtype in full.dtypes]


def test_a_frame_made_empty_by_hand_is_legal(bi_encoder):
    empty = pd.DataFrame(columns=["qid", "query", "docno", "text"])
    for stage in (PerturbDocs(TFC1()), bi_encoder.scorer(), PatchScorer(bi_encoder)):
        assert len(stage(empty)) == 0
    assert list((PatchScorer(bi_encoder) >> AggregateHeads())(empty).columns) == AGGREGATED


def test_empty_texts_and_queries_are_legal(ranker):
    given = pd.DataFrame(
        {"qid": ["1", "2", "3"], "query": ["tides", "", ""], "docno": ["d", "d", "e"], "text": ["", "", "day"]}
    )
    out = PatchScorer(ranker)(given)
    assert np.isfinite(out["score"]).all()
    assert out["text_perturbed"].isna().tolist() == [False, True, True]
    assert out["text_perturbed"].iloc[0] == "tides"
    assert [all_missing(array) for array in out["patch_scores"]] == [False, True, True]
    named = PatchScorer(ranker, perturbation=TFC1("tides"))(given)
    assert np.isfinite(stacked(named)).all()


@pytest.mark.parametrize("column", ["qid", "query", "docno", "text"])
def test_a_missing_column_is_named(bi_encoder, frame, column):
    for stage in (PerturbDocs(TFC1()), bi_encoder.scorer(), PatchScorer(bi_encoder)):
        with pytest.raises(pt.validate.InputValidationError, match=column) as raised:
            stage(frame.drop(columns=column))
        assert ("text_loader" in str(raised.value)) == (column == "text")


def test_a_missing_text_field_is_named_with_its_loader(bi_encoder, frame):
    with pytest.raises(pt.validate.InputValidationError, match=r"text_loader\('body'\).*before PatchScorer"):
        PatchScorer(bi_encoder, text_field="body")(frame)


@pytest.mark.parametrize("column", ["qid", *PATCHED])
def test_aggregate_heads_names_a_missing_column(bi_encoder, frame, column):
    out = PatchScorer(bi_encoder)(frame)
    with pytest.raises(pt.validate.InputValidationError, match=column):
        AggregateHeads()(out.drop(columns=column))


def test_aggregate_heads_names_a_missing_grouping_column(bi_encoder, frame):
    with pytest.raises(pt.validate.InputValidationError, match="topic_type"):
        AggregateHeads(by="topic_type")(PatchScorer(bi_encoder)(frame))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "heads"}, "unknown component 'heads'.*'head'.*'mlp_out'"),
        ({"component": ["head", "mlp"]}, "unknown component 'mlp'"),
        ({"component": []}, "no component given"),
        ({"direction": "forwards"}, "unknown direction 'forwards'.*'denoise', 'noise', 'both'"),
        ({"positions": "some"}, "unknown positions 'some'.*'all'"),
        ({"method": "guess"}, "unknown method 'guess'.*'exact'"),
        ({"layers": [3]}, "no layer 3.*0 to 2"),
        ({"layers": [-1]}, "no layer -1"),
        ({"heads": [(0, 4)]}, r"no head \(0, 4\).*heads 0 to 3"),
        ({"heads": [(3, 0)]}, r"no head \(3, 0\)"),
        ({"heads": [(0, 0)], "component": "mlp_out"}, "one component of 'head', 'q'"),
        ({"heads": [(0, 0)], "layers": [0]}, "without layers="),
        ({"filler": []}, "filler"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_an_unknown_option_is_an_error_at_once(bi_encoder, options, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(bi_encoder, **options)


def test_an_unknown_perturbation_or_estimator_is_an_error_at_once(bi_encoder):
    with pytest.raises(TypeError, match="Perturbation"):
        PatchScorer(bi_encoder, perturbation="TFC1")
    with pytest.raises(ValueError, match=r"unknown estimator 'mean'.*'ratio_of_means'"):
        AggregateHeads(estimator="mean")


def test_what_is_no_ranker_is_an_error_at_once():
    with pytest.raises(TypeError, match="ranker should be a ranker"):
        PatchScorer("sentence-transformers/all-MiniLM-L6-v2")


def test_an_unusable_filler_is_an_error(bi_encoder, frame):
    with pytest.raises(ValueError, match="'elephant' is"):
        PatchScorer(bi_encoder, filler="elephant")(frame)


@pytest.mark.parametrize("value", [None, float("nan"), 7])
@pytest.mark.parametrize("column", ["query", "text"])
def test_what_is_no_string_is_named_by_its_row(bi_encoder, frame, column, value):
    frame[column] = frame[column].astype(object)
    frame.at[3, column] = value
    for stage in (PerturbDocs(TFC1()), bi_encoder.scorer(), PatchScorer(bi_encoder)):
        with pytest.raises(ValueError, match=f"'{column}' is (missing|a int).*qid 'q2', docno 'd2'"):
            stage(frame)


@pytest.mark.parametrize("column", ["text_perturbed", "text_baseline"])
def test_a_given_side_that_is_no_string_is_named_by_its_row(bi_encoder, frame, column):
    given = PerturbDocs(TFC1())(frame)
    given[column] = pd.Series([*given["text"].iloc[:4], 7], dtype=object)
    with pytest.raises(ValueError, match=f"'{column}' is a int.*qid 'q2', docno 'd3'"):
        PatchScorer(bi_encoder)(given)


def test_a_repeated_document_is_named(bi_encoder, frame):
    repeated = pd.concat([frame, frame.iloc[[2]]], ignore_index=True)
    for stage in (PerturbDocs(TFC1()), bi_encoder.scorer(), PatchScorer(bi_encoder)):
        with pytest.raises(ValueError, match=r"\('q1', 'd2'\) comes more than once"):
            stage(repeated)


def test_a_free_perturbation_cannot_be_patched(bi_encoder, frame):
    @perturbation(alignment="free")
    def rewrite_freely(text):
        return "Something else."

    with pytest.raises(ValueError, match="'free'"):
        (PerturbDocs(rewrite_freely) >> PatchScorer(bi_encoder))(frame)


def test_perturbations_of_one_name_keep_their_own_alignments(bi_encoder, frame):
    def twin(text):
        return f"{text} moon"

    first = PerturbDocs(perturbation(twin))
    expected = (first >> PatchScorer(bi_encoder))(frame)
    perturbation(alignment="free")(twin)
    assert_same_results((first >> PatchScorer(bi_encoder))(frame), expected)


# Conventions of PyTerrier


def every_stage() -> dict:
    bi_encoder = BiEncoder(build("bert", classifier=False))
    cross_encoder = CrossEncoder(build("bert", classifier=True))
    return {
        "PerturbDocs": PerturbDocs(TFC1()),
        "PerturbDocs-TDC": PerturbDocs(TDC({f"term{i}": 1.0 for i in range(1000)})),
        "PatchScorer-bi": PatchScorer(bi_encoder),
        "PatchScorer-cross": PatchScorer(
            cross_encoder, ["head", "mlp_out"], direction="both", layers=[0], filler=["a", "mask"]
        ),
        "Scorer": bi_encoder.scorer(),
        "AggregateHeads": AggregateHeads(),
        "AggregateHeads-by": AggregateHeads(by="relevance", estimator="median"),
        "TextLoader": pt.get_dataset("mechir:lab").text_loader("text"),
    }


STAGES = sorted(every_stage())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_passes_the_checks_of_pyterrier(name, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    case = pt.testing.transformer_test_class(lambda: every_stage()[name])
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.testsRun == 2
    assert result.wasSuccessful(), result.failures + result.errors


@pytest.mark.parametrize("name", STAGES)
def test_a_repr_is_short_and_of_one_line(name):
    shown = repr(every_stage()[name])
    assert len(shown) < 200
    assert "\n" not in shown


def test_reprs_say_what_differs_from_the_default(bi_encoder):
    assert repr(PatchScorer(bi_encoder)) == "PatchScorer(BiEncoder('BertModel'))"
    assert repr(PatchScorer(bi_encoder, "mlp_out", layers=[1], verbose=True)) == (
        "PatchScorer(BiEncoder('BertModel'), component='mlp_out', layers=[1])"
    )
    assert repr(PerturbDocs(TFC1(), text_field="body")) == "PerturbDocs(TFC1(), text_field='body')"
    assert repr(AggregateHeads(by=None)) == "AggregateHeads(by=None)"
    assert repr(bi_encoder.scorer()) == "Scorer(BiEncoder('BertModel'))"


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda r: PatchScorer(r, layers=[0]), [lambda r: PatchScorer(r), lambda r: PatchScorer(r, layers=[1])]),
        (lambda r: PatchScorer(r, filler=["a", "mask"]), [lambda r: PatchScorer(r, filler=["a"])]),
        (lambda r: PatchScorer(r, ["head", "mlp_out"]), [lambda r: PatchScorer(r, "head")]),
        (lambda r: PatchScorer(r, heads=[(0, 1)]), [lambda r: PatchScorer(r, heads=[(1, 0)])]),
        (lambda r: PatchScorer(r, heads=[[0, 1]]), [lambda r: PatchScorer(r, heads=[[1, 0]])]),
        (lambda r: PatchScorer(r, perturbation=TFC1()), [lambda r: PatchScorer(r, perturbation=TFC1(seed=1))]),
        (lambda r: r.scorer(), [lambda r: r.scorer(text_field="body"), lambda r: PatchScorer(r)]),
        (lambda r: PerturbDocs(TFC1()), [lambda r: PerturbDocs(TFC1(seed=1)), lambda r: PerturbDocs(Identity())]),
        (lambda r: AggregateHeads(), [lambda r: AggregateHeads(by=None), lambda r: AggregateHeads(estimator="median")]),
        (lambda r: pt.get_dataset("mechir:lab").text_loader(), [lambda r: PerturbDocs(TFC1())]),
    ],
)
def test_equal_stages_are_equal_and_hash_alike(bi_encoder, cross_encoder, make, others):
    assert make(bi_encoder) == make(bi_encoder)
    assert hash(make(bi_encoder)) == hash(make(bi_encoder))
    for other in others:
        assert make(bi_encoder) != other(bi_encoder)
    assert make(bi_encoder) != 3
    assert (make(bi_encoder) != make(cross_encoder)) == (getattr(make(bi_encoder), "ranker", None) is not None)


def test_stages_of_equal_rankers_are_equal():
    model = build("bert", classifier=False)
    assert PatchScorer(BiEncoder(model)) == PatchScorer(BiEncoder(model))
    assert hash(PatchScorer(BiEncoder(model))) == hash(PatchScorer(BiEncoder(model)))
    assert PatchScorer(BiEncoder(model)) != PatchScorer(BiEncoder(model, pooling="mean"))
    assert PatchScorer(BiEncoder(model)) != PatchScorer(BiEncoder(build("bert", classifier=False)))


def test_settings_can_be_read_and_changed(bi_encoder):
    stage = PatchScorer(bi_encoder, layers=[1], filler="mask")
    assert pt.inspect.transformer_apply_attributes(stage) == stage
    changed = pt.inspect.transformer_apply_attributes(stage, direction="noise")
    assert changed == PatchScorer(bi_encoder, layers=[1], filler="mask", direction="noise")
    assert pt.inspect.subtransformers(stage) == pt.inspect.subtransformers(bi_encoder.scorer()) == {}


@pytest.mark.bits
def test_a_patch_scorer_survives_pickling(ranker, frame):
    stage = PatchScorer(ranker, layers=[1], perturbation=TFC1("heat"))
    loaded = pickle.loads(pickle.dumps(stage))
    assert repr(loaded) == repr(stage)
    assert_same_results(loaded(frame), stage(frame), atol=0)


@perturbation(alignment="mask")
def decorated(text):
    return f"{text} moon"


def test_a_decorated_perturbation_survives_pickling(frame):
    stage = PerturbDocs(decorated)
    loaded = pickle.loads(pickle.dumps(stage))
    assert loaded == stage
    assert loaded.perturbation.alignment == "mask"
    pd.testing.assert_frame_equal(loaded(frame), stage(frame))


def test_verbose_shows_progress(bi_encoder, frame, capsys):
    PatchScorer(bi_encoder, verbose=True)(frame)
    shown = capsys.readouterr().err
    assert "BiEncoder('BertModel')" in shown
    assert "5/5" in shown
    bi_encoder.scorer(verbose=True)(frame)
    assert "100%" in capsys.readouterr().err
    PatchScorer(bi_encoder)(frame)
    assert capsys.readouterr().err == ""


def test_a_rank_cutoff_passes_through_perturb_docs(frame):
    perturbed = []

    def counted(text):
        perturbed.append(text)
        return f"{text} day"

    pipeline = (pt.Transformer.from_df(frame) >> PerturbDocs(counted)) % 1
    expected = pipeline(frame[["qid", "query"]].drop_duplicates())
    assert len(perturbed) == 5
    perturbed.clear()
    out = pipeline.compile()(frame[["qid", "query"]].drop_duplicates())
    assert perturbed == [frame["text"][0], frame["text"][3]]
    pd.testing.assert_frame_equal(out.reset_index(drop=True), expected.reset_index(drop=True))


def test_a_rank_cutoff_does_not_pass_through_patch_scorer(bi_encoder, frame):
    pipeline = (pt.Transformer.from_df(frame) >> PatchScorer(bi_encoder)) % 1
    topics = frame[["qid", "query"]].drop_duplicates()
    out = PatchScorer(bi_encoder)(frame)
    assert pipeline.compile()(topics)["docno"].tolist() == out[out["rank"] == 0]["docno"].tolist()


# Aggregation


@pytest.fixture
def effects():
    """Two heads over five pairs; the fourth lies below min_delta, the fifth is missing."""
    tiny, nan = 2.0**-11, np.nan
    baseline = np.array([1.0, 0.0, 2.0, 1.0, nan], np.float32)
    perturbed = np.array([3.0, 4.0, 1.0, 1.0 + tiny, nan], np.float32)
    patched = [[2.0, 1.5], [1.0, 3.0], [1.5, 2.0], [1.25, 0.75], [nan, nan]]
    effect = [[0.5, 0.25], [0.25, 0.75], [0.5, 0.0], [nan, nan], [nan, nan]]
    return pd.DataFrame(
        {
            "qid": ["q1", "q1", "q2", "q2", "q2"],
            "docno": ["d1", "d2", "d1", "d2", "d3"],
            "relevance": [1, 0, 1, 0, 0],
            "score_baseline": baseline,
            "score_perturbed": perturbed,
            "patch_scores": [np.array([row], np.float32) for row in patched],
            "patch_effect": [np.array([row], np.float32) for row in effect],
        }
    )


TINY = 2.0**-11


@pytest.mark.parametrize(
    ("estimator", "first", "second", "n_pairs", "mean_delta"),
    [
        ("ratio_of_means", 1.75 / (5 + TINY), 3.25 / (5 + TINY), 4, (5 + TINY) / 4),
        ("difference", 1.75 / 4, 3.25 / 4, 4, (5 + TINY) / 4),
        ("mean_of_ratios", 1.25 / 3, 1 / 3, 3, 5 / 3),
        ("median", 0.5, 0.25, 3, 5 / 3),
    ],
)
def test_estimators(effects, estimator, first, second, n_pairs, mean_delta):
    out = AggregateHeads(by=None, estimator=estimator)(effects)
    assert list(out.columns) == AGGREGATED
    assert set(out["qid"]) == {"all"}
    assert out.set_index("docno")["score"].to_dict() == pytest.approx({"L0H0": first, "L0H1": second})
    assert out["score"].is_monotonic_decreasing
    assert out["rank"].tolist() == [0, 1]
    assert out["n_pairs"].tolist() == [n_pairs] * 2
    assert out["n_skipped"].tolist() == [5 - n_pairs] * 2
    assert out["mean_delta"].tolist() == pytest.approx([mean_delta] * 2)


def test_components_are_ranked_within_each_query(effects):
    out = AggregateHeads()(effects)
    assert out["qid"].tolist() == ["q1", "q1", "q2", "q2"]
    assert out["docno"].tolist() == ["L0H1", "L0H0", "L0H0", "L0H1"]
    assert out["score"].tolist() == pytest.approx([3.5 / 6, 2 / 6, 0.25 / (1 - TINY), 0.25 / (1 - TINY)])
    assert out["rank"].tolist() == [0, 1, 0, 1]
    assert out["n_pairs"].tolist() == [2] * 4
    assert out["n_skipped"].tolist() == [0, 0, 1, 1]
    assert out["mean_delta"].tolist() == pytest.approx([3, 3, (TINY - 1) / 2, (TINY - 1) / 2])


def test_groups_can_be_the_values_of_any_column(effects):
    out = AggregateHeads(by="relevance", estimator="difference")(effects)
    scores = {(qid, docno): score for qid, docno, score in zip(out["qid"], out["docno"], out["score"], strict=True)}
    assert scores == pytest.approx(
        {("1", "L0H0"): 0.25, ("1", "L0H1"): 0.25, ("0", "L0H0"): 0.625, ("0", "L0H1"): 1.375}
    )
    assert out.set_index("qid")["n_skipped"].to_dict() == {"1": 0, "0": 1}


def test_rows_without_a_group_belong_to_none(effects):
    some = AggregateHeads(by="relevance")(effects.assign(relevance=[1, 1, None, 1, 1]))
    assert (some["n_pairs"] + some["n_skipped"]).tolist() == [4, 4]
    none = AggregateHeads(by="relevance")(effects.assign(relevance=float("nan")))
    assert len(none) == 0
    assert list(none.columns) == AGGREGATED


def test_aggregation_mutates_nothing(effects):
    before = effects.copy(deep=True)
    AggregateHeads()(effects)
    pd.testing.assert_frame_equal(effects, before)


def test_components_are_named(bi_encoder, frame):
    several = AggregateHeads(by=None)(PatchScorer(bi_encoder, ["head", "mlp_out"])(frame))
    assert set(several["docno"]) == {f"L{layer}H{head}" for layer in range(3) for head in range(4)} | {
        "L0.mlp_out",
        "L1.mlp_out",
        "L2.mlp_out",
    }
    of_layers = several[several["component"] == "mlp_out"]
    assert of_layers["head"].isna().all()
    assert (of_layers["docno"] == "L" + of_layers["layer"].astype(str) + ".mlp_out").all()
    of_heads = several[several["component"] == "head"]
    assert (of_heads["docno"] == "L" + of_heads["layer"].astype(str) + "H" + of_heads["head"].astype(str)).all()
    chosen = AggregateHeads(by=None)(PatchScorer(bi_encoder, heads=[(2, 1), (0, 3)])(frame))
    assert set(chosen["docno"]) == {"L2H1", "L0H3"}
    layers = AggregateHeads(by=None)(PatchScorer(bi_encoder, layers=[2])(frame))
    assert set(layers["docno"]) == {"L2H0", "L2H1", "L2H2", "L2H3"}


def test_large_layers_and_heads_are_named():
    array = np.zeros((6, 9), np.float32)
    row = {"qid": "q", "score_baseline": 0.0, "score_perturbed": 1.0, "patch_scores": array, "patch_effect": array}
    out = AggregateHeads()(pd.DataFrame([row]))
    assert len(out) == 54
    assert "L5H8" in set(out["docno"])


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
def test_aggregation_follows_the_direction(ranker, frame, direction):
    patched = PatchScorer(ranker, direction=direction)(frame)
    out = AggregateHeads(by=None)(patched)
    baseline, perturbed = (patched[name].to_numpy(np.float64) for name in ("score_baseline", "score_perturbed"))
    mean = stacked(patched).mean(axis=0, dtype=np.float64)
    moved = perturbed.mean() - mean if direction == "noise" else mean - baseline.mean()
    expected = moved / (perturbed.mean() - baseline.mean())
    for row in out.itertuples():
        assert row.score == pytest.approx(expected[row.layer, row.head])


def test_head_arrays_aggregate_without_the_attributes_of_their_frame(bi_encoder, frame):
    patched = PatchScorer(bi_encoder)(frame)
    expected = AggregateHeads()(patched)
    patched.attrs = {}
    pd.testing.assert_frame_equal(AggregateHeads()(patched), expected)


def test_noise_arrays_without_the_attributes_of_their_frame_are_not_taken_for_denoise(bi_encoder, frame):
    patched = PatchScorer(bi_encoder, direction="noise")(frame)
    expected = AggregateHeads(by=None)(patched)
    patched.attrs = {}
    try:
        out = AggregateHeads(by=None)(patched)
    except ValueError:
        return
    pd.testing.assert_frame_equal(out, expected)


@pytest.mark.parametrize("component", ["mlp_out", ["head", "mlp_out"]])
def test_other_arrays_need_the_attributes_of_their_frame(bi_encoder, frame, component):
    patched = PatchScorer(bi_encoder, component)(frame)
    patched.attrs = {}
    with pytest.raises(ValueError, match="does not say which components"):
        AggregateHeads()(patched)


def test_arrays_of_several_shapes_are_an_error(bi_encoder, frame):
    heads, layers = PatchScorer(bi_encoder)(frame), PatchScorer(bi_encoder, "mlp_out")(frame)
    with pytest.raises(ValueError, match="arrays of shapes"):
        AggregateHeads()(pd.concat([heads, layers.assign(qid="q3")], ignore_index=True))


# The head map


@pytest.fixture
def pyplot():
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def drawn(axes) -> np.ndarray:
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_a_matrix_is_drawn_on_a_scale_around_0(pyplot):
    matrix = np.array([[0.1, -0.7, 0.0], [0.3, 0.2, np.nan]])
    axes = plot_heads(matrix, title="Heads")
    np.testing.assert_array_equal(drawn(axes), matrix)
    assert axes.images[0].get_clim() == (-0.7, 0.7)
    assert axes.images[0].norm(0.0) == 0.5
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("Heads", "head", "layer")
    assert sorted(text.get_text() for text in axes.texts) == sorted([".10", "-.70", "0", ".30", ".20"])


def test_the_limit_and_the_annotation_can_be_set(pyplot):
    axes = plot_heads(np.eye(2), limit=3, annotate=False)
    assert axes.images[0].get_clim() == (-3, 3)
    assert len(axes.texts) == 0


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_matrix_of_nothing_is_drawn(pyplot, value):
    assert plot_heads(np.full((2, 3), value)).images[0].get_clim() == (-1, 1)


def test_given_axes_are_drawn_on(pyplot):
    figure, (left, right) = pyplot.subplots(1, 2)
    assert plot_heads(np.eye(2), ax=right) is right
    assert (len(left.images), len(right.images)) == (0, 1)
    assert pyplot.get_fignums() == [figure.number]


def test_an_aggregate_is_drawn(pyplot, bi_encoder, frame):
    out = AggregateHeads(by=None)(PatchScorer(bi_encoder, ["head", "mlp_out"])(frame))
    matrix = drawn(plot_heads(out))
    assert matrix.shape == (3, 4)
    heads = out[out["component"] == "head"]
    for row in heads.itertuples():
        assert matrix[row.layer, row.head] == row.score
    assert plot_heads(out).images[0].get_clim()[1] == heads["score"].abs().max()


def test_groups_of_an_aggregate_are_averaged(pyplot, effects):
    out = AggregateHeads(estimator="difference")(effects)
    np.testing.assert_allclose(drawn(plot_heads(out)), [[(1 - 0.125) / 2, (1.75 - 0.125) / 2]])


def test_patched_documents_are_drawn_pooled(pyplot, effects):
    np.testing.assert_allclose(drawn(plot_heads(effects)), [[1.75 / (5 + TINY), 3.25 / (5 + TINY)]])


def test_heads_that_were_not_patched_are_blank(pyplot, bi_encoder, frame):
    matrix = drawn(plot_heads(PatchScorer(bi_encoder, heads=[(2, 1), (0, 3)])(frame)))
    assert matrix.shape == (3, 4)
    assert np.argwhere(np.isfinite(matrix)).tolist() == [[0, 3], [2, 1]]


def test_what_holds_no_heads_cannot_be_drawn(pyplot, bi_encoder, frame):
    with pytest.raises(ValueError, match=r"matrix \[layer, head\], not an array of shape \(3,\)"):
        plot_heads(np.zeros(3))
    with pytest.raises(ValueError, match="no attention heads"):
        plot_heads(PatchScorer(bi_encoder, "mlp_out")(frame))
    with pytest.raises(ValueError, match="no layer, head and score"):
        plot_heads(frame)
