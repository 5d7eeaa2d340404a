"""From the units that an explanation is told in to the tokens of a minimal pair."""

from __future__ import annotations

import numpy as np

from pyterrier_mechir.text.differences import differences
from pyterrier_mechir.text.units import units_at
from pyterrier_mechir.text.words import Words


def strongest(scores: np.ndarray, k: int) -> np.ndarray:
    """The units of greatest absolute score, the strongest first, and of equal ones the first in the text.

    Args:
        scores: of the units, ``[n]``; NaN for those that the ranker does not read, which are left out.
        k: how many.

    Returns:
        Their numbers, at most ``k``.
    """
    order = np.argsort(-np.abs(scores), kind="stable")
    return order[np.isfinite(scores[order])][:k]


def moved(spans: np.ndarray, text: str, other: str) -> np.ndarray:
    """Where the units of a text are in another text that has most of its words.

    A unit is from its first word that the other text has to the last.

    Args:
        spans: of the units in the text, in characters, int64 ``[n, 2]``.
        text: the text.
        other: the other text.

    Returns:
        Their spans in the other text, ``[n, 2]``; 0 and 0 for a unit of which the other text has no word.
    """
    if text == other:
        return spans
    words, others = Words(text), Words(other)
    counterparts = np.full(len(words), -1)
    for is_same, (i, j), (k, m) in differences(list(words), list(others)):
        if is_same:
            counterparts[i:j] = np.arange(k, m)
    of_words, of_others = (np.array(side.spans(), dtype=np.int64).reshape(-1, 2) for side in (words, others))
    found = np.zeros_like(spans)
    for unit, (begin, end) in enumerate(spans.tolist()):
        inside = (of_words[:, 1] > begin) & (of_words[:, 0] < end) & (counterparts >= 0)
        if inside.any():
            first, last = np.flatnonzero(inside)[[0, -1]]
            found[unit] = (
                of_others[counterparts[first], 0] + max(0, begin - of_words[first, 0]),
                of_others[counterparts[last], 1] - max(0, of_words[last, 1] - end),
            )
    return found


def slots_of(of_tokens: np.ndarray, spans: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
    """The positions of each of some units.

    Args:
        of_tokens: the characters that the token at each position is made of, int64 ``[n, 2]``.
        spans: of all units in the same text, int64 ``[u, 2]``, disjoint; a token of two units is of the first.
        chosen: the numbers of at most ``k`` units.
        k: how many slots.

    Returns:
        bool ``[k, n]``, False throughout for slots beyond the chosen units.
    """
    order = np.argsort(spans[:, 0], kind="stable")
    order = order[spans[order, 0] < spans[order, 1]]
    units = units_at(spans[order], of_tokens)
    numbers = np.where(units >= 0, np.append(order, -1)[units], -1)
    slots = np.zeros((k, len(of_tokens)), dtype=bool)
    slots[: len(chosen)] = numbers == np.asarray(chosen, dtype=np.int64)[:, None]
    return slots
