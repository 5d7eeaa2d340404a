"""What the stages that take a query and a text in have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.checks import check_batch_size
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.stages.base.checks import check_results, check_rows
from pyterrier_mechir.stages.base.keyed import Keyed


class TextStage(Keyed, pt.Transformer):
    """Reads the text of each document with its query, and ranks by what it finds.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank``, and what the subclass adds.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.CrossEncoder`.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
    """

    def __init__(
        self, ranker: Ranker, *, text_field: str = "text", batch_size: int | None = None, verbose: bool = False
    ):
        self.ranker = document_ranker(ranker)
        self.text_field = text_field
        self.batch_size = check_batch_size(batch_size)
        self.verbose = verbose

    @as_alone()
    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        added = self._added(self.prepared(inp))
        out = inp.drop(columns=[*added, "rank"], errors="ignore").assign(**added)
        out.attrs = inp.attrs | self._metadata(inp)
        return pt.model.add_ranks(out)

    def prepared(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The input, checked.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        check_results(self, inp, self.text_field)
        check_rows(inp, ["query", self.text_field])
        return inp

    def _added(self, inp: pd.DataFrame) -> dict[str, Any]:
        """What is added to a frame that was checked."""
        return self._scored(inp["query"].tolist(), inp[self.text_field].tolist())

    @abstractmethod
    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        """The columns that are added, ``score`` among them."""

    def _metadata(self, inp: pd.DataFrame) -> dict[str, Any]:
        """What is added to the attributes of the frame."""
        return {}
