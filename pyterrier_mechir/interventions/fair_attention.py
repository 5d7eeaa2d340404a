"""Attention that sees all parts of a long text alike, as an edit of attention patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyterrier_mechir.interventions.edits import Edit
from pyterrier_mechir.models.edits import Placed, Rows
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.batches import last_attended

LAST_HALF = "last half"


@dataclass(frozen=True)
class FairAttention(Edit):
    """Attention calibrated for position (Michail et al., 2026, arXiv:2606.02737).

    Encoders read the beginning of a long text more than its end. Here the tokens of a text are put into baskets of as
    many tokens, and in some layers the attention weights A of the token that is pooled (the first or the last; of all
    tokens, of a ranker that pools no single one) become ``strength * A_cal + (1 - strength) * A``: A_cal keeps what the
    special tokens get, and the proportions within each basket, and gives every basket the same share of the rest. A
    text of one basket is left alone.

    Whether a ranking depends less on where in a text the answer stands, :func:`~pyterrier_mechir.position_sensitivity`
    tells. Weights cannot hold this edit.

    Args:
        baskets: how many tokens a basket has.
        strength: how much of the calibrated weights is taken, from 0 (nothing changes) to 1.
        layers: ``"last half"``, or a list of layers.

    Raises:
        ValueError: a basket of no tokens, or a strength out of range.
    """

    baskets: int = 128
    strength: float = 0.5
    layers: str | Sequence[int] = LAST_HALF

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        elif self.layers != LAST_HALF:
            raise ValueError(f"layers is {self.layers!r}; give {LAST_HALF!r} or a list of layers.")
        if self.baskets < 1:
            raise ValueError(f"baskets is {self.baskets}; a basket has at least 1 token.")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; give a number from 0 to 1.")

    @property
    def site(self) -> str:  # type: ignore[override]
        return "attention patterns"

    def applied(self, ranker: Ranker) -> tuple[Placed, ...]:
        n = ranker.n_layers
        layers = range(n - max(1, n // 2), n) if isinstance(self.layers, str) else self.layers
        wrong = next((layer for layer in layers if layer not in range(n)), None)
        if wrong is not None:
            raise ValueError(f"no layer {wrong}: the model has layers 0 to {n - 1}.")
        if ranker.anatomy.cross_attends:
            raise ValueError("a decoder of one position has no positions to be fair to; edit ranker.on('encoder').")
        special = torch.tensor(ranker.tokenizer.all_special_ids)
        pooled = "last" if getattr(ranker, "pooling", "") == "last" else "all"
        which = "first" if ranker.reads_first_token else pooled
        calibrated = Calibrated(ranker.n_heads, self.baskets, float(self.strength), special, which)
        ranker.anatomy.port(0, "pattern")
        return tuple(Placed((layer, "pattern"), None, calibrated) for layer in layers)

    def told(self) -> dict[str, Any]:
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return {"edit": "FairAttention", "baskets": self.baskets, "strength": self.strength, "layers": layers}


@dataclass(frozen=True)
class Calibrated:
    """Attention weights of some rows calibrated for position.

    Args:
        n_heads: attention heads.
        size: tokens of a basket.
        strength: as in :class:`FairAttention`.
        special: ids of special tokens.
        which: of which tokens the attention is calibrated: the ``first``, the ``last`` that is attended to, or ``all``.
    """

    n_heads: int
    size: int
    strength: float
    special: Tensor
    which: str

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        assert rows.ids is not None
        weights = value.unflatten(-1, (self.n_heads, -1))  # [B, Q, H, S]
        mask = torch.ones_like(rows.ids) if rows.mask is None else rows.mask
        is_content = mask.bool() & ~torch.isin(rows.ids, self.special.to(rows.ids.device))
        n_baskets = -(-is_content.sum(1) // self.size)
        if self.strength == 0 or int(n_baskets.max()) < 2:
            return value
        basket = ((is_content.cumsum(1) - 1).clamp_min(0) // self.size).clamp_max(int(n_baskets.max()) - 1)
        members = torch.nn.functional.one_hot(basket, int(n_baskets.max())).to(weights) * is_content.unsqueeze(-1)
        of_baskets = torch.einsum("bqhs,bsn->bqhn", weights, members)
        n_seen = (of_baskets > 0).sum(-1, keepdim=True).clamp_min(1)
        wanted = of_baskets.sum(-1, keepdim=True) / n_seen
        factors = torch.where(of_baskets > 0, wanted / of_baskets.clamp_min(1e-30), 0.0)
        fair = torch.where(
            is_content[:, None, None, :], weights * torch.einsum("bqhn,bsn->bqhs", factors, members), weights
        )
        mixed = weights + self.strength * (fair - weights)
        return torch.where(
            self._rows(mask, weights.shape[1]) & (n_baskets > 1)[:, None, None, None], mixed, weights
        ).flatten(2)

    def _rows(self, mask: Tensor, length: int) -> Tensor:
        """The rows that are calibrated, broadcastable to ``[B, Q, H, S]``."""
        places = torch.arange(length, device=mask.device)[None, :, None, None]
        if self.which == "all":
            return places >= 0
        return places == (0 if self.which == "first" else last_attended(mask)[:, None, None, None])
