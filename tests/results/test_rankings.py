"""The rankings that components leave: values of ir_measures, ties, patched scores, and what cannot be used."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, BPM, RR, Judged, NumRet, P, R, nDCG
from judged import by_name, collection, of_measure, told

from pyterrier_mechir import RankShift
from pyterrier_mechir.results.ranking_effects import ranking_effects
from pyterrier_mechir.results.ranking_verdicts import verdicts
from pyterrier_mechir.results.rankings import checked_measures, checked_qrels, measured, read_rankings

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
        (BPM, r"ir_measures cannot compute BPM: invalid param cutoff"),
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
