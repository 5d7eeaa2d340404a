"""Explanations by leaving units out: one by one, or many at random.

**Occlusion** (leave one out; Robnik-Sikonja and Kononenko, 2008; Li, Monroe and Jurafsky, 2016): a unit carries what
the score loses without it, phi_i = v(all) - v(all but i). It is exact by definition; what two units carry only
together, each of them gets.

**LIME** (Ribeiro, Singh and Guestrin, 2016) for rankers (LIRME: Verma and Ganguly, SIGIR 2019): texts with random
subsets z of the units are scored, and v(z) is fitted by w . z + b, each text weighed by exp(-D(z)^2 / width^2), where D
is 100 times the cosine distance of z from the whole text; a unit carries its w. With a threshold, what is fitted is
whether the text still scores above it (EXS: Singh and Anand, WSDM 2019), 0 or 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.observe.words.explained import NAN, Asked, Explained
from pyterrier_mechir.observe.words.values import values
from pyterrier_mechir.text.words import seeded

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker

FOLDS = 5
"""Parts of lime's samples, each predicted from the others, by which its fit is told."""

_LEAST_SAMPLES, _OF_UNIT = 200, 10
_RIDGE = 1e-3
"""Squared weights count this much where there are hardly more samples than units."""


def occlusion(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations by leaving each unit out.

    Args:
        ranker: the ranker, facing the side that the texts are of.
        readings: the texts.
        asked: how they are explained.
    """
    groups = [_groups(reading, asked.all_occurrences) for reading in readings]
    kept = []
    for group in groups:
        n_groups = group.max(initial=-1) + 1
        whole, each = np.ones((1, n_groups), dtype=bool), np.eye(n_groups, dtype=bool)
        of_groups = np.concatenate([whole, ~whole, ~each])
        kept.append(of_groups[:, group])
    found = values(ranker, readings, kept, asked.absent(ranker), batch_size=asked.batch_size)
    for reading, group, scores in zip(readings, groups, found, strict=True):
        lost = scores[0] - scores[2:]
        yield Explained(reading, reading.scattered(lost[group]), empty=float(scores[1]))


def lime(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations by a linear fit of random subsets of units; args are those of :func:`occlusion`.

    Where a text has a threshold, what is fitted is whether its score is above it.
    """
    groups = [_groups(reading, asked.all_occurrences) for reading in readings]
    drawn = [_subsets(reading, group, asked) for reading, group in zip(readings, groups, strict=True)]
    kept = [z[:, group] for z, group in zip(drawn, groups, strict=True)]
    found = values(ranker, readings, kept, asked.absent(ranker), batch_size=asked.batch_size)
    for reading, group, z, scores in zip(readings, groups, drawn, found, strict=True):
        is_above = np.where(np.isnan(scores), np.nan, scores > reading.threshold)
        fit = _fitted(z, scores if np.isnan(reading.threshold) else is_above, asked.kernel_width)
        more = {"unit_errors": reading.scattered(fit.errors[group]), "fit_r2": fit.r2}
        yield Explained(reading, reading.scattered(fit.weights[group]), empty=float(scores[1]), more=more)


def _groups(reading: Reading, all_occurrences: bool) -> np.ndarray:
    """Which units are left out together: for each unit that is read the number of its group, ``[r]``."""
    if not all_occurrences:
        return np.arange(len(reading.read))
    names = [reading.names[number].lower() for number in reading.read]
    return np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def _subsets(reading: Reading, group: np.ndarray, asked: Asked) -> np.ndarray:
    """The whole text, the empty one, and random subsets, of all sizes alike: bool ``[v, g]``."""
    n_groups = int(group.max(initial=-1)) + 1
    n = max(_LEAST_SAMPLES, _OF_UNIT * n_groups) if asked.samples is None else asked.samples
    rng = np.random.default_rng(seeded(asked.seed, reading.context, reading.text))
    ranks = rng.random((n, n_groups)).argsort(1).argsort(1)
    n_absent = rng.integers(1, n_groups + 1, size=n) if n_groups else np.zeros(n, dtype=np.int64)
    ends = np.array([[True] * n_groups, [False] * n_groups]).reshape(2, n_groups)
    return np.concatenate([ends, ranks >= n_absent[:, None]])


@dataclass(frozen=True)
class _Fit:
    """A weighted linear fit: weights ``[g]``, their standard errors ``[g]``, and the share that it predicts."""

    weights: np.ndarray
    errors: np.ndarray
    r2: float


def _fitted(z: np.ndarray, labels: np.ndarray, width: float) -> _Fit:
    """The weighted least squares fit of labels by subsets.

    Standard errors hold whatever the errors of the fit depend on (White, 1980). The share that is predicted, R squared,
    is of samples that were not fitted: each of :data:`FOLDS` parts is predicted by a fit of the others. What no sample
    with a label lacks has no weight: NaN.
    """
    z, labels = z[~np.isnan(labels)].astype(np.float64), labels[~np.isnan(labels)]
    n_groups = z.shape[1]
    if not len(labels) or not n_groups:
        return _Fit(np.full(n_groups, np.nan), np.full(n_groups, np.nan), NAN)
    distance = 100 * (1 - np.sqrt(z.mean(1)))
    weights = np.exp(-((distance / width) ** 2))
    design = np.column_stack([z, np.ones(len(z))])
    ridge = _RIDGE * np.diag([*np.ones(n_groups), 0.0]) if len(z) <= 2 * design.shape[1] else 0.0

    def fit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weighted = design[rows] * weights[rows, None]
        inverse = np.linalg.pinv(design[rows].T @ weighted + ridge, hermitian=True)
        return inverse @ (weighted.T @ labels[rows]), inverse

    every = np.arange(len(z))
    coefficients, inverse = fit(every)
    scaled = design * (weights * (labels - design @ coefficients))[:, None]
    free = max(1, len(z) - design.shape[1])
    errors = np.sqrt(np.diag(inverse @ (scaled.T @ scaled) @ inverse).clip(0) * len(z) / free)
    missed = np.empty(len(z))
    for fold in range(FOLDS):
        rows = every % FOLDS == fold
        missed[rows] = labels[rows] - design[rows] @ fit(every[~rows])[0] if (~rows).any() else np.nan
    spread = labels - np.average(labels, weights=weights)
    total = float(weights @ spread**2)
    r2 = 1 - float(weights @ missed**2) / total if total > 0 else NAN
    coefficients[:-1][z.all(0)] = errors[:-1][z.all(0)] = np.nan
    return _Fit(coefficients[:-1], errors[:-1], r2)
