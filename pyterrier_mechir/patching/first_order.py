"""What estimates of first order have in common: where each site is, and sums over its features and positions.

Shapes: ``B`` runs, ``S`` positions, ``D`` features, ``G`` groups of features, ``P`` slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import SHARE, differentiable
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key
from pyterrier_mechir.models.resuming import at_positions
from pyterrier_mechir.models.sites import Site, SiteSet, activation_of
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import Runs, in_batches, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

PlacesOfSites = dict[Key, tuple[list[int], list[int]]]
"""For each activation, two lists of one length: the numbers of the sites in it, and which head, neuron or feature each
of these is (0 for a site that is the whole activation)."""

EstimateRuns = Callable[[Opened, Runs, PlacesOfSites], tuple[Tensor, Tensor]]
"""Scores ``[2n]`` of runs, and estimated scores ``[B, site, P]`` of their patched targets; called with gradients on."""


def estimate_at_once(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    estimate: EstimateRuns,
    *,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site of each pair, from a few passes that serve all sites.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        estimate: gives the scores of the runs of one batch, and the estimates of their patches.
    """
    if not plan.sites:
        return sweep(ranker, pairs, query_inputs, plan, opened=opened, progress=progress)
    model, places = opened or ranker.opened, places_of(plan.sites, ranker.n_layers)

    def score(runs: Runs) -> tuple[Tensor, Tensor]:
        with differentiable(model):
            return estimate(model, runs, places)

    budget = ranker.batch_tokens // (SHARE * len(plan.ways))
    return in_batches(ranker, model, pairs, query_inputs, plan, score, budget, progress)


def places_of(sites: Sequence[Site | SiteSet], n_layers: int) -> PlacesOfSites:
    """From each (layer, activation) that sites are in to the sites in it, and the slice of the activation of each."""
    places: PlacesOfSites = {}
    for number, one in enumerate(sites):
        for key, group in dict.fromkeys((activation_of(site, n_layers), site.number or 0) for site in one.members):
            numbers, groups = places.setdefault(key, ([], []))
            numbers.append(number)
            groups.append(group)
    return places


def of_slots(slots: Tensor, groups: int, products: Tensor) -> Tensor:
    """Sums ``[B, P, G]`` of values ``[B, S, D]`` over the features of a group and the positions of a slot."""
    by_group = products.unflatten(-1, (groups, -1)).sum(-1)
    n_slots = len(slots)
    slots = at_positions(slots, by_group.shape[1]).expand(n_slots, *by_group.shape[:2])
    return torch.einsum("pbs,bsg->bpg", slots.to(by_group.dtype), by_group)


def of_sites(values: dict[Key, Tensor], places: PlacesOfSites) -> Tensor:
    """Estimates ``[B, site, P]`` from those of each activation, ``[B, P, G]``; a set has the sum of its sites'."""
    first = next(iter(values.values()))
    n_sites = 1 + max(number for numbers, _ in places.values() for number in numbers)
    total = first.new_zeros((n_sites, *first.shape[:2]))
    for key, (numbers, groups) in places.items():
        total.index_add_(0, torch.tensor(numbers, device=total.device), values[key][..., groups].permute(2, 0, 1))
    return total.transpose(0, 1)


def missing(patched: Tensor, slots: Tensor) -> Tensor:
    """Patched scores ``[B, site, P]``, made NaN where a run has none of a slot's positions."""
    return patched.masked_fill(~slots.any(dim=2).T[:, None, :], torch.nan)
