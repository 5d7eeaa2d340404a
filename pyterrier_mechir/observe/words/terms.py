"""Scores that are sums, told exactly: SPLADE's over terms, ColBERT's over the tokens of the query.

SPLADE's score is the sum over terms of the query's weight times the document's, and each weight comes from the position
at which its logit is greatest (with ``sum`` pooling, from all of them). ColBERT's is the sum over the tokens of the
query of the cosine with the token of the document that matches best. So what each position of a query and of a document
adds together is a matrix that sums to the score, without any error of method. Which position is the greatest one may be
another after an edit, so that differences of two texts are not differences of their matrices alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pyterrier_mechir.observe.words.explained import Asked, Explained
from pyterrier_mechir.observe.words.readings import Reading
from pyterrier_mechir.observe.words.readings import readings as readings_of
from pyterrier_mechir.rankers.colbert import ColBERT
from pyterrier_mechir.rankers.splade import Splade
from pyterrier_mechir.text.encoding import unique

if TYPE_CHECKING:
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.base import Ranker

SUMS = (Splade, ColBERT)
"""Rankers whose scores are sums over tokens."""


class _Terms(NamedTuple):
    """The terms of a SPLADE's query that the document has, by falling share of the score.

    Args:
        ids: which terms, ``[t]``.
        scores: what each adds to the score, ``[t]``.
        in_query: the position of the query that raises each most, ``[t]``.
        in_document: likewise of the document.
    """

    ids: np.ndarray
    scores: np.ndarray
    in_query: np.ndarray
    in_document: np.ndarray


class _Sum(NamedTuple):
    """What pairs of positions of query and document add to a score, and SPLADE's terms."""

    added: np.ndarray
    terms: _Terms | None


def exact_terms(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations by what each unit adds to a score that is a sum; args are those of :func:`~.left_out.occlusion`."""
    assert isinstance(ranker, SUMS)
    of_queries = ranker.varies == "query"
    documents = ranker.facing("document")
    texts, contexts = [one.text for one in readings], [one.context for one in readings]
    queries, documents_of = (texts, contexts) if of_queries else (contexts, texts)
    others = readings_of(ranker.facing(ranker.sequences.fixed_side), texts, contexts, asked.unit)
    for row, score, one in _sums(documents, queries, documents_of, asked.batch_size):
        reading, other = readings[row], others[row]
        in_text = one.added.sum(0) if not of_queries else one.added.sum(1)
        sums, rest = reading.summed(_in_sequence(in_text, len(reading.at)))
        error = score - float(sums.sum()) - rest
        more: dict[str, Any] = {}
        if one.terms is not None:
            assert isinstance(documents, Splade)
            where = reading.at[one.terms.in_query if of_queries else one.terms.in_document]
            more = {
                "terms": documents.named_terms(one.terms.ids.tolist()),
                "term_scores": one.terms.scores.astype(np.float32),
                "term_units": np.where(where >= 0, np.append(reading.read, -1)[where], -1),
            }
        if asked.interactions:
            more |= {"query_units": other.names, "interactions": _by_units(one.added, other, reading)}
        yield Explained(reading, reading.scattered(sums), rest, 0.0, error, more)


def _sums(
    ranker: Splade | ColBERT, queries: Sequence[str], texts: Sequence[str], batch_size: int | None
) -> Iterator[tuple[int, float, _Sum]]:
    """For each row its number, its score, and what pairs of positions of query and document add to it."""
    distinct, which = unique(queries)
    inputs = ranker.query_inputs(distinct)
    of_queries = _query_sides(ranker, distinct)
    for shared in ranker.parts(queries, texts, batch_size=batch_size, inputs=inputs):
        with torch.no_grad():
            encoded = ranker.encode(shared.batch)[shared.places]
            scores = ranker.compare(encoded, shared.inputs).tolist()
        for place, (row, score) in enumerate(zip(shared.rows, scores, strict=True)):
            of_row = {name: value[place : place + 1] for name, value in shared.inputs.items()}
            yield row, score, _sum(ranker, encoded[place : place + 1], of_row, of_queries[which[row]])


class _QuerySide(NamedTuple):
    """A query as its own model reads it.

    Args:
        ranker: the ranker, facing queries.
        encoded: what the model made of the query, ``[1, S, ...]``.
        mask: which positions count, bool ``[1, S]``.
    """

    ranker: Any
    encoded: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def _query_sides(ranker: Splade | ColBERT, queries: Sequence[str]) -> list[_QuerySide]:
    facing = ranker.facing("query")
    made: dict[int, _QuerySide] = {}
    for index, batch, encoded in facing.encoded(queries):
        mask = facing.counted(batch) if isinstance(facing, ColBERT) else batch["attention_mask"].bool()
        for place, number in enumerate(index.tolist()):
            made[number] = _QuerySide(facing, encoded[place : place + 1], mask[place : place + 1])
    return [made[number] for number in range(len(queries))]


@torch.no_grad()
def _sum(ranker: Splade | ColBERT, encoded: torch.Tensor, inputs: Batch, query: _QuerySide) -> _Sum:
    if isinstance(ranker, ColBERT):
        at = query.mask[0].nonzero()[:, 0]
        matches = ranker.matches(encoded, inputs)[0].T.double()
        added = matches.new_zeros((query.mask.shape[1], matches.shape[1]))
        added[at] = matches[: len(at)]
        return _Sum(added.cpu().numpy(), None)
    has_weight = inputs["query_weights"][0] > 0
    terms = inputs["query_terms"][0][has_weight]
    in_document = ranker.at_positions(encoded, inputs["attention_mask"], terms)[0].double()
    in_query = query.ranker.at_positions(query.encoded, query.mask, terms)[0].double()
    of_terms = in_document.sum(1) * in_query.sum(1)
    order = of_terms.argsort(descending=True, stable=True)
    order = order[of_terms[order] > 0]
    told = (value[order].cpu().numpy() for value in (terms, of_terms, in_query.argmax(1), in_document.argmax(1)))
    return _Sum((in_query.T @ in_document).cpu().numpy(), _Terms(*told))


def _in_sequence(of_positions: np.ndarray, length: int) -> np.ndarray:
    """Numbers at the positions of a batch as those of a sequence of some length."""
    return np.pad(of_positions, (0, max(0, length - len(of_positions))))[:length]


def _by_units(added: np.ndarray, query: Reading, document: Reading) -> np.ndarray:
    """What pairs of units add, ``[query unit + 1, document unit + 1]``: the last row and column are of no unit."""
    rows, columns = ([*reading.read.tolist(), len(reading.spans)] for reading in (query, document))
    found = np.zeros((len(query.spans) + 1, len(document.spans) + 1), dtype=np.float32)
    of_rows = np.stack([np.append(*document.summed(_in_sequence(row, len(document.at)))) for row in added])
    summed = np.stack([np.append(*query.summed(_in_sequence(row, len(query.at)))) for row in of_rows.T], axis=1)
    found[np.ix_(rows, columns)] = summed
    return found
