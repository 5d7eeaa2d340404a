"""Integrated gradients: between the inputs of two runs, or over each site's own activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import SHARE, differentiable, gradients, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.resuming import Edit
from pyterrier_mechir.patching.first_order import PlacesOfSites, estimate_at_once, missing, of_sites, of_slots
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import Runs, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

EMBED: Key = (0, "embed")


def integrate_inputs(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    steps: int,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site by the mean gradient on the way from one run's embeddings to the other's.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        steps: points at which gradients are taken.
    """
    estimate = partial(_integrated, steps=steps)
    return estimate_at_once(ranker, pairs, query_inputs, plan, estimate, opened=opened, progress=progress)


def _integrated(opened: Opened, runs: Runs, places: PlacesOfSites, steps: int) -> tuple[Tensor, Tensor]:
    """Scores of runs, and estimates from gradients between the embeddings of targets and sources."""
    keys = list(places)
    with torch.no_grad():
        plain = record(opened, runs.batch, dict.fromkeys([*keys, EMBED]))
    target, source = plain.rows(runs.target), plain.rows(runs.source)
    slopes = {key: torch.zeros_like(target[key]) for key in keys}
    for step in range(steps):
        embedded = torch.lerp(target[EMBED], source[EMBED], (step + 0.5) / steps)
        between = record_graph(opened, runs.inputs(runs.target), keys, embedded)
        for key, slope in gradients(between, keys).items():
            slopes[key] += slope / steps
    values = {
        key: of_slots(runs.slots, opened.anatomy.groups(key[1]), (source[key] - target[key]) * slopes[key])
        for key in keys
    }
    moved = of_sites(values, places)
    return plain.scores, missing(target.scores[:, None, None] + moved, runs.slots)


def integrate(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    steps: int,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site by integrating the gradient along its own interpolation.

    An exact sweep in which the score of a patched copy is replaced by an integral: with its site set to
    n(target) + a [n(source) - n(target)], the derivative of the score by a is
    [n(source) - n(target)] . ds/dn, and its integral over a from 0 to 1 is how far the patch moves the score.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        steps: points at which gradients are taken.
    """
    run, at_once = partial(_integral, steps=steps), max(1, ranker.batch_tokens // SHARE)
    model = opened or ranker.opened
    with differentiable(model):
        return sweep(ranker, pairs, query_inputs, plan, opened=model, progress=progress, run=run, batch_tokens=at_once)


def _integral(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit], steps: int) -> Tensor:
    """Scores ``[n, B]`` of copies, as :func:`~pyterrier_mechir.models.replay.replay` gives them, integrated."""
    n = edits[0].mask.shape[0]
    moved = base.scores.new_zeros((n, len(base.scores)))
    with torch.enable_grad():
        for step in range(steps):
            way = torch.full_like(moved, (step + 0.5) / steps, requires_grad=True)
            partly = [replace(edit, mask=edit.mask * way[:, :, None, None]) for edit in edits]
            scores = replay(opened, batch, base, partly)
            moved += torch.autograd.grad(scores.sum(), way)[0] / steps
    return base.scores + moved
