"""Proximity: query terms that stand closer together, earlier, or as a phrase. All are permutations of the words.

The query's function words are no terms, so no distance is measured to them, but nor are they other words.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import combinations, islice, pairwise
from math import inf
from random import Random
from statistics import fmean
from typing import NamedTuple

from pyterrier_mechir.perturb.axioms.distances import Occurrences, smallest_spans, smallest_window
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.correspond import same_gaps
from pyterrier_mechir.text.words import Words, distinct_terms, lowercase_words, words

HAGEN_2016 = "Hagen, Völske, Göring and Stein, CIKM 2016"

_ROUNDING = 1e-9
"""By how much a mean has to fall to have fallen."""

_MOST = 100
"""How many occurrences of query terms are looked at for a word to move, so that long texts have not too many moves."""


class _Query(NamedTuple):
    """A query for proximity.

    Args:
        terms: its distinct lower-cased terms, whose distances are measured.
        words: all its lower-cased words in their order, function words too; none of them is an intruder.
    """

    terms: list[str]
    words: list[str]

    @classmethod
    def of(cls, query: str) -> _Query:
        return cls(list(distinct_terms(query)), lowercase_words(query))


class Permutation(Perturbation):
    """Moves words so that a measure of how far the query's terms are apart falls.

    Subclasses say what the measure is (:meth:`_measure`) and which new orders of the words to try (:meth:`_orders`);
    the first order whose measure is less than the text's makes the perturbed side.
    """

    alignment = "permute"
    sign = "+"
    source = HAGEN_2016
    seed: int = 0

    @abstractmethod
    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        """New orders to try: for each place, which word goes there."""

    @abstractmethod
    def _measure(self, words: Words, query: _Query) -> float:
        """What falls; infinite where undefined."""

    def measure(self, text: str, query: str) -> float:
        """The measure that the axiom wants small, of a text for a query; infinite where it is undefined."""
        return self._measure(Words(text), _Query.of(query))

    def __call__(self, text: str, query: str) -> str | None:
        words, asked = Words(text), _Query.of(query)
        if words.places(asked.terms):
            before = self._measure(words, asked)
            for order in self._orders(words, asked, self._random(self.seed, text, query)):
                moved = words.permuted(order)
                if self._measure(moved, asked) < before - _ROUNDING:
                    return str(moved)
        return None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        before, after = (self.measure(side, query) for side in (baseline, perturbed))
        return after < before - _ROUNDING and same_gaps(baseline, perturbed)


def _places(words: Words, terms: Collection[str]) -> dict[str, list[int]]:
    """Where each of the terms that occur does, in the order of the terms."""
    places: dict[str, list[int]] = {term: [] for term in terms}
    for place, key in enumerate(words.keys):
        if key in places:
            places[key].append(place)
    return {term: found for term, found in places.items() if found}


def _swapped(n: int, one: int, other: int) -> list[int]:
    order = list(range(n))
    order[one], order[other] = other, one
    return order


def _gathered(n: int, first: int, last: int, kept: Collection[int]) -> list[int]:
    """Between two places, the kept words first and then the others, each in their order."""
    inside = range(first, last + 1)
    block = [place for place in inside if place in kept] + [place for place in inside if place not in kept]
    return [*range(first), *block, *range(last + 1, n)]


class PROX1(Permutation):
    """An occurrence of a query term changes places with the word next to an occurrence of another.

    Args:
        seed: of the choice of the occurrences.

    Does not apply unless the text has two of the query's terms, not all side by side.
    """

    statement = "The smaller the mean distance of the occurrences of each two query terms, the higher the score."
    change = "query term ↔ neighbour of another query term"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _measure(self, words: Words, query: _Query) -> float:
        found = [Occurrences(places) for places in _places(words, query.terms).values()]
        return fmean([one.between(other) for one, other in combinations(found, 2)] or [inf])

    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        every = _places(words, query.terms)
        places = {
            term: found if len(found) <= (most := max(1, _MOST // len(every))) else sorted(rng.sample(found, most))
            for term, found in islice(every.items(), _MOST)
        }
        taken = set(words.places(set(query.words)))
        moves = [
            (i, beside)
            for one, found in places.items()
            for i in found
            for other, anchors in places.items()
            if one != other
            for j in anchors
            for beside in (j - 1, j + 1)
            if abs(i - j) > 1 and 0 <= beside < len(words) and beside not in taken
        ]
        rng.shuffle(moves)
        occurrences = {term: Occurrences(found) for term, found in every.items()}

        @cache
        def far(term: str, place: int) -> float:
            return fmean([others.mean_to(place) for other, others in occurrences.items() if other != term])

        for i, beside in moves:
            if far(words.keys[i], beside) < far(words.keys[i], i):
                yield _swapped(len(words), i, beside)


class PROX2(Permutation):
    """A query term changes places with the first word that is none.

    Args:
        seed: of the choice of the term.

    Does not apply unless a query term first occurs after another word.
    """

    statement = "The earlier the first occurrences of the query terms, the higher the score."
    change = "first occurrence of a query term ↔ first other word"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _measure(self, words: Words, query: _Query) -> float:
        return fmean([found[0] for found in _places(words, query.terms).values()] or [inf])

    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        asked = set(query.words)
        other = next((place for place, key in enumerate(words.keys) if key not in asked), len(words))
        later = [found[0] for found in _places(words, query.terms).values() if found[0] > other]
        rng.shuffle(later)
        for place in later:
            yield _swapped(len(words), place, other)


class PROX3(Permutation):
    """The query's words, function words too, come together as a phrase, in the order of the query.

    Does not apply to a query of one word, nor unless the text has all its words as often, not as a phrase that early
    already, and as many words together without a mark between them.
    """

    statement = "The earlier the whole query occurs as a phrase, the higher the score."
    change = "scattered query words → the query as a phrase"

    def _measure(self, words: Words, query: _Query) -> float:
        return next(_phrases(words, query.words), inf)

    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        if len(query.words) > 1:
            yield from _phrased(words, query.words)


def _phrases(words: Words, phrase: Sequence[str]) -> Iterator[int]:
    """Where a phrase occurs, without marks inside it."""
    phrase = list(phrase)
    for start in _blocks(words, len(phrase)):
        if words.keys[start] == phrase[0] and words.keys[start : start + len(phrase)] == phrase:
            yield start


def _blocks(words: Words, n: int) -> Iterator[int]:
    """Where ``n`` words stand together with nothing but space between them."""
    together = 0
    for place in range(len(words)):
        together = together + 1 if place and not words.gaps[place].strip() else 1
        if together >= n > 0:
            yield place - n + 1


def _phrased(words: Words, phrase: Sequence[str]) -> Iterator[list[int]]:
    """The order with the phrase where its first word first occurs, or as soon after it or else as early as it fits."""
    places = _places(words, phrase)
    starts = list(_blocks(words, len(phrase)))
    if len(places) < len(set(phrase)) or not starts:
        return
    keys = words.keys
    start = next((start for start in starts if start >= places[phrase[0]][0]), starts[0])
    order = list(range(len(words)))
    for place, word in enumerate(phrase, start):
        if keys[order[place]] == word:
            continue
        settled = range(start, place)
        found = next((i for i, old in enumerate(order) if keys[old] == word and i not in settled), None)
        if found is None:
            return
        order[place], order[found] = order[found], order[place]
    yield order


class PROX4(Permutation):
    """The words that the query lacks leave the smallest window that has all query terms of the text.

    Does not apply unless the text has two of the query's terms, with words outside the query in their smallest window.
    """

    statement = "The fewer other words in the smallest window of the query's terms, the higher the score."
    change = "other words inside the window → after it"

    def _measure(self, words: Words, query: _Query) -> float:
        places = _places(words, query.terms)
        if len(places) < 2:
            return inf
        first, last = smallest_window(places)
        asked = set(query.words)
        return sum(key not in asked for key in words.keys[first : last + 1])

    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        places = _places(words, query.terms)
        if len(places) > 1:
            first, last = smallest_window(places)
            yield _gathered(len(words), first, last, set(words.places(set(query.words))))


class PROX5(Permutation):
    """All occurrences of query words come together, in their order, at the first of a query term.

    Does not apply unless the text has two of the query's terms, with words outside the query in between.
    """

    statement = "The shorter, on average, the smallest span around each query term that has all of them, the higher."
    change = "other words between query terms → after them"

    def _measure(self, words: Words, query: _Query) -> float:
        places = _places(words, query.terms)
        if len(places) < 2:
            return inf
        return fmean(smallest_spans(places))

    def _orders(self, words: Words, query: _Query, rng: Random) -> Iterator[list[int]]:
        of_terms = words.places(query.terms)
        yield _gathered(len(words), of_terms[0], of_terms[-1], set(words.places(set(query.words))))


_QUOTED = re.compile(r"[\"\u201c\u201d]([^\"\u201c\u201d]+)[\"\u201c\u201d]")


class QPHRA(Perturbation):
    """A phrase that the query quotes is there on the perturbed side, and its words are apart on the other.

    Where the text has the phrase, the baseline is the text with two words of each occurrence exchanged; where the text
    has its words only, the perturbed side has them together.

    Does not apply to a query without a quoted phrase of two words, nor where a word of it is missing, marks leave no
    room for it, or exchanging two words makes the phrase again.
    """

    alignment = "permute"
    sign = "+"
    own_baseline = True
    statement = "A text that has a quoted phrase of the query beats one that has its words apart."
    change = "words of the phrase apart → the phrase"
    source = "as listed by ir_axioms (Bondarenko et al., SIGIR 2022)"

    def _phrase(self, query: str) -> list[str]:
        phrases = ([word.lower() for word in words(quoted)] for quoted in _QUOTED.findall(query))
        return next((phrase for phrase in phrases if len(set(phrase)) > 1), [])

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        made, phrase = Words(text), self._phrase(query)
        if not phrase:
            return None
        occurrences = list(_phrases(made, phrase))
        if not occurrences:
            orders = _phrased(made, phrase)
            return next(((text, str(made.permuted(order))) for order in orders), None)
        order = list(range(len(made)))
        offset = next(i for i, (one, other) in enumerate(pairwise(phrase)) if one != other)
        for start in occurrences:
            one, other = start + offset, start + offset + 1
            order[one], order[other] = order[other], order[one]
        apart = made.permuted(order)
        return (str(apart), text) if next(_phrases(apart, phrase), None) is None else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        phrase = self._phrase(query)
        before, after = (next(_phrases(Words(side), phrase), None) for side in (baseline, perturbed))
        return before is None and after is not None and same_gaps(baseline, perturbed)
