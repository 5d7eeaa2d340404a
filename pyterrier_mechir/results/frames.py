"""The columns and metadata of frames of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.models.sites import Site, SiteSet, parse_site

METADATA = "mechir"
"""Key of ``frame.attrs`` under which a result says what made it (ranker, scorer, perturbation), which sites its arrays
hold, the direction, the receivers of paths, and its screening."""

PERTURBATION = "perturbation"
"""Key of the perturbation with all its settings, in the mapping that :data:`METADATA` names."""

Label = tuple[Site | SiteSet, str | None]
"""A site, and the token class or position at which it is patched, None for all positions at once."""

COLUMNS = ("qid", "score_baseline", "score_perturbed", "patch_scores", "patch_effect")
"""What a frame of pairs has to have."""


_IDS = ("qid", "docno")


def strongest_first(frame: pd.DataFrame, column: str = "score") -> pd.DataFrame:
    """The rows of a frame by falling absolute value of a column; equal ones stay in order, missing ones go last."""
    return frame.loc[frame[column].abs().sort_values(ascending=False, kind="stable").index]


def check_columns(frame: Any, needed: Sequence[str], context: pt.Transformer | None = None) -> None:
    """Check that a frame has columns, each of its columns once, and that no row is without an id that is needed.

    Args:
        frame: the frame.
        needed: columns that it has to have.
        context: the stage that needs them, for the message.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: columns of one name, of that of the index, or of several levels; or an id that is missing or cannot
            be compared.
        TypeError: it is no frame.
    """
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"expected a DataFrame, not a {type(frame).__name__}.")
    names = frame.columns
    if names.nlevels > 1:
        raise ValueError(
            f"the frame's columns have names of {names.nlevels} levels; leave one, as by frame.droplevel(0, axis=1)."
        )
    if not names.is_unique:
        raise ValueError(
            f"column {names[names.duplicated()][0]!r} comes more than once; keep one of each, as by "
            "frame.loc[:, ~frame.columns.duplicated()]."
        )
    ambiguous = [name for name in frame.index.names if name is not None and name in names]
    if ambiguous:
        raise ValueError(f"{ambiguous[0]!r} names a column and the index; call frame.reset_index(drop=True) first.")
    pt.validate.columns(frame, includes=list(needed), context=context)
    for name in _IDS:
        if name in needed:
            groups_of(frame, name)


def groups_of(frame: pd.DataFrame, column: str, *, may_lack: bool = False) -> np.ndarray:
    """The number of each row's group, ``[row]``, from 0 in the order in which the groups appear.

    Args:
        frame: the frame.
        column: whose values are the groups.
        may_lack: let rows have no group, which then have -1.

    Raises:
        ValueError: a row has no group, or a value cannot be compared with others.
    """
    try:
        numbers = pd.factorize(frame[column])[0]
    except TypeError as error:
        raise ValueError(
            f"column {column!r} has values that cannot be told apart ({error}); turn them to text."
        ) from None
    if not may_lack and (numbers < 0).any():
        raise ValueError(
            f"column {column!r} is missing in {int((numbers < 0).sum())} of {len(frame)} rows, the first of which is "
            f"row {int((numbers < 0).argmax())}; drop these rows, or give them one."
        )
    return numbers


def perturbed_side(frame: pd.DataFrame, text_field: str = "text") -> str | None:
    """Which side of a frame's pairs was perturbed.

    Args:
        frame: rows of queries and documents.
        text_field: column of the document text.

    Returns:
        ``query`` where the frame has ``query_perturbed``, ``document`` where it has ``text_perturbed`` (that is,
        ``<text_field>_perturbed``), None where it has neither. A frame of both is no frame of minimal pairs, which
        what reads pairs has to check; here it counts as one of queries.
    """
    if "query_perturbed" in frame.columns:
        return "query"
    return "document" if f"{text_field}_perturbed" in frame.columns else None


def has_token_effects(frame: pd.DataFrame) -> bool:
    """Whether the arrays of a frame have an axis of all positions of each text (``positions="each"``), not of slots."""
    return {"tokens", "patch_effect"} <= set(frame.columns) and "slots" not in frame.attrs.get(METADATA, {})


def labelled_sites(frame: pd.DataFrame, shape: tuple[int, ...]) -> tuple[list[Site | SiteSet], list[str] | None]:
    """What the axes of a frame's arrays stand for.

    Args:
        frame: whose attrs say it; where they are lost, two axes are taken for layers and heads.
        shape: of the arrays.

    Returns:
        The sites, in the order of the flattened arrays; and the names of the slots (token classes or chosen positions)
        on the last axis, None where it has none.

    Raises:
        ValueError: the frame does not say which sites these are, and the shape does not tell.
    """
    metadata = frame.attrs.get(METADATA, {})
    if "sites" in metadata:
        sites = [parse_site(name) for name in metadata["sites"]]
        slots = metadata.get("slots")
        if len(sites) == int(np.prod(shape if slots is None and not has_token_effects(frame) else shape[:-1])):
            return sites, slots
    if len(shape) == 2 and "tokens" not in frame.columns:
        return [Site("head", layer, head) for layer in range(shape[0]) for head in range(shape[1])], None
    raise ValueError(
        f"the frame does not say which components its arrays of shape {shape} hold: its attrs[{METADATA!r}] are gone. "
        "Aggregate right after PatchScorer, and merge other columns in before it."
    )


def as_strings(column: pd.Series) -> pd.Series:
    """A column as text, in which what is missing stays so, which before version 3 of pandas it does not."""
    return column.astype("str").where(column.notna())


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other, with the attrs of the first, whatever these hold: pandas would compare them."""
    bare = [frame.copy(deep=False) for frame in frames]
    for frame in bare:
        frame.attrs = {}
    made = pd.concat(bare, ignore_index=True)
    made.attrs = frames[0].attrs
    return made


def as_cells(values: Iterable[Any]) -> Any:
    """Any values, such as arrays or lists, as a column of which each cell holds one of them as it is."""
    return pd.Series(list(values), dtype=object).to_numpy()
