"""Measures of shifts and effects: values worked out by hand, and their place in an experiment."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import Compat, P, nDCG
from small_models import TEXTS, build

from pyterrier_mechir import (
    AggregateHeads,
    AxiomAgreement,
    BiEncoder,
    EffectConcentration,
    PatchEffect,
    PatchScorer,
    PerturbDocs,
    RankShift,
    ScoreShift,
    head_qrels,
)
from pyterrier_mechir.perturb import TFC1

NAN = float("nan")
MEASURES = [ScoreShift, RankShift, PatchEffect(layer=0, head=1), EffectConcentration, AxiomAgreement]

QRELS = pd.DataFrame({"qid": ["1", "1", "2", "3"], "docno": ["a", "b", "a", "a"], "label": [1, 0, 1, 1]})
TOPICS = pd.DataFrame({"qid": ["1", "2", "3", "4"], "query": "tides"})


def run(scores, baseline, perturbed, patched=None, qid="1") -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "qid": qid,
            "query": "tides",
            "docno": list("abcdefgh")[: len(scores)],
            "score": np.array(scores, float),
            "score_baseline": np.array(baseline, float),
            "score_perturbed": np.array(perturbed, float),
        }
    )
    if patched is not None:
        frame["patch_scores"] = [np.array(values, np.float32) for values in patched]
        sides = zip(frame["patch_scores"], frame["score_baseline"], frame["score_perturbed"], strict=True)
        frame["patch_effect"] = [((scores - base) / (other - base)).astype(np.float32) for scores, base, other in sides]
    return pt.model.add_ranks(frame)


def value(measure, frame: pd.DataFrame, qid: str = "1", **options) -> float:
    qrels = pd.DataFrame({"query_id": [qid], "doc_id": ["a"], "relevance": [1]})
    found = {m.query_id: m.value for m in measure.iter_calc(qrels, pt.model.to_ir_measures(frame))}
    return found[qid]


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        (ScoreShift, (2 - 1 + 0.5) / 3),
        (ScoreShift @ 1, 2),
        (ScoreShift @ 2, 0.5),
        # a: 1 better by 3 than by 5 -> gains 1; b: 0 -> 0 better, c stays third
        (RankShift, (1 + 0 + 0) / 3),
        (RankShift @ 1, 1),
    ],
)
def test_shifts_are_means_over_the_best_documents(measure, wanted):
    frame = run([5, 4, 1], [3, 4.5, 1], [5, 3.5, 1.5])
    # by b's baseline nobody but a is better; by its perturbed score too
    assert value(measure, frame) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("baseline", "perturbed", "gained"),
    [
        ([1, 3, 2], [9, 3, 2], 2),
        ([9, 3, 2], [1, 3, 2], -2),
        ([3, 3, 2], [3.5, 3, 2], 0),
        ([2, 3, 2], [2.5, 3, 2], 0),
        ([1.5, 3, 2], [2.5, 3, 2], 1),
    ],
)
def test_only_documents_that_are_truly_better_count(baseline, perturbed, gained):
    """Of scores 3, 3 and 2, the first document is moved."""
    frame = run([3, 3, 2], baseline, perturbed)
    frame.loc[1:, ["score_baseline", "score_perturbed"]] = NAN
    assert value(RankShift, frame) == gained


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=8))
def test_rank_shift_counts_documents_one_by_one(rows):
    scores, baseline, perturbed = zip(*rows, strict=True)
    frame = run(scores, baseline, perturbed)
    gained = []
    for i in range(len(scores)):
        others = [score for j, score in enumerate(scores) if j != i]
        gained.append(sum(score > baseline[i] for score in others) - sum(score > perturbed[i] for score in others))
    assert value(RankShift, frame) == pytest.approx(np.mean(gained))


PATCHED = [[[1.5, 2.0], [1.0, 0.5]], [[2.0, 3.0], [NAN, 2.0]]]
"""Of pairs from 1 to 2 and from 2 to 4: moved .5, 1, 0, -.5 and 0, 1, missing, 0."""


def test_effects_are_ratios_of_means():
    frame = run([2, 1], [1, 2], [2, 4], PATCHED)
    assert value(PatchEffect(layer=0, head=0), frame) == pytest.approx(0.5 / 3)
    assert value(PatchEffect(layer=0, head=1), frame) == pytest.approx(2 / 3)
    assert value(PatchEffect(layer=1, head=0), frame) == pytest.approx(0)
    assert value(PatchEffect(layer=1, head=1), frame) == pytest.approx(-0.5 / 3)
    assert value(PatchEffect(layer=0, head=1) @ 1, frame) == pytest.approx(1)
    layers = run([2, 1], [1, 2], [2, 4], [[1.5, 1.0], [2.0, 3.0]])
    assert value(PatchEffect(layer=1), layers) == pytest.approx(1 / 3)


def test_concentration_is_one_less_the_normalised_entropy():
    frame = run([2, 1], [1, 2], [2, 4], PATCHED)
    shares = (0.5 / 2.5, 2 / 2.5)
    entropy = -sum(share * math.log(share) for share in shares)
    assert value(EffectConcentration, frame) == pytest.approx(1 - entropy / math.log(4))
    one = run([1], [0], [1], [[[0.5, 0.0], [-0.2, 0.0]]])
    assert value(EffectConcentration, one) == pytest.approx(1)
    alike = run([1], [0], [1], [[[0.2, 0.2], [0.2, 0.2]]])
    assert value(EffectConcentration, alike) == pytest.approx(0, abs=1e-6)
    assert np.isnan(value(EffectConcentration, run([1], [0], [1], [[[0.0, -0.1], [0.0, 0.0]]])))


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_pairs_to_which_nothing_applied_do_not_count(measure):
    some = run([2, 1, 0], [1, NAN, 2], [2, NAN, 4], [PATCHED[0], [[NAN] * 2] * 2, PATCHED[1]])
    both = run([2, 1, 0], [1, 9, 2], [2, 9, 4], [PATCHED[0], [[NAN] * 2] * 2, PATCHED[1]]).iloc[[0, 2]]
    if measure is not RankShift:
        assert value(measure, some) == pytest.approx(value(measure, both))
    none = some.assign(score_perturbed=NAN)
    assert np.isnan(value(measure, none))
    assert value(measure(missing=0.25), none) == 0.25


def test_all_stand_beside_ndcg_with_unjudged_and_empty_topics():
    frame = pd.concat(
        [
            run([2, 1], [1, 2], [2, 4], PATCHED),
            run([2], [1], [2], PATCHED[:1], qid="2"),
            run([1], [0], [1], PATCHED[:1], qid="4"),
        ],
        ignore_index=True,
    )
    plain = frame[["qid", "query", "docno", "score", "rank"]]
    systems = [pt.Transformer.from_df(frame), pt.Transformer.from_df(plain)]
    measures = [nDCG @ 10, *(measure(missing=0) for measure in MEASURES)]
    out = pt.Experiment(systems, TOPICS, QRELS, measures, names=["pairs", "plain"]).set_index("name")
    assert out.loc["pairs", "nDCG@10"] == out.loc["plain", "nDCG@10"] == pytest.approx(2 / 3)
    assert out.loc["pairs", "ScoreShift(missing=0)"] == pytest.approx((1.5 + 1 + 0) / 3)
    assert (out.loc["plain"].drop("nDCG@10") == 0).all()
    each = pt.Experiment(systems[:1], TOPICS, QRELS, measures, names=["pairs"], perquery=True)
    assert set(each[each["measure"] == "ScoreShift(missing=0)"].dropna()["qid"]) == {"1", "2", "3"}
    paired = pt.Experiment(systems, TOPICS, QRELS, measures, names=["pairs", "plain"], baseline=0)
    assert "ScoreShift(missing=0) p-value" in paired.columns


@pytest.mark.parametrize("plan", ["linear", "tree"])
def test_measures_of_a_pipeline(plan):
    ranker = BiEncoder(build("bert", classifier=False))
    rows = [("1", "moon night", f"d{i}", text, 3 - i) for i, text in enumerate(TEXTS[:3])]
    retrieved = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    first = pt.Transformer.from_df(pt.model.add_ranks(retrieved)) >> PerturbDocs(TFC1())
    systems = {"heads": first >> PatchScorer(ranker), "mlps": first >> PatchScorer(ranker, "mlp_out")}
    topics = pd.DataFrame({"qid": ["1"], "query": ["moon night"]})
    qrels = pd.DataFrame({"qid": ["1"], "docno": ["d1"], "label": [1]})
    out = pt.Experiment(systems, topics, qrels, [nDCG @ 10, RankShift, ScoreShift, EffectConcentration], plan=plan)
    values = out.set_index("name")
    scored = systems["heads"](topics)
    shift = (scored["score_perturbed"] - scored["score_baseline"]).mean()
    assert values["ScoreShift"].tolist() == pytest.approx([shift, shift], rel=1e-4)
    assert values["nDCG@10"].nunique() == 1
    assert values["EffectConcentration"].between(0, 1).all()


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
@pytest.mark.parametrize("keeps_attrs", [True, False])
def test_effects_are_those_of_the_direction_that_was_patched(direction, keeps_attrs):
    rows = [("1", "moon night", f"d{i}", text, 3 - i) for i, text in enumerate(TEXTS[:3])]
    retrieved = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    scored = (PerturbDocs(TFC1()) >> PatchScorer(BiEncoder(build("bert", classifier=False)), direction=direction))(
        pt.model.add_ranks(retrieved)
    )
    heads = AggregateHeads(n_boot=0)(scored).set_index("docno")["score"]
    if not keeps_attrs:
        scored.attrs = {}
    for name in ("L0H1", "L1H0"):
        measure = PatchEffect(layer=int(name[1]), head=int(name[3]))
        assert value(measure, scored) == pytest.approx(heads[name], abs=1e-5)


def test_a_direction_that_nothing_tells_is_asked_for():
    frame = run([1], [0], [1], PATCHED[:1])
    frame["patch_effect"] = [np.full((2, 2), NAN)]
    for measure in (PatchEffect(layer=0, head=0), EffectConcentration):
        with pytest.raises(ValueError, match=r"nothing tells in which direction.*keep the attrs"):
            value(measure, frame)
    with pytest.raises(ValueError, match="nothing tells in which direction"):
        AggregateHeads()(frame)
    frame.attrs = {"mechir": {"direction": "noise"}}
    assert value(PatchEffect(layer=0, head=1), frame) == pytest.approx(1 - 2)


@pytest.mark.parametrize("settings", [{"layer": 2, "head": 0}, {"layer": 0}, {"layer": 0, "head": 5}])
def test_a_component_that_is_not_there_is_an_error(settings):
    with pytest.raises(ValueError, match="names no component: the effects are of shape"):
        value(PatchEffect(**settings), run([2, 1], [1, 2], [2, 4], PATCHED))


def test_names_equality_and_parameters():
    assert str(PatchEffect(layer=3, head=7) @ 10) == "PatchEffect(layer=3,head=7)@10"
    assert [str(m) for m in (ScoreShift, RankShift @ 5, EffectConcentration)] == [
        "ScoreShift",
        "RankShift@5",
        "EffectConcentration",
    ]
    for measure in MEASURES:
        assert pickle.loads(pickle.dumps(measure)) == measure
    with pytest.raises(AssertionError):
        value(PatchEffect, run([1], [0], [1], PATCHED[:1]))
    with pytest.raises(ValueError, match="several shapes"):
        value(EffectConcentration, run([2, 1], [1, 2], [2, 4], [PATCHED[0], [1.0, 2.0]]))


def test_the_best_components_of_each_query_are_graded():
    rows = [("1", "L0H0", 0.1), ("1", "L0H1", -0.3), ("1", "L1H0", 0.4), ("1", "L1H1", NAN), ("2", "L0H0", 0.0)]
    qrels = head_qrels(pd.DataFrame(rows, columns=["qid", "docno", "score"]), k=2)
    assert list(qrels.itertuples(index=False, name=None)) == [
        ("1", "L0H0", 1),
        ("1", "L0H1", 0),
        ("1", "L1H0", 2),
        ("2", "L0H0", 2),
    ]


def test_an_estimated_head_map_is_scored_against_the_exact_one():
    ranker = BiEncoder(build("bert", classifier=False))
    rows = [("1", "moon night", f"d{i}", text, 3 - i) for i, text in enumerate(TEXTS[:3])]
    retrieved = pt.model.add_ranks(pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]))
    topics = pd.DataFrame({"qid": ["1"], "query": ["moon night"]})
    first = pt.Transformer.from_df(retrieved) >> PerturbDocs(TFC1())
    systems = {name: first >> PatchScorer(ranker, method=name) >> AggregateHeads() for name in ("exact", "attribution")}
    qrels = head_qrels(systems["exact"](topics), k=5)
    out = pt.Experiment(systems, topics, qrels, [nDCG @ 5, P @ 5, Compat(p=0.9)]).set_index("name")
    assert out.loc["exact"].tolist() == [1, 1, pytest.approx(1)]
    assert 0 < out.loc["attribution", "nDCG@5"] <= 1 and 0 < out.loc["attribution", "Compat(p=0.9)"] <= 1


@pytest.mark.parametrize(("change", "message"), [({"k": 0}, "k is 0"), ({}, "more than once")])
def test_unusable_judgments_are_an_error(change, message):
    frame = pd.DataFrame({"qid": ["1", "1"], "docno": ["L0H0"] * 2, "score": [1.0, 2.0]})
    with pytest.raises(ValueError, match=message):
        head_qrels(frame, **change)
