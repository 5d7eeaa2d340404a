"""Exact patches of chosen cells, in the place of their estimates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.patching.outcome import SweepResult, patched_of_pairs
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import Cells, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


def put_exact(
    found: SweepResult,
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    cells: Cells,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Sweep some cells exactly, and put their scores in the place of the estimates.

    Where an exact patch moves no score, the estimate becomes the score of the run that ``found`` has.

    Args:
        found: estimates of all cells, which are changed.
        ranker, pairs, query_inputs, plan, opened, progress: as for :func:`~pyterrier_mechir.patching.sweep.sweep`.
        cells: which cells.
    """
    n = len(pairs)
    among = [number for number in range(n) if any(of_run.any() for of_run in cells[number::n])]
    if not among:
        return
    places = [way * n + number for way in range(len(plan.ways)) for number in among]
    of_pairs, chosen = [pairs[number] for number in among], [cells[place] for place in places]
    exact = sweep(ranker, of_pairs, query_inputs, plan, opened=opened, progress=progress, cells=chosen)
    runs = list(patched_of_pairs(found))
    for place, of_cells, (exact_score, exact_of_run) in zip(places, chosen, patched_of_pairs(exact), strict=True):
        score, of_run = runs[place]
        here = of_cells.reshape(of_run.shape)
        of_run[here] = np.where(exact_of_run == exact_score, score, exact_of_run)[here]
