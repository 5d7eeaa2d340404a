"""Perturbations that draw one of all the texts that they can make of a text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.text.differences import leading, trailing


class Edits(Sequence[str]):
    """The texts that some edits make of a text, each of one edit. A text is made when it is asked for.

    Args:
        text: the text.
        edits: for each edit, the character at which it begins, the one at which it ends, and what goes in between.
    """

    def __init__(self, text: str, edits: Sequence[tuple[int, int, str]]):
        self._text, self._edits = text, edits

    def __len__(self) -> int:
        return len(self._edits)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        begin, end, new = self._edits[index]
        return f"{self._text[:begin]}{new}{self._text[end:]}"

    def __contains__(self, made: object) -> bool:
        if not isinstance(made, str):
            return False
        head, tail, n = leading(self._text, made), trailing(self._text, made), len(self._text)
        return any(
            begin <= head
            and n - end <= tail
            and len(made) == n + len(new) - end + begin
            and made.startswith(new, begin)
            for begin, end, new in self._edits
        )


class OfOutcomes(Perturbation):
    """A perturbation that can list all the texts that it can make of a text, and draws one of them.

    Subclasses implement :meth:`_outcomes`. What it claims of a pair follows: the perturbed side is one of the outcomes.

    Attributes:
        seed: of the choice, which depends on nothing else but the row's query and text.
    """

    seed: int

    @abstractmethod
    def _outcomes(self, text: str) -> Sequence[str]:
        """The texts that can be made of a text; none where the perturbation does not apply."""

    def __call__(self, text: str, query: str) -> str | None:
        outcomes = self._outcomes(text)
        return self._random(self.seed, text, query).choice(outcomes) if outcomes else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed in self._outcomes(baseline)
