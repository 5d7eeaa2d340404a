"""Checks of the frames that stages are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.results.frames import check_columns


def check_results(stage: pt.Transformer, frame: pd.DataFrame, text_field: str) -> None:
    """Check that a frame has documents with text, each column once, and every row its ids.

    Raises:
        pt.validate.InputValidationError: a column is missing; for a text, the message names what loads it.
        ValueError: as for :func:`~pyterrier_mechir.results.frames.check_columns`.
    """
    try:
        check_columns(frame, ["qid", "docno", "query", text_field], stage)
    except pt.validate.InputValidationError as error:
        if text_field not in frame.columns and {"qid", "docno"} <= set(frame.columns):
            error.args = (
                f"{error.args[0]} Column {text_field!r} is added by a text loader: put "
                f"dataset.text_loader({text_field!r}) or pt.text.get_text(dataset, {text_field!r}) before {stage!r}.",
            )
        raise


def check_rows(frame: pd.DataFrame, fields: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Check that every (qid, docno) comes once, and that texts are strings.

    Args:
        frame: the rows.
        fields: columns that must hold a string in every row.
        optional: columns that may be missing in a row.

    Raises:
        ValueError: naming the first row at fault.
    """
    repeated = frame.duplicated(["qid", "docno"])
    if repeated.any():
        row = frame[repeated].iloc[0]
        raise ValueError(
            f"(qid, docno) = ({row['qid']!r}, {row['docno']!r}) comes more than once; "
            "drop_duplicates(['qid', 'docno']) first."
        )
    check_strings(frame, fields, optional)


def check_strings(frame: pd.DataFrame, fields: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Check that texts are strings.

    Args:
        frame: the rows.
        fields: columns that must hold a string in every row.
        optional: columns that may be missing in a row.

    Raises:
        ValueError: naming the first row at fault.
    """
    optional = set(optional)
    for field in (*fields, *optional):
        for position, value in enumerate(frame[field]):
            if isinstance(value, str) or (field in optional and _is_missing(value)):
                continue
            row = frame.iloc[position]
            what = "missing" if _is_missing(value) else f"a {type(value).__name__}, not a string,"
            where = ", ".join(f"{name} {row[name]!r}" for name in ("qid", "docno") if name in frame.columns)
            raise ValueError(f"column {field!r} is {what} for {where}.")


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
