"""Where one attention head looks in one text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.models.sites import name_of_head
from pyterrier_mechir.plots.style import SEQUENTIAL, colour_bar, finish, new_axes
from pyterrier_mechir.plots.tokens import PITCH, explain_tokens, label_tokens, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pyterrier_mechir.rankers.base import Ranker

_BAR = "#6a51a3"
"""A dark colour of the scale of the map."""


def plot_attention(
    ranker: Ranker,
    query: str,
    text: str,
    head: str | tuple[int, int],
    *,
    of: int | str | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> Axes:
    """Draw the attention of one head in one text: rows attend to columns, and each row sums to one.

    With ``of``, only where that position or token looks is drawn, as bars over the tokens, which suits long texts.
    Labels of tokens of the query's terms are italic.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`. A bi-encoder reads the text alone, a
            cross-encoder the query and the text.
        query: the query.
        text: the document's text.
        head: the head, as ``"L5H8"`` or (layer, head).
        of: a position, where negative ones count from the end, or a token; of a token that comes several times the
            mean over its positions is drawn. None draws all.
        ax: axes to draw on; a new figure by default.
        title: of the axes.
        limit: value at the end of the scale; by default the largest weight drawn.

    Returns:
        The matplotlib axes.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown head, a position or token that the text does not have, or an architecture that does not
            let its attention weights be read.
    """
    from pyterrier_mechir.observe.attention import attention_of
    from pyterrier_mechir.rankers.unwrap import document_ranker

    tokens, classes, weights = attention_of(document_ranker(ranker), query, text, [head])
    name = name_of_head(head)
    if of is None:
        length = PITCH * len(tokens)
        ax = new_axes(ax, 2.2 + length, 1.4 + length)
        image = ax.imshow(weights[0], cmap=SEQUENTIAL, vmin=0, vmax=limit or weights.max())
        label_tokens(ax.yaxis, tokens, classes)
        finish(ax, title, "to", "from")
        colour_bar(image, ax, f"attention of {name}")
    else:
        at = _positions(of, tokens)
        ax = new_axes(ax, max(1.4 + PITCH * len(tokens), 4.5), 2.8)
        ax.bar(range(len(tokens)), weights[0, at].mean(axis=0), color=_BAR, width=0.8)
        ax.set_xlim(-0.7, len(tokens) - 0.3)
        ax.set_ylim(0, limit)
        where = f"position {at[0]}" if len(at) == 1 else f"mean of {len(at)}"
        finish(ax, title, "to", f"attention of {name}\nfrom {readable(tokens[at[0]])} ({where})")
    label_tokens(ax.xaxis, tokens, classes)
    explain_tokens(ax, classes)
    return ax


def _positions(of: Any, tokens: list[str]) -> list[int]:
    """The positions of a token, or one that is given by number."""
    if isinstance(of, (int, np.integer)):
        if not -len(tokens) <= of < len(tokens):
            raise ValueError(f"no position {of}: the sequence has positions 0 to {len(tokens) - 1}.")
        return [int(of) % len(tokens)]
    found = [place for place, token in enumerate(tokens) if of in (token, readable(token))]
    if not found:
        raise ValueError(f"no token {of!r} in the sequence; its tokens are {' '.join(map(readable, tokens))}.")
    return found
