"""Query terms and how often a collection has them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_FUNCTION_WORDS = """
    a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just may me might more most must my myself no nor not
    now of off on once only or other our ours ourselves out over own same shall she should so some such than that
    the their theirs them themselves then there these they this those through to too under until up upon very was we
    were what when where which while who whom whose why will with would you your yours yourself yourselves
"""

STOPWORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words, which carry no term-matching signal."""

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def words(text: str) -> list[str]:
    """The words of a text as they stand: runs of letters and digits, joined by inner hyphens and apostrophes."""
    return _WORD.findall(text)


def query_terms(query: str) -> list[str]:
    """The words of a query without function words; all its words where it has no others."""
    terms = words(query)
    return [term for term in terms if term.lower() not in STOPWORDS] or terms


def lowercase_words(text: str) -> list[str]:
    """The default analysis of terms: lower-cased words, unstemmed."""
    return words(text.lower())


class Idf:
    """Inverse document frequencies, with the analysis that their terms went through.

    Args:
        values: idf of each analysed term.
        analyse: the tokeniser and stemmer that made these terms; applied to every term looked up.
        name: shown by ``repr``.
    """

    def __init__(self, values: Mapping[str, float], analyse: Callable[[str], list[str]], name: str):
        self._values, self._analyse, self._name = values, analyse, name

    def __repr__(self) -> str:
        return self._name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Idf):
            return NotImplemented
        return self._analyse == other._analyse and self._values == other._values

    def __hash__(self) -> int:
        return hash((self._analyse, len(self._values)))

    def __call__(self, term: str) -> float | None:
        """The idf of a term as written; None where the collection does not have it."""
        known = [self._values[token] for token in self._analyse(term) if token in self._values]
        return max(known, default=None)

    @classmethod
    def of(cls, source: Any, analyse: Callable[[str], list[str]] | None = None) -> Idf:
        """Read document frequencies from wherever they are.

        Args:
            source: an ``Idf``; a built ``PisaIndex``, whose own tokeniser and stemmer are used; a mapping of terms to
                idf; or an iterable of texts or of dicts with a ``text`` (a corpus iterator), which is read once.
            analyse: for a mapping or a corpus, text to terms; lower-cased words by default.

        Raises:
            TypeError: the source is none of these.
            ValueError: a PISA index that is not built, or given with an ``analyse`` that is not its own.
        """
        if isinstance(source, Idf):
            return source
        if _is_pisa_index(source):
            if analyse is not None:
                raise ValueError("a PISA index has its own tokeniser and stemmer; leave analyse out.")
            return cls._of_pisa_index(source)
        analyse = analyse or lowercase_words
        if isinstance(source, Mapping):
            return cls(source, analyse, f"Idf({len(source)} terms)")
        if isinstance(source, Iterable) and not isinstance(source, str):
            return cls._of_corpus(source, analyse)
        raise TypeError(
            f"idf should be a PisaIndex, a mapping or an iterable of documents, not {type(source).__name__}."
        )

    @classmethod
    def _of_corpus(cls, documents: Iterable[Any], analyse: Callable[[str], list[str]]) -> Idf:
        frequencies: Counter[str] = Counter()
        n = 0
        for document in documents:
            frequencies.update(set(analyse(document if isinstance(document, str) else document["text"])))
            n += 1
        return cls({term: _idf(n, df) for term, df in frequencies.items()}, analyse, f"Idf({n} documents)")

    @classmethod
    def _of_pisa_index(cls, index: Any) -> Idf:
        if not index.built():
            raise ValueError(f"{index!r} is not built; index a collection first.")
        postings = np.memmap(index.path / "inv.docs", mode="r", dtype=np.uint32)
        n = int(postings[1])
        values = {}
        begin = 2
        with (index.path / "fwd.terms").open(encoding="utf-8") as terms:
            for term in terms:
                df = int(postings[begin])
                values[term.rstrip("\n")] = _idf(n, df)
                begin += df + 1
        return cls(values, _PisaAnalysis(index.stemmer.value), f"Idf({index!r})")


@dataclass(frozen=True)
class _PisaAnalysis:
    """The tokeniser and stemmer of a PISA index."""

    stemmer: str

    def __call__(self, text: str) -> list[str]:
        from pyterrier_pisa import tokenize

        return tokenize(text, self.stemmer)


def _is_pisa_index(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "pyterrier_pisa" and hasattr(source, "tokenize")


def _idf(n: int, df: int) -> float:
    """The idf of Robertson and Sparck Jones, kept positive: ln(1 + (N - df + 0.5) / (df + 0.5))."""
    return math.log(1 + (n - df + 0.5) / (df + 0.5))
