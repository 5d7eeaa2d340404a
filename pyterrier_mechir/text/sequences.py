"""Texts as the sequences of token ids that a ranker reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def unique(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Distinct items in order of appearance, and the place of each item among them."""
    places: dict[Any, int] = {}
    which = [places.setdefault(item, len(places)) for item in items]
    return list(places), which
