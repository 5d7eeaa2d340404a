"""From the units of a text to the positions of a pair: which tokens are of which words, whatever the alignment."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5

from pyterrier_mechir import BiEncoder, CrossEncoder, GenerativeReranker, MonoT5
from pyterrier_mechir.text.alignment import align
from pyterrier_mechir.text.tokens import Tokens
from pyterrier_mechir.text.unit_slots import moved, slots_of, strongest
from pyterrier_mechir.text.units import word_spans

SPELLINGS = np.array([f"<{i}>" for i in range(100)], dtype=object)
SPELLINGS[90:93] = ["ab", "a", "b"]

PROMPTS = {
    "inline": "Query: {query} Document: {document} Relevant:",
    "document first": "Document: {document}\n\nQuery: {query}\nyes or no:",
}
KINDS = [
    "bert",
    "xlm-roberta",
    "modernbert",
    "prefixed",
    "t5",
    *(f"{d} {p}" for d in ("llama", "qwen2") for p in PROMPTS),
]


def ranker_of(kind: str):
    if kind == "t5":
        return MonoT5(build_t5())
    if kind == "prefixed":
        return BiEncoder(build("roberta", False), doc_prefix="passage: tides ")
    if kind in ("bert", "xlm-roberta"):
        return CrossEncoder(build(kind, True))
    if kind == "modernbert":
        return BiEncoder(build(kind, False))
    decoder, _, prompt = kind.partition(" ")
    loaded = build_decoder(decoder, "AutoModelForCausalLM")
    return GenerativeReranker(loaded, template=PROMPTS[prompt], yes=5, no=7)


@pytest.fixture(scope="module", params=KINDS)
def ranker(request):
    return ranker_of(request.param)


def aligned(ranker, baseline: str, perturbed: str, alignment: str, query: str = QUERIES[0]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (pair,) = ranker.align([query], [baseline], [perturbed], alignments=[alignment], located=True)
    return pair


def spelt(ranker, ids) -> str:
    """What tokens spell, in small letters and without spaces and marks of them."""
    return "".join(ranker.vocabulary.spellings[ids]).lower()


def assert_located(ranker, pair, baseline: str) -> None:
    """Each word's tokens spell it, with at most marks beside it, and no other token is made of its characters."""
    spans = word_spans(baseline)
    slots = slots_of(pair.spans, spans, np.arange(len(spans)), len(spans))
    assert (slots.sum(axis=0) <= 1).all()
    for slot, (begin, end) in zip(slots, spans, strict=True):
        found = "".join(filter(str.isalnum, spelt(ranker, pair.baseline.ids[slot])))
        assert found == baseline[begin:end].lower()


MOVES = {
    "after": (f"{TEXTS[0]} tides tides", "fill"),
    "before": (f"tides {TEXTS[0]}", "fill"),
    "within": (TEXTS[0].replace("two high", "two tides high"), "mask"),
    "without": (TEXTS[0].replace(" ocean", ""), "fill"),
    "without the first": (TEXTS[0].removeprefix("The "), "fill"),
    "swap": (TEXTS[0].replace("ocean", "day"), "swap"),
    "longer": (TEXTS[0].replace("ocean", "heat pump"), "swap"),
    "permute": ("so most coasts " + TEXTS[0].replace("so most coasts ", ""), "permute"),
}


@pytest.mark.parametrize("move", MOVES)
def test_the_words_of_the_baseline_are_found_whatever_the_alignment(ranker, move):
    perturbed, alignment = MOVES[move]
    assert_located(ranker, aligned(ranker, TEXTS[0], perturbed, alignment), TEXTS[0])


@settings(deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "llama inline", "qwen2 document first"])
def test_any_words_taken_out_and_put_in_leave_the_others_where_they_are(kind, data, rankers):
    ranker = rankers[kind]
    words = data.draw(st.lists(st.sampled_from(" ".join(TEXTS[:4]).split()), min_size=1, max_size=12))
    keeps = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    more = data.draw(st.lists(st.sampled_from(TEXTS[6].split()), max_size=3))
    place = data.draw(st.integers(0, len(words)))
    left = [word for word, kept in zip(words, keeps, strict=True) if kept]
    baseline, perturbed = " ".join(words), " ".join([*left[:place], *more, *left[place:]])
    assert_located(ranker, aligned(ranker, baseline, perturbed, "fill"), baseline)


@pytest.fixture(scope="module")
def rankers():
    return {kind: ranker_of(kind) for kind in ("bert", "xlm-roberta", "llama inline", "qwen2 document first")}


def test_queries_are_located_where_queries_vary():
    for kind in ("bert", "prefixed", "qwen2 document first"):
        ranker = ranker_of(kind).facing("query")
        query = "neap tides of the moon"
        pair = aligned(ranker, query, "neap tides of the moon today", "fill", query=TEXTS[1])
        assert_located(ranker, pair, query)


@pytest.mark.parametrize("side", ["right", "left"])
def test_cut_texts_have_the_words_that_are_left(side):
    model, made = build("bert", True)
    tokenizer = copy.deepcopy(made)
    tokenizer.truncation_side = side
    ranker = CrossEncoder((model, tokenizer), max_length=20)
    text = "one two moon ocean tides day night bats heat pump house rome roads stone iron bridge"
    pair = aligned(ranker, text, text.replace("tides", "tides tides"), "fill", query="tides")
    spans = word_spans(text)
    slots = slots_of(pair.spans, spans, np.arange(len(spans)), len(spans))
    names = [text[begin:end] for begin, end in spans]
    present = [name for name, slot in zip(names, slots, strict=True) if slot.any()]
    assert "tides" in present and len(present) < len(names)
    assert present == ([name for name in names if name in present])
    assert (names[0] in present) == (side == "right") and (names[-1] in present) == (side == "left")
    for name, slot in zip(names, slots, strict=True):
        assert spelt(ranker, pair.baseline.ids[slot]) in (name, "")


def tokens(ids: list[int], words: list[int], spans: list[tuple[int, int]]) -> Tokens:
    return Tokens(np.array(ids), np.array(words), np.array(spans, dtype=np.int64))


def test_a_word_of_other_pieces_has_the_characters_of_the_baseline():
    """The baseline has "ab" whole at characters 0 to 2, the perturbed side as "a" and "b" after a new word."""
    baseline = tokens([90, 2], [0, 1], [(0, 2), (3, 6)])
    perturbed = tokens([3, 91, 92, 2], [0, 1, 1, 2], [(0, 3), (4, 5), (5, 6), (7, 10)])
    found = align(baseline, perturbed, SPELLINGS)
    assert found.baseline.tolist() == [-1, 91, 92, 2]
    assert found.spans.tolist() == [[0, 0], [0, 1], [1, 2], [3, 6]]
    whole = align(perturbed, baseline, SPELLINGS)
    assert whole.baseline.tolist() == [3, 90, 2]
    assert whole.spans.tolist() == [[0, 3], [4, 6], [7, 10]]


def test_a_permutation_has_the_characters_of_the_baseline_in_place():
    baseline, perturbed = (tokens(ids, [0, 1], [(0, 1), (2, 3)]) for ids in ([1, 2], [2, 1]))
    assert align(baseline, perturbed, SPELLINGS, "permute").spans.tolist() == [[0, 1], [2, 3]]


def test_the_strongest_are_those_of_greatest_absolute_score():
    scores = np.array([0.5, -2.0, np.nan, 0.5, 1.0], dtype=np.float32)
    assert strongest(scores, 3).tolist() == [1, 4, 0]
    assert strongest(scores, 9).tolist() == [1, 4, 0, 3]
    assert strongest(np.array([]), 3).tolist() == []


def test_units_move_with_the_words_that_a_text_and_another_share():
    text, other = "The moon pulls. Bats find two.", "Bats today find two moons."
    spans = np.array([(4, 8), (16, 20), (26, 29), (16, 29), (14, 15)])
    assert moved(spans, text, other).tolist() == [[0, 0], [0, 4], [16, 19], [0, 19], [0, 0]]
    assert moved(spans, text, text) is spans
    assert moved(spans[:0], text, other).shape == (0, 2)


def test_a_slot_has_every_token_that_is_made_of_characters_of_its_unit():
    of_tokens = np.array([(0, 0), (0, 2), (2, 5), (5, 9), (9, 9), (10, 12)])
    spans = np.array([(9, 12), (0, 4), (6, 8), (0, 0)])
    slots = slots_of(of_tokens, spans, np.array([1, 0, 3]), 4)
    assert [np.flatnonzero(slot).tolist() for slot in slots] == [[1, 2], [5], [], []]
