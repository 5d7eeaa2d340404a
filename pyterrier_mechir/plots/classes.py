"""The map of token classes, or of the strongest words: where in the text components act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.frames import aggregated, check_one, table
from pyterrier_mechir.plots.style import LITERAL, centred, colour_bar, effect_map, finish, mark_significant, new_axes
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_classes(
    frame: pd.DataFrame,
    *,
    top: int = 20,
    ax: Axes | None = None,
    title: str | None = None,
    annotate: bool = True,
    limit: float | None = None,
    label: str = "patching effect",
    alpha: float | None = 0.05,
) -> Axes:
    """Draw the effects of components at token classes, or at the strongest words: components downwards, classes across.

    Red cells move the score the way the perturbation does, blue cells against it. Cells whose adjusted p-value is below
    ``alpha`` have a marked corner. Rows are the layers of a layer-wide component such as ``resid_pre``; of heads, and
    of several components, they are the strongest, by their largest absolute effect, from the strongest down.

    Args:
        frame: ``AggregateHeads(by=None)`` of a ``PatchScorer(ranker, positions="class")``, or ``"top_units"``, or the
            scorer's own frame, whose pairs are then pooled.
        top: number of rows where they are not layers.
        ax: axes to draw on; a new figure by default.
        title: of the axes.
        annotate: write the values.
        limit: value at the ends of the scale; by default the largest absolute effect drawn.
        label: of the colour bar.
        alpha: the level below which an adjusted p-value (``p_adjusted``) is marked; None marks none.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame without effects of token classes, or with several groups.
    """
    rows = _rows(frame)
    of_layers = rows["head"].isna().all() and rows["component"].nunique() == 1 and rows["layer"].notna().all()
    names = "layer" if of_layers else "site"
    effects = table(rows, names, "slot", "score").reindex(columns=rows["slot"].cat.categories)
    if of_layers:
        effects = effects.sort_index()
    else:
        strongest = effects.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[: max(top, 1)]
        effects = effects.loc[strongest]
    ax = new_axes(ax, 2 + 0.62 * effects.shape[1], 1.3 + 0.26 * len(effects))
    image = effect_map(ax, effects.to_numpy(), centred(effects.to_numpy(), limit), annotate=annotate)
    ax.set_xticks(range(effects.shape[1]), list(effects.columns), **LITERAL)
    ax.set_yticks(range(len(effects)), list(effects.index.astype(str)), **LITERAL)
    across = "word, from the strongest" if effects.columns[0].startswith("unit") else "position"
    across = "token class" if set(effects.columns) <= set(TOKEN_CLASSES) else across
    component = rows["component"].iloc[0]
    finish(ax, title, across, f"{component}, layer" if of_layers else "")
    p_values = np.full(effects.shape, np.nan)
    if "p_adjusted" in rows.columns:
        p_values = table(rows, names, "slot", "p_adjusted").reindex_like(effects).to_numpy()
    mark_significant(ax, p_values, alpha, image)
    colour_bar(image, ax, label)
    return ax


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have an effect, with ``site`` (the component's name) and ``slot`` in the order of token classes."""
    frame = aggregated(frame, "plot_classes", ["docno", "component", "layer", "head", "score"])
    if "slot" not in frame.columns:
        raise ValueError(
            "plot_classes draws effects of token classes, of PatchScorer(..., positions='class'); this frame has no "
            "column 'slot'."
        )
    check_one(frame, "qid", "plot_classes")
    rows = frame[frame["score"].notna() & frame["slot"].notna()]
    if not len(rows):
        raise ValueError("the frame holds no effects to draw.")
    slots = set(rows["slot"])
    others = sorted(slots - set(TOKEN_CLASSES), key=lambda slot: int(slot.removeprefix("unit")))
    order = [slot for slot in TOKEN_CLASSES if slot in slots] + others
    site = rows["docno"].str.rsplit("@", n=1).str[0]
    return rows.assign(site=site, slot=pd.Categorical(rows["slot"], order, ordered=True))
