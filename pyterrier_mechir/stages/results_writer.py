"""Scoring with the results kept on disk."""

from __future__ import annotations

import hashlib
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.results.artifact import PatchResults
from pyterrier_mechir.results.ledger import PAIR_HASH, Ledger
from pyterrier_mechir.results.pairs import METADATA, PERTURBATION
from pyterrier_mechir.stages.inputs import Keyed, check_batch_size
from pyterrier_mechir.stages.minimal_pairs import ADDED, MinimalPairs
from pyterrier_mechir.stages.pair_scorer import PairScorer


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
        ValueError: it screens, which needs the whole frame at once; or ``path`` holds something else.
    """

    schematic: ClassVar = {"label": "ResultsWriter"}

    def __init__(
        self,
        path: str | Path,
        scorer: PairScorer | None = None,
        *,
        text_field: str = "text",
        shard_size: int = 256,
    ):
        if scorer is not None and not isinstance(scorer, PairScorer):
            raise TypeError(f"scorer should be a PatchScorer or a PairScorer, not a {type(scorer).__name__}.")
        if scorer is not None and scorer.screen is not None:
            raise ValueError(
                "a screened run verifies the best sites of the whole frame, so it cannot be written in parts; leave "
                "screen out, or write its output with writer() after it."
            )
        self.path = str(path)
        self.scorer = scorer
        self.text_field = text_field if scorer is None else scorer.text_field
        self.shard_size = check_batch_size(shard_size) or 256
        self._results = PatchResults(self.path)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """The scorer."""
        return {} if self.scorer is None else {"scorer": self.scorer}

    def fuse_left(self, left: pt.Transformer) -> pt.Transformer | None:
        """Take the scorer before this stage in, so that it computes only what is not written."""
        if self.scorer is None and isinstance(left, PairScorer) and left.screen is None:
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
            pt.validate.result_frame(inp, extra_columns=["query", self.text_field, "score"], context=self)
            if "score_perturbed" not in inp.columns and len(inp):
                raise ValueError("writer() writes the results of a scorer; put a PatchScorer before it, or into it.")
            made = inp
        else:
            made = self.scorer.perturbed(inp)
        if not len(made):
            return made if self.scorer is None else self.scorer.transform(made)
        pairs = made[["qid", "docno"]].assign(**{PAIR_HASH: _hashes(made, self.text_field)})
        with self._results.session(self._configuration(made), self._device()) as ledger:
            self._write(ledger, made, pairs)
            return made if self.scorer is None else self._ranked(made, ledger.rows(pairs[PAIR_HASH].tolist()))

    def _write(self, ledger: Ledger, made: pd.DataFrame, pairs: pd.DataFrame) -> None:
        lacking, scorer = ledger.lacking(pairs), copy(self.scorer)
        if scorer is not None:
            scorer.verbose = False
        shown, name = (False, None) if self.scorer is None else (self.scorer.verbose, repr(self.scorer.ranker))
        with pt.tqdm(total=len(lacking), desc=name, unit="pair", disable=not shown) as bar:
            for start in range(0, len(lacking), self.shard_size):
                rows = lacking[start : start + self.shard_size]
                part = made.iloc[rows]
                scored = part if scorer is None else scorer.transform(part)
                hashes = pairs[PAIR_HASH].iloc[rows].to_numpy()
                ledger.append(scored.drop(columns="rank", errors="ignore").assign(**{PAIR_HASH: hashes}))
                bar.update(len(rows))

    def _ranked(self, made: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
        added = {name: results[name].to_numpy() for name in ADDED if name in results.columns}
        out = made.drop(columns=ADDED, errors="ignore").assign(**added)
        out.attrs = made.attrs | results.attrs
        return pt.model.add_ranks(out)

    def _configuration(self, made: pd.DataFrame) -> dict[str, Any]:
        said = made.attrs.get(METADATA, {})
        known = {key: said[key] for key in (PERTURBATION,) if key in said}
        if self.scorer is not None:
            return {**self.scorer.about(fingerprint=True), **known}
        return known | {key: said[key] for key in ("ranker", "scorer") if key in said}

    def _device(self) -> str:
        return "unknown" if self.scorer is None else str(self.scorer.ranker.device)


def _hashes(frame: pd.DataFrame, text_field: str) -> list[str]:
    """A digest of each row's query and texts."""
    pairs = MinimalPairs.of(frame, text_field)
    made = ("" if text is None else pairs.key(row)[1:] for row, text in enumerate(pairs.perturbed))
    rows = zip(frame["qid"], frame["docno"], frame["query"], frame[text_field], made, strict=True)
    return [hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest() for row in rows]
