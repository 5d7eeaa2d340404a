"""Tables of the report that are not about components: what was run, effectiveness, and the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import AP, RR, nDCG

from pyterrier_mechir.plots.markup import MISSING, number, signed
from pyterrier_mechir.results.effects import change
from pyterrier_mechir.results.frames import METADATA
from pyterrier_mechir.results.measures import RankShift, ScoreShift

_MOST_PAIRS = 1000
_LONGEST_TEXT = 120
_MEANINGS: dict[Any, str] = {
    nDCG @ 10: "ranking quality of the ten best documents",
    RR: "one over the rank of the first relevant document",
    AP: "mean precision at the ranks of relevant documents",
    ScoreShift: "mean change of the score by the perturbation",
    RankShift: "ranks that a document gains when it alone is perturbed",
}


class Table(NamedTuple):
    """A table of texts, and a sentence about it."""

    header: list[str]
    rows: list[list[str]]
    note: str


def run_of(frame: pd.DataFrame, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was run: as the frame says, and what is given beside."""
    known = frame.attrs.get(METADATA, {})
    return {name: value for name, value in known.items() if name not in ("sites", "slots")} | dict(about or {})


def definitions(value: Any) -> Any:
    """A nested mapping, or a list of some, as nested (term, definition) pairs without what is None; others as text."""
    if isinstance(value, Mapping):
        made = {key: definitions(one) for key, one in value.items() if one is not None}
        return [(str(key).replace("_", " "), one) for key, one in made.items() if one]
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
        if len(value) == 1:
            return definitions(value[0])
        return [(f"{number + 1} of {len(value)}", definitions(one)) for number, one in enumerate(value)]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def effectiveness(frame: pd.DataFrame, qrels: pd.DataFrame | None) -> Table:
    """Measures of the ranking of a frame, and of its shifts by the perturbation where its documents are pairs.

    Args:
        frame: the pairs, or documents.
        qrels: ``qid, docno, label``; without any, only the shifts are measured.
    """
    queries = frame["qid"].astype(str)
    shifts: list[Any] = [ScoreShift, RankShift] if "score_perturbed" in frame.columns else []
    judged = frame[["qid", "docno"]].assign(label=0) if qrels is None else qrels[qrels["qid"].astype(str).isin(queries)]
    n, n_judged = queries.nunique(), judged["qid"].nunique()
    if qrels is None:
        measures, note = shifts, "No judgments were given, so the quality of the ranking is not measured."
        if not shifts:
            return Table([], [], note)
    elif not n_judged:
        return Table([], [], "The judgments have none of these queries.")
    else:
        measures = [nDCG @ 10, RR, AP, *shifts]
        note = f"Means over the {n_judged} of {n} queries that are judged; only retrieved documents are ranked."
    numbers = ["score", *(["score_baseline", "score_perturbed"] if shifts else [])]
    run = frame[["qid", "docno", *numbers]].astype(dict.fromkeys(numbers, np.float64))
    values = pt.Evaluate(run, judged, measures)
    rows = [
        [str(measure), (signed if measure in shifts else number)(values[str(measure)]), _MEANINGS[measure]]
        for measure in measures
    ]
    return Table(["measure", "value", "what it says"], rows, note)


def as_given(experiment: pd.DataFrame) -> Table:
    """A frame of ``pt.Experiment`` as it is."""
    rows = [[_text(value) for value in row] for row in experiment.itertuples(index=False)]
    return Table([str(name) for name in experiment.columns], rows, "")


def pair_rows(frame: pd.DataFrame, text_field: str) -> list[dict[str, Any]]:
    """The pairs as rows of a table, in the order of the frame."""
    shown = frame.head(_MOST_PAIRS)
    delta = change(shown["score_baseline"], shown["score_perturbed"])
    texts = shown[text_field] if text_field in shown.columns else [""] * len(shown)
    ranks = shown["rank"] if "rank" in shown.columns else [None] * len(shown)
    return [
        {
            "qid": row.qid,
            "query": row.query,
            "docno": row.docno,
            "text": _snippet(text),
            "numbers": [
                (rank, MISSING if rank is None else str(rank)),
                (row.score, number(row.score)),
                (row.score_baseline, number(row.score_baseline)),
                (row.score_perturbed, number(row.score_perturbed)),
                (change, signed(change)),
            ],
        }
        for row, text, rank, change in zip(shown.itertuples(), texts, ranks, delta, strict=True)
    ]


def _snippet(text: Any) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT].rpartition(' ')[0]} \N{HORIZONTAL ELLIPSIS}"


def _text(value: Any) -> str:
    return number(value, 4) if isinstance(value, (float, np.floating)) else str(value)
