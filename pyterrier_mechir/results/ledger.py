"""Which pairs are written, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pyterrier_mechir.results.shards import Shards
from pyterrier_mechir.results.tables import to_frame, to_table

PAIR_HASH = "pair_hash"
"""Column of a shard that says which pair a row is of."""


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
        self._places: dict[str, tuple[int, int]] = {}
        self._of_document: dict[tuple[str, str], str] = {}

    @property
    def n_shards(self) -> int:
        return max((number + 1 for number in self._paths), default=0)

    @property
    def n_pairs(self) -> int:
        return len(self._places)

    def refresh(self, n_shards: int) -> list[str]:
        """Read what came since the last time, and tell what is wrong with the others.

        Args:
            n_shards: how many shards there should be at least.
        """
        paths, faults = self._shards.check(n_shards)
        if not self._paths.items() <= paths.items():
            self._forget()
        for number in paths.keys() - self._paths.keys():
            self._register(number, self._shards.read(paths[number], ["qid", "docno", PAIR_HASH]).to_pandas())
        self._paths = paths
        return faults

    def _register(self, number: int, pairs: pd.DataFrame) -> None:
        for row, (qid, docno, pair_hash) in enumerate(_identities(pairs)):
            self._places[pair_hash] = (number, row)
            self._of_document[qid, docno] = pair_hash

    def lacking(self, pairs: pd.DataFrame) -> list[int]:
        """The rows of pairs (``qid, docno, pair_hash``) that are not written.

        Raises:
            ValueError: a document is written with other texts.
        """
        rows = [row for row, (*_, pair_hash) in enumerate(_identities(pairs)) if pair_hash not in self._places]
        for qid, docno, _ in _identities(pairs.iloc[rows]):
            if (qid, docno) in self._of_document:
                raise ValueError(
                    f"{str(self._shards.directory.parent)!r} holds (qid, docno) = ({qid!r}, {docno!r}) with other "
                    "texts: the collection, the query or the perturbation has changed. Give another path."
                )
        return rows

    def append(self, frame: pd.DataFrame) -> None:
        """Write a frame of results with their ``pair_hash``, in the place of a damaged shard if there is one."""
        number = next(n for n in range(len(self._paths) + 1) if n not in self._paths)
        self._paths[number] = self._shards.write(number, to_table(frame))
        self._register(number, frame)

    def rows(self, hashes: Sequence[str]) -> pd.DataFrame:
        """The results of pairs, in their order."""
        places = [self._places[pair_hash] for pair_hash in hashes]
        starts: dict[int, int] = {}
        parts: list[pd.DataFrame] = []
        for number in sorted({number for number, _ in places}):
            starts[number] = sum(map(len, parts))
            parts.append(to_frame(self._shards.read(self._paths[number])))
        frame = pd.concat(parts, ignore_index=True).iloc[[starts[number] + row for number, row in places]]
        frame.attrs = parts[0].attrs
        return frame.reset_index(drop=True)


def _identities(pairs: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    return zip(pairs["qid"], pairs["docno"], pairs[PAIR_HASH], strict=True)
