"""What is verified: a ranker, pairs of texts, and a copy of its model that nothing was done to."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyterrier_mechir.collections import EmbeddedDataset
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.precision import precision_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.text.encoding import AlignedPair, unique
from pyterrier_mechir.verify.hooks import Hooks

TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
"""How far apart two ways to compute a score may be, as a share of it, or of 1 where it is smaller.

For the reduced precisions it is some times what one product in them rounds off; see
:mod:`~pyterrier_mechir.models.precision`.
"""

_MOST_PAIRS = 12
_MOST_PATCHED = 2
_FEWEST_WORDS, _MOST_WORDS = 4, 24


def share(found: np.ndarray | float, wanted: np.ndarray | float) -> float:
    """The greatest difference, as a share of what is wanted, or of 1 where that is smaller; 0 of nothing."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    off = np.abs(found - wanted) / np.maximum(1, np.abs(wanted))
    return float(np.inf if np.isnan(off).any() else off.max(initial=0.0))


@dataclass(frozen=True)
class Subject:
    """A ranker and the texts by which it is verified.

    Args:
        ranker: the ranker.
        given: what was given as the ranker, such as a model of sentence-transformers that it was made of.
        queries: the query of each pair.
        texts: the text of each pair, of unequal lengths.
        source: where these come from, for a sentence.
    """

    ranker: Ranker
    given: Any
    queries: tuple[str, ...]
    texts: tuple[str, ...]
    source: str

    @property
    def tolerance(self) -> float:
        """How far apart two ways to compute a score may be (see :data:`TOLERANCES`)."""
        return TOLERANCES[str(precision_of(self.ranker.model)).removeprefix("torch.")]

    @cached_property
    def scores(self) -> np.ndarray:
        """The ranker's scores of all pairs, as it batches them."""
        return self.ranker.score(self.queries, self.texts)

    @cached_property
    def copied(self) -> Any:
        """The model with modules of its own, made by ``deepcopy``, over the very weights that it has now."""
        model = self.ranker.model
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return deepcopy(model, shared).eval()

    @cached_property
    def slow(self) -> Ranker:
        """The ranker with this copy running in place of what it runs itself."""
        return self.ranker.running(self.copied)

    @cached_property
    def hooks(self) -> Hooks:
        """Hooks on this copy."""
        return Hooks(self.copied, decoder=self.is_decoder)

    @property
    def is_decoder(self) -> bool:
        """Whether what is patched is the decoder of an encoder-decoder."""
        return self.ranker.anatomy.cross_attends

    @cached_property
    def aligned(self) -> tuple[list[AlignedPair], Batch]:
        """The shortest pairs, of a text and the same with its query appended, and the query inputs that they index.

        Long texts are cut to their first words.

        Raises:
            LookupError: the ranker can align none.
        """
        order = sorted(range(len(self.texts)), key=lambda i: len(self.texts[i]))
        begun = [(self.queries[i], self.texts[i].split()[:_MOST_WORDS]) for i in order if self.queries[i].strip()]
        rows = [(query, " ".join(words)) for query, words in begun if len(words) >= _FEWEST_WORDS]
        contexts, baselines = [query for query, _ in rows], [text for _, text in rows]
        perturbed = [f"{text} {query}" for query, text in rows]
        pairs = self.ranker.align(contexts, baselines, perturbed, alignments=["fill"] * len(rows)) if rows else []
        found = [pair for pair in pairs if pair is not None][:_MOST_PATCHED]
        if not found:
            raise LookupError("to none of the texts can their query be appended so that it still fits")
        return found, self.slow.query_inputs(unique(contexts)[0])

    def sides(self, pair: AlignedPair) -> tuple[Batch, Batch]:
        """The inputs of the two runs of a pair, its baseline's and its perturbed side's, each without padding."""
        _, inputs = self.aligned
        one, other = (self.slow.collate([side], inputs, [pair.query]) for side in (pair.baseline, pair.perturbed))
        return one, other

    @torch.no_grad()
    def run(self, inputs: Batch) -> float:
        """The score of one run of the copy, by the ranker's own forward."""
        return float(self.slow.forward(inputs))


def pairs_of(frame: pd.DataFrame | None, ranker: Ranker) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Queries and texts to verify by, and where they come from.

    Args:
        frame: with ``query`` and ``text``; None takes passages of the lab collection, among them one that is too long
            for most rankers, and one that is a single word.
        ranker: the ranker.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: no row has a query and a text.
    """
    if frame is None:
        return _of_lab(ranker)
    check_columns(frame, ["query", "text"])
    is_text = [isinstance(query, str) and isinstance(text, str) for query, text in frame[["query", "text"]].to_numpy()]
    rows = frame.loc[np.array(is_text, dtype=bool), ["query", "text"]].astype(str)
    rows = rows[rows["text"].str.strip() != ""].drop_duplicates()
    if rows.empty:
        raise ValueError("the frame has no row with a query and a text; give pairs of texts to verify the ranker by.")
    ordered = rows.iloc[np.argsort(rows["text"].str.len().to_numpy(), kind="stable")]
    chosen = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_PAIRS)).astype(int))]
    told = f"{len(chosen)} pairs of the {len(frame)} given, from the shortest text to the longest"
    return tuple(chosen["query"]), tuple(chosen["text"]), told


def _of_lab(ranker: Ranker) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    lab = EmbeddedDataset("lab")
    texts = {document["docno"]: document["text"] for document in lab.get_corpus_iter()}
    queries = dict(lab.get_topics().to_numpy())
    judged = lab.get_qrels().groupby("qid", sort=False).head(2)
    rows = [(queries[qid], texts[docno]) for qid, docno, _ in judged.to_numpy()][: _MOST_PAIRS - 2]
    long = " ".join(list(texts.values())[:12])
    rows += [(rows[0][0], long), (rows[0][0], rows[0][0].split()[-1])]
    return *map(tuple, zip(*rows, strict=True)), f"{len(rows)} pairs of the lab collection"  # type: ignore[return-value]


def names_of(items: Sequence[str], most: int = 4) -> str:
    """Some names, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
