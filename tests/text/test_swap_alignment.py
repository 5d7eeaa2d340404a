"""Sides of as many words or the same words, and the law of the first layer for every alignment."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import build
from tolerance import assert_near_effects, widened

from pyterrier_mechir import BiEncoder, CrossEncoder, PairScorer, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import (
    LB1,
    LNC1,
    PROX1,
    STMC2,
    TFC1,
    TFC2,
    TFC3,
    TFLNC,
    AddSentence,
    CaseFold,
    DeleteSentence,
    Lemmatize,
    ReverseWords,
    ShuffleWords,
    Typos,
)
from pyterrier_mechir.text.alignment import FILL, Alignment, align, keep_edit
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.tokens import Tokens

pytestmark = pytest.mark.usefixtures("one_thread")

SPELLINGS = np.array([f"<{i}>" for i in range(100)], dtype=object)
SPELLINGS[60] = SPELLINGS[10]
"""Ids 10 and 60 are one token, spelt without and with the mark of a preceding space."""


def tokens(*words: list[int]) -> Tokens:
    """Words as lists of their pieces."""
    numbers = [number for number, pieces in enumerate(words) for _ in pieces]
    ids = [piece for pieces in words for piece in pieces]
    return Tokens(np.array(ids, dtype=np.int64), np.array(numbers, dtype=np.int64))


def sides(aligned: Alignment) -> tuple[list[int], list[int], list[int]]:
    return aligned.baseline.tolist(), aligned.perturbed.tolist(), aligned.edit.astype(int).tolist()


# Token by token


@pytest.mark.parametrize(
    ("baseline", "perturbed", "expected"),
    [
        pytest.param(
            [[1], [2], [3]], [[1], [7, 8], [3]], ([1, 2, FILL, 3], [1, 7, 8, 3], [0, 1, 1, 0]), id="more-pieces"
        ),
        pytest.param(
            [[1], [7, 8, 9], [3]],
            [[1], [2], [3]],
            ([1, 7, 8, 9, 3], [1, 2, FILL, FILL, 3], [0, 1, 1, 1, 0]),
            id="fewer-pieces",
        ),
        pytest.param(
            [[1], [2, 3], [4]],
            [[5, 6], [7], [4]],
            ([1, FILL, 2, 3, 4], [5, 6, 7, FILL, 4], [1, 1, 1, 1, 0]),
            id="as-many-pieces-shifted",
        ),
        pytest.param(
            [[1, 2], [3], [4]],
            [[1], [3, 5], [4]],
            ([1, 2, 3, FILL, 4], [1, FILL, 3, 5, 4], [1, 1, 1, 1, 0]),
            id="shifted-with-common-pieces",
        ),
        pytest.param([[10, 1], [3]], [[60, 1], [4]], ([60, 1, 3], [60, 1, 4], [0, 0, 1]), id="space-mark"),
        pytest.param([[1], [2]], [[3], [4, 5]], ([1, 2, FILL], [3, 4, 5], [1, 1, 1]), id="every-word"),
        pytest.param([[1], [2], [1]], [[2], [1], [2]], ([1, 2, 1], [2, 1, 2], [1, 1, 1]), id="words-in-other-places"),
        pytest.param([[1]], [[1]], ([1], [1], [0]), id="identical"),
        pytest.param([], [], ([], [], []), id="empty"),
    ],
)
def test_words_of_a_swap_correspond_one_to_one(baseline, perturbed, expected):
    assert sides(align(tokens(*baseline), tokens(*perturbed), SPELLINGS, "swap")) == expected


def test_a_word_in_other_pieces_is_no_edit_of_a_swap():
    spellings = np.array(["two", "t", "wo", "tides", "ebb"], dtype=object)
    aligned = align(tokens([1, 2], [3]), tokens([0], [4]), spellings, "swap")
    assert sides(aligned) == ([0, 3], [0, 4], [0, 1])
    assert aligned.baseline_words.tolist() == aligned.perturbed_words.tolist() == [0, 1]


def test_a_swap_of_more_words_is_found_by_comparing():
    aligned = align(tokens([1], [2, 3], [4]), tokens([1], [5], [6], [4]), SPELLINGS, "swap")
    assert sides(aligned) == ([1, 2, 3, 4], [1, 5, 6, 4], [0, 1, 1, 0])
    aligned = align(tokens([1], [2], [2], [4]), tokens([1], [5], [4]), SPELLINGS, "swap")
    assert sides(aligned) == ([1, 2, 2, 4], [1, 5, FILL, 4], [0, 1, 1, 0])


def test_a_word_of_equal_pieces_is_edited_as_a_whole():
    aligned = align(tokens([1, 2], [3], [4], [6]), tokens([1, 5], [3], [4], [6]), SPELLINGS, "swap")
    assert sides(aligned) == ([1, 2, 3, 4, 6], [1, 5, 3, 4, 6], [1, 1, 0, 0, 0])
    assert keep_edit(aligned, 2).perturbed.tolist() == [1, 5]
    assert keep_edit(aligned, 1) is None


@pytest.mark.parametrize(
    ("baseline", "perturbed", "expected"),
    [
        ([[1], [2], [3]], [[3], [2], [1]], ([1, 2, 3], [3, 2, 1], [1, 0, 1])),
        ([[1, 2], [3]], [[3], [1, 2]], ([1, 2, 3], [3, 1, 2], [1, 1, 1])),
        ([[10], [2]], [[2], [60]], ([10, 2], [2, 10], [1, 1])),
    ],
)
def test_tokens_of_a_permutation_correspond_by_place(baseline, perturbed, expected):
    assert sides(align(tokens(*baseline), tokens(*perturbed), SPELLINGS, "permute")) == expected


words = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), max_size=8)


@settings(deadline=None)
@given(st.data())
def test_a_swap_keeps_every_word_in_its_place(data):
    baseline = data.draw(words)
    perturbed = data.draw(
        st.lists(st.sampled_from([[0], [1, 2], [3, 4, 0], *baseline]), min_size=len(baseline), max_size=len(baseline))
    )
    aligned = align(tokens(*baseline), tokens(*perturbed), SPELLINGS, "swap")
    assert len(aligned) == sum(max(len(a), len(b)) for a, b in zip(baseline, perturbed, strict=True))
    assert aligned.baseline[aligned.baseline != FILL].tolist() == [piece for word in baseline for piece in word]
    assert aligned.perturbed[aligned.perturbed != FILL].tolist() == [piece for word in perturbed for piece in word]
    both = (aligned.baseline_words >= 0) & (aligned.perturbed_words >= 0)
    assert aligned.baseline_words[both].tolist() == aligned.perturbed_words[both].tolist()
    for number, (before, after) in enumerate(zip(baseline, perturbed, strict=True)):
        positions = (aligned.baseline_words == number) | (aligned.perturbed_words == number)
        assert set(aligned.edit[positions]) == {before != after}


# With rankers


@pytest.fixture(scope="module", params=["bert bi", "bert cross", "roberta bi", "roberta cross"])
def model(request):
    architecture, kind = request.param.split()
    made = build(architecture, classifier=kind == "cross")
    return BiEncoder(made, pooling="mean") if kind == "bi" else CrossEncoder(made)


@pytest.mark.parametrize("filler", ["a", "mask", "random"])
def test_the_shorter_word_of_a_swap_is_filled_up(model, filler):
    baseline, perturbed = "The night is warm and old", "The expands is engineers and old"
    (pair, *_) = model.align(["night"], [baseline], [perturbed], alignments=["swap"], filler=filler)
    edit = pair.classes == TOKEN_CLASSES.index("EDIT")
    n_pieces = [len(ids) for ids in model.vocabulary.pieces(["night", "expands", "warm", "engineers"])]
    assert edit.sum() == max(n_pieces[:2]) + max(n_pieces[2:])
    assert min(n_pieces) < max(n_pieces)
    assert (pair.baseline.ids != pair.perturbed.ids).tolist() == edit.tolist()
    assert pair.baseline.mask.all() and pair.perturbed.mask.all()
    plain = model.tokenizer("night", perturbed) if model.reads_query else model.tokenizer(perturbed)
    assert pair.perturbed.ids.tolist() == plain["input_ids"]


TEXT = "The moon pulls the ocean, and 2 tides rise. The tides of the ocean are high. It is warm at night."
QUERY = "ocean tides neap"
IDF = {"ocean": 3.0, "tides": 3.1, "neap": 3.0}

BY_ALIGNMENT = {
    "fill": [TFC1(), TFC1(replace="all"), TFC1(position="beside", n=2), TFC2()],
    "swap": [
        TFC3(IDF),
        LB1(),
        STMC2({"neap": ["spring"]}),
        STMC2({"neap": ["spring"]}, n=2),
        Typos(n=3),
        Lemmatize(),
    ],
    "permute": [PROX1(), ShuffleWords(), ReverseWords()],
    "mask": [LNC1("walls are high"), TFLNC(), AddSentence("Walls are high."), DeleteSentence()],
}
CASES = [
    pytest.param(made, alignment, id=f"{alignment}-{made!r}")
    for alignment, all_of in BY_ALIGNMENT.items()
    for made in all_of
]


def patched(model, made, direction: str, **options) -> pd.DataFrame:
    texts = [TEXT, f"{TEXT} {TEXT}", "Ocean tides and ocean tides, 10 high tides. It is warm. It is old."]
    frame = pd.DataFrame({"qid": "1", "query": QUERY, "docno": list("abc"), "text": texts})
    stage = PatchScorer(model, "resid_pre", direction=direction, min_delta=0, **options)
    return (PerturbDocs(made) >> stage)(frame)


def first_layer(out: pd.DataFrame) -> np.ndarray:
    return np.stack(list(out["patch_scores"]))[:, 0]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("made", "alignment"), [case for case in CASES if case.values[1] != "mask"])
def test_the_input_of_the_first_layer_carries_the_whole_difference(model, made, alignment, direction):
    assert made.alignment == alignment
    out = patched(model, made, direction)
    applied = out["score_perturbed"].notna()
    assert applied.any()
    out = out[applied]
    source = out["score_perturbed" if direction == "denoise" else "score_baseline"]
    np.testing.assert_allclose(first_layer(out), source, rtol=widened(1e-5), atol=widened(1e-5))
    assert_near_effects(np.stack(list(out["patch_effect"]))[:, 0], 1, out)


@pytest.mark.parametrize(("made", "alignment"), [case for case in CASES if case.values[1] == "mask"])
def test_what_a_mask_hides_from_a_run_does_not_move_it(model, made, alignment):
    assert made.alignment == alignment
    direction, side = ("noise", "perturbed") if made == DeleteSentence() else ("denoise", "baseline")
    out = patched(model, made, direction)
    assert out["score_perturbed"].notna().all()
    np.testing.assert_allclose(first_layer(out), out[f"score_{side}"], rtol=widened(1e-5), atol=widened(1e-5))
    assert (out["score_baseline"] - out["score_perturbed"]).abs().min() > 1e-4


def test_folded_case_moves_only_a_ranker_that_sees_it(model):
    frame = pd.DataFrame({"qid": ["1"], "query": QUERY, "docno": "a", "text": TEXT})
    out = PairScorer(model, perturbation=CaseFold())(frame)
    assert (abs(out["score_perturbed"] - out["score_baseline"]).item() > 1e-3) == ("Roberta" in model.name)


@pytest.mark.bits
def test_no_difference_at_all_has_no_effect():
    uncased = BiEncoder(build("bert", classifier=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        out = patched(uncased, CaseFold(), "denoise")
    assert (out["score_perturbed"] == out["score_baseline"]).all()
    assert np.isnan(np.stack(list(out["patch_effect"]))).all()
