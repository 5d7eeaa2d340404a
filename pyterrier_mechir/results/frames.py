"""The columns and metadata of frames of results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

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


def as_cells(values: Iterable[Any]) -> Any:
    """Any values, such as arrays or lists, as a column of which each cell holds one of them as it is."""
    return pd.Series(list(values), dtype=object).to_numpy()
