"""The profile of layers: what components of each layer carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.frames import aggregated, check_one
from pyterrier_mechir.plots.style import FAINT, MARKERS, QUALITATIVE, finish, legend, new_axes, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEP = 0.08
"""How far apart on the x axis the components of a layer stand, so that their intervals do not hide one another."""


def plot_layers(
    frame: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None, label: str = "patching effect"
) -> Axes:
    """Draw the effect of layer-wide components over the layers, one line per component, with intervals.

    Args:
        frame: ``AggregateHeads(by=None)`` of a ``PatchScorer(ranker, ["attn_out", "mlp_out"])``, of other components of
            whole layers or of ``"block"``, or the scorer's own frame, whose pairs are then pooled. Rows of heads and
            of sets are left out. Where ``ci_low`` and ``ci_high`` are missing, no intervals are drawn.
        ax: axes to draw on; a new figure by default.
        title: of the axes.
        label: of the y axis.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame that holds no effects of whole layers, or several of each.
    """
    frame = aggregated(frame, "plot_layers", ["component", "layer", "head", "score"])
    for column in ("qid", "slot"):
        check_one(frame, column, "plot_layers")
    rows = frame[frame["head"].isna() & frame["layer"].notna() & frame["score"].notna()]
    if not len(rows):
        raise ValueError("the frame holds no components of whole layers, such as attn_out and mlp_out, to draw.")
    components = _ordered(rows["component"].unique())
    n_layers = int(rows["layer"].max()) + 1
    ax = new_axes(ax, max(4.8, 1.6 + 0.35 * n_layers), 3.4)
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    for number, component in enumerate(components):
        of_component = rows[rows["component"] == component].sort_values("layer")
        at = of_component["layer"].to_numpy(np.float64) + _STEP * (number - (len(components) - 1) / 2)
        colour, marker = QUALITATIVE[number % len(QUALITATIVE)], MARKERS[number % len(MARKERS)]
        ax.plot(at, of_component["score"], color=colour, marker=marker, markersize=4, linewidth=1.2, label=component)
        if _has_intervals(of_component):
            ax.vlines(at, of_component["ci_low"], of_component["ci_high"], color=colour, linewidth=1.2)
    ax.set_xticks(range(n_layers))
    legend(ax)
    finish(ax, title, "layer", label)
    if _has_intervals(rows):
        note(ax, "bars: confidence intervals")
    return ax


def _has_intervals(rows: pd.DataFrame) -> bool:
    return {"ci_low", "ci_high"} <= set(rows.columns) and bool(rows["ci_low"].notna().any())


def _ordered(components: np.ndarray) -> list[str]:
    """Components in the order of :data:`~pyterrier_mechir.models.components.COMPONENTS`."""
    from pyterrier_mechir.models.components import COMPONENTS

    return sorted(components, key=list(COMPONENTS).index)
