"""Frames of files that users name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".tsv": pd.read_table,
    ".jsonl": pd.read_json,
}


def read(path: Path, columns: str) -> pd.DataFrame:
    """The frame of a file.

    Args:
        path: ``.parquet``, ``.csv``, ``.tsv`` or ``.jsonl``.
        columns: those that it should have, for the message.

    Raises:
        ValueError: a file of another kind.
        OSError: it cannot be read.
    """
    if path.suffix not in _READERS:
        raise ValueError(f"{str(path)!r} is none of {', '.join(_READERS)}; give one with columns {columns}.")
    options: dict[str, Any] = {"lines": True} if path.suffix == ".jsonl" else {}
    return _READERS[path.suffix](path, **options)
