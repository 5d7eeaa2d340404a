"""Estimating all sites, and verifying the best exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.recording import Batch
from pyterrier_mechir.patching.sites import Site, SiteSet
from pyterrier_mechir.patching.sweep import Patched, SweepResult, sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair

SAMPLED_PAIRS = 32
"""Pairs, at most, on which estimates are compared with exact scores."""


@dataclass(frozen=True)
class Screening:
    """How good the estimates are that a screening left unverified.

    Args:
        verified: names of the sites whose patched scores are exact, by falling size of the estimated effect.
        n_sampled: estimates that were compared with exact effects, of a random sample of the other sites and pairs.
        mean_abs_error: mean of abs(ê - e) over these, in score units; NaN where there are none.
        max_abs_error: the greatest of them.
        spearman: rank correlation of ê and e over these; NaN where it is not defined.
    """

    verified: tuple[str, ...]
    n_sampled: int
    mean_abs_error: float
    max_abs_error: float
    spearman: float


def screened(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    sites: Sequence[Site | SiteSet],
    direction: str = "denoise",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
    positions: Positions = ALL,
    *,
    estimate: Callable[..., SweepResult],
    k: int,
    is_signed: bool = True,
    seed: int = 0,
) -> SweepResult:
    """Estimate all sites, sweep the ``k`` of greatest estimated effect exactly, and sample the error of the rest.

    Sites are ranked by the sum of abs(ê) over pairs, directions and slots. The error is that of ``k`` other sites on at
    most :data:`SAMPLED_PAIRS` pairs, both drawn at random.

    Args and result are those of :func:`~pyterrier_mechir.patching.sweep.sweep`; progress is that of the exact sweep.

    Args:
        estimate: the estimating sweep.
        k: how many sites to verify.
        is_signed: whether estimates have a sign; absolute effects are compared where they have not.
        seed: of the sample.
    """

    def run(by: Callable[..., SweepResult], of: Iterable[int], among: Iterable[int], **options: Any) -> SweepResult:
        chosen, its = [pairs[i] for i in among], [sites[i] for i in of]
        return by(ranker, chosen, query_inputs, its, direction, batch_size, positions=positions, **options)

    everything = range(len(pairs))
    estimated = run(estimate, range(len(sites)), everything)
    size = np.zeros(len(sites))
    for effect in _effects(estimated):
        size += np.nansum(np.abs(effect), axis=1)
    order = np.argsort(-size, kind="stable")
    verified, others = order[:k], np.sort(order[k:])
    exact = run(sweep, verified, everything, progress=progress)
    sides = zip(_patched(estimated), _patched(exact), strict=True)
    for (score, of_pair), (exact_score, exact_of_pair) in sides:
        of_pair[verified] = np.where(exact_of_pair == exact_score, score, exact_of_pair)
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.permutation(others)[:k])
    among = np.sort(rng.permutation(len(pairs))[:SAMPLED_PAIRS])
    error = errors(some(estimated, among, sampled), run(sweep, sampled, among), is_signed)
    return replace(estimated, screening=Screening(tuple(sites[i].name for i in verified), *error))


def _patched(result: SweepResult) -> Iterator[tuple[np.float32, np.ndarray]]:
    """The score of each pair in each direction, and its patched scores, a row per site."""
    for way, scores in ((result.denoise, result.baseline), (result.noise, result.perturbed)):
        yield from zip(scores, () if way is None else way, strict=way is not None)


def _effects(result: SweepResult) -> Iterator[np.ndarray]:
    """How far patches move the scores, ``[site, slot]`` for each pair in each direction."""
    for score, of_pair in _patched(result):
        yield (of_pair if of_pair.ndim == 2 else of_pair[:, None]) - score


def some(result: SweepResult, pairs: np.ndarray, sites: np.ndarray) -> SweepResult:
    """The results of some pairs at some sites."""

    def of(way: Patched | None) -> list[np.ndarray] | None:
        return None if way is None else [way[pair][sites] for pair in pairs]

    return SweepResult(result.baseline[pairs], result.perturbed[pairs], of(result.denoise), of(result.noise))


def errors(estimated: SweepResult, exact: SweepResult, is_signed: bool = True) -> tuple[int, float, float, float]:
    """How many effects there are, the mean and greatest absolute error of their estimates, and the rank correlation."""
    found, wanted = (
        np.concatenate([np.empty(0), *(effect.ravel() for effect in _effects(result))]) for result in (estimated, exact)
    )
    found, wanted = found[~np.isnan(wanted)], wanted[~np.isnan(wanted)]
    if not is_signed:
        found, wanted = np.abs(found), np.abs(wanted)
    error = np.abs(found - wanted)
    if not len(error):
        return 0, np.nan, np.nan, np.nan
    return len(error), float(error.mean()), float(error.max()), spearman(found, wanted)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
