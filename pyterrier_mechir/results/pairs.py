"""The arrays that a frame of results holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.results.effects import change, moved
from pyterrier_mechir.results.frames import METADATA, has_token_effects, labelled_sites

if TYPE_CHECKING:
    from pyterrier_mechir.results.frames import Label


@dataclass(frozen=True)
class PairArrays:
    """The pairs of a frame as arrays, for statistics over them.

    Args:
        effects: normalised effects, ``[pair, site]``, missing where s_p - s_b is too small for one.
        moved: what patches move the scores by, ``[pair, site]``: see :func:`~pyterrier_mechir.results.effects.moved`.
        delta: s_p - s_b, ``[pair]``.
        queries: the number of each pair's query, ``[pair]``, from 0 without gaps.
        weights: of the pairs in means, ``[pair]``.
    """

    effects: np.ndarray
    moved: np.ndarray
    delta: np.ndarray
    queries: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, weights: np.ndarray) -> PairArrays:
        """Read a frame.

        Args:
            frame: as for :func:`read_pairs`.
            weights: of the pairs.
        """
        baseline, perturbed = _sides(frame)
        amounts = moved(direction_of(frame), _stack(frame["patch_scores"]), baseline[:, None], perturbed[:, None])
        queries = np.unique(frame["qid"].astype(str).to_numpy(np.object_), return_inverse=True)[1]
        return cls(_stack(frame["patch_effect"]), amounts, change(baseline, perturbed), queries, weights)

    def rows(self, index: Any) -> PairArrays:
        """Some of the pairs, with their queries numbered anew."""
        queries = np.unique(self.queries[index], return_inverse=True)[1]
        return PairArrays(self.effects[index], self.moved[index], self.delta[index], queries, self.weights[index])

    def at_sites(self, index: np.ndarray) -> PairArrays:
        """The same pairs at some of the sites."""
        return replace(self, effects=self.effects[:, index], moved=self.moved[:, index])


def direction_of(frame: pd.DataFrame) -> str:
    """The direction in which a frame's ``patch_scores`` were swept: ``denoise`` or ``noise``.

    Args:
        frame: of :class:`~pyterrier_mechir.PatchScorer`, with ``patch_scores``. Its attrs say the direction; where
            they are gone, it is the one in which its scores amount to its effects.

    Raises:
        ValueError: nothing tells: the attrs are gone, and no pair has effects.
    """
    told = frame.attrs.get(METADATA, {}).get("direction")
    if told is not None:
        return "noise" if told == "noise" else "denoise"
    patched = _flat(frame["patch_scores"])
    effects = _flat(frame["patch_effect"]) if "patch_effect" in frame.columns else np.full(patched.shape, np.nan)
    if np.isnan(effects).all() and np.isfinite(patched).any():
        raise ValueError(
            f"nothing tells in which direction the frame was patched, since its attrs[{METADATA!r}] are gone and no "
            "pair has effects; keep the attrs that PatchScorer gave it."
        )
    baseline, perturbed = (np.repeat(scores, frame["patch_scores"].map(np.size)) for scores in _sides(frame))
    amounts = effects * change(baseline, perturbed)
    return min(
        ("denoise", "noise"), key=lambda way: np.nansum(np.abs(amounts - moved(way, patched, baseline, perturbed)))
    )


def _flat(arrays: pd.Series) -> np.ndarray:
    return np.concatenate([[], *map(np.ravel, arrays)])


def _sides(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The baselines' scores and the perturbed sides', ``[pair]``."""
    return frame["score_baseline"].to_numpy(np.float64), frame["score_perturbed"].to_numpy(np.float64)


def _stack(arrays: pd.Series) -> np.ndarray:
    return np.stack([np.asarray(array, dtype=np.float64).ravel() for array in arrays])


def read_pairs(frame: pd.DataFrame, weights: str | None = None) -> tuple[list[Label], PairArrays]:
    """What the arrays of a frame hold, and its pairs.

    Args:
        frame: of :class:`~pyterrier_mechir.PatchScorer`, not empty, with the columns
            :data:`~pyterrier_mechir.results.frames.COLUMNS`.
        weights: a column of weights of pairs.

    Raises:
        ValueError: effects of single positions, arrays of several shapes, sites or a direction that nothing tells, or
            a weight that is no number of 0 or more.
    """
    if has_token_effects(frame):
        raise ValueError(
            "effects of single positions belong to one text each and are not aggregated; explode_effects(frame) "
            "gives them one by one, and positions='class' gives effects that can be."
        )
    shapes = {np.shape(array) for array in frame["patch_effect"]}
    if len(shapes) > 1:
        raise ValueError(f"patch_effect has arrays of shapes {sorted(shapes)}; aggregate one scorer's at a time.")
    sites, slots = labelled_sites(frame, shapes.pop())
    labels = [(site, slot) for site in sites for slot in ([None] if slots is None else slots)]
    return labels, PairArrays.of(frame, _weights(frame, weights))


def _weights(frame: pd.DataFrame, column: str | None) -> np.ndarray:
    if column is None:
        return np.ones(len(frame))
    weights = pd.to_numeric(frame[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"column {column!r} is not a number of 0 or more in every row; weights have to be.")
    return weights
