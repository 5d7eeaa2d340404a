"""What an estimate of effects needs of each query: sums over its pairs."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np

from pyterrier_mechir.results.pairs import PairArrays
from pyterrier_mechir.results.statistics import Estimator, cluster_sums, ratio

ESTIMATORS = ("ratio_of_means", "mean_of_ratios", "median", "difference")


class QuerySums(NamedTuple):
    """Sums over the pairs of each query that a component uses, each pair times its weight, ``[query, component]``.

    An estimate over some queries is the sum of their ``values`` divided by the sum of their ``below``. Which sums these
    are depends on the estimator:

    - ``ratio_of_means``: ``values`` sums the moved scores, ``below`` sums s_p - s_b;
    - ``mean_of_ratios``: ``values`` sums the normalised effects (moved score over s_p - s_b, pair by pair), ``below``
      sums the weights;
    - ``difference``: ``values`` sums the moved scores, ``below`` sums the weights;
    - ``median``: ``values`` sums the signs of the normalised effects and ``below`` the weights, for the test that
      flips signs; the estimate itself is no ratio of sums, so that :attr:`estimator` is not that of the median.

    Args:
        values: the sums that are divided.
        deltas: the sums of s_p - s_b, whatever the estimator.
        weights: the sums of the weights alone, whatever the estimator; 0 where a query has no pair of a component.
        below: the sums that they are divided by.
    """

    values: np.ndarray
    deltas: np.ndarray
    weights: np.ndarray
    below: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Which queries have a pair of each component."""
        return self.weights > 0

    @property
    def estimator(self) -> Estimator:
        """The sum of ``values`` over the sum of ``below``, from how often each query was drawn."""
        return ratio(self.values, self.below)


def averaged(pairs: PairArrays, estimator: str) -> np.ndarray:
    """What an estimator averages, ``[pair, component]``: moved scores, or their ratios to s_p - s_b."""
    return pairs.moved if estimator in ("ratio_of_means", "difference") else pairs.effects


def usable(pairs: PairArrays, estimator: str) -> np.ndarray:
    """Which pairs an estimator can use, ``[pair, component]``."""
    return np.isfinite(averaged(pairs, estimator)) & (np.isfinite(pairs.delta) & (pairs.weights > 0))[:, None]


def query_sums(pairs: PairArrays, estimator: str, used: np.ndarray) -> QuerySums:
    """The sums of an estimator; those of the median are of the signs of its ratios.

    Args:
        pairs: the pairs.
        estimator: one of :data:`ESTIMATORS`.
        used: which pairs each component uses, ``[pair, component]``.
    """
    values = np.where(used, averaged(pairs, estimator), 0)
    sums_of = partial(cluster_sums, clusters=pairs.queries, n_clusters=int(pairs.queries.max()) + 1)
    delta = np.where(np.isfinite(pairs.delta), pairs.delta, 0)
    weights, deltas = sums_of(used, factors=pairs.weights), sums_of(used, factors=pairs.weights * delta)
    sums = sums_of(np.sign(values) if estimator == "median" else values, factors=pairs.weights)
    return QuerySums(sums, deltas, weights, deltas if estimator == "ratio_of_means" else weights)
