"""Texts as the sequences of token ids that a ranker reads, alone or in minimal pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pyterrier_mechir.checks import warn
from pyterrier_mechir.text.alignment import FILL, Alignment, align, keep_edit, token_classes, with_fillers
from pyterrier_mechir.text.encoding import CLS, SEP, SPECIAL, UNATTENDED, AlignedPair, Encoded, Parts, Template, unique
from pyterrier_mechir.text.fillers import Filler, Fillers, RandomFiller
from pyterrier_mechir.text.tokens import Tokens, tokenise
from pyterrier_mechir.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_T = TypeVar("_T")


@dataclass(frozen=True)
class Located:
    """The sequence of a text, and where in the text each of its tokens comes from.

    Args:
        sequence: what the model reads.
        spans: for each position, the characters of the text that its token is made of: begin and end, int64
            ``[n, 2]``, both 0 for special tokens, fillers and the tokens of another text.
        words: for each position, the number of the word of the text that it is a piece of, ``[n]``; -1 for none.
        of_text: the spans of all tokens of the text, whether they fit into the sequence or not, ``[t, 2]``.
        seen: from which character to which the text is read: all of it, unless it is cut.
    """

    sequence: Encoded
    spans: np.ndarray
    words: np.ndarray
    of_text: np.ndarray
    seen: tuple[int, int]


@dataclass(frozen=True)
class Sequences:
    """How texts become the sequences that a ranker reads.

    Args:
        template: what surrounds the texts in every sequence.
        tokenizer: a fast tokenizer.
        vocabulary: its tokens as words.
        max_length: longest sequence, in tokens with special ones.
        reads_query: whether a sequence has the query and the document in it, or one text alone.
        varies: which side the pairs vary on, ``document`` or ``query``; the other is the same on both sides.
        reader: what warnings call the ranker.
        cuts_left: whether what is too long loses its beginning and not its end.
        prefixes: what is put before every text of a side, ``query`` or ``document``.
        known_fillers: the :class:`~.fillers.Fillers` made so far, by what the user gave as fillers; a ranker and its
            copies that face the other side share them.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    max_length: int
    reads_query: bool
    varies: str
    reader: str
    cuts_left: bool = False
    prefixes: Mapping[str, str] = field(default_factory=dict)
    known_fillers: dict[Any, Fillers] = field(default_factory=dict)

    def plain(self, queries: Sequence[str], texts: Sequence[str]) -> list[Encoded]:
        """The sequences of (query, text) pairs, or, where a sequence has one text in it, of the texts.

        Args:
            queries: of each text; not read where a sequence has no query in it.
            texts: the texts.
        """
        columns = self._columns(queries, texts)
        made = self.template.plain(self.tokenizer, columns, self.max_length, self._cut)
        return [self._encoded(*one, (one[2] != UNATTENDED).astype(np.int64)) for one in made]

    def aligned(
        self,
        contexts: Sequence[str],
        baselines: Sequence[str],
        perturbed: Sequence[str],
        alignments: Sequence[str],
        filler: Filler | Sequence[Filler],
        located: bool = False,
    ) -> list[AlignedPair | None]:
        """The sequences of minimal pairs, whose sides correspond position by position.

        1. Distinct texts are tokenised once; a token difference finds where the sides of a pair part
           (:mod:`~pyterrier_mechir.text.alignment`).
        2. What does not fit into the model's length is cut so that the edit stays; a pair whose edit cannot stay is
           None.
        3. Where one side has an insertion, the other gets fillers, or attention-masked positions, as many.
        4. Template, token classes and word numbers complete each side.

        Args and result are those of :meth:`~pyterrier_mechir.rankers.base.Ranker.align`.
        """
        if "free" in alignments:
            raise ValueError(
                "a perturbation of alignment 'free' has sides that do not correspond, so no activation of one can be "
                "put into the other; declare another alignment, or compare the scores of both sides with PairScorer."
            )
        split, spellings = self.vocabulary.split_marks, self.vocabulary.spellings
        distinct, which_context = unique(contexts)
        fillers = self._fillers(filler)
        apart = [] if self.reads_query else [split(tokens) for tokens in tokenise(self.tokenizer, distinct)]
        pairs: list[list[AlignedPair | None]] = [[] for _ in range(len(fillers))]
        counts: Counter[str] = Counter()
        columns, others = self._columns(contexts, baselines), self._columns(contexts, perturbed)
        made = self.template.sides(self.tokenizer, columns, others[self._varied], self._varied, located)
        for i, (alignment, sides) in enumerate(zip(alignments, made, strict=True)):
            fixed = apart[which_context[i]] if sides.fixed is None else split(sides.fixed)
            aligned = align(split(sides.baseline), split(sides.perturbed), spellings, alignment, sides.n_last)
            cut = None if aligned is None else self._cut_pair(sides.around, fixed, aligned)
            if aligned is None or cut is None:
                counts["other" if aligned is None else "lost"] += aligned is None or bool(aligned.edit.any())
                for of_filler in pairs:
                    of_filler.append(None)
                continue
            around, fixed, kept = cut
            counts["cut"] += len(kept) < len(aligned) and bool(aligned.edit.any())
            query = baselines[i] if self.varies == "query" else contexts[i]
            classes = token_classes(kept, fixed, spellings, self.varies)
            masked = alignment == "mask"
            of_position = (
                [self.masked_ids(len(kept))] * len(fillers) if masked else fillers.ids(kept, query, baselines[i])
            )
            for ids, of_filler in zip(of_position, pairs, strict=True):
                of_filler.append(self._pair(around, fixed, which_context[i], kept, classes, ids, masked))
        self._warn_of(counts, len(contexts))
        return [pair for of_filler in pairs for pair in of_filler]

    def located(self, contexts: Sequence[str], texts: Sequence[str]) -> list[Located]:
        """The sequences of texts as :meth:`plain` makes them, with the characters that each token is made of.

        Args:
            contexts: what is beside each text: its query, or its document where queries vary.
            texts: the texts.
        """
        parts = self.template.parts(self.tokenizer, self._columns(contexts, texts), located=True)
        return [self._located(*one) for one in zip(parts, texts, strict=True)]

    def _located(self, parts: Parts, text: str) -> Located:
        varied, whole, cut = self._varied, parts.segments[self._varied], self._cut(parts)
        ids, types, owners = self.template.build(cut)
        tokens = self.vocabulary.split_marks(cut.segments[varied])
        read = self._in_text(tokens.spans)
        spans, words = np.zeros((len(owners), 2), dtype=np.int64), np.full(len(owners), -1)
        spans[owners == varied], words[owners == varied] = read, np.where(read[:, 0] < read[:, 1], tokens.words, -1)
        mask = (owners != UNATTENDED).astype(np.int64)
        begin, end = 0, len(text)
        if len(tokens) < len(whole):
            of_text = read[read[:, 0] < read[:, 1]]
            begin = int(of_text[:, 0].min(initial=end)) if self.cuts_left else 0
            end = end if self.cuts_left else int(of_text[:, 1].max(initial=0))
        return Located(self._encoded(ids, types, owners, mask), spans, words, self._in_text(whole.spans), (begin, end))

    def _in_text(self, spans: np.ndarray) -> np.ndarray:
        """Spans of tokens of the side that varies, as characters of its text without what is put before it."""
        return (spans - len(self.prefixes.get(self.varies, ""))).clip(0)

    def cuts(self, contexts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Whether each text, beside its context, is longer than the ranker takes: bool ``[len(texts)]``.

        Args:
            contexts: the query of each text, or its document where queries vary.
            texts: the texts.
        """
        made = self.template.parts(self.tokenizer, self._columns(contexts, texts))
        varied = self._varied
        return np.array([len(self._cut(one).segments[varied]) < len(one.segments[varied]) for one in made], dtype=bool)

    def _columns(self, contexts: Sequence[str], texts: Sequence[str]) -> list[Sequence[str]]:
        """The texts of each segment, with what is put before those of their side."""
        varied = self._prefixed(self.varies, texts)
        if not self.reads_query:
            return [varied]
        fixed = self._prefixed(self.fixed_side, contexts)
        return [fixed, varied] if self.varies == "document" else [varied, fixed]

    def _prefixed(self, side: str, texts: Sequence[str]) -> Sequence[str]:
        prefix = self.prefixes.get(side)
        return [prefix + text for text in texts] if prefix else texts

    @property
    def _varied(self) -> int:
        """The segment that varies."""
        return int(self.reads_query and self.varies == "document")

    @property
    def fixed_side(self) -> str:
        """The side that is the same on both sides of pairs."""
        return "query" if self.varies == "document" else "document"

    def masked_ids(self, n: int) -> np.ndarray:
        """Ids of positions to which nothing attends: not padding, which has no position number in RoBERTa."""
        return np.full(n, self.vocabulary.words[0] if len(self.vocabulary.words) else 0, dtype=np.int64)

    def _fillers(self, filler: Filler | Sequence[Filler]) -> Fillers:
        key = filler if isinstance(filler, (str, RandomFiller)) else tuple(filler)
        if key not in self.known_fillers:
            self.known_fillers[key] = Fillers(filler, self.vocabulary)
        return self.known_fillers[key]

    def _encoded(self, ids: np.ndarray, types: np.ndarray, owners: np.ndarray, mask: np.ndarray) -> Encoded:
        """A sequence that a model can read.

        Raises:
            ValueError: there is no token in it.
        """
        if not mask.any():
            raise ValueError(
                f"a text is empty, and the tokenizer of {self.reader} adds no token of its own, so that there is "
                "nothing to read; leave out empty queries and documents, or put a word there."
            )
        return Encoded(ids, types, mask)

    def _pair(
        self,
        around: tuple[np.ndarray, ...],
        fixed: Tokens,
        number: int,
        aligned: Alignment,
        classes: tuple[np.ndarray, np.ndarray],
        fillers: np.ndarray,
        masked: bool,
    ) -> AlignedPair:
        """The sequences of an aligned pair, whose fillers are attention-masked where ``masked``."""
        filled = with_fillers(aligned, fillers)
        sides = []
        for ids, before in ((filled.baseline, aligned.baseline), (filled.perturbed, aligned.perturbed)):
            tokens = Tokens(ids, aligned.perturbed_words)
            ids, types, owners = self.template.build(Parts(around, self._segments(fixed, tokens)))
            mask = (owners != UNATTENDED).astype(np.int64)
            if masked:
                mask[owners == self._varied] = before != FILL
            sides.append(self._encoded(ids, types, owners, mask))
        of_positions, words = np.full(len(owners), SEP), np.full(len(owners), SPECIAL)
        of_positions[:1] = CLS
        of_segments = zip(self._segments(*classes), self._segments(fixed.words, aligned.perturbed_words), strict=True)
        for segment, (classes_of_segment, words_of_segment) in enumerate(of_segments):
            of_positions[owners == segment], words[owners == segment] = classes_of_segment, words_of_segment
        spans = np.zeros((len(owners), 2), dtype=np.int64)
        spans[owners == self._varied] = self._in_text(aligned.spans)
        return AlignedPair(sides[0], sides[1], of_positions, number, owners, words, spans)

    def _segments(self, fixed: _T, varied: _T) -> tuple[_T, ...]:
        """The segments of a sequence, query and document or one text, in their order."""
        if not self.reads_query:
            return (varied,)
        return (fixed, varied) if self.varies == "document" else (varied, fixed)

    def _cut(self, parts: Parts) -> Parts:
        """A sequence that fits: the first tokens of each segment, or the last where the tokenizer cuts on the left."""
        around, lengths = self._fitted(parts.around, [len(tokens) for tokens in parts.segments])
        kept = tuple(self._shortened(tokens, n) for tokens, n in zip(parts.segments, lengths, strict=True))
        return Parts(around, kept)

    def _cut_pair(
        self, around: tuple[np.ndarray, ...], fixed: Tokens, aligned: Alignment
    ) -> tuple[tuple[np.ndarray, ...], Tokens, Alignment] | None:
        """A pair that fits, cut so that its edit stays; None where it cannot."""
        stays = len(aligned) > 0 and bool(aligned.edit[0 if self.cuts_left else -1])
        lengths = self._segments(len(fixed), len(aligned))
        around, rooms = self._fitted(around, lengths, self._varied if stays else None)
        kept = keep_edit(aligned, rooms[self._varied], self.cuts_left)
        if kept is None:
            return None
        return around, self._shortened(fixed, rooms[1 - self._varied]) if self.reads_query else fixed, kept

    def _shortened(self, tokens: Tokens, n: int) -> Tokens:
        """The first tokens of a text, or the last where the tokenizer cuts on the left."""
        return tokens[max(0, len(tokens) - n) :] if self.cuts_left else tokens[:n]

    def _fitted(
        self, around: tuple[np.ndarray, ...], lengths: Sequence[int], stays: int | None = None
    ) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
        """What is around segments that are cut to fit, and how many tokens of each fit.

        Args:
            around: what is around the whole segments.
            lengths: how many tokens each segment has.
            stays: a segment that keeps its end although it is cut.
        """
        while True:
            n_around = sum(map(len, around))
            rooms = self._rooms(lengths, n_around)
            cut = [n > room and segment != stays for segment, (n, room) in enumerate(zip(lengths, rooms, strict=True))]
            around = self.template.cut_around(around, cut, self.cuts_left)
            if sum(map(len, around)) == n_around:
                return around, rooms

    def _rooms(self, lengths: Sequence[int], n_around: int) -> tuple[int, ...]:
        """How many tokens of each segment fit; of two, the longer is cut first, as transformers does."""
        room = max(0, self.max_length - n_around)
        if len(lengths) == 1:
            return (room,)
        if sum(lengths) <= room:
            return tuple(lengths)
        shorter = min(lengths)
        if shorter > room // 2:
            shorter, longer = room // 2, room - room // 2
        else:
            longer = room - shorter
        return (longer, shorter) if lengths[0] > lengths[1] else (shorter, longer)

    def _warn_of(self, counts: Mapping[str, int], n: int) -> None:
        what = "queries" if self.varies == "query" else "documents"
        longer = f"are longer than the {self.max_length} tokens that {self.reader} takes"
        of_kind = {
            "cut": f"{longer}; they were cut so that the perturbation stays.",
            "lost": f"{longer} and cannot be cut without losing the perturbation; their effects are missing.",
            "other": "have other words after a perturbation that should only move them; their effects are missing.",
        }
        for kind, sentence in of_kind.items():
            if counts[kind]:
                warn(f"{counts[kind]} of {n} {what} {sentence}")
