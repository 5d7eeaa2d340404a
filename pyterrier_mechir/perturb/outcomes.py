"""Perturbations that draw one of all the texts that they can make of a text."""

from __future__ import annotations

from abc import abstractmethod

from pyterrier_mechir.perturb.base import Perturbation


class OfOutcomes(Perturbation):
    """A perturbation that can list all the texts that it can make of a text, and draws one of them.

    Subclasses implement :meth:`_outcomes`. What it claims of a pair follows: the perturbed side is one of the outcomes.

    Attributes:
        seed: of the choice, which depends on nothing else but the row's query and text.
    """

    seed: int

    @abstractmethod
    def _outcomes(self, text: str) -> list[str]:
        """The texts that can be made of a text; none where the perturbation does not apply."""

    def __call__(self, text: str, query: str) -> str | None:
        outcomes = self._outcomes(text)
        return self._random(self.seed, text, query).choice(outcomes) if outcomes else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed in self._outcomes(baseline)
