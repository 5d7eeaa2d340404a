"""Two sides against each other: the effect of every component under one and under the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.frames import check_one
from pyterrier_mechir.plots.style import FAINT, LITERAL, QUALITATIVE, QUIET, SMALL, finish, legend, new_axes, note
from pyterrier_mechir.results.frames import strongest_first

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEEDED = ("docno", "score", "score_first", "score_second")


def plot_comparison(
    frame: pd.DataFrame,
    *,
    label: int = 8,
    names: tuple[str, str] = ("first", "second"),
    alpha: float = 0.05,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the effect of every component on one side over that on another, with the diagonal where both are equal.

    Components above the diagonal do more on the second side, those below it on the first. Diamonds are components
    whose adjusted p-value (of the difference) is below ``alpha``, circles all others.

    Args:
        frame: of ``CompareHeads``: ``docno, score`` (second less first), ``score_first``, ``score_second`` and,
            optionally, ``p_adjusted``.
        label: how many components to name, those of the largest absolute difference.
        names: what the two sides are called.
        alpha: the level of adjusted p-values.
        ax: axes to draw on; a new figure by default.
        title: of the axes.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame without the effects of two sides, or with several groups.
    """
    missing = [column for column in _NEEDED if column not in frame.columns]
    if missing:
        raise ValueError(f"plot_comparison draws frames of CompareHeads; this one has no {', '.join(missing)}.")
    check_one(frame, "qid", "plot_comparison")
    rows = frame.dropna(subset=list(_NEEDED))
    if not len(rows):
        raise ValueError("the frame holds no component with effects on both sides to draw.")
    ax = new_axes(ax, 4.8, 4.8)
    effects = rows[["score_first", "score_second"]].to_numpy(np.float64)
    _frame_square(ax, effects)
    p_values = rows["p_adjusted"].to_numpy(np.float64) if "p_adjusted" in rows.columns else np.full(len(rows), np.nan)
    differs = p_values < alpha
    plain, different = effects[~differs], effects[differs]
    style: dict[str, Any] = {"facecolors": "none", "edgecolors": QUIET}
    ax.scatter(plain[:, 0], plain[:, 1], s=18, marker="o", linewidths=0.8, label="other components", **style)
    if np.isfinite(p_values).any():
        found = f"adjusted p < {alpha:g}" if differs.any() else f"adjusted p < {alpha:g}: none"
        ax.scatter(different[:, 0], different[:, 1], s=26, marker="D", color=QUALITATIVE[1], label=found, zorder=3)
        legend(ax, "upper left")
    _name(ax, strongest_first(rows).head(max(label, 0)))
    finish(ax, title, f"effect, {names[0]}", f"effect, {names[1]}")
    note(ax, "dotted: equal effects")
    return ax


def _frame_square(ax: Axes, effects: np.ndarray) -> None:
    """Equal axes round all points, with the diagonal and both zeros."""
    low, high = min(effects.min(), 0.0), max(effects.max(), 0.0)
    margin = 0.08 * (high - low) or 1.0
    ax.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin))
    ax.set_aspect("equal")
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    ax.axline((0, 0), slope=1, color=QUIET, linewidth=0.8, linestyle=":", zorder=0)


def _name(ax: Axes, rows: pd.DataFrame) -> None:
    """Name components: those above the diagonal on their left, those below it on their right."""
    points_per_unit = ax.get_window_extent().height * 72 / ax.figure.dpi / np.ptp(ax.get_ylim())
    for is_above, side in rows.groupby(rows["score"] > 0):
        side = side.sort_values("score_second")
        heights = side["score_second"].to_numpy(np.float64) * points_per_unit
        shifts = _spread(heights, SMALL + 1.5) - heights
        x_shift, align = (-9, "right") if is_above else (9, "left")
        for (_, row), shift in zip(side.iterrows(), shifts, strict=True):
            ax.annotate(
                *(row["docno"], (row["score_first"], row["score_second"]), (x_shift, shift)),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=SMALL,
                **LITERAL,
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
            )


def _spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Ascending values moved as little as it takes for neighbours to be a gap apart."""
    ramp = gap * np.arange(len(values))
    blocks: list[list[float]] = []
    for value in values - ramp:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks] or [values]) + ramp
