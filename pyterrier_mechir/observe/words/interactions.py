"""What pairs of a query's and a document's units add to the similarity of their vectors.

For an encoder f and texts a and b beside references r_a and r_b, the same texts with all of their units absent
(Moeller, Nikolaev and Pado, EMNLP 2023, EACL 2024)::

    (f(a) - f(r_a)) . (f(b) - f(r_b)) = sum over i, j of A_ij,   A = U_a U_b^T,

with U_a[i] the mean over the way from r_a to a of J (a - r_a)_i: how far the units of a move its vector, each by
itself, by the Jacobian J of f at points of the way. Each is one forward-mode product, whatever the width of the vector.
The sum leaves out what the references have in common with the texts, so all four terms are told::

    f(a).f(b) = sum A + f(a).f(r_b) + f(r_a).f(b) - f(r_a).f(r_b)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.autograd.forward_ad as forward
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyterrier_mechir.models.opened import Opened
from pyterrier_mechir.models.ports import on_port
from pyterrier_mechir.models.recording import record
from pyterrier_mechir.observe.words.explained import Asked, Explained
from pyterrier_mechir.observe.words.gradients import EMBED, empty_sequences
from pyterrier_mechir.observe.words.readings import Reading
from pyterrier_mechir.observe.words.readings import readings as readings_of
from pyterrier_mechir.rankers.bi_encoder import BiEncoder
from pyterrier_mechir.rankers.settings import DISTANCES
from pyterrier_mechir.text.encoding import Encoded, unique

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class _Moved(NamedTuple):
    """How the units of a text move its vector.

    Args:
        by_units: what each unit that is read adds to the vector, float64 ``[r, D]``.
        whole: the vector, ``[D]``.
        empty: that of the text with all of its units absent, ``[D]``.
    """

    by_units: np.ndarray
    whole: np.ndarray
    empty: np.ndarray


def check_interactions(ranker: Ranker) -> BiEncoder:
    """The ranker, if its score is a product of two vectors.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(ranker, BiEncoder) or ranker.similarity in DISTANCES:
        raise ValueError(
            "method='ig' tells what pairs of words add only for a BiEncoder of similarity dot or cosine, which "
            f"{ranker!r} is not; give interactions=False."
        )
    return ranker


def interactions(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations of similarities by pairs of units; args are those of :func:`~.left_out.occlusion`.

    What a unit carries is the sum of its pairs with all of the query: the integrated gradient of the similarity to
    f(b) - f(r_b).
    """
    documents = check_interactions(ranker)
    queries = [one.context for one in readings]
    distinct, which = unique(queries)
    facing = documents.facing("query")
    of_queries = readings_of(facing, [""] * len(distinct), distinct, asked.unit)
    moved_queries = [_moved(facing, one, asked) for one in of_queries]
    for reading, number in zip(readings, which, strict=True):
        text, query = _moved(documents, reading, asked), moved_queries[number]
        pairs = query.by_units @ text.by_units.T
        error = float((text.whole - text.empty) @ (query.whole - query.empty)) - float(pairs.sum())
        terms = {
            "empty_document": float(query.whole @ text.empty),
            "empty_query": float(query.empty @ text.whole),
            "both_empty": float(query.empty @ text.empty),
        }
        score = float(query.whole @ text.whole)
        yield Explained(
            reading,
            reading.scattered(pairs.sum(0)),
            rest=0.0,
            empty=terms["empty_document"] + terms["empty_query"] - terms["both_empty"],
            error=error,
            more={
                "query_units": of_queries[number].names,
                "interactions": _matrix(pairs, of_queries[number], reading),
                "interaction_terms": {"score": score, **terms},
            },
        )


def _matrix(pairs: np.ndarray, query: Reading, document: Reading) -> np.ndarray:
    """Pairs of units that are read as those of all units, and a last row and column of nothing."""
    found = np.zeros((len(query.spans) + 1, len(document.spans) + 1), dtype=np.float32)
    found[np.ix_(query.read, document.read)] = pairs
    return found


def _moved(ranker: BiEncoder, reading: Reading, asked: Asked) -> _Moved:
    opened, absent = ranker.opened, asked.absent(ranker)
    draws = [
        _by_units(ranker, opened, reading, without[0], asked.steps)
        for without in empty_sequences(ranker, [reading], absent)
    ]
    return _Moved(*(np.mean(parts, axis=0) for parts in zip(*draws, strict=True)))


def _by_units(ranker: BiEncoder, opened: Opened, reading: Reading, without: Encoded, steps: int) -> _Moved:
    """The movement of a vector along the way from one text to another, by forward-mode products."""
    n_units = len(reading.read)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        both = record(opened.encoding, ranker.collate([reading.located.sequence, without], {}, []), [EMBED])
        end, begin = both[EMBED]
        at = torch.from_numpy(reading.at).to(end.device)
        is_of = torch.arange(n_units, device=end.device)[:, None] == at[: len(end)]
        tangents = (end - begin) * is_of.unsqueeze(-1)
        total = end.new_zeros((n_units, both.scores.shape[1]), dtype=torch.float64)
        size = max(1, ranker.batch_tokens // 2 // len(end))
        jobs = [(unit, step) for step in range(steps) for unit in range(n_units)]
        batch = ranker.collate([reading.located.sequence] * min(size, len(jobs)), {}, []) if jobs else {}
        for first in range(0, len(jobs), size):
            units, places = zip(*jobs[first : first + size], strict=True)
            share = (end.new_tensor(places) + 0.5) / steps
            points = torch.lerp(begin, end, share[:, None, None])
            some = {name: value[: len(units)] for name, value in batch.items()}
            products = _products(opened, some, points, tangents[list(units)])
            total.index_add_(0, torch.tensor(units, device=end.device), products.double() / steps)
    whole, empty = both.scores.double().cpu().numpy()
    return _Moved(total.cpu().numpy(), whole, empty)


def _products(opened: Opened, batch: dict[str, Tensor], points: Tensor, tangents: Tensor) -> Tensor:
    """The Jacobian of the vector at embeddings, times tangents there: ``[B, D]``."""
    with forward.dual_level():
        dual = forward.make_dual(points, tangents)
        with on_port(opened.anatomy.port(*EMBED), lambda value: dual):
            tangent = forward.unpack_dual(opened.encode(batch)).tangent
        return tangent.clone()
