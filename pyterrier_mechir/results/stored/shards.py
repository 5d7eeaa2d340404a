"""Numbered Parquet files that are there whole or not at all, and cannot be damaged unnoticed.

A shard's name holds its number and the digest of its content, ``000003-9f86d0....parquet``: one rename makes it appear,
and whoever reads it can tell whether it is what was written.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_NAME = re.compile(r"(?P<number>\d{6,})-(?P<digest>[0-9a-f]{32})\.parquet")


class Shards:
    """The shards of a directory.

    Args:
        directory: where they are; need not exist yet.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._intact: set[str] = set()
        self._damaged: dict[int, list[Path]] = {}

    def files(self) -> dict[int, list[Path]]:
        """The files of each number, in order; more than one where a damaged shard was written again."""
        found: dict[int, list[Path]] = defaultdict(list)
        for path in sorted(self.directory.glob("*.parquet")):
            if name := _NAME.fullmatch(path.name):
                found[int(name["number"])].append(path)
        return dict(sorted(found.items()))

    def check(self, n_shards: int = 0) -> tuple[dict[int, Path], list[str]]:
        """The intact shards, each of which is read once, and what is wrong with the others.

        Args:
            n_shards: how many there should be at least.
        """
        files = self.files()
        intact, faults = {}, []
        self._damaged = {}
        for number in range(max([n_shards, *(n + 1 for n in files)])):
            whole = [path for path in files.get(number, []) if self._is_intact(path)]
            if whole:
                intact[number] = whole[-1]
            else:
                self._damaged[number] = files.get(number, [])
                names = ", ".join(path.name for path in self._damaged[number])
                faults.append(f"shard {number} is damaged ({names})" if names else f"shard {number} is missing")
        return intact, faults

    def _is_intact(self, path: Path) -> bool:
        if path.name not in self._intact:
            name = _NAME.fullmatch(path.name)
            if name is None or _digest(path.read_bytes()) != name["digest"]:
                return False
            self._intact.add(path.name)
        return True

    def read(self, path: Path, columns: Iterable[str] | None = None) -> pa.Table:
        """The table of an intact shard, or some of its columns."""
        return pq.read_table(path, columns=None if columns is None else list(columns))

    def write(self, number: int, table: pa.Table) -> Path:
        """Write a shard, in place of what :meth:`check` found damaged of that number; the file that it is in."""
        self.directory.mkdir(parents=True, exist_ok=True)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        content = sink.getvalue()
        path = self.directory / f"{number:06d}-{_digest(content)}.parquet"
        write_whole(path, content)
        for other in self._damaged.pop(number, []):
            if other != path:
                other.unlink(missing_ok=True)
        self._intact.add(path.name)
        return path


def write_whole(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _digest(content: bytes | pa.Buffer) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
