"""Attribution patching and its corrections are those of plain autograd on the unmodified Hugging Face model."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType

import numpy as np
import pytest
import torch
from gradients import (
    Case,
    all_sites,
    attribution,
    cached,
    case_of,
    estimate,
    expected,
    make,
    run,
    score_of,
    slopes,
    slopes_at,
)
from reference import Inputs, Reference
from small_models import ARCHITECTURES, build
from test_exactness import PAIRS, assert_same, snapshot
from test_positions import SITES, assert_equal, slots_of
from tolerance import assert_near

from pyterrier_mechir import Attribution
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.patching.plan import method_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = range(len(PAIRS))
PUBLISHED = Attribution(qk_fix=False)
SETS = [parse_site(name) for name in ("L0H1+L0H3", "L1H0+L2H1.q+L1.mlp_out", "embed+L1N5")]


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_estimate_is_change_times_gradient_at_the_patched_run(architecture, kind):
    case = make(architecture, kind)
    found = run(case, PUBLISHED)
    for row in ROWS:
        assert_same(found.denoise[row], expected(case, attribution, row, noise=False)[:, 0])
        assert_same(found.noise[row], expected(case, attribution, row, noise=True)[:, 0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_estimates_are_not_all_the_same(architecture):
    case = make(architecture, "cross")
    found = run(case, PUBLISHED, [site for site in all_sites(case.ranker) if site.component in ("head", "q", "neuron")])
    moved = found.denoise - found.baseline[:, None]
    assert np.median(np.abs(moved)) > 1e-3
    for other in (np.roll(moved, 1, axis=0), np.roll(moved, 1, axis=1), found.noise - found.perturbed[:, None]):
        assert np.median(np.abs(moved - other)) > 1e-3


@pytest.mark.parametrize("positions", ["each", "class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize(
    ("architecture", "kind"), [("bert", "cross"), ("modernbert", "cls dot"), ("mpnet", "mean cosine")]
)
def test_a_slot_has_the_products_of_its_positions(architecture, kind, positions):
    case = make(architecture, kind)
    found = run(case, PUBLISHED, SITES, positions=positions)
    for row in ROWS:
        slots = slots_of(case.pairs[row], positions)
        assert_equal(found.denoise[row], expected(case, attribution, row, False, SITES, slots))
        assert_equal(found.noise[row], expected(case, attribution, row, True, SITES, slots))


def test_a_set_has_the_sum_of_its_sites():
    case = make("distilbert", "cross")
    found = run(case, PUBLISHED, SETS, positions="class")
    for row in ROWS:
        slots = slots_of(case.pairs[row], "class")
        assert_equal(found.denoise[row], expected(case, attribution, row, False, SETS, slots))


def test_an_activation_named_twice_in_a_set_counts_once():
    case = make("distilbert", "cross")
    twice = [parse_site(name) for name in ("L1H0+L1H0", "L0.resid_post+L1.resid_pre")]
    found = run(case, PUBLISHED, [*twice, Site("head", 1, 0), Site("resid_post", 0)])
    np.testing.assert_array_equal(found.denoise[:, :2], found.denoise[:, 2:])


METHODS = [Attribution(qk_fix, grad_drop) for grad_drop in (False, True) for qk_fix in (False, True)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_direction_alone_and_other_batches_give_the_same(method):
    case = make("bert", "cross")
    together = run(case, method)
    for name, other in (("denoise", "noise"), ("noise", "denoise")):
        alone = run(case, method, direction=name)
        assert_same(getattr(alone, name), getattr(together, name))
        assert_same(alone.baseline, together.baseline)
        assert_same(alone.perturbed, together.perturbed)
        assert getattr(alone, other) is None
    singles = run(case, method, batch_size=1)
    by_length = run(case, method, batch_size=None)
    for found in (singles, by_length):
        assert_same(found.denoise, together.denoise)
        assert_same(found.noise, together.noise)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_identical_sides_have_no_effect(method):
    case = make("bert", "cross")
    same = [replace(pair, perturbed=pair.baseline) for pair in case.pairs]
    found = run(case._replace(pairs=same), method, direction="denoise", positions="class")
    for values, score in zip(found.denoise, found.baseline, strict=True):
        assert_near(values[~np.isnan(values)], np.full((~np.isnan(values)).sum(), score))


def test_no_sites_and_no_pairs_give_empty_results():
    case = make("bert", "cross")
    assert run(case, PUBLISHED, sites=[]).denoise.shape == (len(PAIRS), 0)
    assert run(case, PUBLISHED, rows=[]).denoise.shape == (0, len(all_sites(case.ranker)))


def weights_apart(case: Case) -> list[bool]:
    return [weight.requires_grad for weight in case.ranker.model.parameters()]


@pytest.mark.parametrize("failing_call", [None, 1, 2])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_model_is_left_as_it_was(method, failing_call, monkeypatch):
    case = case_of(*build("bert", True), "cross")
    for weight in list(case.ranker.model.parameters())[::3]:
        weight.requires_grad_(False)
    before, taken = snapshot(case.ranker.model), weights_apart(case)
    last = case.ranker.anatomy.layers[-1]
    calls = []

    def fail(layer, *args, **kwargs):
        calls.append(any(weight.requires_grad for weight in layer.parameters()))
        assert weights_apart(case) == taken
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return type(layer).forward(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(last.__dict__, "forward", MethodType(fail, last))
        if failing_call is None:
            run(case, method, direction="denoise")
        else:
            with pytest.raises(RuntimeError, match="out of memory"):
                run(case, method, direction="denoise")
    assert calls and not any(calls)
    assert snapshot(case.ranker.model) == before
    assert weights_apart(case) == taken
    assert all(weight.grad is None for weight in case.ranker.model.parameters())


@pytest.mark.parametrize(("direction", "forwards"), [("denoise", 2), ("noise", 2), ("both", 1)])
def test_a_batch_takes_two_forward_passes_and_one_backward_for_all_sites(direction, forwards, monkeypatch):
    case = make("bert", "cross")
    calls, backwards = [], []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backwards.append(1) or grad(*args, **kwargs))
    layer = case.ranker.anatomy.layers[0]
    with layer.register_forward_hook(lambda *args: calls.append(1)):
        run(case, PUBLISHED, direction=direction)
    assert (len(calls), len(backwards)) == (forwards, 1)


# GradDrop


@cached
def slopes_holding(reference: Reference, target: Inputs, dropped: int):
    """Gradients where what a layer adds to the stream is a constant."""
    hooks = (reference.hook(output, dropped, torch.Tensor.detach) for output in ("attn_out", "mlp_out"))
    return slopes(reference, target, *hooks)


def dropping(case: Case, row: int, noise: bool, sites, slots) -> np.ndarray:
    """Patched scores by GradDrop: the sum over layers of absolute estimates, over L - 1, towards the source."""
    reference = case.references[row].reference
    target, source = case.references[row].runs(case.pairs[row])[:: -1 if noise else 1]
    total = np.zeros((len(sites), len(slots)))
    for dropped in range(reference.n_layers):

        def held(reference, target, source, site, positions, dropped=dropped):
            at = slopes_holding(reference, target, dropped)
            return estimate(at, slopes_at(reference, source), reference, site, positions)

        total += np.abs(expected(case, held, row, noise, sites, slots) - reference.score(target))
    towards = np.sign(reference.score(source) - reference.score(target))
    return reference.score(target) + towards * total / (reference.n_layers - 1)


@pytest.mark.parametrize(
    ("architecture", "kind", "positions"),
    [
        *((name, "cross", "all") for name in ARCHITECTURES),
        ("bert", "cls dot", "class"),
        ("modernbert", "cross", "class"),
    ],
)
def test_grad_drop_holds_one_layer_at_a_time(architecture, kind, positions):
    case = make(architecture, kind)
    sites = [*SITES, SETS[0], SETS[1]]
    found = run(case, Attribution(qk_fix=False, grad_drop=True), sites, positions=positions)
    for row in (0, 2, 3):
        slots = [None] if positions == "all" else slots_of(case.pairs[row], positions)
        for way, noise in (("denoise", False), ("noise", True)):
            of_pair = getattr(found, way)[row].reshape(len(sites), -1)
            assert_equal(of_pair, dropping(case, row, noise, sites, slots))


@pytest.mark.parametrize("site", [Site("head", 1, 2), Site("attn_out", 2), Site("resid_post", 2)], ids=lambda s: s.name)
def test_grad_drop_of_a_site_alone_is_that_among_all(site):
    case = make("bert", "cross")
    sites = all_sites(case.ranker)
    together = run(case, Attribution(qk_fix=False, grad_drop=True), sites)
    alone = run(case, Attribution(qk_fix=False, grad_drop=True), [site])
    assert_same(alone.denoise[:, 0], together.denoise[:, sites.index(site)])


def test_effects_that_cancel_hide_from_the_gradient_but_not_from_grad_drop():
    """The last MLP is scaled until it undoes, to first order, what a head of the first layer does without it."""
    model, tokenizer = build("modernbert", classifier=False)
    case = case_of(model, tokenizer, "cls dot")
    weight = model.layers[2].mlp.Wo.weight
    whole = weight.detach().clone()

    def moved(scale: float, method) -> float:
        with torch.no_grad():
            weight.copy_(scale * whole)
        found = run(case, method, [Site("head", 0, 0)], "denoise", rows=[1])
        return float(found.denoise[0, 0] - found.baseline[0])

    scales = np.arange(0.5, 12, 0.5)
    signs = np.sign([moved(scale, PUBLISHED) for scale in scales])
    change = np.flatnonzero(np.diff(signs))[0]
    low, high = scales[change], scales[change + 1]
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sign(moved(middle, PUBLISHED)) == signs[change] else (low, middle)
    assert abs(moved(low, PUBLISHED)) < 1e-3
    assert abs(moved(low, Attribution(qk_fix=False, grad_drop=True))) > 0.1


def test_grad_drop_needs_two_layers():
    model, tokenizer = build("bert", True, num_hidden_layers=1)
    with pytest.raises(ValueError, match="only one"):
        method_of(Attribution(qk_fix=False, grad_drop=True), case_of(model, tokenizer, "cross").ranker.anatomy)


def test_scores_are_those_of_the_runs():
    case = make("bert", "cls dot")
    found = run(case, PUBLISHED, [Site("head", 0, 0)])
    for row in ROWS:
        reference = case.references[row].reference
        x_b, x_p = case.references[row].runs(case.pairs[row])
        assert_same(found.baseline[row : row + 1], np.array([score_of(reference, x_b).item()]))
        assert_same(found.perturbed[row : row + 1], np.array([score_of(reference, x_p).item()]))
