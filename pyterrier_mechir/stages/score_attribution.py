"""What each component adds to the score, directly."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.frames import METADATA, as_cells
from pyterrier_mechir.stages.base.text_stage import TextStage


class ScoreAttribution(TextStage):
    """Splits the score of a bi-encoder into what each head and MLP adds to it by the direct path.

    A document's vector is pooled from the residual stream of the last layer, and that is a sum of what was written to
    it, rescaled by norms on the way. With the scale of every norm frozen at that of the document's own run, the score
    is a sum::

        score = embed + sum over layers (sum over heads head + mlp_out) + bias

    where a term is a writer's output (z_h W_O^h for a head) at the pooled positions, through the frozen norms that
    follow, times the query's vector; for ``cosine`` divided by the frozen norm of the pooled vector, for ``mean``
    pooling averaged over attended positions. In post-norm models (BERT and most of its kin) the stream passes two norms
    a layer, and the frozen norms are chained; in pre-norm models there is the final one alone. This is the direct logit
    attribution of Elhage et al. (2021, "A Mathematical Framework for Transformer Circuits") with the query's vector in
    the place of an unembedding.

    Only direct effects are seen: what a head does through the attention and the MLPs of later layers counts as theirs.
    :class:`~pyterrier_mechir.PatchScorer` measures total effects.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank`` (the ranker's own), and
    ``score_terms``: float32 array ``[term]``, in score units, that sums to ``score``. The names of the terms are in
    ``frame.attrs["mechir"]["terms"]``: ``embed`` (the stream that enters layer 0, so word, position and type embeddings
    after their norm), ``L0H0`` and so on for heads, ``L0.mlp_out`` (with its bias), and ``bias`` (the shifts of the
    norms and the biases of the attention outputs).

    Args:
        ranker: a bi-encoder, of any pooling and similarity.
        by: ``head``, or ``component``: ``L0.attn_out``, with its bias, in the place of the heads of a layer.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown ``by``, a ranker whose scoring end is not linear (a cross-encoder), or an architecture of
            which it is not known which norms its residual stream passes.
    """

    schematic: ClassVar = {"label": "ScoreAttribution"}

    def __init__(
        self,
        ranker: Ranker,
        *,
        by: str = "head",
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        from pyterrier_mechir.observe.decomposition import BY, check_direct_path

        super().__init__(ranker, text_field=text_field, batch_size=batch_size, verbose=verbose)
        self.by = one_of("by", by, BY)
        check_direct_path(self.ranker)

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        from pyterrier_mechir.observe.decomposition import check_direct_path, score_terms

        ranker = check_direct_path(self.ranker)
        scores, terms = score_terms(
            ranker, queries, texts, by=self.by, batch_size=self.batch_size, verbose=self.verbose
        )
        return {"score": scores, "score_terms": as_cells(terms)}

    def _metadata(self, inp: pd.DataFrame) -> dict[str, Any]:
        from pyterrier_mechir.observe.decomposition import term_names

        return {METADATA: inp.attrs.get(METADATA, {}) | {"terms": term_names(self.ranker, self.by)}}
