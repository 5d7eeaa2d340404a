"""Texts as the sequences of token ids that a ranker reads, alone or in minimal pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.checks import warn
from pyterrier_mechir.text.alignment import FILL, Alignment, align, keep_edit, token_classes, with_fillers
from pyterrier_mechir.text.encoding import (
    CLS,
    SEP,
    SPECIAL,
    UNATTENDED,
    AlignedPair,
    Encoded,
    Template,
    Tokens,
    ended_alike,
)
from pyterrier_mechir.text.fillers import Filler, Fillers, RandomFiller
from pyterrier_mechir.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTHING = Tokens(*np.empty((2, 0), dtype=np.int64))


def unique(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Distinct items in order of appearance, and the place of each item among them."""
    places: dict[Any, int] = {}
    which = [places.setdefault(item, len(places)) for item in items]
    return list(places), which


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
        documents = self.tokens("document" if self.reads_query else self.varies, texts)
        if not self.reads_query:
            return [self._plain(_NOTHING, document) for document in documents]
        distinct, which = unique(queries)
        of_queries = self.tokens("query", distinct)
        return [self._plain(of_queries[query], document) for query, document in zip(which, documents, strict=True)]

    def aligned(
        self,
        contexts: Sequence[str],
        baselines: Sequence[str],
        perturbed: Sequence[str],
        alignments: Sequence[str],
        filler: Filler | Sequence[Filler],
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
        distinct, which_context = unique(contexts)
        split, spellings = self.vocabulary.split_marks, self.vocabulary.spellings
        fixed_tokens = [split(tokens) for tokens in self.tokens(self.fixed_side, distinct)]
        fillers, ending = self._fillers(filler), self._ending(self.varies)
        pairs: list[list[AlignedPair | None]] = [[] for _ in range(len(fillers))]
        counts: Counter[str] = Counter()
        sides = zip(which_context, alignments, self._sides(baselines, perturbed), strict=True)
        for i, (context, alignment, of_pair) in enumerate(sides):
            aligned = align(of_pair[0], of_pair[1], spellings, alignment, len(ending))
            kept = None
            if aligned is None:
                counts["other"] += 1
            else:
                fixed_room, room = self._rooms(len(fixed_tokens[context]), len(aligned))
                kept = keep_edit(aligned, room, self.cuts_left, ending)
                counts["cut" if kept else "lost"] += len(aligned) > room and bool(aligned.edit.any())
            if kept is None:
                for of_filler in pairs:
                    of_filler.append(None)
                continue
            query = baselines[i] if self.varies == "query" else contexts[i]
            fixed = self._cut(fixed_tokens[context], fixed_room, self.fixed_side)
            classes = token_classes(kept, fixed, spellings, self.varies)
            masked = alignment == "mask"
            of_position = (
                [self.masked_ids(len(kept))] * len(fillers) if masked else fillers.ids(kept, query, baselines[i])
            )
            for ids, of_filler in zip(of_position, pairs, strict=True):
                of_filler.append(self._pair(fixed, context, kept, classes, ids, masked))
        self._warn_of(counts, len(contexts))
        return [pair for of_filler in pairs for pair in of_filler]

    def cuts(self, contexts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Whether each text, beside its context, is longer than the ranker takes: bool ``[len(texts)]``.

        Args:
            contexts: the query of each text, or its document where queries vary.
            texts: the texts.
        """
        fixed = self.tokens(self.fixed_side, contexts) if self.reads_query else [_NOTHING] * len(texts)
        varied = self.tokens(self.varies, texts)
        rooms = (self._rooms(len(one), len(other))[1] for one, other in zip(fixed, varied, strict=True))
        return np.array([len(tokens) > room for tokens, room in zip(varied, rooms, strict=True)], dtype=bool)

    def tokens(self, side: str, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of queries or documents, with what the template puts right beside them."""
        prefix = self.prefixes.get(side)
        if prefix:
            texts = [prefix + text for text in texts]
        return self.template.tokens(self.tokenizer, int(side == "document"), texts)

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

    def _plain(self, query: Tokens, document: Tokens) -> Encoded:
        query_room, room = self._room(len(query), len(document))
        segments = self._segments(self._cut(query, query_room, "query").ids, self._cut(document, room, "document").ids)
        ids, types, owners = self.template.build(*segments)
        return Encoded(ids, types, (owners != UNATTENDED).astype(np.int64))

    def _pair(
        self,
        fixed: Tokens,
        number: int,
        aligned: Alignment,
        classes: tuple[np.ndarray, np.ndarray],
        fillers: np.ndarray,
        masked: bool,
    ) -> AlignedPair:
        """The sequences of an aligned pair, whose fillers are attention-masked where ``masked``."""
        filled = with_fillers(aligned, fillers)
        varied = int(self.reads_query and self.varies == "document")
        sides = []
        for ids, before in ((filled.baseline, aligned.baseline), (filled.perturbed, aligned.perturbed)):
            ids, types, owners = self.template.build(*self._segments(fixed.ids, ids))
            mask = (owners != UNATTENDED).astype(np.int64)
            if masked:
                mask[owners == varied] = before != FILL
            sides.append(Encoded(ids, types, mask))
        of_positions, words = np.full(len(owners), SEP), np.full(len(owners), SPECIAL)
        of_positions[:1] = CLS
        of_segments = zip(self._segments(*classes), self._segments(fixed.words, aligned.perturbed_words), strict=True)
        for segment, (classes_of_segment, words_of_segment) in enumerate(of_segments):
            of_positions[owners == segment], words[owners == segment] = classes_of_segment, words_of_segment
            ending = self.template.affixes[segment].ending
            last = np.flatnonzero(owners == segment)[len(words_of_segment) - len(ending) :]
            if all(np.array_equal(side.ids[last], ending) for side in sides):
                of_positions[last] = SEP
        return AlignedPair(sides[0], sides[1], of_positions, number, owners, words)

    def _sides(self, baselines: Sequence[str], perturbed: Sequence[str]) -> Iterator[tuple[Tokens, Tokens]]:
        """The tokens of both sides of pairs, as they correspond (see :func:`~.encoding.ended_alike`)."""
        texts, which = unique([*baselines, *perturbed])
        tokens = [self.vocabulary.split_marks(tokens) for tokens in self.tokens(self.varies, texts)]
        n_last, apart = len(self._ending(self.varies)), tokens
        if n_last:
            ended = self.template.tokens_apart(self.tokenizer, int(self.varies == "document"), texts)
            apart = [self.vocabulary.split_marks(tokens) for tokens in ended]
        for pair in zip(which[: len(baselines)], which[len(baselines) :], strict=True):
            one, other = (tokens[text] for text in pair)
            yield ended_alike((one, other), [apart[text] for text in pair], n_last) if n_last else (one, other)

    def _segments(self, fixed: np.ndarray, varied: np.ndarray) -> tuple[np.ndarray, ...]:
        """The segments of a sequence, query and document or one text, in their order."""
        if not self.reads_query:
            return (varied,)
        return (fixed, varied) if self.varies == "document" else (varied, fixed)

    def _ending(self, side: str) -> np.ndarray:
        """The tokens of line breaks that the template has after queries or documents."""
        return self.template.affixes[int(side == "document")].ending

    def _cut(self, tokens: Tokens, room: int, side: str) -> Tokens:
        """The first tokens and what the template has after them, or the last where the tokenizer cuts on the left."""
        if self.cuts_left:
            return tokens[max(0, len(tokens) - room) :]
        if len(tokens) <= room:
            return tokens
        ending = self._ending(side)
        return tokens[: max(0, room - len(ending))] + Tokens(ending, np.full(len(ending), -1))

    def _rooms(self, n_fixed: int, n_varied: int) -> tuple[int, int]:
        """How many tokens of the fixed and of the varied segment fit."""
        if self.varies == "document" or not self.reads_query:
            return self._room(n_fixed, n_varied)
        n_varied, n_fixed = self._room(n_varied, n_fixed)
        return n_fixed, n_varied

    def _room(self, n_query: int, n_document: int) -> tuple[int, int]:
        """How many tokens of a query and of a document fit; the longer is cut first, as transformers does."""
        room = self.max_length - self.template.n_special
        if not self.reads_query:
            return n_query, room
        if n_query + n_document <= room:
            return n_query, n_document
        shorter = min(n_query, n_document)
        if shorter > room // 2:
            shorter, longer = room // 2, room - room // 2
        else:
            longer = room - shorter
        return (longer, shorter) if n_query > n_document else (shorter, longer)

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
