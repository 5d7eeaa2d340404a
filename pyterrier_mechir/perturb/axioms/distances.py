"""Distances between the occurrences of terms, in a time that grows as their number does."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice


class Occurrences:
    """Where a term occurs, for the distances from there.

    Args:
        places: its places, ascending.
    """

    def __init__(self, places: Sequence[int]):
        self._places, self._sums = places, [0, *accumulate(places)]

    def sum_to(self, place: int) -> int:
        """The sum of the distances from a place to all occurrences."""
        before = bisect_right(self._places, place)
        after = len(self._places) - before
        return (before - after) * place + self._sums[-1] - 2 * self._sums[before]

    def mean_to(self, place: int) -> float:
        """The mean of these distances."""
        return self.sum_to(place) / len(self._places)

    def between(self, other: Occurrences) -> float:
        """The mean number of words between an occurrence and one of another term."""
        few, many = sorted((self, other), key=lambda one: len(one._places))
        n = len(few._places) * len(many._places)
        return (sum(map(many.sum_to, few._places)) - n) / n


def smallest_window(places: dict[str, list[int]]) -> tuple[int, int]:
    """The first of the shortest spans that have each term."""
    events = sorted((place, term) for term, found in places.items() for place in found)
    latest: dict[str, int] = {}
    best = (0, -1)
    for place, term in events:
        latest.pop(term, None)
        latest[term] = place
        if len(latest) == len(places):
            first = next(iter(latest.values()))
            if best[1] < best[0] or place - first < best[1] - best[0]:
                best = (first, place)
    return best


def smallest_spans(places: dict[str, list[int]]) -> list[int]:
    """For each occurrence, in their order, the length of the shortest span that has it and each term."""
    occurrences = sorted((place, term) for term, found in places.items() for place in found)
    ends = _ends(occurrences, len(places))
    lengths = []
    within = -1
    over: deque[tuple[int, int]] = deque()
    for number, (place, _) in enumerate(occurrences):
        # Spans that begin at an occurrence up to this one: the last that ends before it is the shortest to have it ...
        while within + 1 < len(ends) and ends[within + 1] <= place:
            within += 1
        # ... and of those that end after it, the queue has each that is shorter than all that begin later.
        if number < len(ends):
            length = ends[number] - place + 1
            while over and over[-1][1] >= length:
                over.pop()
            over.append((number, length))
        while over and over[0][0] <= within:
            over.popleft()
        reaching = [place - occurrences[within][0] + 1] if within >= 0 else []
        lengths.append(min([*reaching, *(length for _, length in islice(over, 1))]))
    return lengths


def _ends(occurrences: list[tuple[int, str]], n_terms: int) -> list[int]:
    """Where the shortest spans with each term end that begin at each occurrence; none for the last, which lack one."""
    ends = []
    counts: dict[str, int] = {}
    last = 0
    for _, term in occurrences:
        while len(counts) < n_terms and last < len(occurrences):
            further = occurrences[last][1]
            counts[further] = counts.get(further, 0) + 1
            last += 1
        if len(counts) < n_terms:
            break
        ends.append(occurrences[last - 1][0])
        counts[term] -= 1
        if not counts[term]:
            del counts[term]
    return ends
