"""Estimating all sites, and verifying the best of them, or the most doubtful cells, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.patching.attribution import attribute
from pyterrier_mechir.patching.cells import put_exact
from pyterrier_mechir.patching.outcome import (
    CellScreening,
    Screening,
    SweepResult,
    as_scored,
    effects,
    errors,
    flat,
    moved_by_patches,
    patched_of_pairs,
    some,
)
from pyterrier_mechir.patching.plan import Attribution, Plan
from pyterrier_mechir.patching.sweep import cells_that_differ, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


SAMPLED_PAIRS = 32
"""Pairs, at most, on which estimates are compared with exact scores."""

SAMPLED_CELLS = 32, 256
"""Cells, at least and at most, whose estimates are compared with exact scores: as many as are verified in between."""


def screened(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    approximate: Callable[..., SweepResult],
    k: int,
    is_signed: bool = True,
    seed: int = 0,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate all sites, sweep the ``k`` of greatest estimated effect exactly, and sample the error of the rest.

    Sites are ranked by the sum of abs(ê) over pairs, directions and slots. The error is that of ``k`` other sites on at
    most :data:`SAMPLED_PAIRS` pairs, both drawn at random.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`; progress is that of the exact sweep.

    Args:
        approximate: the sweep that estimates.
        k: how many sites to verify.
        is_signed: whether estimates have a sign; absolute effects are compared where they have not.
        seed: of the sample.
    """
    sites = plan.sites

    def run(by: Callable[..., SweepResult], of: Iterable[int], among: Iterable[int], **options: Any) -> SweepResult:
        chosen, some_sites = [pairs[i] for i in among], plan.at([sites[i] for i in of])
        return by(ranker, chosen, query_inputs, some_sites, opened=opened, **options)

    everything = range(len(pairs))
    estimated = run(approximate, range(len(sites)), everything)
    size = np.zeros(len(sites))
    for effect in moved_by_patches(estimated):
        size += np.nansum(np.abs(effect), axis=1)
    order = np.argsort(-size, kind="stable")
    verified, others = order[:k], np.sort(order[k:])
    exact = run(sweep, verified, everything, progress=progress)
    sides = zip(patched_of_pairs(estimated), patched_of_pairs(exact), strict=True)
    for (score, of_pair), (exact_score, exact_of_pair) in sides:
        of_pair[verified] = as_scored(score, exact_of_pair, exact_score)
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.permutation(others)[:k])
    among = np.sort(rng.permutation(len(pairs))[:SAMPLED_PAIRS])
    error = errors(some(estimated, among, sampled), run(sweep, sampled, among), is_signed)
    names = tuple(sites[i].name for i in verified)
    told = Screening(names, error.n_sampled, error.mean_abs_error, error.max_abs_error, error.spearman)
    return replace(estimated, screening=told)


def screened_by_cells(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    approximate: Callable[..., SweepResult],
    share: float,
    is_signed: bool = True,
    seed: int = 0,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Estimate all cells, sweep the most doubtful exactly, and sample the error of the rest.

    A cell is a pair, a direction, a site and a slot. The doubt about an estimate is how far it is from a second one
    (:func:`second_opinion`). Cells whose two sides do not differ are known, and those that the method itself patches
    exactly are exact: of the others the share is, and the sample.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`; progress is that of the estimates.

    Args:
        approximate: the sweep that estimates.
        share: of the cells, which are verified; at least one is.
        is_signed: whether estimates have a sign; absolute effects are compared where they have not.
        seed: of the sample.
    """
    estimated = approximate(ranker, pairs, query_inputs, plan, opened=opened, progress=progress)
    first, second = effects(estimated), second_opinion(ranker, pairs, query_inputs, plan, opened)
    doubt = np.abs(first - second if is_signed else np.abs(first) - np.abs(second))
    differ = cells_that_differ(ranker, pairs, query_inputs, plan, opened=opened)
    settled = estimated.exact or [np.zeros_like(of_run) for of_run in differ]
    is_open = [of_run & ~known for of_run, known in zip(differ, settled, strict=True)]
    cells = np.flatnonzero(flat(is_open).astype(bool) & ~np.isnan(doubt))
    n_verified = min(len(cells), max(1, round(share * len(cells))))
    order = cells[np.argsort(-doubt[cells], kind="stable")]
    draw = np.random.default_rng(seed).random(len(doubt))
    others = order[n_verified:]
    sampled = others[np.argsort(draw[others])][: int(np.clip(n_verified, *SAMPLED_CELLS))]

    def swept(numbers: np.ndarray) -> list[np.ndarray]:
        """Some cells, as a sweep takes them."""
        found = np.zeros(len(doubt), dtype=bool)
        found[numbers] = True
        parts = np.split(found, np.cumsum([of_run.size for of_run in is_open], dtype=int))[:-1]
        return [part.reshape(of_run.shape) for part, of_run in zip(parts, is_open, strict=True)]

    verified = put_exact(estimated, ranker, pairs, query_inputs, plan, swept(order[:n_verified]), opened)
    exact = sweep(ranker, pairs, query_inputs, plan, opened=opened, cells=swept(sampled))
    error = errors(estimated, exact, is_signed)
    return replace(verified, screening=CellScreening(n_cells=len(cells), n_verified=n_verified, **vars(error)))


def second_opinion(
    ranker: Ranker, pairs: Sequence[AlignedPair], query_inputs: Batch, plan: Plan, opened: Opened | None = None
) -> np.ndarray:
    """What the gradient at the other run says that patches move scores by, in the order of ``effects``.

    Patching a run by its source, and the source by the run, move the score by opposite amounts where it is linear in
    between. So what the gradient at the source says of the reverse patch, with its sign changed, is an estimate that
    no method makes of this one. On MiniLM it finds the cells in which column replay, the QK fix and the gradient err as
    well as any other method does, and better than the size of their estimates.
    """
    reverse = {"denoise": "noise", "noise": "denoise"}.get(plan.direction, plan.direction)
    found = attribute(
        ranker, pairs, query_inputs, replace(plan, direction=reverse), method=Attribution(qk_fix=False), opened=opened
    )
    runs = list(moved_by_patches(found))
    swapped = [*runs[len(pairs) :], *runs[: len(pairs)]]
    return -flat(swapped)
