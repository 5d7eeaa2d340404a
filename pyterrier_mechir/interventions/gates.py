"""One number for each attention head of a ranker, by which its output z is multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyterrier_mechir.interventions.edits import Scale
from pyterrier_mechir.models.sites import name_of_head
from pyterrier_mechir.rankers.base import Ranker

if TYPE_CHECKING:
    from torch import Tensor

STAGES = ("retention", "removal")
"""What gates are pulled towards: 1, or 0 (causal head gating: Nam et al., NeurIPS 2025)."""

ROLES = ("facilitating", "interfering", "irrelevant")


class Gates:
    """A ranker under a gate for each head, while they are learned.

    Args:
        ranker: the ranker.
        start: where gates begin, ``[layer, head]``.
        max_gate: the greatest that a gate may become.
        l1: how hard gates are pulled: what the loss gets for each unit of their mean distance from where to.
        pull: one of :data:`STAGES`.

    Raises:
        ValueError: queries and documents are encoded by models of different shapes.
    """

    def __init__(self, ranker: Ranker, start: np.ndarray, max_gate: float, l1: float, pull: str):
        import torch

        from pyterrier_mechir.models.edits import Affine

        queries = ranker if ranker.reads_query else ranker.facing("query")
        if (queries.n_layers, queries.n_heads) != (ranker.n_layers, ranker.n_heads):
            raise ValueError(
                f"{ranker!r} has an encoder of queries with {queries.n_layers} layers of {queries.n_heads} heads, and "
                f"one of documents with {ranker.n_layers} of {ranker.n_heads}, so that no gates are those of both."
            )
        self.max_gate, self.l1, self.towards = max_gate, l1, float(pull == "retention")
        self.gates = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        self.numbers = [self.gates]
        width = ranker.anatomy.width("z")
        self.size = width // ranker.n_heads
        self.leaves = [torch.ones(width, device=ranker.device, requires_grad=True) for _ in start]
        self.ranker = ranker.under(
            [
                Affine((layer, "z"), slice(0, width), scale, None, ranker.anatomy.cross_attends)
                for layer, scale in enumerate(self.leaves)
            ]
        )
        self.put()

    def put(self) -> None:
        import torch

        with torch.no_grad():
            self.gates.clamp_(0.0, self.max_gate)
            for scale, of_layer in zip(self.leaves, self.gates, strict=True):
                scale.copy_(of_layer.repeat_interleave(self.size))

    def gradients(self, of_leaves: Sequence[Tensor]) -> list[Tensor]:
        import torch

        return [torch.stack([leaf.double().cpu().view(-1, self.size).sum(1) for leaf in of_leaves])]

    def penalty(self) -> Tensor:
        return self.l1 * (self.gates - self.towards).abs().mean()


def edits_of(gates: np.ndarray) -> tuple[Scale, ...]:
    """Gates as edits; those of 1, which change nothing, are left out.

    Args:
        gates: ``[layer, head]``.
    """
    return tuple(Scale(name_of_head(at), float(gate)) for at, gate in np.ndenumerate(gates) if gate != 1.0)


def gate_frame(
    gates: np.ndarray, retention: np.ndarray | None = None, removal: np.ndarray | None = None
) -> pd.DataFrame:
    """Gates as a frame, with the roles of heads where both stages are given; the arguments are ``[layer, head]``."""
    rows = [(name_of_head(at), *at, gate) for at, gate in np.ndenumerate(gates)]
    frame = pd.DataFrame(rows, columns=["docno", "layer", "head", "gate"])
    if retention is None or removal is None:
        return frame
    kept, left = retention.ravel(), removal.ravel()
    scores = role_scores(kept, left)
    return frame.assign(retention=kept, removal=left, **scores, role=roles_of(kept, left))


def role_scores(retention: np.ndarray, removal: np.ndarray) -> dict[str, np.ndarray]:
    """How far each head has each role, from 0 to 1.

    ============  =========  =======  =======================
    role          retention  removal  score
    ============  =========  =======  =======================
    facilitating  1          1        removal
    interfering   0          0        1 - retention
    irrelevant    1          0        retention (1 - removal)
    ============  =========  =======  =======================

    Args:
        retention: the gates that were pulled towards 1.
        removal: the gates that were pulled towards 0.
    """
    return dict(zip(ROLES, (removal, 1 - retention, retention * (1 - removal)), strict=True))


def roles_of(retention: np.ndarray, removal: np.ndarray) -> np.ndarray:
    """The role of the greatest score; the arguments are as in :func:`role_scores`."""
    return np.array(ROLES, dtype=object)[np.stack(list(role_scores(retention, removal).values())).argmax(0)]
