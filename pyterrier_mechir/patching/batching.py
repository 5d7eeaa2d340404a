"""Batches of like length, so that almost nothing is padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SLACK = 8
"""Largest difference of length, in tokens, within a batch that is formed by tokens."""


def by_length(lengths: np.ndarray, budget: int, batch_size: int | None = None) -> Iterator[np.ndarray]:
    """Split items into batches of like length, longest first.

    Args:
        lengths: of the items, in tokens.
        budget: most tokens in a batch, padding included; a longer item is a batch of its own.
        batch_size: items in a batch; given, it takes the place of the budget.

    Yields:
        Indices of the items of a batch; every item is in one.
    """
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        if batch_size is not None:
            size = batch_size
        else:
            fitting = lengths[order[begin : begin + max(1, budget // max(1, longest))]]
            size = int(np.count_nonzero(fitting >= longest - SLACK))
        yield order[begin : begin + size]
        begin += size
