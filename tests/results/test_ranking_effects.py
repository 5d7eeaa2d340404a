"""The change of a measure by each component: values of ir_measures, statistics that keep what they promise."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, RR, Judged, NumRet, P, R, nDCG
from judged import collection, told
from scipy.stats import norm, spearmanr

from pyterrier_mechir import RankShift, head_qrels
from pyterrier_mechir.results.ranking_effects import Options, detectable, ranking_effects, summarised
from pyterrier_mechir.results.ranking_verdicts import verdicts
from pyterrier_mechir.results.rankings import checked_measures, checked_qrels, measured, read_rankings, shuffled
from pyterrier_mechir.results.statistics import holm, least_p, sign_flips


def of_measure(out: pd.DataFrame, measure) -> dict:
    return next(row for row in told(out)["measures"] if row["measure"] == str(measure))


def by_name(out: pd.DataFrame) -> pd.DataFrame:
    return out.set_index("docno")


# Values


def test_the_change_of_ndcg_is_the_one_by_hand():
    frame = pd.DataFrame(
        {
            "qid": ["q", "q", "q"],
            "docno": ["a", "b", "c"],
            "score": [3.0, 2.0, 1.0],
            "ablated_scores": [np.array([[3.0, 0.0]]), np.array([[2.0, 9.0]]), np.array([[1.0, 5.0]])],
        }
    )
    qrels = pd.DataFrame({"qid": ["q"] * 3, "docno": ["b", "c", "z"], "label": [2, 1, 1]})
    ideal = 2 + 1 / math.log2(3) + 1 / 2
    base = (2 / math.log2(3) + 1 / 2) / ideal
    without = (2 + 1 / math.log2(3)) / ideal
    out = ranking_effects(frame, qrels, nDCG @ 10)
    assert out["docno"].tolist() == ["L0H1", "L0H0"]
    assert out["value"].tolist() == pytest.approx([without, base], abs=1e-12)
    assert out["score"].tolist() == pytest.approx([without - base, 0], abs=1e-12)
    assert out["n_queries"].tolist() == [1, 1]
    assert of_measure(out, nDCG @ 10)["value"] == pytest.approx(base, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_values_are_those_of_an_experiment_query_by_query(ties):
    frame, qrels = collection(n_queries=8, ties=ties)
    measures = [nDCG @ 5, nDCG, AP, RR, P @ 3, R @ 10, Judged @ 5]
    rankings = read_rankings(frame)
    values = measured(rankings, checked_qrels(qrels), checked_measures(measures))
    assert values.shape == (7, 8, 9)
    topics = frame[["qid"]].drop_duplicates().assign(query="any")
    moved = np.stack([array.ravel() for array in frame["ablated_scores"]])
    runs = [frame[["qid", "docno", "score"]]]
    runs += [frame[["qid", "docno"]].assign(score=moved[:, place].astype(np.float64)) for place in range(8)]
    runs = [pt.model.add_ranks(run) for run in runs]
    wanted = pt.Experiment(runs, topics, qrels, measures, names=[str(place) for place in range(9)], perquery=True)
    at = {str(measure): place for place, measure in enumerate(measures)}
    # Judged@5 is of another provider, which breaks ties in the order of the run.
    for name, qid, measure, value in wanted[["name", "qid", "measure", "value"]].itertuples(index=False):
        if not (ties and measure == "Judged@5"):
            assert values[at[measure], rankings.queries.index(qid), int(name)] == pytest.approx(value, abs=1e-12)
    out = ranking_effects(frame, qrels, measures, n_boot=0)
    means = pt.Experiment(runs[1:], topics, qrels, [AP], names=[f"L{n // 4}H{n % 4}" for n in range(8)])
    np.testing.assert_allclose(
        by_name(out[out["measure"] == "AP"]).loc[means["name"], "value"], means["AP"], rtol=0, atol=1e-12
    )


def test_equal_scores_stand_in_the_reverse_order_of_their_docno_whatever_that_of_the_rows():
    frame = pd.DataFrame({"qid": "q", "docno": ["b", "d10", "d9", "a"], "score": 1.0})
    frame["ablated_scores"] = [
        np.float32([[1.0]]),
        np.float32([[1.0 + 1e-12]]),
        np.float32([[1.0]]),
        np.float32([[0.0]]),
    ]
    expected = {"d9": 4, "d10": 3, "b": 2, "a": 1}
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        rankings = read_rankings(frame.iloc[order])
        for column in (0, 1):
            assert dict(zip(rankings.docnos[0], rankings.places[0][:, column], strict=True)) == expected


def test_the_order_of_rows_changes_nothing():
    frame, qrels = collection(ties=True)
    mixed = frame.sample(frac=1, random_state=3)
    one, other = (by_name(ranking_effects(rows, qrels, n_boot=0)) for rows in (frame, mixed))
    pd.testing.assert_series_equal(one["value"], other.loc[one.index, "value"], rtol=0, atol=1e-12)


def test_queries_without_judgments_are_dropped_and_counted():
    frame, qrels = collection()
    some = qrels[~qrels["qid"].isin(["q3", "q4"])].copy()
    some.loc[some["qid"] == "q5", "label"] = 0
    out = ranking_effects(frame, some)
    assert set(out["n_queries"]) == {28}
    assert (told(out)["n_queries"], told(out)["n_dropped"], told(out)["n_without_relevant"]) == (28, 2, 1)
    left = frame[~frame["qid"].isin(["q3", "q4"])]
    pd.testing.assert_frame_equal(out, ranking_effects(left, some))
    assert "2 queries without judgments are left out" in verdicts(out)[0]


def test_measures_have_a_block_of_rows_each_and_are_adjusted_by_themselves():
    frame, qrels = collection()
    out = ranking_effects(frame, qrels, ["nDCG@10", AP])
    assert out["measure"].tolist() == ["nDCG@10"] * 8 + ["AP"] * 8
    assert out["rank"].tolist() == [*range(8), *range(8)]
    for measure in (nDCG @ 10, AP):
        alone = ranking_effects(frame, qrels, measure)
        pd.testing.assert_frame_equal(out[out["measure"] == str(measure)].reset_index(drop=True), alone)


def test_sets_and_components_of_layers_have_their_names():
    frame, qrels = collection()
    frame["ablated_scores"] = [array.ravel()[:3] for array in frame["ablated_scores"]]
    frame.attrs["mechir"] = {"sites": ["L0.mlp_out", "L1.attn_out", "L0H1+L1H3"], "scorer": {"stage": "AblationScorer"}}
    out = by_name(ranking_effects(frame, qrels))
    assert set(out.index) == {"L0.mlp_out", "L1.attn_out", "L0H1+L1H3"}
    assert out["head"].isna().all() and pd.isna(out.loc["L0H1+L1H3", "layer"])
    assert out.attrs["mechir"]["scorer"] == {"stage": "AblationScorer"}


def test_sites_that_were_not_swept_are_left_out():
    frame, qrels = collection()
    frame["ablated_scores"] = [
        np.where(np.arange(8).reshape(2, 4) == 5, array, np.nan) for array in frame["ablated_scores"]
    ]
    out = ranking_effects(frame, qrels)
    assert out["docno"].tolist() == ["L1H1"] and told(out)["n_components"] == 1
    assert math.isnan(of_measure(out, nDCG @ 10)["split_half"])


# Patched scores


def patched(direction):
    frame, qrels = collection()
    frame = frame.rename(columns={"ablated_scores": "patch_scores"})
    sides = {"denoise": ("score_baseline", "score_perturbed"), "noise": ("score_perturbed", "score_baseline")}
    own, other = sides[direction]
    frame[own], frame[other] = frame["score"], 0.0
    frame["score"] = np.arange(len(frame), dtype=float)
    frame.attrs["mechir"] = {"direction": direction, "sites": [f"L{n // 4}H{n % 4}" for n in range(8)]}
    return frame, qrels


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patched_scores_are_compared_with_those_of_the_side_that_was_patched(direction):
    frame, qrels = patched(direction)
    plain, _ = collection()
    pd.testing.assert_frame_equal(ranking_effects(frame, qrels), ranking_effects(plain, qrels))


def test_documents_without_patched_scores_keep_their_own_and_are_counted():
    frame, qrels = patched("denoise")
    plain, _ = collection()
    gone = np.arange(len(frame)) % 6 == 0
    missing = np.full((2, 4), np.nan, dtype=np.float32)
    frame["patch_scores"] = [missing if out else array for out, array in zip(gone, frame["patch_scores"], strict=True)]
    frame["score"] = plain["score"]
    frame.loc[gone, ["score_baseline", "score_perturbed"]] = np.nan
    own = [np.full((2, 4), score, np.float32) for score in plain["score"]]
    kept = plain.assign(
        ablated_scores=[
            one if out else array for out, one, array in zip(gone, own, plain["ablated_scores"], strict=True)
        ]
    )
    out = ranking_effects(frame, qrels)
    pd.testing.assert_frame_equal(out, ranking_effects(kept, qrels))
    assert told(out)["n_unpatched"] == gone.sum()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not say in which direction it was patched"),
        ({"direction": "denoise", "metric": "TermWeight('heat')"}, "hold TermWeight.* which ranks no documents"),
    ],
)
def test_patched_scores_that_rank_nothing_are_an_error(metadata, message):
    frame, qrels = patched("denoise")
    frame.attrs["mechir"] = metadata
    with pytest.raises(ValueError, match=message):
        ranking_effects(frame, qrels)
    tokens = patched("denoise")[0].assign(tokens=[["a"]] * len(frame), patch_effect=frame["patch_scores"])
    tokens.attrs["mechir"] = {"direction": "denoise"}
    with pytest.raises(ValueError, match="single positions belong to one text each"):
        ranking_effects(tokens, qrels)


# Statistics


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


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.drop(columns="label"), "have no column 'label'"),
        (lambda q: q.iloc[:0], "the judgments are empty"),
        (lambda q: q.assign(label=0.5), r"is 0.5, not a whole number"),
        (lambda q: q.assign(label=None), "is None, not a whole number"),
        (lambda q: pd.concat([q, q.head(1)]), "is judged more than once"),
        (lambda q: q.assign(qid=q["qid"] + "x"), r"none of the 30 queries is judged.*'q0'.*'q0x'"),
    ],
)
def test_judgments_that_cannot_be_used_are_an_error(change, message):
    frame, qrels = collection()
    with pytest.raises(ValueError, match=message):
        ranking_effects(frame, change(qrels))


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ([], "measures is empty"),
        ([AP, AP], "measures has one twice: AP, AP"),
        ("many", "'many' names no measure of ir_measures"),
        (NumRet, "NumRet is no mean over queries"),
        (RankShift, "RankShift has no value for some queries"),
    ],
)
def test_measures_that_cannot_be_used_are_an_error(measures, message):
    frame, qrels = collection()
    with pytest.raises(ValueError, match=message):
        ranking_effects(frame, qrels, measures)


def test_what_is_no_measure_or_no_frame_of_judgments_is_an_error():
    frame, qrels = collection()
    with pytest.raises(TypeError, match="3 is no measure"):
        ranking_effects(frame, qrels, [3])
    with pytest.raises(TypeError, match="the judgments are a dict, not a DataFrame"):
        ranking_effects(frame, {})


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


def test_rows_that_cannot_be_ranked_are_an_error():
    frame, qrels = collection()
    with pytest.raises(ValueError, match=r"\('q0', 'd0-0'\) comes more than once"):
        ranking_effects(pd.concat([frame, frame.head(1)]), qrels)
    with pytest.raises(ValueError, match=r"a score is missing for \(qid, docno\) = \('q0', 'd0-0'\)"):
        ranking_effects(frame.assign(score=frame["score"].mask(frame.index == 0)), qrels)
    with pytest.raises(ValueError, match="ablated_scores is missing for all documents"):
        ranking_effects(frame.assign(ablated_scores=[np.full((2, 4), np.nan)] * len(frame)), qrels)
    mixed = [np.zeros((2, 4)), *[np.zeros((2, 3))] * (len(frame) - 1)]
    with pytest.raises(ValueError, match="has arrays of shapes"):
        ranking_effects(frame.assign(ablated_scores=mixed), qrels)
    with pytest.raises(ValueError, match="does not say which components"):
        ranking_effects(frame.assign(ablated_scores=[np.zeros(3)] * len(frame)), qrels)


def test_ids_that_are_numbers_meet_those_that_are_text():
    frame, qrels = collection()
    numbers = frame.assign(qid=frame["qid"].str[1:].astype(int))
    out = ranking_effects(numbers, qrels.assign(qid=qrels["qid"].str[1:]), held_out=range(5))
    pd.testing.assert_frame_equal(out, ranking_effects(frame, qrels))
    assert told(out)["held_out"][0]["n_queries"] == 5
