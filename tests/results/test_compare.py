"""Two runs side by side: differences against slow loops and by hand, agreement, stability."""

import itertools

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import scipy.stats
from small_models import QUERIES, TEXTS, build
from test_statistics import expanded, frame_of

from pyterrier_mechir import (
    AggregateHeads,
    BiEncoder,
    CompareHeads,
    PatchScorer,
    PerturbDocs,
    compare_heads,
    head_agreement,
    split_halves,
)
from pyterrier_mechir.perturb import TFC1

LINEAR = ["ratio_of_means", "mean_of_ratios", "difference"]


def runs(n_queries=6, n_documents=3, n_heads=4, seed=0, missing=0.0):
    """Two runs of the same documents, whose score changes are on different scales."""
    rng, frames = np.random.default_rng(seed), []
    queries = np.repeat([f"q{i}" for i in range(n_queries)], n_documents)
    for scale in (1.0, 7.0):
        delta = scale * rng.normal(1, 0.3, len(queries))
        moved = delta[:, None] * rng.normal(np.linspace(-0.2, 0.4, n_heads), 0.3, (len(queries), n_heads))
        moved[rng.random(moved.shape) < missing] = np.nan
        frames.append(frame_of(moved, delta, queries))
    return frames


def parts(frame):
    delta = (frame["score_perturbed"] - frame["score_baseline"]).to_numpy()
    moved = np.stack([array.ravel() for array in frame["patch_scores"]]) - frame["score_baseline"].to_numpy()[:, None]
    return moved, delta


def estimate(moved, delta, estimator):
    if estimator == "ratio_of_means":
        return moved.sum() / delta.sum()
    return moved.mean() if estimator == "difference" else (moved / delta).mean()


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("estimator", LINEAR)
def test_differences_and_intervals_are_those_of_a_loop_over_the_same_resamples(estimator, missing):
    first, second = runs(missing=missing)
    out = compare_heads(first, second, estimator=estimator, n_boot=60, seed=5, ci=0.8).sort_values("head")
    (one, delta), (other, other_delta) = parts(first), parts(second)
    for head, row in enumerate(out.itertuples()):
        used = np.isfinite(one[:, head]) & np.isfinite(other[:, head])
        queries = sorted(set(first["qid"][used]))

        def apart(rows, head=head):
            sides = ((one, delta), (other, other_delta))
            values = [estimate(moved[rows, head], changes[rows], estimator) for moved, changes in sides]
            return values[1] - values[0]

        rng, resampled = np.random.default_rng(5), []
        for _ in range(60):
            drawn = rng.integers(len(queries), size=len(queries))
            rows = [np.flatnonzero(used & (first["qid"] == queries[i]).to_numpy()) for i in drawn]
            resampled.append(apart(np.concatenate(rows)))
        assert row.score == pytest.approx(apart(np.flatnonzero(used)))
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.quantile(resampled, expanded(0.8, len(queries)))))
        assert (row.n_pairs, row.n_skipped) == (used.sum(), (~used).sum())


@pytest.mark.parametrize("estimator", LINEAR)
def test_p_values_flip_what_each_query_adds_to_the_difference(estimator):
    first, second = runs()
    out = compare_heads(first, second, estimator=estimator).sort_values("head", ignore_index=True)
    added = []
    for moved, delta in (parts(first), parts(second)):
        below = {"ratio_of_means": delta.sum(), "difference": len(delta), "mean_of_ratios": len(delta)}[estimator]
        values = moved / delta[:, None] if estimator == "mean_of_ratios" else moved
        added.append(pd.DataFrame(values / below).groupby(first["qid"]).sum().to_numpy())
    shares = added[1] - added[0]
    np.testing.assert_allclose(out["score"], shares.sum(axis=0))
    flips = np.array(list(itertools.product([1, -1], repeat=6))) @ shares
    expected = (np.abs(flips) >= np.abs(shares.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(out["p_value"], expected)
    np.testing.assert_allclose(out["p_adjusted"], scipy.stats.false_discovery_control(expected))


def test_the_two_effects_are_those_of_the_aggregate_and_rank_by_their_difference():
    first, second = runs()
    out = compare_heads(first, second, n_boot=0)
    for name, frame in (("score_first", first), ("score_second", second)):
        effects = AggregateHeads(by=None, n_boot=0)(frame).set_index("docno")["score"]
        np.testing.assert_allclose(out.set_index("docno")[name], effects[out["docno"]])
    np.testing.assert_allclose(out["score"], out["score_second"] - out["score_first"])
    assert out["score"].is_monotonic_decreasing and out["rank"].tolist() == [0, 1, 2, 3]
    assert out[["ci_low", "ci_high", "p_value", "p_adjusted"]].isna().all(axis=None)
    assert list(out.columns[:7]) == ["qid", "docno", "score", "rank", "component", "layer", "head"]


def test_only_documents_of_both_are_compared():
    first, second = runs(n_queries=8)
    whole = compare_heads(first.iloc[3:21], second.iloc[3:21])
    out = compare_heads(first.iloc[:21], second.iloc[3:].sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(out.drop(columns="n_skipped"), whole.drop(columns="n_skipped"))
    assert set(out["n_pairs"]) == {18} and set(out["n_skipped"]) == {6}


def test_a_run_does_not_differ_from_itself():
    first, _ = runs()
    out = compare_heads(first, first)
    assert (out[["score", "ci_low", "ci_high"]] == 0).all(axis=None) and (out["p_value"] == 1).all()
    agreement = head_agreement(first, first).set_index("measure")
    assert agreement.loc["spearman", "value"] == pytest.approx(1)
    assert agreement.loc["overlap@4", "value"] == 1


def test_agreement_is_the_rank_correlation_and_the_shared_first_components():
    first, second = runs(n_heads=12, n_queries=10)
    maps = [AggregateHeads(by=None, n_boot=0)(frame).set_index("docno")["score"] for frame in (first, second)]
    out = head_agreement(first, second, k=5, n_boot=100).set_index("measure")
    expected = scipy.stats.spearmanr(maps[0], maps[1][maps[0].index]).statistic
    assert out.loc["spearman", "value"] == pytest.approx(expected)
    assert out.loc["overlap@5", "value"] == len(set(maps[0].index[:5]) & set(maps[1].index[:5])) / 5
    assert (out["ci_low"] < out["value"]).all() and (out["value"] < out["ci_high"]).all()
    assert out["ci_high"].max() <= 1
    assert head_agreement(first, second, n_boot=0)[["ci_low", "ci_high"]].isna().all(axis=None)


def test_a_run_is_held_against_a_ranking_that_is_given():
    first, second = runs(n_heads=12, n_queries=10)
    given = AggregateHeads(by=None, n_boot=0)(second)[["docno", "score"]].sample(frac=1, random_state=0)
    wanted = head_agreement(first, second, k=5, n_boot=0).set_index("measure")["value"]
    out = head_agreement(first, given, k=5, n_boot=200).set_index("measure")
    assert out["value"].to_dict() == pytest.approx(wanted.to_dict())
    assert (out["ci_low"] < out["value"]).all() and (out["value"] <= out["ci_high"]).all()
    own = head_agreement(first, AggregateHeads(by=None, n_boot=0)(first), k=5, n_boot=200).set_index("measure")
    assert (own["value"] == 1).all()


def test_rankings_of_queries_are_averaged_and_held_against_a_ranking():
    first, second = runs(n_heads=12, n_queries=10)
    given = AggregateHeads(by=None, n_boot=0)(second)
    of_queries = AggregateHeads(n_boot=0)(first)
    mean = of_queries.groupby("docno")["score"].mean()
    out = head_agreement(of_queries, given, n_boot=100).set_index("measure")
    expected = scipy.stats.spearmanr(mean, given.set_index("docno")["score"][mean.index]).statistic
    assert out.loc["spearman", "value"] == pytest.approx(expected)
    assert out.loc["spearman", "ci_low"] < expected < out.loc["spearman", "ci_high"]
    pooled = head_agreement(AggregateHeads(by=None, n_boot=0)(first), given)
    assert pooled["value"].notna().all() and pooled[["ci_low", "ci_high"]].isna().all(axis=None)


def test_a_given_ranking_has_every_component_once():
    first, _ = runs()
    given = AggregateHeads(by=None, n_boot=0)(first)
    with pytest.raises(ValueError, match=f"no component '{given['docno'][0]}'"):
        head_agreement(first, given[1:])
    with pytest.raises(ValueError, match=f"component '{given['docno'][1]}' comes twice"):
        head_agreement(first, pd.concat([given, given[1:2]]))
    with pytest.raises(ValueError, match="comes twice"):
        head_agreement(pd.concat([given, given]), given)


def test_intervals_of_agreement_narrow_with_queries():
    widths = []
    for n_queries in (8, 200):
        first, second = runs(n_heads=20, n_queries=n_queries)
        out = head_agreement(first, second, n_boot=200).set_index("measure")
        widths.append((out["ci_high"] - out["ci_low"])["spearman"])
    assert widths[1] < widths[0] / 2


def test_halves_agree_more_the_more_queries_there_are():
    found = [split_halves(runs(n_heads=20, n_queries=n)[0], k=5).set_index("measure") for n in (6, 100)]
    for out in found:
        assert (out["low"] <= out["value"]).all() and (out["value"] <= out["high"]).all()
        value = out.loc["spearman", "value"]
        assert out.loc["spearman", "corrected"] == pytest.approx(2 * value / (1 + value))
        assert np.isnan(out.loc["overlap@5", "corrected"])
    assert found[0].loc["spearman", "value"] < found[1].loc["spearman", "value"] - 0.1
    assert found[1].loc["spearman", "value"] > 0.9


def test_halves_are_of_queries_and_share_none():
    """Queries whose documents all have the same effects: halves of documents would agree entirely."""
    rng = np.random.default_rng(0)
    moved = np.repeat(rng.normal(size=(8, 30)), 50, axis=0)
    out = split_halves(frame_of(moved, np.ones(400), np.repeat([f"q{i}" for i in range(8)], 50)))
    assert abs(out.loc[0, "value"]) < 0.3


def test_the_seed_decides():
    first, second = runs()
    assert compare_heads(first, second, seed=1).equals(compare_heads(first, second, seed=1))
    assert not compare_heads(first, second, seed=1).equals(compare_heads(first, second, seed=2))


def _other_shape(frame):
    return frame.assign(**{name: [array[:, :3] for array in frame[name]] for name in ("patch_scores", "patch_effect")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(docno="elsewhere" + frame["docno"]), "no document in common"),
        (_other_shape, "patch different components"),
        (
            lambda frame: frame.assign(
                **{name: [array * np.nan for array in frame[name]] for name in ("patch_scores", "patch_effect")}
            ),
            "no document has effects in both",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error(change, message):
    first, second = runs()
    for compare in (compare_heads, head_agreement):
        with pytest.raises(ValueError, match=message):
            compare(first, change(second))


def test_unusable_options_are_an_error():
    first, second = runs()
    for make in (compare_heads, head_agreement):
        with pytest.raises(ValueError, match="unknown estimator 'median'"):
            make(first, second, estimator="median")
    with pytest.raises(ValueError, match="unknown estimator"):
        CompareHeads(pt.Transformer.identity(), pt.Transformer.identity(), estimator="median")
    with pytest.raises(ValueError, match="k is 0"):
        head_agreement(first, second, k=0)
    with pytest.raises(ValueError, match="at least 4 queries"):
        split_halves(first.iloc[:6])
    with pytest.raises(pt.validate.InputValidationError, match="patch_scores"):
        compare_heads(first.drop(columns="patch_scores"), second)


# As a stage


def _retrieved(n_queries=5):
    rows = [
        {"qid": f"q{q}", "query": QUERIES[q], "docno": f"d{d}", "text": text, "score": 0.0, "rank": d}
        for q in range(n_queries)
        for d, text in enumerate(TEXTS[:3])
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def pipelines():
    """One ranker, two fillers."""
    ranker = BiEncoder(build("bert", classifier=False))
    return [PerturbDocs(TFC1()) >> PatchScorer(ranker, filler=filler) for filler in ("a", "the")]


@pytest.mark.bits
def test_pipelines_are_run_and_compared(pipelines):
    first, second = pipelines
    out = CompareHeads(first, second, k=3, n_boot=50, seed=2)(_retrieved())
    frames = [pipeline(_retrieved()) for pipeline in pipelines]
    pd.testing.assert_frame_equal(out, compare_heads(*frames, n_boot=50, seed=2))
    metadata = out.attrs["mechir"]
    assert metadata["agreement"] == head_agreement(*frames, k=3, n_boot=50, seed=2).to_dict("records")
    for name, frame in zip(("first", "second"), frames, strict=True):
        expected = split_halves(frame, k=3, seed=2)
        pd.testing.assert_frame_equal(pd.DataFrame(metadata["stability"][name]), expected)


def test_few_queries_have_no_halves_and_none_no_rows(pipelines):
    out = CompareHeads(*pipelines, n_boot=20)(_retrieved(n_queries=2))
    assert "stability" not in out.attrs["mechir"] and len(out) == 12
    empty = CompareHeads(*pipelines)(_retrieved().iloc[:0])
    assert list(empty.columns) == list(out.columns) and (empty.dtypes == out.dtypes).all() and not len(empty)


def test_the_stage_is_told_by_its_settings(pipelines):
    first, second = pipelines
    assert CompareHeads(first, second) == CompareHeads(first, second)
    assert CompareHeads(first, second) != CompareHeads(second, first)
    assert hash(CompareHeads(first, second)) == hash(CompareHeads(first, second))
    assert repr(CompareHeads(first, second, k=5)).startswith("CompareHeads(first=")
    with pytest.raises(pt.validate.InputValidationError, match="patch_scores"):
        CompareHeads(pt.Transformer.identity(), second)(_retrieved())


@pt.testing.transformer_test_class
def test_compare_inspection():
    ranker = BiEncoder(build("bert", classifier=False))
    return CompareHeads(PatchScorer(ranker), PatchScorer(ranker, filler="the"))
