"""Reading the frames of ExplainScore: which text its units stand in, and the documents of each query."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.markup import greatest, signed
from pyterrier_mechir.results.frames import METADATA, check_columns, groups_of

_UNITS = ("units", "unit_spans", "unit_scores")
_PAIRS = "score_perturbed"
_STAGE = "ExplainScore"
_METHODS = {"ig": "integrated gradients", "lime": "LIME", "terms": "the ranker's own terms"}


class Explained(NamedTuple):
    """A document whose score is explained.

    Args:
        docno: the document.
        rank: its rank, None where the frame has none.
        score: its score, NaN where the frame has none.
        text: the explained text, whether of the document or of the query.
        units: the units as they stand in the text.
        spans: where, in characters, ``[unit, 2]``.
        scores: of the units, ``[unit]``; NaN for those beyond what the ranker reads.
        row: all of its row.
    """

    docno: str
    rank: Any
    score: float
    text: str
    units: list[str]
    spans: np.ndarray
    scores: np.ndarray
    row: pd.Series

    @property
    def margin(self) -> str:
        """By how much it leads the document that it is held against, as a text; empty where there is none."""
        against = self.row.get("against")
        if not isinstance(against, str) or pd.isna(self.row.get("margin")):
            return ""
        return f"{signed(self.row['margin'])} over {against}"

    @property
    def is_cut(self) -> bool:
        """Whether units of it are beyond what the ranker reads."""
        return bool(np.isnan(self.scores).any())

    def numbers_of_strongest(self, n: int) -> list[int]:
        """The numbers of the units of greatest absolute score, the strongest first."""
        order = np.argsort(-np.abs(self.scores), kind="stable")
        return [int(unit) for unit in order if np.isfinite(self.scores[unit])][:n]

    def strongest(self, n: int) -> list[tuple[str, float]]:
        """The units of greatest absolute score, and these."""
        return [(self.units[unit], float(self.scores[unit])) for unit in self.numbers_of_strongest(n)]


class Query(NamedTuple):
    """A query and its documents, in the order of their ranks."""

    qid: str
    query: str
    documents: list[Explained]

    @property
    def limit(self) -> float:
        """The greatest absolute score of a unit in any of the documents."""
        return max((greatest(document.scores) for document in self.documents), default=0.0)


def is_explained(frame: pd.DataFrame) -> bool:
    """Whether a frame is one of :class:`~pyterrier_mechir.ExplainScore`, and not what a later stage made of one."""
    stage = told(frame).get("stage")
    return set(_UNITS) <= set(frame.columns) and (stage == _STAGE if stage else _PAIRS not in frame.columns)


def told(frame: pd.DataFrame) -> dict[str, Any]:
    """What the frame says of the stage that made it."""
    scorer: dict[str, Any] = frame.attrs.get(METADATA, {}).get("scorer", {})
    return scorer


def sentence(frame: pd.DataFrame) -> str:
    """How the units were scored, in a line; empty where the frame does not say."""
    known = told(frame)
    if "method" not in known:
        return ""
    method = _METHODS.get(known["method"], known["method"])
    parts = [f"{method} of each {known.get('unit', 'unit')} of the {known.get('of', 'document')}"]
    parts += [f"absence: {known['absence']}"] if known.get("absence") else []
    parts += [f"against: {known['against']}"] if known.get("against") else []
    return "; ".join(parts)


def error_sentence(frame: pd.DataFrame) -> str:
    """How far off the scores of units may be, in a line; empty where the method has no measure of it.

    Of methods whose units add up to the score, by how much they miss it; of a fit, its standard errors and what it
    says of texts that it was not fitted to.
    """
    errors = np.asarray(frame.get("sum_error", []), dtype=np.float64)
    if np.isfinite(errors).any():
        is_of_margin = told(frame).get("of") == "query" and told(frame).get("against") is not None
        what = "margin" if is_of_margin else "score"
        return f"Units, rest and the {what} without units add up to the {what} within {np.nanmax(np.abs(errors)):.2g}."
    of_units = np.concatenate([[], *map(np.ravel, frame.get("unit_errors", []))])
    if not np.isfinite(of_units).any():
        return ""
    fit = np.asarray(frame.get("fit_r2", np.nan), dtype=np.float64)
    of_fit = (
        f"; on texts that it was not fitted to, the fit has an R2 of {np.nanmedian(fit):.2f} at the median and "
        f"{np.nanmin(fit):.2f} at the least"
        if np.isfinite(fit).any()
        else ""
    )
    most, median = np.nanmax(of_units), np.nanmedian(of_units)
    return f"Standard errors of units are up to {most:.2g}, {median:.2g} at the median{of_fit}."


def queries(frame: pd.DataFrame, what: str) -> list[Query]:
    """The queries of a frame with their documents, each in the order of its ranks.

    Args:
        frame: of :class:`~pyterrier_mechir.ExplainScore`.
        what: what shows it, for messages.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: it is no frame of ExplainScore, or its units do not stand in its text.
    """
    if not isinstance(frame, pd.DataFrame) or not set(_UNITS) <= set(frame.columns):
        raise ValueError(f"{what} shows frames of ExplainScore; this one has no {', '.join(_UNITS)}.")
    field = _explained_column(frame)
    check_columns(frame, ["qid", "docno", field])
    groups = groups_of(frame, "qid")
    found = []
    for group in range(groups.max(initial=-1) + 1):
        rows = frame[groups == group]
        if "rank" in rows.columns:
            rows = rows.sort_values("rank", kind="stable")
        first = rows.iloc[0]
        found.append(Query(str(first["qid"]), str(first.get("query", "")), [_document(r, field) for r in _rows(rows)]))
    return found


def segments(text: str, spans: Any) -> Iterator[tuple[str, int]]:
    """A text in its order as (piece, number of its unit), -1 for what stands between units; joined, they are the text.

    Args:
        text: the text.
        spans: begin and end of each unit in characters, ``[unit, 2]``, in any order.

    Raises:
        ValueError: spans overlap, or are not within the text.
    """
    places = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    at = 0
    for unit in np.argsort(places[:, 0], kind="stable").tolist():
        begin, end = places[unit].tolist()
        if not at <= begin <= end <= len(text):
            raise ValueError(
                f"unit {unit} stands at {begin} to {end}, which overlaps the one before it or leaves the text of "
                f"{len(text)} characters; give the text that was explained."
            )
        if begin > at:
            yield text[at:begin], -1
        yield text[begin:end], unit
        at = end
    if at < len(text):
        yield text[at:], -1


def _explained_column(frame: pd.DataFrame) -> str:
    known = told(frame)
    field = str(known.get("text_field", "text"))
    if "of" in known:
        return "query" if known["of"] == "query" else field
    columns = [name for name in (field, "query") if name in frame.columns]
    return next((name for name in columns if all(_fits(row, name) for row in _rows(frame))), field)


def _fits(row: pd.Series, name: str) -> bool:
    text = row[name]
    pieces = [text[begin:end] for begin, end in row["unit_spans"]] if isinstance(text, str) else None
    return pieces == list(row["units"])


def _rows(frame: pd.DataFrame) -> Iterable[pd.Series]:
    return (frame.iloc[place] for place in range(len(frame)))


def _document(row: pd.Series, field: str) -> Explained:
    units: Sequence[str] = row["units"]
    scores = np.asarray(row["unit_scores"], dtype=np.float64)
    spans = np.asarray(row["unit_spans"], dtype=np.int64).reshape(-1, 2)
    if not len(units) == len(scores) == len(spans):
        raise ValueError(
            f"document {row['docno']!r} has {len(units)} units, {len(spans)} spans and {len(scores)} scores; give the "
            "frame as ExplainScore made it."
        )
    if "against" in row.index and not isinstance(row["against"], str) and not np.isfinite(scores).any():
        units, spans, scores = [], spans[:0], scores[:0]  # the last document, which is held against none
    score = row.get("score")
    numbers = row.get("rank"), float("nan") if score is None else float(score)
    return Explained(str(row["docno"]), *numbers, str(row[field]), list(units), spans, scores, row)
