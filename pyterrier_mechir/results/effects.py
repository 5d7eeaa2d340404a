"""The formulas of effects, each in one place, over arrays.

With s_b and s_p the scores of the baseline and of the perturbed side of a pair, and s the score of a patched run:

- the change of the score is s_p - s_b (:func:`change`);
- in the ``denoise`` direction the baseline run is patched, which moves its score by s - s_b; in the ``noise`` direction
  the perturbed run is, and s_p - s is what it loses (:func:`moved`). Either is of the sign of the change where a
  component carries some of it;
- the effect of a patch is what it moves as a share of the change (:func:`normalised`);
- the effect over several pairs is the mean of what moved, divided by the mean change (:func:`ratio_of_means`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Scores = TypeVar("Scores", bound=Any)
"""A score, an array or a column of scores."""


def change(before: Scores, after: Scores) -> Scores:
    """How far a score moves, ``after - before``: of a pair, s_p - s_b.

    Args:
        before: scores before, such as those of the baselines.
        after: scores after, such as those of the perturbed sides.

    Returns:
        The change in score units, of the kind that was given, and missing where either score is.
    """
    return after - before


def moved(direction: str, patched: np.ndarray, baseline: Any, perturbed: Any) -> np.ndarray:
    """What patches move the score by, in score units, positive where it is in the direction of a positive change.

    Args:
        direction: ``denoise``: the baseline run was patched; ``noise``: the perturbed run.
        patched: scores of the patched runs.
        baseline: s_b, of a shape that broadcasts with that of ``patched``.
        perturbed: s_p, likewise.

    Returns:
        s - s_b in the ``denoise`` direction, s_p - s in the ``noise`` direction.
    """
    return change(baseline, patched) if direction == "denoise" else change(patched, perturbed)


def normalised(
    direction: str, patched: Sequence[np.ndarray], baseline: np.ndarray, perturbed: np.ndarray, min_delta: float
) -> list[np.ndarray]:
    """The effects of patches on each of ``N`` pairs: what they move the score by, as a share of s_p - s_b.

    Args:
        direction: as for :func:`moved`.
        patched: scores of the patched runs of each pair, an array of any shape for each.
        baseline: s_b, ``[N]``.
        perturbed: s_p, ``[N]``.
        min_delta: pairs whose s_p - s_b is smaller than this, or 0, have no effects: they are missing.

    Returns:
        An array for each pair, of the shape of its patched scores.
    """
    delta = change(baseline, perturbed)
    delta[~(np.abs(delta) >= min_delta) | (delta == 0)] = np.nan
    pairs = zip(patched, baseline, perturbed, delta, strict=True)
    return [moved(direction, scores, base, other) / change_of_pair for scores, base, other, change_of_pair in pairs]


def ratio_of_means(direction: str, patched: np.ndarray, baseline: np.ndarray, perturbed: np.ndarray) -> np.ndarray:
    """The effect of each component over ``N`` pairs: the mean of what it moves, divided by the mean of s_p - s_b.

    Args:
        direction: as for :func:`moved`.
        patched: scores of the patched runs, ``[N, ...]``. Where one is missing, its pair does not count.
        baseline: s_b, ``[N]``.
        perturbed: s_p, ``[N]``.

    Returns:
        ``[...]``; missing where no pair counts, or the changes of those that do add up to 0.
    """
    base, other = (scores.reshape(-1, *[1] * (patched.ndim - 1)) for scores in (baseline, perturbed))
    delta = change(base, other)
    used = np.isfinite(patched) & np.isfinite(delta)
    amounts = moved(direction, patched, base, other), delta
    return over(*(np.where(used, values, 0).sum(axis=0) for values in amounts))


def over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``numerator / denominator``, element by element, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)
