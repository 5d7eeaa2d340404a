"""The plain re-ranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.stages.inputs import Keyed, check_batch_size, check_results, check_rows

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class Scorer(Keyed, pt.Transformer):
    """Re-ranks documents by a ranker's own score; made by ``ranker.scorer()``.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` (float32, a logit or similarity, never squashed)
    and ``rank``.

    Args:
        ranker: the ranker.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.
    """

    schematic: ClassVar = {"label": "Scorer"}

    def __init__(
        self, ranker: Ranker, *, text_field: str = "text", batch_size: int | None = None, verbose: bool = False
    ):
        self.ranker = ranker
        self.text_field = text_field
        self.batch_size = check_batch_size(batch_size)
        self.verbose = verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        check_results(self, inp, self.text_field)
        check_rows(inp, ["query", self.text_field])
        scores = self.ranker.score(
            inp["query"].tolist(), inp[self.text_field].tolist(), batch_size=self.batch_size, verbose=self.verbose
        )
        return pt.model.add_ranks(inp.drop(columns=["score", "rank"], errors="ignore").assign(score=scores))
