"""Texts for a terminal, in which each unit has the colour of its score, or the strongest say theirs in brackets."""

from __future__ import annotations

import os
from typing import TextIO

from pyterrier_mechir.plots.colours import STEPS, level, scale
from pyterrier_mechir.plots.explained import Explained, segments
from pyterrier_mechir.plots.markup import signed
from pyterrier_mechir.plots.word_markup import BEYOND, MARKED, digits

COLOURS = ("none", "256", "truecolor")
"""What a terminal may show."""

_STRONGEST = 5
"""Units of a text that say their score where there are no colours."""

_END = "\x1b[0m"
_CUBE = 6
_HARMLESS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
"""Control characters but tabs and ends of lines, which a terminal might obey."""


def colours_of(stream: TextIO) -> str:
    """The colours that a stream shows: none where it is no terminal or a ``dumb`` one, or where ``NO_COLOR`` is set.

    Args:
        stream: such as ``sys.stdout``.

    Returns:
        One of :data:`COLOURS`.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return "none"
    return "truecolor" if os.environ.get("COLORTERM") in ("truecolor", "24bit") else "256"


def plain(text: str) -> str:
    """A text without what a terminal might obey or cannot show."""
    return text.translate(_HARMLESS).encode("utf-8", "replace").decode("utf-8")


def coloured_text(document: Explained, limit: float, colours: str) -> str:
    """The text of a document for a terminal.

    Args:
        document: the document.
        limit: the score at the ends of the scale.
        colours: one of :data:`COLOURS`. With ``none``, the strongest units are followed by their scores in brackets.
    """
    if colours == "none":
        named = document.numbers_of_strongest(_STRONGEST)
        parts = (
            f"{plain(piece)}[{signed(document.scores[unit], digits(limit))}]" if unit in named else plain(piece)
            for piece, unit in segments(document.text, document.spans)
        )
        return "".join(parts)
    return "".join(
        plain(piece) if unit < 0 else _unit(plain(piece), level(float(document.scores[unit]), limit), colours)
        for piece, unit in segments(document.text, document.spans)
    )


def legend(limit: float, colours: str, *, lacks: bool) -> str:
    """What the colours, or the brackets, say.

    Args:
        limit: the score at the ends of the scale.
        colours: one of :data:`COLOURS`.
        lacks: say what a unit without a score looks like too.
    """
    if colours == "none":
        return f"In brackets: the scores of the {_STRONGEST} strongest of each text."
    up, down = _unit("red and underlined", 2 * STEPS, colours), _unit("blue", 0, colours)
    beyond = f"; {_unit('struck through', None, colours)}: {BEYOND}" if lacks else ""
    return f"{up} pushes the score up, to {signed(limit, digits(limit))}; {down} pushes it down{beyond}."


def _unit(piece: str, step: int | None, colours: str) -> str:
    if step is None:
        return f"\x1b[2;9m{piece}{_END}"
    if step == STEPS:
        return piece
    shade = scale()[step]
    line = ";4" if step >= STEPS + MARKED else ""
    return f"\x1b[48;{_code(shade.background, colours)};38;{_code(shade.text, colours)}{line}m{piece}{_END}"


def _code(colour: str, colours: str) -> str:
    """A colour as the terminal is told it: itself, or the nearest of a cube of 6 x 6 x 6."""
    channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    if colours == "truecolor":
        return f"2;{';'.join(map(str, channels))}"
    red, green, blue = (0 if channel < 48 else 1 if channel < 115 else (channel - 35) // 40 for channel in channels)
    return f"5;{16 + _CUBE * _CUBE * red + _CUBE * green + blue}"
