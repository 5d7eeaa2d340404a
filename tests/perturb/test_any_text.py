"""Every perturbation keeps its promise on rows of any characters, and in a time that grows as the text does."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache, partial

import numpy as np
import pytest
from any_text import rows
from hypothesis import HealthCheck, given, settings
from quick import is_quick
from small_models import build

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.perturb import AND, REG, STMC2, TFC1, AddTerm, Negate, SwapEntities, Typos
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.catalogue import CATALOGUE
from pyterrier_mechir.perturb.probes.order import sentences
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import EDIT
from pyterrier_mechir.text.words import Words, lowercase_words, marks, words, words_and_marks

some = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

each_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.label)


@cache
def ranker(architecture: str = "bert") -> Ranker:
    return BiEncoder(build(architecture, False, max_position_embeddings=4200), max_length=4096)


@given(rows())
@some
def test_a_text_is_its_words_and_what_is_between_them(row):
    text = row[0]
    made = Words(text)
    assert str(made) == text
    assert words(text) == list(made)
    assert Counter(words_and_marks(text)) == Counter([*made, *marks(text)])
    assert [text[begin:end] for begin, end in made.spans()] == list(made)
    for place, (begin, end) in enumerate(made.cuts(range(len(made)))):
        assert text[:begin] + text[end:] == str(made.without({place}))


@given(rows())
@some
def test_every_pair_is_the_same_each_time_and_what_its_perturbation_claims(row):
    text, query = row
    for entry in CATALOGUE:
        made = entry.perturbation.pair(text, query)
        if made is None:
            continue
        assert made == entry.perturbation.pair(text, query), entry.label
        assert entry.perturbation.holds(made.baseline, made.perturbed, query), entry.label
        before, after = words(made.baseline), words(made.perturbed)
        if entry.perturbation.alignment == "permute":
            assert Counter(before) == Counter(after), entry.label
        elif entry.perturbation.alignment == "swap":
            assert (len(before), marks(made.baseline)) == (len(after), marks(made.perturbed)), entry.label
        elif not entry.perturbation.own_baseline:
            shorter, longer = sorted((before, after), key=len)
            assert not Counter(shorter) - Counter(longer), entry.label


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
@given(row=rows())
@settings(some, max_examples=6)
def test_the_sides_of_every_pair_line_up(architecture, row):
    text, query = row
    one = ranker(architecture)
    kinds = [entry.perturbation for entry in CATALOGUE if entry.perturbation.alignment != "free"]
    made = [(kind.alignment, pair) for kind in kinds if (pair := kind.pair(text, query)) is not None]
    alignments, baselines, perturbed = zip(*((kind, *pair[:2]) for kind, pair in made), strict=True)
    aligned = one.align([query] * len(made), baselines, perturbed, alignments=alignments)
    plain = one.sequences.plain([query] * len(made), perturbed)
    for kind, pair, whole in zip(alignments, aligned, plain, strict=True):
        if pair is None:
            continue
        before, after = pair.baseline, pair.perturbed
        assert len(before.ids) == len(after.ids) == len(pair.classes) == len(pair.words)
        both = (before.mask & after.mask).astype(bool)
        assert np.array_equal(before.ids[both & (pair.classes != EDIT)], after.ids[both & (pair.classes != EDIT)])
        if kind == "permute":
            assert Counter(before.ids.tolist()) == Counter(after.ids.tolist())
        else:
            own = (pair.words >= 0) | (pair.segments < 0)
            assert np.array_equal(after.ids[own & after.mask.astype(bool)], whole.ids)


def long_text(kind: str, n: int = 1200) -> str:
    """A long text, of many sentences, of one word again and again, of one word, or of words without a letter."""
    rng = random.Random(0)
    if kind == "one word again and again":
        return "tides " * n
    if kind == "one word":
        return "ocean tides " + "a" * (10 * n) + "." + "ocean."
    if kind == "marks":
        return "(tides), ocean!? " * (n // 2)
    some_words = [
        *["the", "moon", "pulls", "an", "ocean", "and", "its", "tides", "can", "rise", "not", "high", "is"],
        *["Dover", "Paris", "1999", "42", "rivers", "running"],
    ]
    ends = [*[" "] * 8, ", ", ". ", ".\n", "; "]
    return "".join(rng.choice(some_words) + rng.choice(ends) for _ in range(n))


@pytest.mark.parametrize("kind", ["sentences", "one word again and again", "one word", "marks"])
def test_no_perturbation_takes_long_on_a_long_text(kind):
    one, text = ranker(), long_text(kind)
    more = [TFC1(position="beside"), TFC1(replace="one"), TFC1(n=3, position="random"), Typos(), AddTerm(), Negate()]
    more += [AND(), REG(), STMC2({"tides": ["currents"]}, position="start"), SwapEntities()]

    def perturb(perturbation: Perturbation, query: str) -> None:
        pair = perturbation.pair(text, query)
        if pair is not None:
            assert perturbation.holds(pair.baseline, pair.perturbed, query), perturbation
            one.align([query], [pair.baseline], [pair.perturbed], alignments=[perturbation.alignment])

    for perturbation in [*(entry.perturbation for entry in CATALOGUE), *more]:
        for query in ("ocean tides", '"high tides" Dover'):
            assert is_quick(partial(perturb, perturbation, query), 0.4), (perturbation, query)


@pytest.mark.parametrize(
    "text",
    [
        "\u24b6 TIDE",  # a circled letter is a mark, which has a lower case all the same
        "\u039f\u0394\u039f\u03a3.\u0391 TIDE",  # the last sigma of a word, before a mark with a letter after it
        "Tides rise.\x1cMoons turn.\x1dBats fly.",  # separators that only some notions of space have
        "\u0130STANBUL\u200b \u0301TIDE",  # a letter of two in lower case, a mark of no width
    ],
)
def test_case_and_marks_mean_one_thing_for_all(text):
    for entry in CATALOGUE:
        made = entry.perturbation.pair(text, "\u03bf\u03b4\u03bf\u03c2 tide")
        assert made is None or entry.perturbation.holds(made.baseline, made.perturbed, "\u03bf\u03b4\u03bf\u03c2 tide")
    assert lowercase_words(text) == Words(text).keys
    assert marks("a\x1cb\x1fc\x85d\u2028e") == []
    assert words_and_marks("a\x1cb") == ["a", "b"]


def test_a_lone_surrogate_is_a_mark_of_its_sentence():
    text = "Tides rise\ud800. Tides fall. Moons \udfff turn."
    for entry in CATALOGUE:
        made = entry.perturbation.pair(text, "tides")
        assert made is None or entry.perturbation.holds(made.baseline, made.perturbed, "tides")
    assert sentences(text) == ("Tides rise\ud800.", "Tides fall.", "Moons \udfff turn.")
