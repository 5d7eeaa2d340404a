"""A text is taken apart into words and put together again without a loss."""

from __future__ import annotations

from collections import Counter

import pytest
from axioms import gaps, lowered, many, written
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_mechir.text.words import (
    Words,
    cased_like,
    changes,
    distinct_terms,
    insert,
    lemma,
    lowercase_words,
    place_after,
)

marks_and_letters = st.text(alphabet="aB9_é -'\u2019.,\n\t(/", max_size=30)


@many
@given(st.text())
def test_a_text_comes_back_from_its_words(text):
    assert str(Words(text)) == text


@many
@given(marks_and_letters)
def test_words_are_runs_joined_by_single_inner_hyphens_and_apostrophes(text):
    words = Words(text)
    assert list(words) == written(text)
    assert words.keys == lowered(text)
    assert words.gaps == gaps(text)
    assert words.counts() == Counter(lowered(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n", []),
        ("?!", []),
        ("O'Brien\u2019s high-tides", ["O'Brien\u2019s", "high-tides"]),
        ("tides' high- -water", ["tides", "high", "water"]),
        ("tides--ocean", ["tides", "ocean"]),
        ("rock'n'roll, 24/7 x_y", ["rock'n'roll", "24", "7", "x_y"]),
        ("«Größe» Москва 東京", ["Größe", "Москва", "東京"]),
        ("un cafe\u0301 noir", ["un", "cafe\u0301", "noir"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("\u0915\u094d\u200d\u0937 \u0915", ["\u0915\u094d\u200d\u0937", "\u0915"]),
        ("H₂O, x² ½", ["H₂O", "x²", "½"]),
        ("a \u0301 b-\u0301c", ["a", "b", "c"]),
        ("I \u2764\ufe0f tides", ["I", "tides"]),
        ("\U0001f469\u200d\U0001f4bb codes", ["codes"]),
    ],
)
def test_words_of_a_text(text, expected):
    assert list(Words(text)) == expected


def test_keys_agree_with_the_lower_case_words_of_the_text():
    for text in ("Tides OCEAN", "GRÖSSE Ångström", "İstanbul"):
        assert Words(text).keys == lowercase_words(text) == list(distinct_terms(text))


def test_distinct_terms_are_those_first_written():
    assert distinct_terms("The Tides of TIDES, moon") == {"tides": "Tides", "moon": "moon"}
    assert distinct_terms("of Of") == {"of": "of"}
    assert distinct_terms("?") == {}


@pytest.mark.parametrize(
    ("text", "places", "expected"),
    [
        ("The tides rise.", {1}, "The rise."),
        ("The tides rise.", {0}, "tides rise."),
        ("The tides rise.", {2}, "The tides."),
        ("Tides, rise", {0}, ", rise"),
        ("(tides) rise", {0}, "() rise"),
        ("rise (tides)!", {1}, "rise ()!"),
        ("rise, tides, fall", {1}, "rise,, fall"),
        ("rise\n\ntides fall", {1}, "rise fall"),
        ("  tides rise ", {0}, "rise "),
        ("tides/ocean rise", {0}, "/ocean rise"),
        ("x tides-ocean y", {1}, "x y"),
        ("a b c", {0, 1, 2}, ""),
        ("a b c d", {1, 2}, "a d"),
        ("a b c", set(), "a b c"),
    ],
)
def test_words_go_with_the_space_before_them(text, places, expected):
    assert str(Words(text).without(places)) == expected


@many
@given(marks_and_letters, st.data())
def test_taking_words_out_leaves_the_others(text, data):
    words = written(text)
    places = data.draw(st.sets(st.integers(0, max(0, len(words) - 1)), max_size=len(words)))
    rest = [word for place, word in enumerate(words) if place not in places]
    left = Words(text).without(places)
    assert list(left) == rest
    assert written(str(left)) == rest


@many
@given(st.text(alphabet="aé2²\u0301\u200d\ufe0f\u2764 -'(\u093f\u0939", max_size=20), st.data())
def test_words_with_marks_are_found_again_after_an_edit(text, data):
    words = Words(text)
    assert all(word[0].isalnum() for word in words)
    moved = words.permuted(data.draw(st.permutations(range(len(words)))))
    assert list(Words(str(moved))) == list(moved)
    left = words.without(data.draw(st.sets(st.integers(0, 9))))
    assert list(Words(str(left))) == list(left)


@many
@given(marks_and_letters, st.data())
def test_permuted_words_keep_the_gaps(text, data):
    order = data.draw(st.permutations(range(len(written(text)))))
    moved = Words(text).permuted(order)
    assert written(str(moved)) == list(moved) == [written(text)[place] for place in order]
    assert gaps(str(moved)) == gaps(text)
    assert moved.keys == lowered(str(moved))


@many
@given(marks_and_letters, st.data())
def test_replaced_words_keep_their_places(text, data):
    expected = written(text)
    new = data.draw(st.dictionaries(st.integers(0, max(0, len(expected) - 1)), st.sampled_from(["xq", "Y-z"])))
    new = {place: word for place, word in new.items() if place < len(expected)}
    replaced = Words(text).replaced(new)
    for place, (word, found) in enumerate(zip(expected, written(str(replaced)), strict=True)):
        if place not in new or new[place] == "Y-z":
            assert found == new.get(place, word)
        else:
            assert found == ("xq" if not word[0].isupper() else "XQ" if word.isupper() and len(word) > 1 else "Xq")
    assert gaps(str(replaced)) == gaps(text)
    assert replaced.keys == lowered(str(replaced))
    assert str(Words(text)) == text


def test_places_of_one_key_and_of_several():
    words = Words("Tides, tides of the ocean")
    assert words.places("tides") == [0, 1]
    assert words.places({"ocean", "tides"}) == [0, 1, 4]
    assert words.places("Tides") == words.places([]) == words.places("tide") == []
    assert (words[0], words[-1], len(words)) == ("Tides", "ocean", 5)


def test_other_gaps_between_the_words():
    assert str(Words("a, b").between(["(", " - ", ")"])) == "(a - b)"


def test_changes_count_lower_case_words():
    assert changes("a A b c", "a b b d") == (Counter(b=1, d=1), Counter(a=1, c=1))
    assert changes("Tides, ocean", "ocean (tides)") == (Counter(), Counter())


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", 3, "X"),
        ("a b", 9, "a b X"),
        ("(a) b", 0, "X (a) b"),
        ("(a) b", 1, "(a) X b"),
        ("a\n\nb", 1, "a\n\nX b"),
        ("a/b c", 1, "a/b X c"),
    ],
)
def test_a_term_goes_before_a_space_separated_word(text, place, expected):
    assert insert(text, "X", place) == expected


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("(tides), rise", 0, "(tides), X rise"),
        ("rise «tides» fall", 1, "rise «tides» X fall"),
        ("high - tides", 0, "high X - tides"),
        ("high - tides", 1, "high - tides X"),
        ("tides/ocean rise", 0, "tides/ocean X rise"),
        ("tides/ocean rise", 1, "tides/ocean X rise"),
    ],
)
def test_the_place_after_a_word(text, word, expected):
    assert insert(text, "X", place_after(text, word)) == expected


@pytest.mark.parametrize(
    ("word", "other", "expected"),
    [
        ("tides", "Ocean", "Tides"),
        ("tides", "OCEAN", "TIDES"),
        ("tides", "ocean", "tides"),
        ("tides", "A", "Tides"),
        ("iPhone", "Ocean", "iPhone"),
        ("NASA", "ocean", "NASA"),
        ("tides", "3rd", "tides"),
        ("tides", "", "tides"),
    ],
)
def test_a_word_takes_the_capitals_of_another(word, other, expected):
    assert cased_like(word, other) == expected


def test_lemmas_keep_their_case():
    assert [lemma(word) for word in ("Tides", "RUNNING", "mice", "xyzzy", "ran")] == [
        "Tide",
        "RUN",
        "mouse",
        "xyzzy",
        "run",
    ]
