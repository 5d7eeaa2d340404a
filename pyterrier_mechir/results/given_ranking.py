"""A run beside a ranking of components that is given, and was not measured on the same pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.results.compare import linear
from pyterrier_mechir.results.estimators import QuerySums, query_sums, usable
from pyterrier_mechir.results.frames import COLUMNS, check_columns
from pyterrier_mechir.results.pairs import read_pairs


class AgainstRanking(NamedTuple):
    """A run, and the scores that a ranking gives to its components.

    Args:
        labels: the names of the components.
        first: the run's sums over each query's pairs, or a score of each query and component as if of one pair.
        given: the ranking's scores, ``[component]``.
    """

    labels: list[str]
    first: QuerySums
    given: np.ndarray

    @classmethod
    def of(cls, first: pd.DataFrame, second: pd.DataFrame, estimator: str) -> AgainstRanking:
        """Read them.

        Args:
            first: of :class:`~pyterrier_mechir.PatchScorer`, or ``qid, docno, score`` with a row per query and
                component.
            second: ``docno, score`` with a row per component.
            estimator: of a run's effects, no median.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: the median, no effects, a component that comes twice, or one that the ranking does not have.
        """
        linear(estimator)
        check_columns(second, ["docno", "score"])
        _check_once(second, ["docno"])
        names, sums = _run(first, estimator) if "patch_scores" in first else _rankings(first)
        given = second.set_index("docno")["score"].astype(np.float64)
        lacking = next((name for name in names if name not in given.index), None)
        if lacking is not None:
            raise ValueError(
                f"the ranking that is given has no component {lacking!r}; give one of all that are compared."
            )
        return cls(names, sums, given[names].to_numpy())

    def maps(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two maps of each resample, ``[resample, component]``; the ranking is the same in all."""
        estimated = self.first.estimator(np.arange(len(self.labels)))(drawn)
        return estimated, np.broadcast_to(self.given, estimated.shape)


def _run(frame: pd.DataFrame, estimator: str) -> tuple[list[str], QuerySums]:
    check_columns(frame, COLUMNS)
    labels, pairs = read_pairs(frame)
    used = usable(pairs, estimator)
    kept = np.asarray(used.any(axis=0))
    if not kept.any():
        raise ValueError("no document has effects in the run; its perturbation applies to none of them.")
    names = [site.name if slot is None else f"{site.name}@{slot}" for site, slot in labels]
    names = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
    return names, query_sums(pairs.at_sites(kept), estimator, used[:, kept])


def _rankings(frame: pd.DataFrame) -> tuple[list[str], QuerySums]:
    check_columns(frame, ["qid", "docno", "score"])
    _check_once(frame, ["qid", "docno"])
    scores = frame.pivot(index="qid", columns="docno", values="score").astype(np.float64)
    present = scores.notna().to_numpy().astype(np.float64)
    return list(scores.columns), QuerySums(scores.fillna(0).to_numpy(), np.zeros_like(present), present, present)


def _check_once(frame: pd.DataFrame, of: list[str]) -> None:
    twice = frame.loc[frame.duplicated(of), "docno"]
    if len(twice):
        raise ValueError(f"component {twice.iloc[0]!r} comes twice in one ranking; leave one row of each.")
