"""The output weights of chosen heads, neurons or MLPs as what is learned in a ranker."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import comb, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyterrier_mechir.interventions.vectors import place_of
from pyterrier_mechir.models.sites import parse_site
from pyterrier_mechir.rankers.base import Ranker

_INTO = ("z", "cross_z", "mlp_post")
"""Activations that the map reads whose columns are a site's output weights."""

_OUT = ("attn_out", "cross_attn_out", "mlp_out")
"""Activations that such a map gives, all of whose weights are the site's."""


class Tuning:
    """A copy of a ranker's model of which the output weights of some sites are learned.

    Args:
        ranker: the ranker, which is left alone.
        sites: names of sites.
        l2: how hard weights are pulled back to what they were: what the loss gets for each unit of the mean, over
            sites, of the squared change as a share of the squared weights.
    """

    def __init__(self, ranker: Ranker, sites: Sequence[str], l2: float):
        self.l2, self.sites = l2, tuple(sites)
        model: Any = deepcopy(ranker.model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.ranker = ranker.with_model(model)
        self.ranker.name = f"{ranker.name}-tuned"
        self.columns, self.modules = [], []
        for site in self.sites:
            module, columns = output_weights(self.ranker, site)
            if not module.weight.requires_grad:
                module.weight = nn.Parameter(module.weight.detach().clone())
            self.modules.append(module)
            self.columns.append(columns)
        self.originals = [module.weight.detach()[:, at].clone() for module, at in self._parts]
        self.leaves: list[Tensor] = list({id(module): module.weight for module in self.modules}.values())
        self.numbers = [torch.zeros_like(original).requires_grad_() for original in self.originals]

    @property
    def _parts(self) -> list[tuple[Any, slice]]:
        return list(zip(self.modules, self.columns, strict=True))

    def put(self) -> None:
        with torch.no_grad():
            for (module, at), original, change in zip(self._parts, self.originals, self.numbers, strict=True):
                module.weight[:, at] = original + change

    def gradients(self, of_leaves: Sequence[Tensor]) -> list[Tensor]:
        known = {id(leaf): gradient for leaf, gradient in zip(self.leaves, of_leaves, strict=True)}
        return [known[id(module.weight)][:, at] for module, at in self._parts]

    def penalty(self) -> Tensor:
        shares = [
            change.square().sum() / original.square().sum().clamp_min(1e-12)
            for change, original in zip(self.numbers, self.originals, strict=True)
        ]
        return self.l2 * torch.stack(shares).mean()

    def finished(self) -> Ranker:
        """The ranker with its learned weights, none of which takes gradients any more."""
        for leaf in self.leaves:
            leaf.requires_grad_(False)
        return self.ranker


def output_weights(ranker: Ranker, site: str) -> tuple[Any, slice]:
    """The linear map that writes a site's output into the residual stream, and the columns of its weights.

    Args:
        ranker: whose model's own modules are looked up.
        site: its name: ``L3H4``, ``L3N17``, ``L5.mlp_out`` or ``L5.attn_out``.

    Raises:
        ValueError: the model has no such site, or none with output weights, or weights that cannot be learned.
    """
    (layer, activation), columns = place_of(ranker, site)
    if activation not in (*_INTO, *_OUT):
        raise ValueError(f"{site!r} has no output weights; name heads, neurons, attn_out or mlp_out, such as 'L3H4'.")
    module = ranker.anatomy.of(ranker.model).port(layer, activation).module
    if type(module) is not nn.Linear or module.weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the output weights of {site!r} are in a {type(module).__name__} of {module.weight.dtype}, and are not "
            "learned; give a ranker of plain linear maps in float32."
        )
    return module, columns if activation in _INTO else slice(0, module.weight.shape[1])


def check_sites(ranker: Ranker, sites: Sequence[str]) -> tuple[str, ...]:
    """Check sites that are to be tuned.

    Raises:
        ValueError: none, one that cannot be tuned, or two that share weights.
    """
    named = (sites,) if isinstance(sites, str) else tuple(sites)
    if not named:
        raise ValueError("no sites to tune; give some, such as sites=['L3H4', 'L5.mlp_out'].")
    taken: dict[Any, str] = {}
    for site in named:
        module, columns = output_weights(ranker, site)
        for column in range(columns.start, columns.stop):
            other = taken.setdefault((id(module), column), site)
            if other != site or named.count(site) > 1:
                raise ValueError(f"{other} and {site} are of the same weights; leave one of them out.")
    return named


def random_sites(ranker: Ranker, sites: Sequence[str], n: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Random sets of as many sites of the same kinds in the same layers, of MLPs in any layers.

    A set may have some of the sites in it, as a random one would, but not all of them, and none comes twice.

    Args:
        ranker: the ranker.
        sites: the sites.
        n: how many sets.
        rng: draws them.

    Returns:
        The sets; fewer than ``n`` where there are not so many.

    Raises:
        ValueError: there is no other set.
    """
    pools: dict[tuple[str, ...], int] = {}
    for site in sites:
        pool = _alike(ranker, site)
        pools[pool] = pools.get(pool, 0) + 1
    n_sets = prod(comb(len(pool), size) for pool, size in pools.items()) - 1
    if not n_sets:
        raise ValueError(f"there are no other sites like {', '.join(sites)} to draw, as a control; give n_random=0.")
    drawn: list[tuple[str, ...]] = []
    seen = {frozenset(sites)}
    while len(drawn) < min(n, n_sets):
        found = [pool[at] for pool, size in pools.items() for at in rng.permutation(len(pool))[:size]]
        if frozenset(found) not in seen:
            seen.add(frozenset(found))
            drawn.append(tuple(found))
    return drawn


def _alike(ranker: Ranker, site: str) -> tuple[str, ...]:
    """The sites that one is drawn from."""
    at: Any = parse_site(site)
    if at.number is None:
        return tuple(at._replace(layer=layer).name for layer in range(ranker.n_layers))
    (_, activation), _ = place_of(ranker, site)
    return tuple(at._replace(number=number).name for number in range(ranker.anatomy.groups(activation)))
