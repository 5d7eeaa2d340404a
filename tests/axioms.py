"""Rows and instances for the tests of the axioms, and words found without the package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from pyterrier_mechir.perturb import (
    AND,
    ANTI_REG,
    LB1,
    LB2,
    LNC1,
    LNC2,
    MTDC,
    PROX1,
    PROX2,
    PROX3,
    PROX4,
    PROX5,
    QPHRA,
    REG,
    TDC,
    TFC1,
    TFC2,
    TFC3,
    TFLNC,
    Pair,
    Perturbation,
)

IDF = {"moon": 2.0, "tides": 4.0, "ocean": 4.2, "high-water": 3.9, "neap": 4.4}
SIMILAR = {"tides": ["water", "rise"], "ocean": ["water", "O'Brien's"], "moon": ["größe"]}
STOP = ["the", "of", "and"]
TERMS = list(IDF)
OTHERS = ["the", "of", "rise", "water", "O'Brien's", "Größe", "x2"]

AXIOMS: list[Perturbation] = [
    TFC1(),
    TFC1(position="beside"),
    TFC1(position="random", n=2),
    TFC1(replace="one"),
    TFC1(replace="all"),
    TFC2(),
    TFC2(0, position="random"),
    TFC2(1, 3, position="beside", filler="so"),
    TFC3(IDF),
    TDC(IDF, position="random"),
    TDC(IDF, reading="swap"),
    MTDC(IDF),
    LB1(),
    LB1("random"),
    LB1(idf=IDF),
    LB2("first"),
    LB2("further", position="random"),
    AND(),
    AND(idf=IDF),
    REG(),
    REG(SIMILAR),
    REG(idf=IDF),
    ANTI_REG(),
    LNC1(),
    LNC1("granite walls", position="random"),
    LNC1(["granite", "walls of stone"], n=2),
    LNC2(),
    LNC2(3),
    TFLNC(position="random"),
    PROX1(),
    PROX2(),
    PROX3(),
    PROX4(),
    PROX5(),
    QPHRA(),
]


def each_axiom(keep: Callable[[Perturbation], bool] = lambda axiom: True) -> pytest.MarkDecorator:
    """A test of every axiom, or of some of them."""
    kept = [pytest.param(axiom, id=f"{i}-{axiom.name}") for i, axiom in enumerate(AXIOMS) if keep(axiom)]
    return pytest.mark.parametrize("axiom", kept)


many = settings(max_examples=100, deadline=None, derandomize=True)

_written = [word for term in TERMS for word in (*[term] * 4, term.capitalize())] + OTHERS
_separators = [*[" "] * 30, ", ", ". ", "; ", " (", ") ", " - ", "/", "\n", "  ", ' "', "' "]
_query_words = [*TERMS, *TERMS, "Tides", "OCEAN", "the", "of", "zebra"]


def _drawn_row(words: list[str], separators: list[str], query: list[str], quoted: bool) -> tuple[str, str]:
    text = "".join(word + separator for word, separator in zip(words, separators, strict=True))
    return text.removesuffix(" "), (f'"{" ".join(query)}"' if quoted else " ".join(query))


@st.composite
def rows(draw: st.DrawFn, least: int = 0) -> tuple[str, str]:
    """A text and a query that often has some of its words."""
    n = draw(st.integers(least, 12))
    words = draw(st.lists(st.sampled_from(_written), min_size=n, max_size=n))
    separators = draw(st.lists(st.sampled_from(_separators), min_size=n, max_size=n))
    n_asked = draw(st.integers(0, 4))
    query = draw(st.lists(st.sampled_from(_query_words), min_size=n_asked, max_size=n_asked))
    return _drawn_row(words, separators, query, draw(st.booleans()))


@cache
def some_rows(n: int = 250) -> list[tuple[str, str]]:
    """The same rows in every process, of the vocabulary of :func:`rows`."""
    rng = Random(0)
    found = []
    for _ in range(n):
        words = rng.choices(_written, k=rng.randint(3, 16))
        query = rng.choices(_query_words, k=rng.randint(1, 4))
        found.append(_drawn_row(words, rng.choices(_separators, k=len(words)), query, rng.random() < 0.5))
    return found


def pairs_of(axiom: Perturbation) -> Iterator[tuple[Pair, str]]:
    """The pairs that an axiom makes of the rows, each with its query."""
    for text, query in some_rows():
        pair = axiom.pair(text, query)
        if pair is not None:
            yield pair, query


def digest() -> str:
    """What all axioms make of the rows, as one number."""
    made = [axiom(*row) for axiom in AXIOMS for row in some_rows()]
    return hashlib.blake2b(repr(made).encode()).hexdigest()


def spans(text: str) -> list[tuple[int, int]]:
    """Where each word begins and ends: letters, digits and _, with single hyphens and apostrophes inside."""
    found: list[tuple[int, int]] = []
    place = 0
    while place < len(text):
        if not _of_word(text[place]):
            place += 1
            continue
        begin = place
        while place < len(text) and (
            _of_word(text[place]) or (text[place] in "-'\u2019" and place + 1 < len(text) and _of_word(text[place + 1]))
        ):
            place += 1
        found.append((begin, place))
    return found


def _of_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def written(text: str) -> list[str]:
    """The words as they stand."""
    return [text[begin:end] for begin, end in spans(text)]


def lowered(text: str) -> list[str]:
    """The words, lower-cased."""
    return [word.lower() for word in written(text)]


def gaps(text: str) -> list[str]:
    """What stands before, between and after the words."""
    bounds = [0, *(bound for span in spans(text) for bound in span), len(text)]
    return [text[bounds[i] : bounds[i + 1]] for i in range(0, len(bounds), 2)]


def asked(query: str) -> list[str]:
    """The distinct lower-cased terms of a query of the rows, in their order."""
    words = list(dict.fromkeys(lowered(query)))
    return [word for word in words if word not in STOP] or words


def differing(one: list[str], other: list[str]) -> list[int]:
    """The places where two lists of as many words differ."""
    return [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
