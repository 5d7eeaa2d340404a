"""Which features of an autoencoder a perturbation changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.models.batching import by_length
from pyterrier_mechir.models.recording import record

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


def feature_changes(ranker: Ranker, pairs: Sequence[AlignedPair], key: tuple[int, str]) -> np.ndarray:
    """How far each feature differs between the sides of pairs.

    Args:
        ranker: with an autoencoder.
        pairs: the aligned pairs.
        key: (layer, activation) of its features.

    Returns:
        ``[n_features]``: the sum, over pairs and the positions that both sides attend to, of the absolute differences.
    """
    total = torch.zeros(ranker.anatomy.groups(key[1]), dtype=torch.float64)
    lengths = np.array([len(pair.classes) for pair in pairs], dtype=np.int64)
    for index in by_length(lengths, ranker.batch_tokens // 2, None):
        group = [pairs[i] for i in index]
        batch = ranker.collate([pair.baseline for pair in group] + [pair.perturbed for pair in group], {}, [])
        with torch.no_grad():
            baseline, perturbed = record(ranker, batch, [key], ranker.encode)[key].chunk(2)
        for row, pair in enumerate(group):
            is_open = torch.from_numpy(pair.is_open).to(baseline.device)
            change = (perturbed[row, : len(is_open)] - baseline[row, : len(is_open)])[is_open]
            total += change.abs().sum(0).double().cpu()
    return total.numpy()
