"""Orders in which the units of a text are taken out, or put back: an explanation's, and those it is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.text.words import distinct_terms, lemma, seeded, words

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.readings import Reading

RANDOM, BY_IDF, QUERY_TERMS = "random order", "IDF order", "query terms first"
"""The orders that need no explanation."""


def by_scores(scores: np.ndarray) -> np.ndarray:
    """The units of a text from the one that carries most to the one that carries least; the first of several alike.

    Args:
        scores: what each unit that is read carries, ``[r]``; one that is missing comes last.
    """
    return np.argsort(np.where(np.isnan(scores), np.inf, -scores.astype(np.float64)), kind="stable")


def at_random(reading: Reading, n: int, seed: int) -> np.ndarray:
    """``n`` random orders of the units of a text that are read, ``[n, r]``: for a text always the same."""
    rng = np.random.default_rng(seeded(seed, reading.context, reading.text))
    return rng.random((n, len(reading.read))).argsort(1)


def by_idf(reading: Reading, idf: Callable[[str], float | None]) -> np.ndarray:
    """The rarest units of a text that are read first; one of several words is as rare as its rarest."""
    return by_scores(np.array([_rarity(reading.names[number], idf) for number in reading.read]))


def query_terms_first(reading: Reading, other: str, idf: Callable[[str], float | None]) -> np.ndarray:
    """The units with a term of the other side first, as its lemma, the rarest of these before others; then all others.

    Args:
        reading: the text.
        other: the query, or the document where a query is explained.
        idf: how rare a word is.
    """
    terms = {lemma(term) for term in distinct_terms(other)}
    has_term = [any(lemma(word.lower()) in terms for word in words(reading.names[number])) for number in reading.read]
    rarity = np.array([_rarity(reading.names[number], idf) for number in reading.read])
    return np.lexsort((-rarity, ~np.array(has_term, dtype=bool)))


def _rarity(unit: str, idf: Callable[[str], float | None]) -> float:
    """How rare the rarest word of a unit is; one that is nowhere is rarer than all others."""
    found = [idf(word) for word in words(unit)]
    return max((np.inf if rarity is None else rarity for rarity in found), default=0.0)
