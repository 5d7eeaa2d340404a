"""The QK fix recomputes the softmax of any attention, and is what attribution does unless told otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gradients import case_of, expected, fixed, make, run
from many_rankers import ranker
from small_models import build
from test_column import moved, pairs_of
from test_exactness import PAIRS
from test_positions import assert_equal, slots_of
from tolerance import assert_near

from pyterrier_mechir import Attribution, FairAttention, PatchScorer
from pyterrier_mechir.models.sites import Site, parse_site, select_sites
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import rank_correlation
from pyterrier_mechir.patching.plan import Plan, method_of
from pyterrier_mechir.text.positions import Positions

pytestmark = pytest.mark.usefixtures("one_thread")

FIXED, PUBLISHED = Attribution(qk_fix=True), Attribution(qk_fix=False)
FOLLOWED = ["bert", "distilbert", "electra", "roberta", "xlm-roberta", "modernbert"]
KINDS = ["bi mean cosine", "cross roberta", "bi euclidean", "bi qwen3", "bi llama", "bi gemma2", "bi t5", "mono t5"]
WAYS = (("denoise", False), ("noise", True))


def swept(kind, method, positions="all", direction="both", batch_size=None, components=("q", "k"), pairs=None):
    """Patches of queries and keys of every head, or of what heads of a decoder read of the encoder."""
    found = ranker(kind)
    aligned, inputs = pairs_of(found) if pairs is None else pairs
    sites = select_sites(list(components), found.anatomy).patched
    plan = Plan(sites, direction, batch_size, Positions.of(positions))
    return sweeper(method_of(method, found.anatomy))(found, aligned, inputs, plan)


@pytest.mark.parametrize("positions", ["all", "class", "each", [0, -1, 0]], ids=str)
@pytest.mark.parametrize(("architecture", "kind"), [*((name, "cross") for name in FOLLOWED), ("bert", "mean cosine")])
def test_an_estimate_is_what_heads_give_for_the_sources_queries_times_the_gradient(architecture, kind, positions):
    case = make(architecture, kind)
    names = ("L0H1.q", "L0H1.k", "L2H3.k", "L2H0.q", "L1H2", "L1H0+L2H1.q+L1.mlp_out", "L1H2.q+L1H2.k")
    sites = [parse_site(name) for name in names]
    found = run(case, FIXED, sites, positions=positions)
    for row in range(len(PAIRS)) if positions != "each" else [1, 3]:
        slots = [None] if positions == "all" else slots_of(case.pairs[row], positions)
        for way, noise in WAYS:
            of_pair = getattr(found, way)[row].reshape(len(sites), -1)
            assert_equal(of_pair, expected(case, fixed, row, noise, sites, slots))


@pytest.mark.parametrize("kind", KINDS)
def test_one_direction_alone_and_other_batches_give_the_same(kind):
    for positions in ("all", "each"):
        together = swept(kind, FIXED, positions)
        batched = swept(kind, FIXED, positions, batch_size=1)
        for way, _ in WAYS:
            wanted = list(getattr(together, way))
            for other in (batched, swept(kind, FIXED, positions, direction=way)):
                for one, two in zip(getattr(other, way), wanted, strict=True):
                    assert_near(one, two)


@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_sides_that_are_the_same_move_nothing(kind):
    pairs, inputs = pairs_of(ranker(kind))
    same = [replace(pair, perturbed=pair.baseline) for pair in pairs], inputs
    for positions in ("all", "class", "each"):
        found = swept(kind, FIXED, positions, pairs=same)
        for values, score in zip(found.denoise, found.baseline, strict=True):
            known = values[~np.isnan(values)]
            np.testing.assert_array_equal(known, np.full_like(known, score))


@pytest.mark.parametrize("positions", ["all", "each"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_ranks_sites_no_worse_than_the_gradient(kind, positions):
    exact, plain, fix = (np.nan_to_num(moved(swept(kind, method, positions))) for method in ("exact", PUBLISHED, FIXED))
    assert np.abs(fix - plain).max() > 1e-4
    assert rank_correlation(fix, exact) > min(0.9, rank_correlation(plain, exact))
    assert np.abs(fix - exact).sum() < 1.02 * np.abs(plain - exact).sum()


@pytest.mark.parametrize("component", ["q", "k"])
def test_saturated_attention_hides_from_the_gradient_but_not_from_the_qk_fix(component):
    model, tokenizer = build("bert", classifier=True)
    query = model.bert.encoder.layer[-1].attention.self.query
    with torch.no_grad():
        query.weight.mul_(20)
        query.bias.mul_(20)
    case = case_of(model, tokenizer, "cross")
    sites = [Site(component, 2, head) for head in range(case.ranker.n_heads)]

    def moved(method) -> np.ndarray:
        found = run(case, method, sites)
        changes = found.denoise - found.baseline[:, None], found.noise - found.perturbed[:, None]
        return np.stack(changes).ravel()

    exact, plain, fix = (moved(method) for method in ("exact", PUBLISHED, "attribution"))
    hidden = (np.abs(exact) > 2e-3) & (np.abs(plain) < 0.02 * np.abs(exact))
    assert hidden.any()
    np.testing.assert_allclose(fix[hidden], exact[hidden], rtol=0.6)
    assert np.corrcoef(fix, exact)[0, 1] > 0.95
    assert np.abs(fix - exact).mean() < 0.2 * np.abs(plain - exact).mean()


def test_the_default_is_the_fix_where_attention_can_be_followed():
    for architecture, wanted in (("bert", True), ("modernbert", True), ("mpnet", False)):
        anatomy = make(architecture, "cross").ranker.anatomy
        for method in ("attribution", Attribution()):
            assert method_of(method, anatomy) == Attribution(qk_fix=wanted)
    found = ranker("bi mean cosine")
    edited = found.edited([FairAttention()])
    assert PatchScorer(found, "q", method="attribution").method == FIXED
    assert PatchScorer(edited, "q", method="attribution").method == PUBLISHED


def test_the_fix_is_refused_where_attention_cannot_be_followed_and_queries_or_keys_are_patched():
    found, edited = make("mpnet", "cross").ranker, ranker("bi mean cosine").edited([FairAttention()])
    with pytest.raises(ValueError, match=r"qk_fix recomputes the softmax .* outside transformers' attention interface"):
        PatchScorer(found, ["head", "k"], method=FIXED)
    with pytest.raises(ValueError, match=r"qk_fix recomputes the softmax .* edited after the softmax"):
        PatchScorer(edited, heads=["L0H1+L0H0.q"], method=FIXED)
    assert PatchScorer(found, ["head", "v"], method=FIXED).method == FIXED


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_attrs_say_whether_the_softmax_is_recomputed(architecture):
    found = make(architecture, "cross").ranker
    told = {name: PatchScorer(found, name, method="attribution").measure.told(None) for name in ("q", "head")}
    assert told["q"]["qk_fix"] is (architecture == "bert")
    assert "qk_fix" not in told["head"]
    assert "methods" not in told["q"]
