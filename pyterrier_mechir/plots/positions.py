"""The map of one pair: the effect of every layer at every token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.frames import table
from pyterrier_mechir.plots.style import LITERAL, centred, colour_bar, effect_map, finish
from pyterrier_mechir.plots.tokens import PITCH, explain_tokens, label_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_HEIGHT = 1.2
"""Inches that the label of a colour bar takes."""


def plot_positions(
    frame: pd.DataFrame,
    qid: str | None = None,
    docno: str | None = None,
    *,
    component: str | None = None,
    positions: Sequence[int] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    title: str | None = None,
    limit: float | None = None,
    label: str = "patching effect",
) -> Any:
    """Draw the effects of one pair: layers downwards, tokens of the perturbed side across.

    Red cells move the score the way the perturbation does, blue cells against it. Labels of edited tokens are bold,
    those of the query's terms italic, and a frame stands round the columns of the edit.

    Args:
        frame: of ``PatchScorer(ranker, "resid_pre", positions="each")``, or of a list of components or ``"block"``, or
            of chosen positions.
        qid: the query of the pair; the first pair that has effects, where neither is given.
        docno: its document.
        component: the component to draw; by default all that the frame has, one below the other, each on a scale of its
            own.
        positions: only these, such as ``range(20, 60)`` of a long text.
        ax: axes to draw on, or one for each component; a new figure by default.
        title: of the axes, or of the first.
        limit: value at the ends of the scale, of all components; by default the largest absolute effect of each. A low
            one shows what is beside the edit, which carries nearly everything in a residual stream.
        label: of the colour bars.

    Returns:
        The matplotlib axes, or an array of them for several components.

    Raises:
        ValueError: a frame without effects of single positions, a pair or component that it does not have, or another
            number of axes than of components.
    """
    rows = _rows_of_pair(frame, qid, docno)
    rows = rows if positions is None else rows[rows["position"].isin(list(positions))]
    components = list(rows["component"].unique()) if component is None else [component]
    drawn = rows[rows["component"].isin(components)].sort_values("position", kind="stable")
    if not len(drawn):
        raise ValueError(
            f"the pair has no effects of {component or 'any component'} at these positions; it has those of "
            f"{', '.join(rows['component'].unique()) or 'none'}."
        )
    maps = [_map(drawn[drawn["component"] == name]) for name in components]
    axes = _axes(ax, maps)
    at = drawn.drop_duplicates("position")
    tokens, classes = at["token"].tolist(), at["token_class"].tolist()
    for one, effects, name in zip(axes, maps, components, strict=True):
        image = effect_map(one, effects.to_numpy(), centred(effects.to_numpy(), limit))
        of_layers = _is_of_layers(drawn[drawn["component"] == name])
        names_of_rows = _layers(effects.index) if of_layers else list(effects.index)
        one.set_yticks(range(len(effects)), names_of_rows, **LITERAL)
        label_tokens(one.xaxis, tokens, classes)
        finish(one, title if one is axes[0] else None, "", f"{name}\nlayer" if of_layers else name)
        _frame_edit(one, classes, len(effects))
        colour_bar(image, one, label)
    explain_tokens(axes[-1], classes)
    return axes[0] if len(axes) == 1 else np.array(axes)


def _rows_of_pair(frame: pd.DataFrame, qid: str | None, docno: str | None) -> pd.DataFrame:
    """The effects of one pair in long form."""
    from pyterrier_mechir.results.explode import explode_effects

    if not {"qid", "docno", "patch_scores", "patch_effect", "tokens"} <= set(frame.columns):
        raise ValueError(
            "plot_positions draws frames of PatchScorer(ranker, component, positions='each'); this one has no effects "
            "of single positions."
        )
    keys = {"qid": qid, "docno": docno}
    for column, value in keys.items():
        frame = frame if value is None else frame[frame[column].astype(str) == str(value)]
    wanted = " and ".join(f"{column} {value!r}" for column, value in keys.items() if value is not None)
    if not len(frame):
        raise ValueError(f"the frame has no pair of {wanted or 'any query'}.")
    has_effects = [bool(np.isfinite(effects).any()) for effects in frame["patch_effect"]]
    if not any(has_effects):
        raise ValueError(f"no pair of {wanted or 'the frame'} has effects: nothing was perturbed, or no score moved.")
    rows = explode_effects(frame[has_effects].head(1))
    if rows["position"].isna().all():
        raise ValueError(
            "plot_positions draws effects of single positions, of PatchScorer(..., positions='each'); plot_classes "
            "draws those of token classes."
        )
    return rows.dropna(subset="position")


def _map(rows: pd.DataFrame) -> pd.DataFrame:
    """Effects ``[site, position]``."""
    return table(rows, "site", "position", "patch_effect")


def _is_of_layers(rows: pd.DataFrame) -> bool:
    return bool(rows["head"].isna().all() and rows["layer"].notna().all())


def _layers(sites: pd.Index) -> list[str]:
    from pyterrier_mechir.models.sites import parse_site

    return [str(parse_site(name).layer) for name in sites]


def _axes(ax: Axes | Sequence[Axes] | None, maps: Sequence[pd.DataFrame]) -> list[Axes]:
    """An axes for each map."""
    from matplotlib import pyplot as plt

    if ax is None:
        heights = [max(0.2 * len(effects), _LEAST_HEIGHT) for effects in maps]
        size = (max(2.2 + PITCH * maps[0].shape[1], 4.5), 1.1 + sum(heights) + 0.1 * len(maps))
        options: dict[str, Any] = {"height_ratios": heights, "sharex": True, "squeeze": False, "layout": "constrained"}
        return list(plt.subplots(len(maps), figsize=size, **options)[1].flat)
    axes: list[Any] = list(np.ravel(np.array(ax, dtype=object)))
    if len(axes) != len(maps):
        raise ValueError(
            f"there are {len(maps)} components to draw and {len(axes)} axes; give as many, or choose one component."
        )
    return axes


def _frame_edit(ax: Axes, classes: Sequence[str], height: int) -> None:
    """Draw a frame round each run of columns that belong to the edit."""
    from matplotlib.patches import Rectangle

    begin = 0
    for is_edit, run in groupby(classes, "EDIT".__eq__):
        width = len(list(run))
        if is_edit:
            box = Rectangle((begin - 0.5, -0.5), width, height, fill=False, edgecolor="black", linewidth=1)
            box.set_clip_on(False)
            ax.add_patch(box)
        begin += width
