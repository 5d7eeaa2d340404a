"""Agreement with an axiom, by hand and in an experiment."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG
from small_models import TEXTS

from pyterrier_mechir import AxiomAgreement, PairScorer, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1, CaseFold, OneOf
from pyterrier_mechir.perturb.base import SIGNS
from pyterrier_mechir.results.measures import axiom_agreement

pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")


def pairs(delta: list[float], qid: str = "1", **columns) -> pd.DataFrame:
    """A ranking whose scores change as told; changes are exact in binary."""
    n = len(delta)
    frame = pd.DataFrame({"qid": qid, "query": "tides", "docno": [f"d{i}" for i in range(n)]})
    scores = {"score": np.arange(n, 0, -1.0), "rank": range(n), "score_baseline": np.float32(2)}
    return frame.assign(**scores, score_perturbed=np.float32(2) + np.array(delta, np.float32), **columns)


def only(frame: pd.DataFrame, **options) -> tuple[float, int, int]:
    (row,) = axiom_agreement(frame, **options).itertuples(index=False)
    return row.agreement, row.n_pairs, row.n_skipped


# By hand

DELTAS = [1.0, 0.25, 0.125, 0.0, -0.125, -0.25, -1.0]
AGREES = {
    "+": [1, 1, 0, 0, 0, 0, 0],
    "-": [0, 0, 0, 0, 0, 1, 1],
    "+0": [1, 1, 1, 1, 1, 0, 0],
    "-0": [0, 0, 1, 1, 1, 1, 1],
    "0": [0, 0, 1, 1, 1, 0, 0],
}


@pytest.mark.parametrize("sign", SIGNS)
def test_a_change_within_the_band_is_none(sign):
    for delta, agrees in zip(DELTAS, AGREES[sign], strict=True):
        assert only(pairs([delta]), sign=sign, band=0.125) == (agrees, 1, 0)
        assert only(pairs([delta], expected_sign=sign), band=0.125) == (agrees, 1, 0)
    assert only(pairs(DELTAS), sign=sign, band=0.125)[0] == pytest.approx(np.mean(AGREES[sign]))


def test_the_band_is_a_thousandth_unless_given():
    small = [2.0**-10, -(2.0**-10), 2.0**-9]
    assert only(pairs(small)) == (pytest.approx(1 / 3), 3, 0)
    assert only(pairs(small), sign="0") == (pytest.approx(2 / 3), 3, 0)
    assert only(pairs(small), band=0) == (pytest.approx(2 / 3), 3, 0)
    assert only(pairs([0.0, 0.0, 1.0]), band=0, sign="0") == (pytest.approx(2 / 3), 3, 0)


def test_each_pair_has_its_own_expectation():
    frame = pairs([1, 1, -1, 1, 0, 0], expected_sign=["+", "-", "-", "0", "0", "-0"])
    assert only(frame) == (pytest.approx(4 / 6), 6, 0)
    assert only(frame, sign="+") == (pytest.approx(3 / 6), 6, 0)


@pytest.mark.parametrize("missing", [None, NAN, pd.NA])
def test_pairs_of_which_nothing_is_expected_are_skipped(missing):
    frame = pairs([1, -1, 1], expected_sign=pd.Series(["+", missing, "-"], dtype=object))
    assert only(frame) == (0.5, 2, 1)
    assert only(frame.astype({"expected_sign": "str"}) if missing is not pd.NA else frame) == (0.5, 2, 1)
    assert only(frame, sign="+") == (pytest.approx(2 / 3), 3, 0)


@pytest.mark.parametrize("sign", SIGNS)
def test_pairs_without_scores_are_skipped(sign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert only(pairs([NAN, 0.0]), sign=sign) == (float(sign not in "+-"), 1, 1)
        agreement, *counts = only(pairs([NAN, NAN]), sign=sign)
    assert (np.isnan(agreement), counts) == (True, [0, 2])


def test_queries_keep_their_order_and_their_index_does_not_matter():
    frame = pd.concat([pairs([1.0], "b"), pairs([-1.0, 1.0], "a"), pairs([1.0], "b"), pairs([NAN], "c")])
    out = axiom_agreement(frame)
    assert list(out.columns) == ["qid", "agreement", "n_pairs", "n_skipped"]
    assert out["qid"].tolist() == ["b", "a", "c"]
    assert out["agreement"].tolist()[:2] == [1.0, 0.5]
    assert (out["n_pairs"].tolist(), out["n_skipped"].tolist()) == ([2, 2, 0], [0, 0, 1])


def test_no_pairs_give_no_queries():
    for empty in (pairs([1.0]).iloc[:0], pd.DataFrame(columns=["qid", "score_baseline", "score_perturbed"])):
        out = axiom_agreement(empty)
        assert list(out.columns) == ["qid", "agreement", "n_pairs", "n_skipped"]
        assert len(out) == 0


def test_an_unknown_sign_is_an_error_that_lists_the_choices():
    with pytest.raises(ValueError, match="unknown sign 'positive'; choose one of"):
        axiom_agreement(pairs([1.0]), sign="positive")
    with pytest.raises(ValueError, match="'positive'"):
        axiom_agreement(pairs([1.0, 1.0], expected_sign=["+", "positive"]))


# As a measure

QRELS = pd.DataFrame({"qid": ["1", "1", "2", "3"], "docno": ["d0", "d1", "d0", "d0"], "label": [1, 0, 2, 1]})
TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": "tides"})
RUN = pd.concat([pairs([1, 1, -1, 0], "1"), pairs([-1, 1], "2"), pairs([NAN], "3"), pairs([1], "4")])
"""Agreements of 1/2, 1/2 and none; query 4 is not judged."""


def measured(run: pd.DataFrame, *measures, **options) -> pd.DataFrame:
    systems = [pt.Transformer.from_df(run.reset_index(drop=True))]
    return pt.Experiment(systems, TOPICS, QRELS, list(measures), names=["run"], **options)


def value(measure, run: pd.DataFrame = RUN, **options) -> float:
    return measured(run, measure, **options)[str(measure)].item()


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        (AxiomAgreement(missing=0), 1 / 3),
        (AxiomAgreement(missing=1), 2 / 3),
        (AxiomAgreement(missing=0) @ 1, 1 / 3),
        (AxiomAgreement(missing=0) @ 3, (2 / 3 + 1 / 2) / 3),
        (AxiomAgreement(missing=0, cutoff=100), 1 / 3),
        (AxiomAgreement(missing=0, sign="-"), (1 / 4 + 1 / 2) / 3),
        (AxiomAgreement(missing=0, sign="-0") @ 3, (1 / 3 + 1 / 2) / 3),
        (AxiomAgreement(missing=0, sign="0", band=1), 2 / 3),
        (AxiomAgreement(missing=0, sign="0", band=0.5), 1 / 12),
    ],
)
def test_the_mean_over_the_judged_queries(measure, wanted):
    assert value(measure) == pytest.approx(wanted)


def test_a_query_without_pairs_makes_the_mean_missing_unless_a_value_is_given():
    without_results = RUN[RUN["qid"] != "3"]
    for run in (RUN, without_results):
        assert np.isnan(value(AxiomAgreement, run))
        assert value(AxiomAgreement(missing=0.2), run) == pytest.approx(1.2 / 3)


def test_queries_one_by_one():
    out = measured(RUN, AxiomAgreement, AxiomAgreement(missing=0) @ 1, nDCG @ 10, perquery=True)
    values = {(row.qid, row.measure): row.value for row in out.itertuples()}
    assert [values[qid, "AxiomAgreement"] for qid in "12"] == [0.5, 0.5]
    assert np.isnan(values["3", "AxiomAgreement"])
    assert [values[qid, "AxiomAgreement(missing=0)@1"] for qid in "123"] == [1, 0, 0]
    assert [values[qid, "nDCG@10"] for qid in "123"] == [1, 1, 1]


def test_the_best_documents_are_those_of_the_highest_score():
    shuffled = RUN.sample(frac=1, random_state=3)
    assert value(AxiomAgreement(missing=0) @ 1, shuffled) == pytest.approx(1 / 3)
    backwards = RUN.assign(score=-RUN["score"])
    assert value(AxiomAgreement(missing=0) @ 1, backwards) == pytest.approx(1 / 3)
    assert value(AxiomAgreement(missing=0) @ 2, backwards) == pytest.approx(1 / 6)


def test_expectations_of_the_run_are_followed():
    run = RUN.assign(expected_sign=["+", "-", "-", None, "-", "+", "+", "+"])
    assert value(AxiomAgreement(missing=0), run) == pytest.approx((2 / 3 + 1) / 3)
    assert value(AxiomAgreement(missing=0, sign="+"), run) == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_judged_queries_that_were_not_asked_have_the_value_of_none(batch_size):
    options = {"batch_size": batch_size, "filter_by_topics": False, "perquery": True}
    systems = [pt.Transformer.from_df(RUN.reset_index(drop=True))]
    out = pt.Experiment(systems, TOPICS.iloc[:2], QRELS, [AxiomAgreement(missing=0)], names=["run"], **options)
    assert dict(zip(out["qid"], out["value"], strict=True)) == {"1": 0.5, "2": 0.5, "3": 0.0}


@pytest.mark.parametrize("parameters", [{"sign": "up"}, {"band": "wide"}, {"cutoff": 1.5}, {"depth": 3}])
def test_an_unknown_parameter_is_an_error(parameters):
    with pytest.raises(AssertionError, match="param"):
        value(AxiomAgreement(**parameters))


def test_a_missing_that_is_no_number_is_an_error():
    with pytest.raises((AssertionError, TypeError, ValueError)):
        value(AxiomAgreement(missing="none"))


def test_measures_of_one_kind_are_equal_and_named():
    assert (str(AxiomAgreement), str(AxiomAgreement @ 10)) == ("AxiomAgreement", "AxiomAgreement@10")
    assert str(AxiomAgreement(sign="-", band=0.5) @ 3) == "AxiomAgreement(sign='-',band=0.5)@3"
    assert AxiomAgreement(band=1e-3) == AxiomAgreement != AxiomAgreement(band=1e-2)
    assert len({AxiomAgreement @ 10, AxiomAgreement(cutoff=10)}) == 1
    assert pickle.loads(pickle.dumps(AxiomAgreement(missing=0) @ 10)) == AxiomAgreement(missing=0) @ 10


# In an experiment

RETRIEVED = pd.DataFrame(
    {
        "qid": ["1", "1", "1", "2", "2"],
        "query": ["two high tides"] * 3 + ["heat pump house"] * 2,
        "docno": ["d0", "d1", "d2", "d2", "d3"],
        "text": [TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[2], TEXTS[3]],
        "score": [3.0, 2.0, 1.0, 2.0, 1.0],
        "rank": [0, 1, 2, 0, 1],
    }
)


@pytest.mark.filterwarnings("ignore:There are shared pipeline components", "ignore:Precision loss occurred")
@pytest.mark.parametrize("plan", ["linear", "tree"])
def test_agreement_beside_ndcg(bi_encoder, cross_encoder, plan):
    first = pt.Transformer.from_df(RETRIEVED)
    perturbed = first >> PerturbDocs(OneOf([TFC1(), CaseFold()]))
    systems = [perturbed >> PairScorer(ranker) for ranker in (bi_encoder, cross_encoder)]
    systems.append(perturbed >> PatchScorer(bi_encoder, layers=[0]))
    topics = RETRIEVED[["qid", "query"]].drop_duplicates()
    qrels = QRELS[QRELS["qid"] != "3"]
    measures = [AxiomAgreement, AxiomAgreement @ 1, nDCG @ 10]
    options = {"names": ["bi", "cross", "patched"], "plan": plan}
    out = pt.Experiment(systems, topics, qrels, measures, baseline=0, **options).set_index("name")
    assert out.loc["patched", "AxiomAgreement"] == out.loc["bi", "AxiomAgreement"]
    each = pt.Experiment(systems, topics, qrels, measures, perquery=True, **options)
    for name, system in zip(options["names"], systems, strict=True):
        by_hand = axiom_agreement(system(topics))
        assert by_hand["n_pairs"].tolist() == [3, 2]
        mean = by_hand["agreement"].mean()
        assert out.loc[name, "AxiomAgreement"] == pytest.approx(mean)
        found = each[(each["name"] == name) & (each["measure"] == "AxiomAgreement")].set_index("qid")["value"]
        assert found.to_dict() == dict(zip(by_hand["qid"], by_hand["agreement"], strict=True))
        plain = pt.Experiment([system], topics, qrels, [nDCG @ 10], names=[name])
        assert out.loc[name, "nDCG@10"] == plain["nDCG@10"].item()
    assert {"AxiomAgreement +", "AxiomAgreement p-value"} <= set(out.columns)


def test_the_mean_of_ir_measures_is_over_the_queries_that_have_a_value():
    names = {"qid": "query_id", "docno": "doc_id", "label": "relevance"}
    assert AxiomAgreement.calc_aggregate(QRELS.rename(columns=names), RUN.rename(columns=names)) == 0.5


def test_a_plain_retriever_beside_one_with_pairs_has_no_value():
    plain = RUN.drop(columns=["score_baseline", "score_perturbed"])
    systems = [pt.Transformer.from_df(frame.reset_index(drop=True)) for frame in (plain, RUN)]
    out = pt.Experiment(systems, TOPICS, QRELS, [AxiomAgreement(missing=0), nDCG @ 10], names=["plain", "pairs"])
    values = out.set_index("name")["AxiomAgreement(missing=0)"]
    assert values.tolist() == [0, pytest.approx(1 / 3)]
    assert out["nDCG@10"].tolist() == [1, 1]
    with pytest.raises(pt.validate.InputValidationError, match="score_baseline"):
        axiom_agreement(plain)
