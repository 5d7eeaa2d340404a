"""Batches of sequences that are alike in length."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch


class Part(NamedTuple):
    """A batch of the distinct sequences of some (query, text) rows, and the rows that it scores.

    Args:
        batch: the sequences, without query inputs.
        rows: the rows.
        places: which sequence of the batch each of them has.
        inputs: the inputs of each of them: of its sequence, and its query inputs.
    """

    batch: Batch
    rows: list[int]
    places: list[int]
    inputs: Batch


def last_attended(mask: torch.Tensor) -> torch.Tensor:
    """The last position of each sequence that is attended to, ``[B]``, given the attention mask ``[B, S]``."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)
