"""The exact sweep: every site of every pair, batched over sites, directions and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.patching.batching import by_length
from pyterrier_mechir.patching.paths import needed_to_patch, patched_scores
from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.replay import Batch, Edit, Recording, record
from pyterrier_mechir.patching.sites import COMPONENTS, Site, SiteSet

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
    sites: Sequence[Site | SiteSet],
    direction: str = "denoise",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
    positions: Positions = ALL,
    receivers: Sequence[Site] = (),
) -> SweepResult:
    """Patch each site of each pair, one at a time, exactly.

    Args:
        ranker: the model.
        pairs: the aligned pairs.
        query_inputs: what the ranker's forward reads of each query, a row per query, indexed by ``pair.query``.
        sites: the sites, or sets of sites that are patched together.
        direction: ``denoise`` (perturbed activations into the baseline run), ``noise`` (the reverse) or ``both``.
        batch_size: pairs in a batch; None forms batches by length, for forward passes of ``ranker.batch_tokens``
            tokens, all patched copies together.
        progress: called with the number of pairs done, as they are done.
        positions: which positions are patched together.
        receivers: only what each site does to these, directly or through MLPs, is patched in (see
            :mod:`~pyterrier_mechir.patching.paths`); each site must be upstream of one. Without any, all it does.

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
            result = _sweep_group(ranker, group, query_inputs, steps, len(sites), swept, positions, receivers)
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
    """Sites, or sets of sites, of the same activations of the same layers, swept together as copies on the batch axis.

    Args:
        activations: the (layer, activation) that each of them replaces.
        sites: their numbers.
        heads: for each of them and each activation, the heads or neurons that it takes; 0 for the whole.
    """

    activations: tuple[tuple[int, str], ...]
    sites: list[int]
    heads: list[list[list[int]]]


def _steps(sites: Sequence[Site | SiteSet], n_layers: int) -> list[_Step]:
    steps: dict[tuple[tuple[int, str], ...], _Step] = {}
    for number, site in enumerate(sites):
        taken: dict[tuple[int, str], list[int]] = {}
        for part in site.parts:
            key = (part.layer, COMPONENTS[part.component])
            if part.component == "resid_post" and part.layer + 1 < n_layers:
                key = (part.layer + 1, "resid_pre")
            taken.setdefault(key, []).append(part.head or 0)
        activations = tuple(sorted(taken))
        step = steps.setdefault(activations, _Step(activations, sites=[], heads=[]))
        step.sites.append(number)
        step.heads.append([taken[key] for key in activations])
    return list(steps.values())


def _sweep_group(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    steps: Sequence[_Step],
    n_sites: int,
    swept: Sequence[str],
    positions: Positions,
    receivers: Sequence[Site],
) -> SweepResult:
    n_pairs = len(pairs)
    sequences = [pair.baseline for pair in pairs] + [pair.perturbed for pair in pairs]
    batch = ranker.collate(sequences, query_inputs, [pair.query for pair in pairs] * 2)
    wanted = {key for step in steps for key in (*needed_to_patch(step.activations, receivers), *step.activations)}
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
    scores = _sweep_steps(ranker, inputs, both.rows(target), both.rows(source), steps, n_sites, slots, receivers)
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
    receivers: Sequence[Site],
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
        heads = dict(zip(step.sites, step.heads, strict=True))
        patches = [(site, slot) for site in step.sites for slot in used]
        for begin in range(0, len(patches), at_once):
            of_site, of_slot = (list(column) for column in zip(*patches[begin : begin + at_once], strict=True))
            senders = {site: number for number, site in enumerate(dict.fromkeys(of_site))}
            edits = []
            for number, (layer, activation) in enumerate(step.activations):
                is_head = torch.zeros((len(senders), ranker.anatomy.groups(activation)), dtype=torch.bool)
                for site, sender in senders.items():
                    is_head[sender, heads[site][number]] = True
                mask = is_head.to(scores.device)[:, None, None, :]
                edits.append(Edit(layer, activation, source[layer, activation], mask))
            which = [senders[site] for site in of_site]
            patched = patched_scores(ranker, inputs, base, edits, which, slots[of_slot], receivers)
            scores[:, of_site, of_slot] = patched.T
    return scores.masked_fill(~present.T[:, None, :], torch.nan)
