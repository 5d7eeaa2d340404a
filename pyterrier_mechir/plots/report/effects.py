"""What the report shows of aggregated effects: maps of components, and the strongest of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from pyterrier_mechir.models.components import COMPONENTS, PER_HEAD, TABLE
from pyterrier_mechir.plots.colours import level
from pyterrier_mechir.plots.markup import (
    SIGNIFICANT,
    bar_ends,
    greatest,
    interval,
    interval_bar,
    number,
    p_value,
    signed,
)
from pyterrier_mechir.results.frames import strongest_first
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

_MOST_CELLS = 1200
_MOST_ROWS = 30
_WITHOUT_MAP = {"neuron": "Single neurons", "feature": "Single features", "set": "Sets of sites"}


class Cell(NamedTuple):
    """A cell of a map: its site and layer, the effect, the step of the colour scale, and all its values as a text."""

    site: str
    layer: Any
    effect: float
    shade: int | None
    is_significant: bool
    details: str

    @property
    def text(self) -> str:
        short = number(self.effect, 2)
        if not short.strip("0."):
            return "0"
        return short.replace("0.", ".", 1) if abs(self.effect) < 1 else short


class EffectMap(NamedTuple):
    """A table of effects; cells are None where nothing was patched."""

    heading: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    limit: float


def effect_maps(heads: pd.DataFrame) -> tuple[list[EffectMap], list[str]]:
    """The maps of components, and sentences about what has none.

    Args:
        heads: a frame of :class:`~pyterrier_mechir.AggregateHeads`, of one group and estimator.

    Returns:
        Where token classes or positions are patched apart, a map of sites by these; else a map of layers by heads for
        each component that heads have, and one of components by layers for those that whole layers have.
    """
    maps: list[EffectMap] = []
    notes: list[str] = []
    for heading, corner, cells in _grids(heads):
        if len(cells) > _MOST_CELLS:
            notes.append(f"{heading} has {len(cells):,} cells, too many for a map; the strongest are listed below.")
        else:
            maps.append(_map(heading, corner, cells))
    if "slot" not in heads.columns:
        kinds = {name.rpartition(".")[2] for name in heads["component"]}
        found = [what for name, what in _WITHOUT_MAP.items() if name in kinds]
        notes += [f"{what} have no map; the strongest are listed below." for what in found]
    return maps, notes


def strongest(heads: pd.DataFrame) -> list[dict[str, Any]]:
    """The components of greatest absolute effect, as rows of a table.

    Args:
        heads: a frame of :class:`~pyterrier_mechir.AggregateHeads`, of one group and estimator.
    """
    known = heads[heads["score"].notna()]
    shown = strongest_first(known).head(_MOST_ROWS)
    rows: list[Any] = list(shown.itertuples())
    ends = bar_ends(shown["score"], shown["ci_low"], shown["ci_high"])
    return [
        {
            "name": row.docno,
            "layer": "" if pd.isna(row.layer) else row.layer,
            "score": row.score,
            "effect": signed(row.score),
            "interval": interval(row.ci_low, row.ci_high),
            "bar": interval_bar(row.score, row.ci_low, row.ci_high, ends),
            "p": p_value(row.p_adjusted),
            "p_adjusted": row.p_adjusted,
            "is_significant": row.p_adjusted < SIGNIFICANT,
            "n_pairs": row.n_pairs,
            "n_skipped": row.n_skipped,
        }
        for row in rows
    ]


def _grids(heads: pd.DataFrame) -> Iterator[tuple[str, str, dict[tuple[str, str], Any]]]:
    """Each grid as its heading, its corner and its rows of the frame by (row, column), in their order."""
    places = {name: place for place, name in enumerate(COMPONENTS)}
    ordered = heads.assign(place=heads["component"].map(places)).sort_values(["place", "layer", "head"], kind="stable")
    rows: list[Any] = list(ordered.itertuples())
    if "slot" in heads.columns:
        of = "token class" if set(heads["slot"]) <= set(TOKEN_CLASSES) else "position"
        yield f"Components by {of}", "component", {(_site(row), row.slot): row for row in rows}
        return
    for component in [name for name in PER_HEAD if name in set(heads["component"])]:
        cells = {(f"L{row.layer}", f"H{row.head}"): row for row in rows if row.component == component}
        yield TABLE[component].heading, "layer", cells
    wide = [row for row in rows if row.component in COMPONENTS and pd.isna(row.head)]
    if wide:
        yield "Components of whole layers", "component", {(row.component, f"L{row.layer}"): row for row in wide}


def _map(heading: str, corner: str, cells: dict[tuple[str, str], Any]) -> EffectMap:
    rows, columns = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    columns.sort(key=_order)
    limit = greatest([row.score for row in cells.values()])
    of_rows = [(name, [_cell(cells.get((name, column)), limit) for column in columns]) for name in rows]
    return EffectMap(heading, corner, columns, of_rows, limit)


def _order(column: str) -> tuple[bool, int]:
    """Token classes as they are listed, layers, heads and positions by their number, those from the end last."""
    place = TOKEN_CLASSES.index(column) if column in TOKEN_CLASSES else int(column.lstrip("LH"))
    return place < 0, place


def _cell(row: Any, limit: float) -> Cell | None:
    if row is None:
        return None
    is_significant = row.p_adjusted < SIGNIFICANT
    details = (
        f"{row.docno}: effect {signed(row.score, 4)}, interval {interval(row.ci_low, row.ci_high)}, "
        f"adjusted p {p_value(row.p_adjusted)}, {row.n_pairs} pairs"
    )
    return Cell(_site(row), row.layer, row.score, level(row.score, limit), is_significant, details)


def _site(row: Any) -> str:
    """The name of the site, without its position."""
    return str(row.docno).rsplit("@", 1)[0]
