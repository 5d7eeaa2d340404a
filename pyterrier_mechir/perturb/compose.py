"""Perturbations made of perturbations: one after the other, or one of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyterrier_mechir.perturb.base import OfPairs, Pair, Perturbation, as_perturbation, corresponds

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


def _joint_alignment(alignments: Iterable[str]) -> str:
    """The alignment under which all of some others can be aligned."""
    found = set(alignments)
    if len(found) == 1:
        return found.pop()
    if "free" in found:
        return "free"
    return "mask" if "mask" in found and "fill" not in found else "fill"


class Chain(OfPairs):
    """One perturbation after the other, written ``first | second``: both changes are on the perturbed side.

    Does not apply where either does not.

    Args:
        first: applied to the text.
        second: applied to what the first made of it.

    Raises:
        ValueError: the second has a baseline of its own, which can only be one of the text itself.
    """

    def __init__(self, first: Perturbation, second: Perturbation):
        self.first, self.second = as_perturbation(first), as_perturbation(second)
        if self.second.own_baseline:
            raise ValueError(f"{self.second!r} has a baseline of its own, so it can only come first in a chain.")
        self.own_baseline = self.first.own_baseline
        self.alignment = _joint_alignment(m.alignment for p in (self.first, self.second) for m in p.members)
        self.sign = self.first.sign if self.first.sign == self.second.sign else None

    @property
    def name(self) -> str:
        return f"{self.first.name}|{self.second.name}"

    def pair(self, text: str, query: str) -> Pair | None:
        one = self.first.pair(text, query)
        two = None if one is None else self.second.pair(one.perturbed, query)
        return None if one is None or two is None else Pair(one.baseline, two.perturbed, self)

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether the chain makes the pair of the baseline; with its own baseline, whether the sides correspond."""
        if self.own_baseline:
            alignments = {member.alignment for one in (self.first, self.second) for member in one.members}
            return corresponds(alignments.pop() if len(alignments) == 1 else "free", baseline, perturbed)
        return self(baseline, query) == perturbed

    def bind(self, ranker: Ranker) -> Chain:
        return Chain(self.first.bind(ranker), self.second.bind(ranker))

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.second!r}"


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
