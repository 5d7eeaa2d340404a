"""Integrated gradients over each site's own activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyterrier_mechir.patching.gradients import SHARE, differentiable
from pyterrier_mechir.patching.recording import Batch, Recording
from pyterrier_mechir.patching.replay import Edit, replay
from pyterrier_mechir.patching.sweep import SweepResult, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


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
    """Scores ``[n, B]`` of copies, as :func:`~pyterrier_mechir.patching.replay.replay` gives them, integrated."""
    n = edits[0].mask.shape[0]
    moved = base.scores.new_zeros((n, len(base.scores)))
    with torch.enable_grad():
        for step in range(steps):
            way = torch.full_like(moved, (step + 0.5) / steps, requires_grad=True)
            partly = [replace(edit, mask=edit.mask * way[:, :, None, None]) for edit in edits]
            scores = replay(ranker, batch, base, partly)
            moved += torch.autograd.grad(scores.sum(), way)[0] / steps
    return base.scores + moved
