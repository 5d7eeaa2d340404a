"""The curve of a circuit: what it carries as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from pyterrier_mechir.plots.style import AGAINST, FAINT, QUIET, WITH, finish, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_circuit(curve: pd.DataFrame, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw faithfulness and completeness over the size of the circuit, and the band of random circuits.

    Args:
        curve: from :func:`~pyterrier_mechir.grow_circuit`.
        ax: axes to draw on; a new figure by default.
        title: of the axes.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: the frame is no curve of a circuit.
    """
    low, high = "faithfulness_random_low", "faithfulness_random_high"
    missing = {"k", "faithfulness", "completeness", "faithfulness_random", low, high} - set(curve.columns)
    if missing:
        raise ValueError(
            f"plot_circuit draws the curve of grow_circuit; this frame has no {', '.join(sorted(missing))}."
        )
    ax = new_axes(ax, 5.2, 3.4)
    sizes = curve["k"].to_numpy()
    for level in (0, 1):
        ax.axhline(level, color=FAINT, linewidth=0.8, zorder=0)
    if curve["faithfulness_random"].notna().any():
        ax.fill_between(sizes, curve[low], curve[high], color=QUIET, alpha=0.25, linewidth=0)
        ax.plot(sizes, curve["faithfulness_random"], color=QUIET, linestyle=":", label="faithfulness, random circuits")
    ax.plot(sizes, curve["faithfulness"], color=WITH, marker="o", markersize=3, label="faithfulness")
    ax.plot(sizes, curve["completeness"], color=AGAINST, marker="s", markersize=3, label="completeness")
    legend(ax)
    finish(ax, title, "components in the circuit", "share of the effect")
    return ax
