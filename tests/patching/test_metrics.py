"""Where a head looks as the metric: equal to the weights that the unmodified model gives under one hook at a time."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pandas as pd
import pytest
from reference import Reference, inputs_of
from small_models import QUERIES, TEXTS, build
from test_exactness import PAIRS, assert_same
from test_paths import path_patched
from tolerance import assert_near, widened

from pyterrier_mechir import AttentionTo, BiEncoder, CrossEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.models.sites import parse_site
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.positions import ALL, Positions

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURES = ("bert", "distilbert", "electra", "xlm-roberta", "modernbert")
SITES = ["L0H1", "L1H2", "L0.mlp_out", "L1.resid_pre", "L2.resid_pre", "embed", "L2H3.q", "L2H3.pattern", "L2H3.k"]


def metric_of(kind: str) -> AttentionTo:
    return AttentionTo((2, 3), "Q+", "EDIT") if kind == "cross" else AttentionTo((2, 3), "EDIT", "OTHER")


@cache
def make(architecture: str, kind: str):
    """A ranker, pairs, and for each pair the same model as one that gives the attention in place of a score."""
    model, tokenizer = build(architecture, kind == "cross")
    ranker = CrossEncoder((model, tokenizer)) if kind == "cross" else BiEncoder((model, tokenizer), pooling="cls")
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    eager.config.output_attentions = True
    references = []
    for pair in pairs:
        of, to = (pair.classes == TOKEN_CLASSES.index(name) for name in (metric_of(kind).of, metric_of(kind).to))

        def mass(out, inputs, of=of & pair.is_open, to=to & pair.is_open):
            return out.attentions[2][:, 3][:, of][:, :, to].sum(-1).mean(-1)

        runs = [inputs_of(side, tokenizer) for side in (pair.baseline, pair.perturbed)]
        references.append((Reference(eager, mass), runs))
    return ranker, pairs, references


def patch(ranker, pairs, kind: str, sites, direction="both", batch_size=None, positions=ALL, receivers=None):
    opened, rows, inputs = metric_of(kind).observed(ranker, pairs, [])
    ends = parse_receivers(receivers, ranker.anatomy)
    chosen = [parse_site(name) for name in sites]
    plan = Plan(chosen, direction, batch_size, positions=positions, receivers=ends)
    return sweep(ranker, rows, inputs, plan, opened=opened)


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_attention_of_a_head_is_that_of_the_plain_model(architecture, kind, batch_size):
    ranker, pairs, references = make(architecture, kind)
    sites = [name for name in SITES if "pattern" not in name]
    found = patch(ranker, pairs, kind, sites, batch_size=batch_size)
    for row, (reference, (x_b, x_p)) in enumerate(references):
        if (pairs[row].classes == TOKEN_CLASSES.index(metric_of(kind).of)).sum() == 0 or not pairs[row].is_open.all():
            continue
        assert_same(found.baseline[[row]], np.array([reference.score(x_b)]))
        assert_same(found.perturbed[[row]], np.array([reference.score(x_p)]))
        for values, target, source in ((found.denoise[row], x_b, x_p), (found.noise[row], x_p, x_b)):
            parts = [parse_site(name) for name in sites]
            assert_same(values, reference.patched_each(target, source, parts)[:, 0])


@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_paths_to_a_head_move_where_it_looks(architecture, kind):
    ranker, pairs, references = make(architecture, kind)
    senders, receivers = ["L0H1", "L1H2", "L1.mlp_out"], ["L2H3.q", "L2H3.k"]
    found = patch(ranker, pairs, kind, senders, "denoise", len(pairs), receivers=receivers)
    moved = 0.0
    for row in (1, 3):
        reference, (x_b, x_p) = references[row]
        if np.isnan(found.baseline[row]):
            continue
        assert_same(found.denoise[row], path_patched(reference, x_b, x_p, senders, receivers))
        moved = max(moved, np.abs(found.denoise[row] - found.baseline[row]).max())
    assert moved > 1e-5


def test_patching_the_weights_that_are_measured_gives_those_of_the_source():
    ranker, pairs, _ = make("bert", "cross")
    found = patch(ranker, pairs, "cross", ["L2H3.pattern", "L2H2.pattern", "L0.resid_pre"])
    there = ~np.isnan(found.baseline) & np.array([pair.is_open.all() for pair in pairs])
    assert there.any()
    assert_same(found.denoise[there][:, [0, 2]], found.perturbed[there][:, None] * np.ones(2))
    assert_same(found.noise[there][:, [0, 2]], found.baseline[there][:, None] * np.ones(2))
    assert_same(found.denoise[there][:, 1], found.baseline[there])


def test_positions_and_batches_are_as_for_the_score():
    ranker, pairs, _ = make("bert", "cross")
    sites = ["L0H1", "L1.resid_pre"]
    together = patch(ranker, pairs, "cross", sites, batch_size=len(pairs), positions=Positions.of("class"))
    for row, pair in enumerate(pairs):
        alone = patch(ranker, [pair], "cross", sites, positions=Positions.of("class"))
        for way in ("denoise", "noise"):
            np.testing.assert_allclose(
                getattr(alone, way)[0], getattr(together, way)[row], rtol=widened(1e-5), atol=widened(1e-5)
            )


@pytest.fixture
def frame():
    rows = zip(QUERIES[:4], TEXTS[:4], strict=True)
    return pd.DataFrame([{"qid": str(i), "query": q, "docno": f"d{i}", "text": t} for i, (q, t) in enumerate(rows)])


def test_the_stage_measures_attention_and_ranks_by_score(frame):
    ranker = CrossEncoder(build("bert", classifier=True))
    metric = AttentionTo((1, 2), "Q+", "EDIT")
    stage = PatchScorer(ranker, metric=metric, min_delta=0)
    perturbed = PerturbDocs(TFC1())(frame)
    out, plain = stage(perturbed), PatchScorer(ranker)(perturbed)
    assert_near(out["score"], plain["score"])
    assert ((out["score_perturbed"] > 0) & (out["score_perturbed"] < 1)).all()
    for values in out["patch_scores"]:
        assert values.shape == (3, 4)
        assert np.isfinite(values[0]).all() and np.isnan(values[1:]).all()
    assert out.attrs["mechir"]["metric"] == "AttentionTo(head=(1, 2), of='Q+', to='EDIT')"
    assert stage == PatchScorer(ranker, metric=AttentionTo((1, 2), "Q+", "EDIT"), min_delta=0) != PatchScorer(ranker)


def test_a_class_that_a_pair_lacks_is_missing(frame):
    ranker = BiEncoder(build("bert", classifier=False))
    out = (PerturbDocs(TFC1()) >> PatchScorer(ranker, metric=AttentionTo((1, 2), "Q+", "EDIT")))(frame)
    assert out[["score_baseline", "score_perturbed"]].isna().all(axis=None)
    assert np.isnan(np.stack(list(out["patch_scores"]))).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": AttentionTo((3, 0), "Q+", "EDIT")}, r"no head \(3, 0\) to look at"),
        ({"metric": AttentionTo((0, 0), "Q+", "EDIT"), "component": "mlp_out"}, "lies before the attention"),
        ({"metric": AttentionTo((2, 0), "Q+", "EDIT"), "receivers": "final"}, "final stream comes after"),
    ],
)
def test_what_cannot_be_measured_is_an_error_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(BiEncoder(build("bert", classifier=False)), **settings)


def test_unknown_classes_and_models_without_readable_attention_are_errors():
    with pytest.raises(ValueError, match="token class"):
        AttentionTo((0, 0), "query", "EDIT")
    with pytest.raises(ValueError, match="mpnet computes its attention outside"):
        PatchScorer(BiEncoder(build("mpnet", classifier=False)), metric=AttentionTo((1, 0), "CLS", "EDIT"))
