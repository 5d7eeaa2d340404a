"""Frames of results as Arrow tables and back, bit for bit: cells may be arrays, or lists of strings.

An array of n axes is stored as lists nested n deep, so that other readers of Parquet see it as it is meant:
``patch_effect[5][8]``.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa

from pyterrier_mechir.results.frames import as_cells

_KEY = b"pyterrier_mechir"


def to_table(frame: pd.DataFrame) -> pa.Table:
    """A frame as a table; its index is left out.

    Raises:
        ValueError: a column cannot be stored; the message names it.
    """
    kinds = {name: type(frame[name].iloc[0]) for name in frame.columns if len(frame)}
    arrays = [name for name, kind in kinds.items() if issubclass(kind, np.ndarray)]
    lists = [name for name, kind in kinds.items() if issubclass(kind, list)]
    columns = {name: _nested(frame[name].tolist(), name) for name in arrays}
    plain = frame.drop(columns=arrays)
    plain.attrs = {}
    columns |= {name: _column(plain[name]) for name in plain.columns}
    schema = pa.Schema.from_pandas(plain, preserve_index=False)
    table = pa.table({name: columns[name] for name in frame.columns})
    ours = {"arrays": arrays, "lists": lists, "attrs": frame.attrs}
    return table.replace_schema_metadata({**(schema.metadata or {}), _KEY: json.dumps(ours).encode()})


def to_frame(table: pa.Table, columns: list[str] | None = None) -> pd.DataFrame:
    """The frame of a table that :func:`to_table` made, or some of its columns."""
    ours = json.loads(table.schema.metadata[_KEY])
    names = table.column_names if columns is None else columns
    plain = table.select([name for name in names if name not in ours["arrays"]])
    frame = plain.to_pandas()
    of_lists = {name: as_cells(table[name].to_pylist()) for name in names if name in ours["lists"]}
    of_arrays = {name: as_cells(_arrays(table[name])) for name in names if name in ours["arrays"]}
    frame = frame.assign(**of_lists, **of_arrays)[list(names)]
    frame.attrs = ours["attrs"]
    return frame


def _column(values: pd.Series) -> pa.Array:
    try:
        return pa.Array.from_pandas(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = f"column {values.name!r} cannot be stored in a Parquet file; drop it first"
        raise ValueError(f"{reason}: {error}") from error


def _nested(cells: list[np.ndarray], name: str) -> pa.Array:
    if len({(cell.ndim, cell.dtype) for cell in cells}) > 1:
        raise ValueError(f"column {name!r} has arrays of several kinds and cannot be stored; drop it first.")
    shapes = np.array([cell.shape for cell in cells], dtype=np.int64)
    nested = pa.array(np.concatenate([cell.ravel() for cell in cells]))
    for axis in reversed(range(shapes.shape[1])):
        lengths = np.repeat(shapes[:, axis], shapes[:, :axis].prod(axis=1))
        nested = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]), nested)
    return nested


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    values, shapes = column.combine_chunks(), []
    n_lists = np.ones(len(values), dtype=np.int64)
    while pa.types.is_large_list(values.type):
        lengths = values.value_lengths().to_numpy()
        padded = np.append(lengths, 0)
        firsts = np.cumsum(n_lists) - n_lists
        shapes.append(np.where(n_lists > 0, padded[firsts], 0))
        n_lists = n_lists * shapes[-1]
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    ends = np.cumsum(n_lists)
    of_rows = zip(ends - n_lists, ends, np.stack(shapes, axis=1).tolist(), strict=True)
    return [flat[start:end].reshape(shape) for start, end, shape in of_rows]
