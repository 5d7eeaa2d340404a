"""What activations are on the average over reference texts: a value that edits take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.frames import check_columns

Key = tuple[int, str]
"""A layer, and one of its activations."""

POSITION_CLASSES = ("first", "special", "first text", "second text")
"""The classes of positions that ``per="position class"`` tells apart: the first position, other special tokens, and the
tokens of the first and the second text of a sequence (a bi-encoder's has one)."""


class Means(Mapping[Key, np.ndarray]):
    """The mean of activations over the positions of reference texts, by (layer, activation).

    Made by :func:`~pyterrier_mechir.head_means`, or from a reference when a ranker is edited. Equal where the numbers
    are.

    Args:
        values: of each, float32 ``[D]``, or ``[class, D]`` with a mean for each of :data:`POSITION_CLASSES`.
        n_texts: how many texts they are the means of.
    """

    def __init__(self, values: Mapping[Key, np.ndarray], n_texts: int):
        self._values, self.n_texts = dict(values), n_texts

    def __getitem__(self, key: Key) -> np.ndarray:
        return self._values[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def digest(self) -> str:
        """A digest of the numbers."""
        made = hashlib.blake2b(digest_size=8)
        for key in sorted(self._values):
            made.update(repr(key).encode() + self._values[key].tobytes())
        return made.hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Means) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Means({len(self)} activations of {self.n_texts} texts, {self.digest})"


def texts_of(ranker: Ranker, reference: Any) -> tuple[list[str], list[str]]:
    """The queries and texts of a reference.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: it has no texts, or no queries though the ranker reads them.
    """
    if isinstance(reference, pd.DataFrame):
        check_columns(reference, ["query", "text"] if ranker.reads_query else ["text"])
        texts = reference["text"].tolist()
        queries = reference["query"].tolist() if "query" in reference else [""] * len(texts)
    else:
        texts = [reference] if isinstance(reference, str) else list(reference)
        if ranker.reads_query:
            raise ValueError(f"{ranker!r} reads the query with the text; give a reference frame with query and text.")
        queries = [""] * len(texts)
    kept = [(str(query), text) for query, text in zip(queries, texts, strict=True) if isinstance(text, str)]
    if not kept:
        raise ValueError("the reference has no texts, so there is no mean to ablate by; give some, or by='zero'.")
    return [query for query, _ in kept], [text for _, text in kept]
