"""From text to token ids: how a query and a document become the one sequence that a model reads.

A sequence is made of *segments*: the query, the document, or both. Each is tokenised by itself (:func:`tokenise`), so
that it is known of every token which segment and which word it belongs to. A :class:`Template` then puts the segments
in their places, among the special tokens of the tokenizer or within the text of a prompt. A minimal pair of two such
sequences, position by position, is an :class:`AlignedPair`.
"""

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
"""The segment that special tokens are given: neither query nor document."""

UNATTENDED = -2
"""The segment of special tokens to which no other position attends, though the score reads their own states: the
[MASK] tokens that fill up ColBERT's queries."""

_FIELD = re.compile(r"(\{query\}|\{document\})")

_WORD = "a"
"""Stands for a query or a document while what follows it in a prompt is tokenised."""

_PROBES = [("what is a tide?", "Why two tides a day: 2 moons."), ("moon (of Earth)", '"Rome" it is')]
"""Queries and documents with which it is tried whether a prompt tokenised by segments has the tokens of the whole."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised text without special tokens. Slices and sums are as those of a list.

    Args:
        ids: token ids, ``[n]``.
        words: for each token, the number of the word it is a piece of, ``[n]``; -1 for a token of no word.
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
        """Where words start: for each token, whether it is the first of its word, and True for the end, ``[n + 1]``.

        A token of no word counts as a word of its own.
        """
        edges = np.ones(len(self) + 1, dtype=bool)
        edges[1:-1] = (self.words[1:] != self.words[:-1]) | (self.words[1:] < 0)
        return edges


@dataclass(frozen=True)
class Encoded:
    """The sequence that a model reads of one text, or of one query and document.

    Args:
        ids: token ids, ``[n]``.
        types: token types (BERT's segment ids), ``[n]``.
        mask: attention mask, ``[n]``: 1 where other positions attend to this one, else 0.
    """

    ids: np.ndarray
    types: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class AlignedPair:
    """A minimal pair as two sequences of one length, whose positions correspond.

    Args:
        baseline: the baseline side.
        perturbed: the perturbed side, of the same length.
        classes: the token class of each position, an index into :data:`TOKEN_CLASSES`.
        query: which of the distinct queries the pair belongs to, as the row of the ranker's query inputs (documents
            stand for queries where queries vary).
        segments: the segment that each position belongs to, as :meth:`Template.build` gives it: 0 for the query and 1
            for the document where the sequence has both, 0 where it has one of them, and a negative number
            (:data:`SPECIAL`, :data:`UNATTENDED`) for special tokens.
        words: for each position of the perturbed side, the number, within its segment, of the word it is a piece of;
            -1 for special tokens and fillers.
    """

    baseline: Encoded
    perturbed: Encoded
    classes: np.ndarray
    query: int
    segments: np.ndarray
    words: np.ndarray

    def key(self) -> tuple[int, bytes]:
        """The same for two pairs that no computation can tell apart, so that one of them need be computed."""
        sides = (array for side in (self.baseline, self.perturbed) for array in (side.ids, side.types, side.mask))
        return self.query, b"|".join(array.tobytes() for array in (*sides, self.classes))

    @property
    def is_open(self) -> np.ndarray:
        """The positions that can be patched, bool ``[n]``: attended to on both sides, or :data:`UNATTENDED` by design.

        The others are masked on one side, where the other has an insertion of alignment ``mask``.
        """
        return (self.baseline.mask & self.perturbed.mask).astype(bool) | (self.segments == UNATTENDED)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], ending: int = 0) -> list[Tokens]:
    """Token ids and word numbers of texts, without special tokens.

    Args:
        tokenizer: a fast tokenizer.
        texts: the texts.
        ending: how many characters at the end of each text are of no word: a prompt's line breaks after it.
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
class _Piece:
    """A stretch of a template: tokens that are in every sequence, or the place of a segment.

    Args:
        segment: None for tokens that are in every sequence, else the segment that goes here, 0 or 1.
        ids: these tokens; none where a segment goes.
        type: the token type of the positions.
    """

    segment: int | None
    ids: np.ndarray
    type: int


@dataclass(frozen=True)
class Padding:
    """Tokens that fill short sequences up, and that the score reads like others: the masks of ColBERT's queries.

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
    """What a sequence is made of: the segments, and the tokens around them that are in every sequence.

    BERT's for two segments is ``[CLS]``, query, ``[SEP]``, document, ``[SEP]``.

    Args:
        pieces: what comes after one another.
        affixes: for each segment, what it is put between before it is tokenised.
        padding: what short sequences are filled up with at their end; None for nothing.

    Attributes:
        n_special: how many tokens are in every sequence.
    """

    def __init__(
        self,
        pieces: Sequence[_Piece],
        affixes: Sequence[_Affix] = (_Affix(), _Affix()),
        padding: Padding | None = None,
    ):
        self.pieces = list(pieces)
        self.affixes = list(affixes)
        self.padding = padding
        self.n_special = sum(len(piece.ids) for piece in self.pieces)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> Template:
        """The template of a tokenizer: its special tokens, read off its own output, so that any convention is followed.

        Args:
            tokenizer: a fast tokenizer.
            pair: whether the sequences are (query, document) pairs or single texts.
        """
        probe: Any = tokenizer("a", "a") if pair else tokenizer("a")
        encoding = probe.encodings[0]
        pieces: list[_Piece] = []
        for token, segment, kind in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True):
            if segment is not None and pieces and pieces[-1].segment == segment:
                continue
            pieces.append(_Piece(segment, np.array([token] if segment is None else [], dtype=np.int64), kind))
        return cls(pieces)

    @classmethod
    def parse(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Template:
        """The template of a prompt, a text with ``{query}`` and ``{document}`` in it.

        Query and document are tokenised apart from the rest, so that each token belongs to one of them, and yet have
        the tokens that they have in the whole prompt. For that, a space before a segment is tokenised with it, or is
        left out where the tokenizer puts its own there; line breaks after a segment are tokenised with it, as some
        tokenizers join them to its last mark; and a segment that has other tokens alone is tokenised after what stands
        before it. (Only an empty segment, or one that begins with a line break, may have other tokens beside line
        breaks than in the whole.)

        Args:
            tokenizer: a fast tokenizer.
            text: the prompt, without the tokenizer's special tokens, which are put around it.

        Raises:
            ValueError: ``{query}`` or ``{document}`` is not there exactly once, or no way of tokenising segments apart
                gives the tokens of the whole.
        """
        split = _FIELD.split(text)
        if sorted(split[1::2]) != ["{document}", "{query}"]:
            raise ValueError(f"the template {text!r} should have {{query}} and {{document}} once each.")
        for keeps_spaces, is_anchored in ((True, False), (False, False), (True, True)):
            made = cls._of_prompt(tokenizer, split, keeps_spaces, is_anchored)
            if made._is_whole(tokenizer, text):
                return made
        raise ValueError(
            f"the template {text!r} has other tokens when query and document are tokenised apart from it; put spaces, "
            "line breaks or special tokens around {query} and {document}."
        )

    @classmethod
    def _of_prompt(
        cls, tokenizer: PreTrainedTokenizerBase, split: Sequence[str], keeps_spaces: bool, is_anchored: bool
    ) -> Template:
        """The template of a prompt, given as a text, a field, a text, the other field and a text."""
        around = cls.of(tokenizer, pair=False).pieces
        at = next(number for number, piece in enumerate(around) if piece.segment is not None)
        made, affixes = around[:at], {}
        anchor, literal = "", split[0]
        for name, following in zip(split[1::2], split[2::2], strict=True):
            stripped = literal.rstrip(" ")
            made.append(_Piece(None, _tokens_after(tokenizer, anchor, stripped), 0))
            made.append(_Piece(int(name == "{document}"), np.empty(0, dtype=np.int64), 0))
            before = literal[len(stripped) :] if keeps_spaces else ""
            after = following[: len(following) - len(following.lstrip("\n"))]
            anchor = f"{anchor}{stripped}" if is_anchored else ""
            n_anchor = len(_tokens_after(tokenizer, "", anchor))
            affixes[name] = _Affix(anchor, n_anchor, before, after, _tokens_after(tokenizer, _WORD, after))
            anchor, literal = _WORD + after, following[len(after) :]
        made.append(_Piece(None, _tokens_after(tokenizer, anchor, literal), 0))
        return cls([*made, *around[at + 1 :]], [affixes["{query}"], affixes["{document}"]])

    def _is_whole(self, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
        """Whether probes, tokenised by segments, have the tokens of the whole text."""
        for probe in _PROBES:
            segments = [self.tokens(tokenizer, segment, [one])[0] for segment, one in enumerate(probe)]
            query, document = probe
            whole: Any = tokenizer(text.replace("{query}", query).replace("{document}", document))
            if self.build(*(segment.ids for segment in segments))[0].tolist() != whole["input_ids"]:
                return False
        return True

    def with_marker(self, token: int) -> Template:
        """This template with one more special token, of some id, after the first."""
        made = copy(self)
        marker = _Piece(None, np.array([token], dtype=np.int64), self.pieces[0].type)
        made.pieces = [self.pieces[0], marker, *self.pieces[1:]]
        made.n_special += 1
        return made

    def padded(self, padding: Padding) -> Template:
        """This template, with short sequences filled up."""
        made = copy(self)
        made.padding = padding
        return made

    def tokens(self, tokenizer: PreTrainedTokenizerBase, segment: int, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of texts as a segment, with the spaces and line breaks that the template has right beside them.

        Args:
            tokenizer: the tokenizer that the template is of.
            segment: which one the texts are, 0 for queries and 1 for documents.
            texts: the texts.
        """
        affix = self.affixes[segment]
        whole = [f"{affix.anchor}{affix.before}{text}{affix.after}" for text in texts]
        return [tokens[affix.n_anchor :] for tokens in tokenise(tokenizer, whole, ending=len(affix.after))]

    def tokens_apart(self, tokenizer: PreTrainedTokenizerBase, segment: int, texts: Sequence[str]) -> list[Tokens]:
        """As :meth:`tokens`, but with line breaks after a text as tokens of their own (see :func:`ended_alike`)."""
        affix = self.affixes[segment]
        breaks = Tokens(affix.ending, np.full(len(affix.ending), -1))
        whole = tokenise(tokenizer, [f"{affix.anchor}{affix.before}{text}" for text in texts])
        return [tokens[affix.n_anchor :] + breaks for tokens in whole]

    def build(self, *segments: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put segments in their places.

        Args:
            *segments: the token ids of each: of one text, or of a query and of a document.

        Returns:
            The token ids, the token types, and the segment that each position belongs to (:data:`SPECIAL`,
            :data:`UNATTENDED`, or the number of the segment), each ``[n]``.
        """
        stretches = [piece.ids if piece.segment is None else segments[piece.segment] for piece in self.pieces]
        lengths = [len(stretch) for stretch in stretches]
        types = np.repeat([piece.type for piece in self.pieces], lengths)
        owners = np.repeat([SPECIAL if piece.segment is None else piece.segment for piece in self.pieces], lengths)
        ids = np.concatenate(stretches)
        if self.padding is not None:
            room = (0, max(0, self.padding.length - len(ids)))
            ids, types = np.pad(ids, room, constant_values=self.padding.token), np.pad(types, room)
            owners = np.pad(owners, room, constant_values=SPECIAL if self.padding.attended else UNATTENDED)
        return ids, types, owners


def ended_alike(sides: Sequence[Tokens], apart: Sequence[Tokens], n_last: int) -> tuple[Tokens, Tokens]:
    """The two sides of a pair, so tokenised that what follows them in a prompt does not make them differ.

    Some tokenizers make one token of a mark and the line breaks after it. In a prompt with two line breaks after the
    document, the baseline "Tides rise." and the perturbed text "Tides rise. Tides fall" then have the tokens::

        Tides | rise | .⏎⏎
        Tides | rise | . | Tides | fall | ⏎⏎

    Although both have the same first sentence, the token of its full stop is another on each side: the baseline's has
    the line breaks joined to it. So the baseline takes its tokens with the line breaks apart, and the sides differ by
    the added sentence alone::

        Tides | rise | . | ⏎⏎
        Tides | rise | . | Tides | fall | ⏎⏎

    This is done where the line breaks are joined on the shorter side alone. Otherwise both sides keep the tokens that
    they have in the prompt.

    Args:
        sides: the tokens of both sides, as they are in the prompt.
        apart: the tokens of both sides with the line breaks apart.
        n_last: how many tokens the line breaks are when they are apart.

    Returns:
        The tokens of both sides, in the order given.
    """
    joined = [not np.array_equal(side.ids[-n_last:], of.ids[-n_last:]) for side, of in zip(sides, apart, strict=True)]
    shorter = int(len(sides[1]) < len(sides[0]))
    if joined[shorter] and not joined[1 - shorter]:
        return (sides[0], apart[1]) if shorter else (apart[0], sides[1])
    return sides[0], sides[1]
