"""The curve of a circuit: what it carries as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

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
    from matplotlib import pyplot as plt

    low, high = "faithfulness_random_low", "faithfulness_random_high"
    missing = {"k", "faithfulness", "completeness", "faithfulness_random", low, high} - set(curve.columns)
    if missing:
        raise ValueError(
            f"plot_circuit draws the curve of grow_circuit; this frame has no {', '.join(sorted(missing))}."
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    sizes = curve["k"].to_numpy()
    for level in (0, 1):
        ax.axhline(level, color="0.8", linewidth=0.8, zorder=0)
    if curve["faithfulness_random"].notna().any():
        ax.fill_between(sizes, curve[low], curve[high], color="0.5", alpha=0.25, linewidth=0)
        ax.plot(sizes, curve["faithfulness_random"], color="0.5", linestyle=":", label="faithfulness, random circuits")
    ax.plot(sizes, curve["faithfulness"], color="#b2182b", marker="o", markersize=3, label="faithfulness")
    ax.plot(sizes, curve["completeness"], color="#2166ac", marker="s", markersize=3, label="completeness")
    ax.set_xlabel("components in the circuit")
    ax.set_ylabel("share of the effect")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    if title is not None:
        ax.set_title(title)
    return ax
