"""Making the two sides of a minimal pair correspond, position by position, on token ids.

An activation of one run can be put into another run only where both have a position for it. So the baseline and the
perturbed text, which may differ in length, are made into two sequences of one length, in which each position of the one
corresponds to the same position of the other:

1. Both sides come tokenised, with the word that each token is a piece of (:class:`~.encoding.Tokens`). Words are
   compared whole, by their spelling, since a word may have other pieces at the beginning of a text than within it.
2. The sides are cut into runs of words that are the same and runs that differ (:func:`align`). How, the alignment that
   the perturbation declares decides. The words of a ``swap`` of as many words correspond one to one. For ``fill`` and
   ``mask``, and any other ``swap``, the words of the sides are compared (:mod:`~.differences`). The perturbed side of a
   ``permute`` is made of the baseline's own tokens in the new order of its words, so that both sides have the same
   ones.
3. In a run that is the same, both sides get the perturbed side's tokens. In a run that differs, the side with fewer
   tokens is filled up with :data:`FILL`. The positions of the runs that differ are the *edit*.
4. What is longer than the model takes is cut outside the edit, or the pair is given up (:func:`keep_edit`).
5. Every position gets a token class, which says what it is to query, document and edit (:func:`token_classes`).
6. Filler ids take the places of :data:`FILL` (:func:`with_fillers`).

Text is never reassembled and tokenised again, so no token outside the edit changes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pyterrier_mechir.text.differences import Run, differences
from pyterrier_mechir.text.encoding import DOC_EDITED, DOC_QUERY, EDIT, OTHER, QUERY, QUERY_EDITED
from pyterrier_mechir.text.tokens import Tokens

ALIGNMENTS = ("fill", "mask", "swap", "permute", "free")
"""How the sides of a perturbation correspond: an insertion against as many filler tokens, an insertion against
attention-masked positions, a replacement of equal length, the same tokens in another order, or not at all."""

FILL = -1
"""Stands for a filler token, to be chosen, where the other side has an insertion."""


@dataclass(frozen=True)
class Alignment:
    """The two sides of a pair with their tokens in corresponding positions; every array is ``[n]``.

    Args:
        baseline: token ids of the baseline, :data:`FILL` where the perturbed side has an insertion.
        perturbed: token ids of the perturbed side, likewise.
        baseline_words: the number of the word that each baseline token is a piece of, -1 at fillers and where a token
            is of no word.
        perturbed_words: likewise of the perturbed side.
        edit: bool, the positions at which the sides differ by the perturbation.
        spans: the characters of the baseline text that each baseline token is made of: begin and end, int64 ``[n, 2]``;
            the same number twice for none, as at fillers.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    baseline_words: np.ndarray
    perturbed_words: np.ndarray
    edit: np.ndarray
    spans: np.ndarray

    def __len__(self) -> int:
        return len(self.edit)

    def at(self, index: np.ndarray) -> Alignment:
        """The alignment at some positions only, given as indices in ascending order."""
        return Alignment(
            self.baseline[index],
            self.perturbed[index],
            self.baseline_words[index],
            self.perturbed_words[index],
            self.edit[index],
            self.spans[index],
        )

    def followed_by(self, baseline: Tokens, perturbed: Tokens) -> Alignment:
        """The alignment with more positions at its end: as many tokens of each side, which correspond one to one."""
        return Alignment(
            np.append(self.baseline, baseline.ids),
            np.append(self.perturbed, perturbed.ids),
            np.append(self.baseline_words, baseline.words),
            np.append(self.perturbed_words, perturbed.words),
            np.append(self.edit, baseline.ids != perturbed.ids),
            np.append(self.spans, baseline.spans, axis=0),
        )


def align(
    baseline: Tokens, perturbed: Tokens, spellings: np.ndarray, alignment: str = "fill", n_last: int = 0
) -> Alignment | None:
    """Find which tokens of the two sides of a pair correspond (steps 2 and 3 above).

    Args:
        baseline: the tokens of the baseline text.
        perturbed: the tokens of the perturbed text.
        spellings: for each token id of the vocabulary, its text without marks of spaces and continuation.
        alignment: the perturbation's declared alignment, one of :data:`ALIGNMENTS` but ``free``. The tokens of a
            ``permute`` correspond one to one, and so do the words of a ``swap`` of as many words; anything else is
            found by comparing the sides.
        n_last: how many tokens at the end of both sides, those of what a prompt has there, correspond to each other
            whatever they are.

    Returns:
        The alignment; None for a ``permute`` whose sides are not the same words in another order. A word that both
        sides have, but in different pieces (the first word of a text often has pieces of its own), is given the
        perturbed side's pieces on both, so that the sides differ by the edit alone. The perturbed side of a ``permute``
        is made of the baseline's tokens, each of its words with the pieces that it has there.
    """
    if n_last:
        rest = align(baseline[:-n_last], perturbed[:-n_last], spellings, alignment)
        return None if rest is None else rest.followed_by(baseline[-n_last:], perturbed[-n_last:])
    if alignment == "permute":
        return _permuted(baseline, perturbed, spellings)
    if alignment == "swap" and len(baseline) == len(perturbed) and _of_equal_words(baseline, perturbed):
        edit = spellings[baseline.ids] != spellings[perturbed.ids]
        edit = _whole_words(edit, baseline)
        ids = np.where(edit, baseline.ids, perturbed.ids)
        return Alignment(ids, perturbed.ids, baseline.words, perturbed.words, edit, baseline.spans)
    return _in_columns(baseline, perturbed, _runs(baseline, perturbed, spellings, alignment))


def _in_columns(baseline: Tokens, perturbed: Tokens, runs: list[Run]) -> Alignment:
    """The alignment of two sides that are the same and differ in some runs of tokens (step 3 above)."""
    same = np.array([is_same for is_same, _, _ in runs], dtype=bool)
    (i, j), (k, m) = (np.array([run[side] for run in runs], dtype=np.int64).reshape(-1, 2).T for side in (1, 2))
    lengths = np.where(same, m - k, np.maximum(j - i, m - k))
    of_run = np.repeat(np.arange(len(runs)), lengths)
    offsets = np.arange(len(of_run)) - (np.cumsum(lengths) - lengths)[of_run]
    of_baseline, of_perturbed = (
        np.where(offsets < (end - begin)[of_run], begin[of_run] + offsets, -1) for begin, end in ((i, j), (k, m))
    )
    ids, words, other_ids, other_words = (
        np.append(values, FILL) for values in (baseline.ids, baseline.words, perturbed.ids, perturbed.words)
    )
    spans = np.append(baseline.spans, [[0, 0]], axis=0)[of_baseline]
    starts, other_starts = baseline.starts(), perturbed.starts()
    differ = np.bincount(of_run, starts[of_baseline] != other_starts[of_perturbed], minlength=len(runs)) > 0
    for run in np.flatnonzero(same & (differ | (j - i != m - k))):
        spans[of_run == run] = _spans_of_same(baseline[i[run] : j[run]], perturbed[k[run] : m[run]])
    shift, same = (words[i] - other_words[k])[of_run], same[of_run]
    ids, words, other_ids, other_words = (
        ids[of_baseline],
        words[of_baseline],
        other_ids[of_perturbed],
        other_words[of_perturbed],
    )
    shifted = np.where(other_words < 0, -1, other_words + shift)
    return Alignment(
        np.where(same, other_ids, ids), other_ids, np.where(same, shifted, words), other_words, ~same, spans
    )


def _spans_of_same(baseline: Tokens, perturbed: Tokens) -> np.ndarray:
    """Where in the baseline text the tokens of the perturbed side are, which has the same words in other pieces.

    The pieces of a word that has as many on both sides correspond; those of another are as far from its end as they are
    in the perturbed text. (A space may be counted to the word that it stands before, and at the beginning of a text
    there is none.)
    """
    begins, other_begins = (np.flatnonzero(side.starts()) for side in (baseline, perturbed))
    word = np.repeat(np.arange(len(other_begins) - 1), np.diff(other_begins))
    piece = np.arange(len(perturbed)) - other_begins[word]
    corresponds = (np.diff(begins) == np.diff(other_begins))[word]
    begin, end = baseline.spans[begins[word], 0], baseline.spans[begins[word + 1] - 1, 1]
    moved = perturbed.spans + (end - perturbed.spans[other_begins[word + 1] - 1, 1])[:, None]
    own = baseline.spans[np.minimum(begins[word] + piece, len(baseline) - 1)]
    return np.where(corresponds[:, None], own, moved.clip(begin[:, None], end[:, None]))


def _whole_words(edit: np.ndarray, side: Tokens) -> np.ndarray:
    """An edit of tokens, extended to all pieces of the words that it touches."""
    starts = side.starts()[:-1]
    return np.asarray(np.logical_or.reduceat(edit, np.flatnonzero(starts))[np.cumsum(starts) - 1])


def _permuted(baseline: Tokens, perturbed: Tokens, spellings: np.ndarray) -> Alignment | None:
    """The alignment of a ``permute``: the baseline's words in the order of the perturbed side.

    A word that is in its place stays there; of others, the first occurrence that is not yet used is taken. None where
    the perturbed side has other words.
    """
    spans_of: dict[str, deque[tuple[int, int]]] = defaultdict(deque)
    before, after = (list(zip(*_spelt(side, spellings), strict=True)) for side in (baseline, perturbed))
    stays = [i < len(before) and before[i][0] == word for i, (word, _) in enumerate(after)]
    for i, (word, span) in enumerate(before):
        if not (i < len(after) and stays[i]):
            spans_of[word].append(span)
    order: list[tuple[int, int]] = []
    for i, (word, _) in enumerate(after):
        if stays[i]:
            order.append(before[i][1])
        elif spans_of[word]:
            order.append(spans_of[word].popleft())
        else:
            return None
    if len(before) != len(after):
        return None
    index = np.array([place for i, j in order for place in range(i, j)], dtype=np.int64)
    ids = baseline.ids[index]
    numbers = np.repeat(np.arange(len(order)), np.array([j - i for i, j in order], dtype=np.int64))
    made = Tokens(ids, numbers)
    edit = baseline.ids != ids
    if edit.any():
        edit = _whole_words(edit, baseline)
        edit = _whole_words(edit, made)
    return Alignment(baseline.ids, ids, baseline.words, numbers, edit, baseline.spans)


def _of_equal_words(baseline: Tokens, perturbed: Tokens) -> bool:
    """Whether the words of two sides of one length have as many pieces each."""
    return np.array_equal(baseline.starts(), perturbed.starts())


def _spelt(side: Tokens, spellings: np.ndarray) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a side, and the spans of their tokens; a token of no word counts as a word of its own."""
    pieces = spellings[side.ids].tolist()
    spans = list(pairwise(np.flatnonzero(side.starts()).tolist()))
    return [pieces[i] if j == i + 1 else "".join(pieces[i:j]) for i, j in spans], spans


def _runs(a: Tokens, b: Tokens, spellings: np.ndarray, alignment: str) -> list[Run]:
    """Runs of words that are the same and that differ, as spans of tokens.

    The words of a ``swap`` that keeps their number are taken one by one.
    """
    (words_a, spans_a), (words_b, spans_b) = (_spelt(side, spellings) for side in (a, b))
    if alignment == "swap" and len(words_a) == len(words_b):
        same = (one == other for one, other in zip(words_a, words_b, strict=True))
        return list(zip(same, spans_a, spans_b, strict=True))
    bounds_a, bounds_b = ([0, *(end for _, end in spans)] for spans in (spans_a, spans_b))
    return [
        (is_same, (bounds_a[i], bounds_a[j]), (bounds_b[k], bounds_b[m]))
        for is_same, (i, j), (k, m) in differences(words_a, words_b)
    ]


def keep_edit(aligned: Alignment, budget: int, from_left: bool = False) -> Alignment | None:
    """Cut an alignment to a number of positions without losing its edit.

    Unedited positions are dropped from the end, or from the left where asked; those of the edit never.

    Args:
        aligned: the alignment.
        budget: how many positions there is room for.
        from_left: whether unedited positions are dropped from the left, as the tokenizer cuts texts.

    Returns:
        The alignment, or None where the edit alone is longer than the budget, or is at least as long as the rest, so
        that cutting the rest would make another pair of it (a text repeated whole, against its first half).
    """
    if len(aligned) <= budget:
        return aligned
    if aligned.edit.sum() > min(budget, (len(aligned) - 1) // 2):
        return None
    kept, unedited = aligned.edit.copy(), np.flatnonzero(~aligned.edit)
    dropped = len(aligned) - budget
    kept[unedited[dropped:] if from_left else unedited[: len(unedited) - dropped]] = True
    return aligned.at(np.flatnonzero(kept))


def with_fillers(aligned: Alignment, fillers: np.ndarray) -> Alignment:
    """Put fillers where a side has no token of its own.

    Args:
        aligned: the alignment, with :data:`FILL` in these places.
        fillers: a token id for each position, ``[n]``; those at other places are not read.
    """
    return replace(
        aligned,
        baseline=np.where(aligned.baseline == FILL, fillers, aligned.baseline),
        perturbed=np.where(aligned.perturbed == FILL, fillers, aligned.perturbed),
    )


def token_classes(
    aligned: Alignment, fixed: Tokens, spellings: np.ndarray, varies: str = "document"
) -> tuple[np.ndarray, np.ndarray]:
    """The token classes of the positions of a pair: what each is to the query, the document and the edit.

    Words are compared whole, by their spelling: an occurrence of an edited word is ``Q+`` in the query and ``D+`` in
    the document, another word of the query in the document ``D-``. Special tokens are not among the positions here.

    Args:
        aligned: the alignment before fillers are put in.
        fixed: the segment that is the same on both sides: the query where the document varies, and the reverse.
        spellings: as in :func:`align`.
        varies: ``document`` or ``query``: what the alignment is of.

    Returns:
        Classes of the fixed segment's tokens and of the aligned positions, as indices into
        :data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`.
    """
    of_perturbed = list(words_of(aligned.perturbed, aligned.perturbed_words, spellings))
    of_baseline = list(words_of(aligned.baseline, aligned.baseline_words, spellings))
    of_fixed = list(words_of(fixed.ids, fixed.words, spellings))
    is_edited = aligned.edit.tolist()
    edited = {word for word, at in (*of_perturbed, *of_baseline) if any(is_edited[i] for i in at.tolist())}
    of_query = [*of_perturbed, *of_baseline] if varies == "query" else of_fixed
    query_words = {word for word, _ in of_query}

    def classes(words: list[tuple[str, np.ndarray]], n: int, is_query: bool) -> np.ndarray:
        found = np.full(n, QUERY if is_query else OTHER, dtype=np.int64)
        for word, positions in words:
            if word in edited:
                found[positions] = QUERY_EDITED if is_query else DOC_EDITED
            elif word in query_words and not is_query:
                found[positions] = DOC_QUERY
        return found

    of_varied = classes(of_perturbed, len(aligned), varies == "query")
    of_varied[aligned.edit] = EDIT
    return classes(of_fixed, len(fixed), varies == "document"), of_varied


def words_of(ids: np.ndarray, words: np.ndarray, spellings: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The words of a sequence, as (spelling, positions of its pieces); positions without a word are left out.

    Args:
        ids: token ids, ``[n]``.
        words: for each token, the number of the word it is a piece of, -1 for none, ``[n]``.
        spellings: as in :func:`align`.
    """
    positions = np.flatnonzero(words >= 0)
    if not len(positions):
        return
    pieces = spellings[ids[positions]].tolist()
    cuts = np.flatnonzero(np.diff(words[positions])) + 1
    for i, j in pairwise([0, *cuts.tolist(), len(positions)]):
        yield pieces[i] if j == i + 1 else "".join(pieces[i:j]), positions[i:j]
