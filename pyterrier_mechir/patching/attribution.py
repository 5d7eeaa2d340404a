"""Attribution patching, and its corrections: patched scores estimated from gradients at all sites at once.

What the estimates are, :class:`~pyterrier_mechir.patching.plan.Attribution` says. For a batch of pairs:

1. The runs that are patched are recorded with their graph, the runs that activations are taken from without.
2. One backward pass (with GradDrop, one for each layer) gives the gradient of each patched run's score at all sites.
3. Each site's estimate is the change of its activation, source less target, times the gradient, summed over its
   features and the positions of a slot. With the QK fix, that of queries and keys is the change of the heads' outputs z
   under those that the attention of the source computes with, times the gradient at z
   (:mod:`~pyterrier_mechir.models.softmax`).

Shapes: ``B`` runs, ``S`` positions, ``D`` features, ``G`` groups of features, ``H`` heads, ``P`` slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pyterrier_mechir.models.attention import Heads, keeping_heads
from pyterrier_mechir.models.components import READ_BY
from pyterrier_mechir.models.gradients import gradients, gradients_dropping, needed_to_drop, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.resuming import at_positions
from pyterrier_mechir.models.softmax import Keyed, moved_by_queries
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
    method: Attribution,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site of each pair from gradients at all sites at once.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        method: how gradients are taken, with which of the corrections; from
            :func:`~pyterrier_mechir.patching.plan.method_of`.
    """
    estimate = partial(_attributed, method=method)
    return estimate_at_once(ranker, pairs, query_inputs, plan, estimate, opened=opened, progress=progress)


def _attributed(opened: Opened, runs: Runs, places: PlacesOfSites, method: Attribution) -> tuple[Tensor, Tensor]:
    """Scores of runs, and estimates from the gradients of their targets."""
    anatomy, keys = opened.anatomy, list(places)
    n_layers, added = anatomy.n_layers, anatomy.added
    fixed = {(layer, name): (layer, READ_BY[name].z) for layer, name in keys if method.qk_fix and name in READ_BY}
    attentions = {z: anatomy.port(layer, READ_BY[name].pattern).module for (layer, name), z in fixed.items()}
    at = list(dict.fromkeys([*keys, *fixed.values()]))
    graph = list(dict.fromkeys([*at, *(needed_to_drop(at, n_layers, added) if method.grad_drop else [])]))
    target, source, scores = _both(opened, runs, graph, keys, attentions)

    def estimate(slopes: dict[Key, Tensor]) -> Tensor:
        values = {}
        for key in keys:
            groups = anatomy.groups(key[1])
            if key in fixed:
                z = fixed[key]
                values[key] = _fixed(key[1], runs.slots, groups, target.heads[z], source.heads[z], slopes[z])
            else:
                change = source.run[key] - target.run[key].detach()
                values[key] = of_slots(runs.slots, groups, change * slopes[key])
        return of_sites(values, places)

    if not method.grad_drop:
        moved = estimate(gradients(target.run, at))
    else:
        passes = [estimate(slopes).abs() for slopes in gradients_dropping(target.run, at, n_layers, added)]
        towards = torch.sign(scores[runs.source] - scores[runs.target])
        moved = torch.stack(passes).sum(0) / (n_layers - 1) * towards[:, None, None]
    return scores, missing(scores[runs.target][:, None, None] + moved, runs.slots)


class _Side(NamedTuple):
    """One side of the pairs.

    Args:
        run: its recording.
        heads: what attentions computed with whose queries or keys are fixed, by z.
    """

    run: Recording
    heads: dict[Key, Heads]


def _both(
    opened: Opened, runs: Runs, graph: list[Key], seen: list[Key], attentions: dict[Key, nn.Module]
) -> tuple[_Side, _Side, Tensor]:
    """The targets with their graph, the sources without, and the scores of all runs."""
    with keeping_heads(attentions) as heads:
        target = record_graph(opened, runs.inputs(runs.target), graph)
        of_target = {z: of.detach() for z, of in heads.items()}
        plain = Recording(target.scores.detach(), {key: target[key].detach() for key in seen})
        if isinstance(runs.source, Tensor):
            of_source = {z: of.rows(runs.source) for z, of in of_target.items()}
            return _Side(target, of_target), _Side(plain.rows(runs.source), of_source), plain.scores
        with torch.no_grad():
            source = record(opened, runs.inputs(runs.source), seen)
    scores = torch.cat([plain.scores, source.scores])
    scores[runs.target], scores[runs.source] = plain.scores, source.scores
    return _Side(target, of_target), _Side(source, heads), scores


def _fixed(name: str, slots: Tensor, groups: int, target: Heads, source: Heads, slope: Tensor) -> Tensor:
    """Estimates ``[B, P, G]`` for queries or keys, by what those of the sources do to the outputs of heads.

    Args:
        name: of the activation.
        slots: which positions each slot has.
        groups: how many queries or keys there are, each of which serves as many heads.
        target: what the attention of the targets computes with.
        source: that of the sources.
        slope: the gradient at z, ``[B, Q, D]``.
    """
    n_heads = target.query.shape[1]
    slope = slope.unflatten(-1, (n_heads, -1)).transpose(1, 2)
    if name.endswith("q"):
        return of_slots(slots, groups, moved_by_queries(target, slope, source.query).transpose(1, 2))
    n_runs, length = target.key.shape[0], target.key.shape[2]
    members = at_positions(slots, length).expand(len(slots), n_runs, length).permute(1, 2, 0).to(slope.dtype)
    moved = Keyed(target, slope, members).moved(source.key, target.value).sum(2)
    return moved.unflatten(1, (groups, -1)).sum(2).transpose(1, 2)
