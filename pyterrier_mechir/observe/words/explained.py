"""What an explanation of a score by the units of its text is, and how one is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.observe.words.absence import Absence, Absent
from pyterrier_mechir.observe.words.readings import Reading

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker

NAN = float("nan")


@dataclass(frozen=True)
class Asked:
    """How scores are explained.

    Args:
        method: one of :data:`~pyterrier_mechir.observe.words.methods.METHODS`.
        unit: one of :data:`~pyterrier_mechir.text.units.UNITS`.
        absence: what stands in the place of a unit that is left out (:mod:`~pyterrier_mechir.observe.words.absence`);
            None for a method that leaves none out.
        all_occurrences: whether all occurrences of a word are left out together.
        steps: points of the path of ``ig``.
        samples: texts that ``lime`` draws; None draws ten for each unit, and at least 200.
        kernel_width: of ``lime``'s weights.
        interactions: whether to tell what pairs of a query's and a text's units add.
        seed: of what is drawn.
        batch_size: sequences in a forward pass; None batches by length.
    """

    method: str = "occlusion"
    unit: str = "word"
    absence: Absence | None = "delete"
    all_occurrences: bool = False
    steps: int = 50
    samples: int | None = None
    kernel_width: float = 25.0
    interactions: bool = False
    seed: int = 0
    batch_size: int | None = None

    def absent(self, ranker: Ranker) -> Absent:
        """What makes texts without some of their units, for a ranker that faces the side that they are of."""
        assert self.absence is not None, f"{self.method} leaves nothing out"
        return Absent(ranker, self.absence, self.seed)


@dataclass(frozen=True)
class Explained:
    """A score, told by the units of its text. Numbers are in score units.

    Args:
        reading: the text, in units.
        scores: what each unit adds to the score, float32 ``[n]``; NaN for one that is cut off.
        rest: what is given to no unit: special tokens, marks, the other text; NaN where a method gives no such thing.
        empty: the score without any of the units; NaN where a method has none.
        error: by how much ``scores``, ``rest`` and ``empty`` together miss the score, where they should add up to it.
        more: columns that the method alone has, by their names.
    """

    reading: Reading
    scores: np.ndarray
    rest: float = NAN
    empty: float = NAN
    error: float = NAN
    more: dict[str, Any] = field(default_factory=dict)
