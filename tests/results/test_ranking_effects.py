"""Statistics of ranking effects keep what they promise, and say when a map is noise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from ir_measures import AP, nDCG
from judged import by_name, collection, of_measure, told
from scipy.stats import norm, spearmanr

from pyterrier_mechir import head_qrels
from pyterrier_mechir.results.ranking_effects import Options, detectable, ranking_effects, summarised
from pyterrier_mechir.results.ranking_verdicts import verdicts
from pyterrier_mechir.results.rankings import checked_qrels, read_rankings, shuffled
from pyterrier_mechir.results.statistics import holm, least_p, sign_flips


def test_holm_is_the_procedure_step_by_step():
    p_values = np.array([0.01, 0.04, np.nan, 0.03, 0.005, 0.9])
    assert holm(p_values) == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.025, 0.9], nan_ok=True)
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]
    assert len(holm(np.array([]))) == 0


@pytest.mark.parametrize(("n", "flips"), [(2, 10), (5, 100), (13, 10), (20, 300)])
def test_the_least_p_is_what_equal_effects_give(n, flips):
    effects = np.ones((n, 1))
    assert sign_flips(effects, effects > 0, n_flips=flips, seed=0)[0] == pytest.approx(least_p(n, flips))


def null_values(rng, n_queries, n_components):
    """A measure whose changes are 0 for most queries, as those of one head are, and symmetric about 0 for the rest."""
    base = rng.random((n_queries, 1))
    moved = (rng.random((n_queries, n_components)) < 0.4) * rng.laplace(0, 0.05, (n_queries, n_components))
    return np.column_stack([base, base + moved])


def test_intervals_of_a_null_cover_as_often_as_they_say():
    rng, options = np.random.default_rng(0), Options(n_boot=400, n_flips=200)
    covered, small = [], []
    for _ in range(40):
        columns, _ = summarised(null_values(rng, 50, 40), options)
        covered.append((columns["ci_low"] <= 0) & (columns["ci_high"] >= 0))
        small.append(columns["p_value"] < 0.05)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert 0.03 <= np.mean(small) <= 0.06


def test_intervals_of_rankings_that_are_equally_noisy_cover_0():
    covered = []
    for seed in range(40):
        frame, qrels = collection(n_queries=100, n_docs=10, shape=(1, 8), seed=seed, noise=0)
        rng = np.random.default_rng(1000 + seed)
        clean = np.stack([array.ravel() for array in frame["ablated_scores"]])
        moved = clean + rng.normal(0, 0.5, clean.shape)
        frame["score"] += rng.normal(0, 0.5, len(frame))
        frame["ablated_scores"] = [array[None].astype(np.float32) for array in moved]
        out = ranking_effects(frame, qrels, n_boot=300, n_flips=10)
        covered.append((out["ci_low"] <= 0) & (out["ci_high"] >= 0))
    assert 0.92 <= np.mean(covered) <= 0.98


def test_a_change_of_the_size_that_is_called_detectable_is_found_four_times_in_five():
    rng, options = np.random.default_rng(1), Options(n_boot=1, n_flips=2000)
    n_queries, n_components, found, sizes = 60, 10, [], []
    for _ in range(150):
        changes = rng.normal(0, 0.05, (n_queries, n_components))
        size = (norm.ppf(1 - 0.05 / 20) + norm.ppf(0.8)) * 0.05 / math.sqrt(n_queries)
        sizes.append(detectable(changes, 0.05) / size)
        changes[:, 0] += size * np.median(sizes)
        columns, _ = summarised(np.column_stack([np.zeros(n_queries), changes]), options)
        found.append(columns["p_adjusted"][0] < 0.05)
    assert 1.0 < np.mean(sizes) < 1.1
    assert 0.72 <= np.mean(found) <= 0.88


def test_nothing_is_called_detectable_where_no_p_value_can_be_small_enough():
    rng = np.random.default_rng(0)
    for n_queries, n_flips in ((6, None), (40, 50)):
        _, summary = summarised(null_values(rng, n_queries, 10), Options(n_boot=50, n_flips=n_flips))
        assert summary["least_p"] > 0.05 and math.isnan(summary["detectable"])
    assert math.isnan(detectable(np.zeros((9, 4)), 0.05)) and math.isnan(detectable(np.ones((1, 4)), 0.05))
    frame, qrels = collection(n_queries=5)
    assert "no single one of 8 components can have a p-value small enough" in verdicts(ranking_effects(frame, qrels))[0]


def test_split_half_reliability_is_the_mean_of_correlations_between_halves():
    rng = np.random.default_rng(2)
    values = null_values(rng, 21, 12)
    changes = values[:, 1:] - values[:, :1]
    found = summarised(values, Options(n_boot=0, seed=4))[1]["split_half"]
    order = np.argsort(np.random.default_rng(4).random((200, 21)), axis=1)
    slow = [spearmanr(changes[row < 10].mean(axis=0), changes[row >= 10].mean(axis=0)).statistic for row in order]
    assert found == pytest.approx(np.mean(slow), abs=1e-9)
    stable = values + np.concatenate([[0.0], np.linspace(-1, 1, 12)])
    assert summarised(stable, Options(n_boot=0))[1]["split_half"] > 0.99


def test_a_planted_harmful_component_is_found_and_holds_on_queries_that_had_no_part_in_it():
    frame, qrels = collection(n_queries=40, n_docs=20, planted=2.0)
    held_out = [f"q{q}" for q in range(20)]
    out = ranking_effects(frame, qrels, [nDCG @ 10, AP], held_out=held_out)
    for measure in ("nDCG@10", "AP"):
        first = out[out["measure"] == measure].iloc[0]
        assert first["docno"] == "L0H2" and first["rank"] == 0
        assert first["p_adjusted"] < 0.01 and first["ci_low"] > 0.02
        chosen = [row for row in told(out)["held_out"] if row["measure"] == measure]
        assert len(chosen) == 5 and chosen[0]["docno"] == "L0H2"
        assert (chosen[0]["n_selection"], chosen[0]["n_queries"]) == (20, 20)
        assert 0 < chosen[0]["ci_low"] < chosen[0]["score"] < chosen[0]["ci_high"]
        halves = {
            half: by_name(ranking_effects(frame[frame["qid"].isin(held_out) == half], qrels, measure))
            for half in (False, True)
        }
        for row in chosen:
            assert row["score_selection"] == pytest.approx(halves[False].loc[row["docno"], "score"], abs=1e-12)
            assert row["score"] == pytest.approx(halves[True].loc[row["docno"], "score"], abs=1e-12)
        assert chosen[0]["ci_low"] == pytest.approx(halves[True].loc["L0H2", "ci_low"], abs=1e-9)
    text = verdicts(out)[0]
    assert "L0H2 +0." in text and "1 of 8 components changes it significantly (after Holm, at 0.05)" in text
    assert "The map is noise" not in text and "L0H2, chosen on 20 queries" in text


def test_shuffled_judgments_call_nothing_significant():
    frame, qrels = collection(n_queries=25, n_docs=20, planted=2.0)
    out = ranking_effects(frame, qrels, control="shuffled")
    (control,) = told(out)["control"]
    assert control["n_seeds"] == 20 == len(control["n_significant"])
    assert control["n_seeds_significant"] == sum(n > 0 for n in control["n_significant"]) <= 1
    assert of_measure(out, nDCG @ 10)["n_significant"] >= 1
    assert of_measure(out, nDCG @ 10)["spread"] > control["spread"] > 0
    assert f"significant for {control['n_seeds_significant']} of 20 seeds" in verdicts(out)[0]


def test_judgments_are_shuffled_within_the_documents_of_a_query():
    frame, qrels = collection()
    rankings, judgments = read_rankings(frame), checked_qrels(qrels)
    made = shuffled(judgments, rankings, np.random.default_rng(0))
    assert made[["qid", "label"]].equals(judgments[["qid", "label"]])
    assert not made.duplicated(["qid", "docno"]).any()
    assert (made["docno"] != judgments["docno"]).mean() > 0.5
    away = judgments["docno"].str.startswith("elsewhere")
    assert made[away].equals(judgments[away])
    retrieved = set(zip(frame["qid"], frame["docno"], strict=True))
    assert set(zip(made["qid"], made["docno"], strict=True)) - retrieved == set(
        zip(judgments["qid"][away], judgments["docno"][away], strict=True)
    )


def test_a_map_of_nothing_is_said_to_be_noise():
    frame, qrels = collection(n_queries=30, shape=(3, 8), noise=0.3)
    out = ranking_effects(frame, qrels)
    (text,) = verdicts(out)
    summary = of_measure(out, nDCG @ 10)
    assert summary["n_significant"] == 0 and abs(summary["split_half"]) < 0.4
    assert "The map is noise: none of 24 components changes it significantly" in text
    assert f"{summary['split_half']:+.2f}" in text and f"A change of {summary['detectable']:.3f} would have" in text


def test_a_faint_map_is_not_said_to_be_noise():
    frame, qrels = collection()
    out = ranking_effects(frame, qrels)
    of_measure(out, nDCG @ 10).update(n_significant=0, split_half=0.9)
    assert "no mere noise, yet too faint to name a component" in verdicts(out)[0]
    assert verdicts(ranking_effects(frame, qrels, n_boot=0))[0].count("Nothing was tested") == 1
    out.attrs = {}
    assert verdicts(out) == []


def test_the_seed_decides_and_no_resamples_leave_statistics_missing():
    frame, qrels = collection()
    first, again, other = (ranking_effects(frame, qrels, seed=seed, n_boot=200) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert told(first) == told(again)
    assert (first["ci_low"] != other["ci_low"]).any() and (first["score"] == other["score"]).all()
    none = ranking_effects(frame, qrels, n_boot=0)
    assert none[["ci_low", "ci_high", "p_value", "p_adjusted"]].isna().all(axis=None)
    assert of_measure(none, nDCG @ 10)["n_significant"] == 0


def test_the_two_adjustments_order_alike_and_holm_is_the_stricter():
    frame, qrels = collection(planted=1.0, noise=0.5)
    strict, mild = (by_name(ranking_effects(frame, qrels, adjust=adjust)) for adjust in ("holm", "bh"))
    assert (strict["p_adjusted"] >= mild["p_adjusted"] - 1e-12).all()
    assert (strict["p_adjusted"] > mild["p_adjusted"]).any()
    assert "Benjamini and Hochberg" in verdicts(mild.reset_index())[0]


def test_a_table_makes_judgments_of_components():
    frame, qrels = collection(planted=1.0)
    assert head_qrels(ranking_effects(frame, qrels), k=1).query("label > 0")["docno"].tolist() == ["L0H2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ci": 1}, "ci is 1"),
        ({"n_boot": -1}, "n_boot is -1"),
        ({"n_flips": 0}, "n_flips is 0"),
        ({"adjust": "fdr"}, "unknown adjust 'fdr'; choose one of 'holm', 'bh'"),
        ({"control": "random"}, "unknown control 'random'"),
        ({"held_out": "q1"}, "held_out is 'q1'; give the ids of several queries"),
        ({"held_out": 0.5}, "held_out is 0.5"),
        ({"held_out": pd.DataFrame({"query": ["x"]})}, "held_out has no column 'qid'"),
        ({"held_out": ["q1"]}, "leaves 1 judged queries held out and 29 to choose by"),
        ({"held_out": [f"q{q}" for q in range(30)]}, "leaves 30 judged queries held out and 0"),
    ],
)
def test_an_option_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ranking_effects(*collection(), **options)
