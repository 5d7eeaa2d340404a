"""The style that all figures share: colours that colour-blind readers tell apart, and plain axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.image import AxesImage

DIVERGING = "RdBu_r"
"""Effects, centred on 0: red pushes the score the way the perturbation does, blue against it."""

SEQUENTIAL = "Purples"
"""Shares, from 0 up."""

WITH, AGAINST = "#b2182b", "#2166ac"
"""Lines and points in the red and the blue of the diverging scale."""

QUALITATIVE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Kinds of things, after Okabe and Ito; each has a marker of its own too."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One more than there are colours, so that more kinds than that repeat the one or the other, and not both."""

QUIET = "0.5"
"""What stands behind: controls, guides, notes."""

FAINT = "0.8"

LITERAL: dict[str, Any] = {"parse_math": False}
"""Of texts that may come from data, in which what stands between dollar signs is no formula."""

SMALL = 8
"""Font size of notes, legends and tokens."""

_FINE = 0.1
"""Scales that end below this are written with a decimal more."""

_BAR = 0.15
"""Width of a colour bar in inches."""

_CORNER = 0.3
"""Size of the mark of a cell, as a share of its shorter side."""


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or those of a new figure of a size in inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def finish(ax: Axes, title: str | None, x_label: str, y_label: str) -> None:
    """Title, in lines that fit, and labels, in which a dollar sign is one; of spines, axes with ticks keep two.

    A title with several dollar signs stays on one line: matplotlib measures parts of what it wraps as formulas.
    """
    if title is not None:
        ax.set_title(title, wrap=title.count("$") < 2, **LITERAL)
    ax.set_xlabel(x_label, **LITERAL)
    ax.set_ylabel(y_label, **LITERAL)
    if ax.images:
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    else:
        ax.spines[["top", "right"]].set_visible(False)


def legend(ax: Axes, where: Any = "best") -> None:
    """A small legend that hides the guides behind it.

    Args:
        ax: the axes.
        where: as in matplotlib, or ``beside``, to the right of the axes.
    """
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if where == "beside" else {"loc": where}
    for text in ax.legend(**place, fontsize=SMALL, edgecolor="none", framealpha=0.8).get_texts():
        text.set(**LITERAL)


def centred(values: np.ndarray, limit: float | None = None) -> TwoSlopeNorm:
    """A scale that is symmetric around 0.

    Args:
        values: what is drawn on it; missing ones count for nothing.
        limit: value at its ends; by default the largest absolute one, or 1 where all are 0.
    """
    from matplotlib.colors import TwoSlopeNorm

    largest = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return TwoSlopeNorm(0.0, -largest, largest)


def effect_map(ax: Axes, effects: np.ndarray, norm: TwoSlopeNorm, *, annotate: bool = False) -> AxesImage:
    """Draw effects as a map, ``[row, column]``, row 0 on top.

    Args:
        ax: axes to draw on.
        effects: the effects; missing ones are blank.
        norm: from :func:`centred`.
        annotate: write the values.
    """
    image = ax.imshow(effects, cmap=DIVERGING, norm=norm, aspect="auto")
    if annotate:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
        digits = 2 if image.get_clim()[1] >= _FINE else 3
        for (row, column), value in np.ndenumerate(effects):
            if np.isfinite(value):
                ax.text(column, row, _short(value, digits), color=ink(image, value), **style)
    return image


def colour_bar(image: ScalarMappable, ax: Axes, label: str) -> None:
    """Draw the scale of a map beside it, as wide on every figure; pointed where effects go beyond its ends."""
    width, height = inches(ax)
    values, (low, high) = _drawn(image), image.get_clim()
    beyond = bool(np.nanmin(values, initial=0) < low), bool(np.nanmax(values, initial=0) > high)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    size: dict[str, Any] = {"fraction": max(0.046, _BAR / width), "aspect": height / _BAR, "pad": 0.02}
    bar = ax.figure.colorbar(image, ax=ax, extend=extend, **size)
    bar.set_label(label, **LITERAL)
    bar.outline.set_visible(False)


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of axes, as far as they are known before the figure is laid out."""
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def ink(image: ScalarMappable, value: float) -> str:
    """Black or white, whichever is read better on the colour of a value: 0.18 is where both have the same contrast."""
    rgb = np.array(image.cmap(image.norm(np.array(value)))[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.18 else "white"


def mark_significant(ax: Axes, p_values: np.ndarray, alpha: float | None, image: AxesImage) -> None:
    """Mark the upper right corner of the cells whose p-value is below a level, and say so below the map.

    Args:
        ax: axes of a map.
        p_values: adjusted p-values, ``[row, column]``; where all are missing, nothing is drawn.
        alpha: the level; None draws nothing.
        image: the map.
    """
    from matplotlib.collections import PolyCollection

    if alpha is None or not np.isfinite(p_values).any():
        return
    cells = np.argwhere(p_values < alpha)
    if not len(cells):
        note(ax, f"no adjusted p < {alpha:g}")
        return
    sides = np.array(inches(ax)) / p_values.shape[::-1]
    width, height = _CORNER * sides.min() / sides
    corner = np.array([(0.47, -0.47), (0.47 - width, -0.47), (0.47, height - 0.47)])
    values = _drawn(image)
    colours = [ink(image, values[row, column]) for row, column in cells]
    corners = [corner + np.array([column, row]) for row, column in cells]
    ax.add_collection(PolyCollection(corners, facecolors=colours, linewidths=0), autolim=False)
    note(ax, f"marked corner: adjusted p < {alpha:g}")


def note(ax: Axes, text: str) -> None:
    """Write small below the label of the x axis, on the right."""
    where: Any = ("axes fraction", ax.xaxis.label)
    ax.annotate(
        *(text, (1, 0), (0, -3)),
        xycoords=where,
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=SMALL,
        color=QUIET,
        annotation_clip=False,
        **LITERAL,
    )


def _drawn(image: ScalarMappable) -> np.ndarray:
    values: Any = image.get_array()
    return np.ma.filled(values, np.nan)


def _short(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text.replace("0.", ".", 1)
