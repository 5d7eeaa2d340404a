"""Scoring with the results kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyterrier as pt

from pyterrier_mechir.checks import check_batch_size
from pyterrier_mechir.results.frames import METADATA, PERTURBATION, check_columns, joined, perturbed_side
from pyterrier_mechir.results.stored.ledger import PAIR, PAIR_HASH, Index, Ledger
from pyterrier_mechir.results.stored.store import Store
from pyterrier_mechir.results.stored.tables import to_frame, to_table
from pyterrier_mechir.stages.base.keyed import Keyed
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.stages.base.stored_stage import StoredStage


class ResultsWriter(Keyed, pt.Transformer):
    """Scores pairs and writes the results to a :class:`~pyterrier_mechir.PatchResults`, or takes them from there.

    Made by ``PatchScorer(...).store(path)`` and ``PatchResults(path).writer(...)``. Expected input columns are those of
    the scorer, and so is the output. The input is worked off in shards, each of which is written as soon as it is
    computed; pairs that the artifact holds are not computed. A shard that is found damaged is named in a warning and
    computed again.

    Args:
        path: directory of the artifact.
        scorer: a :class:`~pyterrier_mechir.PatchScorer` or :class:`~pyterrier_mechir.PairScorer`; None writes the
            results of the scorer before this stage as they come.
        text_field: column of the document text, where there is no scorer to say so.
        shard_size: pairs that are written together.

    Raises:
        TypeError: ``scorer`` is no scorer.
        ValueError: it needs the whole frame at once, as screening does; or ``path`` holds something else.
    """

    schematic: ClassVar = {"label": "ResultsWriter"}

    def __init__(
        self,
        path: str | Path,
        scorer: StoredStage | None = None,
        *,
        text_field: str = "text",
        shard_size: int = 256,
    ):
        if scorer is not None and not isinstance(scorer, StoredStage):
            raise TypeError(
                f"scorer should be a PatchScorer, a PairScorer or an AblationScorer, not a {type(scorer).__name__}."
            )
        if scorer is not None and scorer.whole_frame:
            raise ValueError(f"{scorer.whole_frame}.")
        self.path = str(path)
        self.scorer = scorer
        self.text_field = text_field if scorer is None else scorer.text_field
        self.shard_size = check_batch_size(shard_size) or 256
        self._results = Store(self.path)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """The scorer."""
        return {} if self.scorer is None else {"scorer": self.scorer}

    def fuse_left(self, left: pt.Transformer) -> pt.Transformer | None:
        """Take the scorer before this stage in, so that it computes only what is not written."""
        if self.scorer is None and isinstance(left, StoredStage) and not left.whole_frame:
            return ResultsWriter(self.path, left, shard_size=self.shard_size)
        return None

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and write what is not written yet, and rank the documents.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: the artifact holds results of another configuration, is being written by another run, or has a
                document with other texts; or a column cannot be stored.

        Warns:
            UserWarning: shards that were damaged, and all that the scorer warns of.
        """
        if self.scorer is None:
            check_columns(inp, ["qid", "docno", "query", self.text_field, "score"], self)
            if "score_perturbed" not in inp.columns and len(inp):
                raise ValueError("writer() writes the results of a scorer; put a PatchScorer before it, or into it.")
            made = inp
        else:
            made = self.scorer.prepared(inp)
        if not len(made):
            return made if self.scorer is None else self.scorer.transform(made)
        hashed = with_hashes(made, self.text_field, self._n_units)
        with self._session(made) as ledger:
            lacking = hashed.iloc[ledger.index.lacking(hashed)]
            shown = self.scorer is not None and self.scorer.verbose
            with pt.tqdm(total=len(lacking), desc=self._label, unit="pair", disable=not shown) as bar:
                self._write(ledger, lacking, bar.update)
            return made if self.scorer is None else self._ranked(made, ledger.rows(hashed[PAIR_HASH].tolist()))

    def stream(
        self,
        frames: Iterable[pd.DataFrame],
        done: Callable[[int, int], object],
        listen: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Score and write frames one after the other, in the memory that the largest of them takes.

        Args:
            frames: as for :meth:`transform`; what is written of them is not ranked, which is for reading.
            done: called with how many pairs came, and how many of them were written already.
            listen: the context in which pairs are perturbed and scored.

        Raises:
            ValueError: as :meth:`transform`, or there is no scorer, or the frames were perturbed in several ways.
        """
        if self.scorer is None:
            raise ValueError("a writer without a scorer has nothing to compute; give writer() a scorer.")
        parts = in_parts(with_one_perturbation(map(self.scorer.prepared, frames)), self.shard_size)
        with listen():
            first = next(parts, None)
        if first is None:
            return
        with self._session(first) as ledger, listen():
            for part in chain([first], parts):
                hashed = with_hashes(part, self.text_field, self._n_units)
                lacking = hashed.iloc[ledger.index.lacking(hashed)]
                self._write(ledger, lacking)
                done(len(part), len(part) - len(lacking))

    def receive(
        self,
        like: pd.DataFrame,
        computed: Callable[[Index], Iterable[pa.Table]],
        done: Callable[[int, int], object],
    ) -> None:
        """Write what is computed elsewhere, as it comes.

        Args:
            like: some of the scorer's input, with its perturbed side, which says what was perturbed how.
            computed: gives, of the pairs that are not in an index, what :func:`scored` makes, as tables.
            done: as for :meth:`stream`.
        """
        with self._session(like) as ledger:
            for table in computed(ledger.index):
                rows = ledger.index.lacking(to_frame(table.select(PAIR)))
                if len(rows):
                    ledger.append(table if len(rows) == len(table) else table.take(rows))
                done(len(table), len(table) - len(rows))

    def _session(self, made: pd.DataFrame) -> AbstractContextManager[Ledger]:
        return self._results.session(self._configuration(made), self._device())

    @property
    def _n_units(self) -> int:
        return 0 if self.scorer is None else self.scorer.n_units

    @property
    def _label(self) -> str | None:
        return None if self.scorer is None else repr(self.scorer.ranker)

    def check(self, made: pd.DataFrame) -> None:
        """Check that pairs can be stored as they are, before any is scored.

        Raises:
            ValueError: a column, or the attrs, cannot; the message names it.
        """
        replaced = [] if self.scorer is None else self.scorer.added
        to_table(made.drop(columns=[PAIR_HASH, "rank", *replaced], errors="ignore"))

    def _write(self, ledger: Ledger, lacking: pd.DataFrame, done: Callable[[int], object] | None = None) -> None:
        self.check(lacking)
        for start in range(0, len(lacking), self.shard_size):
            part = lacking.iloc[start : start + self.shard_size]
            ledger.append(scored(self.scorer, part))
            if done is not None:
                done(len(part))

    def _ranked(self, made: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
        assert self.scorer is not None
        added = {name: results[name].to_numpy() for name in self.scorer.added if name in results.columns}
        out = made.drop(columns=list(self.scorer.added), errors="ignore").assign(**added)
        out.attrs = made.attrs | {METADATA: results.attrs[METADATA]}
        return pt.model.add_ranks(out)

    def _configuration(self, made: pd.DataFrame) -> dict[str, Any]:
        said = made.attrs.get(METADATA, {})
        known = {key: said[key] for key in (PERTURBATION,) if key in said}
        if self.scorer is not None:
            return {**self.scorer.about(fingerprint=True), **known}
        return known | {key: said[key] for key in ("ranker", "scorer") if key in said}

    def _device(self) -> str:
        return "unknown" if self.scorer is None else str(self.scorer.ranker.device)


class Storing(StoredStage):
    """A stage whose results can be kept as they are computed."""

    def store(self, path: str | Path, *, shard_size: int = 256) -> ResultsWriter:
        """This stage with its results kept in a :class:`~pyterrier_mechir.PatchResults`, as they are computed.

        What the artifact holds is not computed again, so that a run that died goes on where it was.

        Args:
            path: directory of the artifact, which is made if it is not there.
            shard_size: rows that are written together; what a run that is killed loses at most.

        Raises:
            ValueError: the stage needs the whole frame at once, or ``path`` holds something else.
        """
        return ResultsWriter(path, self, shard_size=shard_size)


def with_hashes(frame: pd.DataFrame, text_field: str, n_units: int = 0) -> pd.DataFrame:
    """A frame with its ``pair_hash``: a digest of each row's query and texts, and of its units where they are scored.

    Args:
        frame: the frame.
        text_field: column of the document text.
        n_units: as :attr:`StoredStage.n_units` of what scores the frame.

    Raises:
        ValueError: it has a column of this name, or units that are those of another text.
    """
    if PAIR_HASH in frame.columns:
        raise ValueError(f"column {PAIR_HASH!r} is one that stored results have of their own; rename or drop it first.")
    is_plain = perturbed_side(frame, text_field) is None
    pairs = PairRows.unedited(frame, text_field) if is_plain else PairRows.of(frame, text_field, n_units)
    made = ("" if text is None else pairs.key(row)[1:] for row, text in enumerate(pairs.perturbed))
    rows = zip(frame["qid"], frame["docno"], frame["query"], frame[text_field], made, strict=True)
    encoded = (repr(row).encode("utf-8", "surrogatepass") for row in rows)
    return frame.assign(**{PAIR_HASH: [hashlib.blake2b(row, digest_size=16).hexdigest() for row in encoded]})


def scored(scorer: StoredStage | None, part: pd.DataFrame) -> pd.DataFrame:
    """Pairs as they are stored: what a scorer makes of them, without ranks, and their ``pair_hash``.

    Args:
        scorer: None where the pairs are scored already.
        part: the pairs, with their ``pair_hash``.
    """
    given = part.drop(columns=PAIR_HASH)
    if scorer is not None:
        quiet = copy(scorer)
        quiet.verbose = False
        given = quiet.transform(given)
    return given.drop(columns="rank", errors="ignore").assign(**{PAIR_HASH: part[PAIR_HASH].to_numpy()})


def in_parts(frames: Iterable[pd.DataFrame], size: int) -> Iterator[pd.DataFrame]:
    """Frames, joined or split into frames of a size; only the last may be smaller."""
    waiting: list[pd.DataFrame] = []
    for frame in frames:
        waiting.append(frame)
        n = sum(map(len, waiting))
        if n >= size:
            whole = _joined(waiting)
            yield from (whole.iloc[start : start + size] for start in range(0, n - n % size, size))
            waiting = [whole.iloc[n - n % size :]] if n % size else []
    if waiting:
        yield _joined(waiting)


def with_one_perturbation(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The frames that have rows, checked on the way to have been perturbed in the same way.

    An artifact holds the results of one configuration, of which the perturbation is a part.

    Args:
        frames: with their perturbed sides; what perturbed them says so in their attrs.

    Raises:
        ValueError: they were perturbed in several ways.
    """
    ways: set[str] = set()
    for frame in frames:
        if not len(frame):
            continue
        ways.add(str(frame.attrs.get(METADATA, {}).get(PERTURBATION)))
        if len(ways) > 1:
            raise ValueError(
                f"the frames of a run differ in perturbation, {' and '.join(sorted(ways))}; run them apart."
            )
        yield frame


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    if len(frames) == 1:
        return frames[0]
    whole = joined(frames)
    whole.attrs = frames[-1].attrs
    return whole
