"""Units are spans of the very text, in any language, and a text can be put together without any of them."""

from __future__ import annotations

import numpy as np
import pytest
from any_text import texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyterrier_mechir.text.units import Removable, sentence_spans, token_spans, units_at, word_spans
from pyterrier_mechir.text.words import Words

some = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def units(text: str) -> list[str]:
    return [text[begin:end] for begin, end in word_spans(text).tolist()]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The moon's pull (at night) -- x-ray, 7th!", ["The", "moon's", "pull", "at", "night", "x-ray", "7th"]),
        ("Überfluss, Straße und Fuß.", ["Überfluss", "Straße", "und", "Fuß"]),
        ("潮汐 is 漢字", ["潮", "汐", "is", "漢", "字"]),
        ("うみとカナ", ["う", "み", "と", "カ", "ナ"]),
        ("データーabc2", ["デ", "ー", "タ", "ー", "abc2"]),
        ("น้ำขึ้น", ["น้ำ"[:2], "ำ", "ขึ้"[:4], "น"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("go\u0301 e\u0301te\u0301", ["go\u0301", "e\u0301te\u0301"]),
        ("tide 🌊 wave 👩‍🚀!", ["tide", "wave"]),
        ("a\ud800b \udfff c", ["a", "b", "c"]),
        ("one\ntwo\r\n\tthree", ["one", "two", "three"]),
        ("漢字2024年", ["漢", "字", "2024", "年"]),
        ("한국어 사람", ["한국어", "사람"]),
        ("... -- !", []),
        ("", []),
        ("tides", ["tides"]),
    ],
)
def test_words_are_as_they_stand_in_the_text(text, wanted):
    assert units(text) == wanted


def _assert_spans(text: str, spans: np.ndarray) -> None:
    assert spans.dtype == np.int64
    assert spans.shape == (len(spans), 2)
    flat = spans.reshape(-1)
    assert (flat[1:] >= flat[:-1]).all()
    assert (spans[:, 0] < spans[:, 1]).all()
    assert not len(flat) or (flat[0] >= 0 and flat[-1] <= len(text))


@given(texts())
@some
def test_words_are_disjoint_in_the_order_of_the_text_and_cover_its_letters(text):
    spans = word_spans(text)
    _assert_spans(text, spans)
    between = "".join(text[begin:end] for begin, end in zip([0, *spans[:, 1]], [*spans[:, 0], len(text)], strict=True))
    assert not any(letter.isalnum() for letter in between)
    of_words = {at for begin, end in Words(text).spans() for at in range(begin, end)}
    assert of_words == {at for begin, end in spans.tolist() for at in range(begin, end)}


@given(texts())
@some
def test_sentences_are_disjoint_and_leave_only_space_between_them(text):
    spans = sentence_spans(text)
    _assert_spans(text, spans)
    between = "".join(text[begin:end] for begin, end in zip([0, *spans[:, 1]], [*spans[:, 0], len(text)], strict=True))
    assert not between.strip()
    assert all(text[begin:end] == text[begin:end].strip() for begin, end in spans.tolist())


def test_sentences_end_at_full_stops_but_not_at_those_of_titles():
    text = "  Dr. Doodson counted tides. \n He used 388 terms!  Why? "
    assert [text[b:e] for b, e in sentence_spans(text)] == ["Dr. Doodson counted tides.", "He used 388 terms!", "Why?"]


@given(texts(), st.data())
@some
def test_a_text_with_all_of_its_units_is_itself_and_without_some_lacks_those_alone(text, data):
    spans = word_spans(text)
    removable = Removable(text, spans)
    assert removable.kept([True] * len(spans)) == (text if text[:1].isspace() else text.lstrip())
    keeps = data.draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
    kept = removable.kept(keeps)
    wanted = "".join(_visible(text, spans, keeps))
    assert "".join(kept.split()) == wanted


def _visible(text, spans, keeps):
    """The characters that are no space, without those of the units that are not kept."""
    gone = {
        at
        for (begin, end), is_kept in zip(spans.tolist(), keeps, strict=True)
        if not is_kept
        for at in range(begin, end)
    }
    return [letter for at, letter in enumerate(text) if at not in gone and not letter.isspace()]


@pytest.mark.parametrize(
    ("text", "without", "wanted"),
    [
        ("The high tide.", [0], "high tide."),
        ("The high tide.", [1], "The tide."),
        ("The high tide.", [2], "The high."),
        ("The high tide.", [0, 1], "tide."),
        ("The high tide.", [0, 1, 2], "."),
        ("tide, (high) tide", [1], "tide, () tide"),
        ("tide\n\nhigh", [1], "tide"),
        ("tide\n\nhigh", [0], "high"),
        ("潮汐表", [1], "潮表"),
        (" tide high", [0], " high"),
        ("tide", [0], ""),
    ],
)
def test_a_unit_goes_with_the_space_before_it_and_marks_stay(text, without, wanted):
    spans = word_spans(text)
    assert Removable(text, spans).kept([n not in without for n in range(len(spans))]) == wanted


def test_each_token_is_of_the_first_unit_that_it_has_a_character_of():
    spans = np.array([[0, 3], [4, 8], [10, 12]])
    tokens = np.array([[0, 0], [0, 2], [2, 3], [3, 8], [3, 4], [2, 6], [8, 9], [9, 11], [11, 15], [12, 13], [5, 5]])
    assert units_at(spans, tokens).tolist() == [-1, 0, 0, 1, -1, 0, -1, 2, 2, -1, -1]
    assert units_at(np.empty((0, 2), np.int64), tokens[:3]).tolist() == [-1, -1, -1]


def test_tokens_of_one_character_are_one_unit_and_spaces_are_none():
    text = " high 漢 tide"
    tokens = [[0, 5], [5, 7], [6, 7], [6, 7], [7, 8], [7, 10], [10, 12], [0, 0]]
    assert token_spans(text, np.array(tokens)).tolist() == [[1, 5], [6, 7], [8, 10], [10, 12]]
    assert token_spans("", np.empty((0, 2), np.int64)).tolist() == []
