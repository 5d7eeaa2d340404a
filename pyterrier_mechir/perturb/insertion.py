"""Where a term goes into a text, and perturbations that put one there."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Container, Iterator
from numbers import Integral

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.text.differences import leading, trailing
from pyterrier_mechir.text.words import Words, insert, lowercase_words, place_after, places_after, word_starts

POSITIONS = ("end", "start", "random", "beside")
"""Where a term can go; ``beside`` is right after an occurrence of the same term."""


def check_position(position: str | int, beside: bool = True) -> str | int:
    """Check an option that says where a term goes.

    Args:
        position: the option: one of :data:`POSITIONS`, or a word index of the text.
        beside: whether ``beside`` is a choice: only where a text is sure to have the term already.

    Returns:
        The position as it was given.

    Raises:
        ValueError: it is neither one of :data:`POSITIONS` nor a word index.
    """
    if position == "beside" and not beside:
        raise ValueError("position 'beside' is next to the same term, which the text may lack; choose another.")
    is_index = isinstance(position, Integral) and not isinstance(position, bool) and position >= 0
    if position not in POSITIONS and not is_index:
        raise ValueError(
            f"unknown position {position!r}; choose one of {', '.join(map(repr, POSITIONS))}, or a word index."
        )
    return position


def place_of(position: str | int, text: str, term: str, rng: random.Random) -> int | None:
    """Where a term goes in a text.

    Args:
        position: as in :class:`Insertion`.
        text: the text.
        term: the term, an occurrence of which ``beside`` looks for.
        rng: draws a random place, or one of several occurrences.

    Returns:
        The number of the space-separated word before which the term goes, as
        :func:`~pyterrier_mechir.text.words.insert` counts; None where the text has fewer words, or no occurrence.
    """
    n_words = len(text.split())
    if position == "start":
        return 0
    if position == "end":
        return n_words
    if position == "random":
        return rng.randint(0, n_words)
    if position == "beside":
        places = Words(text).places(lowercase_words(term))
        return place_after(text, rng.choice(places)) if places else None
    return int(position) if int(position) <= n_words else None


def insertions(baseline: str, perturbed: str) -> Iterator[tuple[int, str]]:
    """What may have been inserted into a text to give another, and where.

    There may be several answers: of "a b" and "a a b", the first ``a`` or the second.

    Args:
        baseline: the text before the insertion.
        perturbed: the text after it.

    Yields:
        (place, inserted text), the place as :func:`~pyterrier_mechir.text.words.insert` counts.
    """
    more = len(perturbed) - len(baseline)
    if more <= 0:
        return
    head, tail = leading(baseline, perturbed), trailing(baseline, perturbed)
    for place, edge in enumerate([*word_starts(baseline), len(baseline)]):
        if len(baseline) - tail <= edge <= head:
            yield place, perturbed[edge : edge + more].strip()


class Insertion(Perturbation):
    """Inserts a term at a position. Subclasses say which term, by :meth:`_term` and :meth:`_is_term`.

    Args:
        position: ``end``, ``start``, ``random``, ``beside`` (right after an occurrence of the term), or a word index
            of the text (0 is its start).
        n: how many times, one after the other.
        seed: of the random choices, which depend on nothing else but the row's query and text.

    Does not apply where the text has fewer words than the index, or no occurrence to be beside.

    Raises:
        ValueError: an unknown position, or ``n`` less than 1.
    """

    def __init__(self, position: str | int = "end", n: int = 1, seed: int = 0):
        self.position, self.n, self.seed = check_position(position), check_count("n", n), seed

    @abstractmethod
    def _term(self, text: str, query: str) -> str | None:
        """The term to insert, or None where there is none."""

    @abstractmethod
    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        """Whether the lower-cased words of a term, as often as it has each, may have been put into a baseline."""

    def __call__(self, text: str, query: str) -> str | None:
        term = self._term(text, query)
        if term is None:
            return None
        place = self._place(text, query, term)
        return None if place is None else insert(text, " ".join([term] * self.n), place)

    def _place(self, text: str, query: str, term: str) -> int | None:
        """Where a term goes in a text (see :func:`place_of`)."""
        return place_of(self.position, text, term, self._random(self.seed, text, f"{query}\x1fposition"))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        may_go: dict[str, Container[int | None]] = {}
        for place, inserted in insertions(baseline, perturbed):
            if inserted not in may_go:
                may_go[inserted] = self._may_go(inserted, baseline, query)
            if place in may_go[inserted]:
                return True
        return False

    def _may_go(self, inserted: str, text: str, query: str) -> Container[int | None]:
        """The places at which what was inserted may go; none where it is not what this inserts."""
        words = lowercase_words(inserted)
        once = words[: len(words) // self.n]
        if not once or words != once * self.n or not self._is_term(Counter(once), text, query):
            return ()
        if self.position == "beside":
            return set(places_after(text, Words(text).places(once[0])))
        if self.position == "random":
            return range(len(text.split()) + 1)
        return (place_of(self.position, text, "", random.Random()),)
