"""From text to token ids: how a query and a document become the one sequence that a model reads.

A sequence is made of *segments*, the query, the document, or both, and of the special tokens around them, so that it is
known of every token which segment and which word it belongs to: its :class:`Parts`. A :class:`Template` tokenises each
segment by itself, as the tokenizer does, and puts it in its place; a :class:`~pyterrier_mechir.text.prompts.Prompt` is
a template that tokenises the whole text of a prompt. A minimal pair of two such sequences, position by position, is an
:class:`AlignedPair`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from pyterrier_mechir.text.tokens import Tokens, tokenise

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

Self = TypeVar("Self", bound="Template")


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

    def key(self) -> bytes:
        """The same for two sequences that are equal."""
        return b"|".join(array.tobytes() for array in (self.ids, self.types, self.mask))

    def filled(self, length: int, pad: int) -> Encoded:
        """The sequence filled up to a length with a token that is not attended to."""
        around = (0, length - len(self.ids))
        values = ((self.ids, pad), (self.types, 0), (self.mask, 0))
        return Encoded(*(np.pad(array, around, constant_values=value) for array, value in values))


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
        spans: for each position, the characters of the baseline text that the baseline's token there is made of: begin
            and end, int64 ``[n, 2]``, the same number twice for none: special tokens, fillers and the tokens of the
            segment that does not vary, and all where nobody asked for them. Where a word of both sides has other pieces
            in the perturbed text, and so on both sides here, these have the characters that they are of in the
            baseline.
        slots: sets of positions of this very pair that are patched together, bool ``[slot, n]``; None where they follow
            from the rest.
    """

    baseline: Encoded
    perturbed: Encoded
    classes: np.ndarray
    query: int
    segments: np.ndarray
    words: np.ndarray
    spans: np.ndarray
    slots: np.ndarray | None = None

    def key(self) -> tuple[int, bytes]:
        """The same for two pairs that no computation can tell apart, so that one of them need be computed."""
        slots = b"" if self.slots is None else self.slots.tobytes()
        return self.query, b"|".join((self.baseline.key(), self.perturbed.key(), self.classes.tobytes(), slots))

    @property
    def is_open(self) -> np.ndarray:
        """The positions that can be patched, bool ``[n]``: attended to on both sides, or :data:`UNATTENDED` by design.

        The others are masked on one side, where the other has an insertion of alignment ``mask``.
        """
        return (self.baseline.mask & self.perturbed.mask).astype(bool) | (self.segments == UNATTENDED)


def unique(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Distinct items in order of appearance, and the place of each item among them."""
    places: dict[Any, int] = {}
    which = [places.setdefault(item, len(places)) for item in items]
    return list(places), which


class Parts(NamedTuple):
    """A sequence in parts.

    Args:
        around: the tokens around the segments, before, between and after them.
        segments: the tokens of each segment: of the one text, or of the query and of the document.
        joined: of each segment, whether its last token is also of what follows it.
    """

    around: tuple[np.ndarray, ...]
    segments: tuple[Tokens, ...]
    joined: tuple[bool, ...] = (False, False)


@dataclass(frozen=True)
class Sides:
    """The two sides of a minimal pair, each as tokens of the segment that varies.

    Args:
        around: the tokens around the segments, the same on both sides.
        fixed: the tokens of the segment that is the same on both sides; None where there is one segment.
        baseline: the tokens of the baseline's segment.
        perturbed: the tokens of the perturbed side's segment.
        n_last: how many tokens at the end of both correspond to each other whatever they are.
    """

    around: tuple[np.ndarray, ...]
    fixed: Tokens | None
    baseline: Tokens
    perturbed: Tokens
    n_last: int = 0


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


@dataclass(frozen=True)
class Template:
    """What a sequence is made of: the segments, and the tokens around them that are in every sequence.

    BERT's for two segments is ``[CLS]``, query, ``[SEP]``, document, ``[SEP]``.

    Args:
        around: the tokens before, between and after the segments.
        around_types: their token types; nothing where all types are 0.
        order: which segment comes at each place between these.
        types: the token type of each segment.
        padding: what short sequences are filled up with at their end; None for nothing.
    """

    around: tuple[np.ndarray, ...]
    around_types: tuple[np.ndarray, ...]
    order: tuple[int, ...]
    types: tuple[int, ...]
    padding: Padding | None = None

    @property
    def n_special(self) -> int:
        """How many tokens are in every sequence."""
        return sum(map(len, self.around))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> Template:
        """The template of a tokenizer: its special tokens, read off its own output, so that any convention is followed.

        Args:
            tokenizer: a fast tokenizer.
            pair: whether the sequences are (query, document) pairs or single texts.
        """
        probe: Any = tokenizer("a", "a") if pair else tokenizer("a")
        encoding = probe.encodings[0]
        stretches: list[list[tuple[int, int]]] = [[]]
        of_segments: dict[int, int] = {}
        for token, segment, kind in zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True):
            if segment is None:
                stretches[-1].append((token, kind))
            elif segment not in of_segments:
                of_segments[segment] = kind
                stretches.append([])
        around, types = (
            tuple(np.array([one[which] for one in stretch], dtype=np.int64) for stretch in stretches)
            for which in (0, 1)
        )
        return cls(around, types, tuple(of_segments), tuple(of_segments[segment] for segment in sorted(of_segments)))

    def with_marker(self, token: int) -> Template:
        """This template with one more special token, of some id, after the first."""
        first, kinds = self.around[0], self.around_types[0]
        around = (np.insert(first, 1, token), *self.around[1:])
        return replace(self, around=around, around_types=(np.insert(kinds, 1, kinds[0]), *self.around_types[1:]))

    def padded(self, padding: Padding) -> Template:
        """This template, with short sequences filled up."""
        return replace(self, padding=padding)

    def parts(
        self, tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], located: bool = False
    ) -> list[Parts]:
        """Sequences in parts.

        Args:
            tokenizer: the tokenizer that the template is of.
            columns: the texts of each segment: of the one, or of queries and of documents.
            located: whether to tell the spans of tokens in the text of their segment.
        """
        of_columns = []
        for texts in columns:
            distinct, which = unique(texts)
            tokens = tokenise(tokenizer, distinct, located)
            of_columns.append([tokens[number] for number in which])
        return [Parts(self.around, segments) for segments in zip(*of_columns, strict=True)]

    def plain(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[Sequence[str]],
        max_length: int,
        cut: Callable[[Parts], Parts],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Sequences as :meth:`build` makes them.

        Args:
            tokenizer: the tokenizer that the template is of.
            columns: as for :meth:`parts`.
            max_length: how long a sequence may be.
            cut: makes a sequence that short.
        """
        for parts in self.parts(tokenizer, columns):
            yield self.build(cut(parts))

    def sides(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[Sequence[str]],
        perturbed: Sequence[str],
        varied: int,
        located: bool = False,
    ) -> Iterator[Sides]:
        """The two sides of minimal pairs.

        Args:
            tokenizer: the tokenizer that the template is of.
            columns: the texts of each segment of the baselines, as for :meth:`parts`.
            perturbed: the texts of the segment that varies, of the perturbed sides.
            varied: which segment that is.
            located: as for :meth:`parts`.
        """
        both = [[*texts, *(perturbed if n == varied else texts)] for n, texts in enumerate(columns)]
        made = self.parts(tokenizer, both, located)
        for baseline, other in zip(made[: len(perturbed)], made[len(perturbed) :], strict=True):
            fixed = baseline.segments[1 - varied] if len(columns) == 2 else None
            yield Sides(self.around, fixed, baseline.segments[varied], other.segments[varied])

    def cut_around(self, around: tuple[np.ndarray, ...], cut: Sequence[bool], left: bool) -> tuple[np.ndarray, ...]:
        """The tokens around segments of which some are cut: beside the end of a text that is lost, the template's own.

        Args:
            around: the tokens around the whole segments.
            cut: of each segment, whether it is cut.
            left: whether the beginning is lost.
        """
        places = {place + (not left) for place, segment in enumerate(self.order) if cut[segment]}
        return tuple(self.around[n] if n in places else ids for n, ids in enumerate(around))

    def build(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put parts together.

        Returns:
            The token ids, the token types, and the segment that each position belongs to (:data:`SPECIAL`,
            :data:`UNATTENDED`, or the number of the segment), each ``[n]``.
        """
        stretches, owners = [parts.around[0]], [SPECIAL]
        for place, segment in enumerate(self.order, 1):
            stretches += [parts.segments[segment].ids, parts.around[place]]
            owners += [segment, SPECIAL]
        ids, of_positions = np.concatenate(stretches), np.repeat(owners, [len(one) for one in stretches])
        types = np.zeros(len(ids), dtype=np.int64)
        if self.around_types:
            types[of_positions < 0] = np.concatenate(self.around_types)
            for segment, kind in enumerate(self.types):
                types[of_positions == segment] = kind
        if self.padding is not None:
            room = (0, max(0, self.padding.length - len(ids)))
            ids, types = np.pad(ids, room, constant_values=self.padding.token), np.pad(types, room)
            owner = SPECIAL if self.padding.attended else UNATTENDED
            of_positions = np.pad(of_positions, room, constant_values=owner)
        return ids, types, of_positions
