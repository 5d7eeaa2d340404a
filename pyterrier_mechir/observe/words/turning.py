"""The fewest units whose removal turns the order of two texts round, found greedily and checked exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyterrier_mechir.observe.words.absence import Absent
from pyterrier_mechir.observe.words.values import values

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker


class Turning(NamedTuple):
    """Units whose removal turns an order round.

    Args:
        units: which, as (text, unit), in the order in which they were chosen: 0 for the text above and 1 for the one
            below, and the unit's number.
        scores: the scores of both texts without them.
        kept: for each text, which of the units that are read stay, bool ``[r]``.
    """

    units: tuple[tuple[int, int], ...]
    scores: tuple[float, float]
    kept: tuple[np.ndarray, np.ndarray]


def turning(
    ranker: Ranker,
    pair: Sequence[Reading],
    carried: Sequence[np.ndarray],
    absent: Absent,
    *,
    limit: int,
    n_candidates: int,
    batch_size: int | None = None,
) -> Turning | None:
    """Find few units of two texts without which the one below scores higher.

    1. Candidates are the units whose removal alone moves the margin most towards 0.
    2. In each step, every candidate that is left is taken out beside those that were chosen, and the one that leaves
       the least margin is chosen; the search ends where the margin is below 0.
    3. Of those chosen, each is put back if the order stays turned without it.

    Args:
        ranker: the ranker, facing documents.
        pair: the text above and the text below.
        carried: what each unit that is read adds to the score of its text, ``[r]``.
        absent: what stands in the place of units that are taken out.
        limit: most units.
        n_candidates: how many are tried.
        batch_size: sequences in a forward pass; None batches by length.

    Returns:
        What was found; None where so many units of these do not turn the order round.
    """
    towards = np.concatenate([np.nan_to_num(carried[0], nan=-np.inf), np.nan_to_num(-carried[1], nan=-np.inf)])
    order = np.argsort(-towards, kind="stable")[:n_candidates]
    n_above = len(carried[0])
    candidates = [(int(place >= n_above), int(place - n_above * (place >= n_above))) for place in order]
    chosen: list[tuple[int, int]] = []

    def scored(sets: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
        """The scores of both texts without each set of units, float64 ``[set, 2]``."""
        kept = [np.ones((len(sets), len(one.read)), dtype=bool) for one in pair]
        for row, units in enumerate(sets):
            for text, unit in units:
                kept[text][row, unit] = False
        return np.stack(list(values(ranker, pair, kept, absent, batch_size=batch_size)), axis=1)

    def margin(scores: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(scores).any(1), np.inf, scores[:, 0] - scores[:, 1])

    while len(chosen) < limit and candidates:
        tried = [[*chosen, unit] for unit in candidates]
        margins = margin(scored(tried))
        best = int(np.argmin(margins))
        chosen.append(candidates.pop(best))
        if margins[best] < 0:
            break
    else:
        return None
    for one in list(chosen):
        without = [other for other in chosen if other != one]
        if without and margin(scored([without]))[0] < 0:
            chosen = without
    above, below = scored([chosen])[0]
    stays = [np.ones(len(one.read), dtype=bool) for one in pair]
    for text, unit in chosen:
        stays[text][unit] = False
    named = tuple((text, int(pair[text].read[unit])) for text, unit in chosen)
    return Turning(named, (float(above), float(below)), (stays[0], stays[1]))
