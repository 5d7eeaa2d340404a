"""What estimates of first order have in common: where each site is, and sums over its features and positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import Key
from pyterrier_mechir.models.replay import at_positions
from pyterrier_mechir.models.sites import Site, SiteSet, activation_of

Parts = dict[Key, tuple[list[int], list[int]]]
"""For each activation, the numbers of the sites that have a part in it, and the head or neuron that is the part."""


def _parts(sites: Sequence[Site | SiteSet], n_layers: int) -> Parts:
    parts: Parts = {}
    for number, site in enumerate(sites):
        for key, head in dict.fromkeys((activation_of(part, n_layers), part.head or 0) for part in site.parts):
            numbers, heads = parts.setdefault(key, ([], []))
            numbers.append(number)
            heads.append(head)
    return parts


def _of_slots(slots: Tensor, groups: int, products: Tensor) -> Tensor:
    """Sums ``[B, P, G]`` of values ``[B, S, D]`` over the features of a group and the positions of a slot."""
    by_group = products.unflatten(-1, (groups, -1)).sum(-1)
    n_slots = len(slots)
    slots = at_positions(slots, by_group.shape[1]).expand(n_slots, *by_group.shape[:2])
    return torch.einsum("pbs,bsg->bpg", slots.to(by_group.dtype), by_group)


def _of_sites(values: dict[Key, Tensor], parts: Parts, n_sites: int) -> Tensor:
    """Estimates ``[B, site, P]`` from those of each activation, ``[B, P, G]``."""
    first = next(iter(values.values()))
    total = first.new_zeros((n_sites, *first.shape[:2]))
    for key, (numbers, heads) in parts.items():
        total.index_add_(0, torch.tensor(numbers, device=total.device), values[key][..., heads].permute(2, 0, 1))
    return total.transpose(0, 1)


def _missing(patched: Tensor, slots: Tensor) -> Tensor:
    """Patched scores, missing where a run has none of a slot's positions."""
    return patched.masked_fill(~slots.any(dim=2).T[:, None, :], torch.nan)
