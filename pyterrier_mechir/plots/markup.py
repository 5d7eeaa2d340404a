"""Numbers as text, and small drawings, for HTML."""

from __future__ import annotations

from collections import defaultdict
from html import escape
from math import isfinite
from typing import Any

import numpy as np

from pyterrier_mechir.plots.colours import level, scale
from pyterrier_mechir.plots.style import AGAINST, WITH

MISSING = "\N{EN DASH}"
"""Stands for a missing number."""

SIGNIFICANT = 0.05
"""Adjusted p-values below this are marked."""

LITERAL_CLASSES = "tex2jax_ignore mathjax_ignore"
"""Classes of elements in which MathJax, which notebooks load, leaves dollar signs alone."""

_WIDEST, _TALLEST = 240, 72

_MINUS = "\N{MINUS SIGN}"


def number(value: Any, digits: int = 3) -> str:
    """A number with some decimals, :data:`MISSING` for a missing one."""
    return _written(f"{value:.{digits}f}") if _is_known(value) else MISSING


def signed(value: Any, digits: int = 3) -> str:
    """A number with some decimals and its sign, :data:`MISSING` for a missing one."""
    return _written(f"{value:+.{digits}f}") if _is_known(value) else MISSING


def p_value(value: Any) -> str:
    """A p-value, never rounded to 0."""
    return "< 0.001" if _is_known(value) and value < 0.001 else number(value)


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """The ends of an interval."""
    return f"{signed(low, digits)} to {signed(high, digits)}" if _is_known(low) and _is_known(high) else MISSING


def interval_bar(score: float, low: float, high: float, ends: tuple[float, float], width: int = 130) -> str:
    """An estimate and its interval as a drawing, ``<svg>``, on an axis that goes from one end to the other."""
    first, last = ends
    span = (last - first) or 1.0

    def at(value: float) -> str:
        return f"{4 + (width - 8) * (value - first) / span:.1f}"

    parts = [f'<line x1="{at(0)}" x2="{at(0)}" y1="0" y2="28" stroke="currentColor" stroke-opacity=".35"/>']
    if _is_known(score):
        colour = WITH if score >= 0 else AGAINST
        if _is_known(low) and _is_known(high):
            parts.append(f'<line x1="{at(low)}" x2="{at(high)}" y1="14" y2="14" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at(score)}" cy="14" r="4" fill="{colour}"/>')
    return f'<svg width="{width}" height="28" aria-hidden="true">{"".join(parts)}</svg>'


def bar_ends(score: Any, low: Any, high: Any) -> tuple[float, float]:
    """The ends of an axis on which 0 and all of some estimates and intervals have room."""
    values = np.concatenate([np.asarray(part, dtype=np.float64) for part in ([0.0], score, low, high)])
    return float(np.nanmin(values)), float(np.nanmax(values))


def heat_map(effects: np.ndarray, *, label: str = "", size: int = 6) -> str:
    """Effects ``[row, column]`` as squares, ``<svg>``, on a scale up to the greatest absolute effect.

    Args:
        effects: the effects; missing ones are left blank.
        label: what the drawing shows, as plain text.
        size: of a square, in pixels; it is smaller where there are many.
    """
    limit = greatest(effects)
    squares: dict[str, list[str]] = defaultdict(list)
    for (row, column), value in np.ndenumerate(effects):
        step = level(float(value), limit)
        if step is not None:
            squares[scale()[step].background].append(f"M{column} {row}h1v1h-1z")
    paths = "".join(f'<path fill="{colour}" d="{"".join(d)}"/>' for colour, d in squares.items())
    rows, columns = effects.shape
    width, height = min(columns * size, _WIDEST), min(rows * size, _TALLEST)
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" shape-rendering="crispEdges">{paths}</svg>'
    )


def greatest(effects: Any) -> float:
    """The greatest absolute value, 0 where there is none."""
    values = np.abs(np.asarray(effects, dtype=np.float64))
    return float(np.nanmax(values, initial=0.0)) if np.isfinite(values).any() else 0.0


def _written(number: str) -> str:
    return number.replace("-", _MINUS) if float(number) else number.lstrip("+-")


def _is_known(value: Any) -> bool:
    return value is not None and isfinite(float(value))
