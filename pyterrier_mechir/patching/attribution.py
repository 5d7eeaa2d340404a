"""First-order estimates of patched scores: attribution patching, its corrections, and gradients averaged over inputs.

What they are, :class:`~pyterrier_mechir.patching.plan.Attribution` and
:class:`~pyterrier_mechir.patching.plan.IntegratedGradients` say.

Shapes: ``B`` runs, ``S`` positions, ``D`` features, ``G`` groups of features, ``H`` heads, ``P`` slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import (
    SHARE,
    Key,
    differentiable,
    gradients,
    gradients_dropping,
    needed_to_drop,
    record_graph,
)
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.recording import Recording, record
from pyterrier_mechir.models.sites import Site, SiteSet
from pyterrier_mechir.patching.first_order import _missing, _of_sites, _of_slots, _parts
from pyterrier_mechir.patching.integration import _integrated
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Attribution, IntegratedGradients
from pyterrier_mechir.patching.sweep import Runs, in_batches, sweep
from pyterrier_mechir.text.positions import ALL, Positions

if TYPE_CHECKING:
    from pyterrier_mechir.patching.first_order import Parts
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


def attribute(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    sites: Sequence[Site | SiteSet],
    direction: str = "denoise",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
    positions: Positions = ALL,
    *,
    method: Attribution | IntegratedGradients = Attribution(),  # noqa: B008 - frozen
) -> SweepResult:
    """Estimate the patched score of each site of each pair from gradients at all sites at once.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        method: the estimate; integrated gradients are those over inputs.
    """
    if not sites:
        return sweep(ranker, pairs, query_inputs, sites, direction, batch_size, progress, positions)
    parts = _parts(sites, ranker.n_layers)
    keys = list(parts)

    def score(runs: Runs) -> tuple[Tensor, Tensor]:
        with differentiable(ranker.model):
            if isinstance(method, Attribution):
                return _attributed(ranker, runs, keys, parts, len(sites), method)
            return _integrated(ranker, runs, keys, parts, len(sites), method.steps)

    budget = ranker.batch_tokens // (SHARE * (2 if direction == "both" else 1))
    return in_batches(
        ranker, pairs, query_inputs, len(sites), score, direction, batch_size, progress, positions, budget
    )


def _attributed(
    ranker: Ranker, runs: Runs, keys: list[Key], parts: Parts, n_sites: int, method: Attribution
) -> tuple[Tensor, Tensor]:
    """Scores of runs, and estimates from the gradients of their targets."""
    n_layers = ranker.n_layers
    refined = sorted({layer for layer, name in keys if method.qk_fix and name in ("q", "k")})
    at = list(dict.fromkeys([*keys, *((layer, "z") for layer in refined)]))
    seen = list(dict.fromkeys([*at, *((layer, name) for layer in refined for name in ("q", "k", "v"))]))
    added = ranker.anatomy.added
    graph = list(dict.fromkeys([*seen, *(needed_to_drop(at, n_layers, added) if method.grad_drop else [])]))
    target, source, scores = _both(ranker, runs, graph, seen)
    fix = {layer: _Softmax(ranker, layer, target, source, runs) for layer in refined}

    def estimate(slopes: dict[Key, Tensor]) -> Tensor:
        values = {}
        for key in keys:
            layer, name = key
            if layer in fix and name in ("q", "k"):
                values[key] = fix[layer].estimates(name, slopes[layer, "z"])
            else:
                change = source[key] - target[key].detach()
                values[key] = _of_slots(runs.slots, ranker.anatomy.groups(name), change * slopes[key])
        return _of_sites(values, parts, n_sites)

    if not method.grad_drop:
        moved = estimate(gradients(target, at))
    else:
        passes = [estimate(slopes).abs() for slopes in gradients_dropping(target, at, n_layers, added)]
        towards = torch.sign(scores[runs.source] - scores[runs.target])
        moved = torch.stack(passes).sum(0) / (n_layers - 1) * towards[:, None, None]
    return scores, _missing(scores[runs.target][:, None, None] + moved, runs.slots)


def _both(ranker: Ranker, runs: Runs, graph: list[Key], seen: list[Key]) -> tuple[Recording, Recording, Tensor]:
    """The targets with their graph, the sources without, and the scores of all runs."""
    target = record_graph(ranker, runs.inputs(runs.target), graph)
    plain = Recording(target.scores.detach(), {key: target[key].detach() for key in seen})
    if isinstance(runs.source, Tensor):
        return target, plain.rows(runs.source), plain.scores
    with torch.no_grad():
        source = record(ranker, runs.inputs(runs.source), seen)
    scores = torch.cat([plain.scores, source.scores])
    scores[runs.target], scores[runs.source] = plain.scores, source.scores
    return target, source, scores


class _Softmax:
    """The attention of a layer of targets, recomputed with queries or keys of their sources.

    Args:
        ranker: a model whose layers attend by plain scaled dot products.
        layer: the layer.
        target: the targets, with q, k and v of the layer.
        source: the sources, with q and k.
        runs: what is patched.
    """

    def __init__(self, ranker: Ranker, layer: int, target: Recording, source: Recording, runs: Runs):
        self.n_heads, self.slots = ranker.n_heads, runs.slots
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
            return _of_slots(self.slots, self.n_heads, (change * slopes).sum(-1).transpose(1, 2))
        others = self._logits(self.q, self.other["k"])
        of_slots = []
        for slot in self.slots:
            patched = torch.where(slot[:, None, None, :], others, logits).softmax(-1)
            of_slots.append(((patched - now) * slopes).sum((-1, -2)))
        return torch.stack(of_slots, dim=1)
