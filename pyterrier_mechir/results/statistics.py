"""Statistics of effects whose pairs come in clusters: intervals, p-values and their adjustment for many components.

Pairs of one query are not independent, so that what is resampled is the query, with all its pairs: a query is a
cluster. The steps from pairs to a row of statistics for each component:

1. Sum over the pairs of each cluster, ``[cluster, component]`` (:func:`cluster_sums`). All that follows, but for the
   median, needs these sums only and never goes back to the pairs.
2. Make an estimator (:func:`ratio`, :func:`median`, :func:`difference`): a function from how often each cluster was
   drawn, ``[resample, cluster]``, to estimates, ``[resample, component]``. A row of ones gives the estimate itself. For
   a ratio of sums, all resamples at once are two products of matrices.
3. Interval (:func:`bootstrap`): take the components that the same clusters have together; draw as many of these
   clusters as there are, with replacement, ``n_boot`` times; estimate each time; take the percentiles that
   :func:`levels` gives, which are further out than the coverage says, since few clusters vary too little.
4. P-value (:func:`sign_flips`): flip the sign of each cluster's sum, in all ways where these are few, else in random
   ones; p is the share of flips whose sum over clusters is at least as far from 0 as the one that was measured.
5. Adjust the p-values for the number of components (:func:`adjusted`, :func:`holm`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control, norm, rankdata, t

from pyterrier_mechir.results.effects import over

Estimator = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""Components (their numbers) to a function that estimates these from how often a resample drew each cluster:
``[resample, cluster]`` to ``[resample, component]``."""

_CELLS = 2**22
"""Cells of the largest array made while resampling: 32 MiB of float64."""

_CACHED = 2**17
"""Cells of arrays that are gone through several times, to stay in the processor's cache."""

_ENUMERATED = 2**12
"""Sign flips that are enumerated even if fewer are asked for: those of 13 clusters."""


def cluster_sums(values: np.ndarray, clusters: np.ndarray, factors: np.ndarray, n_clusters: int) -> np.ndarray:
    """Sums over the pairs of each cluster.

    Args:
        values: finite, ``[pair, component]``.
        clusters: the number of each pair's cluster, ``[pair]``.
        factors: what the values of each pair are multiplied by, ``[pair]``.
        n_clusters: how many there are.

    Returns:
        ``[cluster, component]``.
    """
    pairs = np.arange(len(clusters))
    return csr_array((factors, (clusters, pairs)), shape=(n_clusters, len(pairs))) @ values.astype(np.float64)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimator:
    """The estimator sum of numerators / sum of denominators, each ``[cluster, component]``."""

    def of(components: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        above, below = numerators[:, components], denominators[:, components]
        return lambda drawn: over(drawn @ above, drawn @ below)

    return of


def median(values: np.ndarray, clusters: np.ndarray) -> Estimator:
    """The estimator median over pairs.

    Slow: a resample takes time in proportion to pairs times components, not to clusters times components.

    Args:
        values: ``[pair, component]``, missing where a component does not use a pair.
        clusters: the number of each pair's cluster, ``[pair]``.
    """

    def of(components: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        ordered = []
        for component in components:
            column = values[:, component]
            order = np.argsort(column, kind="stable")[: np.isfinite(column).sum()]
            ordered.append((column[order], clusters[order]))
        rows = max(1, _CACHED // max(1, len(values)))

        def estimate(drawn: np.ndarray) -> np.ndarray:
            out, drawn = np.full((len(drawn), len(ordered)), np.nan), drawn.astype(np.int32)
            for start in range(0, len(drawn), rows):
                some = drawn[start : start + rows]
                for number, (column, of_pair) in enumerate(ordered):
                    if len(column):
                        out[start : start + rows, number] = _repeated_median(column, some.take(of_pair, axis=1))
            return out

        return estimate

    return of


def _repeated_median(ordered: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """The median of rising values ``[pair]``, each repeated some times, ``[resample, pair]``."""
    reached = repeats.cumsum(axis=1, dtype=repeats.dtype)
    total = reached[:, -1:]
    below, above = (2 * reached >= total).argmax(axis=1), (2 * reached > total).argmax(axis=1)
    return (ordered[below] + ordered[above]) / 2


def difference(first: Estimator, second: Estimator) -> Estimator:
    """The estimator second - first, both of the same clusters."""

    def of(components: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        one, other = first(components), second(components)
        return lambda drawn: other(drawn) - one(drawn)

    return of


def levels(ci: float, n_clusters: int) -> tuple[float, float]:
    """The percentiles of a bootstrap of so many clusters between which an interval of coverage ``ci`` lies.

    Resamples of n clusters vary less than samples do, by n - 1 in n, and the more so beside a t distribution of n - 1
    degrees of freedom. The percentiles are moved outwards to make up for both (Hesterberg, 2015, section 5.3).
    """
    tail = float(norm.cdf(np.sqrt(n_clusters / (n_clusters - 1)) * t.ppf((1 - ci) / 2, n_clusters - 1)))
    return tail, 1 - tail


def resamples(n_clusters: int, *, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn in some resamples of all clusters, ``[resample, cluster]``, in blocks."""
    rng, members = np.random.default_rng(seed), np.arange(n_clusters)
    return (_draw(rng, members, size, n_clusters) for size in _chunks(n_boot, n_clusters))


def bootstrap(
    estimator: Estimator, present: np.ndarray, *, ci: float, n_boot: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile intervals by the bootstrap of clusters.

    The clusters that have a component are drawn with replacement, as many as there are. The percentiles are further out
    than ``ci`` says, by as much as few clusters need (:func:`levels`). All components of the same
    clusters share the resamples, and those of a component depend on nothing but the seed and how many clusters have it.

    Args:
        estimator: as :func:`ratio` and :func:`median` make them.
        present: which clusters have a pair of each component, ``[cluster, component]``.
        ci: coverage.
        n_boot: number of resamples. Those without an estimate (a denominator of 0) do not count.
        seed: of the resamples.

    Returns:
        The lower and upper ends, ``[component]``; missing for components of fewer than two clusters.
    """
    ends = np.full((2, present.shape[1]), np.nan)
    for members, components in _alike(present):
        width = max(1, _CELLS // n_boot)
        for block in (components[start : start + width] for start in range(0, len(components), width)):
            rng, estimate = np.random.default_rng(seed), estimator(block)
            drawn = (_draw(rng, members, size, len(present)) for size in _chunks(n_boot, len(present)))
            estimates = np.concatenate([estimate(counts) for counts in drawn])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
                ends[:, block] = np.nanquantile(estimates, levels(ci, len(members)), axis=0)
    return ends[0], ends[1]


def sign_flips(sums: np.ndarray, present: np.ndarray, *, n_flips: int, seed: int) -> np.ndarray:
    """Two-sided p-values of a permutation test that flips the signs of whole clusters.

    H0: the sum of each cluster is as likely to be of the opposite sign. The statistic is the absolute value of the sum
    over clusters; p = (1 + flips that reach it) / (1 + flips). All flips are enumerated, and p is exact, where there
    are at most ``n_flips`` or 4,096 of them up to a common sign (13 clusters); no p is below 2 / 2**clusters.

    Args:
        sums: over the pairs of each cluster, ``[cluster, component]``.
        present: which clusters have a pair of each component, ``[cluster, component]``.
        n_flips: how many random flips are drawn otherwise.
        seed: of the random flips.

    Returns:
        ``[component]``; missing for components of fewer than two clusters.
    """
    p_values = np.full(present.shape[1], np.nan)
    for members, components in _alike(present):
        effects, n = sums[np.ix_(members, components)], len(members)
        rounding = 1e-10 * np.abs(effects).sum(axis=0)
        total_sum = effects.sum(axis=0)
        threshold = np.abs(total_sum) - rounding
        total, is_exact = _flips(n, n_flips)
        rng, first, reached = np.random.default_rng(seed), 1, np.zeros(len(components), np.int64)
        for size in _chunks(total, max(n, len(components))):
            flipped: np.ndarray
            if is_exact:
                flipped = np.arange(first, first + size)[:, None] >> np.arange(n) & 1
            else:
                words = rng.integers(2**64, size=(size, -(-n // 64)), dtype=np.uint64)
                flipped = np.unpackbits(words.view(np.uint8), axis=1, count=n)
            reached += (np.abs(total_sum - 2 * (flipped.astype(np.float64) @ effects)) >= threshold).sum(axis=0)
            first += size
        p_values[components] = (1 + reached) / (1 + total)
    return p_values


def least_p(n_clusters: int, n_flips: int) -> float:
    """The least p-value that :func:`sign_flips` can give of so many clusters and random flips."""
    return 1 / (1 + _flips(n_clusters, n_flips)[0]) if n_clusters > 1 else 1.0


def _flips(n_clusters: int, n_flips: int) -> tuple[int, bool]:
    """How many flips are tried, and whether these are all, up to a common sign, but the one that changes nothing."""
    n_others = 2 ** (n_clusters - 1) - 1
    is_exact = n_others < max(n_flips, _ENUMERATED)
    return (n_others if is_exact else n_flips), is_exact


def n_flips(n_boot: int, n_components: int) -> int:
    """How many random flips let the p-value of one component stay small after adjustment for all of them."""
    return max(n_boot, min(50 * n_components, 10_000))


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number by Benjamini and Hochberg (1995); missing ones stay so and do not count."""
    out, known = np.full(p_values.shape, np.nan), np.isfinite(p_values)
    if known.any():
        out[known] = false_discovery_control(p_values[known])
    return out


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number by Holm (1979); missing ones stay so and do not count."""
    out, known = np.full(p_values.shape, np.nan), np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = np.arange(len(order), 0, -1) * p_values[order]
    out[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return out


def random_halves(n: int, *, n_splits: int, seed: int) -> np.ndarray:
    """Which of ``n`` things are in the first half of random splits, ``[split, thing]``."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((n_splits, n)), axis=1) < n // 2


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row, ``[row, component]``; missing where all of a row is the same."""
    ranks = [rankdata(side, axis=1) for side in (first, second)]
    one, other = (side - side.mean(axis=1, keepdims=True) for side in ranks)
    return over((one * other).sum(axis=1), np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))


def _alike(present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two clusters or more, and the components that just these have."""
    patterns, which = np.unique(present, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        if pattern.sum() > 1:
            yield np.flatnonzero(pattern), np.flatnonzero(which.ravel() == number)


def _chunks(n: int, width: int) -> Iterator[int]:
    """Sizes that add up to n rows, of chunks of so many columns that stay within bounds."""
    size = max(1, _CELLS // max(1, width))
    for start in range(0, n, size):
        yield min(size, n - start)


def _draw(rng: np.random.Generator, members: np.ndarray, size: int, n_clusters: int) -> np.ndarray:
    """How often each of some resamples of the members drew each cluster, ``[resample, cluster]``."""
    drawn = members[rng.integers(len(members), size=(size, len(members)))]
    cells = (drawn + n_clusters * np.arange(size)[:, None]).ravel()
    return np.bincount(cells, minlength=size * n_clusters).reshape(size, n_clusters).astype(np.float64)
