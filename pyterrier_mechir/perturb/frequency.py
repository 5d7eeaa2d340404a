"""Term frequency axioms: more occurrences of a query term."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.terms import Idf, query_terms

_PLACES = ("end", "start", "random")


def insert(text: str, term: str, place: int) -> str:
    """Insert a term before the word number ``place`` of a text, or at its end, leaving the rest as it is."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if place < len(starts):
        return f"{text[: starts[place]]}{term} {text[starts[place] :]}"
    return f"{text} {term}" if text else term


class _InsertTerm(Perturbation):
    """Insertion of one term at a position."""

    def __init__(self, position: str | int = "end", seed: int = 0):
        if position not in _PLACES and not (isinstance(position, int) and position >= 0):
            raise ValueError(
                f"unknown position {position!r}; choose one of {', '.join(map(repr, _PLACES))}, or a word index."
            )
        self.position, self.seed = position, seed

    def _term(self, text: str, query: str) -> str | None:
        raise NotImplementedError

    def __call__(self, text: str, query: str) -> str | None:
        term = self._term(text, query)
        if term is None:
            return None
        n_words = len(text.split())
        if self.position == "end":
            return insert(text, term, n_words)
        if self.position == "start":
            return insert(text, term, 0)
        if self.position == "random":
            return insert(text, term, self._random(self.seed, text, f"{query}\x1fposition").randint(0, n_words))
        return insert(text, term, int(self.position)) if int(self.position) <= n_words else None


class TFC1(_InsertTerm):
    """One more occurrence of a query term, against a filler (TFC1; Fang, Tao and Zhai, SIGIR 2004).

    A ranker that satisfies the axiom scores the perturbed document higher.

    Args:
        term: the term; None draws one of the query's terms at random, function words left aside.
        position: ``end``, ``start``, ``random``, or a word index of the text (0 is its start).
        seed: of the random choices, which depend on nothing else but the row's query and text.

    Does not apply to a query without words, nor where the text has fewer words than the index.

    Raises:
        ValueError: an unknown position.
    """

    def __init__(self, term: str | None = None, position: str | int = "end", seed: int = 0):
        super().__init__(position, seed)
        self.term = term

    def _term(self, text: str, query: str) -> str | None:
        if self.term is not None:
            return self.term
        terms = query_terms(query)
        return self._random(self.seed, text, query).choice(terms) if terms else None


class TDC(_InsertTerm):
    """The query's most discriminative term once more, against a filler.

    This is the perturbation published under the name of the term discrimination constraint (Parry et al., ECIR 2025):
    the query term of highest idf is added. Terms go through the tokeniser and stemmer of the index that counted them,
    so an inflected word has its own frequency and not none.

    Args:
        idf: where document frequencies come from: a built ``PisaIndex``, a mapping of terms to idf, or an iterable of
            documents (see :meth:`pyterrier_mechir.perturb.terms.Idf.of`).
        position: as in :class:`TFC1`.
        seed: of a random position.
        analyse: for a mapping or documents, text to terms; lower-cased words by default.

    Does not apply to a query of whose terms the collection has none.

    Raises:
        TypeError: ``idf`` is of another kind.
        ValueError: an unknown position, or an index that is not built.
    """

    def __init__(
        self,
        idf: Any,
        position: str | int = "end",
        seed: int = 0,
        analyse: Callable[[str], list[str]] | None = None,
    ):
        super().__init__(position, seed)
        self.idf = Idf.of(idf, analyse)

    def _term(self, text: str, query: str) -> str | None:
        values = {term: self.idf(term) for term in query_terms(query)}
        known = {term: value for term, value in values.items() if value is not None}
        return max(known, key=lambda term: known[term], default=None)
