"""The exact sweep: every site of every pair, batched over sites, directions and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyterrier_mechir.patching.batching import by_length
from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.replay import Batch, Edit, Recording, needed_to_replay, record, replay
from pyterrier_mechir.patching.sites import COMPONENTS, Site, SiteSet

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair


Patched = np.ndarray | list[np.ndarray]
"""Patched scores: ``[N, site]``, or, where positions are patched apart, ``[site, slot]`` for each pair."""

ROUNDING = 1e-5
"""Scores that differ by less than this, or by less than this share of them, are the same but for rounding."""


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

    def at(self, index: Sequence[int]) -> SweepResult:
        """The results of some pairs, in another order, or repeated."""

        def take(values: Patched | None) -> Patched | None:
            return [values[i] for i in index] if isinstance(values, list) else None if values is None else values[index]

        return SweepResult(self.baseline[index], self.perturbed[index], take(self.denoise), take(self.noise))

    @property
    def touched_nothing(self) -> bool:
        """Whether no patch moved any score beyond rounding, though the scores of some pair's sides differ."""
        differs = _differs(self.perturbed, self.baseline)
        ways = [(self.denoise, self.baseline), (self.noise, self.perturbed)]
        moved = (
            _differs(values, target).any()
            for patched, targets in ways
            if patched is not None
            for values, target in zip(patched, targets, strict=True)
        )
        return bool(differs.any()) and not any(moved)

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


def _differs(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Which scores differ from the target's; missing ones do not."""
    return np.asarray(np.abs(scores - target) > ROUNDING * np.maximum(1, np.abs(target)))


def sweep(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    sites: Sequence[Site | SiteSet],
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
        sites: the sites, or sets of sites that are patched together.
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
    """Sites, or sets of sites, from which runs resume at the same point, swept together as copies on the batch axis.

    Args:
        sites: their numbers.
        heads: for each of them, the heads or neurons that it takes of each (layer, activation) that it replaces; 0 for
            the whole.
    """

    sites: list[int]
    heads: list[dict[tuple[int, str], list[int]]]

    @cached_property
    def activations(self) -> list[tuple[int, str]]:
        """The (layer, activation) that any of them replaces."""
        return sorted({key for taken in self.heads for key in taken})


def _steps(sites: Sequence[Site | SiteSet], n_layers: int) -> list[_Step]:
    steps: dict[tuple[tuple[int, str], ...], _Step] = {}
    for number, site in enumerate(sites):
        taken: dict[tuple[int, str], list[int]] = {}
        for part in site.parts:
            key = (part.layer, COMPONENTS[part.component])
            if part.component == "resid_post" and part.layer + 1 < n_layers:
                key = (part.layer + 1, "resid_pre")
            taken.setdefault(key, []).append(part.head or 0)
        step = steps.setdefault(tuple(needed_to_replay(list(taken))), _Step([], []))
        step.sites.append(number)
        step.heads.append(taken)
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
    wanted = {key for step in steps for key in (*needed_to_replay(step.activations), *step.activations)}
    both = record(ranker, batch, sorted(wanted))
    is_baseline, is_perturbed = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    target, source = {
        ("denoise",): (is_baseline, is_perturbed),
        ("noise",): (is_perturbed, is_baseline),
        ("denoise", "noise"): (slice(None), torch.arange(2 * n_pairs, device=both.scores.device).roll(n_pairs)),
    }[tuple(swept)]
    inputs = {name: value[target] for name, value in batch.items()}
    slots = torch.from_numpy(positions.masks(pairs) & _open(pairs)).to(both.scores.device)
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


def _open(pairs: Sequence[AlignedPair]) -> np.ndarray:
    """The positions of each pair that may be patched, broadcastable to ``[B, S]``: those open on both sides.

    Nothing attends to a masked position, so its activations, those of a placeholder, are none of the text's.
    """
    are_open = [pair.is_open for pair in pairs]
    if all(positions.all() for positions in are_open):
        return np.ones((1, 1), dtype=bool)
    width = max(map(len, are_open))
    return np.stack([np.pad(positions, (0, width - len(positions))) for positions in are_open])


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
        patches = [(site, heads, slot) for site, heads in zip(step.sites, step.heads, strict=True) for slot in used]
        for begin in range(0, len(patches), at_once):
            of_site, of_heads, of_slot = (
                list(column) for column in zip(*patches[begin : begin + at_once], strict=True)
            )
            at = slots[of_slot][..., None]
            edits = []
            for layer, activation in step.activations:
                is_head = np.zeros((len(of_heads), ranker.anatomy.groups(activation)), dtype=bool)
                for copy, heads in enumerate(of_heads):
                    is_head[copy, heads.get((layer, activation), [])] = True
                if is_head.any():
                    mask = at & torch.from_numpy(is_head).to(scores.device)[:, None, None, :]
                    edits.append(Edit(layer, activation, source[layer, activation], mask))
            scores[:, of_site, of_slot] = replay(ranker, inputs, base, edits).T
    return scores.masked_fill(~present.T[:, None, :], torch.nan)
