"""A ranker whose model runs under edits: so far, with vectors added to its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.interventions.vectors import place_of
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.rankers.base import Ranker

if TYPE_CHECKING:
    from torch import Tensor


def edited(ranker: Ranker, vectors: Mapping[str, np.ndarray], alpha: float = 1.0) -> Opened:
    """A ranker's model with vectors added to its activations at every position, for ``ranker.score(..., opened=)``.

    Args:
        ranker: the ranker, which stays as it is.
        vectors: names of sites, and what is added there, float32 ``[d]``.
        alpha: how many times it is added.
    """
    places = {name: place_of(ranker, name) for name in vectors}
    opened = ranker.opened

    def encode(batch: Batch) -> Tensor:
        from pyterrier_mechir.models.ports import on_port

        with ExitStack() as stack:
            for name, (key, columns) in places.items():
                stack.enter_context(on_port(opened.anatomy.port(*key), _adding(alpha, vectors[name], columns)))
            return opened.encode(batch)

    return replace(opened, encode=encode, forward=lambda batch: ranker.compare(encode(batch), batch))


def _adding(alpha: float, vector: np.ndarray, columns: slice) -> Callable[[Tensor], Tensor]:
    """A function of an activation ``[B, S, D]`` that adds ``alpha`` times a vector to some columns of its last axis."""
    import torch

    added = alpha * torch.from_numpy(vector)

    def function(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[..., columns] += added.to(activation)
        return changed

    return function
