"""Exact patches of chosen cells, in the place of their estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.patching.outcome import SweepResult, as_scored, patched_of_pairs
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
) -> SweepResult:
    """Sweep some cells exactly, and put their scores in the place of the estimates.

    Args:
        found: estimates of all cells, which are changed.
        ranker, pairs, query_inputs, plan, opened: as for :func:`~pyterrier_mechir.patching.sweep.sweep`.
        cells: which cells.

    Returns:
        The same, which now tells that these cells are exact too.
    """
    if not any(of_run.any() for of_run in cells):
        return found
    exact = sweep(ranker, pairs, query_inputs, plan, opened=opened, cells=cells)
    for (score, of_run), (exact_score, exact_of_run), chosen in zip(
        patched_of_pairs(found), patched_of_pairs(exact), cells, strict=True
    ):
        here = chosen.reshape(of_run.shape)
        of_run[here] = as_scored(score, exact_of_run, exact_score)[here]
    were = [np.zeros_like(of_run) for of_run in cells] if found.exact is None else found.exact
    return replace(found, exact=[before | now for before, now in zip(were, cells, strict=True)])
