"""Checks of options."""

from __future__ import annotations

from collections.abc import Iterable


def one_of(what: str, value: object, choices: Iterable[str]) -> str:
    """Check an option.

    Raises:
        ValueError: the value is not among the choices, which the message lists.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose one of {', '.join(map(repr, choices))}.")
    return str(value)
