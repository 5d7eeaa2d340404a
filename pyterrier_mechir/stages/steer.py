"""Steering a ranker: its scores with something added to its activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from pyterrier_mechir.interventions.edited import edited
from pyterrier_mechir.interventions.edits import Add
from pyterrier_mechir.interventions.vectors import Vectors, place_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.stages.base.text_stage import TextStage


class Steer(TextStage):
    """Re-ranks by the score of a ranker to whose activations vectors are added, at every position.

    What is added is ``alpha`` times each vector. For a bi-encoder, documents are steered, and queries are not. With
    vectors from :func:`steering_vectors`, it tells whether the difference that a perturbation makes at a site is enough
    to move rankings (Turner et al., 2023; for rankers see MechIR's embedding steering, Parry et al., ECIR 2025).

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank``.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        vectors: names of sites and what is added there, ``[d]``: as wide as the stream or output of a layer, or as one
            head.
        alpha: how many times it is added; 0 changes nothing, negative numbers take it off.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: no vectors, a site that the ranker does not have, or a vector of another width.
    """

    schematic: ClassVar = {"label": "Steer"}

    def __init__(
        self,
        ranker: Ranker,
        vectors: Mapping[str, Any],
        alpha: float = 1.0,
        *,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        super().__init__(ranker, text_field=text_field, batch_size=batch_size, verbose=verbose)
        if not vectors:
            raise ValueError("no vectors to steer by; give {'L5.resid_post': vector}, or see steering_vectors.")
        self.vectors = Vectors(vectors)
        self.alpha = alpha
        for name, vector in self.vectors.items():
            _, columns = place_of(self.ranker, name)
            if vector.shape != (columns.stop - columns.start,):
                raise ValueError(
                    f"the vector of {name} is of shape {vector.shape}; it should be ({columns.stop - columns.start},)."
                )

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        added = [Add(site, vector, self.alpha) for site, vector in self.vectors.items()]
        steered = edited(self.ranker, added, "both" if self.ranker.reads_query else "document")
        return {"score": steered.score(queries, texts, batch_size=self.batch_size, verbose=self.verbose)}


def steering_vectors(
    frame: pd.DataFrame, ranker: Ranker, sites: Sequence[str], *, filler: Any = "a"
) -> dict[str, np.ndarray]:
    """What a perturbation adds to activations: the mean, over pairs and positions, of perturbed less baseline.

    Args:
        frame: minimal pairs: ``qid, query, docno, text`` and ``text_perturbed`` or ``query_perturbed``, as
            :class:`~pyterrier_mechir.PerturbDocs` makes them.
        ranker: the ranker.
        sites: names of sites, such as ``"L5.resid_post"`` or ``"L5H8"``.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.

    Returns:
        The vector of each site, float32 ``[d]``. Positions that either side masks do not count.

    Raises:
        ValueError: a site that the ranker does not have, or no pair that can be aligned.
    """
    from pyterrier_mechir.observe.differences import mean_differences

    ranker = document_ranker(ranker)
    places = {name: place_of(ranker, name) for name in sites}
    pairs = PairRows.of(frame, "text")
    facing = ranker.facing(pairs.side)
    aligned = pairs.changed(facing, filler)
    if not aligned:
        raise ValueError("none of the pairs can be aligned, so there is no difference to steer by.")
    return mean_differences(facing, aligned, places)
