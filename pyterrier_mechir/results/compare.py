"""The effects of two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.results.aggregate import ranked_components, typed
from pyterrier_mechir.results.effects import over
from pyterrier_mechir.results.estimators import ESTIMATORS, QuerySums, query_sums, usable
from pyterrier_mechir.results.frames import COLUMNS, Label, check_columns
from pyterrier_mechir.results.pairs import PairArrays, read_pairs
from pyterrier_mechir.results.statistics import adjusted, bootstrap, difference, n_flips, sign_flips

STATISTICS = [
    *("score_first", "score_second", "n_pairs", "n_skipped", "ci_low", "ci_high", "p_value", "p_adjusted"),
]
"""The columns of numbers of a comparison."""


class Sides(NamedTuple):
    """What two frames have in common: the documents and components that have effects in both.

    Args:
        labels: the components.
        first: the sums of the first frame over each query's pairs.
        second: those of the second frame, over the same queries and pairs.
        n_pairs: how many pairs each component has, ``[component]``.
        n_skipped: how many documents of either frame it lacks, ``[component]``.
    """

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
        ValueError: the components differ, no document has effects in both, or one comes twice in a run.
    """
    return differences(read_sides(first, second, estimator), ci, n_boot, seed)


def differences(sides: Sides, ci: float, n_boot: int, seed: int) -> pd.DataFrame:
    """The rows of :func:`compare_heads`, from what two frames have in common."""
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
    return typed(ranked_components(sides.labels, columns), STATISTICS, extra)


def linear(estimator: str) -> str:
    """An estimator by which runs can be compared: one that is made of sums over queries, all but the median.

    Raises:
        ValueError: it is another.
    """
    return one_of("estimator", estimator, [name for name in ESTIMATORS if name != "median"])


def read_sides(first: pd.DataFrame, second: pd.DataFrame, estimator: str) -> Sides:
    """Read what two frames have in common.

    Args:
        first: as for :func:`compare_heads`.
        second: likewise.
        estimator: likewise.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: an unknown estimator, or the median; the components differ, there are no common pairs, or a pair
            comes twice in a run.
    """
    linear(estimator)
    for frame in (first, second):
        check_columns(frame, [*COLUMNS, "docno"])
    keys = [pd.MultiIndex.from_frame(frame[["qid", "docno"]].astype(str)) for frame in (first, second)]
    for key in keys:
        if not key.is_unique:
            qid, docno = key[key.duplicated()][0]
            raise ValueError(
                f"a run has (qid, docno) = ({qid!r}, {docno!r}) more than once, so that it cannot be told which to "
                "compare; drop_duplicates(['qid', 'docno']) first."
            )
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
    return Sides(labels, sums[0], sums[1], n_pairs, len(keys[0].union(keys[1])) - n_pairs)


def _at(frame: pd.DataFrame, rows: np.ndarray) -> tuple[list[Label], PairArrays]:
    part = frame.iloc[rows]
    part.attrs = frame.attrs
    return read_pairs(part)


def _named(labels: Sequence[Label]) -> str:
    names = [site.name for site, _ in labels]
    return f"{len(names)}, {names[0]} to {names[-1]}"
