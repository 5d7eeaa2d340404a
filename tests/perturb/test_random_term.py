"""The control of a perturbation: the same edit with random terms."""

from __future__ import annotations

import pickle
from collections import Counter
from string import ascii_lowercase

import pandas as pd
import pytest
from small_models import TEXTS, build

from pyterrier_mechir import BiEncoder, PerturbDocs, PerturbQueries
from pyterrier_mechir.perturb import (
    LNC1,
    PROX1,
    STMC1,
    STMC2,
    TDC,
    TFC1,
    TFC2,
    AddTerm,
    CaseFold,
    Identity,
    OneOf,
    PrependQuery,
    RandomTerm,
    RemoveTerm,
    ReverseWords,
    ShuffleWords,
    Typos,
    perturbation,
)
from pyterrier_mechir.text.idf import same_band
from pyterrier_mechir.text.words import Words, lowercase_words

QUERY = "ocean tides"
TEXT = "The moon pulls the ocean, so tides rise."

WORDS = [f"zz{one}{other}" for one in ascii_lowercase for other in ascii_lowercase]
IDF = {word: 1 + 0.01 * place for place, word in enumerate(WORDS)} | {"tides": 5.0, "ocean": 3.0, "currents": 5.0}
SIMILAR = {"tides": ["currents"]}


@pytest.fixture
def frame():
    texts = [*TEXTS, TEXT]
    return pd.DataFrame({"qid": "1", "query": QUERY, "docno": [f"d{i}" for i in range(len(texts))], "text": texts})


@pytest.mark.parametrize(
    "made",
    [
        TFC1(),
        TFC1("tides", "start", n=3),
        TFC1("tides", "beside"),
        TFC1("tides", 4),
        TFC1("tides", "random"),
        TFC2(term="tides"),
        TDC(IDF),
        STMC1(SIMILAR),
        STMC2(SIMILAR),
        PrependQuery(),
        TFC1("tides") | CaseFold(),
    ],
    ids=repr,
)
def test_the_control_puts_random_words_in_the_same_places(made):
    control = RandomTerm(made, IDF)
    for text in (TEXT, "Moon and tides", f"{TEXT} {TEXT}"):
        pair, real = control.pair(text, QUERY), made.pair(text, QUERY)
        if real is None:
            assert pair is None
            continue
        assert pair.baseline == real.baseline
        assert pair.by == control
        wanted, found = Words(real.perturbed), Words(pair.perturbed)
        assert found.gaps == wanted.gaps
        put_in = [(a, b) for a, b in zip(wanted.keys, found.keys, strict=True) if a != b]
        extra = Counter(wanted.keys) - Counter(Words(real.baseline).keys)
        assert Counter(a for a, _ in put_in) == extra
        assert len(set(put_in)) == len(extra)
        for term, word in put_in:
            assert same_band(IDF[term], IDF[word])
            assert word not in {*lowercase_words(text), *lowercase_words(QUERY)}
        assert control.holds(pair.baseline, pair.perturbed, QUERY)
        assert not control.holds(real.baseline, real.perturbed, QUERY) or made == STMC1(SIMILAR)


def test_the_words_of_a_control_depend_on_the_row_and_the_seed_alone(frame):
    stage = PerturbDocs(TFC1(), control="random_term", idf=IDF)
    out, reverse = stage(frame), stage(frame.iloc[::-1])
    assert reverse["text_perturbed"].tolist() == out["text_perturbed"].tolist()[::-1]
    assert out["text_perturbed"].iloc[0] == stage(frame.iloc[:1])["text_perturbed"].iloc[0]
    assert len({text.split()[-1] for text in out["text_perturbed"]}) > 4
    assert RandomTerm(TFC1(), IDF, seed=1)(TEXT, QUERY) != RandomTerm(TFC1(), IDF)(TEXT, QUERY)


def test_a_controlled_stage_says_so_and_keeps_what_is_expected(frame):
    stage = PerturbDocs(TFC2(term="tides"), control="random_term", idf=IDF)
    out, plain = stage(frame), PerturbDocs(TFC2(term="tides"))(frame)
    assert list(out.columns) == list(plain.columns)
    assert (set(plain["expected_sign"]), set(out["expected_sign"])) == ({"+"}, {"none"})
    assert set(out["perturbation"]) == {"TFC2.random_term"}
    assert out["text_baseline"].tolist() == plain["text_baseline"].tolist()
    assert set(PerturbDocs(AddTerm("night"), control="random_term", idf=IDF)(frame)["expected_sign"]) == {"-0"}
    masked = PerturbDocs(LNC1("walls are high"), control="random_term", idf=IDF)(frame)
    assert set(masked["alignment"]) == {"mask"}
    assert PerturbDocs(TDC(IDF), control="random_term")(frame)["text_perturbed"].notna().all()
    assert stage == PerturbDocs(TFC2(term="tides"), control="random_term", idf=IDF) != PerturbDocs(TFC2(term="tides"))
    assert hash(stage) == hash(PerturbDocs(TFC2(term="tides"), control="random_term", idf=IDF))
    assert repr(PerturbDocs(TFC1(), control="random_term", idf=IDF)) == (
        "PerturbDocs(TFC1(), control='random_term', idf=Idf(679 terms))"
    )
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_a_control_of_several_names_the_one_that_was_drawn(frame):
    out = PerturbDocs(OneOf([TFC1("tides"), AddTerm("currents")]), control="random_term", idf=IDF)(frame)
    assert set(out["perturbation"]) == {"TFC1.random_term", "AddTerm.random_term"}
    signs = out.set_index("perturbation")["expected_sign"]
    assert (set(signs["TFC1.random_term"]), set(signs["AddTerm.random_term"])) == ({"+"}, {"-0"})


def test_queries_have_controls_too(frame):
    out = PerturbQueries(TFC1("tides"), control="random_term", idf=IDF)(frame)
    assert out["query_perturbed"].str.fullmatch(r"ocean tides zz\w\w").all()


def test_words_that_only_move_are_not_put_in():
    control = RandomTerm(TFC1("tides") | ReverseWords(), IDF)
    *moved, before = control("pumps heat houses", QUERY).split()[::-1]
    assert moved == ["pumps", "heat", "houses"]
    assert before.startswith("zz")


def test_the_random_word_does_not_depend_on_the_place_of_the_term_in_the_query():
    made = RandomTerm(TFC1(), IDF | {"ocean": 5.0})
    rarity = {"ocean": [], "tides": []}
    for i in range(400):
        rarity[TFC1()(f"text{i}", QUERY).split()[-1]].append(IDF[made(f"text{i}", QUERY).split()[-1]])
    for values in rarity.values():
        assert min(values) < 4.6
        assert max(values) > 5.4


@pytest.mark.parametrize("made", [perturbation(lambda text: f"{text} the"), Identity()])
def test_a_control_of_what_puts_no_term_in_does_not_apply(made):
    assert RandomTerm(made, IDF).pair(TEXT, QUERY) is None


def test_a_collection_without_other_words_gives_no_control():
    assert RandomTerm(TFC1("tides"), {"tides": 1.0, "moon": 1.0})(TEXT, QUERY) is None


def test_an_impossible_control_is_an_error_at_once():
    with pytest.raises(ValueError, match="give idf="):
        PerturbDocs(TFC1(), control="random_term")
    with pytest.raises(ValueError, match="idf is of use for a control only"):
        PerturbDocs(TFC1(), idf=IDF)
    with pytest.raises(ValueError, match="unknown control 'shuffle'; choose one of 'random_term'"):
        PerturbDocs(TFC1(), control="shuffle", idf=IDF)
    for made in (ShuffleWords(), PROX1(), OneOf([TFC1(), ReverseWords()])):
        with pytest.raises(ValueError, match="puts no word in"):
            PerturbDocs(made, control="random_term", idf=IDF)
    stems = TDC({"tide": 1.0}, analyse=lambda text: [word.rstrip("s") for word in text.lower().split()])
    with pytest.raises(ValueError, match="terms of a stemmer"):
        PerturbDocs(stems, control="random_term")


REMOVED = "Tides rise and zzaa falls, tides and more zzab and zzab at sea."
RARE = IDF | {"tides": 5.0, "zzaa": 5.1, "zzab": 4.9, "sea": 4.8, "rise": 1.0, "falls": 5.2, "more": 4.9}


@pytest.mark.parametrize("made", [TFC1("tides", replace="all"), RemoveTerm()], ids=repr)
def test_the_control_of_a_removal_takes_out_another_word_as_rare_as_often(made):
    control = RandomTerm(made, RARE)
    assert control.sign == made.sign
    pair = control.pair(REMOVED, "ocean tides")
    assert pair == (REMOVED, "Tides rise and zzaa falls, tides and more and at sea.", control)
    assert control.holds(*pair[:2], "ocean tides")
    for broken in (str(made(REMOVED, "ocean tides")), REMOVED.replace("rise ", ""), REMOVED.replace(" zzaa", "")):
        assert not control.holds(REMOVED, broken, "ocean tides")


def test_the_control_of_one_removed_occurrence_leaves_another():
    control = RandomTerm(TFC1("tides", replace="one"), RARE)
    perturbed = control(REMOVED, "ocean tides")
    assert perturbed in (REMOVED.replace(" zzab and", " and", 1), REMOVED.replace(" and zzab at", " and at"))
    assert control.holds(REMOVED, perturbed, "ocean tides")


def test_a_removal_without_a_word_as_rare_has_no_control():
    assert RandomTerm(RemoveTerm(), IDF)("Tides rise", "ocean tides") is None
    assert RandomTerm(perturbation(lambda text: text.split()[0]), RARE)(REMOVED, "ocean tides") is None


def test_of_a_chain_the_first_is_controlled():
    chain = TFC1("tides", "start") | Typos(n=2)
    control = RandomTerm(chain, IDF)
    put_in, *_ = control(TEXT, QUERY).split()
    assert put_in in IDF or put_in[0] == "z"
    explicit = RandomTerm(TFC1("tides", "start"), IDF) | Typos(n=2)
    assert control.pair(TEXT, QUERY)[:2] == explicit.pair(TEXT, QUERY)[:2]
    assert control.holds(TEXT, control(TEXT, QUERY), QUERY)
    assert not control.holds(TEXT, chain(TEXT, QUERY), QUERY)


def test_where_both_sides_are_made_nothing_is_expected():
    assert (RandomTerm(TFC2(), IDF).sign, RandomTerm(STMC2(SIMILAR), IDF).sign) == (None, None)
    assert RandomTerm(TFC1(), IDF).sign == "+"


def test_random_terms_have_as_many_pieces_where_the_ranker_is_known():
    ranker = BiEncoder(build("bert", classifier=False))
    pieces = ranker.vocabulary.size
    words = dict.fromkeys([*WORDS[:60], "night", "heat", "warm", "day", "old", "moon"], 3.0) | {"tides": 3.0}
    assert len({pieces(word) for word in words}) > 2
    matched = RandomTerm(TFC1(), words).bind(ranker)
    assert matched == RandomTerm(TFC1(), words, ranker=ranker) != RandomTerm(TFC1(), words)
    other = []
    for i in range(30):
        text = f"text{i} of the sea"
        query = "tides" if i % 2 else "night tides"
        term = TFC1()(text, query).split()[-1]
        word, unmatched = (made(text, query).split()[-1] for made in (matched, RandomTerm(TFC1(), words)))
        assert pieces(word) == pieces(term)
        assert matched.holds(text, f"{text} {word}", query)
        other.append(pieces(unmatched) != pieces(term))
    assert any(other)


def test_a_stage_that_knows_the_ranker_matches_pieces_and_finds_similar_words(frame):
    ranker = BiEncoder(build("bert", classifier=False))
    stage = PerturbDocs(TFC1("tides"), control="random_term", idf=IDF, ranker=ranker)
    made = [RandomTerm(TFC1("tides"), IDF, ranker=ranker)(text, QUERY) for text in frame["text"]]
    assert stage(frame)["text_perturbed"].where(lambda texts: texts.notna(), None).tolist() == made
    assert stage != PerturbDocs(TFC1("tides"), control="random_term", idf=IDF)
    similar = PerturbDocs(STMC1(), ranker=ranker)(frame)
    pd.testing.assert_frame_equal(similar, PerturbDocs(STMC1(ranker))(frame))


def test_the_checker_looks_at_the_place_the_band_and_the_alignment():
    control = RandomTerm(TFC1("tides"), IDF)
    assert control.holds(TEXT, f"{TEXT} zzpa", QUERY) == (abs(IDF["zzpa"] - 5) <= 0.5)
    word = control(TEXT, QUERY).split()[-1]
    assert not control.holds(TEXT, f"{word} {TEXT}", QUERY)
    assert not control.holds(TEXT, f"{TEXT} zzaa", QUERY)
    assert not control.holds(TEXT, f"{TEXT[:-1]} {word}", QUERY)
    assert not control.holds(TEXT, f"{TEXT.lower()} {word}", QUERY)
