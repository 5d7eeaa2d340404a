"""Rankers that encode queries and documents apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.batches import batches_of_sequences
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.rankers.lengths import within
from pyterrier_mechir.rankers.running import Tower
from pyterrier_mechir.text.sequences import Sequences

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pyterrier_mechir.models.edits import Edit
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.settings import Modules

Self = TypeVar("Self", bound="DualEncoder")


class DualEncoder(Interactive):
    """A ranker that encodes queries and documents apart, and compares what comes of them.

    What is patched is the encoder of the document, or of the query where queries are perturbed.

    Args:
        model: a Hugging Face id, a directory, or a loaded ``(model, tokenizer)``.
        modules: what the checkpoint says of itself.
        query_prefix: put before every query; None reads the checkpoint's own.
        doc_prefix: put before every document; None reads the checkpoint's own.
        max_query_length: longest query, in tokens with special ones; None takes the checkpoint's own, else
            ``max_length``.
        max_length: longest document, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: as in :class:`~pyterrier_mechir.rankers.base.Ranker`.
        auto_class: the class of transformers that loads the model.
    """

    reads_query = False

    libraries = ("sentence_transformers", "pylate")

    _of_sides: ClassVar[tuple[tuple[str, str], ...]] = (
        ("query_prefix", "doc_prefix"),
        ("max_query_length", "max_length"),
        ("_query_template", "_template"),
        ("_query_twins", "_twins"),
        ("_query_model", "model"),
    )
    """The attributes that queries and documents each have of their own."""

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        modules: Modules,
        *,
        query_prefix: str | None,
        doc_prefix: str | None,
        max_query_length: int | None,
        max_length: int | None,
        device: str | None,
        dtype: str,
        auto_class: str,
    ):
        self.query_prefix = (modules.query_prefix or "") if query_prefix is None else query_prefix
        self.doc_prefix = (modules.doc_prefix or "") if doc_prefix is None else doc_prefix
        super().__init__(
            model,
            max_length=max_length,
            declared_length=modules.max_length,
            device=device,
            dtype=dtype,
            auto_class=auto_class,
            subfolder=modules.subfolder,
            lowercase=modules.lowercase,
        )
        if max_query_length is None:
            max_query_length = within(self.model, modules.max_query_length) or max_length or self._longest()
        self.max_query_length = self._checked("max_query_length", max_query_length)
        self._query_template = self._template
        self._query_twins = self._twins
        self._query_model = self.model

    def under(self: Self, edits: Sequence[Edit], side: str = "both") -> Self:
        made = super().under(edits, side)
        if side != self.varies:
            from pyterrier_mechir.models.edits import EditedTwins

            is_shared = self._query_twins is self._twins and side == "both"
            made._query_twins = made._twins if is_shared else EditedTwins(self._query_twins, edits)
        return made

    def towers(self) -> dict[str, Tower]:
        made = self.facing("document")
        of_documents = Tower(made.model, made._twins.edits)
        of_queries = Tower(made._query_model, made._query_twins.edits)
        if of_documents.is_as(of_queries):
            return {"both": of_documents}
        return {"query": of_queries, "document": of_documents}

    @property
    def models(self) -> list[PreTrainedModel]:
        return [self.twin] if self._query_twins is self._twins else [self.twin, self._query_twins.current()]

    def with_model(self: Self, model: Any) -> Self:
        made = super().with_model(model)
        if self._query_model is self.model:
            is_shared = self._query_twins is self._twins
            made._query_model = model
            made._query_twins = made._twins if is_shared else self._query_twins.of_model(model)
        return made

    def facing(self: Self, side: str) -> Self:
        return self if one_of("side", side, ("document", "query")) == self.varies else self._other_side()

    def _other_side(self: Self) -> Self:
        """This ranker with pairs that vary on the other side: what encodes the side that is the same for both."""
        other = copy(self)
        other.varies = self.sequences.fixed_side
        for pair in self._of_sides:
            for name, mirrored in zip(pair, pair[::-1], strict=True):
                setattr(other, name, getattr(self, mirrored))
        return other

    def encoded(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, Batch, torch.Tensor]]:
        """Encode texts of the side that varies, batch by batch.

        Yields:
            For each batch, which texts are in it, its inputs, and what :meth:`encode` makes of them.
        """
        import torch

        for index, batch in batches_of_sequences(self, self.sequences.plain([], texts)):
            with torch.set_grad_enabled(self.keeps_graph and torch.is_grad_enabled()):
                made = self.encode(batch)
            yield index, batch, made

    @property
    def sequences(self) -> Sequences:
        return replace(super().sequences, prefixes={self.varies: self.doc_prefix})


def inputs_of_model(batch: Batch) -> Batch:
    """The part of a batch that goes into a transformers model."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}


def in_one(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of different lengths in one tensor, filled up with zeros; empty where there are none."""
    import torch

    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True) if rows else torch.empty((0, 0))
