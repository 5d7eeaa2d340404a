"""Making the two sides of a pair correspond, position by position, on token ids.

Both sides get the same length: where one has tokens that the other lacks, the other gets :data:`FILL`, to be replaced
by filler ids. Text is never reassembled, so no token outside the edit changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np

from pyterrier_mechir.rankers.encoding import DOC_EDITED, DOC_QUERY, EDIT, OTHER, QUERY, QUERY_EDITED, Tokens

ALIGNMENTS = ("fill", "mask", "swap", "permute", "free")
"""How the sides of a perturbation correspond: an insertion against as many filler tokens, an insertion against
attention-masked positions, a replacement of equal length, the same tokens in another order, or not at all."""

FILL = -1
"""Stands for a filler token, to be chosen, where the other side has an insertion."""


@dataclass(frozen=True)
class Alignment:
    """Two aligned sides; every array is ``[n]``.

    Args:
        baseline: token ids of the baseline, :data:`FILL` where the perturbed side has an insertion.
        perturbed: token ids of the perturbed side, likewise.
        baseline_words: word number of each baseline token, -1 at fillers.
        perturbed_words: likewise.
        edit: where the sides differ by the perturbation.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    baseline_words: np.ndarray
    perturbed_words: np.ndarray
    edit: np.ndarray

    def __len__(self) -> int:
        return len(self.edit)

    def at(self, index: np.ndarray) -> Alignment:
        """The alignment at some positions only."""
        return Alignment(
            self.baseline[index],
            self.perturbed[index],
            self.baseline_words[index],
            self.perturbed_words[index],
            self.edit[index],
        )


def align(baseline: Tokens, perturbed: Tokens, keys: np.ndarray, alignment: str = "fill") -> Alignment:
    """Align the two sides of a pair.

    Args:
        baseline: the baseline document.
        perturbed: the perturbed document.
        keys: for each token id of the vocabulary, a number shared by the spellings of one token that differ only in
            the mark of a preceding space.
        alignment: the perturbation's declared alignment. Sides of equal length of a ``swap`` or ``permute`` correspond
            one to one; anything else is found by comparing the token sequences.

    Returns:
        The alignment. A token that both sides have, but spelt with a space mark on one side only (a word that ceases
        to be the first, say), is given the perturbed side's id on both.
    """
    if alignment in ("swap", "permute") and len(baseline) == len(perturbed):
        edit = keys[baseline.ids] != keys[perturbed.ids]
        ids = np.where(edit, baseline.ids, perturbed.ids)
        return Alignment(ids, perturbed.ids, baseline.words, perturbed.words, edit)
    columns: list[tuple[np.ndarray, ...]] = []
    for same, (i, j), (k, m) in _differences(keys[baseline.ids], keys[perturbed.ids]):
        n = max(j - i, m - k)
        columns.append(
            (
                perturbed.ids[k:m] if same else _padded(baseline.ids[i:j], n),
                _padded(perturbed.ids[k:m], n),
                _padded(baseline.words[i:j], n),
                _padded(perturbed.words[k:m], n),
                np.full(n, not same),
            )
        )
    if not columns:
        empty = np.empty(0, dtype=np.int64)
        return Alignment(empty, empty, empty, empty, empty.astype(bool))
    return Alignment(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, np.full(n - len(values), FILL, dtype=np.int64)])


def _differences(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[bool, tuple[int, int], tuple[int, int]]]:
    """Runs of equal and of differing elements, as (equal, span of a, span of b)."""
    shorter = min(len(a), len(b))
    differs = np.flatnonzero(a[:shorter] != b[:shorter])
    head = int(differs[0]) if len(differs) else shorter
    differs = np.flatnonzero(a[len(a) - shorter + head :][::-1] != b[len(b) - shorter + head :][::-1])
    tail = int(differs[0]) if len(differs) else shorter - head
    i, j, k, m = head, len(a) - tail, head, len(b) - tail
    if head:
        yield True, (0, head), (0, head)
    if i == j or k == m:
        if i < j or k < m:
            yield False, (i, j), (k, m)
    else:
        matcher = SequenceMatcher(None, a[i:j].tolist(), b[k:m].tolist(), autojunk=False)
        for tag, i1, i2, k1, k2 in matcher.get_opcodes():
            yield tag == "equal", (i + i1, i + i2), (k + k1, k + k2)
    if tail:
        yield True, (j, len(a)), (m, len(b))


def keep_edit(aligned: Alignment, budget: int) -> Alignment | None:
    """Cut an alignment to a number of positions without losing its edit.

    Unedited positions are dropped from the end, those of the edit never.

    Returns:
        The alignment, or None where the edit alone is longer than the budget.
    """
    if len(aligned) <= budget:
        return aligned
    if aligned.edit.sum() > budget:
        return None
    kept = aligned.edit.copy()
    kept[np.flatnonzero(~aligned.edit)[: budget - int(aligned.edit.sum())]] = True
    return aligned.at(np.flatnonzero(kept))


def with_fillers(aligned: Alignment, fillers: np.ndarray) -> Alignment:
    """Put filler ids, one for each position of the alignment, where a side has none of its own."""
    return replace(
        aligned,
        baseline=np.where(aligned.baseline == FILL, fillers, aligned.baseline),
        perturbed=np.where(aligned.perturbed == FILL, fillers, aligned.perturbed),
    )


def token_classes(aligned: Alignment, query: Tokens, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The token classes of the query's and of the document's positions.

    Words are compared as whole sequences of word pieces.

    Args:
        aligned: the alignment before fillers are put in.
        query: the query.
        keys: as in :func:`align`.

    Returns:
        Classes ``[query tokens]`` and ``[document positions]``.
    """
    sides = ((aligned.perturbed, aligned.perturbed_words), (aligned.baseline, aligned.baseline_words))
    edited = {
        word for ids, words in sides for word, positions in _words(ids, words, keys) if aligned.edit[positions].any()
    }
    of_query = np.full(len(query), QUERY, dtype=np.int64)
    query_words = set()
    for word, positions in _words(query.ids, query.words, keys):
        query_words.add(word)
        if word in edited:
            of_query[positions] = QUERY_EDITED
    of_document = np.full(len(aligned), OTHER, dtype=np.int64)
    for word, positions in _words(aligned.perturbed, aligned.perturbed_words, keys):
        if word in edited:
            of_document[positions] = DOC_EDITED
        elif word in query_words:
            of_document[positions] = DOC_QUERY
    of_document[aligned.edit] = EDIT
    return of_query, of_document


def _words(ids: np.ndarray, words: np.ndarray, keys: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Each word as (its pieces, their positions); positions without a word are left out."""
    positions = np.flatnonzero(words >= 0)
    if not len(positions):
        return
    for span in np.split(positions, np.flatnonzero(np.diff(words[positions])) + 1):
        yield tuple(keys[ids[span]].tolist()), span
