"""From text to token ids: the sequences that a model reads, built from separately tokenised parts."""

from __future__ import annotations

import re
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

_FIELD = re.compile(r"(\{query\}|\{document\})")
_PROBES = [("what is a tide?", "Why two tides a day: 2 moons."), ("moon (of Earth)", '"Rome" it is')]


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
    """How a text, or a query and a document, are surrounded with tokens that are in every sequence.

    Args:
        slots: what comes after one another.
        affixes: what the query and the document, in this order, are put between before they are tokenised.
    """

    def __init__(self, slots: Sequence[_Slot], affixes: Sequence[tuple[str, str]] = (("", ""), ("", ""))):
        self.slots = list(slots)
        self.affixes = list(affixes)
        self.n_special = sum(len(slot.ids) for slot in self.slots)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> Template:
        """The special tokens of a tokenizer, read off its own output, so that every convention is followed.

        Args:
            tokenizer: a fast tokenizer.
            pair: whether the sequences are (query, document) pairs or single texts.
        """
        probe: Any = tokenizer("a", "a") if pair else tokenizer("a")
        encoding = probe.encodings[0]
        slots: list[_Slot] = []
        for token, part, kind in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True):
            if part is not None and slots and slots[-1].part == part:
                continue
            slots.append(_Slot(part, np.array([token] if part is None else [], dtype=np.int64), kind))
        return cls(slots)

    @classmethod
    def parse(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Template:
        """A prompt: a text with ``{query}`` and ``{document}`` in it, between the tokenizer's special tokens.

        Query and document are tokenised apart from the rest, so that each token belongs to one of them. That gives the
        tokens of the whole prompt: a space before a part goes with it, or is left out where the tokenizer puts its own
        there, and line breaks after a part go with it, as they may join its last mark.

        Args:
            tokenizer: a fast tokenizer.
            text: the prompt.

        Raises:
            ValueError: ``{query}`` or ``{document}`` is not there once, or no way of tokenising in parts gives the
                tokens of the whole.
        """
        pieces = _FIELD.split(text)
        if sorted(pieces[1::2]) != ["{document}", "{query}"]:
            raise ValueError(f"the template {text!r} should have {{query}} and {{document}} once each.")
        for keeps_spaces in (True, False):
            made = cls._of_pieces(tokenizer, pieces, keeps_spaces)
            if made._is_whole(tokenizer, text):
                return made
        raise ValueError(
            f"the template {text!r} has other tokens when query and document are tokenised apart from it; put spaces, "
            "line breaks or special tokens around {query} and {document}."
        )

    @classmethod
    def _of_pieces(cls, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], keeps_spaces: bool) -> Template:
        literals, affixes = [pieces[0]], {}
        for field, literal in zip(pieces[1::2], pieces[2::2], strict=True):
            before = literals[-1].rstrip(" ")
            breaks = literal[: len(literal) - len(literal.lstrip("\n"))]
            affixes[field] = (literals[-1][len(before) :] if keeps_spaces else "", breaks)
            literals[-1] = before
            literals.append(literal[len(breaks) :] if keeps_spaces else literal[len(breaks) :].lstrip(" "))
        ids: list[Any] = [tokenizer(literal, add_special_tokens=False)["input_ids"] for literal in literals]
        around = cls.of(tokenizer, pair=False).slots
        at = next(number for number, slot in enumerate(around) if slot.part is not None)
        slots = [*around[:at], _Slot(None, np.array(ids[0], dtype=np.int64), 0)]
        for field, of_literal in zip(pieces[1::2], ids[1:], strict=True):
            slots.append(_Slot(int(field == "{document}"), np.array([], dtype=np.int64), 0))
            slots.append(_Slot(None, np.array(of_literal, dtype=np.int64), 0))
        return cls([*slots, *around[at + 1 :]], [affixes["{query}"], affixes["{document}"]])

    def _is_whole(self, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
        """Whether probes have the tokens of the whole text."""
        for query, document in _PROBES:
            parts = tokenise(tokenizer, [self.around(0, query), self.around(1, document)])
            whole: Any = tokenizer(text.replace("{query}", query).replace("{document}", document))
            if self.build(*(part.ids for part in parts))[0].tolist() != whole["input_ids"]:
                return False
        return True

    def around(self, part: int, text: str) -> str:
        """A query (0) or document (1) as it is tokenised."""
        before, after = self.affixes[part]
        return f"{before}{text}{after}"

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
