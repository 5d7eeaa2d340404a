"""Which words are as rare as a term."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mechir.perturb import Idf
from pyterrier_mechir.text.idf import same_band


def letters(i: int) -> str:
    return "w" + "".join("abcdefghij"[int(digit)] for digit in f"{i:04d}")


LARGE = Idf.of({letters(i): 1 + i / 400 for i in range(2000)})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 1999), st.integers(0, 10**6), st.sets(st.integers(0, 1999), max_size=40))
def test_a_word_of_the_same_band_is_drawn(i, seed, excluded):
    term, excluded = letters(i), {letters(j) for j in excluded}
    word = LARGE.near(term.upper(), random.Random(seed), exclude=excluded)
    assert word not in {term, *excluded, None}
    assert abs(LARGE(word) - LARGE(term)) <= 0.1 * max(LARGE(word), LARGE(term)) + 1e-9
    assert same_band(LARGE(word), LARGE(term), 0.1 + 1e-9)
    assert word == LARGE.near(term, random.Random(seed), exclude=sorted(excluded, reverse=True))


def test_the_whole_band_is_drawn_from_and_the_rarest_for_an_unknown_term():
    for term, value in ((letters(1000), LARGE(letters(1000))), ("zebra", LARGE(letters(1999)))):
        drawn = {LARGE.near(term, random.Random(seed)) for seed in range(4000)}
        band = {word for word, other in LARGE.values.items() if same_band(value, other, 0.1 + 1e-9)} - {term}
        assert drawn <= band
        assert len(drawn) > 0.9 * len(band)


def test_a_word_that_may_be_drawn_is_always_found():
    small = Idf.of({letters(i): float(i) for i in range(20)})
    everything = set(small.values)
    for left in sorted(everything):
        exclude = everything - {left, letters(3)}
        assert small.near(letters(3), random.Random(0), exclude=exclude) == (left if left != letters(3) else None)
        assert small.near("zebra", random.Random(0), exclude=everything - {left}) == left


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 1], 2), ([0, 0, 5], 2), ([0.1, 100, 1000], 2), ([7], 0)])
def test_a_small_collection_gives_what_it_has(values, expected):
    made = Idf.of({letters(i): float(value) for i, value in enumerate(values)})
    drawn = {made.near(letters(0), random.Random(seed)) for seed in range(30)}
    assert drawn == ({letters(i) for i in range(1, expected + 1)} or {None})


def test_function_words_numbers_and_short_words_are_never_drawn():
    made = Idf.of(["the which moon is 2024 a4 3.5 ox state-of-the-art can't x"])
    assert {made.near("zebra", random.Random(seed)) for seed in range(30)} == {"moon"}
    assert made.near("moon", random.Random(0)) is None
    made.check_words()
