"""How far two maps of effects agree, and how stable one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from pyterrier_mechir.results.compare import Sides, read_sides
from pyterrier_mechir.results.frames import METADATA, check_columns
from pyterrier_mechir.results.given_ranking import AgainstRanking
from pyterrier_mechir.results.statistics import levels, random_halves, resamples, spearman


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
    """How far two runs rank the components alike, or a run and a given ranking of them.

    Args:
        first: as for :func:`~pyterrier_mechir.compare_heads`. Where ``second`` is a ranking, it may be one too, of each
            query (``AggregateHeads()``) or of all together.
        second: likewise, or a ranking that is given: ``docno`` (names of components) and ``score``, a row for each,
            such as ``known_circuit().heads`` or the output of ``AggregateHeads(by=None)``. It is taken as it is: only
            the queries of ``first`` are resampled, and rankings of queries are averaged.
        k: how many of the first components of each ranking overlap.
        estimator: likewise; a ranking has none.
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
        ValueError: as for :func:`~pyterrier_mechir.compare_heads`, or ``k`` less than 1; a given ranking that has a
            component twice, or that lacks one that ``first`` has.
    """
    if isinstance(second, pd.DataFrame) and "patch_scores" not in second:
        return _agreement(AgainstRanking.of(first, second, estimator), k, ci, n_boot, seed)
    return _agreement(read_sides(first, second, estimator), k, ci, n_boot, seed)


def agreement_and_stability(
    sides: Sides,
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    k: int = 10,
    estimator: str = "ratio_of_means",
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What a comparison of two runs says beside the difference of each component.

    Args:
        sides: what the two runs have in common.
        first: as for :func:`head_agreement`.
        second: likewise.
        k: likewise.
        estimator: likewise.
        ci: likewise, and share of the splits.
        n_boot: likewise.
        seed: of the resampling, and of the splits.

    Returns:
        ``agreement``, the rows of :func:`head_agreement`, and, where both runs have at least 4 queries, ``stability``,
        the rows of :func:`split_halves` of the ``first`` and of the ``second``, as lists of dicts.

    Raises:
        ValueError: ``k`` less than 1.
    """
    out: dict[str, Any] = {"agreement": _agreement(sides, k, ci, n_boot, seed).to_dict("records")}
    frames = {"first": first, "second": second}
    if min(frame["qid"].nunique() for frame in frames.values()) >= 4:
        out["stability"] = {
            name: split_halves(frame, k=k, estimator=estimator, ci=ci, seed=seed).to_dict("records")
            for name, frame in frames.items()
        }
    return out


def _agreement(sides: Sides | AgainstRanking, k: int, ci: float, n_boot: int, seed: int) -> pd.DataFrame:
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
        estimator: as for :func:`~pyterrier_mechir.compare_heads`.
        ci: share of the splits that ``low`` and ``high`` span.
        n_splits: how many times the queries are split.
        seed: of the splits.

    Returns:
        A row each for Spearman's rank correlation and for the overlap at k: ``measure``, ``value`` (mean over the
        splits), ``low``, ``high`` (between which the splits' values lie, but for 1 - ``ci`` of them) and ``corrected``
        (of the correlation, what a map of all queries would have with another of as many: Spearman and Brown, 1910).
        How many queries have no effects, if any have none, is in ``attrs["mechir"]["n_skipped"]``.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: fewer than 4 queries, ``k`` less than 1, or as for :class:`~pyterrier_mechir.AggregateHeads`.
    """
    sides = read_sides(frame, frame, estimator)
    n_queries = len(sides.first.weights)
    if n_queries < 4:
        raise ValueError(f"halves of {n_queries} queries tell nothing; give the results of at least 4 queries.")
    half = random_halves(n_queries, n_splits=n_splits, seed=seed)
    maps = sides.maps(half.astype(np.float64))[0], sides.maps((~half).astype(np.float64))[0]
    rows = []
    for name, (measure, _, _) in _measures(_checked(k, len(sides.labels))).items():
        values = measure(*maps)
        low, high = np.nanquantile(values, [(1 - ci) / 2, (1 + ci) / 2])
        mean = float(np.nanmean(values))
        corrected = 2 * mean / (1 + mean) if name == "spearman" else np.nan
        rows.append((name, mean, low, high, corrected))
    made = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "corrected"])
    n_skipped = frame["qid"].nunique() - n_queries
    made.attrs = {METADATA: {"n_skipped": n_skipped}} if n_skipped else {}
    return made


def _checked(k: int, n: int) -> int:
    if not k >= 1:
        raise ValueError(f"k is {k}; compare at least the first component of each.")
    return min(k, n)


_Measure = tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Callable[[Any], Any], Callable[[Any], Any]]
"""Two maps ``[resample, component]`` to values ``[resample]``; a scale on which these are normal, and the way back."""


def _measures(k: int) -> dict[str, _Measure]:
    return {
        "spearman": (spearman, lambda value: np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9)), np.tanh),
        f"overlap@{k}": (lambda one, other: _overlap(one, other, k), lambda value: value, lambda it: np.clip(it, 0, 1)),
    }


def _overlap(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    chosen = [np.argsort(-side, axis=1, kind="stable").argsort(axis=1) < k for side in (first, second)]
    return (chosen[0] & chosen[1]).sum(axis=1) / k


_TIED = 1e-5
"""Relative spread of float32 scores that are the same but for rounding."""


def lens_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """How far the ranking of each layer is the final ranking.

    Args:
        frame: the output of :class:`~pyterrier_mechir.ScoreLens`, with the columns ``qid`` and ``layer_scores``.

    Returns:
        A row per point of the stream: ``layer`` (0 is what enters the first layer, l what leaves layer l - 1; the last
        is the model), ``tau`` (Kendall's tau-b of its scores with the final scores of a query's documents, averaged
        over queries) and ``n_queries``, those that it is averaged over: with at least two documents, not all scored
        alike. ``tau`` is missing where there is none. An empty frame gives no rows.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: arrays of several lengths, which are those of several rankers.
    """
    from scipy.stats import kendalltau

    check_columns(frame, ["qid", "layer_scores"])
    if len({len(scores) for scores in frame["layer_scores"]}) > 1:
        raise ValueError("layer_scores has arrays of several lengths; give the output of one ScoreLens at a time.")
    of_queries = [
        np.stack(list(scores)) for _, scores in frame.groupby("qid", sort=False, observed=True)["layer_scores"]
    ]
    of_queries = [scores for scores in of_queries if len(scores) > 1 and _varies(scores[:, -1])]
    rows = []
    for layer in range(len(frame["layer_scores"].iloc[0]) if len(frame) else 0):
        taus = [kendalltau(s[:, layer], s[:, -1]).statistic for s in of_queries if _varies(s[:, layer])]
        rows.append((layer, float(np.mean(taus)) if taus else np.nan, len(taus)))
    made = pd.DataFrame(rows, columns=["layer", "tau", "n_queries"])
    return made.astype({"layer": "int64", "tau": "float64", "n_queries": "int64"})


def _varies(scores: np.ndarray) -> bool:
    """Whether scores differ by more than rounding."""
    return bool(np.ptp(scores) > _TIED * np.abs(scores).max())
