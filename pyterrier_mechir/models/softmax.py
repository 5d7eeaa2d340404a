"""What other queries and keys do to the outputs of an attention, the softmax exact and all that follows of first order.

With g_i the gradient of a score by the outputs z_i of a head, its row i adds g_i . z_i = N/Z to what the score sees::

    Z = sum_j exp(l_ij),    N = sum_j exp(l_ij) g_i . v_j.

Other logits l'_ij move the row by N'/Z' - N/Z, whatever their size.

Shapes: ``B`` runs, ``H`` heads of ``d`` features, ``Q`` query positions, ``S`` key positions, ``P`` slots.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyterrier_mechir.models.attention import Heads

_HIGHEST = 80.0
"""Greatest log, up or down, of a row's greatest weight in units of what was its sum of weights."""

_LEFT = 0.5
"""Sum of weights, in units of what it was, below which most of the attention has left a slot."""


def moved_by_queries(heads: Heads, slope: Tensor, query: Tensor) -> Tensor:
    """How far each row moves under other queries, ``[B, H, Q]``.

    Args:
        heads: what the attention computes with.
        slope: g, ``[B, H, Q, d]``.
        query: the other queries, ``[B, H, Q, d]``.
    """
    change = replace(heads, query=query).weights - heads.weights
    return (change * (slope @ heads.value.transpose(-1, -2))).sum(-1)


class Keyed:
    """An attention, of which the keys and values in one slot of positions after another are others.

    Args:
        heads: what the attention computes with.
        slope: g, ``[B, H, Q, d]``.
        members: which key positions each slot has, as numbers, ``[B, S, P]``.
    """

    def __init__(self, heads: Heads, slope: Tensor, members: Tensor):
        self.heads, self.slope, self.members = heads, slope, members[:, None]
        self.are_positions = members.shape[1] == members.shape[2] and bool(
            (members.tril(-1) + members.triu(1) == 0).all()
        )
        logits = heads.logits(heads.query @ heads.key.transpose(-1, -2), heads.mask)
        self.total = logits.logsumexp(-1, keepdim=True)
        was = (logits - self.total).exp()
        gains = slope @ heads.value.transpose(-1, -2)
        self.mean = (was * gains).sum(-1, keepdim=True)
        excess, outside = was * (gains - self.mean), 1 - self.members
        self.excess, self.rest, self.rest_of_excess = self._of_slots(excess), was @ outside, excess @ outside

    def _of_slots(self, values: Tensor) -> Tensor:
        return values if self.are_positions else values @ self.members

    def moved(self, key: Tensor, value: Tensor) -> Tensor:
        """How far each row moves where a slot has other keys and values, ``[..., B, H, Q, P]``.

        With Z = 1 and m = N the row's mean gain, N'/Z' - N/Z is the excess over m, sum_j exp(l'_ij) (g_i . v'_j - m),
        over Z'; that of all positions was 0. So what the slot's excess was is taken off what it is, in which small
        changes are not lost. Where most of the attention leaves the slot, Z' is no greater than what is rounded off
        that difference, and the excess of the other positions is added instead.

        Args:
            key: ``[..., B, H, S, d]``.
            value: likewise.
        """
        logits = self.heads.logits(self.heads.query @ key.transpose(-1, -2), self.heads.mask)
        shift = logits.amax(-1, keepdim=True) - self.total
        now = logits.sub_(self.total + (shift - shift.clamp(-_HIGHEST, _HIGHEST))).exp_()
        excess = self._of_slots((self.slope @ value.transpose(-1, -2)).sub_(self.mean).mul_(now))
        total = (self.rest + self._of_slots(now)).clamp_(min=torch.finfo(now.dtype).tiny)
        has_left = total < _LEFT
        if has_left.any():
            return excess.add_(torch.where(has_left, self.rest_of_excess, -self.excess)).div_(total)
        return excess.sub_(self.excess).div_(total)
