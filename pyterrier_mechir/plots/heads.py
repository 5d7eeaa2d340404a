"""The head map: effect of every attention head, layers by heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.frames import aggregated, check_one
from pyterrier_mechir.plots.style import centred, colour_bar, effect_map, finish, mark_significant, new_axes

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
    label: str | None = None,
    alpha: float | None = 0.05,
) -> Axes:
    """Draw a head map: layers downwards, heads across, on a diverging scale centred on 0.

    Red heads move the score the way the perturbation does, blue heads against it (of ranking effects: red is a ranking
    that is better without the head, blue one that is worse); the scale is safe for colour-blind readers. Heads whose
    adjusted p-value is below ``alpha`` have a marked corner, where the frame has p-values of a single group.

    Args:
        effects: an :class:`~pyterrier_mechir.AggregateHeads` frame (several groups are averaged), a
            :class:`~pyterrier_mechir.RankingEffects` frame of one measure, a :class:`~pyterrier_mechir.PatchScorer`
            frame (its pairs are pooled by ratio of means), or a matrix ``[layer, head]``.
        ax: axes to draw on; a new figure by default.
        title: of the axes.
        annotate: write the values; by default where there is room.
        limit: value at the ends of the scale; by default the largest absolute effect.
        label: of the colour bar; by default ``patching effect``, or, of ranking effects, the change of their measure.
        alpha: the level below which an adjusted p-value (``p_adjusted``) is marked; None marks none.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame or array that holds no head effects, or several of each head.
    """
    matrix, p_values = _matrices(effects)
    n_layers, n_heads = matrix.shape
    ax = new_axes(ax, 1.6 + 0.55 * n_heads, 1.2 + 0.42 * n_layers)
    room = annotate if annotate is not None else matrix.size <= _READABLE
    image = effect_map(ax, matrix, centred(matrix, limit), annotate=room)
    ax.set_xticks(range(n_heads))
    ax.set_yticks(range(n_layers))
    finish(ax, title, "head", "layer")
    mark_significant(ax, p_values, alpha, image)
    colour_bar(image, ax, _label(effects) if label is None else label)
    return ax


def _label(effects: Any) -> str:
    """What the colours stand for."""
    if isinstance(effects, pd.DataFrame) and "measure" in effects.columns and len(effects):
        return f"change of {effects['measure'].iloc[0]} without the head"
    return "patching effect"


def _matrices(effects: Any) -> tuple[np.ndarray, np.ndarray]:
    """Effects and adjusted p-values, ``[layer, head]``."""
    if not isinstance(effects, pd.DataFrame):
        matrix = np.asarray(effects, dtype=np.float64)
        if matrix.ndim != 2:
            raise ValueError(f"plot_heads draws a matrix [layer, head], not an array of shape {matrix.shape}.")
        return matrix, np.full(matrix.shape, np.nan)
    effects = aggregated(effects, "plot_heads")
    heads = effects[effects["head"].notna()]
    if not len(heads):
        raise ValueError("the frame holds no attention heads to draw.")
    for column in ("component", "slot"):
        check_one(heads, column, "plot_heads")
    matrix = _matrix(heads, "score")
    is_tested = "p_adjusted" in heads.columns and not heads.duplicated(["layer", "head"]).any()
    return matrix, _matrix(heads, "p_adjusted") if is_tested else np.full(matrix.shape, np.nan)


def _matrix(heads: pd.DataFrame, values: str) -> np.ndarray:
    table = heads.pivot_table(index="layer", columns="head", values=values, aggfunc="mean", dropna=False)
    table = table.reindex(index=range(int(heads["layer"].max()) + 1), columns=range(int(heads["head"].max()) + 1))
    return table.to_numpy(np.float64)
