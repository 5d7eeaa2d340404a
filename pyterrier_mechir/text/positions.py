"""Which positions of a sequence are patched together.

A sweep patches each site once for each *slot*, a set of positions: all of them, each by itself, those of each token
class, those of each of the strongest words of the row, or chosen ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

if TYPE_CHECKING:
    from pyterrier_mechir.text.encoding import AlignedPair


TOP_UNITS = "top_units"
"""The slots of the strongest words, or other units, of each row."""

KINDS = ("all", "each", "class", TOP_UNITS)
"""The names of the slots that can be asked for; a list of positions is the other choice."""

_STRONGEST = 3
"""How many words are patched where nobody says how many."""


@dataclass(frozen=True)
class Positions:
    """The slots of a sweep: sets of positions, each patched by itself.

    Args:
        kind: ``all`` (one slot of all positions), ``each`` (a slot for each position), ``class`` (a slot for each of
            :data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`), ``top_units`` (a slot for each of the row's
            strongest units, which ``pair.slots`` holds), or ``chosen``.
        chosen: with ``chosen``, a slot for each of these positions; negative ones count from the end.
        n_units: with ``top_units``, how many slots there are.
    """

    kind: str
    chosen: tuple[int, ...] = ()
    n_units: int = 0

    @classmethod
    def of(cls, positions: str | Sequence[int | str]) -> Positions:
        """The slots that ``PatchScorer(positions=...)`` asks for.

        Args:
            positions: one of :data:`KINDS`, ``("top_units", 5)`` for as many, or a list of positions.

        Raises:
            ValueError: an unknown name, no positions, or no units.
        """
        if isinstance(positions, str):
            kind = one_of("positions", positions, KINDS)
            return cls(kind, n_units=_STRONGEST if kind == TOP_UNITS else 0)
        chosen = tuple(positions)
        if len(chosen) == 2 and chosen[0] == TOP_UNITS:
            return cls(TOP_UNITS, n_units=check_count(f"the number of {TOP_UNITS}", chosen[1]))  # type: ignore[arg-type]
        if not chosen or not all(isinstance(position, (int, np.integer)) for position in chosen):
            raise ValueError(
                f"positions is {positions!r}; give 'all', 'each', 'class', 'top_units', ('top_units', 5) or a list of "
                "positions."
            )
        return cls("chosen", tuple(map(int, chosen)))

    @property
    def labels(self) -> list[str] | None:
        """The names of the slots, where there are several and all pairs have the same; else None."""
        of_units = [f"unit{number + 1}" for number in range(self.n_units)]
        return {"class": list(TOKEN_CLASSES), "chosen": list(map(str, self.chosen)), TOP_UNITS: of_units}.get(self.kind)

    def count(self, pair: AlignedPair) -> int:
        """How many slots a pair has: with ``each``, as many as it has positions."""
        if self.kind == "each":
            return len(pair.classes)
        return len(self.labels or [None])

    def masks(self, pairs: Sequence[AlignedPair]) -> np.ndarray:
        """Which positions of each pair a slot has.

        Args:
            pairs: ``B`` pairs, of which the longest has ``S`` positions.

        Returns:
            bool, broadcastable to ``[slot, B, S]``; False beyond the end of a shorter pair, unless the kind is ``all``.
        """
        if self.kind == "all":
            return np.ones((1, 1, 1), dtype=bool)
        lengths = np.array([len(pair.classes) for pair in pairs])
        width = lengths.max()
        places = np.arange(width)
        exists = places < lengths[:, None]
        if self.kind == "each":
            return np.eye(width, dtype=bool)[:, None, :] & exists
        if self.kind == "class":
            classes = np.full((len(pairs), width), -1)
            for row, pair in enumerate(pairs):
                classes[row, : len(pair.classes)] = pair.classes
            return classes == np.arange(len(TOKEN_CLASSES))[:, None, None]
        if self.kind == TOP_UNITS:
            slots = np.zeros((self.n_units, len(pairs), width), dtype=bool)
            for row, pair in enumerate(pairs):
                slots[:, row, : len(pair.classes)] = pair.slots
            return slots
        chosen = np.array(self.chosen)[:, None]
        at = np.where(chosen < 0, chosen + lengths, chosen)
        return (at[..., None] == places) & exists

    def of_pair(self, pair: AlignedPair) -> np.ndarray:
        """Which of a pair's ``n`` positions each of its slots has, bool ``[slot, n]``."""
        masks = self.masks([pair])[:, 0]
        return np.broadcast_to(masks, (len(masks), len(pair.classes)))


ALL = Positions("all")
"""One slot of all positions."""
