"""The arrays that a frame of results holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.results.frames import METADATA, labelled_sites

if TYPE_CHECKING:
    from pyterrier_mechir.results.frames import Label


@dataclass(frozen=True)
class Pairs:
    """Pairs as arrays: normalised effects and moved scores ``[pair, site]``; s_p - s_b, queries, weights ``[pair]``."""

    effects: np.ndarray
    moved: np.ndarray
    delta: np.ndarray
    queries: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, direction: str | None, weights: np.ndarray) -> Pairs:
        effects, patched = (_stack(frame[column]) for column in ("patch_effect", "patch_scores"))
        baseline, perturbed = (frame[f"score_{side}"].to_numpy(np.float64) for side in ("baseline", "perturbed"))
        delta = perturbed - baseline
        denoised, noised = patched - baseline[:, None], perturbed[:, None] - patched
        direction = direction or _direction(effects * delta[:, None], denoised, noised)
        queries = np.unique(frame["qid"].astype(str).to_numpy(np.object_), return_inverse=True)[1]
        return cls(effects, noised if direction == "noise" else denoised, delta, queries, weights)

    def rows(self, index: Any) -> Pairs:
        queries = np.unique(self.queries[index], return_inverse=True)[1]
        return Pairs(self.effects[index], self.moved[index], self.delta[index], queries, self.weights[index])

    def at_sites(self, index: np.ndarray) -> Pairs:
        return replace(self, effects=self.effects[:, index], moved=self.moved[:, index])


def _direction(moved: np.ndarray, denoised: np.ndarray, noised: np.ndarray) -> str:
    """The direction whose formula gives the effects of a frame that does not say which was swept."""
    errors = [np.nansum(np.abs(moved - candidate)) for candidate in (denoised, noised)]
    return "denoise" if errors[0] <= errors[1] else "noise"


def _stack(arrays: pd.Series) -> np.ndarray:
    return np.stack([np.asarray(array, dtype=np.float64).ravel() for array in arrays])


def read_pairs(frame: pd.DataFrame, weights: str | None = None) -> tuple[list[Label], Pairs]:
    """What the arrays of a frame hold, and its pairs.

    Args:
        frame: of :class:`~pyterrier_mechir.PatchScorer`, not empty, with :data:`COLUMNS`.
        weights: a column of weights of pairs.

    Raises:
        ValueError: effects of single positions, arrays of several shapes, sites that nothing tells, or a weight that is
            no number of 0 or more.
    """
    if "tokens" in frame.columns and "slots" not in frame.attrs.get(METADATA, {}):
        raise ValueError(
            "effects of single positions belong to one text each and are not aggregated; explode_effects(frame) "
            "gives them one by one, and positions='class' gives effects that can be."
        )
    shapes = {np.shape(array) for array in frame["patch_effect"]}
    if len(shapes) > 1:
        raise ValueError(f"patch_effect has arrays of shapes {sorted(shapes)}; aggregate one scorer's at a time.")
    sites, slots = labelled_sites(frame, shapes.pop())
    labels = [(site, slot) for site in sites for slot in ([None] if slots is None else slots)]
    return labels, Pairs.of(frame, frame.attrs.get(METADATA, {}).get("direction"), _weights(frame, weights))


def _weights(frame: pd.DataFrame, column: str | None) -> np.ndarray:
    if column is None:
        return np.ones(len(frame))
    weights = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"column {column!r} is not a number of 0 or more in every row; weights have to be.")
    return weights
