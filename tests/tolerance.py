"""How far apart numbers may be that float32 gives for the same thing, computed by products of other shapes or orders.

What a test tolerates without noise is what float32 rounds off. With ``--noise`` it tolerates more by as much as the
noise is greater than that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike

ROUNDING = 1e-7
"""About what float32 rounds off a product of matrices, as a share of it."""

_noise = 0.0


def set_noise(size: float) -> None:
    """Say how much noise there is."""
    global _noise
    _noise = size


def widened(tolerance: float) -> float:
    """A tolerance for what float32 rounds off, or for that and the noise."""
    return tolerance * max(1.0, _noise / ROUNDING)


def near(wanted: ArrayLike, tolerance: float = 1e-5) -> Any:
    """Like ``pytest.approx``, for what products of float32 are made into."""
    return pytest.approx(wanted, rel=widened(tolerance), abs=widened(tolerance))


def assert_near(found: ArrayLike, wanted: ArrayLike, tolerance: float = 1e-5, least: ArrayLike = 1.0) -> None:
    """Numbers are the same but for a share of their size, and missing in the same places.

    Args:
        found: the numbers.
        wanted: what they should be.
        tolerance: the share, without noise.
        least: the size of numbers that are smaller: that of the terms of which they are sums or differences.
    """
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    off = np.abs(found - wanted) / np.maximum(least, np.abs(wanted))
    assert np.nanmax(off, initial=0) <= widened(tolerance)


def assert_near_effects(found: ArrayLike, wanted: ArrayLike, scores: pd.DataFrame, tolerance: float = 1e-5) -> None:
    """Normalised effects are the same, in units of the scores that they are made of.

    An effect is a difference of scores over another, which makes what is rounded off the scores large where that is
    small. So effects are compared after multiplication by the difference that they were divided by.

    Args:
        found: the effects, a row per pair.
        wanted: what they should be, or one for all.
        scores: with ``score_baseline`` and ``score_perturbed``, a row per pair.
        tolerance: as a share of the scores, without noise.
    """
    found = np.asarray(found, dtype=np.float64)
    wanted = np.broadcast_to(np.asarray(wanted, dtype=np.float64), found.shape)
    sides = scores[["score_baseline", "score_perturbed"]].to_numpy(np.float64)
    delta, size = np.abs(sides[:, 1] - sides[:, 0]), np.maximum(1, np.abs(sides).max(axis=1))
    delta, size = (values.reshape(-1, *[1] * (found.ndim - 1)) for values in (delta, size))
    assert_near(found * delta, wanted * delta, tolerance, size * np.maximum(1, np.abs(wanted)))
