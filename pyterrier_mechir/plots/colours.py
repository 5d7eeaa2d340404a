"""Colours of effects in HTML: one diverging scale, red where a component pushes as the perturbation does, else blue."""

from __future__ import annotations

from functools import cache
from math import floor, isfinite
from typing import NamedTuple

STEPS = 20
"""Steps of the scale on each side of 0."""

_STOPS = (
    *("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7"),
    *("#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"),
)
"""RdBu of ColorBrewer, which is safe for colour-blind readers."""


class Shade(NamedTuple):
    """A background and the text colour that is readable on it, as CSS colours."""

    background: str
    text: str


def level(value: float, limit: float) -> int | None:
    """The step of the scale that stands for a value: 0 to ``2 * STEPS``, ``STEPS`` for 0, None for a missing value.

    Args:
        value: the value; beyond the limit it has the colour of the end.
        limit: the value at the ends of the scale.
    """
    if not isfinite(value):
        return None
    return STEPS if limit <= 0 else STEPS + floor(STEPS * max(-1.0, min(1.0, value / limit)) + 0.5)


@cache
def scale() -> tuple[Shade, ...]:
    """The colours of all steps, from the most negative to the most positive."""
    backgrounds = (_between(step / (2 * STEPS)) for step in range(2 * STEPS + 1))
    return tuple(Shade(colour, _text_on(colour)) for colour in backgrounds)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, ``#rrggbb``, as the Web Content Accessibility Guidelines define it."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _between(share: float) -> str:
    place = share * (len(_STOPS) - 1)
    first = min(int(place), len(_STOPS) - 2)
    ends = zip(_channels(_STOPS[first]), _channels(_STOPS[first + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - first)):02x}" for a, b in ends)


def _text_on(background: str) -> str:
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, background))


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _luminance(colour: str) -> float:
    shares = (channel / 255 for channel in _channels(colour))
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
