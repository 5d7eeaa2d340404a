"""What holds of every probe: of any text, in any order and process, and of the pairs that it claims as its own."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_models import QUERIES, TEXTS

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
from pyterrier_mechir.text.words import STOPWORDS

PROBES = [
    *(CaseFold(), RemovePunctuation(), RemoveStopWords(), Lemmatize(), SwapNumbers(), Negate()),
    *(Typos(), Typos(2), Typos(kind="keyboard"), Typos(kind="swap"), Typos(kind="drop"), Typos(terms="query")),
    *(ShuffleWords(), ReverseWords(), ShuffleSentences(), ReverseSentences(), SwapEntities(), PrependQuery()),
    *(DeleteSentence(), DeleteSentence("start"), DeleteSentence("end")),
    *(AddSentence("Walls are high."), AddSentence(["Walls fall.", "Rain falls."], "random")),
    *(AddTerm(), AddTerm("rivers"), AddTerm(position="beside"), AddTerm(["rain", "hail"], "start", n=2), RemoveTerm()),
]
each_probe = pytest.mark.parametrize("probe", PROBES, ids=repr)

WORDS = (
    "tides ocean moon rise the The not is can't Rome Dover New York 3.5 007 0 2024 café Жизнь 月 U.S. e.g. tide-locked"
)
GAPS = [" "] * 6 + [". ", "! ", "? ", ", ", "\n", "  ", "-", " - ", "'", ".", "…", "\t", "\u2019", "(", '"', "\u00a0"]
LEFT_OUT = ("Mn", "Mc", "Me", "Cf", "Cc", "Cs", "Cn", "No", "So", "Pc")
mixed = st.lists(st.tuples(st.sampled_from(WORDS.split()), st.sampled_from(GAPS)), max_size=12).map(
    lambda pieces: "".join(word + gap for word, gap in pieces)
)
any_text = mixed | mixed | st.text(st.characters(exclude_categories=LEFT_OUT, exclude_characters="İ"), max_size=30)
some = settings(max_examples=150, deadline=None, derandomize=True)


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def gaps(text: str) -> list[str]:
    return re.split(r"\w+(?:['\u2019-]\w+)*", text)


def distance(one: str, other: str) -> int:
    """Damerau and Levenshtein's, of neighbours exchanged once."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and (a, b) == (other[j - 2], one[i - 2]):
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


KEYBOARD = {
    key: (row, column)
    for row, keys in enumerate(("qwertyuiop", "asdfghjkl", "zxcvbnm"))
    for column, key in enumerate(keys)
}


@some
@given(mixed, st.integers(1, 2), st.sampled_from([None, "keyboard", "swap", "drop"]), st.integers(0, 9))
def test_a_typo_is_one_edit_away_from_the_first_letter(text, n, kind, seed):
    made = Typos(n, kind, seed=seed)(text, "q")
    assume(made is not None)
    assert gaps(made) == gaps(text)
    changed = [(one, other) for one, other in zip(words(text), words(made), strict=True) if one != other]
    assert len(changed) == n
    for one, other in changed:
        assert re.fullmatch("[A-Za-z]{4,}", one)
        assert one.lower() not in STOPWORDS
        assert distance(one, other) == 1
        assert one[0] == other[0]
        if kind == "keyboard":
            ((a, b),) = [(a.lower(), b.lower()) for a, b in zip(one, other, strict=True) if a != b]
            assert max(abs(i - j) for i, j in zip(KEYBOARD[a], KEYBOARD[b], strict=True)) == 1
        if kind == "swap":
            assert Counter(one) == Counter(other)
        if kind == "drop":
            assert len(one) == len(other) + 1


@some
@given(any_text, st.integers(0, 9))
def test_every_number_becomes_another_of_as_many_digits(text, seed):
    made = SwapNumbers(seed)(text, "q")
    before = re.findall(r"\d+", text)
    assert (made is None) == (not before)
    assume(made is not None)
    assert re.sub(r"\d", "0", made) == re.sub(r"\d", "0", text)
    assert all(a != b for a, b in zip(before, re.findall(r"\d+", made), strict=True))


@some
@given(any_text)
def test_marks_go_but_those_inside_words(text):
    def kept(i: int) -> bool:
        inner = text[i] in "'\u2019-" and 0 < i < len(text) - 1 and all(is_word(text[j]) for j in (i - 1, i + 1))
        return is_word(text[i]) or inner

    def is_word(letter: str) -> bool:
        return letter.isalnum() or letter == "_"

    made = RemovePunctuation()(text, "q")
    assert (made is None) == all(kept(i) or letter.isspace() for i, letter in enumerate(text))
    assume(made is not None)
    assert made.split() == "".join(letter if kept(i) else " " for i, letter in enumerate(text)).split()


@some
@given(any_text, st.integers(0, 9))
def test_words_change_as_they_should(text, seed):
    have = words(text)
    content = [word for word in have if word.lower() not in STOPWORDS]
    made = RemoveStopWords()(text, "q")
    assert (made is None) == (len(content) in (0, len(have)))
    assert made is None or words(made) == content
    made = ShuffleWords(seed)(text, "q")
    assert (made is None) == (len(set(have)) < 2)
    assert made is None or (Counter(words(made)) == Counter(have) and words(made) != have and gaps(made) == gaps(text))
    made = ReverseWords()(text, "q")
    assert (made is None) == (have == have[::-1])
    assert made is None or (words(made) == have[::-1] and ReverseWords()(made, "q") == text)
    made = Lemmatize()(text, "q")
    assert made is None or len(words(made)) == len(have)
    made = Negate(seed)(text, "q")
    assert made is None or abs(len(words(made)) - len(have)) == 1
    assert (
        made is None
        or Counter(words(made.lower())) + Counter(["not"]) == Counter(words(text.lower()))
        or (Counter(words(made.lower())) == Counter(words(text.lower())) + Counter(["not"]))
    )


sentence = st.lists(st.sampled_from(["tides", "rise", "3.5", "can't", "Rome"]), min_size=1, max_size=4).map(
    lambda found: f"They {' '.join(found)}."
)


@some
@given(st.lists(sentence, max_size=5), st.integers(0, 9))
def test_sentences_change_as_they_should(found, seed):
    text = " ".join(found)
    assert ReverseSentences()(text, "q") == (" ".join(found[::-1]) if found != found[::-1] else None)
    shuffled = {" ".join(order) for order in permutations(found)} - {text} or {None}
    assert ShuffleSentences(seed)(text, "q") in shuffled
    without = {" ".join(found[:i] + found[i + 1 :]) for i in range(len(found))} if len(found) > 1 else {None}
    assert DeleteSentence(seed=seed)(text, "q") in without


@some
@given(st.lists(st.sampled_from(["sea", "by", "Ely", "Wye", "New York", "Los Angeles", "Ely and"]), max_size=7))
def test_two_names_of_as_many_words_change_places(found):
    text = " ".join(["Go", "to", *(piece + "," for piece in found)])
    made = SwapEntities()(text, "q")
    names = [i for i, piece in enumerate(found) if piece[0].isupper()]
    swapped = set()
    for i in names:
        for j in names:
            one, other = found[i].removesuffix(" and"), found[j].removesuffix(" and")
            if one != other and one.count(" ") == other.count(" "):
                order = list(found)
                order[i], order[j] = found[i].replace(one, other), found[j].replace(other, one)
                swapped.add(" ".join(["Go", "to", *(piece + "," for piece in order)]))
    assert made in (swapped or {None})


@some
@given(mixed, mixed, st.integers(0, 9))
def test_terms_are_added_and_removed(text, query, seed):
    asked = {word.lower() for word in words(query)}
    terms = asked - STOPWORDS or asked
    have = Counter(words(text.lower()))
    made = RemoveTerm(seed)(text, query)
    assert (made is None) == (not terms & set(have) or len(have) == 1)
    if made is not None:
        ((gone, count),) = (have - Counter(words(made.lower()))).items()
        assert gone in terms
        assert count == have[gone]
        assert words(made) == [word for word in words(text) if word.lower() != gone]
    made = AddTerm(seed=seed, n=2)(text, query)
    assert (made is None) == (not set(have) - STOPWORDS - asked)
    if made is not None:
        ((added, count),) = (Counter(words(made.lower())) - have).items()
        assert (made, count) == (f"{text} {added} {added}", 2)
        assert added in set(have) - STOPWORDS - asked


@some
@given(any_text, mixed)
def test_what_a_probe_makes_is_what_it_claims(text, query):
    for probe in PROBES:
        pair = probe.pair(text, query)
        assert pair is None or (pair.baseline == text != pair.perturbed), probe
        assert pair is None or probe.holds(*pair[:2], query), probe


SAMPLE = (
    "The tides at Dover, in 2024, are higher than those at Calais. Neap tides come in the first days of a month! "
    "Engineers measured them twice in Rome."
)


@each_probe
def test_a_pair_that_is_broken_does_not_hold(probe):
    query = "Dover tides"
    pair = probe.pair(SAMPLE, query)
    assert probe.holds(*pair[:2], query)
    assert not probe.holds(SAMPLE, SAMPLE, query)
    assert not probe.holds("", "", query)
    assert not probe.holds(SAMPLE, f"{pair.perturbed} Zebras", query)
    assert not probe.holds(SAMPLE, f"Zebras {pair.perturbed}", query)
    untouched = max({*words(pair.baseline.lower())} & {*words(pair.perturbed)}, key=len)
    assert not probe.holds(SAMPLE, pair.perturbed.replace(untouched, "zebra"), query)


@pytest.mark.parametrize(
    ("probe", "baseline", "perturbed"),
    [
        (CaseFold(), "The Moon", "the Moon"),
        (RemovePunctuation(), "Ice, rain.", "Ice rain."),
        (RemovePunctuation(), "Ice, rain.", "rain Ice"),
        (RemoveStopWords(), "the ice and a moon", "the ice moon"),
        (RemoveStopWords(), "the ice and a moon", "moon ice"),
        (RemoveStopWords(), "the ice and a moon", "moon"),
        (Lemmatize(), "two tides were", "two tide were"),
        (Lemmatize("de"), "tides", "tide"),
        (Typos(), "high tides rise", "high tidse rsie"),
        (Typos(), "high tides rise", "high tdse rise"),
        (Typos(), "high tides rise", "high sides rise"),
        (Typos(), "high tides rise", "high tidess rise"),
        (Typos(), "high tides rise", "high tidres rise"),
        (Typos(), "the sea", "the sae"),
        (Typos(2), "high tides rise", "high tidse rise"),
        (Typos(terms="query"), "high tides rise", "hihg tides rise"),
        (Typos(kind="swap"), "high tides rise", "high tids rise"),
        (Typos(kind="drop"), "high tides rise", "high tidse rise"),
        (Typos(kind="keyboard"), "high tides rise", "high tipes rise"),
        (SwapNumbers(), "24 of 7", "25 of 7"),
        (SwapNumbers(), "24 of 7", "25 of 71"),
        (SwapNumbers(), "24 of 7", "25 in 8"),
        (Negate(), "it is so", "it is not not so"),
        (Negate(), "it is so", "not it is so"),
        (Negate(), "it is not so", "it is so not"),
        (ShuffleWords(), "high tides rise", "high tides tides"),
        (ShuffleWords(), "High, tides rise", "High tides, rise"),
        (ShuffleWords(), "high, tides rise", "tides high rise"),
        (ReverseWords(), "high tides rise", "rise high tides"),
        (ReverseWords(), "high, tides rise.", "rise tides high"),
        (ShuffleSentences(), "High tides. They rise.", "High rise. They tides."),
        (ReverseSentences(), "Ice. Rain. Hail.", "Hail. Ice. Rain."),
        (DeleteSentence(), "Ice. Rain. Hail.", "Ice."),
        (DeleteSentence("start"), "Ice. Rain. Hail.", "Ice. Rain."),
        (AddSentence("Ice."), "Rain.", "Rain. Hail."),
        (AddSentence("Ice.", "start"), "Rain.", "Rain. Ice."),
        (PrependQuery(), "Rain.", "Rain. tides"),
        (SwapEntities(), "to Ely, Wye and Rome", "to Wye, Rome and Ely"),
        (SwapEntities(), "to New York and Los Angeles", "to York New and Los Angeles"),
        (SwapEntities(), "to Ely and Wye, by sea", "to Wye and Ely by sea"),
        (AddTerm("ice"), "Rain.", "Rain. hail"),
        (AddTerm("ice", n=2), "Rain.", "Rain. ice"),
        (AddTerm("ice"), "Rain.", "Rain. ice tides"),
        (AddTerm(), "Rain and hail.", "Rain and hail. ice"),
        (RemoveTerm(), "ice, tides, tides", "ice, tides"),
        (RemoveTerm(), "ice, tides, rain", "ice"),
    ],
    ids=repr,
)
def test_a_pair_beside_the_claim_does_not_hold(probe, baseline, perturbed):
    assert not probe.holds(baseline, perturbed, "tides")


def made() -> list[str | None]:
    return [probe(text, query) for probe in PROBES for text in [SAMPLE, *TEXTS] for query in QUERIES]


def test_rows_are_perturbed_alike_in_every_order_and_process():
    rows = [(probe, text, query) for probe in PROBES for text in [SAMPLE, *TEXTS] for query in QUERIES]
    backwards = [pickle.loads(pickle.dumps(probe))(text, query) for probe, text, query in rows[::-1]]
    assert backwards[::-1] == made()
    program = "import sys, pickle, test_probe_laws; sys.stdout.buffer.write(pickle.dumps(test_probe_laws.made()))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
    )
    assert pickle.loads(done.stdout) == made()


@pytest.mark.parametrize(
    "make", [Typos, SwapNumbers, ShuffleWords, SwapEntities, DeleteSentence, AddTerm, RemoveTerm], ids=repr
)
def test_seeds_and_queries_draw_anew(make):
    made = {seed: make(seed=seed)(SAMPLE, "Dover tides Rome") for seed in range(20)}
    assert len(set(made.values())) > 1
    if make is not RemoveTerm:
        assert len({make()(SAMPLE, f"{query} tides") for query in range(20)}) > 1


@each_probe
def test_equal_settings_make_equal_probes(probe):
    same = pickle.loads(pickle.dumps(probe))
    assert (same, hash(same), repr(same)) == (probe, hash(probe), repr(probe))
    assert probe.with_settings() == probe
    assert sum(probe == other for other in PROBES) == 1
    assert eval(repr(probe)) == probe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Typos(0), "n is 0; give at least 1"),
        (lambda: Typos(kind="sms"), "unknown kind 'sms'; choose one of 'keyboard', 'swap', 'drop'"),
        (lambda: Typos(terms="all"), "unknown terms 'all'; choose one of 'any', 'query'"),
        (lambda: DeleteSentence("middle"), "unknown position 'middle'; choose one of 'start', 'end', 'random'"),
        (lambda: AddSentence("Ice.", "beside"), "unknown position 'beside'"),
        (lambda: AddSentence(""), "no sentence given"),
        (lambda: AddSentence([]), "no sentence given"),
        (lambda: AddSentence("  "), "no sentence given"),
        (lambda: AddSentence(["Ice.", ""]), "no sentence given"),
        (
            lambda: AddTerm("ice", "middle"),
            "unknown position 'middle'; choose one of 'end', 'start'",
        ),
        (lambda: AddTerm("ice", n=0), "n is 0; give at least 1"),
        (lambda: AddTerm(""), "noise"),
        (lambda: AddTerm("?!"), "noise"),
        (lambda: AddTerm([]), "noise"),
        (lambda: AddTerm(Idf.of([], str.split))("text", "q"), "terms of a stemmer"),
        (lambda: Lemmatize("xx")("tides", "q"), "xx"),
    ],
)
def test_an_unusable_option_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_of_another_kind_is_an_error():
    with pytest.raises(TypeError, match="noise"):
        AddTerm(3)("text", "q")
