"""Column replay: estimates of patches at some positions, of which each position's own column is exact.

What the estimates are, :class:`~pyterrier_mechir.patching.plan.ColumnReplay` says; how columns are replayed,
:mod:`~pyterrier_mechir.models.columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.columns import Slots, record_target, replay_columns
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import record
from pyterrier_mechir.models.resuming import at_positions
from pyterrier_mechir.patching.cells import put_exact
from pyterrier_mechir.patching.first_order import PlacesOfSites, estimate_at_once, missing
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import ColumnReplay, Plan
from pyterrier_mechir.patching.sweep import Cells, Runs, padded
from pyterrier_mechir.text.encoding import EDIT

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

_SHARE = 4
"""How many times the ranker's tokens all rows of columns have at once."""


def columns(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    method: ColumnReplay = ColumnReplay(),  # noqa: B008 - frozen
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate the patched score of each site of each pair, at each slot of positions, by column replay.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`.

    Args:
        method: whether slots with an edited position are swept exactly.
    """
    edited = None if method.edited == "column" else _edited(pairs, plan)
    estimate = partial(_replayed, at_once=_SHARE * ranker.batch_tokens, exact=edited)
    found = estimate_at_once(ranker, pairs, query_inputs, plan, estimate, opened=opened, progress=progress)
    if edited is None or not plan.sites:
        return found
    return put_exact(found, ranker, pairs, query_inputs, plan, edited, opened)


def _edited(pairs: Sequence[AlignedPair], plan: Plan) -> Cells:
    """The cells with an edited position."""
    of_pairs = [(plan.positions.of_pair(pair) & (pair.classes == EDIT)).any(axis=1) for pair in pairs]
    return [np.repeat(slots[None], len(plan.sites), axis=0) for slots in of_pairs] * len(plan.ways)


def _replayed(
    opened: Opened, runs: Runs, places: PlacesOfSites, at_once: int, exact: Cells | None
) -> tuple[Tensor, Tensor]:
    """Scores of runs, and the estimates of their targets; of cells that are patched exactly there need be none."""
    inputs = runs.inputs(runs.target)
    with torch.no_grad():
        plain = record(opened, runs.batch, list(places))
    base, source = plain.rows(runs.target), plain.rows(runs.source)
    n_sites = 1 + max(number for numbers, _ in places.values() for number in numbers)
    n_runs, length = inputs["input_ids"].shape
    at = at_positions(runs.slots, length).expand(len(runs.slots), n_runs, length)
    estimates = base.scores.new_zeros((n_sites, n_runs, len(at)))
    wanted = torch.ones_like(estimates, dtype=torch.bool)
    if exact is not None:
        wanted = ~padded([exact[place] for place in runs.places], estimates.transpose(0, 1)).transpose(0, 1)
    for key, (numbers, _) in places.items():
        differs = (source[key] != base[key]).any(-1).float()
        wanted[numbers] &= torch.einsum("pbs,bs->bp", at.float(), differs) > 0
    keys = [key for key, (numbers, _) in places.items() if wanted[numbers].any()]
    if keys:
        target = record_target(opened, inputs)
        moved = estimates.new_zeros((len(keys), *estimates.shape[1:]))
        for some in _disjoint(at):
            moved[:, :, some] = replay_columns(opened, inputs, target, source, keys, _numbered(at[some]), at_once)
        for key, of_key in zip(keys, moved, strict=True):
            estimates[places[key][0]] = of_key
    estimates = torch.where(wanted, estimates, 0.0)
    return plain.scores, missing(base.scores[:, None, None] + estimates.transpose(0, 1), runs.slots)


def _disjoint(slots: Tensor) -> list[list[int]]:
    """The numbers of slots ``[P, B, S]`` in groups in which no two have a position of a run in common."""
    groups: list[list[int]] = []
    taken: list[Tensor] = []
    if not (slots.sum(0) > 1).any():
        return [list(range(len(slots)))]
    for number, slot in enumerate(slots):
        place = next((place for place, positions in enumerate(taken) if not (positions & slot).any()), None)
        if place is None:
            groups.append([number])
            taken.append(slot.clone())
        else:
            groups[place].append(number)
            taken[place] |= slot
    return groups


def _numbered(slots: Tensor) -> Slots:
    """Slots ``[P, B, S]`` that have nothing in common, by position."""
    n, _, length = slots.shape
    alone = n + torch.arange(length, device=slots.device)
    return Slots(torch.where(slots.any(0), slots.int().argmax(0), alone), n)
