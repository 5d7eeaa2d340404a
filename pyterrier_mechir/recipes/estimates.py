"""Estimates of recipes that are of no single stage: means over queries, and heads that are tested on other queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.plots.markup import interval, signed
from pyterrier_mechir.results.effects import change
from pyterrier_mechir.results.frames import strongest_first
from pyterrier_mechir.results.statistics import (
    adjusted,
    bootstrap,
    cluster_sums,
    levels,
    random_halves,
    ratio,
    resamples,
    spearman,
)
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads

_LEAST = 0.01
"""Effects below this are not called a share of a change."""


def deltas(pairs: pd.DataFrame) -> pd.Series:
    """How far the score of each pair moves, s_p - s_b, in score units."""
    return change(pairs["score_baseline"], pairs["score_perturbed"])


class Estimate(NamedTuple):
    """A mean over pairs, and its 95% interval by a bootstrap of queries; missing for fewer than two of these."""

    value: float
    ci_low: float
    ci_high: float

    def told(self, below: str, above: str) -> str:
        """What a change does: ``below`` where its interval lies below 0, ``above`` where it lies above."""
        return below if self.ci_high < 0 else above if self.ci_low > 0 else "is not shown to change"

    def __str__(self) -> str:
        return f"{signed(self.value)} ({interval(self.ci_low, self.ci_high)})"


def mean_of(values: Any, queries: Any, *, n_boot: int = 1000, seed: int = 0) -> Estimate:
    """The mean of some values, of which those of one query are not independent.

    Args:
        values: ``[pair]``; missing ones are left out.
        queries: the query of each, ``[pair]``.
        n_boot: resamples of queries.
        seed: of the resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return Estimate(np.nan, np.nan, np.nan)
    numbers, names = pd.factorize(np.asarray(queries, dtype=object)[known])
    ones = np.ones(len(numbers))
    sums = cluster_sums(values[known, None], numbers, ones, len(names))
    counts = cluster_sums(ones[:, None], numbers, ones, len(names))
    low, high = bootstrap(ratio(sums, counts), counts > 0, ci=0.95, n_boot=n_boot, seed=seed)
    return Estimate(float(values[known].mean()), float(low[0]), float(high[0]))


def correlation(
    one: Any, other: Any, queries: np.ndarray, *, ranks: bool = False, n_boot: int = 1000, seed: int = 0
) -> Estimate:
    """A correlation over pairs, and its 95% interval by a bootstrap of queries.

    Args:
        one: ``[pair]``; pairs that lack a value are left out.
        other: ``[pair]``.
        queries: the number of each pair's query, ``[pair]``.
        ranks: Spearman's; else Pearson's.
        n_boot: resamples.
        seed: of the resamples.

    Returns:
        The correlation; missing where a side has one value only, or there are fewer than two queries.
    """
    values = np.stack([np.asarray(side, dtype=np.float64) for side in (one, other)])
    known = np.isfinite(values).all(axis=0)
    values, (numbers, names) = values[:, known], pd.factorize(queries[known])
    if len(names) < 2 or any(len(np.unique(side)) < 2 for side in values):
        return Estimate(np.nan, np.nan, np.nan)
    members = np.arange(len(numbers))
    resampled = [
        _correlated(values[:, np.repeat(members, counts[numbers])], ranks)
        for drawn in resamples(len(names), n_boot=n_boot, seed=seed)
        for counts in drawn.astype(np.int64)
    ]
    low, high = np.nanquantile(resampled, levels(0.95, len(names)))
    return Estimate(_correlated(values, ranks), float(low), float(high))


def _correlated(values: np.ndarray, ranks: bool) -> float:
    """The correlation of two rows; missing where one is constant."""
    if (np.ptp(values, axis=1) == 0).any():
        return np.nan
    return float(spearman(values[:1], values[1:])[0] if ranks else np.corrcoef(values)[0, 1])


def correlation_of_maps(
    given: np.ndarray, measured: np.ndarray, *, absolute: bool = False, n_boot: int = 1000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Spearman's correlation over heads of a map that is given with the mean of those that are measured of queries.

    Args:
        given: ``[head]``.
        measured: ``[query, head]``.
        absolute: take the absolute value of the mean.
        n_boot: resamples of queries, and permutations of heads.
        seed: of both.

    Returns:
        The correlation, the ends of its 95% interval by a bootstrap of queries, and its two-sided p-value by permuting
        heads: how often unrelated maps would agree as much.
    """
    drawn = [np.ones((1, len(measured))), *resamples(len(measured), n_boot=n_boot, seed=seed)]
    means = np.concatenate(drawn) @ measured / len(measured)
    means, repeated = np.abs(means) if absolute else means, np.tile(given, (n_boot, 1))
    value = spearman(repeated[:1], means[:1])[0]
    low, high = np.quantile(spearman(repeated, means[1:]), levels(0.95, len(measured)))
    shuffled = np.random.default_rng(seed).permuted(repeated, axis=1)
    by_chance = spearman(shuffled, np.tile(means[0], (n_boot, 1)))
    p_value = (1 + (np.abs(by_chance) >= abs(value)).sum()) / (1 + n_boot)
    return float(value), float(low), float(high), float(p_value)


def halves(frame: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a random half of the queries, on which something is chosen, and those of the others."""
    queries = np.sort(frame["qid"].unique())
    of_first = queries[random_halves(len(queries), n_splits=1, seed=seed)[0]]
    first = frame["qid"].isin(of_first)
    return frame[first].reset_index(drop=True), frame[~first].reset_index(drop=True)


def held_out_heads(patched: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """The components of greatest absolute effect on half of the queries, and their effects on the other half.

    Args:
        patched: of :class:`~pyterrier_mechir.PatchScorer`.
        n: how many.
        seed: of the halves and of the resampling.

    Returns:
        ``docno, layer, head, score_selection``, and ``score, ci_low, ci_high, p_value, p_adjusted, n_pairs`` and
        ``n_queries`` of the other queries, adjusted for the ``n``; the strongest first.

    Raises:
        ValueError: there are fewer than 4 queries, or ``n`` is less than 1.
    """
    patched = patched[patched["score_perturbed"].notna()].reset_index(drop=True)
    if (n_queries := patched["qid"].nunique()) < 4:
        raise ValueError(
            f"{n_queries} queries have pairs to patch; heads are chosen on half and tested on the others, so give "
            "documents of 4 at least."
        )
    first, second = halves(patched, seed)
    chosen = AggregateHeads(by=None, n_boot=0).transform(first)
    chosen = strongest_first(chosen).head(check_count("the number of heads to choose", n))
    tested = AggregateHeads(by=None, seed=seed).transform(second).set_index("docno").loc[chosen["docno"]].reset_index()
    tested = tested.assign(
        score_selection=chosen["score"].to_numpy(),
        p_adjusted=adjusted(tested["p_value"].to_numpy(np.float64)),
        n_queries=second["qid"].nunique(),
    )
    columns = ["docno", "layer", "head", "score_selection", "score", "ci_low", "ci_high", "p_value", "p_adjusted"]
    return tested[[*columns, "n_pairs", "n_queries"]]


def found(held_out: pd.DataFrame, what: str, alpha: float = 0.05) -> str:
    """What :func:`held_out_heads` amounts to, in a sentence.

    Heads are named whose p-value is below the level, whose interval excludes 0, and whose effect is a hundredth at
    least: a share of a change that may well be 0 says nothing, nor does one that is next to 0.

    Args:
        held_out: its frame.
        what: what the heads do, such as ``carry the change of the score``.
        alpha: the level.
    """
    excludes_0 = (held_out["ci_low"] > 0) | (held_out["ci_high"] < 0)
    significant = held_out[excludes_0 & (held_out["p_adjusted"] < alpha) & (held_out["score"].abs() >= _LEAST)]
    if not len(significant):
        n, n_queries = len(held_out), int(held_out["n_queries"].iloc[0])
        if (least := 2 / 2**n_queries) >= alpha:
            enough = 2 * (int(np.log2(2 / alpha)) + 1)
            return (
                f"Heads were chosen on half of the queries; the {n_queries} others are too few to show anything of "
                f"them, as no p-value is below {least:.2g}. Give documents of {enough} queries or more."
            )
        return f"None of the {n} heads that were chosen on half of the queries is shown to {what} on the others."
    named = [f"{row.docno} {signed(row.score)} ({interval(row.ci_low, row.ci_high)})" for row in records(significant)]
    return f"On queries that they were not chosen on, these {what}: {', '.join(named)}."


def records(frame: pd.DataFrame) -> list[Any]:
    """The rows of a frame, whose columns are attributes."""
    return list(frame.itertuples(index=False))


def names_of(heads: Sequence[Any] | pd.Series) -> str:
    """Names of heads in one line."""
    return " ".join(map(str, heads))
