"""The score that each layer would give."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.stages.inputs import as_cells
from pyterrier_mechir.stages.rerank import Scorer

_TIED = 1e-5
"""Relative spread of float32 scores that are the same but for rounding."""


class ScoreLens(Scorer):
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
        from pyterrier_mechir.patching.lens import layer_scores

        scores = layer_scores(self.ranker, queries, texts, batch_size=self.batch_size, verbose=self.verbose)
        return {"score": scores[:, -1], "layer_scores": as_cells(scores)}


def lens_agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """How far the ranking of each layer is the final ranking.

    Args:
        frame: the output of :class:`ScoreLens`, with the columns ``qid`` and ``layer_scores``.

    Returns:
        A row per point of the stream: ``layer`` (0 is what enters the first layer, l what leaves layer l - 1; the last
        is the model), ``tau`` (Kendall's tau-b of its scores with the final scores of a query's documents, averaged
        over queries) and ``n_queries``, those that it is averaged over: with at least two documents, not all scored
        alike. ``tau`` is missing where there is none. An empty frame gives no rows.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: arrays of several lengths, which are those of several rankers.
    """
    from scipy.stats import kendalltau

    pt.validate.columns(frame, includes=["qid", "layer_scores"])
    if len({len(scores) for scores in frame["layer_scores"]}) > 1:
        raise ValueError("layer_scores has arrays of several lengths; give the output of one ScoreLens at a time.")
    of_queries = [np.stack(list(scores)) for _, scores in frame.groupby("qid", sort=False)["layer_scores"]]
    of_queries = [scores for scores in of_queries if len(scores) > 1 and _varies(scores[:, -1])]
    rows = []
    for layer in range(len(frame["layer_scores"].iloc[0]) if len(frame) else 0):
        taus = [kendalltau(s[:, layer], s[:, -1]).statistic for s in of_queries if _varies(s[:, layer])]
        rows.append((layer, float(np.mean(taus)) if taus else np.nan, len(taus)))
    made = pd.DataFrame(rows, columns=["layer", "tau", "n_queries"])
    return made.astype({"layer": "int64", "tau": "float64", "n_queries": "int64"})


def _varies(scores: np.ndarray) -> bool:
    """Whether scores differ by more than rounding."""
    return bool(np.ptp(scores) > _TIED * np.abs(scores).max())
