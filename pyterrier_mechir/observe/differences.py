"""How activations differ between the sides of minimal pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.recording import Key, record
from pyterrier_mechir.rankers.batches import batches_of_pairs

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

Place = tuple[Key, slice]
"""The (layer, activation) of a site, and which of its features are the site's."""


def both_sides(
    ranker: Ranker, pairs: Sequence[AlignedPair], keys: Sequence[Key]
) -> Iterator[tuple[Tensor, dict[Key, tuple[Tensor, Tensor]]]]:
    """Record activations on both sides of pairs, batch by batch.

    Args:
        ranker: the model.
        pairs: the aligned pairs.
        keys: (layer, activation) of each activation.

    Yields:
        Of the pairs of a batch, which positions both sides attend to, bool ``[n, S]`` on the CPU, and the activations
        of the baselines and of the perturbed sides, ``[n, S, D]``.
    """
    encoding = ranker.opened.encoding
    for batch in batches_of_pairs(ranker, pairs):
        is_open = torch.zeros((len(batch.pairs), batch.batch["input_ids"].shape[1]), dtype=torch.bool)
        for row, pair in enumerate(batch.pairs):
            is_open[row, : len(pair.classes)] = torch.from_numpy(pair.is_open)
        with torch.no_grad():
            run = record(encoding, batch.batch, keys)
        sides = (run[key].chunk(2) for key in keys)
        yield is_open, {key: (baseline, perturbed) for key, (baseline, perturbed) in zip(keys, sides, strict=True)}


@as_alone()
def mean_differences(
    ranker: Ranker, pairs: Sequence[AlignedPair], places: Mapping[str, Place]
) -> dict[str, np.ndarray]:
    """What the perturbation of pairs adds at sites: the mean, over pairs and positions, of perturbed less baseline.

    Args:
        ranker: the model.
        pairs: the aligned pairs, at least one.
        places: where the sites are, by name.

    Returns:
        float32 ``[d]`` of each. Positions that either side masks do not count.
    """
    sums = {name: torch.zeros(at.stop - at.start, dtype=torch.float64) for name, (_, at) in places.items()}
    n_positions = 0
    for is_open, sides in both_sides(ranker, pairs, list(dict.fromkeys(key for key, _ in places.values()))):
        n_positions += int(is_open.sum())
        for name, (key, at) in places.items():
            baseline, perturbed = (side[..., at].cpu().double() for side in sides[key])
            sums[name] += (perturbed - baseline)[is_open].sum(0)
    return {name: (total / n_positions).float().numpy() for name, total in sums.items()}


@as_alone()
def feature_changes(ranker: Ranker, pairs: Sequence[AlignedPair], key: Key) -> np.ndarray:
    """How far each feature of an autoencoder differs between the sides of pairs.

    Args:
        ranker: with an autoencoder.
        pairs: the aligned pairs.
        key: (layer, activation) of its features.

    Returns:
        ``[n_features]``: the sum, over pairs and the positions that both sides attend to, of the absolute differences.
    """
    total = torch.zeros(ranker.anatomy.groups(key[1]), dtype=torch.float64)
    for is_open, sides in both_sides(ranker, pairs, [key]):
        baseline, perturbed = sides[key]
        for row, at in enumerate(is_open.to(baseline.device)):
            total += (perturbed[row] - baseline[row])[at].abs().sum(0).double().cpu()
    return total.numpy()
