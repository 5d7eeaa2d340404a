"""How rare a term is in a collection, wherever its document frequencies are kept.

:meth:`Idf.of` reads document frequencies from an index, a dataset, a mapping or the documents themselves, together with
the analysis (tokeniser and stemmer) that made their terms, so that an inflected word is looked up as the collection
counted it. :class:`Lexicon` draws random words that are about as rare as another.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pyterrier_mechir.text.words import STOPWORDS, lowercase_words

Analysis = Callable[[str], list[str]]
"""Text to terms: a tokeniser with its stemmer."""

BAND = 0.1
"""Two terms are as rare as each other when their idf differs by no more than this share of the greater."""

_FEWEST = 25
"""How many words on either side of a term its band has at least, so that small collections have words to draw."""


def same_band(one: float, other: float, tolerance: float = BAND) -> bool:
    """Whether two terms are about as rare: whether their idf differs by no more than a share of the greater."""
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


class Lexicon:
    """Words to draw from by how rare they are.

    Args:
        words: the words, lower-cased.
        rarity: a number for each, greater for rarer words.

    Attributes:
        words: the words, commonest first.
        rarity: their numbers, ascending.
    """

    def __init__(self, words: Sequence[str], rarity: Sequence[float]):
        ordered = sorted(zip(rarity, words, strict=True))
        self.words, self.rarity = [word for _, word in ordered], [value for value, _ in ordered]

    def __len__(self) -> int:
        return len(self.words)

    def near(self, rarity: float | None, rng: random.Random, exclude: Collection[str] = ()) -> str | None:
        """A random word about as rare as another.

        Args:
            rarity: of the other; None stands for a word that is unknown, and counts as the rarest.
            rng: draws the word.
            exclude: lower-cased words that may not be drawn.

        Returns:
            The word, or None where its band has no other.
        """
        band = self._band(rarity)
        places = rng.sample(band, min(len(band), len(exclude) + 1))
        return next((self.words[place] for place in places if self.words[place] not in exclude), None)

    def is_near(self, rarity: float | None, other: float) -> bool:
        """Whether a word of one rarity can be drawn for a word of another."""
        band = self._band(rarity)
        return len(band) > 0 and self.rarity[band.start] <= other <= self.rarity[band.stop - 1]

    def _band(self, rarity: float | None) -> range:
        """The places of the words about as rare: those within the band, and some beyond it where these are few."""
        if not self.words:
            return range(0)
        value = self.rarity[-1] if rarity is None else rarity
        low = min(bisect_left(self.rarity, value * (1 - BAND)), max(0, bisect_left(self.rarity, value) - _FEWEST))
        high = max(bisect_right(self.rarity, value / (1 - BAND)), bisect_right(self.rarity, value) + _FEWEST)
        return range(low, min(high, len(self.words)))


class Idf:
    """Inverse document frequencies, with the analysis that their terms went through. Calling it looks a term up.

    Args:
        values: idf of each analysed term.
        analyse: the tokeniser and stemmer that made these terms; applied to every term looked up.
        name: shown by ``repr``.
        stemmed: whether the terms are stems, so that none of them can be put into a text.
    """

    def __init__(self, values: Mapping[str, float], analyse: Analysis, name: str, stemmed: bool = False):
        self.values, self.analyse, self.name, self.stemmed = values, analyse, name, stemmed

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Idf):
            return NotImplemented
        return self.analyse == other.analyse and (self.values is other.values or self.values == other.values)

    def __hash__(self) -> int:
        return hash((self.analyse, len(self.values)))

    def __call__(self, term: str) -> float | None:
        """The idf of a term as written; None where the collection does not have it."""
        known = [self.values[token] for token in self.analyse(term) if token in self.values]
        return max(known, default=None)

    def of_terms(self, written: Mapping[str, str]) -> dict[str, float]:
        """The idf of those of some terms that the collection has.

        Args:
            written: from each lower-cased term to the term as written, which is what is looked up.

        Returns:
            From the lower-cased term to its idf.
        """
        values = ((key, self(term)) for key, term in written.items())
        return {key: value for key, value in values if value is not None}

    def near(self, term: str, rng: random.Random, exclude: Collection[str] = ()) -> str | None:
        """A random word about as rare as a term; a term that the collection lacks counts as its rarest.

        Args:
            term: the term.
            rng: draws the word.
            exclude: lower-cased words that may not be drawn.

        Returns:
            The word, or None where the collection has no other of its band.

        Raises:
            ValueError: the collection's terms are stems.
        """
        return self.lexicon.near(self(term), rng, exclude={*exclude, term.lower()})

    def check_words(self) -> None:
        """Check that the terms are words, which can be put into a text.

        Raises:
            ValueError: they are stems.
        """
        if self.stemmed:
            raise ValueError(
                f"{self!r} has terms of a stemmer or of a tokeniser of its own, which are no words to put into a text; "
                "give the documents themselves (a dataset or an iterable of texts), or an index without a stemmer."
            )

    @cached_property
    def lexicon(self) -> Lexicon:
        """The words that can be put into a text, by their idf: alphabetic ones of three letters or more.

        Raises:
            ValueError: the collection's terms are stems.
        """
        self.check_words()
        words = [word for word in self.values if len(word) > 2 and word.isalpha() and word not in STOPWORDS]
        return Lexicon(words, [self.values[word] for word in words])

    @classmethod
    def of(cls, source: Any, analyse: Analysis | None = None) -> Idf:
        """Read document frequencies from wherever they are.

        Args:
            source: an ``Idf``; a built ``PisaIndex`` or a Terrier index, whose own tokeniser and stemmer are used; a
                mapping of terms to idf; a dataset of PyTerrier or ir_datasets (frequencies of the latter are kept
                in PyTerrier's home directory); or an iterable of texts or of dicts with a ``text`` (a corpus iterator),
                which is read once, or a frame with a ``text``.
            analyse: for a mapping or a corpus, text to terms; lower-cased words by default.

        Raises:
            TypeError: the source is none of these.
            ValueError: a PISA index that is not built; an index or an ``Idf`` given with an ``analyse`` that is not its
                own; or a mapping whose terms ``analyse`` would never make, so that looking a word up would not find it.
        """
        if isinstance(source, Idf):
            if analyse is not None:
                raise ValueError(f"{source!r} keeps the analysis that made it; leave analyse out.")
            return source
        for is_index, read in ((_is_pisa_index, _of_pisa_index), (_is_terrier_index, _of_terrier_index)):
            if is_index(source):
                if analyse is not None:
                    raise ValueError(f"{source!r} has its own tokeniser and stemmer; leave analyse out.")
                return read(source)
        analyse = analyse or lowercase_words
        if isinstance(source, Mapping):
            _check_terms(source, analyse)
            return cls(source, analyse, f"Idf({len(source)} terms)", stemmed=analyse is not lowercase_words)
        if _is_dataset(source):
            return _of_dataset(source, analyse)
        if isinstance(source, Iterable) and not isinstance(source, str):
            n, frequencies = count_documents(_texts(source), analyse)
            return _of_counts(n, frequencies, analyse, f"Idf({n} documents)")
        raise TypeError(
            "idf should be a PisaIndex, a mapping or an iterable of documents, a dataset or a Terrier index, not "
            f"{type(source).__name__}."
        )


def count_documents(texts: Iterable[str], analyse: Analysis = lowercase_words) -> tuple[int, Counter[str]]:
    """Count a collection.

    Args:
        texts: the documents' texts, read once.
        analyse: text to terms.

    Returns:
        How many texts there are, and in how many of them each term occurs.
    """
    frequencies: Counter[str] = Counter()
    n = 0
    for text in texts:
        frequencies.update(set(analyse(text)))
        n += 1
    return n, frequencies


def _idf(n: int, df: int) -> float:
    """The idf of Robertson and Sparck Jones, kept positive: ln(1 + (N - df + 0.5) / (df + 0.5))."""
    return math.log(1 + (n - df + 0.5) / (df + 0.5))


def _of_counts(
    n: int, frequencies: Mapping[str, int], analyse: Analysis, name: str, stemmed: bool | None = None
) -> Idf:
    """An ``Idf`` of the document frequencies of ``n`` documents."""
    by_frequency = {df: _idf(n, df) for df in set(frequencies.values())}
    values = {term: by_frequency[df] for term, df in frequencies.items()}
    return Idf(values, analyse, name, stemmed=analyse is not lowercase_words if stemmed is None else stemmed)


def _is_frame(source: Any) -> bool:
    return hasattr(source, "iloc") and hasattr(source, "columns")


def _texts(documents: Any) -> Iterator[str]:
    for document in documents["text"] if _is_frame(documents) else documents:
        text = document.get("text") if isinstance(document, Mapping) else document
        if not isinstance(text, str):
            raise ValueError(f"a document has no text: {document!r}; give texts, or dicts with a text.")
        yield text


def _check_terms(values: Mapping[str, float], analyse: Analysis) -> None:
    """Check that an analysis gives the terms of a mapping, so that words can be found there."""
    sample = list(islice(values, 1000))
    strangers = [term for term in sample if analyse(term) != [term]]
    # A stemmer may change a few of its own stems once more.
    if len(strangers) > (len(sample) // 2 if analyse is not lowercase_words else 0):
        raise ValueError(
            f"the mapping has terms such as {strangers[0]!r}, of which its analysis makes {analyse(strangers[0])}, so "
            "that they would never be found; give the analyse that made them."
        )


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "get_corpus_iter") or hasattr(source, "docs_iter")


def _of_dataset(dataset: Any, analyse: Analysis) -> Idf:
    name = getattr(dataset, "_irds_id", None) or getattr(dataset, "dataset_id", lambda: None)()
    if name is None or analyse is not lowercase_words:
        n, frequencies = count_documents(_dataset_texts(dataset), analyse)
        return _of_counts(n, frequencies, analyse, f"Idf({name or repr(dataset)})")
    return _of_ir_dataset(_corpus_of(name), dataset)


def _corpus_of(name: str) -> str:
    """The dataset whose documents a dataset of ir_datasets has: ``msmarco-passage`` for all of its subsets."""
    import ir_datasets

    try:
        return str(ir_datasets.docs_parent_id(name))
    except KeyError:
        return name


_READ: dict[str, Idf] = {}
"""What was read of datasets in this process, by name."""

_ANALYSIS = "lowercase_words-2"
"""Names the analysis of kept frequencies; to be changed with what a word is."""


def _of_ir_dataset(name: str, dataset: Any) -> Idf:
    """The ``Idf`` of a dataset of ir_datasets, counted once and then kept in a file."""
    if name in _READ:
        return _READ[name]
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyterrier as pt

    directory = Path(pt.io.pyterrier_home()) / "mechir" / "document_frequencies" / _ANALYSIS
    file = directory / f"{name.replace('/', '--')}.parquet"
    if file.exists():
        table = pq.read_table(file)
        n = int(table.schema.metadata[b"n_documents"])
        frequencies = dict(zip(table["term"].to_pylist(), table["documents"].to_pylist(), strict=True))
    else:
        n, frequencies = count_documents(_dataset_texts(dataset))
        table = pa.table({"term": list(frequencies), "documents": list(frequencies.values())})
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{uuid4().hex}.part")
        pq.write_table(table.replace_schema_metadata({"n_documents": str(n)}), part)
        part.replace(file)
    _READ[name] = _of_counts(n, frequencies, lowercase_words, f"Idf({name})")
    return _READ[name]


def _dataset_texts(dataset: Any) -> Iterable[str]:
    if hasattr(dataset, "irds_ref"):
        dataset = dataset.irds_ref()
    if hasattr(dataset, "docs_iter"):
        return (document.default_text() for document in dataset.docs_iter())
    return _texts(dataset.get_corpus_iter(verbose=False))


def _is_pisa_index(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "pyterrier_pisa" and hasattr(source, "tokenize")


@dataclass(frozen=True)
class _PisaAnalysis:
    """The tokeniser and stemmer of a PISA index."""

    stemmer: str

    def __call__(self, text: str) -> list[str]:
        from pyterrier_pisa import tokenize

        return tokenize(text, self.stemmer)


def _of_pisa_index(index: Any) -> Idf:
    if not index.built():
        raise ValueError(f"{index!r} is not built; index a collection first.")
    return _read_pisa(Path(index.path), index.stemmer.value, (Path(index.path) / "inv.docs").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read_pisa(path: Path, stemmer: str, changed: int) -> Idf:
    """The ``Idf`` of the files of a PISA index; ``changed``, when they last were, is part of the cache's key."""
    postings = np.memmap(path / "inv.docs", mode="r", dtype=np.uint32)
    frequencies = {}
    begin = 2
    with (path / "fwd.terms").open(encoding="utf-8") as terms:
        for term in terms:
            df = int(postings[begin])
            frequencies[term.rstrip("\n")] = df
            begin += df + 1
    return _of_counts(
        int(postings[1]), frequencies, _PisaAnalysis(stemmer), f"Idf({path.name})", stemmed=stemmer != "none"
    )


def _is_terrier_index(source: Any) -> bool:
    return hasattr(source, "index_obj") or hasattr(source, "getLexicon")


@dataclass(frozen=True)
class _TerrierAnalysis:
    """The tokeniser and term pipeline of a Terrier index."""

    tokeniser: str
    pipeline: tuple[str, ...]

    def __call__(self, text: str) -> list[str]:
        terms = (self._accessor.pipelineTerm(token.lower()) for token in self._java_tokeniser.getTokens(text))
        return [str(term) for term in terms if term is not None]

    @cached_property
    def _java_tokeniser(self) -> Any:
        import pyterrier as pt

        return pt.terrier.TerrierTokeniser.java_tokeniser(self.tokeniser)

    @cached_property
    def _accessor(self) -> Any:
        import pyterrier as pt

        return pt.java.autoclass("org.terrier.terms.BaseTermPipelineAccessor")(*self.pipeline)


def _of_terrier_index(source: Any) -> Idf:
    index = source.index_obj() if hasattr(source, "index_obj") else source
    steps = str(index.getIndexProperty("termpipelines", "Stopwords,PorterStemmer")).split(",")
    pipeline = tuple(step.strip() for step in steps if step.strip())
    tokeniser = str(index.getIndexProperty("tokeniser", "EnglishTokeniser"))
    frequencies = {str(entry.getKey()): int(entry.getValue().getDocumentFrequency()) for entry in index.getLexicon()}
    return _of_counts(
        int(index.getCollectionStatistics().getNumberOfDocuments()),
        frequencies,
        _TerrierAnalysis(tokeniser, pipeline),
        f"Idf({len(frequencies)} terms of a Terrier index)",
        stemmed=any("stem" in step.lower() for step in pipeline),
    )
