"""Perturbations say what they change, deterministically, and when they do not apply."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
from small_models import QUERIES, TEXTS

from pyterrier_mechir.perturb import TDC, TFC1, Identity, Idf, Perturbation, perturbation
from pyterrier_mechir.perturb.base import FunctionPerturbation
from pyterrier_mechir.text.words import STOPWORDS, query_terms, seeded

TEXT = "Rome  built\tstraight roads\nof stone; some remain. "


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", TEXT + " tides"),
        ("start", "tides " + TEXT),
        (0, "tides " + TEXT),
        (1, "Rome  tides built\tstraight roads\nof stone; some remain. "),
        (4, "Rome  built\tstraight roads\ntides of stone; some remain. "),
        (7, "Rome  built\tstraight roads\nof stone; some tides remain. "),
        (8, TEXT + " tides"),
        (9, None),
    ],
)
def test_a_given_term_goes_to_its_position_and_whitespace_stays(position, expected):
    assert TFC1("tides", position=position)(TEXT, "any query") == expected


def test_a_random_position_is_a_word_boundary_and_varies():
    places = {TFC1("tides", position="random", seed=seed)(TEXT, "q") for seed in range(40)}
    assert places == {TFC1("tides", position=place)(TEXT, "q") for place in range(9)}


@pytest.mark.parametrize("position", ["end", "start", "random", 0])
def test_an_empty_text_becomes_the_term(position):
    assert TFC1(position=position)("", "tides") == "tides"


def test_an_index_beyond_an_empty_text_does_not_apply():
    assert TFC1(position=1)("", "tides") is None


@pytest.mark.parametrize("query", ["", "  ", "?!"])
@pytest.mark.parametrize("position", ["end", "start", "random", 1])
def test_a_query_without_words_does_not_apply(query, position):
    assert TFC1(position=position)(TEXT, query) is None


@pytest.mark.parametrize("position", ["middle", -1, 1.5, None])
@pytest.mark.parametrize("made", [TFC1, lambda **options: TDC({"tides": 1.0}, **options)])
def test_an_unknown_position_is_an_error_that_lists_the_choices(made, position):
    with pytest.raises(ValueError, match="'end', 'start', 'random', 'beside', or a word index"):
        made(position=position)


def test_the_drawn_term_is_a_content_word_of_the_query():
    drawn = {TFC1(seed=seed)("text", "why do the tides of an ocean rise?").split()[-1] for seed in range(60)}
    assert drawn == {"tides", "ocean", "rise"}


def test_query_terms_leave_function_words_aside():
    assert query_terms("Why are there two high-tides in O'Brien's bay?") == ["two", "high-tides", "O'Brien's", "bay"]
    assert query_terms("Who is it?") == ["Who", "is", "it"]
    assert query_terms("") == []
    assert query_terms("Größe 3") == ["Größe", "3"]
    assert {"the", "why", "of"} <= STOPWORDS


def test_rows_are_perturbed_alike_in_every_order():
    made = TFC1(position="random", seed=3)
    rows = [(text, query) for text in TEXTS for query in QUERIES]
    forwards = [made(*row) for row in rows]
    assert [made(*row) for row in rows[::-1]][::-1] == forwards
    assert [TFC1(position="random", seed=3)(*row) for row in rows] == forwards
    assert [TFC1(position="random", seed=4)(*row) for row in rows] != forwards


def test_rows_are_perturbed_alike_in_every_process():
    program = (
        "import sys\n"
        "from pyterrier_mechir.perturb import TFC1\n"
        "made = TFC1(position='random', seed=3)\n"
        "sys.stdout.reconfigure(encoding='utf-8')\n"
        f"for text in {TEXTS!r}:\n"
        f"    for query in {QUERIES!r}:\n"
        "        print(made(text, query))\n"
    )
    here = [TFC1(position="random", seed=3)(text, query) for text in TEXTS for query in QUERIES]
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True, encoding="utf-8"
        )
        assert done.stdout.splitlines() == here


def test_the_drawn_term_does_not_depend_on_the_position():
    for text, query in zip(TEXTS, QUERIES, strict=True):
        assert TFC1()(text, query).split()[-1] == TFC1(position="start")(text, query).split()[0]


def test_seeds_tell_texts_apart():
    assert seeded(0, "ab", "c") != seeded(0, "a", "bc")
    assert seeded(0, "a") != seeded(1, "a")
    assert seeded(0, "a") == seeded(0, "a")


def test_tdc_adds_the_term_of_highest_idf_as_written():
    made = TDC({"tides": 2.0, "moon": 5.0, "ocean": 1.0})
    assert made("text", "Ocean Moon tides") == "text Moon"
    assert TDC({"tides": 2.0, "moon": 5.0}, position="start")("text", "moon tides") == "moon text"


def test_tdc_never_adds_a_term_that_the_collection_lacks():
    assert TDC({"tides": 0.1})("text", "zebra tides") == "text tides"
    assert TDC({"tides": 0.1})("text", "zebra") is None
    assert TDC({"tides": 0.1})("text", "") is None
    assert TDC({})("text", "tides") is None


def test_tdc_analyses_terms_as_it_is_told():
    made = TDC({"tid": 3.0, "moon": 2.0}, analyse=lambda text: [text.lower()[:3] if text != "moon" else text])
    assert made("text", "tides moon") == "text tides"


CORPUS = [
    {"docno": "d1", "text": "tides and the moon"},
    {"docno": "d2", "text": "the moon, the moon"},
    {"docno": "d3", "text": "the ocean"},
    {"docno": "d4", "text": ""},
]


def test_idf_of_a_corpus_counts_documents():
    idf = Idf.of(iter(CORPUS))
    assert idf("moon") == pytest.approx(math.log(1 + (4 - 2 + 0.5) / (2 + 0.5)))
    assert idf("The") == pytest.approx(math.log(1 + (4 - 3 + 0.5) / (3 + 0.5)))
    assert idf("tides") == pytest.approx(math.log(1 + (4 - 1 + 0.5) / (1 + 0.5)))
    assert idf("zebra") is None
    assert idf("") is None


def test_tdc_takes_documents_or_texts():
    for corpus in (iter(CORPUS), [document["text"] for document in CORPUS]):
        assert TDC(corpus)("text", "moon tides") == "text tides"


@pytest.mark.parametrize("source", [3, None, "tides", object()])
def test_idf_of_another_kind_is_an_error(source):
    with pytest.raises(TypeError, match="PisaIndex, a mapping or an iterable"):
        TDC(source)


PISA_CORPUS = [
    {"docno": f"d{i}", "text": text}
    for i, text in enumerate(
        [
            "birds migrate south in winter",
            "a migrating bird finds its way",
            "the bird migrates by night",
            "she migrated in spring, as birds do",
            "a goose flies south",
            "geese fly in lines",
            "winter is cold",
            "snow falls in winter",
        ]
    )
]


@pytest.fixture(scope="module")
def pisa_index(tmp_path_factory):
    pisa = pytest.importorskip("pyterrier_pisa")
    path = str(tmp_path_factory.mktemp("pisa") / "index")
    index = pisa.PisaIndex(path, text_field="text", stemmer="porter2").index(iter(PISA_CORPUS))
    assert len(index) == len(PISA_CORPUS)
    return index


def test_an_inflected_word_has_the_document_frequency_of_its_stem(pisa_index):
    idf = Idf.of(pisa_index)
    assert idf("migration") == idf("Migrating") == idf("migrates") == pytest.approx(math.log(1 + (8 - 4 + 0.5) / 4.5))
    assert idf("goose") == pytest.approx(math.log(1 + (8 - 1 + 0.5) / 1.5))


def test_an_inflected_word_does_not_pass_for_the_rarest(pisa_index):
    assert TDC(pisa_index)("text", "migration of the goose") == "text goose"
    assert TDC(pisa_index)("text", "migration in winters") == "text winters"


def test_a_word_unknown_to_the_index_is_never_chosen(pisa_index):
    assert TDC(pisa_index)("text", "zebra migration") == "text migration"
    assert TDC(pisa_index)("text", "zebras zigzag") is None


def test_pisa_frequencies_equal_those_of_its_documents(pisa_index):
    documents = [document["toks"] for document in pisa_index.get_corpus_iter(verbose=False)]
    vocabulary = {term for document in documents for term in document}
    idf = Idf.of(pisa_index)
    assert set(idf.values) == vocabulary
    for term in vocabulary:
        df = sum(term in document for document in documents)
        assert idf.values[term] == pytest.approx(math.log(1 + (8 - df + 0.5) / (df + 0.5)))


def test_perturbations_of_one_index_are_equal(pisa_index):
    assert TDC(pisa_index) == TDC(pisa_index)
    assert hash(TDC(pisa_index)) == hash(TDC(pisa_index))


def test_a_pisa_index_brings_its_own_analysis(pisa_index):
    with pytest.raises(ValueError, match="leave analyse out"):
        TDC(pisa_index, analyse=str.split)


def test_a_pisa_index_that_is_not_built_is_an_error(tmp_path):
    pisa = pytest.importorskip("pyterrier_pisa")
    with pytest.raises(ValueError, match="not built"):
        TDC(pisa.PisaIndex(str(tmp_path / "nothing")))


def test_a_function_of_the_text():
    @perturbation
    def backwards(text):
        """Reverse the words."""
        return " ".join(text.split()[::-1])

    assert backwards("a b", "q") == "b a"
    assert (backwards.name, backwards.alignment, repr(backwards)) == ("backwards", "fill", "backwards")
    assert backwards.__doc__ == "Reverse the words."
    assert isinstance(backwards, Perturbation)


def test_a_function_of_the_text_and_the_query():
    @perturbation(alignment="mask")
    def shout(text, query, times=2):
        return f"{text} {query.upper() * times}"

    assert shout("a", "q") == "a QQ"
    assert (shout.name, shout.alignment) == ("shout", "mask")


def test_a_function_may_not_apply():
    assert perturbation(lambda text: None)("a", "q") is None


def test_a_function_of_other_arguments_is_an_error():
    def three(text, query, docno):
        return text

    def none():
        return ""

    for function, n in ((three, 3), (none, 0)):
        with pytest.raises(ValueError, match=rf"\(text\) or \(text, query\), not {n} arguments"):
            perturbation(function)


def test_an_unknown_alignment_is_an_error_that_lists_the_choices():
    choices = "'fill', 'mask', 'swap', 'permute', 'free'"
    with pytest.raises(ValueError, match=f"unknown alignment 'diagonal'; choose one of {choices}"):
        perturbation(alignment="diagonal")(lambda text: text)
    with pytest.raises(ValueError, match="unknown alignment"):

        class Wrong(Perturbation):
            alignment = "diagonal"

            def __call__(self, text, query):
                return text


def test_a_class_of_ones_own():
    class Prepend(Perturbation):
        alignment = "mask"

        def __init__(self, word: str = "so"):
            self.word = word

        def __call__(self, text, query):
            return f"{self.word} {text}"

    assert Prepend()("a", "q") == "so a"
    assert (Prepend().name, Prepend().alignment) == ("Prepend", "mask")
    assert repr(Prepend("but")) == "Prepend(word='but')"
    assert Prepend("but") == Prepend("but") != Prepend()
    assert len({Prepend("but"), Prepend("but"), Prepend()}) == 2


def test_equal_settings_make_equal_perturbations():
    assert TFC1() == TFC1() != TFC1(seed=1)
    assert TFC1("tides", position=3) == TFC1(term="tides", position=3)
    assert len({TFC1(), TFC1(), TFC1("tides"), Identity(), Identity()}) == 3
    assert TFC1() != Identity()
    idf = Idf.of({"tides": 1.0})
    assert TDC(idf) == TDC(idf) != TDC(idf, position="start")
    assert hash(TDC(idf)) == hash(TDC(idf))
    assert TDC(idf) != TDC({"tides": 2.0})


def test_a_function_equals_itself_only():
    def same(text):
        return text

    def other(text):
        return text

    assert perturbation(same) == perturbation(same)
    assert hash(perturbation(same)) == hash(perturbation(same))
    assert perturbation(same) != perturbation(other)
    assert perturbation(same) != perturbation(alignment="swap")(same)
    assert isinstance(perturbation(same), FunctionPerturbation)


def test_reprs_name_what_differs_from_the_default():
    assert repr(TFC1()) == "TFC1()"
    assert repr(TFC1("tides", position="start", seed=2)) == "TFC1(term='tides', position='start', seed=2)"
    assert repr(TDC({"tides": 1.0})) == "TDC(idf=Idf(1 terms))"
    assert repr(TDC(iter(CORPUS), position=2)) == "TDC(idf=Idf(4 documents), position=2)"
    assert repr(Identity()) == "Identity()"


def test_identity_changes_nothing():
    assert Identity()(TEXT, "q") == TEXT
    assert (Identity().name, Identity().alignment) == ("Identity", "fill")


def test_published_perturbations_declare_their_alignment():
    assert TFC1().alignment == TDC({}).alignment == "fill"
