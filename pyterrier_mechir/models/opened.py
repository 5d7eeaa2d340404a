"""A model opened up: its parts, and one way to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyterrier_mechir.models.anatomy import Anatomy

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""The inputs of a run; every tensor has the runs on its first axis."""

Forward = Callable[[Batch], "Tensor"]
"""Runs the model; what it returns has the runs on its first axis."""


@dataclass(frozen=True)
class Pooled:
    """A score that reads the final states through their weighted sum alone.

    Args:
        weights: what each position weighs in the sum, ``[B, S]``, given a batch.
        score: scores ``[..., B]`` of sums ``[..., B, d]``, given the batch.
    """

    weights: Callable[[Batch], Tensor]
    score: Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Opened:
    """All that recording, replaying and gradients need of a model.

    A ranker gives its own (``ranker.opened``). A metric gives one whose ``forward`` measures something other than the
    score, an edited ranker one whose ``encode`` applies the edits: neither has to touch the ranker.

    Args:
        anatomy: the parts of the stack that is recorded and replayed.
        forward: runs a batch of ``B`` inputs and gives what is measured, ``[B]``: the scores.
        encode: runs the model and gives what scores are made of, ``[B, ...]``: vectors, or the scores themselves.
        reads_first_token: whether what ``forward`` gives depends on the last layer at the first position only, so that
            other positions need not be computed there.
        pooled: how scores are made of a weighted sum of the final states; None where they are made otherwise.
        reads_stream: whether what ``forward`` gives of a text depends on it through the residual stream alone, so that
            runs with the same stream at all positions of some layer have the same score.
        reads_at: the one position of each run, ``[B]``, whose final state is all that ``forward`` reads, given a batch;
            None where it reads more.
        compare: how scores ``[B]`` are made of what ``encode`` gives, and of the batch, where that is something of each
            position's own state; None where it is not.
        reads_within: whether what ``forward`` gives is read within the layers, and not made of what leaves them.
    """

    anatomy: Anatomy
    forward: Forward
    encode: Forward
    reads_first_token: bool
    pooled: Pooled | None = None
    reads_stream: bool = False
    reads_at: Callable[[Batch], Tensor] | None = None
    compare: Callable[[Tensor, Batch], Tensor] | None = None
    reads_within: bool = False

    @property
    def encoding(self) -> Opened:
        """The same with ``encode`` in the place of ``forward``: its runs give what scores are made of."""
        return self.giving(self.encode)

    def giving(self, forward: Forward) -> Opened:
        """The same with another ``forward``, of which nothing more is known than what it reads of the last layer."""
        return replace(self, forward=forward, pooled=None, reads_stream=False, compare=None)
