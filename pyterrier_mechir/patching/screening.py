"""Estimating all sites, and verifying the best exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.patching.outcome import Screening, SweepResult, errors, moved_by_patches, patched_of_pairs, some
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


SAMPLED_PAIRS = 32
"""Pairs, at most, on which estimates are compared with exact scores."""


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
        of_pair[verified] = np.where(exact_of_pair == exact_score, score, exact_of_pair)
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.permutation(others)[:k])
    among = np.sort(rng.permutation(len(pairs))[:SAMPLED_PAIRS])
    error = errors(some(estimated, among, sampled), run(sweep, sampled, among), is_signed)
    return replace(estimated, screening=Screening(tuple(sites[i].name for i in verified), *error))
