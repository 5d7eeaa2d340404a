"""Two head maps side by side: differences with intervals, agreement, and how stable a map is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
from scipy.stats import norm, rankdata

from pyterrier_mechir._options import one_of
from pyterrier_mechir.results.estimates import ESTIMATORS, QuerySums, query_sums, usable
from pyterrier_mechir.results.pairs import COLUMNS, METADATA, Label, Pairs, read_pairs
from pyterrier_mechir.results.statistics import (
    adjusted,
    bootstrap,
    difference,
    levels,
    n_flips,
    over,
    resamples,
    sign_flips,
)
from pyterrier_mechir.stages.aggregate import ranked_components, typed
from pyterrier_mechir.stages.inputs import Keyed

_STATISTICS = [
    *("score_first", "score_second", "n_pairs", "n_skipped", "ci_low", "ci_high", "p_value", "p_adjusted"),
]


class _Sides(NamedTuple):
    """What two frames have in common."""

    labels: list[Label]
    first: QuerySums
    second: QuerySums
    n_pairs: np.ndarray
    n_skipped: np.ndarray

    def maps(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two maps of each resample, ``[resample, component]``, from how often it drew each query."""
        every = np.arange(len(self.labels))
        return self.first.estimator(every)(drawn), self.second.estimator(every)(drawn)


def compare_heads(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    estimator: str = "ratio_of_means",
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the effect of each component differs between two runs: two rankers, perturbations, fillers or methods.

    Compared are the documents that both have, by ``qid`` and ``docno``, with effects on both sides, so that a
    difference is not one of documents.

    Args:
        first: of :class:`~pyterrier_mechir.PatchScorer`.
        second: of another one, with the same components in the same shape.
        estimator: ``ratio_of_means``, ``mean_of_ratios`` or ``difference``, as in
            :class:`~pyterrier_mechir.AggregateHeads`.
        ci: coverage of the intervals.
        n_boot: number of resamples, and of random flips; 0 leaves intervals and p-values missing.
        seed: of the resampling.

    Returns:
        A row per component, those that gain most first: ``qid`` (``"all"``), ``docno`` (its name), ``score`` (its
        effect in the second run less that in the first), ``rank``, ``component``, ``layer``, ``head``, ``slot`` (where
        token classes or positions are patched apart), ``score_first``, ``score_second`` (the effects), ``n_pairs``,
        ``n_skipped`` (documents of either run that are not compared), and

        - ``ci_low``, ``ci_high``: the interval of ``score``, by a bootstrap in which both runs have the same queries;
        - ``p_value``: two-sided, from flipping the signs of what each query adds to the difference; ``p_adjusted``
          allows for the number of components (Benjamini and Hochberg, 1995).

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: the components differ, or no document has effects in both.
    """
    return _differences(_sides(first, second, estimator), ci, n_boot, seed)


def _differences(sides: _Sides, ci: float, n_boot: int, seed: int) -> pd.DataFrame:
    everything = np.ones((1, len(sides.first.weights)))
    (one,), (other,) = sides.maps(everything)
    low = high = p_value = np.full(len(one), np.nan)
    if n_boot:
        estimate, present = difference(sides.first.estimator, sides.second.estimator), sides.first.present
        low, high = bootstrap(estimate, present, ci=ci, n_boot=n_boot, seed=seed)
        shares = [over(side.values, np.broadcast_to(side.below.sum(axis=0), side.values.shape)) for side in sides[1:3]]
        apart = np.nan_to_num(shares[1] - shares[0])
        p_value = np.where(
            np.isfinite(other - one), sign_flips(apart, present, n_flips=n_flips(n_boot, len(one)), seed=seed), np.nan
        )
    columns = {"qid": "all", "score": other - one, "score_first": one, "score_second": other}
    columns |= {"n_pairs": sides.n_pairs, "n_skipped": sides.n_skipped, "ci_low": low, "ci_high": high}
    columns |= {"p_value": p_value, "p_adjusted": adjusted(p_value)}
    extra = [] if sides.labels[0][1] is None else ["slot"]
    return typed(ranked_components(sides.labels, columns), _STATISTICS, extra)


def head_agreement(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    k: int = 10,
    estimator: str = "ratio_of_means",
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far two runs rank the components alike.

    Args:
        first: as for :func:`compare_heads`.
        second: likewise.
        k: how many of the first components of each ranking overlap.
        estimator: likewise.
        ci: coverage of the intervals.
        n_boot: number of resamples; 0 leaves the intervals missing.
        seed: of the resampling.

    Returns:
        A row each for Spearman's rank correlation over all components and for the overlap at k (share of the k first of
        one that are among the k first of the other): ``measure`` (``spearman``, ``overlap@10``), ``value``, ``ci_low``,
        ``ci_high``. Intervals lie about the value (about Fisher's z of the correlation), as wide as the standard error
        of a bootstrap of queries makes them: resamples agree less than the runs do, since each adds noise of its own,
        so that their percentiles would lie too low. What is estimated is the agreement of runs of as many queries,
        which noise lowers; see :func:`split_halves` for how far.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: as for :func:`compare_heads`, or ``k`` less than 1.
    """
    return _agreement(_sides(first, second, estimator), k, ci, n_boot, seed)


def _agreement(sides: _Sides, k: int, ci: float, n_boot: int, seed: int) -> pd.DataFrame:
    n_queries = len(sides.first.weights)
    deviates = norm.isf(levels(ci, n_queries)[0]) if n_queries > 1 else np.nan
    measures = _measures(_checked(k, len(sides.labels)))
    maps = sides.maps(np.ones((1, n_queries)))
    resampled = [sides.maps(drawn) for drawn in resamples(n_queries, n_boot=n_boot, seed=seed)] if n_queries > 1 else []
    rows = []
    for name, (measure, scale, back) in measures.items():
        value = measure(*maps)[0]
        values = np.concatenate([measure(*these) for these in resampled]) if resampled else np.full(2, np.nan)
        error = scale(values).std(ddof=1)
        reach = deviates * error
        rows.append((name, value, back(scale(value) - reach), back(scale(value) + reach)))
    return pd.DataFrame(rows, columns=["measure", "value", "ci_low", "ci_high"])


def split_halves(
    frame: pd.DataFrame,
    *,
    k: int = 10,
    estimator: str = "ratio_of_means",
    ci: float = 0.95,
    n_splits: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How stable a head map is: its agreement with itself, between random halves of the queries.

    Args:
        frame: of :class:`~pyterrier_mechir.PatchScorer`.
        k: how many of the first components of each ranking overlap.
        estimator: as for :func:`compare_heads`.
        ci: share of the splits that ``low`` and ``high`` span.
        n_splits: how many times the queries are split.
        seed: of the splits.

    Returns:
        A row each for Spearman's rank correlation and for the overlap at k: ``measure``, ``value`` (mean over the
        splits), ``low``, ``high`` (between which the splits' values lie, but for 1 - ``ci`` of them) and ``corrected``
        (of the correlation, what a map of all queries would have with another of as many: Spearman and Brown, 1910).

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: fewer than 4 queries, ``k`` less than 1, or as for :class:`~pyterrier_mechir.AggregateHeads`.
    """
    sides = _sides(frame, frame, estimator)
    n_queries = len(sides.first.weights)
    if n_queries < 4:
        raise ValueError(f"halves of {n_queries} queries tell nothing; give the results of at least 4 queries.")
    rng = np.random.default_rng(seed)
    half = np.argsort(rng.random((n_splits, n_queries)), axis=1) < n_queries // 2
    maps = sides.maps(half.astype(np.float64))[0], sides.maps((~half).astype(np.float64))[0]
    rows = []
    for name, (measure, _, _) in _measures(_checked(k, len(sides.labels))).items():
        values = measure(*maps)
        low, high = np.nanquantile(values, [(1 - ci) / 2, (1 + ci) / 2])
        mean = float(np.nanmean(values))
        corrected = 2 * mean / (1 + mean) if name == "spearman" else np.nan
        rows.append((name, mean, low, high, corrected))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "corrected"])


class CompareHeads(Keyed, pt.Transformer):
    """Runs two pipelines on the same input and compares the effects of their components.

    ``CompareHeads(bm25 >> PatchScorer(one), bm25 >> PatchScorer(other))(topics)`` compares two rankers of the same
    shape; with one ranker and two perturbations, fillers or methods, it compares these. Expected input columns are
    those of the two pipelines, which end in :class:`~pyterrier_mechir.PatchScorer`.

    Output: a row per component, as :func:`compare_heads` gives it. ``frame.attrs["mechir"]["agreement"]`` has the rows
    of :func:`head_agreement`, and ``["stability"]`` those of :func:`split_halves` for the ``first`` and the ``second``
    pipeline (not of fewer than 4 queries), as lists of dicts. These functions also take frames that are computed.

    Args:
        first: a pipeline.
        second: another.
        k: as for :func:`head_agreement`.
        estimator: as for :func:`compare_heads`.
        ci: coverage of the intervals.
        n_boot: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: an unknown estimator.
    """

    schematic: ClassVar = {"label": "CompareHeads", "inner_pipelines_mode": "unlinked"}

    def __init__(
        self,
        first: pt.Transformer,
        second: pt.Transformer,
        *,
        k: int = 10,
        estimator: str = "ratio_of_means",
        ci: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
    ):
        self.first = first
        self.second = second
        self.k = k
        self.estimator = _linear(estimator)
        self.ci = ci
        self.n_boot = n_boot
        self.seed = seed

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Run and compare.

        Raises:
            pt.validate.InputValidationError: a pipeline lacks a column.
            ValueError: as for :func:`compare_heads`.
        """
        first, second = self.first.transform(inp), self.second.transform(inp)
        for frame in (first, second):
            pt.validate.columns(frame, includes=[*COLUMNS, "docno"], context=self)
        if not len(first) and not len(second):
            return typed(pd.DataFrame(), _STATISTICS)
        sides = _sides(first, second, self.estimator)
        out = _differences(sides, self.ci, self.n_boot, self.seed)
        agreement = _agreement(sides, self.k, self.ci, self.n_boot, self.seed)
        out.attrs = {METADATA: {"agreement": agreement.to_dict("records")}}
        if min(first["qid"].nunique(), second["qid"].nunique()) >= 4:
            halves = {
                name: split_halves(frame, k=self.k, estimator=self.estimator, ci=self.ci, seed=self.seed).to_dict(
                    "records"
                )
                for name, frame in (("first", first), ("second", second))
            }
            out.attrs[METADATA]["stability"] = halves
        return out


def _linear(estimator: str) -> str:
    """An estimator of which runs can be compared: one that is made of sums over queries."""
    return one_of("estimator", estimator, [name for name in ESTIMATORS if name != "median"])


def _checked(k: int, n: int) -> int:
    if not k >= 1:
        raise ValueError(f"k is {k}; compare at least the first component of each.")
    return min(k, n)


_Measure = tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[Any], Any], Callable[[Any], Any]]
"""Two maps ``[resample, component]`` to values ``[resample]``; a scale on which these are normal, and the way back."""


def _measures(k: int) -> dict[str, _Measure]:
    return {
        "spearman": (_spearman, lambda value: np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)), np.tanh),
        f"overlap@{k}": (lambda one, other: _overlap(one, other, k), lambda value: value, lambda it: np.clip(it, 0, 1)),
    }


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    ranks = [rankdata(side, axis=1) for side in (first, second)]
    one, other = (side - side.mean(axis=1, keepdims=True) for side in ranks)
    return over((one * other).sum(axis=1), np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1)))


def _overlap(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    chosen = [np.argsort(-side, axis=1, kind="stable").argsort(axis=1) < k for side in (first, second)]
    return (chosen[0] & chosen[1]).sum(axis=1) / k


def _sides(first: pd.DataFrame, second: pd.DataFrame, estimator: str) -> _Sides:
    """The sums over the pairs that two frames have in common.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: the components differ, or there are no common pairs.
    """
    _linear(estimator)
    for frame in (first, second):
        pt.validate.columns(frame, includes=[*COLUMNS, "docno"])
    keys = [pd.MultiIndex.from_frame(frame[["qid", "docno"]].astype(str)) for frame in (first, second)]
    common = keys[0].intersection(keys[1], sort=False)
    if not len(common):
        raise ValueError("the two runs have no document in common, by qid and docno; compare runs of the same queries.")
    read = [_at(frame, key.get_indexer(common)) for frame, key in zip((first, second), keys, strict=True)]
    (labels, one), (of_second, other) = read
    if labels != of_second:
        raise ValueError(
            f"the two runs patch different components ({_named(labels)} and {_named(of_second)}); compare rankers of "
            "the same shape, with the same component, heads, layers and positions."
        )
    used = usable(one, estimator) & usable(other, estimator)
    kept = used.any(axis=0)
    if not kept.any():
        raise ValueError("no document has effects in both runs; their perturbations apply to different documents.")
    labels = [label for label, is_kept in zip(labels, kept, strict=True) if is_kept]
    rows = used.any(axis=1)
    used = used[rows][:, kept]
    sums = [query_sums(pairs.rows(rows).at_sites(kept), estimator, used) for pairs in (one, other)]
    n_pairs = used.sum(axis=0)
    return _Sides(labels, sums[0], sums[1], n_pairs, len(keys[0].union(keys[1])) - n_pairs)


def _at(frame: pd.DataFrame, rows: np.ndarray) -> tuple[list[Label], Pairs]:
    part = frame.iloc[rows]
    part.attrs = frame.attrs
    return read_pairs(part)


def _named(labels: Sequence[Label]) -> str:
    names = [site.name for site, _ in labels]
    return f"{len(names)}, {names[0]} to {names[-1]}"
