"""RankingEffects keeps the conventions of PyTerrier, and computes what its function does."""

from __future__ import annotations

import io
import pickle
import unittest

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, nDCG
from small_models import QUERIES, TEXTS

from pyterrier_mechir import PatchScorer, PerturbDocs, RankingEffects, head_agreement
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.results.ranking_effects import ranking_effects

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMNS = [
    *["qid", "docno", "score", "rank", "component", "layer", "head", "measure"],
    *["value", "ci_low", "ci_high", "p_value", "p_adjusted", "n_queries"],
]
QRELS = pd.DataFrame({"qid": [f"q{n % 6}" for n in range(18)], "docno": [f"d{n // 6}" for n in range(18)]})
QRELS["label"] = [n % 5 // 2 for n in range(18)]


def ablated(seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = QRELS[["qid", "docno"]].assign(query="any", score=rng.normal(size=18))
    frame["ablated_scores"] = list(rng.normal(size=(18, 2, 3)).astype(np.float32))
    return frame


def test_the_stage_calls_the_function_and_leaves_its_input_alone():
    frame = ablated()
    before = frame.copy(deep=True)
    options = {"ci": 0.9, "n_boot": 50, "adjust": "bh", "control": "shuffled", "held_out": ["q1", "q3"], "seed": 3}
    out = RankingEffects(QRELS, [nDCG @ 10, AP], **options)(frame)
    assert list(out.columns) == COLUMNS
    wanted = ranking_effects(frame, QRELS, [nDCG @ 10, AP], **options)
    pd.testing.assert_frame_equal(out, wanted, check_exact=True)
    assert out.attrs == wanted.attrs and set(out.attrs["mechir"]["ranking_effects"]) >= {"control", "held_out"}
    pd.testing.assert_frame_equal(frame, before)


def test_an_empty_frame_has_the_columns_of_a_full_one():
    frame = ablated()
    full, empty = (RankingEffects(QRELS, AP)(rows) for rows in (frame, frame.iloc[:0]))
    assert len(empty) == 0 and list(empty.columns) == COLUMNS
    assert [str(dtype) for dtype in empty.dtypes] == [str(dtype) for dtype in full.dtypes]


@pytest.mark.parametrize("column", ["score", "docno", "qid"])
def test_a_missing_column_is_named(column):
    with pytest.raises(pt.validate.InputValidationError, match=f"{column}.*mode_name='ablated'"):
        RankingEffects(QRELS)(ablated().drop(columns=column))


def test_a_frame_without_scores_of_components_is_told_what_it_lacks():
    with pytest.raises(pt.validate.InputValidationError, match=r"RankingEffects.*'ablated_scores'.*'patch_scores'"):
        RankingEffects(QRELS)(ablated().drop(columns="ablated_scores"))
    with pytest.raises(TypeError, match="expected a DataFrame"):
        RankingEffects(QRELS).transform([1])


def test_the_stage_passes_the_checks_of_pyterrier(monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    case = pt.testing.transformer_test_class(lambda: RankingEffects(QRELS, held_out=["q1", "q2"]))
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.testsRun == 2
    assert result.wasSuccessful(), result.failures + result.errors
    needs = pt.inspect.transformer_inputs(RankingEffects(QRELS))
    assert ["qid", "docno", "score", "ablated_scores"] in needs and len(needs) == 2


def test_equal_stages_are_equal_and_hash_alike():
    stage = RankingEffects(QRELS, held_out=["q1", "q2"])
    same = RankingEffects(QRELS.copy(), ["nDCG@10"], held_out=pd.DataFrame({"qid": ["q1", "q2"]}))
    assert stage == same and hash(stage) == hash(same)
    others = [
        RankingEffects(QRELS.assign(label=1), held_out=["q1", "q2"]),
        RankingEffects(QRELS, held_out=["q1"]),
        RankingEffects(QRELS),
        RankingEffects(QRELS, AP, held_out=["q1", "q2"]),
        RankingEffects(QRELS, held_out=["q1", "q2"], adjust="bh"),
    ]
    assert all(stage != other for other in others) and stage != 3
    assert repr(stage) == "RankingEffects(qrels=<18 rows>, held_out=<2 rows>)"
    assert repr(RankingEffects(QRELS, AP, seed=1)) == "RankingEffects(qrels=<18 rows>, measures=(AP,), seed=1)"
    assert pt.inspect.transformer_apply_attributes(stage) == stage
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_later_changes_of_the_judgments_do_not_reach_the_stage():
    qrels = QRELS.copy()
    stage = RankingEffects(qrels)
    before = stage(ablated())
    qrels["label"] = 0
    pd.testing.assert_frame_equal(stage(ablated()), before)
    assert stage == RankingEffects(QRELS)


def test_what_the_function_refuses_the_stage_refuses_at_once():
    for options, message in (({"adjust": "fdr"}, "unknown adjust"), ({"ci": 95}, "ci is 95")):
        with pytest.raises(ValueError, match=message):
            RankingEffects(QRELS, **options)
    with pytest.raises(ValueError, match="have no column 'label'"):
        RankingEffects(QRELS.drop(columns="label"))


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
@pytest.mark.parametrize("component", ["head", ["attn_out", "mlp_out"]])
def test_it_reads_what_a_patch_scorer_gives(bi_encoder, direction, component):
    rows = [(f"q{q}", QUERIES[q], f"d{d}", TEXTS[d]) for q in range(4) for d in range(4)]
    pairs = PerturbDocs(TFC1())(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))
    qrels = pairs[["qid", "docno"]].assign(label=[n % 3 % 2 for n in range(16)])
    patched = PatchScorer(bi_encoder, component, direction=direction)(pairs)
    out = RankingEffects(qrels, AP)(patched)
    assert set(out["component"]) == set([component] if component == "head" else component)
    side = "score_perturbed" if direction == "noise" else "score_baseline"
    run = pt.model.add_ranks(patched[["qid", "docno"]].assign(score=patched[side].astype(np.float32)))
    base = pt.Evaluate(run, qrels, [AP])["AP"]
    assert out.attrs["mechir"]["ranking_effects"]["measures"][0]["value"] == pytest.approx(base, abs=1e-12)
    assert out.attrs["mechir"]["scorer"]["stage"] == "PatchScorer"
    place = out["docno"].tolist().index("L1H2" if component == "head" else "L1.mlp_out")
    flat = 6 if component == "head" else patched.attrs["mechir"]["sites"].index("L1.mlp_out")
    scores = [float(array.ravel()[flat]) for array in patched["patch_scores"]]
    value = pt.Evaluate(pt.model.add_ranks(patched[["qid", "docno"]].assign(score=scores)), qrels, [AP])["AP"]
    assert out["value"].iloc[place] == pytest.approx(value, abs=1e-12)
    if component == "head":
        agreement = head_agreement(patched, out, k=3, n_boot=0)
        assert agreement["measure"].tolist() == ["spearman", "overlap@3"]
