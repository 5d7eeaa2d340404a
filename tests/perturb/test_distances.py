"""Distances between occurrences, against their definitions, and of more of them than their pairs can be counted."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

from hypothesis import given, settings
from hypothesis import strategies as st
from quick import is_quick

from pyterrier_mechir.perturb import PROX1
from pyterrier_mechir.perturb.axioms.distances import Occurrences, smallest_spans, smallest_window

occurring = st.lists(st.sampled_from("abc."), min_size=1, max_size=14).map(
    lambda text: {term: [i for i, one in enumerate(text) if one == term] for term in "abc" if term in text}
)


@given(occurring)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_distances_are_what_they_are_called(places):
    every = sorted(place for found in places.values() for place in found)
    for one, other in combinations(places.values(), 2):
        assert Occurrences(one).between(Occurrences(other)) == fmean(abs(i - j) - 1 for i in one for j in other)
    if not places:
        return
    spans = [(i, j) for i in every for j in every if all(any(i <= p <= j for p in f) for f in places.values())]
    assert smallest_window(places) == min(spans, key=lambda span: (span[1] - span[0], span))
    assert smallest_spans(places) == [min(j - i + 1 for i, j in spans if i <= place <= j) for place in every]


def test_terms_that_occur_thousands_of_times_are_moved_in_no_time():
    text = "tides rise in spring. ocean falls, " * 1500

    def move() -> None:
        assert PROX1().holds(text, PROX1()(text, "ocean tides"), "ocean tides")

    assert is_quick(move, 0.6)
