"""Where a patch replaces nothing by anything else, the score is that of the patched run to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gradients import Case, make, run
from noise import Noise
from test_exactness import PAIRS

from pyterrier_mechir import IntegratedGradients
from pyterrier_mechir.models.sites import Site, SiteSet
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

EMBED, STREAM = Site("embed", 0), Site("resid_pre", 0)
SITES = (EMBED, STREAM, SiteSet((EMBED, STREAM)), SiteSet((STREAM, Site("head", 1, 2))))
"""Sites that are the same wherever tokens are, a set of these, and one with a head, which is so nowhere."""

METHODS = ["exact", "attribution", IntegratedGradients(over="activations", steps=2)]


def same_tokens(case: Case) -> list[np.ndarray]:
    """At which positions the sides of each pair have the same token of the same type."""
    sides = [(pair.baseline, pair.perturbed) for pair in case.pairs]
    return [(one.ids == other.ids) & (one.types == other.types) for one, other in sides]


def assert_kept(found: SweepResult, site: int, where: list[np.ndarray]) -> None:
    """Patches of a site are without effect at these slots of each pair, and at no others that are patched."""
    for patched, scores in ((found.denoise, found.baseline), (found.noise, found.perturbed)):
        for values, score, kept in zip(patched, scores, where, strict=True):
            of_site = values[site]
            assert (of_site[kept & ~np.isnan(of_site)] == score).all()
            assert (of_site[~kept & ~np.isnan(of_site)] != score).all()


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
def test_a_token_that_both_sides_have_makes_no_difference(kind, method, batch_size):
    case = make("bert", kind)
    with Noise(1e-3):
        found = run(case, method, SITES[:3], positions="each", batch_size=batch_size)
    same = same_tokens(case)
    for site in range(3):
        assert_kept(found, site, same)


def test_a_set_makes_a_difference_where_one_of_its_sites_does():
    case = make("bert", "cross")
    with Noise(1e-3):
        found = run(case, "exact", SITES[3:], positions="each")
    assert_kept(found, 0, [np.zeros(len(pair.classes), dtype=bool) for pair in case.pairs])


def test_paths_from_what_is_the_same_make_no_difference():
    case = make("bert", "cross")
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    receivers = parse_receivers(["L1H2.q", "L2H0.v"], case.ranker.anatomy)
    with Noise(1e-3):
        plan = Plan(SITES[:1], "both", positions=Positions.of("each"), receivers=receivers)
        found = sweep(case.ranker, case.pairs, inputs, plan)
    for patched, scores in ((found.denoise, found.baseline), (found.noise, found.perturbed)):
        for values, score, kept in zip(patched, scores, same_tokens(case), strict=True):
            assert (values[0][kept & ~np.isnan(values[0])] == score).all()


def test_a_verified_site_keeps_the_score_of_the_estimates():
    """Which are computed in other batches than what verifies them."""
    case = make("bert", "cross")
    with Noise(1e-3):
        found = run(case, "attribution", SITES[:2], positions="each", screen=1)
    for site in range(2):
        assert_kept(found, site, same_tokens(case))


@pytest.mark.parametrize("repeats", [2, 3, 16])
def test_the_mean_of_what_is_the_same_is_the_same(repeats):
    scores = torch.randn(repeats, generator=torch.Generator().manual_seed(0)).numpy()
    dense = SweepResult(scores, scores, np.repeat(scores[:, None], 5, 1), None).mean_over(repeats)
    assert (dense.denoise == dense.baseline).all()
    apart = SweepResult(scores, scores, [np.full((3, 2), score) for score in scores], None).mean_over(repeats)
    assert (apart.denoise[0] == apart.baseline).all()
