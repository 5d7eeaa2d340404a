"""Frames as people bring them: each shape is followed or refused in one sentence, and nothing is dropped uncounted."""

import warnings
from operator import methodcaller

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import QUERIES, TEXTS

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    AxiomAgreement,
    PairScorer,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    ScoreLens,
    ScoreShift,
    compare_heads,
    explode_effects,
    split_halves,
)
from pyterrier_mechir.perturb import TFC1, Typos
from pyterrier_mechir.results.frames import as_strings
from pyterrier_mechir.results.measures import axiom_agreement

pytestmark = pytest.mark.usefixtures("one_thread")

N = 4
MISSING = [None, float("nan"), pd.NA]


def _objects(values):
    return pd.Series(values, dtype=object).to_numpy()


@pytest.fixture(scope="module")
def frame():
    rows = [(f"q{i}", QUERIES[i], f"d{i}", TEXTS[i], 1.0, 0) for i in range(N)]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score", "rank"])


@pytest.fixture(scope="module")
def stages(bi_encoder):
    patched = PatchScorer(bi_encoder, heads=[(0, 0)])
    return {
        "scorer": bi_encoder.scorer(),
        "docs": PerturbDocs(TFC1()),
        "queries": PerturbQueries(Typos()),
        "pairs": PairScorer(bi_encoder),
        "patches": patched,
        "lens": ScoreLens(bi_encoder),
        "attention": AttentionPatterns(bi_encoder, heads=["L0H0"]),
        "heads": patched >> AggregateHeads(n_boot=0),
    }


@pytest.fixture(scope="module")
def patched(frame, stages):
    return stages["patches"](frame)


STAGES = ["scorer", "docs", "queries", "pairs", "patches", "lens", "attention", "heads"]

REFUSED = {
    "a column twice": (lambda f: pd.concat([f, f[["text"]]], axis=1), "column 'text' comes more than once"),
    "a score twice": (lambda f: pd.concat([f, f[["score"]]], axis=1), "column 'score' comes more than once"),
    "two levels": (lambda f: f.set_axis(pd.MultiIndex.from_product([["x"], f.columns]), axis=1), "names of 2 levels"),
    "no qid in a row": (lambda f: f.assign(qid=_objects(["a", None, "b", "c"])), "column 'qid' is missing in 1 of 4"),
    "qids that are lists": (lambda f: f.assign(qid=[[]] * N), "column 'qid' .* cannot be told apart"),
    "an index named as a column": (methodcaller("set_index", "qid", drop=False), "'qid' names a column and the index"),
    "a query that is no text": (lambda f: f.assign(query=range(N)), "column 'query' is a int, not a string"),
    "a missing query": (lambda f: f.assign(query=_objects(["a", pd.NA, "b", "c"])), "column 'query' is missing"),
}


@pytest.mark.parametrize("shape", REFUSED)
@pytest.mark.parametrize("stage", STAGES)
def test_what_no_stage_can_follow_is_refused_in_a_sentence(stages, frame, stage, shape):
    make, words = REFUSED[shape]
    with pytest.raises(ValueError, match=words) as caught:
        stages[stage](make(frame))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


FOLLOWED = {
    "a column whose name is a number": lambda f: f.assign(x=1).rename(columns={"x": 7}),
    "an index that repeats": lambda f: f.set_axis([0, 0, 1, 1]),
    "categories, one of which no row has": lambda f: f.assign(qid=pd.Categorical(f["qid"], ["other", *f["qid"]])),
    "Arrow's types": methodcaller("convert_dtypes", dtype_backend="pyarrow"),
    "objects": methodcaller("astype", dict.fromkeys(["qid", "docno", "query", "text"], object)),
    "numbers as ids": lambda f: f.assign(qid=range(N), docno=pd.array(range(N), dtype="Int64")),
    "a column of arrays": lambda f: f.assign(extra=_objects([np.zeros(2)] * N)),
}


@pytest.mark.bits
@pytest.mark.parametrize("shape", FOLLOWED)
def test_other_shapes_give_the_same_numbers(stages, frame, patched, shape):
    given = FOLLOWED[shape](frame)
    made = stages["patches"](given)
    np.testing.assert_array_equal(np.stack(list(made["patch_effect"])), np.stack(list(patched["patch_effect"])))
    assert set(given.columns) <= set(made.columns) and made.index.equals(given.index)
    heads = AggregateHeads(n_boot=0)(made)
    np.testing.assert_array_equal(heads["score"], AggregateHeads(n_boot=0)(patched)["score"])


def test_the_results_of_a_column_twice_are_refused_by_all_that_reads_them(patched):
    twice = pd.concat([patched, patched[["score_baseline"]]], axis=1)
    twice.attrs = patched.attrs
    for read in (AggregateHeads(), axiom_agreement, lambda f: compare_heads(f, patched)):
        with pytest.raises(ValueError, match="column 'score_baseline' comes more than once"):
            read(twice)


@pytest.mark.parametrize("missing", MISSING)
def test_pairs_without_a_group_are_counted(patched, missing):
    grouped = patched.assign(kind=_objects(["a", missing, "b", missing]))
    with pytest.warns(UserWarning, match="2 of 4 pairs are in no group, since their 'kind' is missing"):
        made = AggregateHeads(by="kind", n_boot=0)(grouped)
    assert made["qid"].tolist() == ["a", "b"] and made.attrs["mechir"]["n_ungrouped"] == 2
    with pytest.warns(UserWarning, match="4 of 4 pairs"):
        assert not len(AggregateHeads(by="kind", n_boot=0)(patched.assign(kind=missing)))


def test_groups_come_in_their_order_and_complete(patched):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = AggregateHeads(by="kind", n_boot=0)(patched.assign(kind=pd.Categorical([2, 1, 2, 2], [0, 1, 2])))
        assert not AggregateHeads(by=None, n_boot=0)(patched).attrs
    assert dict(zip(made["qid"], made["n_pairs"] + made["n_skipped"], strict=True)) == {"2": 3, "1": 1}
    assert made["qid"].tolist() == ["2", "1"] and not made.attrs


def test_groups_that_are_written_alike_or_cannot_be_told_apart_are_refused(patched):
    with pytest.raises(ValueError, match="column 'kind' has two groups that are written '1'"):
        AggregateHeads(by="kind")(patched.assign(kind=_objects([1, "1", 2, 2])))
    with pytest.raises(ValueError, match="column 'kind' has values that cannot be told apart"):
        AggregateHeads(by="kind")(patched.assign(kind=_objects([{}] * N)))


def test_what_is_left_out_of_other_results_is_counted(patched):
    lacking = patched.copy()
    lacking["patch_scores"] = _objects(
        [np.full_like(a, np.nan) if i == 1 else a for i, a in enumerate(lacking["patch_scores"])]
    )
    assert explode_effects(lacking).attrs == {"mechir": {"n_skipped": 1}} and not explode_effects(patched).attrs
    more = pd.concat([patched, lacking.iloc[[1]].assign(qid="other")], ignore_index=True)
    more.attrs = patched.attrs
    assert split_halves(more, n_splits=5).attrs == {"mechir": {"n_skipped": 1}}
    assert not split_halves(patched, n_splits=5).attrs


def test_a_pair_that_comes_twice_in_a_run_is_not_compared(patched):
    twice = pd.concat([patched, patched.iloc[[2]]], ignore_index=True)
    twice.attrs = patched.attrs
    with pytest.raises(ValueError, match=r"\('q2', 'd2'\) more than once"):
        compare_heads(patched, twice)


@pytest.mark.parametrize("text", ["None", "nan", "<NA>"])
def test_expectations_that_pandas_turned_to_text_are_missing(text):
    pairs = pd.DataFrame({"qid": "q", "score_baseline": [0.0, 0.0], "score_perturbed": [1.0, 1.0]})
    (row,) = axiom_agreement(pairs.assign(expected_sign=["+", text])).itertuples()
    assert (row.agreement, row.n_pairs, row.n_skipped) == (1.0, 1, 1)


def test_text_keeps_what_is_missing():
    made = as_strings(pd.Series(["a", None, 3], dtype=object))
    assert made.isna().tolist() == [False, True, False] and made.dropna().tolist() == ["a", "3"]


def test_an_experiment_that_is_read_again_has_the_same_figures_or_says_why_not(frame, stages, tmp_path):
    import pickle

    qrels = frame[["qid", "docno"]].assign(label=1)
    pipeline = pt.Transformer.from_df(frame) >> stages["pairs"]
    options = {"names": ["pairs"], "save_dir": str(tmp_path), "save_mode": "reuse"}

    def figures(measure, **how):
        made = pt.Experiment([pipeline], frame[["qid", "query"]], qrels, [measure], **options, **how)
        return float(made[str(measure)].iloc[0])

    assert figures(ScoreShift, save_format=pickle) == figures(ScoreShift, save_format=pickle)
    figures(ScoreShift)
    for measure in (ScoreShift, ScoreShift(missing=0), AxiomAgreement):
        with pytest.raises(ValueError, match=r"which a run file of TREC does not keep; .* save_format=pickle"):
            figures(measure)
