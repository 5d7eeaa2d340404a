"""Attribution patching, and its corrections: patched scores estimated from gradients at all sites at once.

What the estimates are, :class:`~pyterrier_mechir.patching.plan.Attribution` says. For a batch of pairs:

1. The runs that are patched are recorded with their graph, the runs that activations are taken from without.
2. One backward pass (with GradDrop, one for each layer) gives the gradient of each patched run's score at all sites.
3. Each site's estimate is the change of its activation, source less target, times the gradient, summed over its
   features and the positions of a slot; with the QK fix, for queries and keys, the softmax is recomputed instead.

Shapes: ``B`` runs, ``S`` positions, ``D`` features, ``G`` groups of features, ``H`` heads, ``P`` slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import gradients, gradients_dropping, needed_to_drop, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.patching.first_order import PlacesOfSites, estimate_at_once, missing, of_sites, of_slots
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Attribution, Plan
from pyterrier_mechir.patching.sweep import Runs

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


def attribute(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    method: Attribution = Attribution(),  # noqa: B008 - frozen
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site of each pair from gradients at all sites at once.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        method: how gradients are taken, with which of the corrections.
    """
    estimate = partial(_attributed, method=method)
    return estimate_at_once(ranker, pairs, query_inputs, plan, estimate, opened=opened, progress=progress)


def _attributed(opened: Opened, runs: Runs, places: PlacesOfSites, method: Attribution) -> tuple[Tensor, Tensor]:
    """Scores of runs, and estimates from the gradients of their targets."""
    anatomy, keys = opened.anatomy, list(places)
    n_layers = anatomy.n_layers
    refined = sorted({layer for layer, name in keys if method.qk_fix and name in ("q", "k")})
    at = list(dict.fromkeys([*keys, *((layer, "z") for layer in refined)]))
    seen = list(dict.fromkeys([*at, *((layer, name) for layer in refined for name in ("q", "k", "v"))]))
    added = anatomy.added
    graph = list(dict.fromkeys([*seen, *(needed_to_drop(at, n_layers, added) if method.grad_drop else [])]))
    target, source, scores = _both(opened, runs, graph, seen)
    fix = {layer: _Softmax(anatomy.n_heads, layer, target, source, runs) for layer in refined}

    def estimate(slopes: dict[Key, Tensor]) -> Tensor:
        values = {}
        for key in keys:
            layer, name = key
            if layer in fix and name in ("q", "k"):
                values[key] = fix[layer].estimates(name, slopes[layer, "z"])
            else:
                change = source[key] - target[key].detach()
                values[key] = of_slots(runs.slots, anatomy.groups(name), change * slopes[key])
        return of_sites(values, places)

    if not method.grad_drop:
        moved = estimate(gradients(target, at))
    else:
        passes = [estimate(slopes).abs() for slopes in gradients_dropping(target, at, n_layers, added)]
        towards = torch.sign(scores[runs.source] - scores[runs.target])
        moved = torch.stack(passes).sum(0) / (n_layers - 1) * towards[:, None, None]
    return scores, missing(scores[runs.target][:, None, None] + moved, runs.slots)


def _both(opened: Opened, runs: Runs, graph: list[Key], seen: list[Key]) -> tuple[Recording, Recording, Tensor]:
    """The targets with their graph, the sources without, and the scores of all runs."""
    target = record_graph(opened, runs.inputs(runs.target), graph)
    plain = Recording(target.scores.detach(), {key: target[key].detach() for key in seen})
    if isinstance(runs.source, Tensor):
        return target, plain.rows(runs.source), plain.scores
    with torch.no_grad():
        source = record(opened, runs.inputs(runs.source), seen)
    scores = torch.cat([plain.scores, source.scores])
    scores[runs.target], scores[runs.source] = plain.scores, source.scores
    return target, source, scores


class _Softmax:
    """The attention of a layer of targets, recomputed with queries or keys of their sources.

    Args:
        n_heads: of a layer, which attends by plain scaled dot products.
        layer: the layer.
        target: the targets, with q, k and v of the layer.
        source: the sources, with q and k.
        runs: what is patched.
    """

    def __init__(self, n_heads: int, layer: int, target: Recording, source: Recording, runs: Runs):
        self.n_heads, self.slots = n_heads, runs.slots
        self.q, self.k, self.v = (self._heads(target[layer, name].detach()) for name in ("q", "k", "v"))
        self.other = {name: self._heads(source[layer, name]) for name in ("q", "k")}
        self.attended = runs.inputs(runs.target)["attention_mask"].bool()[:, None, None, :]

    def _heads(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~self.attended, -torch.inf)

    def estimates(self, name: str, slope: Tensor) -> Tensor:
        """Estimates ``[B, P, H]`` for the queries or the keys, given the gradient at z ``[B, S, D]``."""
        slopes = self._heads(slope) @ self.v.transpose(-1, -2)
        logits = self._logits(self.q, self.k)
        now = logits.softmax(-1)
        if name == "q":
            change = self._logits(self.other["q"], self.k).softmax(-1) - now
            return of_slots(self.slots, self.n_heads, (change * slopes).sum(-1).transpose(1, 2))
        others = self._logits(self.q, self.other["k"])
        estimates = []
        for slot in self.slots:
            patched = torch.where(slot[:, None, None, :], others, logits).softmax(-1)
            estimates.append(((patched - now) * slopes).sum((-1, -2)))
        return torch.stack(estimates, dim=1)
