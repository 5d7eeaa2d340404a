"""Edited rankers score as hooks on the unmodified model make them, and stand wherever a ranker does."""

from __future__ import annotations

import json
import pickle
from contextlib import ExitStack
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import QUERIES, TEXTS, build_t5, masked_lm
from test_families import ranker_of
from tolerance import assert_near, assert_near_effects

from pyterrier_mechir import (
    Ablate,
    AblationScorer,
    Add,
    AttentionPatterns,
    MonoT5,
    PairScorer,
    PatchResults,
    PatchScorer,
    PerturbDocs,
    Scale,
    ScoreLens,
    Splade,
    Steer,
    head_means,
    run_sweep,
)
from pyterrier_mechir.interventions.means import POSITION_CLASSES
from pyterrier_mechir.interventions.references import position_classes
from pyterrier_mechir.interventions.vectors import place_of
from pyterrier_mechir.models.sites import parse_site
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.families import cells
from pyterrier_mechir.verify.hooks import COMPONENTS, Hooks

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = pd.DataFrame(
    {
        "qid": [str(i % 3) for i in range(7)],
        "query": [QUERIES[i % 3] for i in range(7)],
        "docno": [f"d{i}" for i in range(7)],
        "text": TEXTS,
    }
)

PAIRS = FRAME["query"].tolist(), FRAME["text"].tolist()


def hooked_scores(ranker, edits, pairs=PAIRS):
    """Scores with hooks on a copy of the model: each of ``edits`` is a site, a factor and what is added."""
    slow = ranker.running(deepcopy(ranker.model))
    if hasattr(slow, "_query_twins"):
        slow._query_twins = slow._twins
    hooks = Hooks(slow.twin, decoder=ranker.anatomy.cross_attends)

    def editing(site, factor, added):
        def function(value):
            part, made = hooks.part(site.component, site.number, value.shape[-1]), value.clone()
            made[..., part] = value[..., part] * factor + torch.as_tensor(added)
            return made

        return function

    with ExitStack() as stack:
        for name, factor, added in edits:
            site = parse_site(name)
            stack.enter_context(hooks.hook(site.component, site.layer, editing(site, factor, added)))
        return np.concatenate([slow.score([query], [text]) for query, text in zip(*pairs, strict=True)])


def site_of(ranker, component, layer):
    """A site of a component."""
    row = ranker.sites().query("component == @component").iloc[0]
    if component == "embed":
        return "embed"
    if row.n_parts == 1:
        return f"L{layer}.{component}" if component not in ("k", "v") else f"L{layer}H0.{component}"
    suffix = {"head": "", "cross_head": ".cross"}.get(component, f".{component}")
    return f"L{layer}N3" if component == "neuron" else f"L{layer}H1{suffix}"


# Exactness


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(filter(None, cell)))
def test_each_component_of_each_cell_is_edited_as_by_a_hook(cell):
    ranker = ranker_of(cell)
    before, rng = ranker.score(*PAIRS), np.random.default_rng(0)
    for component in sorted(set(ranker.sites()["component"]) & set(COMPONENTS)):
        name = site_of(ranker, component, ranker.n_layers - 1)
        _, columns = place_of(ranker, name)
        vector = 0.3 * rng.normal(size=columns.stop - columns.start).astype(np.float32)
        edited = ranker.edited([Scale(name, 0.3)]).edited([Add(name, vector, 2.0)])
        assert_near(edited.score(*PAIRS), hooked_scores(ranker, [(name, 0.3, 0.0), (name, 1.0, 2 * vector)]), 2e-5)
        assert np.abs(edited.score(*PAIRS) - before).max() > 1e-6, name
    assert_near(ranker.score(*PAIRS), before, 2e-5)


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(filter(None, cell)))
def test_a_sweep_of_ablations_gives_what_each_edited_ranker_does(cell):
    ranker, is_decoder = ranker_of(cell), cell.stack == "decoder"
    for component, by in (("cross_head" if is_decoder else "head", "mean"), ("mlp_out", "zero")):
        scorer = AblationScorer(ranker, component, by)
        out = scorer(FRAME)
        found = np.stack(out["ablated_scores"]).reshape(len(FRAME), -1)
        assert_near(out["score"], ranker.score(*PAIRS))
        for number in (0, len(scorer.sites.sites) - 1):
            edit = Ablate(scorer.sites.sites[number].name, by=by)
            assert_near(found[:, number], ranker.edited([edit], reference=FRAME).score(*PAIRS), 2e-5)
        assert np.ptp(found - out["score"].to_numpy()[:, None]) > 1e-4


@pytest.mark.parametrize("ranker", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("by", ["zero", "mean"])
def test_an_ablation_is_a_hook_on_the_towers_that_are_ablated(ranker, by, request):
    ranker = request.getfixturevalue(ranker)
    out = AblationScorer(ranker, by=by, reference=FRAME)(FRAME)
    known = head_means(ranker, FRAME)
    for layer, head in ((0, 2), (2, 3)):
        value = known[layer, "z"][8 * head : 8 * head + 8] if by == "mean" else 0.0
        wanted = hooked_scores(ranker, [(f"L{layer}H{head}", 0.0, value)])
        assert_near([scores[layer, head] for scores in out["ablated_scores"]], wanted)


def test_what_is_resampled_is_the_activation_of_another_text_whatever_the_batch(cross_encoder):
    edited = cross_encoder.edited([Ablate("L1H2", by="resample", reference=FRAME)])
    whole = edited.score(*PAIRS)
    single = np.concatenate([edited.score([query], [text]) for query, text in zip(*PAIRS, strict=True)])
    assert_near(whole, single)
    assert_near(
        whole, [scores[1, 2] for scores in AblationScorer(cross_encoder, by="resample")(FRAME)["ablated_scores"]]
    )
    other = cross_encoder.edited([Ablate("L1H2", by="resample", reference=FRAME, seed=1)])
    assert np.abs(other.score(*PAIRS) - whole).max() > 1e-4


def test_two_texts_are_resampled_from_each_other(bi_encoder):
    frame = FRAME.iloc[[0, 5]]
    edited = bi_encoder.edited([Ablate("L2.resid_post", by="resample", reference=frame)], side="document")
    scores = edited.score([QUERIES[0]] * 2, frame["text"].tolist())
    wanted = bi_encoder.score([QUERIES[0]] * 2, frame["text"].tolist()[::-1])
    assert_near(scores, wanted)  # it reads the first position of the last stream, which is the other text's


def test_means_are_over_attended_positions_of_each_distinct_text_once(cross_encoder):
    twice = pd.concat([FRAME, FRAME.iloc[:3]], ignore_index=True)
    found, total, n = head_means(cross_encoder, twice), 0, 0
    slow = cross_encoder.running(deepcopy(cross_encoder.model))
    hooks, kept = Hooks(slow.twin), []
    for query, text in zip(*PAIRS, strict=True):
        length = len(slow.sequences.plain([query], [text])[0].ids)
        with hooks.hook("head", 1, lambda value, length=length: kept.append(value[0, :length].double())):
            slow.score([query], [text])
    total, n = sum(value.sum(0) for value in kept), sum(map(len, kept))
    assert_near(found[1, "z"], (total / n).numpy())
    assert found.n_texts == 7
    assert_near(head_means(cross_encoder, FRAME)[2, "z"], found[2, "z"])


def test_means_of_position_classes_are_those_of_their_positions(cross_encoder):
    found = head_means(cross_encoder, FRAME, per="position class")
    assert found[0, "z"].shape == (len(POSITION_CLASSES), 32)
    edited = cross_encoder.edited([Ablate("L2H0", by="mean", per="position class")], reference=FRAME)
    value = found[2, "z"][POSITION_CLASSES.index("first"), :8]  # all that the score reads of the last layer
    assert_near(edited.score(*PAIRS), hooked_scores(cross_encoder, [("L2H0", 0.0, value)]))
    ids = torch.tensor([[2, 9, 9, 3, 8, 3, 0]])
    assert position_classes(ids, torch.tensor([0, 2, 3])).tolist() == [[0, 2, 2, 1, 3, 1, 1]]


# An edited ranker is a ranker


@pytest.mark.parametrize("name", ["bi_encoder", "cross_encoder"])
@pytest.mark.parametrize("component", ["head", "q", "pattern", "mlp_out", "resid_pre"])
def test_patching_an_edited_ranker_is_patching_its_baked_twin(name, component, request):
    ranker = request.getfixturevalue(name)
    edits = [Scale("L1H2", 0.3), Scale("L2.mlp_out", 1.4)]
    baked = deepcopy(ranker.model)
    layers = baked.base_model.encoder.layer
    with torch.no_grad():
        layers[1].attention.output.dense.weight[:, 16:24] *= 0.3
        layers[2].output.dense.weight *= 1.4
        layers[2].output.dense.bias *= 1.4
    plain = type(ranker)((baked, ranker.tokenizer))
    pairs = PerturbDocs(TFC1())(FRAME)
    found, wanted = (PatchScorer(one, component, direction="both")(pairs) for one in (ranker.edited(edits), plain))
    for column in ("score", "score_baseline", "score_perturbed"):
        assert_near(found[column], wanted[column])
    for column in ("patch_effect", "patch_effect_noise"):
        assert_near_effects(np.stack(found[column]), np.stack(wanted[column]), wanted)


def test_an_edited_ranker_stands_in_every_stage(cross_encoder):
    edited = cross_encoder.edited([Ablate("L1H2"), Scale("L2.mlp_out", 0.5)])
    pairs, wanted = PerturbDocs(TFC1())(FRAME), edited.score(*PAIRS)
    for stage in (PatchScorer(edited), PairScorer(edited), AttentionPatterns(edited), ScoreLens(edited)):
        assert_near(stage(pairs).sort_values("docno")["score"], wanted)
    assert_near(edited.scorer()(FRAME)["score"], wanted)
    assert_near([scores[-1] for scores in ScoreLens(edited)(FRAME)["layer_scores"]], wanted)
    told = PatchScorer(edited)(pairs).attrs["mechir"]["ranker"]
    assert told["edits"][0] == {"side": "both", "edit": "Ablate", "site": "L1H2", "by": "zero"}
    json.dumps(told)


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_gradients_are_those_of_the_edited_model(cross_encoder, method):
    edited = cross_encoder.edited([Scale("L1.attn_out", 0.0)])
    out = PatchScorer(edited, "head", method=method)(PerturbDocs(TFC1())(FRAME))
    moved = np.stack(out["patch_scores"]) - out["score_baseline"].to_numpy()[:, None, None]
    assert np.abs(moved[:, 1]).max() == 0 and np.abs(moved[:, 0]).max() > 1e-4


def test_edits_tell_themselves_apart(bi_encoder):
    vector = np.ones(32, np.float32)
    one = bi_encoder.edited([Scale("L0H1", 0.5), Add("L1.resid_post", vector)])
    again = bi_encoder.edited([Scale("L0H1", 0.5), Add("L1.resid_post", vector)])
    assert one == again and hash(one) == hash(again) and one != bi_encoder
    assert one != bi_encoder.edited([Scale("L0H1", 0.6), Add("L1.resid_post", vector)])
    assert one != bi_encoder.edited([Scale("L0H1", 0.5), Add("L1.resid_post", 2 * vector)])
    assert bi_encoder.edited([Scale("L0H1", 0.5)]) != bi_encoder.edited([Scale("L0H1", 0.5)], side="query")
    assert repr(bi_encoder.edited([Scale("L0H1", 0.5)])) == "BiEncoder('BertModel', Scale(site='L0H1', factor=0.5))"
    assert "of queries" in repr(bi_encoder.edited([Ablate("L0H1")], side="query"))
    assert bi_encoder.edited([]) is bi_encoder


def test_an_edited_ranker_can_be_pickled(cross_encoder):
    edited = cross_encoder.edited([Ablate("L1H2", by="resample"), Ablate("L0H0", by="mean")], reference=FRAME)
    again = pickle.loads(pickle.dumps(edited))
    assert_near(again.score(*PAIRS), edited.score(*PAIRS))


# Purity


@pytest.mark.bits
def test_edits_that_change_nothing_change_nothing(ranker):
    wanted = ranker.score(*PAIRS)
    np.testing.assert_array_equal(ranker.edited([Scale("L1H2", 1.0)]).score(*PAIRS), wanted)
    np.testing.assert_array_equal(ranker.edited([Add("L1.attn_out", np.ones(32), 0.0)]).score(*PAIRS), wanted)


@pytest.mark.bits
def test_the_ranker_is_left_alone(ranker):
    before, scores = ranker.about(fingerprint=True), ranker.score(*PAIRS)
    edited = ranker.edited([Ablate("L1H2", by="mean"), Scale("L0.mlp_out", 0.0)], reference=FRAME)
    AblationScorer(edited)(FRAME)
    assert ranker.about(fingerprint=True) == before
    assert not any("forward" in vars(module) for module in ranker.model.modules())
    np.testing.assert_array_equal(ranker.score(*PAIRS), scores)


def test_edits_one_after_the_other_are_both_at_once(ranker):
    one, other = Scale("L0H1", 0.3), Ablate("L2.mlp_out", by="mean", reference=FRAME)
    known = other.resolved(ranker, None)
    assert_near(ranker.edited([one, known]).score(*PAIRS), ranker.edited([one]).edited([known]).score(*PAIRS))
    assert_near(ranker.edited([one, known]).score(*PAIRS), ranker.edited([known]).edited([one]).score(*PAIRS))


def test_keys_shifted_by_a_constant_change_no_score(ranker):
    shifted = ranker.edited([Add("L1H2.k", np.full(8, 3.0))])
    assert_near(shifted.score(*PAIRS), ranker.score(*PAIRS))


def test_one_side_of_a_bi_encoder_is_edited_alone(bi_encoder):
    edits = [Ablate("L1H2"), Scale("L2.mlp_out", 0.4)]
    both, query, document = (bi_encoder.edited(edits, side=side) for side in ("both", "query", "document"))
    vectors = [one.query_inputs(QUERIES[:1])["query_vector"][0] for one in (bi_encoder, both, query, document)]
    assert_near(vectors[0], vectors[3])
    assert_near(vectors[1], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])
    composed = bi_encoder.edited(edits, side="query").edited(edits, side="document")
    assert_near(composed.score(*PAIRS), both.score(*PAIRS))
    facing = query.facing("query")
    assert_near(facing.score(*PAIRS), query.score(*PAIRS))
    assert facing.facing("document") == query


def test_the_queries_of_a_sparse_ranker_with_an_encoder_of_their_own_are_edited_in_it():
    ranker = Splade(masked_lm("bert"), query_model=masked_lm("bert", initializer_range=0.2))
    edits = [Ablate("L1H2"), Scale("L2.mlp_out", 0.4)]
    both, document = ranker.edited(edits), ranker.edited(edits, side="document")
    composed = document.edited(edits, side="query")
    assert_near(both.score(*PAIRS), composed.score(*PAIRS))
    assert np.abs(both.score(*PAIRS) - document.score(*PAIRS)).max() > 1e-4
    scorer = AblationScorer(ranker, heads=[[(1, 2), "L2.mlp_out"]], by="zero")
    wanted = ranker.edited([Ablate("L1H2"), Ablate("L2.mlp_out")]).score(*PAIRS)
    assert_near([scores[0] for scores in scorer(FRAME)["ablated_scores"]], wanted)


def test_either_stack_of_mono_t5_is_edited():
    ranker = MonoT5(build_t5())
    both = ranker.edited([Scale("L1H2", 0.2)]).on("decoder").edited([Scale("L1H2.cross", 0.2)])
    alone = ranker.on("decoder").edited([Scale("L1H2.cross", 0.2)])
    scores = [one.score(*PAIRS) for one in (ranker, alone, both, both.on("encoder"))]
    assert_near(scores[2], scores[3])
    assert np.abs(scores[0] - scores[1]).max() > 1e-5 and np.abs(scores[1] - scores[2]).max() > 1e-5


def test_steering_is_an_edit_of_documents(bi_encoder):
    vector = np.linspace(-1, 1, 32)
    steered = Steer(bi_encoder, {"L1.resid_post": vector}, 0.7)(FRAME)
    edited = bi_encoder.edited([Add("L1.resid_post", vector, 0.7)], side="document")
    assert_near(steered["score"], edited.score(*PAIRS))


# AblationScorer as a stage


@pytest.mark.parametrize("side", ["query", "document"])
def test_one_side_of_a_bi_encoder_is_ablated_alone(bi_encoder, side):
    found = AblationScorer(bi_encoder, "attn_out", "zero", side=side)(FRAME)
    wanted = bi_encoder.edited([Ablate("L1.attn_out")], side=side).score(*PAIRS)
    assert_near([scores[1] for scores in found["ablated_scores"]], wanted)


def test_sets_and_chosen_heads_have_their_places(cross_encoder):
    chosen = AblationScorer(cross_encoder, heads=[(1, 2), (2, 0)])(FRAME)
    whole = AblationScorer(cross_encoder)(FRAME)
    for some, all_ in zip(chosen["ablated_scores"], whole["ablated_scores"], strict=True):
        assert some.shape == (3, 4) and np.isfinite(some).sum() == 2
        assert_near(some[[1, 2], [2, 0]], all_[[1, 2], [2, 0]])
    pair = AblationScorer(cross_encoder, heads=[[(1, 2), (2, 0)]], by="zero")(FRAME)
    wanted = cross_encoder.edited([Ablate("L1H2"), Ablate("L2H0")]).score(*PAIRS)
    assert_near([scores[0] for scores in pair["ablated_scores"]], wanted)
    assert pair.attrs["mechir"]["sites"] == ["L1H2+L2H0"]


def test_batches_change_nothing(ranker):
    whole, small = (AblationScorer(ranker, batch_size=size)(FRAME) for size in (None, 2))
    assert_near(np.stack(whole["ablated_scores"]), np.stack(small["ablated_scores"]))


def test_the_frame_tells_what_was_ablated_how(bi_encoder):
    told = AblationScorer(bi_encoder, "mlp_out", "mean")(FRAME).attrs["mechir"]
    assert (
        told["sites"] == ["L0.mlp_out", "L1.mlp_out", "L2.mlp_out"]
        and told["scorer"]["reference"] == "the documents of the frame"
    )
    assert told["scorer"]["by"] == "mean" and told["ranker"]["ranker"] == "BiEncoder"
    assert AblationScorer(bi_encoder, by="zero").about()["scorer"]["reference"] == "none"
    json.dumps(told)


def test_results_are_kept_and_not_computed_again(bi_encoder, tmp_path, monkeypatch):
    scorer = AblationScorer(bi_encoder, reference=FRAME)
    wanted = scorer(FRAME)
    with pytest.raises(ValueError, match="give reference="):
        AblationScorer(bi_encoder).store(tmp_path / "none")
    first = scorer.store(tmp_path / "kept", shard_size=3)(FRAME.iloc[:4])
    monkeypatch.setattr(AblationScorer, "_scored", lambda self, queries, texts: pytest.fail("computed again"))
    again = scorer.store(tmp_path / "kept")(FRAME.iloc[:4])
    assert_near(np.stack(first["ablated_scores"]), np.stack(again["ablated_scores"]))
    monkeypatch.undo()
    whole = scorer.store(tmp_path / "kept")(FRAME).sort_values("docno")
    assert_near(np.stack(whole["ablated_scores"]), np.stack(wanted["ablated_scores"]))
    assert whole.attrs["mechir"]["sites"] == wanted.attrs["mechir"]["sites"]
    assert len(PatchResults(tmp_path / "kept")) == len(FRAME)
    with pytest.raises(ValueError, match="scores of ablations, which have no pairs"):
        PatchResults(tmp_path / "kept").report(tmp_path / "report.html")


def test_a_run_of_ablations_is_a_run_like_any_other(cross_encoder, tmp_path):
    scorer = AblationScorer(cross_encoder, by="zero")
    found = run_sweep(scorer, FRAME, tmp_path / "run", shard_size=2, verbose=False).frame().sort_values("docno")
    assert_near(np.stack(found["ablated_scores"]), np.stack(scorer(FRAME)["ablated_scores"]))


def test_a_cost_is_told_before_it_is_paid(bi_encoder):
    cost = AblationScorer(bi_encoder, by="zero").estimate(FRAME, seconds=0.2)
    assert cost.n_pairs == 7 and cost.n_sites == 12 and cost.seconds > 0
    assert cost.forward_passes == 7 * 13 + 3 * 13


def test_a_probe_without_time_still_scores_one_text(bi_encoder):
    assert AblationScorer(bi_encoder, by="zero").estimate(FRAME, seconds=0.0).seconds > 0


def test_an_empty_frame_keeps_its_columns(bi_encoder):
    out = AblationScorer(bi_encoder)(FRAME.iloc[:0])
    assert {"score", "rank", "ablated_scores"} <= set(out.columns) and not len(out)


def test_equal_scorers_are_equal(bi_encoder):
    assert AblationScorer(bi_encoder) == AblationScorer(bi_encoder) != AblationScorer(bi_encoder, by="zero")
    assert hash(AblationScorer(bi_encoder, reference=FRAME)) == hash(AblationScorer(bi_encoder, reference=FRAME.copy()))
    assert AblationScorer(bi_encoder, reference=FRAME) != AblationScorer(bi_encoder, reference=FRAME.iloc[:2])
    assert repr(AblationScorer(bi_encoder, by="zero")) == "AblationScorer(BiEncoder('BertModel'), by='zero')"


# Bad input


@pytest.mark.parametrize(
    ("edits", "options", "message"),
    [
        ([Scale("L9H0", 0.5)], {}, "no head"),
        ([Scale("L0.resid_past", 0.5)], {}, "resid_past"),
        ([Scale("L0H1.pattern", 0.5)], {}, "no site to edit"),
        ([Scale(("L0", 1), 0.5)], {}, "is no name of a site"),
        ([Add("L0H1", np.ones(9))], {}, r"of shape \(9,\); it should be \(8,\)"),
        ([Scale("L0H1", 0.5), Ablate("L0H1")], {}, "edited twice"),
        ([Ablate("L0H1", by="mean")], {}, "takes a reference"),
        ([Ablate("L0H1", by="mean")], {"reference": []}, "no texts"),
        ([Ablate("L0H1", by="resample")], {"reference": ["one text"]}, "only one text"),
        ([Ablate("L0H1")], {"side": "left"}, "unknown side"),
    ],
)
def test_edits_that_cannot_be_are_one_sentence(bi_encoder, edits, options, message):
    with pytest.raises(ValueError, match=message):
        bi_encoder.edited(edits, **options)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "0.5", None, True])
def test_a_factor_is_a_finite_number(factor):
    with pytest.raises(ValueError, match="factor of L0H1"):
        Scale("L0H1", factor)


def test_what_is_no_edit_is_refused(bi_encoder, cross_encoder):
    with pytest.raises(TypeError, match="no edit"):
        bi_encoder.edited(["L0H1"])
    with pytest.raises(ValueError, match="reads query and document together"):
        cross_encoder.edited([Ablate("L0H1")], side="query")
    with pytest.raises(ValueError, match="leave out side="):
        AblationScorer(cross_encoder, side="document")
    with pytest.raises(ValueError, match="no site to edit"):
        AblationScorer(bi_encoder, "pattern")
    with pytest.raises(ValueError, match="unknown by"):
        AblationScorer(bi_encoder, by="median")
    with pytest.raises(ValueError, match="give a reference frame"):
        cross_encoder.edited([Ablate("L0H1", by="mean")], reference=["a text"])
    with pytest.raises(ValueError, match="have no mlp_out of layer 0; give a frame or texts"):
        AblationScorer(bi_encoder, "mlp_out", reference=head_means(bi_encoder, FRAME))(FRAME)
    with pytest.raises(ValueError, match="have no attn_out of layer 1; give a frame or texts"):
        bi_encoder.edited([Ablate("L1.attn_out", by="mean", reference=head_means(bi_encoder, FRAME))])
    decoder = MonoT5(build_t5(), stack="decoder")
    for ask in (
        lambda: AblationScorer(decoder, "cross_head", "resample")(FRAME),
        lambda: decoder.edited([Ablate("L0H0.cross", by="resample")], reference=FRAME),
    ):
        with pytest.raises(ValueError, match="does not tell texts apart"):
            ask()
    with pytest.raises(ValueError, match="is edited"):
        _ = bi_encoder.edited([Ablate("L0H1")]).lens
