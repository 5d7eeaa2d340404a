"""Effects of many pairs, aggregated: a row per component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import warn
from pyterrier_mechir.results.effects import over
from pyterrier_mechir.results.estimators import ESTIMATORS, averaged, query_sums, usable
from pyterrier_mechir.results.frames import COLUMNS, METADATA, Label, check_columns, groups_of
from pyterrier_mechir.results.pairs import PairArrays, read_pairs
from pyterrier_mechir.results.statistics import adjusted, bootstrap, median, n_flips, sign_flips

_IDENTITY = ["qid", "docno", "score", "rank", "component", "layer", "head"]

_STATISTICS = ["n_pairs", "n_skipped", "mean_delta", "ci_low", "ci_high", "p_value", "p_adjusted"]


def aggregate(
    frame: pd.DataFrame,
    *,
    by: str | None = "qid",
    estimator: str | Sequence[str] = "ratio_of_means",
    ci: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
    weights: str | None = None,
) -> pd.DataFrame:
    """The effect of every component over the pairs of each group, with intervals and p-values.

    Args:
        frame: of :class:`~pyterrier_mechir.PatchScorer`, with the columns :func:`needed_columns`.
        by: as for :class:`~pyterrier_mechir.AggregateHeads`, which says what is computed; None pools all pairs.
        estimator: likewise; a list gives a row for each.
        ci: likewise.
        n_boot: likewise; 0 leaves intervals and p-values missing.
        seed: likewise.
        weights: likewise.

    Returns:
        A row per group, estimator and component, as :class:`~pyterrier_mechir.AggregateHeads` gives it, whose attrs
        tell how many pairs are in no group, if any are.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: as for :func:`checked_estimators`; the arrays of the rows are not of one shape; a weight that is no
            number of 0 or more; a column that comes twice, or groups of one name.

    Warns:
        UserWarning: pairs that are in no group, since their value of ``by`` is missing.
    """
    estimators = checked_estimators(estimator, ci, n_boot, weights)
    check_columns(frame, needed_columns(by, weights))
    extra = [] if isinstance(estimator, str) else ["estimator"]
    if not len(frame):
        return typed(pd.DataFrame(), _STATISTICS, extra)
    labels, pairs = read_pairs(frame, weights)
    swept = np.isfinite(pairs.moved).any(axis=0)
    if swept.any():
        labels, pairs = [label for label, kept in zip(labels, swept, strict=True) if kept], pairs.at_sites(swept)
    if by is None:
        groups, n_ungrouped = {"all": slice(None)}, 0
    else:
        groups, n_ungrouped = _groups(frame, by)
    parts = [
        ranked_components(
            labels, {"qid": name, "estimator": one, **_estimated(pairs.rows(rows), one, ci, n_boot, seed)}
        )
        for name, rows in groups.items()
        for one in estimators
    ]
    extra = extra if labels[0][1] is None else ["slot", *extra]
    made = typed(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), _STATISTICS, extra)
    made.attrs = {METADATA: {"n_ungrouped": n_ungrouped}} if n_ungrouped else {}
    return made


def _groups(frame: pd.DataFrame, by: str) -> tuple[dict[str, Any], int]:
    """The rows of each group, by its name, and how many rows are in none."""
    numbers = groups_of(frame, by, may_lack=True)
    order = np.argsort(numbers, kind="stable")
    rows = np.split(order, np.searchsorted(numbers[order], np.arange(numbers.max(initial=-1) + 1)))
    groups: dict[str, Any] = {}
    for members in rows[1:]:
        name = str(frame[by].iloc[members[0]])
        if name in groups:
            raise ValueError(f"column {by!r} has two groups that are written {name!r}; give them names that differ.")
        groups[name] = members
    n_ungrouped = len(rows[0])
    if n_ungrouped:
        warn(f"{n_ungrouped} of {len(frame)} pairs are in no group, since their {by!r} is missing.")
    return groups, n_ungrouped


def checked_estimators(estimator: str | Sequence[str], ci: float, n_boot: int, weights: str | None) -> list[str]:
    """The estimators that options of an aggregation ask for, as a list.

    Raises:
        ValueError: an unknown estimator, or none; weights of a median; ``ci`` or ``n_boot`` out of range.
    """
    listed = [estimator] if isinstance(estimator, str) else list(estimator)
    estimators = [one_of("estimator", name, ESTIMATORS) for name in listed]
    if not estimators:
        raise ValueError(f"estimator is empty; give one of {', '.join(map(repr, ESTIMATORS))}, or several.")
    if weights is not None and "median" in estimators:
        raise ValueError("the median takes no weights; leave them out, or choose estimators that are means.")
    if not 0 < ci < 1:
        raise ValueError(f"ci is {ci}; give a coverage between 0 and 1, such as 0.95.")
    if n_boot < 0:
        raise ValueError(f"n_boot is {n_boot}; give the number of resamples, 0 for no intervals and p-values.")
    return estimators


def needed_columns(by: str | None, weights: str | None) -> list[str]:
    """The columns that an aggregation reads."""
    others = [column for column in (by, weights) if column is not None and column != "qid"]
    return list(dict.fromkeys([*COLUMNS, *others]))


def _estimated(pairs: PairArrays, estimator: str, ci: float, n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """The columns of an estimate that are numbers, ``[site]`` each."""
    used = usable(pairs, estimator)
    sums = query_sums(pairs, estimator, used)
    estimate = sums.estimator
    if estimator == "median":
        estimate = median(np.where(used, averaged(pairs, estimator), np.nan), pairs.queries)
    score = estimate(np.arange(used.shape[1]))(np.ones((1, len(sums.weights))))[0]
    low = high = p_value = np.full(score.shape, np.nan)
    if n_boot:
        low, high = bootstrap(estimate, sums.present, ci=ci, n_boot=n_boot, seed=seed)
        p_value = sign_flips(sums.values, sums.present, n_flips=n_flips(n_boot, len(score)), seed=seed)
        p_value[~np.isfinite(score)] = np.nan
    return {
        "score": score,
        "n_pairs": used.sum(axis=0),
        "n_skipped": (~used).sum(axis=0),
        "mean_delta": over(sums.deltas.sum(axis=0), sums.weights.sum(axis=0)),
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "p_adjusted": adjusted(p_value),
    }


def ranked_components(labels: list[Label], columns: dict[str, Any]) -> pd.DataFrame:
    """Components as retrieved items: a row each with its name and place, in the order of their ``score``.

    Args:
        labels: what each is.
        columns: other columns, ``score`` among them.
    """
    out = pd.DataFrame(
        {
            "docno": [site.name if slot is None else f"{site.name}@{slot}" for site, slot in labels],
            "component": [site.component for site, _ in labels],
            "layer": [site.layer for site, _ in labels],
            "head": [site.number for site, _ in labels],
            "slot": [slot for _, slot in labels],
            **columns,
        }
    )
    out = out.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return out.assign(rank=np.arange(len(out)))


def typed(frame: pd.DataFrame, statistics: Sequence[str], extra: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a frame of components in their order and types: its identity, more strings, and statistics."""
    kinds: dict[str, Any] = dict.fromkeys(["rank", "n_pairs", "n_skipped", "n_queries"], "int64") | {"head": "Int64"}
    kinds |= dict.fromkeys(["qid", "docno", "component", *extra], "str")
    columns = [*_IDENTITY, *extra, *statistics]
    frame = frame.reindex(columns=columns)
    kinds["layer"] = "Int64" if frame["layer"].isna().any() else "int64"
    return frame.astype({c: kinds.get(c, "float64") for c in columns})
