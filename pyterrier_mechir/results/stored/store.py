"""Results in a directory: read, and written in sessions of one writer, so that a run that died goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from filelock import FileLock, Timeout

from pyterrier_mechir._version import installed
from pyterrier_mechir.checks import warn
from pyterrier_mechir.results.frames import joined
from pyterrier_mechir.results.stored.ledger import PAIR, PAIR_HASH, Ledger, digests
from pyterrier_mechir.results.stored.shards import Shards, write_whole
from pyterrier_mechir.results.stored.tables import labels_of, to_frame

_META, _LOCK = "pt_meta.json", ".lock"

_LIBRARIES = ("pyterrier-mechir", "pyterrier", "torch", "transformers", "tokenizers", "numpy", "pandas", "pyarrow")


class Store(pt.Artifact):
    """Results of one configuration in a directory: what reads them, and what they are written with.

    The directory has ``pt_meta.json``, which says what was run, ``shards/*.parquet``, a row per pair, and a lock while
    it is written. :class:`~pyterrier_mechir.PatchResults` is the artifact that users see; it adds what scores and what
    draws, so that whatever only reads and writes uses this class and knows nothing of either.

    Args:
        path: the directory; it is made by what writes to it.

    Raises:
        ValueError: the directory holds something else.
    """

    ARTIFACT_TYPE = "patch_results"
    ARTIFACT_FORMAT = "parquet"
    ARTIFACT_PACKAGE_HINT = "pyterrier-mechir"

    def __init__(self, path: str | Path):
        super().__init__(path)
        if not isinstance(self.path, Path):
            raise ValueError("results are kept on disk; give the path of a directory.")
        self._directory: Path = self.path
        self._shards = Shards(self._directory / "shards")
        self._ledger = Ledger(self._shards)
        meta = self._meta()
        kind = (meta.get("type"), meta.get("format"))
        is_empty = not self._directory.exists() or (self._directory.is_dir() and not any(self._directory.iterdir()))
        if kind != (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT) and not (is_empty or self._is_begun()):
            raise ValueError(f"{str(path)!r} holds something other than patch results; give another path.")

    def frame(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The results as the scorer gave them, ranked; in the order in which they were first written.

        Args:
            columns: only these columns.

        Raises:
            ValueError: there are no results, or no such column; or a shard is damaged, and the message says which.
        """
        frames = list(self.shards(None if columns is None else {*columns, "qid", "score"} - {"rank"}))
        if not frames:
            raise ValueError(f"{str(self._directory)!r} holds no results yet.")
        frame = pt.model.add_ranks(joined(frames))
        return frame if columns is None else frame[list(columns)]

    def shards(self, columns: Sequence[str] | set[str] | None = None) -> Iterator[pd.DataFrame]:
        """The results without their ranks, shard by shard, for what does not fit into memory.

        Args:
            columns: only these columns.

        Raises:
            ValueError: no such column, or a shard is damaged, and the message says which.
        """
        for path in self._intact():
            table = self._shards.read(path)
            known = [name for name in labels_of(table) if name != PAIR_HASH]
            if columns is not None and (unknown := [name for name in columns if name not in known]):
                raise ValueError(f"{self!r} has no column {unknown[0]!r}; it has {', '.join(map(str, known))}.")
            yield to_frame(table, [name for name in known if columns is None or name in columns])

    def pairs(self) -> pd.DataFrame:
        """Which pairs there are: ``qid``, ``docno`` and ``pair_hash``, a digest of the query and the texts."""
        frames = [to_frame(self._shards.read(path, PAIR)) for path in self._intact()]
        return pd.concat([pd.DataFrame(columns=PAIR, dtype="str"), *frames], ignore_index=True)[PAIR]

    @property
    def digest(self) -> str:
        """A digest of all pairs, whatever their order: two runs that have the same read the same texts."""
        known = [digests(self._shards.read(path, [PAIR_HASH])[PAIR_HASH].to_pylist()) for path in self._intact()]
        made, separator = hashlib.sha256(), ""
        for one in np.sort(np.concatenate([digests([]), *known])).view("V16"):
            made.update(f"{separator}{one.tobytes().hex()}".encode())
            separator = "\n"
        return made.hexdigest()[:32]

    @property
    def about(self) -> dict[str, Any]:
        """What was run: ``ranker``, ``scorer``, ``perturbation`` (where it is known) and ``versions`` of libraries."""
        meta = self._meta()
        return {**meta.get("configuration", {}), "versions": meta.get("versions", [])}

    def __len__(self) -> int:
        """The number of pairs."""
        return sum(self._shards.read(path, []).num_rows for path in self._intact())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._directory)!r})"

    def _intact(self) -> list[Path]:
        """The shards in order.

        Raises:
            ValueError: one is damaged, or something is lacking.
        """
        meta = self._meta()
        intact, faults = self._shards.check(meta.get("n_shards", 0))
        n_pairs = sum(self._shards.read(path, []).num_rows for path in intact.values())
        if not faults and n_pairs < meta.get("n_pairs", 0):
            faults = [f"{meta['n_pairs'] - n_pairs} of {meta['n_pairs']} pairs are missing"]
        if faults:
            raise ValueError(
                f"{'; '.join(faults)} in {str(self._directory)!r}: run the pipeline that wrote it again, which "
                "computes what is lacking and nothing else."
            )
        return list(intact.values())

    def _is_begun(self) -> bool:
        """Whether there is nothing but the lock of a writer that has not written yet."""
        return {path.name for path in self._directory.iterdir()} <= {_LOCK, f".{_META}.part"}

    def _meta(self) -> dict[str, Any]:
        path = self._directory / _META
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _write_meta(self, meta: Mapping[str, Any]) -> None:
        write_whole(self._directory / _META, json.dumps(meta, indent=2).encode())

    def _package_files(self) -> Iterator[Any]:
        """What is shared: all but the lock and what a killed run left half written."""
        return (item for item in super()._package_files() if not Path(item[0]).name.startswith("."))

    @contextmanager
    def session(self, configuration: Mapping[str, Any], device: str) -> Iterator[Ledger]:
        """Write results of a configuration, while nobody else does.

        Args:
            configuration: what decides the results, as :meth:`pyterrier_mechir.PatchScorer.about` says it, and the
                perturbation.
            device: what the ranker runs on.

        Raises:
            ValueError: the artifact has another configuration, or is being written.

        Warns:
            UserWarning: shards that are damaged or missing.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._directory / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{str(self._directory)!r} is being written by another run; give another path.") from None
        try:
            meta = self._meta()
            self._check_configuration(meta.get("configuration", {}), configuration)
            meta |= {"type": self.ARTIFACT_TYPE, "format": self.ARTIFACT_FORMAT}
            meta |= {"package_hint": self.ARTIFACT_PACKAGE_HINT}
            known, versions = meta.get("versions", []), _versions(device)
            began = meta | {
                "configuration": dict(configuration) | meta.get("configuration", {}),
                "versions": known if versions in known else [*known, versions],
            }
            if began != self._meta():
                self._write_meta(began)
            for fault in self._ledger.refresh(began.get("n_shards", 0)):
                warn(f"{fault} in {str(self._directory)!r}; what it held is computed again.")
            yield self._ledger
            sizes = {name: max(began.get(name, 0), getattr(self._ledger, name)) for name in ("n_shards", "n_pairs")}
            if not sizes.items() <= began.items():
                self._write_meta(began | sizes)
        finally:
            lock.release()

    def _check_configuration(self, written: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        ours, theirs = _flat(written), _flat(given)
        if "ranker.weights" in ours.keys() & theirs.keys():
            ours, theirs = ({k: v for k, v in side.items() if k != "ranker.name"} for side in (ours, theirs))
        apart = [key for key in ours if key in theirs and ours[key] != theirs[key]]
        if apart:
            listed = "; ".join(f"{key} {ours[key]!r}, not {theirs[key]!r}" for key in apart)
            raise ValueError(
                f"{str(self._directory)!r} holds results of another configuration: {listed}. Give another path."
            )


def _versions(device: str) -> dict[str, str]:
    return {"python": python_version(), "device": device} | installed(*_LIBRARIES)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
