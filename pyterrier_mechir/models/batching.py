"""Batches of like length, so that almost nothing is padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


SLACK = 8
"""Largest difference of length, in tokens, within a batch that is formed by tokens."""

STEP = 8
"""Lengths, and numbers of items, of batches that are to be of few shapes are multiples of this."""

ENOUGH = 4
"""A batch in which items of one length fill a share of the budget of 1 / ENOUGH takes no shorter ones."""


def by_length(lengths: np.ndarray, budget: int, batch_size: int | None = None, step: int = 1) -> Iterator[np.ndarray]:
    """Split items into batches of like length, longest first.

    A batch takes all items of one length that its budget allows. If these fill less than a quarter of the budget (see
    :data:`ENOUGH`), so that the processor would not be busy, shorter items come in too, which are then padded.

    Args:
        lengths: of the items, in tokens.
        budget: most tokens in a batch, padding included; a longer item is a batch of its own.
        batch_size: items in a batch; given, it takes the place of the budget.
        step: batches of more items than this, but for full ones, have a multiple of it.

    Yields:
        Indices of the items of a batch; every item is in one.
    """
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        if batch_size is not None:
            size = batch_size
        else:
            full = max(1, budget // longest)
            fitting = lengths[order[begin : begin + full]]
            equal, alike = (int(np.count_nonzero(fitting >= longest - slack)) for slack in (0, SLACK))
            enough = int(-(-budget // (ENOUGH * longest)))
            size = max(1, equal, min(alike, enough))
            if step < size < full:
                size -= size % step
        yield order[begin : begin + size]
        begin += size


def tokens_at_once(device: torch.device) -> int:
    """How many tokens a forward pass has at most, by default: more on a GPU than on a CPU."""
    return 4096 if device.type == "cpu" else 65536
