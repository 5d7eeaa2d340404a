"""From text to token ids: the sequences that a model reads, built from separately tokenised parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
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

UNATTENDED = -2
"""The part that special tokens belong to that nothing attends to, though the score reads what they attend to."""

_FIELD = re.compile(r"(\{query\}|\{document\})")

_WORD = "a"
"""Stands before what follows a text in a prompt, while it is tokenised."""

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

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(np.append(self.ids, other.ids), np.append(self.words, other.words))

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
        """The positions that are of the text on both sides, ``[n]``: attended to, or :data:`UNATTENDED` by design."""
        return (self.baseline.mask & self.perturbed.mask).astype(bool) | (self.parts == UNATTENDED)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ending: int = 0) -> list[Tokens]:
    """Token ids and word numbers of texts, without special tokens.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        ending: how many characters at the end of each text are of no word.
    """
    if not texts:
        return []
    encodings: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False).encodings
    made = []
    for text, e in zip(texts, encodings, strict=True):
        of_words = (-1 if w is None else w for w in e.word_ids)
        if ending:
            ends = len(text) - ending
            of_words = (-1 if at[0] >= ends else w for w, at in zip(of_words, e.offsets, strict=True))
        made.append(Tokens(np.array(e.ids, dtype=np.int64), np.fromiter(of_words, dtype=np.int64, count=len(e.ids))))
    return made


@dataclass(frozen=True)
class _Slot:
    """Where a part goes: special tokens when ``part`` is None, else the query (0) or the document (1)."""

    part: int | None
    ids: np.ndarray
    type: int


@dataclass(frozen=True)
class Padding:
    """Tokens that fill sequences up, and that the score reads.

    Args:
        token: their id.
        length: up to how many tokens in all.
        attended: whether other positions attend to them.
    """

    token: int
    length: int
    attended: bool


def _tokens_after(tokenizer: PreTrainedTokenizerBase, anchor: str, text: str) -> np.ndarray:
    """The ids of a text where it follows another."""
    before, whole = (tokenise(tokenizer, [one])[0].ids for one in (anchor, anchor + text))
    return whole[len(before) :]


@dataclass(frozen=True)
class _Affix:
    """What a query or a document is put between before it is tokenised.

    Args:
        anchor: what is before it, whose tokens are not its own.
        n_anchor: how many tokens these are.
        before: spaces, which go with its first token.
        after: line breaks, which some tokenizers join to its last token.
        ending: the tokens of these where they are not joined.
    """

    anchor: str = ""
    n_anchor: int = 0
    before: str = ""
    after: str = ""
    ending: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class Template:
    """How a text, or a query and a document, are surrounded with tokens that are in every sequence.

    Args:
        slots: what comes after one another.
        affixes: what the query and the document, in this order, are put between before they are tokenised.
        padding: what comes after all that; None for nothing.
    """

    def __init__(
        self,
        slots: Sequence[_Slot],
        affixes: Sequence[_Affix] = (_Affix(), _Affix()),
        padding: Padding | None = None,
    ):
        self.slots = list(slots)
        self.affixes = list(affixes)
        self.padding = padding
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
        there, and line breaks after a part go with it, as they may join its last mark. A part is tokenised after what
        comes before it where it has other tokens alone. (Only an empty part, or one that begins with a line break, may
        have other tokens beside line breaks than in the whole.)

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
        for keeps_spaces, is_anchored in ((True, False), (False, False), (True, True)):
            made = cls._of_pieces(tokenizer, pieces, keeps_spaces, is_anchored)
            if made._is_whole(tokenizer, text):
                return made
        raise ValueError(
            f"the template {text!r} has other tokens when query and document are tokenised apart from it; put spaces, "
            "line breaks or special tokens around {query} and {document}."
        )

    @classmethod
    def _of_pieces(
        cls, tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str], keeps_spaces: bool, is_anchored: bool
    ) -> Template:
        around = cls.of(tokenizer, pair=False).slots
        at = next(number for number, slot in enumerate(around) if slot.part is not None)
        made, affixes = around[:at], {}
        anchor, literal = "", pieces[0]
        for name, following in zip(pieces[1::2], pieces[2::2], strict=True):
            stripped = literal.rstrip(" ")
            made.append(_Slot(None, _tokens_after(tokenizer, anchor, stripped), 0))
            made.append(_Slot(int(name == "{document}"), np.empty(0, dtype=np.int64), 0))
            before = literal[len(stripped) :] if keeps_spaces else ""
            after = following[: len(following) - len(following.lstrip("\n"))]
            anchor = f"{anchor}{stripped}" if is_anchored else ""
            n_anchor = len(_tokens_after(tokenizer, "", anchor))
            affixes[name] = _Affix(anchor, n_anchor, before, after, _tokens_after(tokenizer, _WORD, after))
            anchor, literal = _WORD + after, following[len(after) :]
        made.append(_Slot(None, _tokens_after(tokenizer, anchor, literal), 0))
        return cls([*made, *around[at + 1 :]], [affixes["{query}"], affixes["{document}"]])

    def _is_whole(self, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
        """Whether probes have the tokens of the whole text."""
        for query, document in _PROBES:
            parts = [self.tokens(tokenizer, part, [probe])[0] for part, probe in enumerate((query, document))]
            whole: Any = tokenizer(text.replace("{query}", query).replace("{document}", document))
            if self.build(*(part.ids for part in parts))[0].tolist() != whole["input_ids"]:
                return False
        return True

    def with_marker(self, token: int) -> Template:
        """This template with one more special token after the first."""
        made = copy(self)
        marker = _Slot(None, np.array([token], dtype=np.int64), self.slots[0].type)
        made.slots = [self.slots[0], marker, *self.slots[1:]]
        made.n_special += 1
        return made

    def padded(self, padding: Padding) -> Template:
        """This template with sequences filled up."""
        made = copy(self)
        made.padding = padding
        return made

    def tokens(self, tokenizer: PreTrainedTokenizerBase, part: int, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of queries (0) or documents (1), with spaces and line breaks that the template has beside them."""
        affix = self.affixes[part]
        whole = [f"{affix.anchor}{affix.before}{text}{affix.after}" for text in texts]
        return [tokens[affix.n_anchor :] for tokens in tokenise(tokenizer, whole, ending=len(affix.after))]

    def tokens_apart(self, tokenizer: PreTrainedTokenizerBase, part: int, texts: Sequence[str]) -> list[Tokens]:
        """The same, with the line breaks as tokens of their own."""
        affix = self.affixes[part]
        breaks = Tokens(affix.ending, np.full(len(affix.ending), -1))
        whole = tokenise(tokenizer, [f"{affix.anchor}{affix.before}{text}" for text in texts])
        return [tokens[affix.n_anchor :] + breaks for tokens in whole]

    def build(self, *parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put the token ids of a text, or of a query and of a document, in their places.

        Returns:
            ids, token types, and the part that each position belongs to (:data:`SPECIAL`, :data:`UNATTENDED`, or the
            number of the part).
        """
        pieces = [slot.ids if slot.part is None else parts[slot.part] for slot in self.slots]
        lengths = [len(piece) for piece in pieces]
        types = np.repeat([slot.type for slot in self.slots], lengths)
        owners = np.repeat([SPECIAL if slot.part is None else slot.part for slot in self.slots], lengths)
        ids = np.concatenate(pieces)
        if self.padding is not None:
            room = (0, max(0, self.padding.length - len(ids)))
            ids, types = np.pad(ids, room, constant_values=self.padding.token), np.pad(types, room)
            owners = np.pad(owners, room, constant_values=SPECIAL if self.padding.attended else UNATTENDED)
        return ids, types, owners


def ended_alike(sides: Sequence[Tokens], apart: Sequence[Tokens], n_last: int) -> tuple[Tokens, Tokens]:
    """The sides of a pair with a prompt's line breaks apart on both, if only the shorter has them joined to its text.

    Tokenizers may make one token of a mark and the line breaks after it. Where one text goes on after the last mark of
    the other, the mark is the same token on both sides only without them.

    Args:
        sides: tokens of both sides.
        apart: the same with the line breaks apart.
        n_last: how many tokens these are.
    """
    joined = [not np.array_equal(side.ids[-n_last:], of.ids[-n_last:]) for side, of in zip(sides, apart, strict=True)]
    shorter = int(len(sides[1]) < len(sides[0]))
    if joined[shorter] and not joined[1 - shorter]:
        return (sides[0], apart[1]) if shorter else (apart[0], sides[1])
    return sides[0], sides[1]
