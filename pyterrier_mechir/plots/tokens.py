"""Tokens as labels of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyterrier_mechir.plots.style import LITERAL, QUALITATIVE, SMALL, inches, note
from pyterrier_mechir.text.vocabulary import SPACES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis

PITCH = 0.155
"""Inches that a token takes on an axis."""

_LEAST = 4
"""Smallest font size of a token."""

_QUERY = frozenset({"Q+", "Q-", "D+", "D-"})
_STYLES: dict[str, Any] = {
    "edit": {"color": QUALITATIVE[1], "fontweight": "bold"},
    "query terms": {"color": QUALITATIVE[2], "fontstyle": "italic"},
}
_WORDS = {"edit": "bold: the edit", "query terms": "italic: query terms"}


def readable(token: str) -> str:
    """A token without the marks that stand for a preceding space."""
    return token.lstrip(SPACES) or token


def label_tokens(axis: XAxis | YAxis, tokens: Sequence[str], classes: Sequence[str]) -> None:
    """Label an axis with tokens, those of the edit and of the query set off, smaller where there is little room.

    Args:
        axis: the x or the y axis.
        tokens: a token for each place.
        classes: their token classes.
    """
    across = axis.axis_name == "x"
    room = inches(axis.axes)[0 if across else 1] * 72 / max(len(tokens), 1)
    style: dict[str, Any] = {"fontsize": min(SMALL, max(room, _LEAST)), "rotation": 90 if across else 0}
    axis.set_ticks(range(len(tokens)))
    axis.set_ticklabels([readable(token) for token in tokens], **LITERAL, **style)
    for tick, token_class in zip(axis.get_major_ticks(), classes, strict=True):
        tick.label1.set(**_STYLES.get(_kind(token_class), {}))


def explain_tokens(ax: Axes, classes: Sequence[str]) -> None:
    """Say below the x axis which tokens are set off."""
    found = {_kind(token_class) for token_class in classes}
    text = "; ".join(words for kind, words in _WORDS.items() if kind in found)
    if text:
        note(ax, text)


def _kind(token_class: str) -> str:
    if token_class == "EDIT":
        return "edit"
    return "query terms" if token_class in _QUERY else ""
