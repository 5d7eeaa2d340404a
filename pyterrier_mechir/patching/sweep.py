"""The exact sweep: every site of every pair, batched over sites, directions and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.patching.batching import by_length
from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.replay import Batch, Edit, Recording, needed_to_replay, record, replay
from pyterrier_mechir.patching.sites import COMPONENTS, Site

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair


Patched = np.ndarray | list[np.ndarray]
"""Patched scores: ``[N, site]``, or, where positions are patched apart, ``[site, slot]`` for each pair."""


@dataclass(frozen=True)
class SweepResult:
    """Scores of ``N`` pairs.

    Args:
        baseline: ``[N]``, score of each baseline.
        perturbed: ``[N]``, score of each perturbed side.
        denoise: score of the baseline with the site taken from the perturbed run, if swept.
        noise: score of the perturbed side with the site taken from the baseline run, if swept.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    denoise: Patched | None
    noise: Patched | None

    def mean_over(self, repeats: int) -> SweepResult:
        """The mean over repeats of the same pairs, given one repeat of all after the other."""

        def mean(values: np.ndarray) -> np.ndarray:
            return np.asarray(values.reshape(repeats, len(values) // repeats, *values.shape[1:]).mean(axis=0))

        def mean_of(values: Patched | None) -> Patched | None:
            if isinstance(values, list):
                n = len(values) // repeats
                return [np.asarray(np.stack(values[i::n]).mean(axis=0)) for i in range(n)]
            return None if values is None else mean(values)

        return SweepResult(mean(self.baseline), mean(self.perturbed), mean_of(self.denoise), mean_of(self.noise))


def sweep(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    sites: Sequence[Site],
    direction: str = "denoise",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
    positions: Positions = ALL,
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
        positions: which positions are patched together.

    Returns:
        The scores, in the order of the pairs; missing where a pair has none of the positions.
    """
    baseline, perturbed = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.float32)
    swept = ("denoise", "noise") if direction == "both" else (direction,)
    patched: dict[str, list[np.ndarray]] = {way: [np.empty(0)] * len(pairs) for way in swept}
    steps = _steps(sites, ranker.n_layers)
    lengths = np.array([len(pair.baseline.ids) for pair in pairs], dtype=np.int64)
    slots = max((positions.count(pair) for pair in pairs), default=1)
    copies = min(ranker.batch_tokens, len(swept) * slots * max((len(step.sites) for step in steps), default=1))
    for index in by_length(lengths, ranker.batch_tokens // copies, batch_size):
        group = [pairs[i] for i in index]
        with torch.no_grad():
            result = _sweep_group(ranker, group, query_inputs, steps, len(sites), swept, positions)
        baseline[index], perturbed[index] = result.baseline, result.perturbed
        for way in swept:
            for i, values in zip(index, getattr(result, way), strict=True):
                patched[way][i] = values
        if progress is not None:
            progress(len(group))
    if positions == ALL:
        shape = (len(pairs), len(sites))
        dense = {way: np.array([v[:, 0] for v in of], np.float32).reshape(shape) for way, of in patched.items()}
        return SweepResult(baseline, perturbed, dense.get("denoise"), dense.get("noise"))
    return SweepResult(baseline, perturbed, patched.get("denoise"), patched.get("noise"))


@dataclass(frozen=True)
class _Step:
    """Sites of one activation of one layer, swept together as copies on the batch axis."""

    layer: int
    activation: str
    sites: list[int]
    heads: list[int]


def _steps(sites: Sequence[Site], n_layers: int) -> list[_Step]:
    steps: dict[tuple[int, str], _Step] = {}
    for number, site in enumerate(sites):
        key = (site.layer, COMPONENTS[site.component])
        if site.component == "resid_post" and site.layer + 1 < n_layers:
            key = (site.layer + 1, "resid_pre")
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
    positions: Positions,
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
    slots = torch.from_numpy(positions.masks(pairs)).to(both.scores.device)
    if slots.shape[1] > 1:
        slots = slots.repeat(1, len(swept), 1)
    scores = _sweep_steps(ranker, inputs, both.rows(target), both.rows(source), steps, n_sites, slots)
    parts = dict(zip(swept, scores.split(n_pairs), strict=True))

    def of_pairs(way: str) -> list[np.ndarray]:
        values = parts[way].cpu().numpy()
        return [value[:, : positions.count(pair)] for value, pair in zip(values, pairs, strict=True)]

    return SweepResult(
        both.scores[is_baseline].cpu().numpy(),
        both.scores[is_perturbed].cpu().numpy(),
        *(of_pairs(way) if way in parts else None for way in ("denoise", "noise")),
    )


def _sweep_steps(
    ranker: Ranker,
    inputs: Batch,
    base: Recording,
    source: Recording,
    steps: Sequence[_Step],
    n_sites: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Scores ``[B, site, slot]`` of the base runs with each site taken from the source runs at the slot's positions.

    Args:
        slots: which positions of each run a slot has, broadcastable to ``[slot, B, S]``.
    """
    n_runs, length = inputs["input_ids"].shape
    at_once = max(1, ranker.batch_tokens // (n_runs * length))
    scores = base.scores.new_full((n_runs, n_sites, len(slots)), torch.nan)
    present = slots.any(dim=2)
    used = present.any(dim=1).nonzero()[:, 0].tolist()
    for step in steps:
        groups = ranker.anatomy.groups(step.activation)
        patches = [(site, head, slot) for site, head in zip(step.sites, step.heads, strict=True) for slot in used]
        for begin in range(0, len(patches), at_once):
            of_site, of_head, of_slot = (list(column) for column in zip(*patches[begin : begin + at_once], strict=True))
            heads = torch.tensor(of_head, device=scores.device)
            is_head = torch.nn.functional.one_hot(heads, groups).bool()
            at = slots[of_slot]
            mask = at[..., None] & is_head[:, None, None, :]
            edit = Edit(step.layer, step.activation, source[step.layer, step.activation], mask)
            scores[:, of_site, of_slot] = replay(ranker, inputs, base, [edit]).T
    return scores.masked_fill(~present.T[:, None, :], torch.nan)
