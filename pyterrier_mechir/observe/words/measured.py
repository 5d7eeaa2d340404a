"""Orders of words as rows of measures, with intervals over queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.checks import warn
from pyterrier_mechir.observe.words.curves import Curves, area
from pyterrier_mechir.observe.words.orders import QUERY_TERMS, RANDOM
from pyterrier_mechir.results.frames import as_cells
from pyterrier_mechir.results.statistics import Estimator, bootstrap, cluster_sums, difference, ratio

CONTROLS = {"random": RANDOM, "query_terms": QUERY_TERMS}
"""The orders that explanations are compared with, text by text, by what columns call them."""

_Texts = Sequence[Mapping[str, Curves]]


@dataclass(frozen=True)
class Clustered:
    """Texts in clusters, and how intervals over these are made.

    Args:
        clusters: the number of each text's query, ``[text]``.
        ci: coverage.
        n_boot: resamples of queries.
        seed: of the resamples.
    """

    clusters: np.ndarray
    ci: float
    n_boot: int
    seed: int

    @classmethod
    def of(cls, qids: np.ndarray, ci: float, n_boot: int, seed: int) -> Clustered:
        """The clusters of texts whose queries have some ids."""
        return cls(np.unique(qids.astype(str), return_inverse=True)[1].reshape(-1), ci, n_boot, seed)

    def at(self, texts: np.ndarray) -> Clustered:
        """Those of some of the texts."""
        return Clustered(np.unique(self.clusters[texts], return_inverse=True)[1], self.ci, self.n_boot, self.seed)

    @property
    def n_clusters(self) -> int:
        """How many queries there are."""
        return int(self.clusters.max(initial=-1)) + 1

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimator:
        """Sums over sums, each ``[text, order]``."""
        return ratio(
            *(cluster_sums(part, self.clusters, np.ones(len(part)), self.n_clusters) for part in (above, below))
        )

    def columns(self, name: str, estimator: Estimator, n: int) -> dict[str, np.ndarray]:
        """The estimates of ``n`` orders, and the ends of their intervals."""
        present = np.ones((self.n_clusters, n), dtype=bool)
        low, high = bootstrap(estimator, present, ci=self.ci, n_boot=self.n_boot, seed=self.seed)
        estimates = estimator(np.arange(n))(np.ones((1, self.n_clusters)))[0]
        return {name: estimates, f"{name}_low": low, f"{name}_high": high}


def table(texts: _Texts, clustered: Clustered, scores: np.ndarray | None) -> pd.DataFrame:
    """A row for each order.

    Args:
        texts: the curves of each text, by the name of the order; all have the same.
        clustered: the queries of the texts.
        scores: the scores of the documents, ``[text]``; None where no ranks are to be lost.

    Raises:
        ValueError: no text can be measured.

    Warns:
        UserWarning: all words together make scores no greater than none do.
    """
    names, n = list(texts[0]), len(texts[0])
    usable = np.array([all(np.isfinite(one.whole) for one in of_text.values()) for of_text in texts], dtype=bool)
    if not usable.any():
        raise ValueError("no text has words whose absence can be scored; give another absence.")
    lost = None if scores is None else ranks_lost(texts, clustered.clusters, scores)[usable]
    kept, clustered = (
        [of_text for of_text, is_usable in zip(texts, usable, strict=True) if is_usable],
        clustered.at(usable),
    )
    whole = _of(kept, "whole")
    counted, made = np.ones_like(whole), dict[str, Any](method=names)
    has_shares = bool((whole.sum(0) > 0).all())
    if not has_shares:
        warn("all words together make scores no greater than none do, so that deletion and insertion have no shares.")
    nothing = np.full_like(whole, np.nan)
    areas = {name: area(_of(kept, name)) if has_shares else nothing for name in ("deletion", "insertion")}
    for curve, of_curve in areas.items():
        made |= clustered.columns(curve, clustered.ratio(of_curve, whole), n)
    for measure in ("comprehensiveness", "sufficiency"):
        made |= clustered.columns(measure, clustered.ratio(_of(kept, measure), counted), n)
    if lost is not None:
        made |= clustered.columns("ranks_lost", clustered.ratio(lost, counted), n)
    own = clustered.ratio(areas["deletion"], whole)
    for label, control in CONTROLS.items():
        if control in names:
            at = [names.index(control)] * n
            other = clustered.ratio(areas["deletion"][:, at], whole[:, at])
            made |= clustered.columns(f"deletion_over_{label}", difference(other, own), n)
    made |= {"n_queries": clustered.n_clusters, "n_texts": len(kept)}
    for curve in areas:
        total = _of(kept, curve).sum(0)
        made[f"{curve}_curve"] = as_cells(total / (whole.sum(0) if has_shares else np.full(n, np.nan))[:, None])
    return pd.DataFrame(made)


def ranks_lost(texts: _Texts, clusters: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many ranks each text loses on the way of its deletion curves, the others of its query staying where they are.

    Args:
        texts: their curves.
        clusters: the number of each text's query.
        scores: the scores of the whole texts.

    Returns:
        The mean over the way, and over orders of one name, ``[text, order]``.
    """
    lost = np.zeros((len(texts), len(texts[0])))
    for row, of_text in enumerate(texts):
        others = clusters == clusters[row]
        others[row] = False
        rivals = np.sort(scores[others])
        for column, one in enumerate(of_text.values()):
            above = len(rivals) - np.searchsorted(rivals, one.deleted, side="right")
            lost[row, column] = float(area((above - above[..., :1]).astype(np.float64)).mean())
    return lost


def _of(texts: _Texts, what: str) -> np.ndarray:
    """A number, or a curve, of each text and order: ``[text, order, ...]``."""
    return np.array([[getattr(one, what) for one in of_text.values()] for of_text in texts])
