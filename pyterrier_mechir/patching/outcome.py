"""What a sweep gives: scores of pairs, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pyterrier_mechir.results.effects import change

Patched = np.ndarray | list[np.ndarray]
"""Patched scores: ``[N, site]``, or, where positions are patched apart, ``[site, slot]`` for each pair."""

ROUNDING = 1e-5
"""Scores that differ by less than this, or by less than this share of them, are the same but for rounding."""


@dataclass(frozen=True)
class SweepResult:
    """Scores of ``N`` pairs.

    Args:
        baseline: ``[N]``, score of each baseline.
        perturbed: ``[N]``, score of each perturbed side.
        denoise: score of the baseline with the site taken from the perturbed run, if swept.
        noise: score of the perturbed side with the site taken from the baseline run, if swept.
        screening: how good the estimates are, of sweeps that verify some of them.
        calibration: how far the results are from float32, of models that multiply fewer bits.
        exact: of estimates, the cells that were patched exactly: bool ``[site, slot]`` for each run of
            :func:`patched_of_pairs`. None where there are none, and of pairs that were taken or averaged.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    denoise: Patched | None
    noise: Patched | None
    screening: Screening | CellScreening | None = None
    calibration: Calibration | None = None
    exact: list[np.ndarray] | None = None

    def at(self, index: Sequence[int]) -> SweepResult:
        """The results of some pairs, in another order, or repeated."""

        def take(values: Patched | None) -> Patched | None:
            return [values[i] for i in index] if isinstance(values, list) else None if values is None else values[index]

        return replace(
            self,
            baseline=self.baseline[index],
            perturbed=self.perturbed[index],
            denoise=take(self.denoise),
            noise=take(self.noise),
            exact=None,
        )

    @property
    def touched_nothing(self) -> bool:
        """Whether no patch moved any score beyond rounding, though the scores of some pair's sides differ."""
        differs = _differs(self.perturbed, self.baseline)
        ways = [(self.denoise, self.baseline), (self.noise, self.perturbed)]
        moved = (
            _differs(values, target).any()
            for patched, targets in ways
            if patched is not None
            for values, target in zip(patched, targets, strict=True)
        )
        return bool(differs.any()) and not any(moved)

    def mean_over(self, repeats: int) -> SweepResult:
        """The mean over repeats of the same pairs, given one repeat of all after the other.

        All are added up in the same order, so that what is the same in each repeat is the same in the mean.
        """

        def mean(values: np.ndarray) -> np.ndarray:
            return np.asarray(sum(values.reshape(repeats, len(values) // repeats, *values.shape[1:])) / repeats)

        def mean_of(values: Patched | None) -> Patched | None:
            if isinstance(values, list):
                n = len(values) // repeats
                return [np.asarray(sum(values[i::n]) / repeats) for i in range(n)]
            return None if values is None else mean(values)

        return replace(
            self,
            baseline=mean(self.baseline),
            perturbed=mean(self.perturbed),
            denoise=mean_of(self.denoise),
            noise=mean_of(self.noise),
            exact=None,
        )


def _differs(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Which scores differ from the target's; missing ones do not."""
    return np.asarray(np.abs(scores - target) > ROUNDING * np.maximum(1, np.abs(target)))


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


@dataclass(frozen=True)
class Errors:
    """How far estimated effects ê are from exact ones e.

    Args:
        n_sampled: estimates that were compared with exact effects.
        mean_abs_error: mean of abs(ê - e) over these, in score units; NaN where there are none, as all below.
        percentile_95_abs_error: what 95 % of them do not exceed.
        max_abs_error: the greatest of them.
        mean_relative_error: the sum of abs(ê - e) over that of abs(e).
        spearman: rank correlation of ê and e over these; NaN where it is not defined.
    """

    n_sampled: int
    mean_abs_error: float
    percentile_95_abs_error: float
    max_abs_error: float
    mean_relative_error: float
    spearman: float


@dataclass(frozen=True)
class CellScreening(Errors):
    """How good the estimates are that a screening by cells (pair, direction, site, slot) left unverified.

    The errors are those of a random sample of these.

    Args:
        n_cells: cells whose two sides differ and that were estimated.
        n_verified: those of them that are exact.
    """

    n_cells: int
    n_verified: int


def patched_of_pairs(result: SweepResult) -> Iterator[tuple[Any, np.ndarray]]:
    """All patched runs, the ``denoise`` direction of every pair before the ``noise`` direction of any.

    Yields:
        The score of the run as it is (of the baseline for ``denoise``, of the perturbed side for ``noise``), and its
        patched scores: ``[site]``, or ``[site, slot]`` where positions are patched apart.
    """
    for way, scores in ((result.denoise, result.baseline), (result.noise, result.perturbed)):
        yield from zip(scores, () if way is None else way, strict=way is not None)


def moved_by_patches(result: SweepResult) -> Iterator[np.ndarray]:
    """How far patches move the score of each run of :func:`patched_of_pairs`, ``[site, slot]``."""
    for score, of_pair in patched_of_pairs(result):
        yield change(score, of_pair if of_pair.ndim == 2 else of_pair[:, None])


def as_scored(score: Any, exact: np.ndarray, exact_score: Any) -> np.ndarray:
    """Exact patched scores of a run that was also scored by other passes, which may round otherwise.

    Args:
        score: of the run, by the other passes; it takes the place of the patched scores that move nothing.
        exact: the patched scores.
        exact_score: of the run, by the passes that patched it.
    """
    return np.where(exact == exact_score, score, exact)


def some(result: SweepResult, pairs: np.ndarray, sites: np.ndarray) -> SweepResult:
    """The results of some pairs at some sites."""

    def of(way: Patched | None) -> list[np.ndarray] | None:
        return None if way is None else [way[pair][sites] for pair in pairs]

    return SweepResult(result.baseline[pairs], result.perturbed[pairs], of(result.denoise), of(result.noise))


def joined(parts: Sequence[tuple[Sequence[int], SweepResult]]) -> SweepResult:
    """The results of sweeps of the same pairs, each at some of the sites.

    The scores of both sides are those of the first. What the others say is how far patches move them.

    Args:
        parts: the numbers of the sites of each sweep, all of which are numbered from 0, and what it gave.
    """
    (_, first), n_sites = parts[0], sum(len(numbers) for numbers, _ in parts)

    def of_way(way: str, side: str) -> Patched | None:
        scores, like = getattr(first, side), getattr(first, way)
        if like is None:
            return None
        made = [np.empty((n_sites, *of_pair.shape[1:]), np.float32) for of_pair in like]
        for numbers, part in parts:
            for values, score, own, of_pair in zip(made, scores, getattr(part, side), getattr(part, way), strict=True):
                values[numbers] = of_pair if part is first else score + (of_pair - own)
        return made if isinstance(like, list) else np.array(made, np.float32).reshape(len(scores), n_sites)

    screening = next((part.screening for _, part in parts if part.screening is not None), None)
    denoise, noise = of_way("denoise", "baseline"), of_way("noise", "perturbed")
    exact = [np.zeros((n_sites, of_run.shape[1]), dtype=bool) for of_run in moved_by_patches(first)]
    for numbers, part in parts:
        for made, of_run in zip(exact, part.exact or (), strict=False):
            made[numbers] = of_run
    return replace(first, denoise=denoise, noise=noise, screening=screening, exact=exact)


def errors(estimated: SweepResult, exact: SweepResult, is_signed: bool = True) -> Errors:
    """How far estimated effects are from exact ones, over all pairs, sites, slots and directions.

    Args:
        estimated: the estimates.
        exact: an exact sweep of the same pairs and sites; where its effects are missing, nothing is compared.
        is_signed: whether estimates tell an increase from a decrease; else absolute effects are compared.
    """
    found, wanted = (effects(result) for result in (estimated, exact))
    found, wanted = found[~np.isnan(wanted)], wanted[~np.isnan(wanted)]
    if not is_signed:
        found, wanted = np.abs(found), np.abs(wanted)
    error = np.abs(found - wanted)
    if not len(error):
        return Errors(0, np.nan, np.nan, np.nan, np.nan, np.nan)
    high, whole = np.percentile(error, 95), np.abs(wanted).sum()
    relative = float(error.sum() / whole) if whole else np.nan
    return Errors(
        len(error), float(error.mean()), float(high), float(error.max()), relative, rank_correlation(found, wanted)
    )


def effects(result: SweepResult) -> np.ndarray:
    """How far all patches move scores, one after the other, in the order of :func:`patched_of_pairs`."""
    return flat(moved_by_patches(result))


def flat(of_runs: Iterable[np.ndarray]) -> np.ndarray:
    """Arrays of one type, one for each run, one after the other; a number is missing from none."""
    parts = [of_run.ravel() for of_run in of_runs]
    return np.concatenate(parts) if parts else np.empty(0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


@dataclass(frozen=True)
class Calibration:
    """How far results in fewer bits are from those in float32.

    Args:
        precision: of the results.
        n_pairs: pairs that were computed in both.
        n_sites: sites, of ``n_all_sites``, that were patched in both.
        n_all_sites: sites that are patched.
        max_score_error: greatest difference of the scores of both sides.
        mean_abs_error: mean difference of patching effects, in score units; NaN where nothing is patched.
        max_abs_error: the greatest of them.
        spearman: rank correlation of effects over pairs and sites; NaN where it is not defined.
    """

    precision: str
    n_pairs: int
    n_sites: int
    n_all_sites: int
    max_score_error: float
    mean_abs_error: float
    max_abs_error: float
    spearman: float

    def __str__(self) -> str:
        sides = f"on a sample of {self.n_pairs} pairs, scores are within {self.max_score_error:.2g} of float32's"
        if not self.n_sites:
            return f"{self.precision}: {sides}."
        return (
            f"{self.precision}: {sides}, and patching effects of {self.n_sites} of {self.n_all_sites} sites within "
            f"{self.max_abs_error:.2g} (mean {self.mean_abs_error:.2g}, in score units; Spearman {self.spearman:.3f})."
        )
