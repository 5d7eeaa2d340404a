"""What the report shows of explained scores: the documents of each query side by side, their words coloured."""

from __future__ import annotations

from typing import Any
from unicodedata import bidirectional

import pandas as pd

from pyterrier_mechir.plots.explained import Explained, error_sentence, queries, sentence, told
from pyterrier_mechir.plots.markup import number, signed
from pyterrier_mechir.plots.word_markup import coloured, digits, legend

_MOST_QUERIES = 20
_MOST_DOCUMENTS = 6
_MOST_UNITS = 20_000
_MOST_NAMED = 5

_SOURCES = {
    "ig": "Integrated gradients: Mukund Sundararajan, Ankur Taly, Qiqi Yan. Axiomatic Attribution for Deep Networks. "
    "ICML 2017.",
    "lime": "Local models: Marco Tulio Ribeiro, Sameer Singh, Carlos Guestrin. Why Should I Trust You? Explaining the "
    "Predictions of Any Classifier. KDD 2016.",
    "occlusion": "Occlusion: Jiwei Li, Will Monroe, Dan Jurafsky. Understanding Neural Networks through Representation "
    "Erasure. arXiv:1612.08220, 2016.",
}


def words_of(frame: pd.DataFrame) -> dict[str, Any]:
    """Explained scores as the report shows them.

    Args:
        frame: of :class:`~pyterrier_mechir.ExplainScore`.

    Returns:
        Sentences about what is shown, the queries with their documents as HTML, the unit, and the source of the method,
        None where it has none; nothing at all where the frame has no rows.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: it is no frame of ExplainScore, or its units do not stand in its text.
    """
    found = queries(frame, "words=")
    made: list[dict[str, Any]] = []
    n_units = 0
    for query in found[:_MOST_QUERIES]:
        shown = query.documents[:_MOST_DOCUMENTS]
        n_units += sum(len(document.units) for document in shown)
        if made and n_units > _MOST_UNITS:
            break
        made.append(
            {
                "qid": query.qid,
                "query": query.query,
                "documents": [_document(document, query.limit) for document in shown],
                "n_documents": len(query.documents),
                "legend": legend(query.limit, lacks=any(document.is_cut for document in shown)),
            }
        )
    if not made:
        return {}
    notes = [f"{text[0].upper()}{text[1:]}." for text in [sentence(frame)] if text]
    notes += [text for text in [error_sentence(frame)] if text]
    notes += [f"The first {len(made):,} of {len(found):,} queries."] if len(made) < len(found) else []
    known = told(frame)
    source = _SOURCES.get(known.get("method", ""))
    return {"notes": notes, "queries": made, "unit": known.get("unit", "unit"), "source": source}


def _document(document: Explained, limit: float) -> dict[str, Any]:
    return {
        "docno": document.docno,
        "rank": document.rank,
        "score": number(document.score),
        "margin": document.margin,
        "text": coloured(document.text, document.spans, document.scores, limit),
        "strongest": _named(document, digits(limit)),
    }


def _named(document: Explained, decimals: int) -> str:
    return ", ".join(f"{_isolated(unit)} {signed(score, decimals)}" for unit, score in document.strongest(_MOST_NAMED))


def _isolated(unit: str) -> str:
    """A unit that is written from right to left between marks that keep what follows it in its place."""
    is_leftward = any(bidirectional(character) in ("R", "AL") for character in unit)
    return f"\N{FIRST STRONG ISOLATE}{unit}\N{POP DIRECTIONAL ISOLATE}" if is_leftward else unit
