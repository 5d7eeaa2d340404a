"""The candidates of queries with their judgments, as learning takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ir_measures
import numpy as np
import pandas as pd

from pyterrier_mechir.checks import warn
from pyterrier_mechir.results.frames import check_columns

CUTOFF = 10
"""Of the measure that learning goes by, nDCG@10."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of some queries, row by row.

    Args:
        qids: of the rows.
        docnos: of the rows.
        queries: of the rows.
        texts: of the rows.
        gains: the judgments, 0 where a document has none or a negative one, float64 ``[row]``.
        groups: the rows of each query.
        qrels: all judgments of these queries, with ``qid, docno, label``; None where none are given.
    """

    qids: list[str]
    docnos: list[str]
    queries: list[str]
    texts: list[str]
    gains: np.ndarray
    groups: list[np.ndarray]
    qrels: pd.DataFrame | None

    @classmethod
    def of(cls, frame: pd.DataFrame, qrels: pd.DataFrame | None, text_field: str, what: str) -> Candidates:
        """The candidates in a frame, of the queries that have judgments.

        Args:
            frame: with ``qid``, ``docno``, ``query`` and the text.
            qrels: with ``qid``, ``docno`` and ``label``; None keeps all queries.
            text_field: column of the text.
            what: what the queries are for, in messages: ``training``.

        Warns:
            UserWarning: some queries have no judgments, and are left out.

        Raises:
            ValueError: none has, or there is no query.
        """
        if not len(frame):
            raise ValueError(f"there are no {what} candidates: the frame is empty.")
        if qrels is not None:
            check_columns(qrels, ["qid", "docno", "label"])
            frame = _left(frame, frame["qid"].isin(set(qrels["qid"])), f"{what} queries have no judgments")
            qrels = qrels[qrels["qid"].isin(set(frame["qid"]))]
        frame = frame.reset_index(drop=True)
        groups = [np.asarray(rows) for rows in frame.groupby("qid", sort=False).indices.values()]
        return cls(
            frame["qid"].tolist(),
            frame["docno"].tolist(),
            frame["query"].tolist(),
            frame[text_field].tolist(),
            _gains(frame, qrels),
            sorted(groups, key=lambda rows: int(rows[0])),
            qrels,
        )

    def that_teach(self) -> Candidates:
        """Those of the queries of which one candidate is judged better than another.

        Warns:
            UserWarning: some queries have none, and are left out.

        Raises:
            ValueError: none has.
        """
        teaching = [rows for rows in self.groups if self.gains[rows].max() > self.gains[rows].min()]
        if not teaching:
            raise ValueError(
                "no training query has a candidate that is judged better than another, so there is nothing to learn; "
                "give more candidates, or loss='distill'."
            )
        n = len(self.groups) - len(teaching)
        if n:
            warn(
                f"{n} of {len(self.groups)} training queries have no candidate that is judged better than another, and "
                "are left out."
            )
        return replace(self, groups=teaching)

    def shuffled(self, seed: int) -> Candidates:
        """The same with the judgments of each query's candidates permuted among these, as a null."""
        gains, rng = self.gains.copy(), np.random.default_rng(seed)
        for rows in self.groups:
            gains[rows] = rng.permutation(gains[rows])
        ids = {"qid": self.qids, "docno": self.docnos}
        qrels = None if self.qrels is None else pd.DataFrame({**ids, "label": gains.astype(np.int64)})
        return replace(self, gains=gains, qrels=qrels)

    def drawn(self, rng: np.random.Generator, which: np.ndarray, size: int | None) -> np.ndarray:
        """Rows of some queries: all, or so many of each, of which at most half are judged relevant."""
        return np.concatenate([_some(rng, self.groups[i], self.gains, size) for i in which])

    def take(self, rows: np.ndarray) -> tuple[list[str], list[str], list[np.ndarray]]:
        """The queries and texts of some rows, and the places of each query's rows among these."""
        qids = np.array([self.qids[i] for i in rows], dtype=object)
        groups = [np.flatnonzero(qids == qid) for qid in dict.fromkeys(qids)]
        return [self.queries[i] for i in rows], [self.texts[i] for i in rows], groups

    def ndcg(self, scores: np.ndarray) -> pd.Series:
        """nDCG@10 of each query, by its id, of the candidates that are ranked by some scores."""
        if self.qrels is None:
            raise ValueError("there are no judgments to measure nDCG by; give qrels.")
        run = pd.DataFrame({"query_id": self.qids, "doc_id": self.docnos, "score": scores.astype(np.float64)})
        names = {"qid": "query_id", "docno": "doc_id", "label": "relevance"}
        found: Any = ir_measures.iter_calc([ir_measures.nDCG @ CUTOFF], self.qrels.rename(columns=names), run)
        values = {metric.query_id: metric.value for metric in found}
        return pd.Series([values.get(self.qids[rows[0]], 0.0) for rows in self.groups], self.names, dtype=np.float64)

    @property
    def names(self) -> list[str]:
        """The ids of the queries."""
        return [self.qids[rows[0]] for rows in self.groups]


def check_apart(first: pd.DataFrame, second: pd.DataFrame, what: str) -> None:
    """Check that two frames have no query in common, neither by its id nor by its text.

    Raises:
        ValueError: they have; ``what`` says whose queries these are.
    """
    for column in ("qid", "query"):
        common = sorted(set(first[column]) & set(second[column]))
        if common:
            raise ValueError(
                f"{len(common)} {what}, such as {column} {common[0]!r}: what is measured on a query that was learned "
                "from says nothing; give other queries."
            )


def _left(frame: pd.DataFrame, kept: pd.Series, what: str) -> pd.DataFrame:
    n, n_all = frame["qid"][~kept].nunique(), frame["qid"].nunique()
    if n == n_all:
        raise ValueError(f"all {n} {what}; give qrels of these queries, by qid.")
    if n:
        warn(f"{n} of {n_all} {what}, and are left out, such as qid {frame['qid'][~kept].iloc[0]!r}.")
    return frame[kept]


def _gains(frame: pd.DataFrame, qrels: pd.DataFrame | None) -> np.ndarray:
    if qrels is None:
        return np.zeros(len(frame))
    labels = qrels.drop_duplicates(["qid", "docno"])[["qid", "docno", "label"]]
    found = frame[["qid", "docno"]].merge(labels, on=["qid", "docno"], how="left")["label"]
    return found.fillna(0).clip(lower=0).to_numpy(np.float64)


def _some(rng: np.random.Generator, rows: np.ndarray, gains: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or len(rows) <= size:
        return rows
    relevant, others = rng.permutation(rows[gains[rows] > 0]), rng.permutation(rows[gains[rows] <= 0])
    n = min(len(relevant), max(size // 2, size - len(others)))
    return np.sort(np.concatenate([relevant[:n], others[: size - n]]))
