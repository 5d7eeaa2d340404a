"""Which pairs are written, and where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pyterrier_mechir.results.frames import joined
from pyterrier_mechir.results.stored.shards import Shards
from pyterrier_mechir.results.stored.tables import to_frame, to_table

PAIR_HASH = "pair_hash"
"""Column of a shard that says which pair a row is of."""

PAIR = ["qid", "docno", PAIR_HASH]
"""Columns that say which pair a row is of, to people and to machines."""

_DIGEST = np.dtype("S16")

_PLACE = np.dtype([("shard", np.int32), ("row", np.int32)])


class _Sorted:
    """Digests and what each stands for, in a few sorted arrays, each of which is more than twice the next."""

    def __init__(self, kind: np.dtype[Any]):
        self._runs = [(np.empty(0, _DIGEST), np.empty(0, kind))]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add digests that are not there yet."""
        self._runs.append(_sorted(keys, values))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            last = self._runs.pop()
            self._runs[-1] = _sorted(*(np.concatenate(both) for both in zip(self._runs[-1], last, strict=True)))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether each digest is there, and its value, which is anything where it is not."""
        found, values = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=self._runs[0][1].dtype)
        for known, of_known in self._runs:
            at = np.searchsorted(known, keys)
            here = np.flatnonzero(at < len(known))
            here = here[known[at[here]] == keys[here]]
            found[here], values[here] = True, of_known[at[here]]
        return found, values


def _sorted(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], values[order]


class Index:
    """Which pairs are written, and in which row of which shard: 41 bytes for each.

    Args:
        name: of the artifact, for messages.
    """

    def __init__(self, name: str):
        self._name = name
        self._places = _Sorted(_PLACE)
        self._documents = _Sorted(np.dtype(bool))

    def __len__(self) -> int:
        return len(self._places)

    def add(self, number: int, pairs: pd.DataFrame) -> None:
        """Add the pairs (``qid, docno, pair_hash``) of a shard, in the order of its rows."""
        hashes, rows = np.unique(digests(pairs[PAIR_HASH]), return_index=True)
        is_new = ~self._places.find(hashes)[0]
        places = np.empty(int(is_new.sum()), _PLACE)
        places["shard"], places["row"] = number, rows[is_new]
        self._places.add(hashes[is_new], places)
        documents = np.unique(_documents(pairs))
        documents = documents[~self._documents.find(documents)[0]]
        self._documents.add(documents, np.ones(len(documents), dtype=bool))

    def lacking(self, pairs: pd.DataFrame) -> np.ndarray:
        """The rows of pairs (``qid, docno, pair_hash``) that are not written.

        Raises:
            ValueError: a document is written with other texts.
        """
        rows = np.flatnonzero(~self._places.find(digests(pairs[PAIR_HASH]))[0])
        others = rows[self._documents.find(_documents(pairs.iloc[rows]))[0]]
        if len(others):
            qid, docno = pairs[["qid", "docno"]].iloc[others[0]]
            raise ValueError(
                f"{self._name!r} holds (qid, docno) = ({qid!r}, {docno!r}) with other texts: the collection, the query "
                "or the perturbation has changed. Give another path."
            )
        return rows

    def places(self, hashes: Sequence[str]) -> np.ndarray:
        """Where pairs that are written are: fields ``shard`` and ``row``."""
        return self._places.find(digests(hashes))[1]


class Ledger:
    """Which pairs the shards hold, kept between the calls of a run.

    Args:
        shards: the shards.
    """

    def __init__(self, shards: Shards):
        self._shards = shards
        self._forget()

    def _forget(self) -> None:
        self._paths: dict[int, Path] = {}
        self._next = 0
        self.index = Index(str(self._shards.directory.parent))

    @property
    def n_shards(self) -> int:
        return max((number + 1 for number in self._paths), default=0)

    @property
    def n_pairs(self) -> int:
        return len(self.index)

    def refresh(self, n_shards: int) -> list[str]:
        """Read what came since the last time, and tell what is wrong with the others.

        Args:
            n_shards: how many shards there should be at least.
        """
        paths, faults = self._shards.check(n_shards)
        if not self._paths.items() <= paths.items():
            self._forget()
        for number in sorted(paths.keys() - self._paths.keys()):
            self.index.add(number, to_frame(self._shards.read(paths[number], PAIR)))
        self._paths, self._next = paths, 0
        return faults

    def append(self, results: pd.DataFrame | pa.Table) -> None:
        """Write results with their ``pair_hash``, in the place of a damaged shard if there is one."""
        table = to_table(results) if isinstance(results, pd.DataFrame) else results
        while self._next in self._paths:
            self._next += 1
        self._paths[self._next] = self._shards.write(self._next, table)
        self.index.add(self._next, to_frame(table.select(PAIR)))

    def rows(self, hashes: Sequence[str]) -> pd.DataFrame:
        """The results of pairs, in their order."""
        places = self.index.places(hashes)
        order = np.argsort(places, order=["shard", "row"], kind="stable")
        parts = []
        for number in np.unique(places["shard"]).tolist():
            rows = places["row"][order][places["shard"][order] == number]
            parts.append(to_frame(self._shards.read(self._paths[number]).take(rows)))
        return joined(parts).iloc[np.argsort(order)].reset_index(drop=True)


def digests(hashes: Iterable[str]) -> np.ndarray:
    """Digests, ``[n]`` of 16 bytes, of their hexadecimal digits."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=_DIGEST)


def _documents(pairs: pd.DataFrame) -> np.ndarray:
    rows = (repr(row).encode("utf-8", "surrogatepass") for row in zip(pairs["qid"], pairs["docno"], strict=True))
    return np.frombuffer(b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows), dtype=_DIGEST)
