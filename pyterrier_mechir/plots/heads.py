"""The head map: effect of every attention head, layers by heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_READABLE = 300
"""Most cells in which values are written."""


def plot_heads(
    effects: pd.DataFrame | np.ndarray,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    annotate: bool | None = None,
    limit: float | None = None,
    label: str = "patching effect",
) -> Axes:
    """Draw a head map: layers downwards, heads across, on a diverging scale centred on 0.

    Red heads move the score the way the perturbation does, blue heads against it; the scale is safe for colour-blind
    readers.

    Args:
        effects: an :class:`~pyterrier_mechir.AggregateHeads` frame (several groups are averaged) or a
            :class:`~pyterrier_mechir.PatchScorer` frame (its pairs are pooled by ratio of means), or a matrix
            ``[layer, head]``.
        ax: axes to draw on; a new figure by default.
        title: of the axes.
        annotate: write the values; by default where there is room.
        limit: value at the ends of the scale; by default the largest absolute effect.
        label: of the colour bar.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame or array that holds no head effects.
    """
    from matplotlib import pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    matrix = _matrix(effects)
    n_layers, n_heads = matrix.shape
    if ax is None:
        _, ax = plt.subplots(figsize=(1.6 + 0.55 * n_heads, 1.2 + 0.42 * n_layers), layout="constrained")
    largest = limit or float(np.nanmax(np.abs(matrix), initial=0.0)) or 1.0
    image = ax.imshow(matrix, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -largest, largest), aspect="auto")
    ax.set_xticks(range(n_heads))
    ax.set_yticks(range(n_layers))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title is not None:
        ax.set_title(title)
    if annotate if annotate is not None else matrix.size <= _READABLE:
        for (layer, head), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 * largest else "black"
                ax.text(head, layer, _short(value), ha="center", va="center", color=colour, fontsize=7)
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.046, pad=0.02)
    return ax


def _short(value: float) -> str:
    text = f"{value:.2f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1)


def _matrix(effects: Any) -> np.ndarray:
    if isinstance(effects, pd.DataFrame) and "patch_effect" in effects.columns:
        from pyterrier_mechir.stages.aggregate import AggregateHeads

        effects = AggregateHeads(by=None, n_boot=0)(effects)
    if isinstance(effects, pd.DataFrame):
        if not {"layer", "head", "score"} <= set(effects.columns):
            raise ValueError(
                "plot_heads draws frames of AggregateHeads or PatchScorer; this one has no layer, head and score."
            )
        heads = effects[effects["head"].notna()]
        if not len(heads):
            raise ValueError("the frame holds no attention heads to draw.")
        table = heads.pivot_table(index="layer", columns="head", values="score", aggfunc="mean", dropna=False)
        table = table.reindex(index=range(int(heads["layer"].max()) + 1), columns=range(int(heads["head"].max()) + 1))
        return table.to_numpy(np.float64)
    matrix = np.asarray(effects, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"plot_heads draws a matrix [layer, head], not an array of shape {matrix.shape}.")
    return matrix
