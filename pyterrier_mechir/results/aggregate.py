"""Effects of many pairs, aggregated: a row per component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.results.estimators import averaged, query_sums, usable
from pyterrier_mechir.results.frames import Label
from pyterrier_mechir.results.pairs import Pairs
from pyterrier_mechir.results.statistics import adjusted, bootstrap, median, n_flips, over, sign_flips

_IDENTITY = ["qid", "docno", "score", "rank", "component", "layer", "head"]

_STATISTICS = ["n_pairs", "n_skipped", "mean_delta", "ci_low", "ci_high", "p_value", "p_adjusted"]


def _estimated(pairs: Pairs, estimator: str, ci: float, n_boot: int, seed: int) -> dict[str, np.ndarray]:
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


def _listed(estimator: str | Sequence[str]) -> list[str]:
    return [estimator] if isinstance(estimator, str) else list(estimator)


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
    kinds: dict[str, Any] = dict.fromkeys(["rank", "n_pairs", "n_skipped"], "int64") | {"head": "Int64"}
    kinds |= dict.fromkeys(["qid", "docno", "component", *extra], "str")
    columns = [*_IDENTITY, *extra, *statistics]
    frame = frame.reindex(columns=columns)
    kinds["layer"] = "Int64" if frame["layer"].isna().any() else "int64"
    return frame.astype({c: kinds.get(c, "float64") for c in columns})
