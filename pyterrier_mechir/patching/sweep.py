"""The exact sweep: every site of every pair, batched over sites, directions and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.patching.batching import by_length
from pyterrier_mechir.patching.replay import Batch, Edit, Recording, needed_to_replay, record, replay
from pyterrier_mechir.patching.sites import COMPONENTS, Site

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair


@dataclass(frozen=True)
class SweepResult:
    """Scores of ``N`` pairs.

    Args:
        baseline: ``[N]``, score of each baseline.
        perturbed: ``[N]``, score of each perturbed side.
        denoise: ``[N, site]``, score of the baseline with the site taken from the perturbed run, if swept.
        noise: ``[N, site]``, score of the perturbed side with the site taken from the baseline run, if swept.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    denoise: np.ndarray | None
    noise: np.ndarray | None

    def mean_over(self, repeats: int) -> SweepResult:
        """The mean over repeats of the same pairs, given one repeat of all after the other."""

        def mean(values: np.ndarray) -> np.ndarray:
            return np.asarray(values.reshape(repeats, len(values) // repeats, *values.shape[1:]).mean(axis=0))

        ways = (None if values is None else mean(values) for values in (self.denoise, self.noise))
        return SweepResult(mean(self.baseline), mean(self.perturbed), *ways)


def sweep(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    sites: Sequence[Site],
    direction: str = "denoise",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Patch each site of each pair, one at a time, exactly.

    Args:
        ranker: the model.
        pairs: the aligned pairs.
        query_inputs: what the ranker's forward reads of each query, a row per query, indexed by ``pair.query``.
        sites: the sites.
        direction: ``denoise`` (perturbed activations into the baseline run), ``noise`` (the reverse) or ``both``.
        batch_size: pairs in a batch; None forms batches by length, for forward passes of ``ranker.batch_tokens``
            tokens, all patched copies together.
        progress: called with the number of pairs done, as they are done.

    Returns:
        The scores, in the order of the pairs.
    """
    baseline, perturbed = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.float32)
    swept = ("denoise", "noise") if direction == "both" else (direction,)
    patched = {way: np.empty((len(pairs), len(sites)), np.float32) for way in swept}
    steps = _steps(sites)
    copies = len(swept) * max((len(step.sites) for step in steps), default=1)
    lengths = np.array([len(pair.baseline.ids) for pair in pairs], dtype=np.int64)
    for index in by_length(lengths, ranker.batch_tokens // copies, batch_size):
        group = [pairs[i] for i in index]
        with torch.no_grad():
            result = _sweep_group(ranker, group, query_inputs, steps, len(sites), swept)
        baseline[index], perturbed[index] = result.baseline, result.perturbed
        for way in swept:
            patched[way][index] = getattr(result, way)
        if progress is not None:
            progress(len(group))
    return SweepResult(baseline, perturbed, patched.get("denoise"), patched.get("noise"))


@dataclass(frozen=True)
class _Step:
    """Sites of one activation of one layer, swept together as copies on the batch axis."""

    layer: int
    activation: str
    sites: list[int]
    heads: list[int]


def _steps(sites: Sequence[Site]) -> list[_Step]:
    steps: dict[tuple[int, str], _Step] = {}
    for number, site in enumerate(sites):
        key = (site.layer, COMPONENTS[site.component])
        step = steps.setdefault(key, _Step(*key, sites=[], heads=[]))
        step.sites.append(number)
        step.heads.append(site.head or 0)
    return list(steps.values())


def _sweep_group(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    steps: Sequence[_Step],
    n_sites: int,
    swept: Sequence[str],
) -> SweepResult:
    n_pairs = len(pairs)
    sequences = [pair.baseline for pair in pairs] + [pair.perturbed for pair in pairs]
    batch = ranker.collate(sequences, query_inputs, [pair.query for pair in pairs] * 2)
    wanted = {key for step in steps for key in needed_to_replay(step.layer, step.activation)}
    wanted |= {(step.layer, step.activation) for step in steps}
    both = record(ranker, batch, sorted(wanted))
    is_baseline, is_perturbed = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    target, source = {
        ("denoise",): (is_baseline, is_perturbed),
        ("noise",): (is_perturbed, is_baseline),
        ("denoise", "noise"): (slice(None), torch.arange(2 * n_pairs, device=both.scores.device).roll(n_pairs)),
    }[tuple(swept)]
    inputs = {name: value[target] for name, value in batch.items()}
    scores = _sweep_steps(ranker, inputs, both.rows(target), both.rows(source), steps, n_sites)
    parts = dict(zip(swept, scores.split(n_pairs), strict=True))
    return SweepResult(
        both.scores[is_baseline].cpu().numpy(),
        both.scores[is_perturbed].cpu().numpy(),
        *(parts[way].cpu().numpy() if way in parts else None for way in ("denoise", "noise")),
    )


def _sweep_steps(
    ranker: Ranker,
    inputs: Batch,
    base: Recording,
    source: Recording,
    steps: Sequence[_Step],
    n_sites: int,
) -> torch.Tensor:
    """Scores ``[B, site]`` of the base runs with each site taken from the source runs."""
    n_runs, length = inputs["input_ids"].shape
    at_once = max(1, ranker.batch_tokens // (n_runs * length))
    scores = base.scores.new_empty((n_runs, n_sites))
    for step in steps:
        groups = ranker.anatomy.groups(step.activation)
        for begin in range(0, len(step.sites), at_once):
            sites = step.sites[begin : begin + at_once]
            heads = torch.tensor(step.heads[begin : begin + at_once], device=scores.device)
            mask = torch.nn.functional.one_hot(heads, groups).bool()[:, None, None, :]
            edit = Edit(step.layer, step.activation, source[step.layer, step.activation], mask)
            scores[:, sites] = replay(ranker, inputs, base, [edit]).T
    return scores
