"""Losses of the ranking of each query's candidates, all by scores over a temperature.

The temperature is learned with the rest. With a fixed one, what is learned is how far scores are apart, and not their
order.

Shapes: scores and targets are those of one query's candidates, ``[candidate]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

LOSSES = ("listwise", "pairwise", "distill")

WIDEST = 100.0
"""By how much the best temperature of given scores may differ from their spread, as a factor."""


def listwise(scores: Tensor, gains: Tensor) -> Tensor:
    """The cross-entropy of the softmax of scores, against each candidate's share of the gains (Cao et al., 2007).

    Args:
        scores: over the temperature.
        gains: what the judgments say, at least one of them above 0.
    """
    shares = gains / gains.sum()
    return -(shares * torch.log_softmax(scores, dim=0)).sum()


def pairwise(scores: Tensor, gains: Tensor) -> Tensor:
    """The mean of log(1 + exp(worse - better)) over pairs that are judged differently (Burges et al., 2005)."""
    is_better = gains[:, None] > gains[None, :]
    return torch.nn.functional.softplus((scores[None, :] - scores[:, None])[is_better]).mean()


def distill(scores: Tensor, teacher: Tensor) -> Tensor:
    """The divergence of the softmax of scores from that of a teacher's scores, both over their temperatures."""
    wanted = torch.log_softmax(teacher, dim=0)
    return (wanted.exp() * (wanted - torch.log_softmax(scores, dim=0))).sum()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "listwise": listwise,
    "pairwise": pairwise,
    "distill": distill,
}


def mean_loss(loss: str, scores: Tensor, targets: np.ndarray, groups: Sequence[np.ndarray], heat: Tensor) -> Tensor:
    """The mean over queries of a loss.

    Args:
        loss: one of :data:`LOSSES`.
        scores: float64 ``[row]``.
        targets: the gains of the rows, or a teacher's scores over its temperature, ``[row]``.
        groups: the rows of each query.
        heat: the logarithm of the temperature.
    """
    function, wanted = FUNCTIONS[loss], torch.tensor(targets)
    cooled = scores / heat.exp()
    return torch.stack([function(cooled[rows], wanted[rows]) for rows in groups]).mean()


def spread(scores: np.ndarray, groups: Sequence[np.ndarray]) -> float:
    """How far scores of one query's candidates are apart: the mean of their standard deviations, 1 where it is 0."""
    found = float(np.mean([scores[rows].std() for rows in groups]))
    return found if found > 0 else 1.0


def calibrated(
    loss: str, scores: np.ndarray, targets: np.ndarray, groups: Sequence[np.ndarray], around: float
) -> tuple[float, float]:
    """The temperature at which a loss of given scores is least, and by how much less it is than of equal scores.

    Args:
        loss: as in :func:`mean_loss`.
        scores: as there.
        targets: as there.
        groups: as there.
        around: a temperature near it, such as the :func:`spread` of the scores.
    """

    def found(heat: float, values: np.ndarray = scores) -> float:
        given = torch.from_numpy(values.astype(np.float64))
        return float(mean_loss(loss, given, targets, groups, torch.tensor(heat, dtype=torch.float64)))

    middle, reach = float(np.log(around)), float(np.log(WIDEST))
    best = minimize_scalar(found, bounds=(middle - reach, middle + reach), method="bounded")
    return float(np.exp(best.x)), found(0.0, np.zeros_like(scores)) - float(best.fun)
