"""Sites, or sets of sites, grouped by where runs with them replaced resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyterrier_mechir.models.recording import Key
from pyterrier_mechir.models.sites import Site, SiteSet, activation_of
from pyterrier_mechir.patching.paths import needed_to_patch


@dataclass(frozen=True)
class Step:
    """Sites, or sets of sites, from which runs resume at the same point, swept together as copies on the batch axis.

    Args:
        needs: what must be recorded of a run to patch them.
        sites: their numbers.
        heads: for each of them, the heads or neurons that it takes of each (layer, activation) that it replaces; 0 for
            the whole.
    """

    needs: tuple[Key, ...]
    sites: list[int]
    heads: list[dict[Key, list[int]]]

    @cached_property
    def activations(self) -> list[Key]:
        """The (layer, activation) that any of them replaces."""
        return sorted({key for taken in self.heads for key in taken})

    def takes(self, sites: Sequence[int], key: Key, n_groups: int) -> np.ndarray:
        """Which groups of features of an activation some of the sites take, bool ``[len(sites), n_groups]``."""
        of_site, found = dict(zip(self.sites, self.heads, strict=True)), np.zeros((len(sites), n_groups), dtype=bool)
        for row, site in enumerate(sites):
            found[row, of_site[site].get(key, [])] = True
        return found


def steps_of(sites: Sequence[Site | SiteSet], n_layers: int, receivers: Sequence[Site] = ()) -> list[Step]:
    """The steps of a sweep over some sites, on all paths or on those to receivers."""
    steps: dict[tuple[Key, ...], Step] = {}
    for number, one in enumerate(sites):
        taken: dict[Key, list[int]] = {}
        for site in one.members:
            taken.setdefault(activation_of(site, n_layers), []).append(site.number or 0)
        needs = tuple(needed_to_patch(list(taken), receivers))
        step = steps.setdefault(needs, Step(needs, [], []))
        step.sites.append(number)
        step.heads.append(taken)
    return list(steps.values())
