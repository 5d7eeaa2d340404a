"""What becomes of scores as words are taken out, or put back, in the order of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.plots.style import FAINT, MARKERS, QUALITATIVE, finish, legend, new_axes
from pyterrier_mechir.results.frames import check_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = {"deletion": "words taken out", "insertion": "words put back"}


def plot_faithfulness(
    frame: pd.DataFrame, *, curve: str = "deletion", ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Draw the deletion or the insertion curve of each row of :func:`~pyterrier_mechir.faithfulness`.

    The lower a deletion curve runs, and the higher an insertion curve, the sooner an order of words takes out, or puts
    back, what scores are made of. Orders that need no explanation are dashed.

    Args:
        frame: from :func:`~pyterrier_mechir.faithfulness`.
        curve: ``deletion`` or ``insertion``.
        ax: axes to draw on; a new figure by default.
        title: of the axes.

    Returns:
        The matplotlib axes.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: an unknown curve, or a frame without rows.
    """
    from pyterrier_mechir.observe.words.orders import BY_IDF, QUERY_TERMS, RANDOM

    name = f"{one_of('curve', curve, CURVES)}_curve"
    check_columns(frame, ["method", name])
    if not len(frame):
        raise ValueError("the frame holds no rows to draw.")
    ax = new_axes(ax, 6.4, 3.6)
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    for number, (method, values) in enumerate(zip(frame["method"], frame[name], strict=True)):
        style: dict[str, Any] = {
            "color": QUALITATIVE[number % len(QUALITATIVE)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        dashes = "--" if method in (RANDOM, BY_IDF, QUERY_TERMS) else "-"
        at = np.linspace(0, 100, len(values))
        ax.plot(at, np.asarray(values), linestyle=dashes, markersize=3.5, linewidth=1.2, label=method, **style)
    legend(ax, "beside")
    finish(ax, title, f"% of {CURVES[curve]}", "share of the score")
    return ax
