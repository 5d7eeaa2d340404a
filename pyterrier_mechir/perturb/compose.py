"""One of several perturbations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyterrier_mechir.perturb.base import OfPairs, Pair, Perturbation, _joint_alignment, as_perturbation

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class OneOf(OfPairs):
    """One of several perturbations, drawn for each row among those that apply to it.

    The ``perturbation`` column names the one that was drawn.

    Args:
        perturbations: the perturbations.
        seed: of the choice.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, perturbations: Sequence[Perturbation], seed: int = 0):
        self.perturbations, self.seed = tuple(map(as_perturbation, perturbations)), seed
        if not self.perturbations:
            raise ValueError("no perturbations given; name at least one.")
        self.own_baseline = any(member.own_baseline for member in self.members)
        self.alignment = _joint_alignment(member.alignment for member in self.members)
        signs = {member.sign for member in self.members}
        self.sign = signs.pop() if len(signs) == 1 else None

    @property
    def members(self) -> tuple[Perturbation, ...]:
        return tuple(member for perturbation in self.perturbations for member in perturbation.members)

    def pair(self, text: str, query: str) -> Pair | None:
        rng = self._random(self.seed, text, "\x1f".join([query, *(member.name for member in self.members)]))
        order = rng.sample(self.perturbations, len(self.perturbations))
        pairs = (perturbation.pair(text, query) for perturbation in order)
        return next((pair for pair in pairs if pair is not None), None)

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether the pair is what one of the perturbations claims."""
        return any(perturbation.holds(baseline, perturbed, query) for perturbation in self.perturbations)

    def bind(self, ranker: Ranker) -> OneOf:
        return OneOf([perturbation.bind(ranker) for perturbation in self.perturbations], self.seed)
