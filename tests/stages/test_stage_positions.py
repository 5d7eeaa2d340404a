"""Positions in the stages: shapes, tokens, long form and aggregation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import QUERIES, TEXTS
from tolerance import assert_near_effects, widened

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs, explode_effects
from pyterrier_mechir.models.components import COMPONENTS
from pyterrier_mechir.perturb import TFC1, perturbation
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")


@perturbation
def only_tides(text: str) -> str | None:
    return f"{text} tides" if "bread" not in text else None


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [(str(i // 2), QUERIES[0], f"d{i}", TEXTS[i]) for i in (0, 1, 4, 6)]
    return PerturbDocs(only_tides)(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def test_each_adds_an_axis_of_the_pairs_own_length(ranker, frame):
    out = PatchScorer(ranker, positions="each", layers=[1])(frame)
    for effect, scores, tokens in zip(out["patch_effect"], out["patch_scores"], out["tokens"], strict=True):
        assert effect.shape == scores.shape == (ranker.n_layers, ranker.n_heads, len(tokens))
    found = out.set_index("docno")
    assert len(found.loc["d6", "tokens"]) == 0
    assert found.loc["d4", "tokens"][-3:] == ["tides", "tides", "[SEP]"]
    assert found.loc["d4", "tokens_baseline"][-2] == "a"
    assert found.loc["d4", "token_classes"][-2:] == ["EDIT", "SEP"]
    assert np.isfinite(found.loc["d4", "patch_scores"][1]).all()
    assert np.isnan(found.loc["d4", "patch_scores"][0]).all()


def test_single_positions_are_those_of_a_list(ranker, frame):
    each = PatchScorer(ranker, "mlp_out", positions="each")(frame)
    chosen = PatchScorer(ranker, "mlp_out", positions=[1, -2, 70])(frame)
    for one, other in zip(each["patch_scores"], chosen["patch_scores"], strict=True):
        assert other.shape == (ranker.n_layers, 3)
        if one.size:
            np.testing.assert_allclose(other[:, :2], one[:, [1, -2]], rtol=widened(1e-5), atol=widened(1e-5))
        assert np.isnan(other[:, 2]).all() or one.shape[1] > 70


@pytest.mark.parametrize("component", ["head", "block", ["q", "resid_mid"], "embed"], ids=str)
def test_class_adds_an_axis_of_token_classes(ranker, frame, component):
    out = PatchScorer(ranker, component, positions="class", direction="both")(frame)
    shapes = {"head": (ranker.n_layers, ranker.n_heads), "block": (3 * ranker.n_layers,), "embed": (1,)}
    shape = shapes.get(str(component), (ranker.n_layers * (ranker.n_heads + 1),))
    for column in ("patch_scores", "patch_effect", "patch_effect_noise"):
        assert {array.shape for array in out[column]} == {(*shape, len(TOKEN_CLASSES))}
    for classes, scores in zip(out["token_classes"], out["patch_scores"], strict=True):
        missing = np.isnan(scores.reshape(-1, len(TOKEN_CLASSES))).all(axis=0)
        assert missing.tolist() == [name not in classes for name in TOKEN_CLASSES]


def test_the_edit_of_the_first_stream_carries_everything(ranker, frame):
    out = PatchScorer(ranker, "resid_pre", positions="class", layers=[0])(frame)
    effects = np.stack(out["patch_effect"])[:3, 0]
    assert_near_effects(effects[:, TOKEN_CLASSES.index("EDIT")], 1, out[:3])


def test_the_aggregate_of_classes_names_site_and_class(ranker, frame):
    out = PatchScorer(ranker, ["attn_out", "mlp_out"], positions="class")(frame)
    heads = AggregateHeads(by=None)(out).set_index("docno")
    assert heads.loc["L1.mlp_out@EDIT", ["component", "layer", "slot", "n_pairs", "n_skipped"]].tolist() == [
        *("mlp_out", 1, "EDIT", 3, 1)
    ]
    present = [("D+" in classes) for classes in out["token_classes"]]
    assert heads.loc["L0.attn_out@D+", "n_pairs"] == sum(present)
    column = TOKEN_CLASSES.index("D+")
    moved = np.stack(out["patch_scores"])[:, 0, column] - out["score_baseline"]
    delta = out["score_perturbed"] - out["score_baseline"]
    expected = moved[present].mean() / delta[present].mean()
    assert heads.loc["L0.attn_out@D+", "score"] == pytest.approx(expected, rel=widened(1e-5))


@pytest.mark.parametrize("estimator", ["ratio_of_means", "mean_of_ratios", "median", "difference"])
def test_the_aggregate_of_chosen_positions_leaves_out_texts_that_are_shorter(ranker, frame, estimator):
    out = PatchScorer(ranker, "resid_pre", positions=[2, 19])(frame)
    heads = AggregateHeads(by=None, estimator=estimator)(out).set_index("docno")
    has = sum(len(tokens) > 19 for tokens in out["tokens"])
    assert 0 < has < 3
    assert heads.loc[["L1.resid_pre@2", "L1.resid_pre@19"], "n_pairs"].tolist() == [3, has]
    assert np.isfinite(heads["score"]).all()


def test_the_aggregate_refuses_single_positions(ranker, frame):
    with pytest.raises(ValueError, match="explode_effects"):
        AggregateHeads()(PatchScorer(ranker, "resid_pre", positions="each")(frame))


def test_the_long_form_has_a_row_per_site_and_position(ranker, frame):
    out = PatchScorer(ranker, ["attn_out", "resid_post"], positions="each")(frame)
    rows = explode_effects(out)
    assert len(rows) == sum(2 * ranker.n_layers * len(tokens) for tokens in out["tokens"])
    one = rows[(rows["docno"] == "d4") & (rows["site"] == "L2.resid_post")]
    source = out.set_index("docno").loc["d4"]
    np.testing.assert_array_equal(one["patch_effect"], source["patch_effect"][ranker.n_layers + 2])
    assert one["position"].tolist() == list(range(len(one)))
    assert (one["token"].tolist(), one["token_class"].tolist()) == (source["tokens"], source["token_classes"])
    assert one["token_baseline"].tolist() == source["tokens_baseline"]
    assert set(rows["docno"]) == {"d0", "d1", "d4"}


def test_the_long_form_of_classes_and_of_whole_sites(ranker, frame):
    by_class = explode_effects(PatchScorer(ranker, "attn_out", positions="class")(frame))
    assert by_class["position"].isna().all() and set(by_class["token_class"]) <= set(TOKEN_CLASSES)
    whole = explode_effects(PatchScorer(ranker)(frame))
    assert len(whole) == 3 * ranker.n_layers * ranker.n_heads
    assert whole[["position", "token", "token_class"]].isna().all(axis=None)
    assert whole["site"].iloc[ranker.n_heads] == "L1H0"
    chosen = explode_effects(PatchScorer(ranker, "attn_out", positions=[-1, 60])(frame))
    assert set(chosen["token"]) == {"[SEP]"} and (chosen["position"] > 0).all()


@pytest.mark.parametrize("positions", ["each", "class", [0, -1]], ids=str)
def test_an_empty_frame_has_the_columns_of_a_full_one(ranker, frame, positions):
    scorer = PatchScorer(ranker, "attn_out", positions=positions)
    full, empty = scorer(frame), scorer(frame.head(0))
    assert list(empty.columns) == list(full.columns)
    assert pt.inspect.transformer_outputs(scorer, list(frame.columns)) == list(full.columns)
    assert len(explode_effects(empty)) == 0


@pytest.mark.parametrize("positions", ["each", "class", [1, 3]], ids=str)
def test_a_batch_is_its_rows(ranker, frame, positions):
    scorer = PatchScorer(ranker, "v", positions=positions, heads=[(1, 2)])
    together = scorer(frame)
    for row in range(len(frame)):
        alone = scorer(frame.iloc[[row]])
        np.testing.assert_allclose(
            alone["patch_scores"].iloc[0],
            together["patch_scores"].iloc[row],
            rtol=widened(1e-4),
            atol=widened(1e-5),
            equal_nan=True,
        )


def test_several_fillers_are_averaged_at_each_position(ranker, frame):
    both, a, mask = (
        PatchScorer(ranker, "mlp_out", positions="each", filler=filler)(frame)
        for filler in (["a", "mask"], "a", "mask")
    )
    for found, one, other in zip(both["patch_scores"], a["patch_scores"], mask["patch_scores"], strict=True):
        np.testing.assert_allclose(found, (one + other) / 2, rtol=widened(1e-4), atol=widened(1e-5))


def test_neurons_are_named_and_chosen(ranker, frame):
    out = PatchScorer(ranker, "neuron", heads=[(1, 5), (2, 47)])(frame)
    heads = AggregateHeads(by=None)(out)
    assert sorted(heads["docno"]) == ["L1N5", "L2N47"]
    with pytest.raises(ValueError, match=r"no neuron \(0, 48\)"):
        PatchScorer(ranker, "neuron", heads=[(0, 48)])


def test_equal_positions_make_equal_stages(ranker):
    assert PatchScorer(ranker, positions=[0, 1]) == PatchScorer(ranker, positions=(0, 1)) != PatchScorer(ranker)
    assert len({PatchScorer(ranker, positions=[0]), PatchScorer(ranker, positions=[0])}) == 1
    assert "positions='each'" in repr(PatchScorer(ranker, positions="each", perturbation=TFC1()))


def test_a_ranker_lists_its_sites(ranker):
    sites, components = ranker.sites(), [name for name in COMPONENTS if not name.startswith("cross_")]
    assert set(sites["component"]) == set(components)
    found = sites.set_index(["component", "layer"])
    assert found.loc[("q", 2)].tolist() == [ranker.n_heads, "blocks.2.attn.hook_q"]
    assert found.loc[("neuron", 0)].tolist() == [48, "blocks.0.mlp.hook_post"]
    assert found.loc[("embed", 0)].tolist() == [1, "hook_embed"]
    assert len(sites) == (len(components) - 1) * ranker.n_layers + 1
