"""Frames of results as Arrow tables and back, bit for bit, whatever their columns hold.

Each column goes one of three ways, of which the table's metadata tell:

- its type is one that Arrow has: as it is. What a Parquet file gives back otherwise is refused;
- its cells are arrays of one type: an array of n axes is lists nested n deep, so that other readers of Parquet see it
  as it is meant: ``patch_effect[5][8]``; or texts, numbers of one kind, or lists of these: as Arrow has them;
- its cells are anything else: JSON that says their types (:mod:`~pyterrier_mechir.results.stored.typed`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.results.stored.typed import decoded, encoded, is_unicode

_KEY = b"pyterrier_mechir"

_NATIVE: tuple[set[type], ...] = ({str}, {bool}, {int}, {float}, {bytes}, set())
"""Kinds of objects that come back from Arrow as they went in, if all in a column, or in its lists, are of one."""

_UNFIT = (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError)


def to_table(frame: pd.DataFrame, *, as_parts: bool = False) -> pa.Table:
    """A frame as a table; its index is left out.

    Args:
        frame: the frame.
        as_parts: write objects in the one way that does for all, so that the tables of the parts of a frame have the
            same metadata.

    Raises:
        ValueError: a column or the attrs cannot be stored; the message names it.
    """
    check_columns(frame, [])
    names = _names(frame.columns)
    columns: dict[str, Any] = {}
    ways: dict[str, list[str]] = {"arrays": [], "lists": [], "typed": []}
    is_object = [isinstance(dtype, np.dtype) and dtype.kind == "O" for dtype in frame.dtypes]
    for place, (name, label) in enumerate(zip(names, frame.columns, strict=True)):
        if is_object[place]:
            way, columns[name] = _of_objects(frame.iloc[:, place].tolist(), f"column {label!r}", as_parts)
            ways[way].append(name)
    plain = frame.iloc[:, [place for place, is_one in enumerate(is_object) if not is_one]]
    labels, plain.attrs = list(plain.columns), {}
    plain.columns = pd.Index([name for name, is_one in zip(names, is_object, strict=True) if not is_one])
    columns |= {name: _of_type(plain[name], label) for name, label in zip(plain.columns, labels, strict=True)}
    schema = pa.Schema.from_pandas(plain, preserve_index=False)
    table = pa.table({name: columns[name] for name in names})
    renamed = {name: encoded(label) for name, label in zip(names, frame.columns, strict=True) if name != label}
    ours = ways | {"names": renamed, "attrs": json.loads(_typed(frame.attrs, "the frame's attrs"))}
    return table.replace_schema_metadata({**(schema.metadata or {}), _KEY: json.dumps(ours).encode()})


def to_frame(table: pa.Table, columns: Sequence[Any] | None = None) -> pd.DataFrame:
    """The frame of a table that :func:`to_table` made, or some of its columns."""
    ours = json.loads(table.schema.metadata[_KEY])
    labels = dict(zip(labels_of(table), table.column_names, strict=True))
    names = list(labels.values()) if columns is None else [labels[label] for label in columns]
    readers: dict[str, Callable[[pa.ChunkedArray], Iterable[Any]]] = {}
    for way, reader in (("arrays", _arrays), ("lists", pa.ChunkedArray.to_pylist), ("typed", _objects)):
        readers |= dict.fromkeys(ours.get(way, []), reader)
    plain = table.select([name for name in names if name not in readers]).to_pandas()
    found = [
        pd.Series(list(readers[name](table[name])), dtype=object) if name in readers else plain[name] for name in names
    ]
    frame = pd.DataFrame(dict(enumerate(found)), index=pd.RangeIndex(len(table)))
    shown = list(labels) if columns is None else list(columns)
    is_text = all(is_unicode(label) for label in shown if isinstance(label, str))
    frame.columns = pd.Index(shown, tupleize_cols=False, dtype=None if is_text else object)
    frame.attrs = decoded(ours["attrs"])
    return frame


def labels_of(table: pa.Table) -> list[Any]:
    """The names of the columns as the frame has them."""
    renamed = json.loads(table.schema.metadata[_KEY]).get("names", {})
    return [decoded(renamed[name]) if name in renamed else name for name in table.column_names]


def _names(labels: Iterable[Any]) -> list[str]:
    """The names of columns in a file, where they are text."""
    names: dict[str, Any] = {}
    for label in labels:
        name = label if type(label) is str and is_unicode(label) else ascii(label)
        if name in names:
            raise ValueError(
                f"columns {names[name]!r} and {label!r} would have one name in a file; rename one of them."
            )
        names[name] = label
        _typed(label, f"the name of column {label!r}")
    return list(names)


def _of_type(values: pd.Series, label: Any) -> pa.Array:
    """A column of a type that is not that of objects."""
    dtype = values.dtype
    is_known = isinstance(dtype, pd.StringDtype) or (isinstance(dtype, np.dtype) and dtype.kind in "biuf")
    try:
        column = pa.Array.from_pandas(values)
        if is_known or _as_read(values).equals(values.reset_index(drop=True)):
            return column
    except _UNFIT:
        pass
    raise ValueError(
        f"column {label!r} is of type {dtype}, which does not come back from a Parquet file as it was; drop it, or "
        "give it another type, first."
    )


def _as_read(values: pd.Series) -> pd.Series:
    """A column as a Parquet file gives it back."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(values.to_frame(), preserve_index=False), sink)
    return pq.read_table(pa.BufferReader(sink.getvalue())).to_pandas()[values.name]


def _of_objects(cells: list[Any], what: str, as_parts: bool) -> tuple[str, pa.Array]:
    """A column of objects, and which way it goes."""
    kinds = set(map(type, cells)) - {type(None)}
    within = kinds == {list} and set(map(type, chain.from_iterable(cell for cell in cells if cell is not None)))
    try:
        if not as_parts and kinds == {np.ndarray} and (nested := _nested(cells)) is not None:
            return "arrays", nested
        if not as_parts and (kinds in _NATIVE or (within is not False and within - {type(None)} in _NATIVE)):
            return "lists", pa.array(cells, from_pandas=False)
    except _UNFIT:
        pass
    return "typed", pa.array([_typed(cell, what) for cell in cells], type=pa.string())


def _objects(column: pa.ChunkedArray) -> Iterable[Any]:
    return (decoded(json.loads(cell)) for cell in column.to_pylist())


def _typed(value: Any, what: str) -> str:
    try:
        return json.dumps(encoded(value))
    except (TypeError, RecursionError) as error:
        kind = "what contains itself" if isinstance(error, RecursionError) else error
        raise ValueError(f"{what} cannot be stored because of {kind}; drop it or turn it into text first.") from None


def _nested(cells: list[Any]) -> pa.Array | None:
    """Arrays as nested lists, None where these would not tell all of their types and shapes."""
    if len({cell is not None and (cell.ndim, cell.dtype) for cell in cells}) > 1:
        return None
    n_axes, dtype = cells[0].ndim, cells[0].dtype
    if not n_axes:
        return None
    values, shapes = np.concatenate([cell.ravel() for cell in cells]), np.array([cell.shape for cell in cells])
    is_text = dtype.kind == "O" and set(map(type, values)) <= {str, type(None)}
    is_number = dtype.kind in "biuf" and dtype.isnative and dtype.itemsize <= 8
    if not (is_text or is_number) or (shapes[:, 1:][shapes[:, :-1].cumprod(axis=1) == 0] != 0).any():
        return None
    nested = pa.array(values, type=pa.string() if is_text else None)
    for axis in reversed(range(n_axes)):
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
