"""From text to token ids: the sequences that a model reads, built from separately tokenised parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_CLASSES = ("CLS", "SEP", "Q+", "Q-", "EDIT", "D+", "D-", "OTHER")
"""What a position of a pair is: the sequence's first special token, any other special token, an occurrence in the
query of the edited term, any other query token, the edit itself, another occurrence of the edited term in the document,
another query term in the document, and the rest."""

CLS, SEP, QUERY_EDITED, QUERY, EDIT, DOC_EDITED, DOC_QUERY, OTHER = range(len(TOKEN_CLASSES))

SPECIAL = -1
"""The part that special tokens belong to."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised text without special tokens.

    Args:
        ids: token ids, ``[n]``.
        words: for each token, the number of the word it is a piece of, ``[n]``.
    """

    ids: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> Tokens:
        return Tokens(self.ids[index], self.words[index])

    def starts(self) -> np.ndarray:
        """Whether a word starts at each token, and True for the end: ``[n + 1]``."""
        edges = np.ones(len(self) + 1, dtype=bool)
        edges[1:-1] = (self.words[1:] != self.words[:-1]) | (self.words[1:] < 0)
        return edges


@dataclass(frozen=True)
class Encoded:
    """What a model reads of one text or pair: token ids, token types and attention mask, each ``[n]``."""

    ids: np.ndarray
    types: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class AlignedPair:
    """A minimal pair, position by position.

    Args:
        baseline: the baseline side.
        perturbed: the perturbed side, of the same length.
        classes: the token class of each position, an index into :data:`TOKEN_CLASSES`.
        query: the row of the query in the ranker's query inputs.
        parts: the part that each position belongs to, as :meth:`Template.build` gives it.
        words: for each position of the perturbed side, the number, within its part, of the word it is a piece of; -1
            for special tokens and fillers.
    """

    baseline: Encoded
    perturbed: Encoded
    classes: np.ndarray
    query: int
    parts: np.ndarray
    words: np.ndarray

    def key(self) -> tuple[int, bytes]:
        """What two pairs share that nothing tells apart."""
        sides = (array for side in (self.baseline, self.perturbed) for array in (side.ids, side.types, side.mask))
        return self.query, b"|".join(array.tobytes() for array in (*sides, self.classes))

    @property
    def is_open(self) -> np.ndarray:
        """The positions that are attended to on both sides, ``[n]``."""
        return (self.baseline.mask & self.perturbed.mask).astype(bool)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Tokens]:
    """Token ids and word numbers of texts, without special tokens."""
    if not texts:
        return []
    encodings: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False).encodings
    return [
        Tokens(np.array(e.ids, dtype=np.int64), np.array([-1 if w is None else w for w in e.word_ids], dtype=np.int64))
        for e in encodings
    ]


@dataclass(frozen=True)
class _Slot:
    """Where a part goes: special tokens when ``part`` is None, else the query (0) or the document (1)."""

    part: int | None
    ids: np.ndarray
    type: int


class Template:
    """How a tokenizer surrounds a text, or a query and a document, with special tokens.

    Read off the tokenizer's own output, so that every checkpoint's convention is followed.

    Args:
        tokenizer: a fast tokenizer.
        pair: whether the sequences are (query, document) pairs or single texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pair: bool):
        probe: Any = tokenizer("a", "a") if pair else tokenizer("a")
        encoding = probe.encodings[0]
        self.slots: list[_Slot] = []
        for token, part, kind in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True):
            if part is not None and self.slots and self.slots[-1].part == part:
                continue
            ids = np.array([token] if part is None else [], dtype=np.int64)
            self.slots.append(_Slot(part, ids, kind))
        self.n_special = sum(len(slot.ids) for slot in self.slots)

    def build(self, *parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put the token ids of a text, or of a query and of a document, in their places.

        Returns:
            ids, token types, and the part that each position belongs to (:data:`SPECIAL`, or the number of the part).
        """
        pieces = [slot.ids if slot.part is None else parts[slot.part] for slot in self.slots]
        lengths = [len(piece) for piece in pieces]
        types = np.repeat([slot.type for slot in self.slots], lengths)
        owners = np.repeat([SPECIAL if slot.part is None else slot.part for slot in self.slots], lengths)
        return np.concatenate(pieces), types, owners
