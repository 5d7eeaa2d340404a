"""Frames of ExplainScore as HTML: per query, the ranked documents with their words coloured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import pandas as pd

from pyterrier_mechir.plots.explained import Explained, Query, error_sentence, queries, sentence
from pyterrier_mechir.plots.markup import LITERAL_CLASSES, number
from pyterrier_mechir.plots.word_markup import coloured, legend, style

_MOST_DOCUMENTS = 10
_MOST_UNITS = 6000
"""Units that are shown, so that a notebook stays small; the first document is shown whatever it has."""

_STYLE = (
    "<style>.mechir-words{overflow-x:auto;padding:1.6em 0 .2em;font-variant-numeric:tabular-nums}"
    ".mechir-words p{margin:.2em 0}.mechir-words table{border-collapse:collapse}"
    ".mechir-words th,.mechir-words td{text-align:left;vertical-align:top;padding:.25em .7em}"
    ".mechir-words td.text{min-width:16em;max-width:60em}.mechir-words td.n{text-align:right}"
    ".mechir-words td:not(.text){white-space:nowrap}</style>"
)


def ranked_words(frame: pd.DataFrame) -> str:
    """A frame of :class:`~pyterrier_mechir.ExplainScore` as HTML for notebooks.

    Each query has a table of its documents, in the order of their ranks and on one scale of colours; what is beyond the
    first documents is counted.

    Args:
        frame: of ExplainScore.

    Raises:
        ValueError: it is another frame, or its units do not stand in its text.
    """
    found = queries(frame, "the list of words")
    said = [
        f"{len(frame):,} documents of {len(found):,} queries",
        *(text for text in [sentence(frame)] if text),
    ]
    tables = [part for query, shown in _shown(found) for part in _of_query(query, shown)]
    n = sum(len(shown) for _, shown in _shown(found))
    notes = [f"{n} of {len(frame):,} documents."] if n < len(frame) else []
    notes += [text for text in [error_sentence(frame)] if text]
    return "".join(
        [
            f'<div class="mechir-words {LITERAL_CLASSES}">{_STYLE}{style()}<p>{escape("; ".join(said))}</p>',
            *tables,
            f"<p>{escape(' '.join(notes))}</p></div>",
        ]
    )


def _shown(found: Sequence[Query]) -> Iterator[tuple[Query, list[Explained]]]:
    """The queries with those of their documents that are shown."""
    n_documents = n_units = 0
    for query in found:
        shown = []
        for document in query.documents:
            n_units += len(document.units)
            if n_documents == _MOST_DOCUMENTS or (n_documents and n_units > _MOST_UNITS):
                break
            shown.append(document)
            n_documents += 1
        if shown:
            yield query, shown
        if len(shown) < len(query.documents):
            return


def _of_query(query: Query, shown: Sequence[Explained]) -> Iterator[str]:
    """The query, the table of its documents, and the scale that they share."""
    has_margin = any(document.margin for document in shown)
    header = ["rank", "docno", "score", *(["margin"] if has_margin else []), "words"]
    names = "".join(f'<th scope="col">{name}</th>' for name in header)
    rows = "".join(f"<tr>{_row(document, has_margin, query.limit)}</tr>" for document in shown)
    yield f"<p><strong>{escape(query.query)}</strong> ({escape(query.qid)})</p>"
    yield f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    yield legend(query.limit, lacks=any(document.is_cut for document in shown))


def _row(document: Explained, has_margin: bool, limit: float) -> str:
    cells = [
        f"<td class=n>{'' if document.rank is None else escape(str(document.rank))}</td>",
        f"<td>{escape(document.docno)}</td>",
        f"<td class=n>{number(document.score)}</td>",
        *([f"<td>{escape(document.margin)}</td>"] if has_margin else []),
        f'<td class="text">{coloured(document.text, document.spans, document.scores, limit)}</td>',
    ]
    return "".join(cells)
