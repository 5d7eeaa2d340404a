"""The explained units in the rows of a frame, of which the strongest are patched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.text.unit_slots import moved, slots_of, strongest

COLUMNS = ("units", "unit_spans", "unit_scores")
"""What ExplainScore says of the units of a text: how they stand there, from which character to which, their scores."""


@dataclass(frozen=True)
class RowUnits:
    """The units of a row, and which of them are patched.

    Args:
        words: the chosen units as they stand in the text, the strongest first.
        spans: of all units in the baseline text, int64 ``[n, 2]``; 0 and 0 for one that it lacks.
        chosen: the numbers of the chosen units.
        k: how many slots there are.
    """

    words: list[str]
    spans: np.ndarray
    chosen: np.ndarray
    k: int

    def key(self) -> tuple[bytes, bytes]:
        """The same for rows in which the same characters are chosen."""
        return self.spans.tobytes(), self.chosen.tobytes()

    def slots(self, of_tokens: np.ndarray) -> np.ndarray:
        """The positions of each chosen unit, bool ``[k, n]``.

        Args:
            of_tokens: the characters of the baseline text that the token at each position is made of, ``[n, 2]``.
        """
        return slots_of(of_tokens, self.spans, self.chosen, self.k)


def check_units(stage: pt.Transformer, frame: pd.DataFrame) -> None:
    """Check that the units of a frame's texts are explained.

    Raises:
        pt.validate.InputValidationError: a column is missing; the message says what adds it.
    """
    try:
        check_columns(frame, COLUMNS, stage)
    except pt.validate.InputValidationError as error:
        error.args = (
            f"{error.args[0]} They tell which words are the strongest and are added by ExplainScore: put "
            "ExplainScore(ranker) before what perturbs the texts.",
        )
        raise


def units_of(frame: pd.DataFrame, field: str, baselines: Sequence[str], k: int) -> list[RowUnits]:
    """The units of each row.

    Args:
        frame: with :data:`COLUMNS`, of the texts in ``field`` or of the baselines.
        field: the column of the texts that vary.
        baselines: the baseline text of each row.
        k: how many units of a row are patched.

    Raises:
        ValueError: a row without units, or whose units are those of another text.
    """
    cells = zip(frame[field], baselines, *(frame[name] for name in COLUMNS), strict=True)
    found = []
    for row, (text, baseline, *of_row) in enumerate(cells):
        words, spans, scores = _read(frame, row, *of_row)
        chosen = strongest(scores, k)
        explained = next((one for one in (baseline, text) if _has(one, words, spans)), None)
        if explained is None:
            option = "of='query'" if field == "query" else f"text_field={field!r}"
            raise ValueError(
                f"the units of {_row(frame, row)} are not where they should be in its {field}, which is what varies; "
                f"explain that text, with ExplainScore(ranker, {option}) before what perturbs it."
            )
        in_order = [words[number] for number in chosen]
        found.append(RowUnits(in_order, moved(spans, explained, baseline), chosen, k))
    return found


def _read(
    frame: pd.DataFrame, row: int, units: Any, spans: Any, scores: Any
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The units of a row, their spans ``[n, 2]`` and their scores ``[n]``."""
    try:
        words = list(units)
        at = np.array(list(spans), dtype=np.int64).reshape(len(words), 2)
        return words, at, np.array(list(scores), dtype=np.float64).reshape(len(words))
    except (TypeError, ValueError):
        raise ValueError(
            f"the units, unit_spans and unit_scores of {_row(frame, row)} are not those of one text; give them as "
            "ExplainScore makes them, or drop the row."
        ) from None


def _has(text: str, words: Sequence[str], spans: np.ndarray) -> bool:
    return all(text[begin:end] == word for word, (begin, end) in zip(words, spans.tolist(), strict=True))


def _row(frame: pd.DataFrame, row: int) -> str:
    at = frame.iloc[row]
    return f"qid {at['qid']!r}, docno {at['docno']!r}"
