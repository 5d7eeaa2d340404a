"""Probes of wording and order, and terms put in or taken out: what each makes of a text, and when it does not apply."""

from __future__ import annotations

import re
from itertools import permutations

import pytest

from pyterrier_mechir import PerturbQueries
from pyterrier_mechir.perturb import (
    AddSentence,
    AddTerm,
    CaseFold,
    DeleteSentence,
    Idf,
    Lemmatize,
    Negate,
    PrependQuery,
    RemovePunctuation,
    RemoveStopWords,
    RemoveTerm,
    ReverseSentences,
    ReverseWords,
    ShuffleSentences,
    ShuffleWords,
    SwapEntities,
    SwapNumbers,
    Typos,
)


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def outcomes(make, text: str, query: str = "q", seeds: int = 60) -> set[str | None]:
    return {make(seed=seed)(text, query) for seed in range(seeds)}


@pytest.mark.parametrize(
    ("probe", "text", "expected"),
    [
        (CaseFold(), "The MOON of É, Straße.", "the moon of é, straße."),
        (CaseFold(), "the moon, 3.5", None),
        (CaseFold(), "", None),
        (CaseFold(), "月", None),
        (RemovePunctuation(), "Well, the tide (it's two-fold) rises!", "Well the tide it's two-fold rises"),
        (RemovePunctuation(), "'Tides' - high", "Tides  high"),
        (RemovePunctuation(), "3.5 m; a/b", "3 5 m a b"),
        (RemovePunctuation(), "今日は。明日は。", "今日は 明日は"),
        (RemovePunctuation(), "…!?", ""),
        (RemovePunctuation(), "no marks", None),
        (RemovePunctuation(), "state-of-the-art can't", None),
        (RemovePunctuation(), " \n", None),
        (RemoveStopWords(), "The moon pulls the ocean, and it rises.", "moon pulls ocean, rises."),
        (RemoveStopWords(), "Rise of the\ntides", "Rise\ntides"),
        (RemoveStopWords(), "dog. The cat", "dog. cat"),
        (RemoveStopWords(), "can't stop", None),
        (RemoveStopWords(), "It is what it is.", None),
        (RemoveStopWords(), "", None),
        (RemoveStopWords(), "...", None),
        (Lemmatize(), "The tides were rising, mice!", "The tide be rise, mouse!"),
        (Lemmatize(), "3.5 metres of state-of-the-art walls", "3.5 metre of state-of-the-art wall"),
        (Lemmatize("de"), "Häuser", "Haus"),
        (Lemmatize(), "tide", None),
        (Lemmatize(), "?", None),
        (Lemmatize(), "今日は", None),
        (Typos(), "the sun set 2024", None),
        (Typos(), "café над 月", None),
        (Typos(), "which were about", None),
        (Typos(3), "the moon pulls", None),
        (Typos(terms="query"), "moon and ocean", None),
        (SwapNumbers(), "no number, ² or Ⅳ", None),
        (SwapNumbers(), "", None),
        (Negate(), "The tides are high.", "The tides are not high."),
        (Negate(), "IT IS.", "IT IS not."),
        (Negate(), "It is not high; is it?", "It is high; is it?"),
        (Negate(), "NOT so", "so"),
        (Negate(), "Tides rise in May. The can is full", "Tides rise in May. The can is not full"),
        (Negate(), "May tides rise? In May", "May not tides rise? In May"),
        (Negate(), "Not only tides rise, it is not calm", "Not only tides rise, it is calm"),
        (Negate(), "not just tides", None),
        (Negate(), "Their will, a might", None),
        (Negate(), "He can't and won't; he cannot.", None),
        (Negate(), "Tides rise.", None),
        (Negate(), "", None),
        (ReverseWords(), "Tides rise, twice (a day)!", "day a, twice (rise Tides)!"),
        (ReverseWords(), "can't  stop", "stop  can't"),
        (ReverseWords(), "rise tides rise", None),
        (ReverseWords(), "tides.", None),
        (ReverseWords(), "", None),
        (ShuffleWords(), "tides, tides, tides", None),
        (ShuffleWords(), "...", None),
        (ReverseSentences(), "Tides rise. Walls\nfall!  Rain", "Rain Walls\nfall! Tides rise."),
        (ReverseSentences(), "Dr. Smith met 3.5 tides. He left.", "He left. Dr. Smith met 3.5 tides."),
        (ReverseSentences(), "Tides rise.Walls fall.", "Walls fall. Tides rise."),
        (ReverseSentences(), "今日は。明日は。", "明日は。 今日は。"),
        (ReverseSentences(), "Tides rise. Tides rise!", None),
        (ReverseSentences(), "no end of a sentence", None),
        (ReverseSentences(), "", None),
        (ShuffleSentences(), "Tides rise. Tides rise.", None),
        (ShuffleSentences(), "one, two", None),
        (DeleteSentence("start"), "Dr. Smith came. He left! Why?", "He left! Why?"),
        (DeleteSentence("end"), "Dr. Smith came. He left! Why?", "Dr. Smith came. He left!"),
        (DeleteSentence("end"), "Title\n\nTides rise", "Title"),
        (DeleteSentence(), "Only one of 3.5 m.", None),
        (DeleteSentence(), " ", None),
        (AddSentence("Walls."), "Tides", "Tides Walls."),
        (AddSentence("Walls.", "start"), "Tides", "Walls. Tides"),
        (AddSentence("Walls."), "All Walls. fall", None),
        (PrependQuery(), "Rome", "q Rome"),
        (SwapEntities(), "From Dover to Calais.", "From Calais to Dover."),
        (SwapEntities(), "Dover and Calais", None),
        (SwapEntities(), "By sea. Dover is near Calais", None),
        (SwapEntities(), "In May, I saw IT and Rome", None),
        (SwapEntities(), "To Rome and Rome", None),
        (SwapEntities(), "To New York and Rome", None),
        (SwapEntities(), "To New York\nand Los Angeles.", "To Los Angeles\nand New York."),
        (SwapEntities(), "из Киева в Одессу", "из Одессу в Киева"),
        (SwapEntities(), "", None),
        (RemoveTerm(), "The q, a Q; x", "The, a; x"),
        (RemoveTerm(), "no such word: q-like", None),
        (RemoveTerm(), "Q, q.", None),
        (AddTerm("rivers"), "", "rivers"),
        (AddTerm("rivers", n=2, position="start"), "a b", "rivers rivers a b"),
        (AddTerm(["q", "All q"]), "a b", None),
        (AddTerm(), "q and the q", None),
        (AddTerm(), "", None),
        (AddTerm("rivers", position="beside"), "no occurrence", None),
    ],
    ids=repr,
)
def test_a_text_becomes(probe, text, expected):
    assert probe(text, "q") == expected


A, B, C = "Tides rise.", "Walls fall!", "Why?"


@pytest.mark.parametrize(
    ("make", "text", "expected"),
    [
        (ShuffleWords, "Ebb (and) flow.", {f"{a} ({b}) {c}." for a, b, c in permutations(["Ebb", "and", "flow"])}),
        (ShuffleSentences, f"{A}  {B}\n{C}", {" ".join(order) for order in permutations([A, B, C])}),
        (DeleteSentence, f"{A} {B} {C}", {f"{B} {C}", f"{A} {C}", f"{A} {B}"}),
        (lambda seed: AddSentence([B, C], "random", seed), A, {f"{A} {B}", f"{A} {C}", f"{B} {A}", f"{C} {A}"}),
        (lambda seed: AddSentence([A, C], seed=seed), A, {f"{A} {C}"}),
        (
            SwapEntities,
            "to Dover, Ely or Wye",
            {"to Ely, Dover or Wye", "to Wye, Ely or Dover", "to Dover, Wye or Ely"},
        ),
        (SwapNumbers, "in 7 days", {f"in {i} days" for i in "012345689"}),
        (SwapNumbers, "B0", {f"B{i}" for i in range(1, 10)}),
        (lambda seed: Typos(kind="drop", seed=seed), "The MOON", {"The MON", "The MOO"}),
        (lambda seed: Typos(kind="swap", seed=seed), "moon, it", {"mono, it"}),
        (lambda seed: Typos(kind="swap", seed=seed), "aaaa", {"aaa"}),
        (
            lambda seed: Typos(terms="query", kind="swap", seed=seed),
            "Moon sea. Q, moon",
            {"Mono sea. Q, moon", "Moon sea. Q, mono"},
        ),
        (Negate, "It was so, we can go", {"It was not so, we can go", "It was so, we can not go"}),
        (Negate, "Not I, not you", {"I, not you", "Not I, you"}),
        (AddTerm, "ice and sea, sea and q", {f"ice and sea, sea and q {word}" for word in ("ice", "sea")}),
        (lambda seed: AddTerm(["hail", "a q", "ice rain"], 1, seed=seed), "to q", {"to hail q", "to ice rain q"}),
        (lambda seed: AddTerm(position="beside", seed=seed), "ice, (ice)", {"ice, ice (ice)", "ice, (ice) ice"}),
        (
            lambda seed: AddTerm(Idf.of(dict.fromkeys(["q", "ice", "sea", "rain"], 1.0)), seed=seed),
            "sea",
            {"sea ice", "sea rain"},
        ),
        (lambda seed: RemoveTerm(seed), "Q z, q: y", {"z,: y"}),
    ],
)
def test_every_seed_draws_one_of_these(make, text, expected):
    assert outcomes(make, text, "q moon", seeds=200) == expected - {" ".join(text.split())}


def test_sentences_of_which_some_have_the_same_words_are_shuffled():
    text = "Tides rise. Tides rise! Walls fall."
    assert None not in outcomes(ShuffleSentences, text)
    assert all(words(made) != words(text) for made in outcomes(ShuffleSentences, text))


def test_an_addition_to_an_empty_text_is_the_addition():
    assert AddSentence("Walls fall.")("", "q") == "Walls fall."
    assert PrependQuery()("", "high tides") == "high tides"


@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query_is_not_put_anywhere(query):
    assert PrependQuery()("text", query) is None
    assert RemoveTerm()("text", query) is None
    assert Typos(terms="query")("text", query) is None
    assert AddTerm(Idf.of({"text": 1.0, "tides": 1.0}))("text", query) is None


def test_a_query_of_function_words_is_made_of_its_words():
    assert RemoveTerm()("What tides were high", "what") == "tides were high"
    assert Typos(terms="query")("What tides were high", "what were") is None


@pytest.mark.parametrize("text", ["cafe\u0301s, pre\u0301", "\u0939\u093f\u0928\u094d\u0926\u0940, \u092e\u0947\u0902"])
def test_combining_marks_are_no_punctuation(text):
    assert RemovePunctuation()(text, "q") == text.replace(",", "")


def test_every_kind_of_digit_belongs_to_a_word():
    assert ReverseWords()("m², ½ x_1", "q") == "x_1, ½ m²"
    assert RemovePunctuation()("m², ½ x_1!", "q") == "m² ½ x_1"


def test_a_capital_that_lower_cases_to_two_characters_leaves_as_many_words():
    pair = CaseFold().pair("To İstanbul", "q")
    assert CaseFold().holds(pair.baseline, pair.perturbed, "q")


@pytest.mark.parametrize("digits", [4300, 5000])
def test_a_number_of_any_length_is_swapped(digits):
    assert len(SwapNumbers()("9" * digits, "q")) == digits


def test_a_languages_own_function_words_and_scripts_pass_through():
    for probe in (RemoveStopWords(), Typos(), Negate(), SwapEntities(), SwapNumbers()):
        assert probe("今日は月が高い。明日は低い。", "月") is None


def test_a_number_becomes_the_same_number_everywhere():
    for seed in range(20):
        made = SwapNumbers(seed)("In 1990 and 1991, then 1990 again; 19 of 91, 19 days", "q")
        first, second, again, third, fourth, fifth = re.findall(r"\d+", made)
        assert first == again and third == fifth
        assert len({first, second, "1990", "1991"}) == len({third, fourth, "19", "91"}) == 4
        assert SwapNumbers().holds("In 1990 and 1990", "In 1234 and 1234", "q")
        assert not SwapNumbers().holds("In 1990 and 1990", "In 1234 and 1235", "q")


def test_a_word_of_the_text_cannot_be_added_to_a_query():
    with pytest.raises(ValueError, match=r"AddTerm\(\) repeats words of a document"):
        PerturbQueries(AddTerm())
    assert PerturbQueries(AddTerm("ice")).perturbation == AddTerm("ice")
