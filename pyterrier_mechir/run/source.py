"""What a run reads, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.stages.results_writer import in_parts

TOPICS = 8
"""Topics that are retrieved for at once."""


def applied(stages: Sequence[pt.Transformer], frame: pd.DataFrame) -> pd.DataFrame:
    """What stages make of a frame, one after the other."""
    for stage in stages:
        frame = stage.transform(frame)
    return frame


class Source(NamedTuple):
    """What a run reads.

    Args:
        blocks: frames.
        n_pairs: how many rows they have; None where nobody knows.
        path: of the Parquet files that they come from, if they do.
    """

    blocks: Iterator[pd.DataFrame]
    n_pairs: int | None = None
    path: str | None = None

    @classmethod
    def of(cls, frame: Any, size: int, by_row: bool) -> Source:
        """Read a frame, an iterable of frames or Parquet files, about ``size`` rows at a time.

        Args:
            frame: what is read.
            size: how many rows.
            by_row: whether the rows of a query in a frame may come apart.

        Raises:
            TypeError: it is none of these.
            ValueError: there are no such files.
        """
        if isinstance(frame, pd.DataFrame):
            of_documents = "docno" in frame.columns
            blocks = in_parts([frame], size) if by_row else _blocks(frame, size if of_documents else TOPICS)
            return cls(blocks, len(frame) if of_documents else None)
        if isinstance(frame, (str, Path)):
            return cls._of_files(frame, size)
        if isinstance(frame, Iterable):
            return cls(map(_checked, frame))
        raise TypeError(_UNREADABLE.format(type(frame).__name__))

    @classmethod
    def _of_files(cls, path: str | Path, size: int) -> Source:
        import pyarrow as pa
        import pyarrow.dataset as files

        try:
            found = files.dataset(str(path), format="parquet")
            n_rows, of_documents = found.count_rows(), "docno" in found.schema.names
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"cannot read {str(path)!r} as Parquet: {error}") from error
        batches = found.to_batches(batch_size=size if of_documents else TOPICS, batch_readahead=2, fragment_readahead=1)
        frames = (pa.Table.from_batches([batch]).to_pandas() for batch in batches if len(batch))
        return cls(frames, n_rows if of_documents else None, str(path))

    def peeked(self) -> tuple[pd.DataFrame | None, Source]:
        """Look at the first block without losing it.

        Returns:
            The first block, None where there is none, and a source to read from in place of this one: it gives the
            first block again, and then the others.
        """
        first = next(self.blocks, None)
        return first, self if first is None else self._replace(blocks=chain([first], self.blocks))


_UNREADABLE = "frame should be a DataFrame, an iterable of DataFrames or the path of Parquet files, not a {}."


def _checked(frame: Any) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(_UNREADABLE.format(f"{type(frame).__name__} in an iterable"))
    return frame


def _blocks(frame: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """Parts of a frame of at least ``size`` rows, with all rows of a query in one; only the last may be smaller."""
    if "qid" not in frame.columns:
        yield frame
        return
    codes = pd.factorize(frame["qid"])[0]
    order = np.argsort(codes, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(codes[order])) + 1, len(order))
    start = 0
    for end in ends.tolist():
        if end - start >= size or end == len(order):
            yield frame.iloc[order[start:end]]
            start = end
