"""Texts as HTML in which each unit, such as a word, has the colour of its score.

Red pushes the score up and is underlined solid, blue pushes it down and is underlined dotted, so that the sign is seen
in grey too. What the ranker does not read is struck through. Each unit says its score where it is pointed at, by its
``title``, or has the focus.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any, NamedTuple

import numpy as np

from pyterrier_mechir.plots.colours import STEPS, level, scale
from pyterrier_mechir.plots.explained import segments
from pyterrier_mechir.plots.markup import LITERAL_CLASSES, greatest, signed

BEYOND = "beyond what the ranker reads"
"""What is said of a unit without a score."""

MARKED = 2
"""Steps of the colour scale from 0 on from which a unit is underlined."""

RULES = (
    ".mechir-text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75}"
    ".mechir-text .u{position:relative;border-radius:2px;padding:.05em 0}"
    ".mechir-text .up,.mechir-text .down{text-decoration:underline solid 1px;text-underline-offset:.22em}"
    ".mechir-text .down{text-decoration-style:dotted;text-decoration-thickness:2px}"
    ".mechir-text .beyond{font-style:italic;text-decoration:line-through;opacity:.7}"
    ".mechir-text .u:focus::after{content:attr(title);position:absolute;left:0;bottom:100%;z-index:3;direction:ltr;"
    "padding:.1em .4em;border-radius:3px;background:#1d2329;color:#fff;font:normal .8rem/1.4 sans-serif;"
    "white-space:nowrap}"
    ".mechir-legend{display:flex;flex-wrap:wrap;align-items:center;gap:.2em .6em;font-size:.85em;margin:.4em 0}"
    ".mechir-legend .ramp{display:flex;width:9em;height:.7em}.mechir-legend .ramp i{flex:1}"
    ".mechir-side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20em),1fr));gap:1em 2em}"
    "@media print{.mechir-text .u,.mechir-legend i{print-color-adjust:exact;-webkit-print-color-adjust:exact}}"
)
"""The style of coloured texts, but for the colours of the scale."""

_FINE = 0.05
"""Scores up to less than this are written with more decimals."""

_STOPS = 10
"""Units of a text that the Tab key reaches, those of greatest absolute score."""


class Passage(NamedTuple):
    """A text beside others: what stands above it, the text, and its units."""

    heading: str
    text: str
    spans: Any
    scores: Any


def coloured(text: str, spans: Any, scores: Any, limit: float | None = None) -> str:
    """A text as HTML, each unit in the colour of its score and saying it; what stands between units is as it was.

    The page has to have :func:`style` once.

    Args:
        text: any text; it is escaped.
        spans: begin and end of each unit in characters, ``[unit, 2]``.
        scores: of the units, ``[unit]``; NaN for those that the ranker does not read.
        limit: the score at the ends of the scale; by default the greatest absolute one.

    Raises:
        ValueError: spans overlap, are not within the text, or are not as many as scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) != len(spans):
        raise ValueError(f"there are {len(spans)} spans and {len(values)} scores; give one score for each span.")
    limit = greatest(values) if limit is None else limit
    size = np.abs(np.nan_to_num(values))
    stops = set(np.argsort(-size, kind="stable")[:_STOPS].tolist())
    parts = [
        escape(piece) if unit < 0 else _unit(piece, float(values[unit]), limit, unit in stops and size[unit] > 0)
        for piece, unit in segments(text, spans)
    ]
    return f'<div class="mechir-text {LITERAL_CLASSES}" dir="auto">{"".join(parts)}</div>'


def side_by_side(passages: Sequence[Passage], limit: float | None = None, what: str = "score") -> str:
    """Several texts beside each other, on one scale, with the legend and the style.

    Args:
        passages: the texts.
        limit: the score at the ends of the scale; by default the greatest absolute one of all.
        what: what units push up or down.
    """
    limit = max((greatest(one.scores) for one in passages), default=0.0) if limit is None else limit
    made = [
        f"<div><p><strong>{escape(one.heading)}</strong></p>{coloured(one.text, one.spans, one.scores, limit)}</div>"
        for one in passages
    ]
    lacks = any(np.isnan(np.asarray(one.scores, dtype=np.float64)).any() for one in passages)
    whole = f'<div class="mechir-side">{"".join(made)}</div>{legend(limit, lacks=lacks, what=what)}'
    return f'<div class="{LITERAL_CLASSES}">{style()}{whole}</div>'


def legend(limit: float, *, lacks: bool = False, what: str = "score") -> str:
    """What the colours and lines say.

    Args:
        limit: the score at the ends of the scale.
        lacks: say what a unit without a score looks like too.
        what: what units push up or down.
    """
    ramp = "".join(f'<i class="s{step}"></i>' for step in range(2 * STEPS + 1))
    said = f'; <span class="beyond">struck through</span>: {BEYOND}' if lacks else ""
    return (
        f'<div class="mechir-legend mechir-text"><span>{signed(-limit, digits(limit) - 1)}</span>'
        f'<span class="ramp" aria-hidden="true">{ramp}</span><span>{signed(limit, digits(limit) - 1)}</span>'
        f'<span><span class="up">red, solid line</span> pushes the {what} up; <span class="down">blue, dotted</span> '
        f"pushes it down{said}</span></div>"
    )


def digits(limit: float) -> int:
    """The decimals with which scores are written whose greatest is given."""
    return 3 if limit >= _FINE or not limit else 5


@cache
def style() -> str:
    """The style sheet of coloured texts and their legends."""
    shades = "".join(
        f".mechir-text .s{step}{{background:{shade.background};color:{shade.text}}}"
        for step, shade in enumerate(scale())
        if step != STEPS
    )
    return f"<style>{RULES}{shades}</style>"


def _unit(piece: str, score: float, limit: float, is_stop: bool) -> str:
    step = level(score, limit)
    if step is None:
        return f'<span class="u beyond" title="{BEYOND}" tabindex="-1">{escape(piece)}</span>'
    sign = " up" if step >= STEPS + MARKED else " down" if step <= STEPS - MARKED else ""
    return (
        f'<span class="u s{step}{sign}" title="{signed(score, digits(limit))}" tabindex="{0 if is_stop else -1}">'
        f"{escape(piece)}</span>"
    )
