"""What a stage has whose results can be kept on disk, and computed in parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.stages.base.keyed import Keyed


class StoredStage(Keyed, pt.Transformer):
    """A stage that scores rows one by one, so that what it makes of a frame it makes of its parts."""

    ranker: Ranker
    text_field: str
    verbose: bool

    added: ClassVar[Sequence[str]]
    """Columns that it may add, in their order."""

    @property
    def whole_frame(self) -> str:
        """Why it needs the whole frame at once, and what to do instead, as a sentence; empty where it does not."""
        return ""

    @property
    def n_units(self) -> int:
        """How many of the strongest explained units of each row are scored by themselves: then they, too, decide it."""
        return 0

    @abstractmethod
    def prepared(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The input with all that is scored.

        Raises:
            pt.validate.InputValidationError: a column is missing.
        """

    @abstractmethod
    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What decides the results, so that a run can be repeated.

        Args:
            fingerprint: as in ``Ranker.about``.

        Returns:
            ``ranker``, as ``Ranker.about`` says, and ``scorer``: the class and its settings.
        """
