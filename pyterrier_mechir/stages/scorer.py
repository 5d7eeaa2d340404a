"""The plain re-ranker."""

from __future__ import annotations

from typing import Any, ClassVar

from pyterrier_mechir.stages.base.text_stage import TextStage


class Scorer(TextStage):
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

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        return {"score": self.ranker.score(queries, texts, batch_size=self.batch_size, verbose=self.verbose)}
