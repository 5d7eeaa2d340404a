"""Random fillers: as many pieces, as rare, never of the query, drawn per row, and averaged."""

from __future__ import annotations

import dataclasses
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import QUERIES, TEXTS, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tolerance import widened

from pyterrier_mechir import PairScorer, PatchScorer
from pyterrier_mechir.perturb import Idf, RandomFiller, perturbation
from pyterrier_mechir.text.alignment import FILL, align
from pyterrier_mechir.text.fillers import Fillers
from pyterrier_mechir.text.tokens import tokenise
from pyterrier_mechir.text.vocabulary import Vocabulary
from pyterrier_mechir.text.words import lowercase_words

pytestmark = pytest.mark.usefixtures("one_thread")
some = settings(max_examples=100, deadline=None, derandomize=True)

CORPUS = [*TEXTS, "An engineer expands the straight hundred bridges, moving before burning.", "insects insects bulges"]
LONG = "insects bulges straight bridge expands shrinks engineers before breathes hundred outside moving burning coasts"


def vocabulary_of(words: list[str], continued: list[str] = (), *, cased: bool = True) -> Vocabulary:
    """The vocabulary of a tokenizer that has these words and these ends of words."""
    pieces = ["[UNK]", *words, *(f"##{end}" for end in continued)]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return Vocabulary(tf.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))


TINY = Vocabulary(tokenizer("bert"))


def drawn(
    filler: RandomFiller, baseline: str, perturbed: str, query: str = "q", vocabulary: Vocabulary = TINY
) -> list[list[list[str]]]:
    """For each draw, the fillers of each word of one side that the other lacks, as tokens."""
    sides = tokenise(vocabulary.tokenizer, [baseline, perturbed])
    aligned = align(*sides, vocabulary.spellings)
    of_draws = []
    for ids in Fillers(filler, vocabulary).ids(aligned, query, baseline):
        words: dict[tuple[str, int], list[str]] = {}
        for i, number in enumerate(ids.tolist()):
            for name, lacking, having in (
                ("perturbed", aligned.baseline, aligned.perturbed_words),
                ("baseline", aligned.perturbed, aligned.baseline_words),
            ):
                if lacking[i] == FILL:
                    token = vocabulary.tokenizer.convert_ids_to_tokens(number)
                    words.setdefault((name, int(having[i])), []).append(token)
        of_draws.append(list(words.values()))
    return of_draws


def one_word(pieces: list[str]) -> str | None:
    """The word that some pieces are, if they are one."""
    continued = [piece.startswith("##") for piece in pieces]
    return "".join(pieces).replace("##", "") if continued == [False] + [True] * (len(pieces) - 1) else None


def many(filler: RandomFiller, perturbed: str, query: str = "q", vocabulary: Vocabulary = TINY, draws: int = 60) -> set:
    """Fillers of the first added word, of many draws, as words."""
    return {
        one_word(of_draw[0])
        for of_draw in drawn(dataclasses.replace(filler, draws=draws), "", perturbed, query, vocabulary)
    }


@pytest.mark.parametrize("word", ["tides", *LONG.split()])
def test_a_filler_of_a_corpus_is_one_word_of_as_many_pieces(word):
    pieces = TINY.tokenizer.tokenize(word)
    assert len(pieces) == 1 + (len(word) > 5)
    words = many(RandomFiller(CORPUS), word)
    assert None not in words
    assert all(len(TINY.tokenizer.tokenize(other)) == len(pieces) for other in words)
    assert words <= set(re.findall(r"\w+", " ".join(CORPUS).lower())) - {word}
    assert len(words) > 5


def test_without_a_corpus_a_filler_is_as_many_whole_words():
    for text, n in (("tides", 1), ("insects", 2), ("insects tides", 3)):
        (fillers,) = drawn(RandomFiller(draws=1), "", text)
        tokens = [token for word in fillers for token in word]
        assert len(tokens) == n
        assert all(len(token) > 2 and token.isalpha() for token in tokens)


def test_a_word_of_more_pieces_than_any_of_the_corpus_is_filled_with_several():
    n = len(TINY.tokenizer.tokenize("elephant"))
    assert n > 3
    ((pieces,),) = drawn(RandomFiller(CORPUS, draws=1), "", "elephant")
    assert len(pieces) == n
    assert not pieces[0].startswith("##")


def test_every_side_is_filled():
    fillers = drawn(RandomFiller(CORPUS, draws=2), "tides and insects", "moon tides and")
    assert [[len(word) for word in of_draw] for of_draw in fillers] == [[1, 2], [1, 2]]


def letters(i: int) -> str:
    return "w" + "".join("abcdefghij"[int(digit)] for digit in f"{i:03d}")


ENDS = ["x", "y"]
MANY = vocabulary_of([letters(i) for i in range(500)], ENDS)
RARITY = {letters(i) + end: 1 + i / 100 for i in range(500) for end in ("", *ENDS)}


@settings(some, max_examples=40)
@given(st.integers(0, 499), st.sampled_from(["", *ENDS]), st.integers(0, 1000))
def test_a_filler_is_as_rare_as_its_word(i, end, seed):
    word = letters(i) + end
    (found,) = many(RandomFiller(RARITY, seed=seed), word, vocabulary=MANY, draws=1)
    value = RARITY[word]
    peers = sorted(abs(RARITY[other] - value) for other in RARITY if (len(other) > 4) == (len(word) > 4))
    assert len(found) == len(word)
    assert found != word
    assert abs(RARITY[found] - value) <= max(0.1 * max(value, RARITY[found]), peers[60]) + 1e-9


def test_fillers_are_drawn_from_the_whole_band():
    value = RARITY[letters(250)]
    band = {word for word in RARITY if len(word) == 4 and 0.9 * value <= RARITY[word] <= value / 0.9}
    words = many(RandomFiller(RARITY), letters(250), vocabulary=MANY, draws=300)
    assert words <= band - {letters(250)}
    assert len(words) > 0.9 * len(band)


def test_a_word_that_the_corpus_lacks_is_as_rare_as_its_rarest():
    half = {word: value for word, value in RARITY.items() if value < 3}
    words = many(RandomFiller(half), letters(499), vocabulary=MANY)
    assert min(half[word] for word in words) >= 2.99 * 0.9


def test_without_a_corpus_rarity_is_the_place_in_the_vocabulary():
    words = many(RandomFiller(), letters(300), vocabulary=MANY)
    assert {int(word[1:].translate(str.maketrans("abcdefghij", "0123456789"))) for word in words} <= set(
        range(268, 335)
    )
    assert letters(300) not in words
    assert len(words) > 20


FEW = vocabulary_of(["sea", "tides", "rain"], ["x"])
ASKED = " ".join(map(letters, range(0, 500, 2)))


@pytest.mark.parametrize(
    ("filler", "vocabulary", "query", "added"),
    [
        pytest.param(RandomFiller(), MANY, ASKED, letters(20), id="vocabulary"),
        pytest.param(RandomFiller(RARITY), MANY, ASKED, letters(20), id="corpus"),
        pytest.param(RandomFiller(), vocabulary_of(["tides", "Tides", "TIDES", "rain"]), "tides", "sea", id="cased"),
        pytest.param(RandomFiller({"rain": 1.0, "tides": 1.0}), FEW, "tides", "sea", id="one-other"),
        pytest.param(RandomFiller({"tides": 1.0}), FEW, "tides", "sea", id="no-other"),
        pytest.param(RandomFiller({"rainx": 1.0}), FEW, "tides", "sea", id="longer-words"),
        pytest.param(RandomFiller({"tidesx": 1.0, "rain": 1.0}), FEW, "tidesx", "seax", id="no-other-of-its-size"),
    ],
)
def test_a_filler_is_never_a_query_term(filler, vocabulary, query, added):
    of_draws = drawn(dataclasses.replace(filler, draws=60), "", added, query, vocabulary)
    fillers = {"".join(pieces).replace("##", "").lower() for (pieces,) in of_draws}
    assert fillers.isdisjoint(query.split())
    assert added not in fillers


@some
@given(st.lists(st.sampled_from(LONG.split() + TEXTS[0].split()), min_size=1, max_size=5), st.sampled_from(QUERIES))
def test_no_filler_is_of_the_query_nor_the_word_itself(added, query):
    perturbed = " ".join(added)
    have = re.findall(r"\w+", perturbed.lower())
    for of_draw in drawn(RandomFiller(CORPUS, draws=2), "", perturbed, query):
        for pieces, word in zip(of_draw, re.findall(r"\w+|[^\w\s]", perturbed.lower()), strict=True):
            filler = one_word(pieces)
            assert filler not in {*query.split(), word} or word not in have


def test_a_row_decides_its_fillers():
    def rows(seed: int = 0) -> dict[tuple[str, str], list]:
        filler = RandomFiller(CORPUS, draws=3, seed=seed)
        return {
            (text, query): drawn(filler, text, f"{text} insects moon", query) for text in TEXTS for query in QUERIES
        }

    one = rows()
    assert rows() == one != rows(seed=1)
    assert len({str(fillers) for fillers in one.values()}) == len(one)
    assert all(a != b or b != c for a, b, c in one.values())


def test_more_draws_go_on_from_fewer_and_other_seeds_share_none():
    for filler in (RandomFiller(seed=4, draws=20), RandomFiller(CORPUS, seed=4, draws=20)):
        of_draws = drawn(filler, "a", "a moon insects")
        assert drawn(dataclasses.replace(filler, draws=3), "a", "a moon insects") == of_draws[:3]
    ids = drawn(RandomFiller(RARITY, draws=20, seed=4), "", letters(250), vocabulary=MANY)
    following = drawn(RandomFiller(RARITY, draws=20, seed=5), "", letters(250), vocabulary=MANY)
    assert sum(one == other for one, other in zip(ids[1:], following, strict=False)) < 4


@perturbation
def widen(text, query):
    return f"insects {text} {query} bulges"


@pytest.fixture(scope="module")
def frame():
    rows = zip(QUERIES[:4], TEXTS[:4], strict=True)
    return pd.DataFrame([{"qid": str(i), "query": q, "docno": f"d{i}", "text": t} for i, (q, t) in enumerate(rows)])


def scores(scorer, ranker, frame: pd.DataFrame, filler) -> dict[str, np.ndarray]:
    out = scorer(ranker, perturbation=widen, filler=filler)(frame).sort_values("qid")
    return {c: np.stack(out[c]) for c in ("score_baseline", "score_perturbed", "patch_scores") if c in out}


def of_each_draw(ranker, frame: pd.DataFrame, filler) -> tuple[np.ndarray, np.ndarray]:
    """Scores of both sides of each pair, ``[draw, pair]``, one sequence at a time."""
    perturbed = [widen(text, query) for text, query in zip(frame["text"], frame["query"], strict=True)]
    queries = frame["query"].tolist()
    pairs = ranker.align(queries, frame["text"].tolist(), perturbed, alignments=["fill"] * len(frame), filler=filler)
    inputs = ranker.query_inputs(queries)
    with torch.no_grad():
        of_sides = [
            [ranker.forward(ranker.collate([getattr(pair, side)], inputs, [pair.query])).item() for pair in pairs]
            for side in ("baseline", "perturbed")
        ]
    baseline, of_perturbed = (np.array(of_side).reshape(-1, len(frame)) for of_side in of_sides)
    return baseline, of_perturbed


@pytest.mark.parametrize("scorer", [PairScorer, PatchScorer])
@pytest.mark.parametrize("idf", [None, Idf.of(CORPUS)], ids=["vocabulary", "corpus"])
def test_scores_are_the_mean_over_draws(ranker, frame, scorer, idf):
    filler = RandomFiller(idf, draws=3)
    found = scores(scorer, ranker, frame, filler)
    baseline, perturbed = of_each_draw(ranker, frame, filler)
    assert len(np.unique(baseline, axis=0)) == len(baseline) == 3
    np.testing.assert_allclose(found["score_baseline"], baseline.mean(axis=0), rtol=widened(1e-5), atol=widened(1e-5))
    np.testing.assert_allclose(found["score_perturbed"], perturbed.mean(axis=0), rtol=widened(1e-5), atol=widened(1e-5))


def test_every_draw_counts_as_much_as_a_word_in_a_list(bi_encoder, frame):
    drawn = RandomFiller(CORPUS, draws=2, seed=7)
    found = scores(PairScorer, bi_encoder, frame, ["a", drawn, "mask"])
    alone = np.concatenate([of_each_draw(bi_encoder, frame, part)[0] for part in ("a", drawn, "mask")])
    np.testing.assert_allclose(found["score_baseline"], alone.mean(axis=0), rtol=widened(1e-5), atol=widened(1e-5))


@pytest.mark.bits
def test_random_is_three_draws_from_the_vocabulary(bi_encoder, frame):
    found, expected = (scores(PairScorer, bi_encoder, frame, filler) for filler in ("random", RandomFiller()))
    np.testing.assert_array_equal(found["score_baseline"], expected["score_baseline"])
    assert len(Fillers("random", TINY)) == 3
    assert len(Fillers(["random", "a", RandomFiller(draws=2), "mask"], TINY)) == 7


@pytest.mark.parametrize("corpus", [[], ["a b 7"], {}, {"the": 1.0}], ids=repr)
def test_a_corpus_without_words_is_an_error_that_says_so(corpus):
    with pytest.raises(ValueError, match="no words of three letters to draw from"):
        Fillers(RandomFiller(corpus), TINY)


@pytest.mark.parametrize("draws", [0, -1])
def test_no_draws_are_an_error(draws):
    with pytest.raises(ValueError, match=f"draws is {draws}; give at least 1"):
        RandomFiller(draws=draws)


def test_stems_are_an_error():
    with pytest.raises(ValueError, match="which are no words to put into a text"):
        RandomFiller(CORPUS, analyse=lambda text: [word[:4] for word in text.lower().split()])
    with pytest.raises(TypeError, match="idf should be a PisaIndex, a mapping"):
        RandomFiller(3)


@pytest.mark.parametrize("filler", [[None], [3], ["a", RandomFiller], [["a"]]], ids=repr)
def test_a_filler_of_another_kind_is_an_error(filler):
    with pytest.raises((TypeError, ValueError), match="filler"):
        Fillers(filler, TINY)


@pytest.mark.parametrize("filler", ["elephant", ["a", "insects"], ""], ids=repr)
def test_a_word_that_is_no_single_token_is_an_error(filler):
    with pytest.raises(ValueError, match="tokens in this tokenizer; choose a single-token word"):
        Fillers(filler, TINY)


def test_equal_settings_make_equal_fillers():
    made = RandomFiller(CORPUS, draws=2, seed=1)
    assert made == RandomFiller(list(CORPUS), 2, 1) != RandomFiller(CORPUS, draws=2)
    assert hash(made) == hash(RandomFiller(list(CORPUS), 2, 1))
    assert dataclasses.replace(made, seed=0) == RandomFiller(CORPUS, 2)
    assert pickle.loads(pickle.dumps(made)) == made
    analysed = RandomFiller(CORPUS, draws=2, analyse=lowercase_words)
    assert dataclasses.replace(analysed, seed=1).idf == made.idf
    assert repr(made) == f"RandomFiller(Idf({len(CORPUS)} documents), draws=2, seed=1)"
    assert repr(RandomFiller()) == "RandomFiller(draws=3, seed=0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.seed = 2
