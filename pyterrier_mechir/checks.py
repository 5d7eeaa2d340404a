"""Checks of options, and warnings."""

from __future__ import annotations

from numbers import Integral


def check_count(name: str, n: int, least: int = 1) -> int:
    """Check a number of things.

    Raises:
        ValueError: it is no whole number, or less than it should be.
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < least:
        raise ValueError(f"{name} is {n!r}; give at least {least}.")
    return n


def check_batch_size(batch_size: int | None) -> int | None:
    """Check an optional number of items in a batch.

    Raises:
        ValueError: it is less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1, or None to form batches by length.")
    return batch_size
