"""Integrated gradients over each site's own activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyterrier_mechir.models.gradients import SHARE, Key, differentiable, gradients, record_graph
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.recording import Recording, record
from pyterrier_mechir.models.replay import Edit, replay
from pyterrier_mechir.patching.first_order import _missing, _of_sites, _of_slots
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.sweep import Runs, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.patching.first_order import Parts
    from pyterrier_mechir.rankers.base import Ranker


EMBED: Key = (0, "embed")


def _integrated(
    ranker: Ranker, runs: Runs, keys: list[Key], parts: Parts, n_sites: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Scores of runs, and estimates from gradients between the embeddings of targets and sources."""
    with torch.no_grad():
        plain = record(ranker, runs.batch, dict.fromkeys([*keys, EMBED]))
    target, source = plain.rows(runs.target), plain.rows(runs.source)
    slopes = {key: torch.zeros_like(target[key]) for key in keys}
    for step in range(steps):
        embedded = torch.lerp(target[EMBED], source[EMBED], (step + 0.5) / steps)
        between = record_graph(ranker, runs.inputs(runs.target), keys, embedded)
        for key, slope in gradients(between, keys).items():
            slopes[key] += slope / steps
    values = {
        key: _of_slots(runs.slots, ranker.anatomy.groups(key[1]), (source[key] - target[key]) * slopes[key])
        for key in keys
    }
    moved = _of_sites(values, parts, n_sites)
    return plain.scores, _missing(target.scores[:, None, None] + moved, runs.slots)


def integrate(ranker: Ranker, *args: Any, steps: int, **options: Any) -> SweepResult:
    """Estimate the patched score of each site by integrating the gradient along its own interpolation.

    An exact sweep in which the score of a patched copy is replaced by an integral: with its site set to
    n(target) + a [n(source) - n(target)], the derivative of the score by a is
    [n(source) - n(target)] . ds/dn, and its integral over a from 0 to 1 is how far the patch moves the score.

    Args:
        ranker: the model.
        *args: as for :func:`~pyterrier_mechir.patching.sweep.sweep`.
        steps: points at which gradients are taken.
        **options: as for the same.
    """
    run = partial(_integral, steps=steps)
    with differentiable(ranker.model):
        return sweep(ranker, *args, **options, run=run, batch_tokens=max(1, ranker.batch_tokens // SHARE))


def _integral(ranker: Ranker, batch: Batch, base: Recording, edits: Sequence[Edit], steps: int) -> Tensor:
    """Scores ``[n, B]`` of copies, as :func:`~pyterrier_mechir.models.replay.replay` gives them, integrated."""
    n = edits[0].mask.shape[0]
    moved = base.scores.new_zeros((n, len(base.scores)))
    with torch.enable_grad():
        for step in range(steps):
            way = torch.full_like(moved, (step + 0.5) / steps, requires_grad=True)
            partly = [replace(edit, mask=edit.mask * way[:, :, None, None]) for edit in edits]
            scores = replay(ranker, batch, base, partly)
            moved += torch.autograd.grad(scores.sum(), way)[0] / steps
    return base.scores + moved
