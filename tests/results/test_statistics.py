"""Intervals and p-values are those of slow loops over resamples and flips, and of enumerations by hand."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from pyterrier_mechir import AggregateHeads
from pyterrier_mechir.results import statistics
from pyterrier_mechir.results.statistics import adjusted, bootstrap, cluster_sums, median, ratio, sign_flips

ESTIMATORS = ["ratio_of_means", "difference", "mean_of_ratios", "median"]
STATISTICS = ["ci_low", "ci_high", "p_value", "p_adjusted"]


def frame_of(moved, delta, qid, **columns) -> pd.DataFrame:
    """Pairs as PatchScorer gives them, of moved scores [pair, head] and score changes."""
    moved, delta = np.asarray(moved, np.float64), np.asarray(delta, np.float64)
    return pd.DataFrame(
        {
            "qid": qid,
            "docno": [f"d{i}" for i in range(len(delta))],
            "score_baseline": 1.0,
            "score_perturbed": 1.0 + delta,
            "patch_scores": list(1.0 + moved[:, None, :]),
            "patch_effect": list((moved / delta[:, None])[:, None, :]),
            **columns,
        }
    )


def random_frame(n_queries=6, n_pairs=25, n_heads=3, seed=0, missing=0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    delta = rng.normal(1, 0.4, n_pairs)
    moved = delta[:, None] * rng.normal([0.5, 0.0, -0.2, 0.1][:n_heads], 0.3, (n_pairs, n_heads))
    moved[rng.random(moved.shape) < missing] = np.nan
    queries = [f"q{i}" for i in np.r_[np.arange(n_queries), rng.integers(n_queries, size=n_pairs - n_queries)]]
    return frame_of(moved, delta, queries, relevance=rng.integers(2, size=n_pairs), weight=rng.random(n_pairs) + 0.1)


def arrays(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    delta = (frame["score_perturbed"] - frame["score_baseline"]).to_numpy()
    moved = np.stack([array.ravel() for array in frame["patch_scores"]]) - frame["score_baseline"].to_numpy()[:, None]
    return moved, delta, np.stack([array.ravel() for array in frame["patch_effect"]])


def slow_estimate(estimator, moved, delta, effects, weights) -> float:
    """The estimate of one head from its pairs, one row for each time that a pair is drawn."""
    if estimator == "ratio_of_means":
        return np.average(moved, weights=weights) / np.average(delta, weights=weights)
    if estimator == "difference":
        return np.average(moved, weights=weights)
    return np.average(effects, weights=weights) if estimator == "mean_of_ratios" else np.median(effects)


def slow_bootstrap(frame, estimator, head, n_boot, seed, ci=0.95, weights=None) -> tuple[float, float]:
    """The interval of one head by looping over the same resamples and putting their pairs together."""
    moved, delta, effects = arrays(frame)
    weights = np.ones(len(frame)) if weights is None else frame[weights].to_numpy()
    used = np.isfinite(moved[:, head]) & (weights > 0)
    queries = sorted(set(frame["qid"][used]))
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(n_boot):
        drawn = [queries[i] for i in rng.integers(len(queries), size=len(queries))]
        rows = np.concatenate([np.flatnonzero(used & (frame["qid"] == query).to_numpy()) for query in drawn])
        estimates.append(slow_estimate(estimator, moved[rows, head], delta[rows], effects[rows, head], weights[rows]))
    return tuple(np.quantile(estimates, expanded(ci, len(queries))))


def expanded(ci, n) -> list[float]:
    """The percentiles between which the resamples' sd, times t over z and the root of n / (n - 1), reaches."""
    tail = scipy.stats.norm.sf(scipy.stats.t.isf((1 - ci) / 2, n - 1) / np.sqrt((n - 1) / n))
    return [tail, 1 - tail]


def slow_p(sums) -> float:
    """The share of all 2**n flips that reach the observed sum."""
    flips = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=len(sums))]
    return float(np.mean([flip >= abs(np.sum(sums)) - 1e-9 for flip in flips]))


def by_head(out: pd.DataFrame) -> pd.DataFrame:
    return out.sort_values("head").reset_index(drop=True)


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left, right, rtol=1e-9, atol=1e-12)


# Against slow loops


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_intervals_are_those_of_a_loop_over_the_same_resamples(estimator, missing):
    frame = random_frame(missing=missing)
    out = by_head(AggregateHeads(by=None, estimator=estimator, n_boot=40, seed=3, ci=0.8)(frame))
    for head in range(3):
        expected = slow_bootstrap(frame, estimator, head, 40, 3, 0.8)
        np.testing.assert_allclose(out.loc[head, ["ci_low", "ci_high"]].to_numpy(float), expected)
        assert out.loc[head, "ci_low"] < out.loc[head, "score"] < out.loc[head, "ci_high"]


@pytest.mark.parametrize("estimator", ESTIMATORS[:3])
def test_weights_count_in_estimates_and_intervals(estimator):
    frame = random_frame()
    frame.loc[4, "weight"] = 0
    out = by_head(AggregateHeads(by=None, estimator=estimator, weights="weight", n_boot=40)(frame))
    moved, delta, effects = arrays(frame)
    for head in range(3):
        expected = slow_estimate(estimator, moved[:, head], delta, effects[:, head], frame["weight"])
        assert out.loc[head, "score"] == pytest.approx(expected)
        expected = slow_bootstrap(frame, estimator, head, 40, 0, weights="weight")
        np.testing.assert_allclose(out.loc[head, ["ci_low", "ci_high"]].to_numpy(float), expected)
    assert out["mean_delta"].tolist() == pytest.approx([np.average(delta, weights=frame["weight"])] * 3)
    assert (out["n_pairs"].tolist(), out["n_skipped"].tolist()) == ([24] * 3, [1] * 3)
    doubled = AggregateHeads(by=None, estimator=estimator, weights="weight")(frame.assign(weight=2 * frame["weight"]))
    same(doubled, AggregateHeads(by=None, estimator=estimator, weights="weight")(frame))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_p_values_are_the_share_of_all_flips(estimator):
    frame = random_frame(missing=0.2)
    out = by_head(AggregateHeads(by=None, estimator=estimator, n_boot=1)(frame))
    moved, _, effects = arrays(frame)
    values = {"mean_of_ratios": effects, "median": np.sign(effects)}.get(estimator, moved)
    sums = pd.DataFrame(values).groupby(frame["qid"]).sum(min_count=1)
    expected = [slow_p(sums[head].dropna().to_numpy()) for head in range(3)]
    assert out["p_value"].tolist() == pytest.approx(expected)
    assert len(set(expected)) == 3
    np.testing.assert_allclose(out["p_adjusted"], false_discovery_control(expected))


def test_a_resample_of_two_queries_is_known_by_hand():
    frame = frame_of([[1.0], [2.0], [6.0]], [2.0, 2.0, 4.0], ["a", "a", "b"])
    out = AggregateHeads(by=None, n_boot=4000, ci=0.98)(frame).iloc[0]
    assert out["score"] == pytest.approx(9 / 8)
    assert (out["ci_low"], out["ci_high"]) == pytest.approx((3 / 4, 6 / 4))
    assert (out["p_value"], out["p_adjusted"]) == (0.5, 0.5)
    inner = AggregateHeads(by=None, n_boot=4000, ci=0.2)(frame).iloc[0]
    assert (inner["ci_low"], inner["ci_high"]) == pytest.approx((9 / 8, 9 / 8))


def test_the_bootstrap_approaches_all_resamples():
    """Five queries have 3,125 resamples; their quantiles are those that many random ones tend to."""
    frame = random_frame(n_queries=5, n_pairs=15, seed=2)
    moved, delta, _ = arrays(frame)
    sums = pd.DataFrame(moved).groupby(frame["qid"]).sum().to_numpy()
    deltas = pd.Series(delta).groupby(frame["qid"]).sum().to_numpy()
    drawn = np.array(list(itertools.product(range(5), repeat=5)))
    every = sums[drawn].sum(axis=1) / deltas[drawn].sum(axis=1)[:, None]
    out = by_head(AggregateHeads(by=None, n_boot=20_000, ci=0.9)(frame))
    expected = np.quantile(every, expanded(0.9, 5), axis=0)
    np.testing.assert_allclose(out[["ci_low", "ci_high"]].to_numpy().T, expected, atol=0.02)


@given(data=st.data(), n_pairs=st.integers(1, 12), n_clusters=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_median_of_a_resample_is_that_of_the_pairs_put_together(data, n_pairs, n_clusters, seed):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n_pairs, 2)) < 0.2, np.nan, rng.integers(5, size=(n_pairs, 2)))
    clusters = rng.integers(n_clusters, size=n_pairs)
    counts = data.draw(st.lists(st.integers(0, 3), min_size=n_clusters, max_size=n_clusters))
    found = median(values, clusters)(np.arange(2))(np.array([counts], np.float64))[0]
    for head in range(2):
        rows = np.repeat(values[:, head], np.array(counts)[clusters])
        rows = rows[np.isfinite(rows)]
        if len(rows):
            assert found[head] == np.median(rows)


@given(sums=st.lists(st.integers(-3, 3), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_few_clusters_are_flipped_in_all_ways(sums):
    sums = np.array(sums, np.float64)[:, None]
    found = sign_flips(sums, np.full(sums.shape, True), n_flips=1, seed=0)[0]
    assert found == pytest.approx(slow_p(sums[:, 0]))
    assert found >= 2 / 2 ** len(sums)


def test_many_clusters_are_flipped_at_random():
    sums = np.random.default_rng(0).normal(0.3, 1, (20, 3))
    present = np.full(sums.shape, True)
    found = sign_flips(sums, present, n_flips=4999, seed=5)
    drawn = np.random.default_rng(5).integers(2**64, size=(4999, 1), dtype=np.uint64)
    flips = 1 - 2 * np.unpackbits(drawn.view(np.uint8), axis=1)[:, :20].astype(int)
    reached = (np.abs(flips @ sums) >= np.abs(sums.sum(axis=0))).sum(axis=0)
    assert found.tolist() == ((1 + reached) / 5000).tolist()
    exact = sign_flips(sums, present, n_flips=2**19, seed=0)
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert sign_flips(sums + 9, present, n_flips=4999, seed=5).tolist() == [1 / 5000] * 3


# Do they mean what they say


def clustered(rng, n_queries, effects, n_pairs=5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moved scores, whose errors are mostly those of their query, score changes around 1, and queries.

    Args:
        effects: of each component, ``[component]``.
    """
    queries = np.repeat(np.arange(n_queries), n_pairs)
    delta = rng.gamma(4, 0.25, n_queries)[queries] * rng.gamma(4, 0.25, len(queries))
    of_query = rng.normal(0, 0.12, (n_queries, len(effects)))[queries]
    ratios = np.asarray(effects) + of_query + rng.normal(0, 0.09, of_query.shape)
    return ratios * delta[:, None], delta, queries


def covered(moved, delta, clusters, effect) -> float:
    """How many of the 95% intervals of components of one effect hold it, with these clusters."""
    n = int(clusters.max()) + 1
    sums = cluster_sums(moved, clusters, np.ones(len(moved)), n)
    deltas = cluster_sums(np.broadcast_to(delta[:, None], moved.shape), clusters, np.ones(len(moved)), n)
    low, high = bootstrap(ratio(sums, deltas), np.full(sums.shape, True), ci=0.95, n_boot=1000, seed=0)
    return float(np.mean((low <= effect) & (effect <= high)))


@pytest.mark.parametrize("n_queries", [20, 50, 200])
def test_intervals_cover_the_effect_as_often_as_they_say_and_those_of_pairs_do_not(n_queries):
    rng = np.random.default_rng(n_queries)
    by_query, by_pair = [], []
    for _ in range(8):
        moved, delta, queries = clustered(rng, n_queries, [0.1] * 400)
        by_query.append(covered(moved, delta, queries, 0.1))
        by_pair.append(covered(moved, delta, np.arange(len(queries)), 0.1))
    assert 0.93 <= np.mean(by_query) <= 0.97
    assert np.mean(by_pair) < 0.8


def test_few_of_the_heads_that_are_found_have_no_effect():
    """False discoveries among those of p_adjusted < .05, over 150 runs of 30 queries and 60 heads, of which 10 act."""
    rng, false_ones, found_ones = np.random.default_rng(3), [], []
    effects = np.r_[np.full(10, 0.1), np.zeros(50)]
    for seed in range(150):
        moved, delta, queries = clustered(rng, 30, effects)
        out = by_head(AggregateHeads(by=None, n_boot=1000, seed=seed)(frame_of(moved, delta, queries.astype(str))))
        found = (out["p_adjusted"] < 0.05).to_numpy()
        false_ones.append((found & (effects == 0)).sum() / max(1, found.sum()))
        found_ones.append(found[:10].mean())
    assert np.mean(false_ones) < 0.05
    assert np.mean(found_ones) > 0.5


def test_one_head_of_many_can_be_significant():
    rng = np.random.default_rng(4)
    moved, delta, queries = clustered(rng, 40, np.r_[0.3, np.zeros(143)])
    out = AggregateHeads(by=None, n_boot=200)(frame_of(moved, delta, queries.astype(str)))
    assert out["p_adjusted"].iloc[0] < 0.03 and out["head"].iloc[0] == 0
    assert (out["p_adjusted"].iloc[1:] > 0.05).all()


def test_p_values_are_uniform_without_an_effect():
    rng = np.random.default_rng(1)
    moved = np.concatenate([rng.normal(size=(16, 1000)), rng.standard_t(3, size=(16, 1000))], axis=1)
    p_values = sign_flips(moved, np.full(moved.shape, True), n_flips=500, seed=0)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=0.03)
    assert np.mean(sign_flips(moved + 2, np.full(moved.shape, True), n_flips=500, seed=0) < 0.05) > 0.9


# Adjustment


def test_p_values_are_adjusted_as_by_hand():
    np.testing.assert_allclose(adjusted(np.array([0.04, 0.01, np.nan, 0.03])), [0.04, 0.03, np.nan, 0.04])
    assert np.isnan(adjusted(np.full(3, np.nan))).all()


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_adjusted_p_values_are_those_of_scipy_and_missing_ones_do_not_count(p_values):
    np.testing.assert_allclose(adjusted(np.array(p_values)), false_discovery_control(p_values))
    np.testing.assert_array_equal(adjusted(np.array([*p_values, np.nan]))[:-1], adjusted(np.array(p_values)))


# Groups


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_query_has_neither_intervals_nor_p_values(estimator):
    frame = random_frame()
    of_each = AggregateHeads(estimator=estimator)(frame)
    assert of_each["score"].notna().all()
    assert of_each[STATISTICS].isna().all(axis=None)
    assert AggregateHeads(by=None, estimator=estimator)(frame)[STATISTICS].notna().all(axis=None)
    assert AggregateHeads(by=None, estimator=estimator)(frame.assign(qid="q"))[STATISTICS].isna().all(axis=None)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_groups_do_not_depend_on_each_other(estimator):
    frame = random_frame(n_pairs=40)
    aggregate = AggregateHeads(by="relevance", estimator=estimator, n_boot=100)
    both = aggregate(frame)
    for value in (0, 1):
        alone = frame[frame["relevance"] == value]
        same(both[both["qid"] == str(value)].reset_index(drop=True), aggregate(alone))
        pooled = AggregateHeads(by=None, estimator=estimator, n_boot=100)(alone)
        same(aggregate(alone).drop(columns="qid"), pooled.drop(columns="qid"))
        np.testing.assert_allclose(pooled["p_adjusted"], false_discovery_control(pooled["p_value"]))


def test_a_component_that_one_query_has_is_missing_and_the_others_do_not_depend_on_it():
    frame = random_frame(n_heads=3)
    with_hole = frame.copy()
    only = frame["qid"] == "q2"
    with_hole["patch_effect"], with_hole["patch_scores"] = (
        [np.where([[True, keep, True]], array, np.nan) for array, keep in zip(frame[name], only, strict=True)]
        for name in ("patch_effect", "patch_scores")
    )
    whole, out = (by_head(AggregateHeads(by=None)(given)) for given in (frame, with_hole))
    assert out.loc[1, STATISTICS].isna().all()
    assert (out.loc[1, "n_pairs"], out.loc[1, "n_skipped"]) == (only.sum(), (~only).sum())
    columns = ["score", "ci_low", "ci_high", "p_value"]
    np.testing.assert_allclose(out.loc[[0, 2], columns], whole.loc[[0, 2], columns])
    np.testing.assert_allclose(out.loc[[0, 2], "p_adjusted"], false_discovery_control(whole.loc[[0, 2], "p_value"]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pairs_that_are_missing_do_not_count(estimator):
    frame = random_frame()
    extra = random_frame(seed=1).assign(score_perturbed=np.nan)
    for name in ("patch_effect", "patch_scores"):
        extra[name] = [np.full((1, 3), np.nan) for _ in range(len(extra))]
    aggregate = AggregateHeads(by=None, estimator=estimator, n_boot=50)
    more = pd.concat([frame, extra.assign(qid="other"), extra], ignore_index=True)
    same(aggregate(more).drop(columns="n_skipped"), aggregate(frame).drop(columns="n_skipped"))
    assert aggregate(more)["n_skipped"].tolist() == [50] * 3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_order_of_rows_does_not_matter(estimator):
    frame = random_frame(n_queries=15, n_pairs=40, missing=0.2)
    aggregate = AggregateHeads(by=None, estimator=estimator, n_boot=60)
    same(aggregate(frame), aggregate(frame.sample(frac=1, random_state=0)))
    same(aggregate(frame), aggregate(frame.iloc[::-1]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_chunks_change_nothing(estimator, monkeypatch):
    frame = random_frame(n_queries=16, n_pairs=40, missing=0.2)
    aggregate = AggregateHeads(by=None, estimator=estimator, n_boot=60)
    expected = aggregate(frame)
    monkeypatch.setattr(statistics, "_CELLS", 70)
    monkeypatch.setattr(statistics, "_CACHED", 90)
    same(aggregate(frame), expected)


def test_the_seed_decides():
    frame = random_frame(n_queries=16, n_pairs=40)
    first, again, other = (AggregateHeads(by=None, seed=seed, n_boot=50)(frame) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    columns = ["ci_low", "ci_high", "p_value"]
    assert (first[columns] != other[columns]).any().all()
    same(first.drop(columns=STATISTICS), other.drop(columns=STATISTICS))


def test_score_changes_of_0_have_no_ratio_and_warn_of_nothing():
    moved, _, _ = arrays(random_frame())
    frame = frame_of(moved, np.ones(25), random_frame()["qid"]).assign(score_perturbed=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = AggregateHeads(by=None)(frame)
        assert out[["score", *STATISTICS]].isna().all(axis=None)
        assert AggregateHeads(by=None, estimator="difference")(frame)[STATISTICS].notna().all(axis=None)


# Options


def test_no_resamples_no_statistics():
    frame = random_frame()
    out = AggregateHeads(by=None, n_boot=0)(frame)
    assert out[STATISTICS].isna().all(axis=None)
    same(out.drop(columns=STATISTICS), AggregateHeads(by=None)(frame).drop(columns=STATISTICS))


def test_a_list_of_estimators_gives_a_row_for_each():
    frame = random_frame()
    out = AggregateHeads(by="relevance", estimator=ESTIMATORS)(frame)
    assert len(out) == 2 * 4 * 3
    assert list(out.columns) == [
        *["qid", "docno", "score", "rank", "component", "layer", "head", "estimator"],
        *["n_pairs", "n_skipped", "mean_delta", *STATISTICS],
    ]
    for estimator in ESTIMATORS:
        alone = AggregateHeads(by="relevance", estimator=estimator)(frame)
        assert "estimator" not in alone.columns
        same(out[out["estimator"] == estimator].drop(columns="estimator").reset_index(drop=True), alone)
    one = AggregateHeads(by=None, estimator=["median"])
    assert set(one(frame)["estimator"]) == {"median"}
    assert list(one(frame.head(0)).columns) == list(out.columns)
    assert one == AggregateHeads(by=None, estimator=("median",))
    assert one != AggregateHeads(by=None, estimator="median")
    assert hash(one) == hash(AggregateHeads(by=None, estimator=["median"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ci": 0}, "ci is 0"),
        ({"ci": 1.0}, "ci is 1"),
        ({"ci": 95}, "ci is 95"),
        ({"n_boot": -1}, "n_boot is -1"),
        ({"estimator": []}, "estimator is empty"),
        ({"estimator": ["median", "mean"]}, "unknown estimator 'mean'"),
        ({"estimator": "median", "weights": "weight"}, "the median takes no weights"),
        ({"estimator": ["difference", "median"], "weights": "weight"}, "the median takes no weights"),
    ],
)
def test_an_option_out_of_range_is_an_error_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        AggregateHeads(**options)


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, None, "much"])
def test_a_weight_that_is_no_number_of_0_or_more_is_an_error(weight):
    frame = random_frame()
    frame["weight"] = [weight] + [1.0] * 24
    with pytest.raises(ValueError, match="column 'weight' is not a number of 0 or more in every row"):
        AggregateHeads(by=None, weights="weight")(frame)


def test_a_missing_column_of_weights_is_an_error():
    with pytest.raises(pt.validate.InputValidationError, match="grade"):
        AggregateHeads(by=None, weights="grade")(random_frame())
