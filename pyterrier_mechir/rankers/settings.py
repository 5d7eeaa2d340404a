"""What a checkpoint may say of how it encodes, pools and compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.projection import Step

POOLINGS = ("cls", "mean", "last")

DISTANCES = ("euclidean", "manhattan")
"""Similarities that are distances, negated."""

SIMILARITIES = ("dot", "cosine", *DISTANCES)


@dataclass(frozen=True)
class Modules:
    """The options of a ranker that a sentence-transformers checkpoint fixes; None for all others.

    Args:
        subfolder: where its encoder is.
        pooling: how positions become a vector.
        similarity: how vectors are compared.
        query_prefix: what is put before queries.
        doc_prefix: what is put before documents.
        max_length: longest document.
        max_query_length: longest query.
        lowercase: whether texts are lower-cased.
        activation: of SPLADE, what becomes of logits.
        projection: what becomes of a pooled vector before it is compared, step by step.
        pools_prefix: whether the positions of what is put before texts are pooled with the others.
        query_model: the encoder of queries where it is another than that of documents, as a loaded pair or as its
            subfolder.
    """

    subfolder: str = ""
    pooling: str | None = None
    similarity: str | None = None
    query_prefix: str | None = None
    doc_prefix: str | None = None
    max_length: int | None = None
    max_query_length: int | None = None
    lowercase: bool = False
    activation: str | None = None
    projection: tuple[Step, ...] = ()
    pools_prefix: bool = True
    query_model: Any = None
