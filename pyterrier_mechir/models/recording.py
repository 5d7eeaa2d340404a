"""A model's run with the activations that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyterrier_mechir.models.ports import on_port

if TYPE_CHECKING:
    from pyterrier_mechir.models.opened import Batch, Forward
    from pyterrier_mechir.rankers.base import Ranker


@dataclass(frozen=True)
class Recording:
    """One run of a batch: its scores (or what else was read off it) and the activations asked for."""

    scores: Tensor
    activations: dict[tuple[int, str], Tensor]

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self.activations[key]

    def rows(self, index: Any) -> Recording:
        """The recording of some of the runs."""
        return Recording(self.scores[index], {key: value[index] for key, value in self.activations.items()})


def record(
    ranker: Ranker, batch: Batch, wanted: Iterable[tuple[int, str]], forward: Forward | None = None
) -> Recording:
    """Run a batch and keep the wanted activations.

    Args:
        ranker: the model.
        batch: its inputs, for ``B`` runs.
        wanted: (layer, activation) of each activation to keep.
        forward: what runs the model, ``ranker.forward`` (which gives scores) or ``ranker.encode``; None
            is the first.

    Returns:
        scores ``[B]`` and activations ``[B, S, D]``.
    """
    activations: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str]) -> Callable[[Tensor], None]:
        return lambda value: activations.__setitem__(key, value)

    with ExitStack() as stack:
        for key in wanted:
            stack.enter_context(on_port(ranker.anatomy.port(*key), keep(key)))
        scores = (forward or ranker.forward)(batch)
    return Recording(scores, activations)
