"""What a model's scoring end makes of the residual stream of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import record
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.resuming import Edit

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


@as_alone()
def layer_scores(
    ranker: Ranker,
    queries: Sequence[str],
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    verbose: bool = False,
) -> np.ndarray:
    """Scores of (query, text) pairs after every layer, each distinct sequence computed once.

    Args:
        ranker: the model.
        queries: the queries, one for each text.
        texts: the texts.
        batch_size: sequences in a forward pass; None batches by length.
        verbose: show a progress bar.

    Returns:
        float32 ``[N, layer + 1]``: of the stream that enters the first layer, then of what leaves each.
    """
    scores = np.empty((len(texts), ranker.n_layers + 1), dtype=np.float32)
    encoding = ranker.opened.encoding
    with torch.no_grad():
        for shared in ranker.parts(queries, texts, batch_size=batch_size, verbose=verbose):
            of_layers = [
                ranker.compare(encoded[shared.places], shared.inputs) for encoded in _encoded(encoding, shared.batch)
            ]
            scores[shared.rows] = torch.stack(of_layers, dim=1).cpu().numpy()
    return scores


def _encoded(encoding: Opened, batch: Batch) -> list[torch.Tensor]:
    """What the scoring end makes of the stream that enters the first layer, then of what leaves each."""
    last = (encoding.anatomy.n_layers - 1, "resid_post")
    streams = [(layer, "resid_pre") for layer in range(encoding.anatomy.n_layers)]
    run = record(encoding, batch, [*streams, last])
    everywhere = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=run[last].device)
    taps = [replay(encoding, batch, run, [Edit(*last, run[stream], everywhere)])[0] for stream in streams]
    return [*taps, run.scores]
