"""The two sides of a pair correspond position by position, and the edit survives."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEXTS, build, tokenizer

from pyterrier_mechir import BiEncoder, CrossEncoder
from pyterrier_mechir.perturb import RandomFiller, ReverseWords
from pyterrier_mechir.text.alignment import FILL, Alignment, align, keep_edit, token_classes, with_fillers
from pyterrier_mechir.text.encoding import TOKEN_CLASSES, AlignedPair
from pyterrier_mechir.text.tokens import Tokens

SPELLINGS = np.array([f"<{i}>" for i in range(100)], dtype=object)
SPELLINGS[60] = SPELLINGS[10]
"""Ids 10 and 60 are one token, spelt without and with the mark of a preceding space."""


def tokens(ids: list[int], words: list[int] | None = None) -> Tokens:
    return Tokens(np.array(ids, dtype=np.int64), np.array(range(len(ids)) if words is None else words, dtype=np.int64))


def sides(aligned: Alignment) -> tuple[list[int], list[int], list[bool]]:
    return aligned.baseline.tolist(), aligned.perturbed.tolist(), aligned.edit.astype(bool).tolist()


def names(classes: np.ndarray) -> list[str]:
    return [TOKEN_CLASSES[i] for i in classes]


F, T = False, True


@pytest.mark.parametrize(
    ("baseline", "perturbed", "expected"),
    [
        pytest.param([1, 2], [1, 2, 3], ([1, 2, FILL], [1, 2, 3], [F, F, T]), id="insertion-end"),
        pytest.param([1, 2], [3, 4, 1, 2], ([FILL, FILL, 1, 2], [3, 4, 1, 2], [T, T, F, F]), id="insertion-start"),
        pytest.param([1, 2], [1, 3, 2], ([1, FILL, 2], [1, 3, 2], [F, T, F]), id="insertion-middle"),
        pytest.param([1, 5, 2], [1, 5, 5, 2], ([1, 5, FILL, 2], [1, 5, 5, 2], [F, F, T, F]), id="repeated-token"),
        pytest.param([1, 2, 3], [1, 3], ([1, 2, 3], [1, FILL, 3], [F, T, F]), id="deletion"),
        pytest.param([1, 2, 3], [1, 9, 3], ([1, 2, 3], [1, 9, 3], [F, T, F]), id="replacement"),
        pytest.param([1, 2, 3, 4], [1, 9, 4], ([1, 2, 3, 4], [1, 9, FILL, 4], [F, T, T, F]), id="shorter-replacement"),
        pytest.param([1, 2, 4], [1, 8, 9, 4], ([1, 2, FILL, 4], [1, 8, 9, 4], [F, T, T, F]), id="longer-replacement"),
        pytest.param(
            [1, 2, 3, 4, 5, 6],
            [9, 1, 2, 4, 5, 8, 6],
            ([FILL, 1, 2, 3, 4, 5, FILL, 6], [9, 1, 2, FILL, 4, 5, 8, 6], [T, F, F, T, F, F, T, F]),
            id="several-edits",
        ),
        pytest.param(
            [1, 2, 3, 4], [1, 3, 2, 4], ([1, FILL, 2, 3, 4], [1, 3, 2, FILL, 4], [F, T, F, T, F]), id="transposition"
        ),
        pytest.param([], [1, 2], ([FILL, FILL], [1, 2], [T, T]), id="empty-baseline"),
        pytest.param([1, 2], [], ([1, 2], [FILL, FILL], [T, T]), id="empty-perturbed"),
        pytest.param([], [], ([], [], []), id="both-empty"),
        pytest.param([1, 2], [1, 2], ([1, 2], [1, 2], [F, F]), id="identical"),
        pytest.param([10, 2], [7, 60, 2], ([FILL, 60, 2], [7, 60, 2], [T, F, F]), id="space-mark"),
        pytest.param([10, 2], [60, 2], ([60, 2], [60, 2], [F, F]), id="space-mark-alone"),
    ],
)
def test_fillers_stand_where_the_other_side_has_an_insertion(baseline, perturbed, expected):
    assert sides(align(tokens(baseline), tokens(perturbed), SPELLINGS)) == expected


def test_a_swap_of_equal_length_corresponds_one_to_one():
    aligned = align(tokens([1, 2, 10, 4]), tokens([2, 1, 60, 4]), SPELLINGS, "swap")
    assert sides(aligned) == ([1, 2, 60, 4], [2, 1, 60, 4], [T, T, F, F])


def test_a_permutation_has_the_tokens_of_the_baseline():
    aligned = align(tokens([1, 2, 10, 4]), tokens([2, 1, 60, 4]), SPELLINGS, "permute")
    assert sides(aligned) == ([1, 2, 10, 4], [2, 1, 10, 4], [T, T, F, F])
    assert sides(align(tokens([10, 2]), tokens([2, 60]), SPELLINGS, "permute")) == ([10, 2], [2, 10], [T, T])


def test_a_permutation_keeps_the_pieces_that_a_word_had_elsewhere():
    spellings = np.array(["two", "t", "wo", "neap", "tides"], dtype=object)
    aligned = align(tokens([1, 2, 4], [0, 0, 1]), tokens([4, 0], [0, 1]), spellings, "permute")
    assert sides(aligned) == ([1, 2, 4], [4, 1, 2], [T, T, T])
    assert aligned.perturbed_words.tolist() == [0, 1, 1]


@pytest.mark.parametrize("perturbed", [[1, 2, 8], [1, 2], [1, 2, 3, 3], [1, 2, 2]])
def test_other_words_are_no_permutation(perturbed):
    assert align(tokens([1, 2, 3]), tokens(perturbed), SPELLINGS, "permute") is None


def test_a_swap_of_unequal_length_is_compared():
    aligned = align(tokens([1, 2, 3]), tokens([1, 8, 9, 3]), SPELLINGS, "swap")
    assert sides(aligned) == ([1, 2, FILL, 3], [1, 8, 9, 3], [F, T, T, F])


def test_a_word_in_other_pieces_is_the_same_word():
    spellings = np.array(["two", "t", "wo", "neap", "tides"], dtype=object)
    aligned = align(tokens([1, 2, 4], [0, 0, 1]), tokens([3, 0, 4]), spellings)
    assert sides(aligned) == ([FILL, 0, 4], [3, 0, 4], [T, F, F])
    assert aligned.baseline_words.tolist() == [-1, 0, 1]


def test_a_word_is_edited_as_a_whole():
    aligned = align(tokens([1, 2, 3], [0, 0, 1]), tokens([1, 5, 3], [0, 0, 1]), SPELLINGS)
    assert sides(aligned) == ([1, 2, 3], [1, 5, 3], [T, T, F])


def test_words_are_kept_and_fillers_belong_to_none():
    aligned = align(tokens([1, 2, 3], [0, 0, 1]), tokens([1, 2, 7, 3], [0, 0, 1, 2]), SPELLINGS)
    assert aligned.baseline_words.tolist() == [0, 0, -1, 1]
    assert aligned.perturbed_words.tolist() == [0, 0, 1, 2]


def test_fillers_go_in_at_their_positions():
    aligned = align(tokens([1, 2, 3]), tokens([9, 1, 2]), SPELLINGS)
    filled = with_fillers(aligned, np.array([50, 51, 52, 53]))
    assert sides(filled) == ([50, 1, 2, 3], [9, 1, 2, 53], [T, F, F, T])
    assert aligned.baseline[0] == FILL


def test_cutting_drops_unedited_positions_from_the_end():
    aligned = align(tokens([1, 2, 3, 4]), tokens([1, 2, 3, 4, 9]), SPELLINGS)
    assert sides(keep_edit(aligned, 3)) == ([1, 2, FILL], [1, 2, 9], [F, F, T])
    assert sides(keep_edit(aligned, 1)) == ([FILL], [9], [T])
    assert keep_edit(aligned, 5) is aligned
    assert keep_edit(aligned, 0) is None


def test_cutting_keeps_edits_wherever_they_are():
    aligned = align(tokens([1, 2, 3, 4, 5]), tokens([8, 1, 2, 3, 9, 4, 5]), SPELLINGS)
    assert keep_edit(aligned, 4).perturbed.tolist() == [8, 1, 2, 9]
    assert keep_edit(aligned, 1) is None


def test_classes_compare_whole_words():
    query = tokens([1, 2, 3, 4], [0, 0, 1, 2])
    document = [1, 2, 7, 3, 1, 10]
    words = [0, 0, 1, 2, 3, 4]
    aligned = align(tokens(document, words), tokens([*document, 1, 2], [*words, 5, 5]), SPELLINGS)
    of_query, of_document = token_classes(aligned, query, SPELLINGS)
    assert names(of_query) == ["Q+", "Q+", "Q-", "Q-"]
    assert names(of_document) == ["D+", "D+", "OTHER", "D-", "OTHER", "OTHER", "EDIT", "EDIT"]


def test_classes_see_through_space_marks():
    aligned = align(tokens([60, 5]), tokens([60, 5, 60]), SPELLINGS)
    of_query, of_document = token_classes(aligned, tokens([10, 5]), SPELLINGS)
    assert names(of_query) == ["Q+", "Q-"]
    assert names(of_document) == ["D+", "D-", "EDIT"]


def test_a_deleted_term_is_the_edited_term():
    aligned = align(tokens([5, 6, 5]), tokens([5, 6]), SPELLINGS)
    of_query, of_document = token_classes(aligned, tokens([5, 7]), SPELLINGS)
    assert names(of_query) == ["Q+", "Q-"]
    assert names(of_document) == ["D+", "OTHER", "EDIT"]


def test_an_edited_term_outside_the_query_has_other_occurrences():
    aligned = align(tokens([5, 6, 7]), tokens([5, 6, 7, 5]), SPELLINGS)
    of_query, of_document = token_classes(aligned, tokens([6]), SPELLINGS)
    assert names(of_query) == ["Q-"]
    assert names(of_document) == ["D+", "D-", "OTHER", "EDIT"]


def test_classes_of_an_empty_query_and_baseline():
    of_query, of_document = token_classes(align(tokens([]), tokens([1]), SPELLINGS), tokens([]), SPELLINGS)
    assert names(of_query) == []
    assert names(of_document) == ["EDIT"]


SMALL_VOCABULARY = SPELLINGS[[0, 1, 2, 3, 0, 1]]
ids = st.lists(st.integers(0, 5), max_size=14)
kinds = st.sampled_from(["fill", "mask", "swap"])


@given(ids, ids, kinds)
def test_aligned_sides_are_of_equal_length_and_lose_no_token(baseline, perturbed, alignment):
    aligned = align(tokens(baseline), tokens(perturbed), SMALL_VOCABULARY, alignment)
    fields = (aligned.baseline, aligned.perturbed, aligned.baseline_words, aligned.perturbed_words, aligned.edit)
    assert {len(field) for field in fields} == {len(aligned)}
    left, right = (side[side != FILL] for side in (aligned.baseline, aligned.perturbed))
    assert right.tolist() == perturbed
    assert SMALL_VOCABULARY[left].tolist() == SMALL_VOCABULARY[np.array(baseline, dtype=np.int64)].tolist()
    assert not ((aligned.baseline == FILL) & (aligned.perturbed == FILL)).any()
    assert aligned.baseline_words[aligned.baseline != FILL].tolist() == list(range(len(baseline)))
    assert aligned.perturbed_words[aligned.perturbed != FILL].tolist() == list(range(len(perturbed)))


@given(ids, ids, kinds)
def test_the_edit_is_exactly_where_the_sides_disagree(baseline, perturbed, alignment):
    aligned = align(tokens(baseline), tokens(perturbed), SMALL_VOCABULARY, alignment)
    assert aligned.edit.tolist() == (aligned.baseline != aligned.perturbed).tolist()


@given(ids, st.randoms(use_true_random=False))
def test_a_permutation_has_the_same_tokens_on_both_sides(baseline, rng):
    order = rng.sample(baseline, len(baseline))
    aligned = align(tokens(baseline), tokens(order), SMALL_VOCABULARY, "permute")
    assert aligned.baseline.tolist() == baseline
    assert sorted(aligned.perturbed.tolist()) == sorted(baseline)
    assert SMALL_VOCABULARY[aligned.perturbed].tolist() == SMALL_VOCABULARY[np.array(order, dtype=np.int64)].tolist()
    assert aligned.edit.tolist() == (aligned.baseline != aligned.perturbed).tolist()


@given(ids, st.integers(0, 13), ids)
def test_an_insertion_costs_as_many_fillers_as_it_has_tokens(baseline, place, inserted):
    perturbed = [*baseline[:place], *inserted, *baseline[place:]]
    aligned = align(tokens(baseline), tokens(perturbed), SPELLINGS)
    if not set(baseline) & set(inserted):
        assert len(aligned) == len(perturbed)
        assert aligned.edit.sum() == len(inserted)


@given(ids, ids, st.integers(0, 20))
def test_cutting_keeps_the_edit_the_budget_and_the_order(baseline, perturbed, budget):
    aligned = align(tokens(baseline), tokens(perturbed), SMALL_VOCABULARY)
    kept = keep_edit(aligned, budget)
    n_edited = int(aligned.edit.sum())
    if len(aligned) > budget and (n_edited > budget or 2 * n_edited >= len(aligned)):
        assert kept is None
        return
    assert len(kept) == min(budget, len(aligned))
    for side in ("baseline", "perturbed"):
        assert getattr(kept, side)[kept.edit].tolist() == getattr(aligned, side)[aligned.edit].tolist()
        unedited = getattr(aligned, side)[~aligned.edit]
        assert getattr(kept, side)[~kept.edit].tolist() == unedited[: len(kept) - n_edited].tolist()
    words = kept.perturbed_words[kept.perturbed != FILL]
    assert (np.diff(words) > 0).all()


@given(ids, ids)
def test_fillers_change_nothing_but_filler_positions(baseline, perturbed):
    aligned = align(tokens(baseline), tokens(perturbed), SMALL_VOCABULARY)
    filled = with_fillers(aligned, np.arange(len(aligned)) + 1000)
    for before, after in ((aligned.baseline, filled.baseline), (aligned.perturbed, filled.perturbed)):
        expected = [i + 1000 if token == FILL else token for i, token in enumerate(before.tolist())]
        assert after.tolist() == expected


ARCHITECTURES = ["bert", "roberta", "xlm-roberta"]
STONE = "The moon and the tides. Two high tides each day"


@pytest.fixture(scope="module", params=ARCHITECTURES)
def bi_encoder(request):
    return request.param, BiEncoder(build(request.param, classifier=False))


def pair_of(ranker, query: str, baseline: str, perturbed: str, alignment: str = "fill", **options) -> AlignedPair:
    return ranker.align([query], [baseline], [perturbed], alignments=[alignment], **options)[0]


def edited(pair: AlignedPair) -> np.ndarray:
    return pair.classes == TOKEN_CLASSES.index("EDIT")


def test_no_token_outside_the_edit_changes(bi_encoder):
    _, ranker = bi_encoder
    for text in TEXTS:
        pair = pair_of(ranker, "day night", text, f"{text} day night")
        assert pair.perturbed.ids.tolist() == ranker.tokenizer(f"{text} day night")["input_ids"]
        assert pair.baseline.ids[~edited(pair)].tolist() == ranker.tokenizer(text)["input_ids"]
        assert (pair.baseline.ids == pair.perturbed.ids).tolist() == (~edited(pair)).tolist()
        assert pair.baseline.mask.all()
        assert pair.perturbed.mask.all()


def test_a_word_that_ceases_to_be_first_is_no_edit(bi_encoder):
    _, ranker = bi_encoder
    pair = pair_of(ranker, "tides", "heat night", "tides heat night")
    assert pair.perturbed.ids.tolist() == ranker.tokenizer("tides heat night")["input_ids"]
    assert names(pair.classes) == ["CLS", "EDIT", "OTHER", "OTHER", "SEP"]
    assert pair.baseline.ids[2:].tolist() == pair.perturbed.ids[2:].tolist()


@pytest.mark.parametrize("filler", ["a", "mask", "pad", "heat"])
def test_the_baseline_has_the_filler_that_was_asked_for(bi_encoder, filler):
    architecture, ranker = bi_encoder
    made = ranker.tokenizer
    special = {"mask": made.mask_token_id, "pad": made.pad_token_id}
    mark = {"bert": "", "roberta": "Ġ", "xlm-roberta": "▁"}[architecture]
    expected = special[filler] if filler in special else made.convert_tokens_to_ids(mark + filler)
    pair = pair_of(ranker, "day night", STONE, f"{STONE} day night", filler=filler)
    assert pair.baseline.ids[edited(pair)].tolist() == [expected, expected]
    assert expected != made.unk_token_id


def test_random_fillers_depend_on_the_row_alone(bi_encoder):
    _, ranker = bi_encoder
    queries, baselines = ["day night"] * len(TEXTS), TEXTS
    perturbed = [f"{text} day night heat" for text in TEXTS]

    def fillers(rows: list[int], seed: int = 0) -> list[list[int]]:
        aligned = ranker.align(
            *([column[i] for i in rows] for column in (queries, baselines, perturbed)),
            alignments=["fill"] * len(rows),
            filler=RandomFiller(draws=1, seed=seed),
        )
        return [pair.baseline.ids[edited(pair)].tolist() for pair in aligned]

    everything = fillers(list(range(len(TEXTS))))
    assert fillers(list(range(len(TEXTS)))[::-1]) == everything[::-1]
    assert [fillers([i])[0] for i in range(len(TEXTS))] == everything
    assert fillers(list(range(len(TEXTS))), seed=1) != everything
    assert len({tuple(row) for row in everything}) > 1
    spelt = [ranker.tokenizer.decode([token]).strip() for row in everything for token in row]
    assert all(word.isalpha() and len(word) > 2 for word in spelt)


def test_a_filler_of_several_tokens_is_an_error(bi_encoder):
    _, ranker = bi_encoder
    with pytest.raises(ValueError, match=r"'elephant' is \d tokens"):
        pair_of(ranker, "day", STONE, f"{STONE} day", filler="elephant")


@pytest.mark.parametrize("filler", ["mask", "pad"])
def test_a_special_token_that_the_tokenizer_lacks_is_an_error(filler):
    model, _ = build("bert", classifier=False)
    lacking = copy.deepcopy(tokenizer("bert"))
    setattr(lacking, f"{filler}_token", None)
    ranker = BiEncoder((model, lacking))
    with pytest.raises(ValueError, match=f"no {filler} token"):
        pair_of(ranker, "day", STONE, f"{STONE} day", filler=filler)


def test_masked_alignment_hides_the_inserted_positions_of_the_baseline(bi_encoder):
    _, ranker = bi_encoder
    pair = pair_of(ranker, "day night", STONE, f"{STONE} day night", alignment="mask")
    assert (pair.baseline.mask == 0).tolist() == edited(pair).tolist()
    assert edited(pair).sum() == 2
    assert pair.perturbed.mask.all()


def test_masked_alignment_leaves_the_query_of_a_cross_encoder_alone(cross_encoder):
    pair = pair_of(cross_encoder, "day night", "day", "day night", alignment="mask")
    assert names(pair.classes) == ["CLS", "Q-", "Q+", "SEP", "D-", "EDIT", "SEP"]
    assert pair.baseline.mask.tolist() == [1, 1, 1, 1, 1, 0, 1]


def test_masked_alignment_of_an_empty_document(cross_encoder):
    pair = pair_of(cross_encoder, "day night", "", "night", alignment="mask")
    assert names(pair.classes) == ["CLS", "Q-", "Q+", "SEP", "EDIT", "SEP"]
    assert pair.baseline.mask.tolist() == [1, 1, 1, 1, 0, 1]
    unchanged = pair_of(cross_encoder, "day night", "", "", alignment="mask")
    assert unchanged.baseline.mask.all()


def test_a_free_perturbation_cannot_be_aligned(bi_encoder):
    _, ranker = bi_encoder
    with pytest.raises(ValueError, match="'free'"):
        pair_of(ranker, "day", STONE, f"{STONE} day", alignment="free")


def test_token_classes_of_a_cross_encoder_pair(cross_encoder):
    baseline = "tides rise. the high tides of the day"
    pair = pair_of(cross_encoder, "two tides a day", baseline, f"{baseline} tides")
    query = ["Q-", "Q+", "Q-", "Q-"]
    document = ["D+", "OTHER", "OTHER", "OTHER", "OTHER", "D+", "OTHER", "OTHER", "D-", "EDIT"]
    assert names(pair.classes) == ["CLS", *query, "SEP", *document, "SEP"]
    assert pair.perturbed.types.tolist() == [0] * 6 + [1] * 11


def test_token_classes_of_a_word_of_several_pieces(cross_encoder):
    pair = pair_of(cross_encoder, "elephant day", "the elephant", "elephant the elephant")
    n = len(cross_encoder.tokenizer.tokenize("elephant"))
    assert n > 1
    document = [*["EDIT"] * n, "OTHER", *["D+"] * n]
    assert names(pair.classes) == ["CLS", *["Q+"] * n, "Q-", "SEP", *document, "SEP"]


def test_token_classes_of_a_bi_encoder_have_no_query_positions(bi_encoder):
    _, ranker = bi_encoder
    pair = pair_of(ranker, "the day", "the night and day night", "the night and day night night")
    assert names(pair.classes) == ["CLS", "D-", "D+", "OTHER", "D-", "D+", "EDIT", "SEP"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_edited_term_is_found_as_the_first_word_of_the_query(architecture):
    ranker = CrossEncoder(build(architecture, classifier=True))
    pair = pair_of(ranker, "two high tides", "day two", "day two two")
    of_query = names(pair.classes)[1 : names(pair.classes).index("SEP")]
    assert of_query[0] == "Q+"
    assert of_query.count("Q-") == 2


def test_an_appended_term_survives_the_cut_of_a_long_document():
    ranker = BiEncoder(build("bert", classifier=False), max_length=12)
    baselines = ["day " * 30, "heat night", "night " * 11]
    perturbed = [f"{text.strip()} heat" for text in baselines]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = ranker.align(["heat"] * 3, baselines, perturbed, alignments=["fill"] * 3)
    assert [str(warning.message)[:6] for warning in caught] == ["2 of 3"]
    assert caught[0].category is UserWarning
    assert names(pairs[0].classes) == ["CLS", *["OTHER"] * 9, "EDIT", "SEP"]
    heat = ranker.tokenizer.convert_tokens_to_ids("heat")
    for pair in pairs:
        assert len(pair.baseline.ids) == len(pair.perturbed.ids) <= 12
        assert pair.perturbed.ids[edited(pair)].tolist() == [heat]


def test_a_long_document_leaves_a_cross_encoder_its_query():
    ranker = CrossEncoder(build("bert", classifier=True), max_length=12)
    with pytest.warns(UserWarning, match="1 of 1"):
        pair = pair_of(ranker, "heat pump", "day " * 30, "day " * 30 + "heat")
    assert names(pair.classes) == ["CLS", "Q+", "Q-", "SEP", *["OTHER"] * 6, "EDIT", "SEP"]


@pytest.mark.filterwarnings("ignore:.* documents are longer")
def test_an_edit_that_is_too_long_by_itself_gives_no_pair():
    ranker = BiEncoder(build("bert", classifier=False), max_length=6)
    assert pair_of(ranker, "day", "heat", "heat" + " day" * 4) is None
    assert pair_of(ranker, "day", "heat", "heat" + " day" * 3) is not None


def test_what_is_cut_and_what_is_lost_is_told_apart():
    ranker = BiEncoder(build("bert", classifier=False), max_length=8)
    baselines = ["heat day", "day " * 9, "day night heat day night"]
    perturbed = ["heat day day", "day " * 9 + "heat", "day night heat day night " * 2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = ranker.align(["heat"] * 3, baselines, perturbed, alignments=["fill", "fill", "mask"])
    assert [pair is None for pair in pairs] == [False, False, True]
    told = [str(warning.message) for warning in caught]
    assert [message[:6] for message in told] == ["1 of 3", "1 of 3"]
    assert "they were cut so that the perturbation stays" in told[0]
    assert "cannot be cut without losing the perturbation; their effects are missing" in told[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moved_words_take_their_tokens_with_them(architecture):
    ranker = BiEncoder(build(architecture, classifier=False))
    text = "the tides, and the warm night are high, and tides rise"
    (pair,) = ranker.align(["tides"], [text], [ReverseWords()(text, "tides")], alignments=["permute"])
    assert sorted(pair.baseline.ids.tolist()) == sorted(pair.perturbed.ids.tolist())
    assert pair.baseline.ids.tolist() == ranker.tokenizer(text)["input_ids"]
    assert (pair.baseline.ids != pair.perturbed.ids).any()


def test_other_words_in_a_permutation_are_counted():
    ranker = BiEncoder(build("bert", classifier=False))
    with pytest.warns(UserWarning, match="1 of 1 documents have other words after a perturbation that should only"):
        assert pair_of(ranker, "day", "day night", "day heat", alignment="permute") is None


def test_pairs_name_their_query_by_order_of_appearance(cross_encoder):
    pairs = cross_encoder.align(
        ["day", "heat", "day"], TEXTS[:3], [f"{text} day" for text in TEXTS[:3]], alignments=["fill"] * 3
    )
    assert [pair.query for pair in pairs] == [0, 1, 0]
