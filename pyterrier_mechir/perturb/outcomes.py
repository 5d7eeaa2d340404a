"""Perturbations that draw one of several outcomes."""

from __future__ import annotations

from abc import abstractmethod

from pyterrier_mechir.perturb.base import Perturbation


class OfOutcomes(Perturbation):
    """A perturbation that draws one of all the texts that it can make of a text."""

    seed: int

    @abstractmethod
    def _outcomes(self, text: str) -> list[str]:
        """What can become of a text; nothing where the perturbation does not apply."""

    def __call__(self, text: str, query: str) -> str | None:
        outcomes = self._outcomes(text)
        return self._random(self.seed, text, query).choice(outcomes) if outcomes else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed in self._outcomes(baseline)
