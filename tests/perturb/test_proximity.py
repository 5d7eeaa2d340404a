"""The proximity axioms and quoted phrases, on texts made by hand and against measures by brute force."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from axioms import asked, differing, gaps, lowered, many, rows, spans, written
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_mechir.perturb import PROX1, PROX2, PROX3, PROX4, PROX5, QPHRA

TEXT = "The moon pulls the ocean, and the tides rise."


def occurrences(text: str, query: str) -> dict[str, list[int]]:
    """Where each query term that occurs does."""
    words = lowered(text)
    return {term: [i for i, word in enumerate(words) if word == term] for term in asked(query) if term in words}


def mean_distance(text: str, query: str) -> Fraction:
    """The mean, over each two terms, of the mean number of words between their occurrences."""
    places = occurrences(text, query)
    means = []
    for one, other in combinations(places, 2):
        between = [abs(i - j) - 1 for i in places[one] for j in places[other]]
        means.append(Fraction(sum(between), len(between)))
    return sum(means, Fraction(0)) / len(means)


def first_places(text: str, query: str) -> int:
    return sum(min(places) for places in occurrences(text, query).values())


def phrase_place(text: str, phrase: list[str]) -> float:
    """The first word of the first run of a phrase with nothing but space inside; infinite without one."""
    words, bounds = lowered(text), spans(text)
    for place in range(len(words) - len(phrase) + 1):
        inside = bounds[place : place + len(phrase)]
        apart = (text[one[1] : other[0]] for one, other in pairwise(inside))
        if words[place : place + len(phrase)] == phrase and all(gap.isspace() for gap in apart):
            return place
    return float("inf")


def spans_with_all(text: str, query: str) -> list[tuple[int, int]]:
    """Every span of words that has each query term that occurs, shortest and then first in front."""
    words, terms = lowered(text), set(occurrences(text, query))
    found = [
        (begin, end)
        for begin in range(len(words))
        for end in range(begin + 1, len(words) + 1)
        if terms <= set(words[begin:end])
    ]
    return sorted(found, key=lambda span: (span[1] - span[0], span[0]))


def intruders(text: str, query: str) -> int:
    """Other words in the smallest span."""
    begin, end = spans_with_all(text, query)[0]
    return sum(word not in lowered(query) for word in lowered(text)[begin:end])


def mean_smallest_span(text: str, query: str) -> Fraction:
    """The mean, over the occurrences, of the smallest span that has the occurrence and all terms."""
    places = [place for found in occurrences(text, query).values() for place in found]
    all_spans = spans_with_all(text, query)
    shortest = [next(end - begin for begin, end in all_spans if begin <= place < end) for place in places]
    return Fraction(sum(shortest), len(shortest))


def assert_permuted(text: str, moved: str) -> None:
    assert sorted(written(moved)) == sorted(written(text))
    assert written(moved) != written(text)
    assert gaps(moved) == gaps(text)


def results(axiom, text: str, query: str) -> set:
    return {axiom(seed)(text, query) for seed in range(40)}


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        (TEXT, "ocean tides", {
            "The moon pulls the the, and ocean tides rise.",
            "The moon pulls the rise, and the tides ocean.",
            "The moon pulls tides ocean, and the the rise.",
            "The moon pulls the ocean, tides the and rise.",
        }),
        ("Tides of oceans rise; ocean!", "the OCEAN, tides", {
            "Tides ocean oceans rise; of!", "rise of oceans Tides; ocean!"}),
        ("tides ocean rise", "tides ocean", {None}),
        ("tides rise, tides fall", "tides ocean", {None}),
        ("tides of ocean", "tides", {None}),
        ("ocean", "ocean tides", {None}),
        ("rise", "ocean tides", {None}),
        ("tides of ocean", "?", {None}),
        ("", "ocean tides", {None}),
        ("", "", {None}),
    ],
)  # fmt: skip
def test_prox1_brings_two_query_terms_closer(text, query, expected):
    assert results(PROX1, text, query) == expected


@pytest.mark.parametrize(
    "text",
    [
        "tides tides z x moon ocean tides",
        "y ocean x ocean ocean tides moon moon",
        "ocean z ocean ocean tides moon moon moon x",
        "x moon tides y moon y moon ocean x z",
    ],
)
def test_prox1_never_keeps_the_mean_distance_as_it_was(text):
    for seed in range(40):
        moved = PROX1(seed)(text, "ocean moon tides")
        assert moved is None or mean_distance(moved, "ocean moon tides") < mean_distance(text, "ocean moon tides")


@given(rows())
@many
def test_prox1_makes_the_mean_distance_smaller(row):
    text, query = row
    places = occurrences(text, query)
    moved = PROX1()(text, query)
    if moved is None:
        return
    assert len(places) > 1
    assert_permuted(text, moved)
    (one, other) = differing(written(text), written(moved))
    terms = {lowered(text)[one] in places, lowered(text)[other] in places}
    assert terms == {True, False}
    assert mean_distance(moved, query) < mean_distance(text, query)


@given(rows())
@many
def test_prox1_applies_to_two_single_terms_that_are_apart(row):
    text, query = row
    found = list(occurrences(text, query).values())
    if len(found) == 2 and all(len(places) == 1 for places in found) and not set(lowered(query)) - set(asked(query)):
        assert (PROX1()(text, query) is None) == (abs(found[0][0] - found[1][0]) == 1)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        (TEXT, "ocean tides", {
            "ocean moon pulls the The, and the tides rise.", "tides moon pulls the ocean, and the The rise."}),
        ("Tides of the ocean", "tides ocean", {"Tides ocean the of"}),
        ("Tides, tides rise, ocean.", "ocean tides", {"Tides, tides ocean, rise."}),
        ("high-water O'Brien's", "o'brien's", {"O'Brien's high-water"}),
        ("tides ocean rise", "ocean tides", {None}),
        ("Tides rise, tides fall", "tides ocean", {None}),
        ("rise", "tides", {None}),
        ("of tides", "!", {None}),
        ("", "tides", {None}),
    ],
)  # fmt: skip
def test_prox2_moves_a_term_to_the_front(text, query, expected):
    assert results(PROX2, text, query) == expected


@given(rows())
@many
def test_prox2_makes_the_first_occurrences_earlier(row):
    text, query = row
    words, places = lowered(text), occurrences(text, query)
    last = max((found[0] for found in places.values()), default=0)
    moved = PROX2()(text, query)
    assert (moved is None) == all(word in lowered(query) for word in words[:last])
    if moved is not None:
        assert_permuted(text, moved)
        assert len(differing(written(text), written(moved))) == 2
        assert first_places(moved, query) < first_places(text, query)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        (TEXT, "ocean tides", "The moon pulls the and, ocean tides the rise."),
        (TEXT, "the moon and tides", "The moon and tides ocean, pulls the the rise."),
        ("Ocean and TIDES rise", "tides of the ocean", None),
        ("Ocean of TIDES the moon", "tides of the ocean", "TIDES of the Ocean moon"),
        ("the tides, the ocean of", "the tides the", "of ocean, the tides the"),
        ("the tides, the ocean of", "the tides the the", None),
        ("ocean and tides, rise", "tides ocean", "tides ocean and, rise"),
        ("tides of rising ocean tides", "ocean tides", None),
        ("ocean rises, ocean tides", "ocean tides", "ocean tides, ocean rises"),
        ("rise ocean tides", "ocean tides", None),
        ("ocean, tides", "ocean tides", None),
        ("of ocean, tides", "ocean tides", "ocean tides, of"),
        ("ocean rise", "ocean tides", None),
        ("the ocean", "ocean", None),
        ("ocean the tides", "", None),
        ("", "ocean tides", None),
    ],
)
def test_prox3_makes_a_phrase_of_the_query(text, query, expected):
    assert PROX3()(text, query) == expected


@given(rows())
@many
def test_prox3_makes_the_phrase_earlier(row):
    text, query = row
    moved = PROX3()(text, query)
    if moved is not None:
        assert_permuted(text, moved)
        assert phrase_place(moved, lowered(query)) < phrase_place(text, lowered(query))


@given(rows(least=2))
@many
def test_prox3_applies_unless_the_phrase_is_that_early(row):
    text, query = " ".join(written(row[0])), row[1]
    words, phrase = lowered(text), lowered(query)
    applies = len(phrase) > 1 and not Counter(phrase) - Counter(words) and not set(asked(query)).isdisjoint(words)
    place = phrase_place(text, phrase)
    if not applies:
        assert PROX3()(text, query) is None
    elif len(set(phrase)) == len(phrase):
        earliest = min(words.index(phrase[0]), len(words) - len(phrase))
        assert (PROX3()(text, query) is not None) == (place > earliest)
    elif place == float("inf"):
        assert PROX3()(text, query) is not None


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        (TEXT, "ocean tides", "The moon pulls the ocean, tides and the rise."),
        (TEXT, "moon tides ocean", "The moon ocean tides pulls, the and the rise."),
        ("Ocean, the wide ocean of tides", "tides ocean", "Ocean, the wide ocean tides of"),
        ("tides of moon, moon and tides", "tides moon", "tides moon of, moon and tides"),
        ("tides of wide ocean", "the tides of ocean", "tides of ocean wide"),
        ("tides of ocean", "tides of ocean", None),
        ("tides ocean of tides", "ocean tides", None),
        ("ocean tides moon", "tides ocean", None),
        ("tides of tides", "tides ocean", None),
        ("tides of ocean", "tides", None),
        ("", "tides ocean", None),
        ("tides of ocean", "", None),
    ],
)
def test_prox4_empties_the_smallest_window(text, query, expected):
    assert PROX4()(text, query) == expected


@given(rows())
@many
def test_prox4_leaves_fewer_other_words_in_the_smallest_window(row):
    text, query = row
    moved = PROX4()(text, query)
    assert (moved is not None) == (len(occurrences(text, query)) > 1 and intruders(text, query) > 0)
    if moved is not None:
        assert_permuted(text, moved)
        assert intruders(moved, query) < intruders(text, query)
        begin, end = spans_with_all(text, query)[0]
        changed = differing(written(text), written(moved))
        assert begin <= changed[0] <= changed[-1] < end


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Tides of the ocean are tides of all seas.", "ocean tides", "Tides ocean tides of the are of all seas."),
        ("The ocean, far; tides rise, ocean", "tides ocean", "The ocean, tides; ocean far, rise"),
        ("Tides of far ocean and tides", "the ocean of tides", "Tides of ocean tides far and"),
        ("tides of ocean", "tides of ocean", None),
        ("tides ocean, tides", "tides ocean", None),
        ("tides of tides", "tides ocean", None),
        ("tides of ocean", "ocean", None),
        ("of", "tides ocean", None),
        ("", "", None),
    ],
)
def test_prox5_gathers_all_occurrences(text, query, expected):
    assert PROX5()(text, query) == expected


@given(rows())
@many
def test_prox5_makes_the_mean_smallest_span_shorter(row):
    text, query = row
    moved = PROX5()(text, query)
    if moved is not None:
        assert len(occurrences(text, query)) > 1
        assert_permuted(text, moved)
        assert mean_smallest_span(moved, query) < mean_smallest_span(text, query)
        for of_query in (True, False):
            kept, after = ([w for w in written(t) if (w.lower() in lowered(query)) == of_query] for t in (text, moved))
            assert kept == after


@given(rows())
@many
def test_prox5_applies_to_two_single_terms_that_are_apart(row):
    text, query = row
    found = list(occurrences(text, query).values())
    if len(found) == 2 and all(len(places) == 1 for places in found):
        (one, other) = sorted(places[0] for places in found)
        between = lowered(text)[one + 1 : other]
        assert (PROX5()(text, query) is None) == all(word in lowered(query) for word in between)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("High in spring, the tides rise.", '"high tides"', (0, "High tides spring, the in rise.")),
        ("The high tides rise; high tides.", "see \u201cHigh tides\u201d now", (1, "The tides high rise; tides high.")),
        ("High tides", '"neap" or "high tides"', (1, "tides High")),
        ("State of the art", '"state of the art"', (1, "of State the art")),
        ("very fine, very high", '"very very high"', (0, None)),
        ("very very high tides", '"very very high"', (1, "very high very tides")),
        ("tides, high", '"tides high"', (0, None)),
        ("high tides", '"high neap"', (0, None)),
        ("high tides", "high tides", (0, None)),
        ("high tides", '"high', (0, None)),
        ("tides tides", '"tides tides"', (0, None)),
        ("high tides", '""', (0, None)),
        ("", '"high tides"', (0, None)),
    ],
)
def test_qphra_breaks_or_makes_the_phrase(text, query, expected):
    place, other = expected
    sides = (text, other) if place == 0 else (other, text)
    assert QPHRA()(text, query) == (None if other is None else sides)


def test_qphra_needs_the_phrase_on_one_side_only():
    query = '"high tides"'
    assert QPHRA().holds("tides high now", "now high tides", query)
    assert not QPHRA().holds("high tides rise now", "now high tides rise", query)
    assert not QPHRA().holds("tides high now", "high now tides", query)
    assert not QPHRA().holds("tides high now", "now high, tides", query)


@given(rows(), st.booleans())
@many
def test_qphra_sets_the_phrase_against_its_words_apart(row, together):
    text, query = row
    phrase = lowered(query)
    query = f'"{query.replace(chr(34), "")}"'
    text = f"{' '.join(phrase)} {text}" if together else text
    pair = QPHRA()(text, query)
    if pair is None:
        return
    assert text in pair
    assert_permuted(*pair)
    assert phrase_place(pair[0], phrase) == float("inf")
    assert phrase_place(pair[1], phrase) < float("inf")
    assert (pair[1] == text) == (phrase_place(text, phrase) < float("inf"))
