"""Reading the frames that figures draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def aggregated(frame: pd.DataFrame, figure: str, needs: Sequence[str] = ("layer", "head", "score")) -> pd.DataFrame:
    """A frame of AggregateHeads as it is, and one of PatchScorer aggregated over all its pairs.

    Args:
        frame: the frame.
        figure: the function that draws it, for the message.
        needs: columns that it has to have.

    Raises:
        ValueError: it is neither, or holds the effects of several estimators or measures.
    """
    if "patch_effect" in frame.columns:
        from pyterrier_mechir.results.aggregate import aggregate

        frame = aggregate(frame, by=None)
    if not set(needs) <= set(frame.columns):
        columns = f"{', '.join(needs[:-1])} and {needs[-1]}"
        raise ValueError(f"{figure} draws frames of AggregateHeads or PatchScorer; this one has no {columns}.")
    for column in ("estimator", "measure"):
        check_one(frame, column, figure)
    return frame


def check_one(frame: pd.DataFrame, column: str, figure: str) -> None:
    """Check that a column, where there is one, has one value.

    Raises:
        ValueError: it has several.
    """
    values: Any = frame[column].dropna().unique() if column in frame.columns else []
    if len(values) > 1:
        raise ValueError(
            f"the frame has {len(values)} values of {column!r}, of which {figure} draws one: choose it, as by "
            f"frame[frame[{column!r}] == {str(values[0])!r}]."
        )


def table(frame: pd.DataFrame, rows: str, columns: str, values: str) -> pd.DataFrame:
    """A column of a frame as a table, whose rows and columns stand in the order in which they appear."""
    wide = frame.pivot_table(index=rows, columns=columns, values=values, aggfunc="mean", dropna=False, observed=False)
    wide = wide.reindex(index=frame[rows].unique(), columns=frame[columns].unique())
    return wide.astype(np.float64)
