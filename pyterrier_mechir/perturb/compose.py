"""Compositions that draw: one of several perturbations for each row."""

from __future__ import annotations

from collections.abc import Sequence

from pyterrier_mechir.perturb.base import OfPairs, Pair, Perturbation, as_perturbation
from pyterrier_mechir.perturb.correspond import joint_alignment
from pyterrier_mechir.text.similar import Embedder


class OneOf(OfPairs):
    """One of several perturbations, drawn for each row among those that apply to it.

    The ``perturbation`` column names the one that was drawn.

    Args:
        perturbations: the perturbations.
        seed: of the choice, which depends on nothing else but the row's query and text.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, perturbations: Sequence[Perturbation], seed: int = 0):
        self.perturbations, self.seed = tuple(map(as_perturbation, perturbations)), seed
        if not self.perturbations:
            raise ValueError("no perturbations given; name at least one.")
        self.own_baseline = any(member.own_baseline for member in self.members)
        self.alignment = joint_alignment(member.alignment for member in self.members)
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

    def bind(self, ranker: Embedder) -> OneOf:
        """One of the same perturbations, each bound (see :meth:`Perturbation.bind`)."""
        return OneOf([perturbation.bind(ranker) for perturbation in self.perturbations], self.seed)
