"""Steering a ranker: its scores with something added to its activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from pyterrier_mechir.interventions.vectors import Vectors, _place
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import check_ranker
from pyterrier_mechir.stages.base.rows import MinimalPairs
from pyterrier_mechir.stages.scorer import Scorer

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch


class Steer(Scorer):
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
        self._places = {name: _place(self.ranker, name) for name in self.vectors}
        for name, (_, part) in self._places.items():
            if self.vectors[name].shape != (part.stop - part.start,):
                shape = self.vectors[name].shape
                raise ValueError(f"the vector of {name} is of shape {shape}; it should be ({part.stop - part.start},).")

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        steered = copy(self.ranker)
        steered.query_inputs = self.ranker.query_inputs  # type: ignore[method-assign]
        steered.encode = self._encode  # type: ignore[method-assign]
        return {"score": steered.score(queries, texts, batch_size=self.batch_size, verbose=self.verbose)}

    def _encode(self, batch: Batch) -> torch.Tensor:
        from pyterrier_mechir.models.ports import on_port

        with ExitStack() as stack:
            for name, (key, part) in self._places.items():
                stack.enter_context(on_port(self.ranker.anatomy.port(*key), self._add(name, part)))
            return self.ranker.encode(batch)

    def _add(self, name: str, part: slice) -> Any:
        import torch

        vector = self.alpha * torch.from_numpy(self.vectors[name])

        def function(activation: torch.Tensor) -> torch.Tensor:
            added = activation.clone()
            added[..., part] += vector.to(activation)
            return added

        return function


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
    import torch

    from pyterrier_mechir.models.batching import by_length
    from pyterrier_mechir.models.recording import record

    ranker = check_ranker(ranker)
    places = {name: _place(ranker, name) for name in sites}
    pairs = MinimalPairs.of(frame, "text")
    facing = ranker.facing(pairs.side)
    aligned = pairs.aligned(facing, filler)
    if not aligned:
        raise ValueError("none of the pairs can be aligned, so there is no difference to steer by.")
    sums = {name: torch.zeros(part.stop - part.start, dtype=torch.float64) for name, (_, part) in places.items()}
    n_positions = 0
    lengths = np.array([len(pair.classes) for pair in aligned])
    for index in by_length(lengths, facing.batch_tokens // 2, None):
        group = [aligned[i] for i in index]
        batch = facing.collate([pair.baseline for pair in group] + [pair.perturbed for pair in group], {}, [])
        is_open = torch.zeros(batch["input_ids"][: len(group)].shape, dtype=torch.bool)
        for row, pair in enumerate(group):
            is_open[row, : len(pair.classes)] = torch.from_numpy(pair.is_open)
        with torch.no_grad():
            run = record(facing, batch, {key for key, _ in places.values()}, facing.encode)
        n_positions += int(is_open.sum())
        for name, (key, part) in places.items():
            baseline, changed = run[key][..., part].cpu().double().chunk(2)
            sums[name] += (changed - baseline)[is_open].sum(0)
    return {name: (total / n_positions).float().numpy() for name, total in sums.items()}
