"""Integrated gradients, over inputs or activations, are those of plain autograd, and tend to what they should."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from gradients import Slopes, all_sites, cached, expected, make, product, run, score_of, slopes, slopes_at
from reference import Inputs, Reference
from small_models import ARCHITECTURES
from test_exactness import PAIRS, assert_same, snapshot
from test_positions import SITES, assert_equal, slots_of
from tolerance import widened

from pyterrier_mechir import IntegratedGradients
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = range(len(PAIRS))
STEPS = 3
SETS = [parse_site(name) for name in ("L0H1+L0H3", "L1H0+L2H1.q+L1.mlp_out", "embed+L1N5")]


def midpoints(steps: int) -> list[float]:
    return [(k - 0.5) / steps for k in range(1, steps + 1)]


@cached
def slopes_between(reference: Reference, target: Inputs, source: Inputs, way: float) -> Slopes:
    """Gradients of the target with word embeddings part of the way to those of the source."""
    start, end = (slopes_at(reference, inputs)["embed", 0][0] for inputs in (target, source))

    def between(value):
        return (value - value.detach()) + (1 - way) * start + way * end

    return slopes(reference, target, reference.hook("embed", 0, between))


def over_inputs(reference: Reference, target: Inputs, source: Inputs, site: Site, positions=None) -> float:
    key = site.component, site.layer
    change = slopes_at(reference, source)[key][0] - slopes_at(reference, target)[key][0]
    gradients = [slopes_between(reference, target, source, way)[key][1] for way in midpoints(STEPS)]
    return product(reference, change, torch.stack(gradients).mean(0), site, positions)


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_averaged_between_the_word_embeddings(architecture, kind):
    case = make(architecture, kind)
    found = run(case, IntegratedGradients(steps=STEPS))
    for row in (2, 3):
        assert_same(found.denoise[row], expected(case, over_inputs, row, noise=False)[:, 0])
        assert_same(found.noise[row], expected(case, over_inputs, row, noise=True)[:, 0])


@pytest.mark.parametrize("positions", ["each", "class", [0, 2, -1, 60]], ids=str)
def test_slots_and_sets_are_sums_of_products(positions):
    case = make("electra", "cross")
    sites = [*SITES, *SETS]
    found = run(case, IntegratedGradients(steps=STEPS), sites, positions=positions)
    for row in (1, 2, 3):
        slots = slots_of(case.pairs[row], positions)
        assert_equal(found.denoise[row], expected(case, over_inputs, row, False, sites, slots))
        assert_equal(found.noise[row], expected(case, over_inputs, row, True, sites, slots))


def test_integrating_over_the_inputs_is_complete_at_the_inputs():
    case = make("bert", "cross")
    errors = []
    for steps in (4, 16, 64):
        found = run(case, IntegratedGradients(steps=steps), [Site("embed", 0)], rows=[0, 1, 3])
        errors.append(np.abs(found.denoise[:, 0] - found.perturbed).max())
    assert errors[0] > 4 * errors[1] > 8 * errors[2]
    assert errors[2] < 1e-3


def along(reference: Reference, target: Inputs, source: Inputs, site: Site | SiteSet, positions=None) -> float:
    """The mean over midpoints of the derivative of the score by how far a site goes from the target's value."""
    places = slice(None) if positions is None else positions
    total = 0.0
    for at in midpoints(STEPS):
        way = torch.tensor(at, requires_grad=True)
        with ExitStack() as stack:
            for part in site.members:
                taken = slopes_at(reference, source)[part.component, part.layer][0]

                def mixed(value, part=part, taken=taken, way=way):
                    features = reference.part(part.component, part.number, value.shape[-1])
                    weight = torch.zeros_like(value)
                    weight[:, places, features] = 1
                    return value + way * weight * (taken - value)

                stack.enter_context(reference.hook(part.component, part.layer, mixed))
            score = score_of(reference, target)
        total += torch.autograd.grad(score, way)[0].item() / STEPS
    return total


def expected_along(case, row: int, noise: bool, sites, slots) -> np.ndarray:
    reference = case.references[row].reference
    target, source = case.references[row].runs(case.pairs[row])[:: -1 if noise else 1]
    score = reference.score(target)
    return np.array(
        [
            [np.nan if slot == [] else score + along(reference, target, source, site, slot) for slot in slots]
            for site in sites
        ]
    )


@pytest.mark.parametrize(("architecture", "kind"), [("bert", "cls dot"), ("modernbert", "mean cosine")])
def test_each_site_is_integrated_along_its_own_way(architecture, kind):
    case = make(architecture, kind)
    method = IntegratedGradients(over="activations", steps=STEPS)
    sites = [*SITES, *SETS]
    found = run(case, method, sites)
    for row in (1, 3):
        assert_same(found.denoise[row], expected_along(case, row, False, sites, [None])[:, 0])
        assert_same(found.noise[row], expected_along(case, row, True, sites, [None])[:, 0])


def test_a_slot_is_integrated_at_its_positions_only():
    case = make("bert", "cls dot")
    found = run(case, IntegratedGradients(over="activations", steps=STEPS), SITES[::3], "denoise", positions="class")
    for row in (1, 3):
        slots = slots_of(case.pairs[row], "class")
        assert_equal(found.denoise[row], expected_along(case, row, False, SITES[::3], slots))


@pytest.mark.parametrize(
    ("architecture", "positions"), [("bert", "all"), ("modernbert", "all"), ("distilbert", [0, -1])], ids=str
)
def test_integrating_over_activations_is_complete(architecture, positions):
    """The estimates tend to the exact patched scores."""
    case = make(architecture, "cross")
    sites = [*SITES[::3], *SETS]

    def flat(method) -> np.ndarray:
        found = run(case, method, sites, positions=positions, rows=[1, 3])
        return np.concatenate([np.ravel(values) for way in (found.denoise, found.noise) for values in way])

    exact = flat("exact")
    errors = [np.abs(flat(IntegratedGradients("activations", steps)) - exact) for steps in (3, 27)]
    assert (np.isnan(exact) == np.isnan(errors[0])).all()
    means = [np.nanmean(error) for error in errors]
    assert means[0] > 3 * means[1]
    assert np.nanmax(errors[1]) < 2e-2
    assert means[1] < 1e-3


@pytest.mark.parametrize("over", ["inputs", "activations"])
def test_other_batches_and_single_directions_give_the_same(over, monkeypatch):
    case = make("bert", "cross")
    method = IntegratedGradients(over, 2)
    sites = all_sites(case.ranker)[::9]
    together = run(case, method, sites)
    monkeypatch.setattr(case.ranker, "batch_tokens", 150)
    for batch_size in (1, 3, None):
        found = run(case, method, sites, batch_size=batch_size)
        assert_same(found.denoise, together.denoise)
        assert_same(found.noise, together.noise)
    assert_same(run(case, method, sites, "noise").noise, together.noise)


@pytest.mark.parametrize("over", ["inputs", "activations"])
def test_identical_sides_have_no_effect(over):
    case = make("bert", "cross")
    same = [replace(pair, perturbed=pair.baseline) for pair in case.pairs]
    found = run(case._replace(pairs=same), IntegratedGradients(over, 2), direction="denoise")
    np.testing.assert_allclose(
        found.denoise, np.broadcast_to(found.baseline[:, None], found.denoise.shape), atol=widened(1e-6)
    )


@pytest.mark.parametrize("over", ["inputs", "activations"])
def test_the_model_is_left_as_it_was(over):
    case = make("electra", "cls dot")
    before, taken = snapshot(case.ranker.model), [weight.requires_grad for weight in case.ranker.model.parameters()]
    run(case, IntegratedGradients(over, 1))
    assert snapshot(case.ranker.model) == before
    assert [weight.requires_grad for weight in case.ranker.model.parameters()] == taken
    assert all(weight.grad is None for weight in case.ranker.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"), [({"over": "weights"}, "unknown over 'weights'"), ({"steps": 0}, "steps is 0")]
)
def test_unusable_options_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        IntegratedGradients(**options)
