"""The score that each layer would give."""

from __future__ import annotations

from typing import Any, ClassVar

from pyterrier_mechir.results.frames import as_cells
from pyterrier_mechir.stages.base.text_stage import TextStage


class ScoreLens(TextStage):
    """Scores documents by the residual stream of every layer, read by the model's own scoring end.

    The logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens") for rankers: all layers after the tap are
    left out, and the final norm, the pooling, the pooler, the classifier or the similarity to the query's vector, which
    is that of the whole model, read the stream as if it were the last layer's. :func:`lens_agreement` tells at which
    layer the final ranking is there.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank`` (the ranker's own), and
    ``layer_scores``: float32 array ``[layer + 1]``, in score units: of the stream that enters layer 0, then of what
    leaves each layer. The last is ``score``.

    Early layers were not trained to be read in this way, so that a score of theirs is comparable among the documents of
    a query, not with the scores of other layers. With ``cls`` pooling, the stream that enters layer 0 is the same at
    the first position of all documents, and so is its score.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.CrossEncoder`.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
    """

    schematic: ClassVar = {"label": "ScoreLens"}

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        from pyterrier_mechir.observe.layers import layer_scores

        scores = layer_scores(self.ranker, queries, texts, batch_size=self.batch_size, verbose=self.verbose)
        return {"score": scores[:, -1], "layer_scores": as_cells(scores)}
