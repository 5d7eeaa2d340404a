"""Checks of options, warnings, and what is deprecated."""

from __future__ import annotations

import math
import sys
import warnings
from numbers import Integral, Real

_PASSED_THROUGH = frozenset({"pyterrier_mechir", "pyterrier", "pandas", "torch", "contextlib", "functools"})
"""Modules, by their first names, that stand between a user's line and what warns because of it: this package, what
calls its stages, and what wraps its functions."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user that led here, however many calls of this package and of PyTerrier lie between.

    Args:
        message: the warning.
        category: of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _first_name(frame.f_globals) in _PASSED_THROUGH:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def deprecated(what: str, *, since: str, until: str, instead: str) -> None:
    """Tell the user's line, once, that something public will go; called where what is old is used.

    The category is ``FutureWarning``, which Python shows by default, once for each line. ``docs/promises.md`` has the
    policy: two minor versions warn at least, or all that are left before a new major one.

    Args:
        what: the old name, option or value, as a user writes it: ``"PatchScorer(site=...)"``.
        since: the first version that warns.
        until: the version in which it goes.
        instead: what a user writes now, with how to go over to it where that is not plain.
    """
    warn(f"{what} is deprecated since {since} and goes in {until}; use {instead}.", FutureWarning)


def _first_name(variables: dict[str, object]) -> str:
    return str(variables.get("__name__", "")).partition(".")[0]


def check_count(name: str, n: int, least: int = 1) -> int:
    """Check a number of things.

    Raises:
        ValueError: it is no whole number, or less than it should be.
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < least:
        raise ValueError(f"{name} is {n!r}; give at least {least}.")
    return n


def check_number(name: str, value: float, above: float | None = None) -> float:
    """Check a number that may have a fraction.

    Raises:
        ValueError: it is none, not finite, negative, or not above what it should be.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (above is not None and value <= above):
        raise ValueError(f"{name} is {value!r}; give a number {'above 0' if above is not None else 'of at least 0'}.")
    return float(value)


def check_batch_size(batch_size: int | None) -> int | None:
    """Check an optional number of items in a batch.

    Raises:
        ValueError: it is less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give at least 1, or None to form batches by length.")
    return batch_size
