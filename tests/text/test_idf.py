"""How rare a term is, wherever the counts come from, and which words are as rare."""

from __future__ import annotations

import math
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_mechir.perturb import Idf
from pyterrier_mechir.text.idf import _READ, count_documents
from pyterrier_mechir.text.words import STOPWORDS

TEXTS = ["Tides and the moon", "the moon, the moon", "The ocean's 3.5 tides", "", "月 Größe"]
N = len(TEXTS)


def idf(df: int, n: int = N) -> float:
    return math.log(1 + (n - df + 0.5) / (df + 0.5))


def check(made: Idf) -> None:
    """The counts of the texts above."""
    assert made("moon") == made("MOON") == pytest.approx(idf(2))
    assert made("The") == pytest.approx(idf(3))
    assert made("ocean's") == made("3") == made("月") == made("größe") == pytest.approx(idf(1))
    assert made("zebra") is None
    assert made("") is None


class Document(NamedTuple):
    doc_id: str
    body: str

    def default_text(self) -> str:
        return self.body


class IrDataset:
    """An ir_datasets dataset."""

    def __init__(self, name: str, texts: list[str] | None):
        self.name, self.texts = name, texts

    def dataset_id(self) -> str:
        return self.name

    def docs_iter(self):
        if self.texts is None:
            raise AssertionError("the documents were read again")
        return (Document(str(i), text) for i, text in enumerate(self.texts))


class IrdsDataset:
    """A PyTerrier dataset that wraps one of ir_datasets."""

    def __init__(self, name: str, texts: list[str] | None):
        self._irds_id, self.wrapped = name, IrDataset(name, texts)

    def irds_ref(self) -> IrDataset:
        return self.wrapped

    def get_corpus_iter(self, verbose: bool = True):
        raise AssertionError("its fields need not be called text")


class PlainDataset:
    """Another PyTerrier dataset."""

    def get_corpus_iter(self, verbose: bool = True):
        assert not verbose
        return ({"docno": str(i), "text": text} for i, text in enumerate(TEXTS))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty PyTerrier home, and nothing in memory."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    assert pt.io.pyterrier_home() == str(tmp_path)
    _READ.clear()
    yield tmp_path
    _READ.clear()


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "source",
    [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        [{"docno": str(i), "text": text} for i, text in enumerate(TEXTS)],
        pd.Series(TEXTS),
        PlainDataset(),
        Idf.of(TEXTS),
    ],
    ids=lambda source: type(source).__name__,
)
def test_documents_are_counted(source):
    check(Idf.of(source))


def test_a_frame_of_documents_is_counted_by_its_texts_or_refused():
    frame = pd.DataFrame({"docno": list("abcde"), "text": TEXTS})
    try:
        made = Idf.of(frame)
    except TypeError:
        return
    check(made)


@pytest.mark.parametrize("document", [{"docno": "d", "body": "moon"}, None, 3], ids=repr)
def test_a_document_without_a_text_is_an_error_that_says_so(document):
    with pytest.raises((ValueError, TypeError), match="text"):
        Idf.of([document])


def test_counting_is_by_document():
    assert count_documents(["a b, A", "b-c"]) == (2, {"a": 1, "b": 1, "b-c": 1})
    assert count_documents(["a b", "b"], lambda text: text.upper().split()) == (2, Counter("ABB"))
    assert count_documents([]) == (0, Counter())


def test_an_empty_collection_knows_nothing():
    for empty in ([], {}, [""]):
        made = Idf.of(empty)
        assert made("moon") is None
        assert made.of_terms({"moon": "Moon"}) == {}
        assert made.near("moon", random.Random(0)) is None


@pytest.mark.parametrize("dataset", [IrDataset, IrdsDataset])
def test_a_dataset_is_counted_once(home, dataset):
    first = Idf.of(dataset("tiny/with-parts", TEXTS))
    check(first)
    assert repr(first) == "Idf(tiny/with-parts)"
    assert files(home) == ["mechir/document_frequencies/lowercase_words-2/tiny--with-parts.parquet"]
    assert Idf.of(dataset("tiny/with-parts", None)) is first
    _READ.clear()
    second = Idf.of(dataset("tiny/with-parts", None))
    check(second)
    assert (second, repr(second), hash(second)) == (first, repr(first), hash(first))
    assert second.near("moon", random.Random(0)) == first.near("moon", random.Random(0))
    with pytest.raises(AssertionError, match="read again"):
        Idf.of(dataset("tiny/other", None))


def test_an_interrupted_count_leaves_nothing_behind(home):
    with pytest.raises(AssertionError, match="read again"):
        Idf.of(IrDataset("tiny", None))
    assert files(home) == []
    check(Idf.of(IrDataset("tiny", TEXTS)))


def test_a_dataset_of_no_documents_is_kept_too(home):
    for texts in ([], None):
        assert Idf.of(IrDataset("tiny", texts))("moon") is None
        _READ.clear()


def test_counting_leaves_the_seeds_of_others_alone(home):
    random.seed(0)
    before = random.getstate()
    Idf.of(IrDataset("tiny", TEXTS))
    assert random.getstate() == before


def test_another_analysis_is_not_taken_from_what_is_kept(home):
    check(Idf.of(IrDataset("tiny", TEXTS)))
    made = Idf.of(IrDataset("tiny", TEXTS), lambda text: [word[:3] for word in text.lower().split()])
    assert made("moonlight") == made("moo") == pytest.approx(idf(2))
    assert len(files(home)) == 1


def test_a_mapping_is_taken_as_it_is():
    made = Idf.of({"moon": 2.5, "state-of-the-art": 0.0, "can't": 1.0, "月": 3.0})
    assert [made(term) for term in ("Moon", "state-of-the-art", "can't", "月", "art")] == [2.5, 0.0, 1.0, 3.0, None]
    assert made.of_terms({"moon": "Moon", "zebra": "zebra"}) == {"moon": 2.5}
    assert Idf.of({"moo": 2.0}, lambda text: [text.lower()[:3]])("Moonlight") == 2.0


def test_a_term_of_several_tokens_is_as_rare_as_the_rarest():
    assert Idf.of({"high": 1.0, "tides": 3.0})("high tides") == 3.0
    assert Idf.of({"high": 1.0})("high tides") == 1.0


@pytest.mark.parametrize("term", ["Moon", "high tides", "moon.", " moon", "", "?"])
def test_a_mapping_whose_terms_would_never_be_found_is_an_error(term):
    with pytest.raises(ValueError, match="never be found; give the analyse that made them"):
        Idf.of({"tides": 1.0, term: 2.0})


def test_a_stemmer_may_change_a_few_of_its_own_stems():
    def analyse(text: str) -> list[str]:
        return [word.removesuffix("s") for word in text.lower().split()]

    assert Idf.of({"tide": 1.0, "moon": 2.0, "glas": 3.0}, analyse)("tides") == 1.0
    with pytest.raises(ValueError, match="'tides', of which its analysis makes"):
        Idf.of({"tides": 1.0, "moons": 2.0, "glas": 3.0}, analyse)


@pytest.mark.parametrize("source", [3, None, "moon", object(), 1.5])
def test_another_kind_is_an_error(source):
    with pytest.raises(TypeError, match="PisaIndex, a mapping or an iterable of documents, a dataset"):
        Idf.of(source)


PISA_TEXTS = [f"{a} {b}s {c}" for a in ("moon", "sun") for b in ("tide", "wave") for c in ("rises", "rising", "falls")]


@pytest.fixture(scope="module", params=["none", "porter2"])
def pisa_index(request, tmp_path_factory):
    pisa = pytest.importorskip("pyterrier_pisa")
    index = pisa.PisaIndex(
        str(tmp_path_factory.mktemp(request.param) / "index"), text_field="text", stemmer=request.param
    )
    return index.index({"docno": f"d{i}", "text": text} for i, text in enumerate(PISA_TEXTS))


def test_a_pisa_index_without_a_stemmer_has_words(pisa_index):
    made, of_texts = Idf.of(pisa_index), Idf.of(PISA_TEXTS)
    assert made is Idf.of(pisa_index)
    for word in ("moon", "Tides", "waves"):
        assert made(word) == pytest.approx(of_texts(word))
    if pisa_index.stemmer.value == "none":
        made.check_words()
        assert made("rising") == made("rises") == pytest.approx(idf(4, 12))
        assert made.near("falls", random.Random(0)) in of_texts.values
        return
    assert made("rising") == made("rises") == pytest.approx(idf(8, 12))
    for use in (made.check_words, lambda: made.near("falls", random.Random(0)), lambda: made.lexicon):
        with pytest.raises(ValueError, match="which are no words to put into a text"):
            use()
    assert pickle.loads(pickle.dumps(made)) == made


class Posting(NamedTuple):
    key: str
    df: int

    def getKey(self) -> str:
        return self.key

    def getValue(self) -> Posting:
        return self

    def getDocumentFrequency(self) -> int:
        return self.df


class JavaIndex:
    """What is used of Terrier's Java index."""

    def __init__(self, frequencies: dict[str, int], **properties: str):
        self.frequencies, self.properties = frequencies, properties

    def getLexicon(self) -> list[Posting]:
        return [Posting(*item) for item in self.frequencies.items()]

    def getIndexProperty(self, name: str, default: str) -> str:
        return self.properties.get(name, default)

    def getCollectionStatistics(self) -> JavaIndex:
        return self

    def getNumberOfDocuments(self) -> int:
        return N


class TerrierIndex:
    def __init__(self, index: JavaIndex):
        self.index = index

    def index_obj(self) -> JavaIndex:
        return self.index


@pytest.fixture
def java(monkeypatch):
    """Terrier's analysis, without Java: stop words go, and stems are the first four letters."""
    asked = []

    class Accessor:
        def __init__(self, *steps: str):
            asked.append(steps)
            self.steps = steps

        def pipelineTerm(self, term: str) -> str | None:
            if "Stopwords" in self.steps and term in STOPWORDS:
                return None
            return term[:4] if any("Stem" in step for step in self.steps) else term

    class Tokeniser:
        def getTokens(self, text: str) -> list[str]:
            return text.replace("-", " ").split()

    def java_tokeniser(name: str) -> Tokeniser:
        asked.append(name)
        return Tokeniser()

    monkeypatch.setattr(pt.terrier.TerrierTokeniser, "java_tokeniser", staticmethod(java_tokeniser))
    monkeypatch.setattr(pt.java, "autoclass", {"org.terrier.terms.BaseTermPipelineAccessor": Accessor}.__getitem__)
    return asked


@pytest.mark.parametrize("wrapped", [TerrierIndex, lambda index: index])
def test_a_terrier_index_brings_its_analysis(java, wrapped):
    made = Idf.of(wrapped(JavaIndex({"tide": 2, "moon": 3})))
    assert java == []
    assert made("Tides") == made("high-tides") == pytest.approx(idf(2))
    assert made("the moon") == pytest.approx(idf(3))
    assert made("the") is None
    assert sorted(java, key=str) == [("Stopwords", "PorterStemmer"), "EnglishTokeniser"]
    assert repr(made) == "Idf(2 terms of a Terrier index)"
    with pytest.raises(ValueError, match="leave analyse out"):
        Idf.of(wrapped(JavaIndex({})), str.split)


@pytest.mark.parametrize(
    ("pipeline", "steps", "stemmed"),
    [
        ("", (), False),
        ("Stopwords", ("Stopwords",), False),
        ("WeakPorterStemmer", ("WeakPorterStemmer",), True),
        ("Stopwords,EnglishSnowballStemmer", ("Stopwords", "EnglishSnowballStemmer"), True),
        ("Stopwords, PorterStemmer", ("Stopwords", "PorterStemmer"), True),
    ],
)
def test_whether_terriers_terms_are_words_follows_from_its_pipeline(java, pipeline, steps, stemmed):
    made = Idf.of(JavaIndex({"tide": 2, "moon": 3}, termpipelines=pipeline, tokeniser="UTFTokeniser"))
    made("tide")
    assert sorted(java, key=str) == sorted([steps, "UTFTokeniser"], key=str)
    assert made.stemmed == stemmed
    if not stemmed:
        assert made.near("tide", random.Random(0)) == "moon"


def test_java_is_never_started_for_another_source(tmp_path, pisa_index):
    program = (
        "import sys, random\n"
        "import pyterrier as pt\n"
        "from pyterrier_pisa import PisaIndex\n"
        "from test_idf import IrDataset, IrdsDataset, PlainDataset, TEXTS\n"
        "from pyterrier_mechir.perturb import Idf, RandomFiller, TDC\n"
        "sources = [{'moon': 1.0}, TEXTS, PlainDataset(), IrDataset('a', TEXTS), IrdsDataset('b', TEXTS)]\n"
        f"for source in [*sources, PisaIndex({str(pisa_index.path)!r})]:\n"
        "    idf = Idf.of(source)\n"
        "    assert idf('moon') and TDC(idf)('text', 'moon') == 'text moon'\n"
        "    assert idf.stemmed or RandomFiller(idf) and idf.near('tides', random.Random(0))\n"
        "assert not pt.java.started()\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('jnius', 'jnius_config')]\n"
    )
    environment = {**os.environ, "PYTERRIER_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_equal_sources_are_equal():
    assert Idf.of(TEXTS) == Idf.of(iter(TEXTS)) != Idf.of(TEXTS[:2])
    assert hash(Idf.of(TEXTS)) == hash(Idf.of(iter(TEXTS)))
    assert Idf.of(TEXTS) != Idf.of(TEXTS, str.split)
    assert Idf.of(TEXTS) != TEXTS
    same = pickle.loads(pickle.dumps(Idf.of(TEXTS)))
    assert (same, hash(same), repr(same)) == (Idf.of(TEXTS), hash(Idf.of(TEXTS)), "Idf(5 documents)")
    check(same)
