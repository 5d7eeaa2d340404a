"""What becomes of a score as the units of its text are taken out in some order, or put back.

With v(k) the score without the first k units of an order, and v'(k) that with these alone, each as a share of what all
units together make, (v - v(empty)) / (v(all) - v(empty)):

- the **deletion** curve is v(k) and the **insertion** curve v'(k), at k from none to all of the units, in equal steps;
  their areas, by the trapezoid rule, say how early an order takes out (a small deletion area), or puts back (a great
  insertion area), what the score is made of;
- **comprehensiveness** is v(all) - v(k) and **sufficiency** v(all) - v'(k), in score units, both the mean over k of
  1, 5, 10, 20 and 50 % of the units (DeYoung et al., ACL 2020, ERASER).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The shares of units that comprehensiveness and sufficiency take out, or leave."""


def counts(n_units: int, steps: int) -> np.ndarray:
    """How many units are out, or in, at each point of a curve: int64 ``[steps + 1]``, from 0 to all."""
    return np.rint(np.arange(steps + 1) * n_units / steps).astype(np.int64)


def few(n_units: int) -> np.ndarray:
    """How many units each of :data:`SHARES` is, at least one where there is one: int64 ``[share]``."""
    return np.minimum(np.maximum(np.ceil(np.array(SHARES) * n_units - 1e-9), 1), n_units).astype(np.int64)


def variants(order: np.ndarray, steps: int) -> np.ndarray:
    """The texts that an order is measured by: which units each keeps, bool ``[2 * (steps + 1 + share), r]``.

    Args:
        order: the units, in the order in which they are taken out, ``[r]``.
        steps: of the curves.
    """
    n_units = len(order)
    place = np.empty(n_units, dtype=np.int64)
    place[order] = np.arange(n_units)
    is_among = place < np.append(counts(n_units, steps), few(n_units))[:, None]
    return np.concatenate([~is_among, is_among])


@dataclass(frozen=True)
class Curves:
    """What the scores of an order's :func:`variants` say.

    Args:
        deletion: v(k) - v(empty), in score units, ``[steps + 1]``.
        insertion: v'(k) - v(empty), likewise.
        whole: v(all) - v(empty).
        comprehensiveness: in score units.
        sufficiency: in score units.
        deleted: v(k) itself, ``[steps + 1]``.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    whole: float
    comprehensiveness: float
    sufficiency: float
    deleted: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, steps: int) -> Curves:
        """Read the scores of variants, in their order."""
        without, only = np.split(scores.astype(np.float64), 2)
        whole, empty = without[0], only[0]
        return cls(
            without[: steps + 1] - empty,
            only[: steps + 1] - empty,
            float(whole - empty),
            float(np.mean(whole - without[steps + 1 :])),
            float(np.mean(whole - only[steps + 1 :])),
            without[: steps + 1],
        )


def area(curve: np.ndarray) -> np.ndarray:
    """The area below curves on the way from 0 to 1, by the trapezoid rule: the last axis is left out."""
    return np.asarray((curve[..., 1:] + curve[..., :-1]).mean(-1) / 2)
