"""The exact sweep: every site of every pair, batched over sites, directions and pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pyterrier_mechir.patching.batching import by_length
from pyterrier_mechir.patching.paths import needed_to_patch, patched_scores
from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.products import packed_products
from pyterrier_mechir.patching.recording import Batch, Recording, record
from pyterrier_mechir.patching.replay import Edit, Run, at_positions, replay
from pyterrier_mechir.patching.sites import Site, SiteSet, activation_of

if TYPE_CHECKING:
    from pyterrier_mechir.patching.calibration import Calibration
    from pyterrier_mechir.patching.screening import Screening
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
        screening: how good the estimates are, of sweeps that verify the best of them.
        calibration: how far the results are from float32, of models that multiply fewer bits.
    """

    baseline: np.ndarray
    perturbed: np.ndarray
    denoise: Patched | None
    noise: Patched | None
    screening: Screening | None = None
    calibration: Calibration | None = None

    def at(self, index: Sequence[int]) -> SweepResult:
        """The results of some pairs, in another order, or repeated."""

        def take(values: Patched | None) -> Patched | None:
            return [values[i] for i in index] if isinstance(values, list) else None if values is None else values[index]

        return replace(
            self,
            baseline=self.baseline[index],
            perturbed=self.perturbed[index],
            denoise=take(self.denoise),
            noise=take(self.noise),
        )

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
        """The mean over repeats of the same pairs, given one repeat of all after the other.

        All are added up in the same order, so that what is the same in each repeat is the same in the mean.
        """

        def mean(values: np.ndarray) -> np.ndarray:
            return np.asarray(sum(values.reshape(repeats, len(values) // repeats, *values.shape[1:])) / repeats)

        def mean_of(values: Patched | None) -> Patched | None:
            if isinstance(values, list):
                n = len(values) // repeats
                return [np.asarray(sum(values[i::n]) / repeats) for i in range(n)]
            return None if values is None else mean(values)

        return replace(
            self,
            baseline=mean(self.baseline),
            perturbed=mean(self.perturbed),
            denoise=mean_of(self.denoise),
            noise=mean_of(self.noise),
        )


class Runs(NamedTuple):
    """The runs of ``n`` pairs, and which are patched.

    Args:
        batch: the inputs of all baselines, then of all perturbed sides: ``2n`` runs.
        target: the ``B`` runs that are patched, an index into these.
        source: where each takes its activations from.
        slots: which positions of each target a slot has, broadcastable to ``[slot, B, S]``.
    """

    batch: Batch
    target: slice
    source: slice | torch.Tensor
    slots: torch.Tensor

    def inputs(self, of: slice | torch.Tensor) -> Batch:
        """The inputs of some of the runs."""
        return {name: value[of] for name, value in self.batch.items()}


Scorer = Callable[[Runs], tuple[torch.Tensor, torch.Tensor]]
"""Scores ``[2n]`` of runs, and patched scores ``[B, site, slot]`` of their targets."""


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
    receivers: Sequence[Site] = (),
    *,
    run: Run = replay,
    batch_tokens: int | None = None,
) -> SweepResult:
    """Patch each site of each pair, one at a time, exactly.

    Args:
        ranker: the model.
        pairs: the aligned pairs.
        query_inputs: what the ranker's forward reads of each query, a row per query, indexed by ``pair.query``.
        sites: the sites, or sets of sites that are patched together.
        direction: ``denoise`` (perturbed activations into the baseline run), ``noise`` (the reverse) or ``both``.
        batch_size: pairs in a batch; None forms batches by length, for forward passes of ``batch_tokens`` tokens, all
            patched copies together.
        progress: called with the number of pairs done, as they are done.
        positions: which positions are patched together.
        receivers: only what each site does to these, directly or through MLPs, is patched in (see
            :mod:`~pyterrier_mechir.patching.paths`); each site must be upstream of one. Without any, all it does.
        run: what gives the scores of patched copies of recorded runs, without receivers.
        batch_tokens: tokens in a forward pass; None takes the ranker's.

    Returns:
        The scores, in the order of the pairs; missing where a pair has none of the positions.
    """
    at_once = batch_tokens or ranker.batch_tokens
    steps = _steps(sites, ranker.n_layers, receivers)
    wanted = {key for step in steps for key in (*needed_to_patch(step.activations, receivers), *step.activations)}
    patch = partial(patched_scores, receivers=receivers, run=run)
    slots = max((positions.count(pair) for pair in pairs), default=1)
    ways = 2 if direction == "both" else 1
    copies = min(at_once, ways * slots * max((len(step.sites) for step in steps), default=1))

    def score(runs: Runs) -> tuple[torch.Tensor, torch.Tensor]:
        both = record(ranker, runs.batch, sorted(wanted))
        base, source = both.rows(runs.target), both.rows(runs.source)
        inputs = runs.inputs(runs.target)
        return both.scores, _sweep_steps(ranker, inputs, base, source, steps, len(sites), runs.slots, patch, at_once)

    budget = at_once // copies
    return in_batches(
        ranker, pairs, query_inputs, len(sites), score, direction, batch_size, progress, positions, budget
    )


def in_batches(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    n_sites: int,
    score: Scorer,
    direction: str,
    batch_size: int | None,
    progress: Callable[[int], object] | None,
    positions: Positions,
    budget: int,
) -> SweepResult:
    """Patch pairs batch by batch.

    Args:
        ranker: the model.
        pairs: the aligned pairs.
        query_inputs: as in :func:`sweep`.
        n_sites: how many sites are patched.
        score: gives the scores of a batch; called without gradients.
        direction: as in :func:`sweep`.
        batch_size: pairs in a batch; None forms batches by length.
        progress: as in :func:`sweep`.
        positions: which positions are patched together.
        budget: most tokens of one side of the pairs in a batch, where they are formed by length.
    """
    baseline, perturbed = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.float32)
    swept = ("denoise", "noise") if direction == "both" else (direction,)
    patched: dict[str, list[np.ndarray]] = {way: [np.empty(0)] * len(pairs) for way in swept}
    lengths = np.array([len(pair.baseline.ids) for pair in pairs], dtype=np.int64)
    with torch.no_grad(), packed_products(ranker.anatomy):
        for index in by_length(lengths, budget, batch_size):
            group = [pairs[i] for i in index]
            runs = _runs(ranker, group, query_inputs, swept, positions)
            scores, values = score(runs)
            baseline[index], perturbed[index] = scores.cpu().numpy().reshape(2, -1)
            for way, of_way in zip(swept, values.cpu().split(len(group)), strict=True):
                for i, pair, value in zip(index, group, of_way.numpy(), strict=True):
                    patched[way][i] = value[:, : positions.count(pair)]
            if progress is not None:
                progress(len(group))
    if positions == ALL:
        shape = (len(pairs), n_sites)
        dense = {way: np.array([v[:, 0] for v in of], np.float32).reshape(shape) for way, of in patched.items()}
        return SweepResult(baseline, perturbed, dense.get("denoise"), dense.get("noise"))
    return SweepResult(baseline, perturbed, patched.get("denoise"), patched.get("noise"))


def _runs(
    ranker: Ranker, pairs: Sequence[AlignedPair], query_inputs: Batch, swept: Sequence[str], positions: Positions
) -> Runs:
    n_pairs = len(pairs)
    sequences = [pair.baseline for pair in pairs] + [pair.perturbed for pair in pairs]
    batch = ranker.collate(sequences, query_inputs, [pair.query for pair in pairs] * 2)
    is_baseline, is_perturbed = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    sides: dict[tuple[str, ...], tuple[slice, slice | torch.Tensor]] = {
        ("denoise",): (is_baseline, is_perturbed),
        ("noise",): (is_perturbed, is_baseline),
        ("denoise", "noise"): (slice(None), torch.arange(2 * n_pairs, device=ranker.device).roll(n_pairs)),
    }
    target, source = sides[tuple(swept)]
    slots = torch.from_numpy(positions.masks(pairs) & _open(pairs)).to(ranker.device)
    return Runs(batch, target, source, slots.repeat(1, len(swept), 1) if slots.shape[1] > 1 else slots)


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


def _steps(sites: Sequence[Site | SiteSet], n_layers: int, receivers: Sequence[Site]) -> list[_Step]:
    steps: dict[tuple[tuple[int, str], ...], _Step] = {}
    for number, site in enumerate(sites):
        taken: dict[tuple[int, str], list[int]] = {}
        for part in site.parts:
            taken.setdefault(activation_of(part, n_layers), []).append(part.head or 0)
        step = steps.setdefault(tuple(needed_to_patch(list(taken), receivers)), _Step([], []))
        step.sites.append(number)
        step.heads.append(taken)
    return list(steps.values())


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
    patch: Callable[..., torch.Tensor],
    batch_tokens: int,
) -> torch.Tensor:
    """Scores ``[B, site, slot]`` of the base runs with each site taken from the source runs at the slot's positions.

    Where what is taken is what is there, the score is the base run's own, to the last bit.

    Args:
        slots: which positions of each run a slot has, broadcastable to ``[slot, B, S]``.
    """
    n_runs, length = inputs["input_ids"].shape
    at_once = max(1, batch_tokens // (n_runs * length))
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
            for layer, activation in step.activations:
                is_head = np.zeros((len(senders), ranker.anatomy.groups(activation)), dtype=bool)
                for site, sender in senders.items():
                    is_head[sender, heads[site].get((layer, activation), [])] = True
                if is_head.any():
                    mask = torch.from_numpy(is_head).to(scores.device)[:, None, None, :]
                    edits.append(Edit(layer, activation, source[layer, activation], mask))
            which = [senders[site] for site in of_site]
            scores[:, of_site, of_slot] = patch(ranker, inputs, base, edits, which, slots[of_slot]).T
    scores = torch.where(_changes(ranker, base, source, steps, n_sites, slots), scores, base.scores[:, None, None])
    return scores.masked_fill(~present.T[:, None, :], torch.nan)


def _changes(
    ranker: Ranker, base: Recording, source: Recording, steps: Sequence[_Step], n_sites: int, slots: torch.Tensor
) -> torch.Tensor:
    """Which of the cells ``[B, site, slot]`` take from the source runs something else than the base runs have."""
    found = base.scores.new_zeros((len(base.scores), n_sites, len(slots)))
    for step in steps:
        for key in step.activations:
            groups = ranker.anatomy.groups(key[1])
            differ = (source[key] != base[key]).unflatten(-1, (groups, -1)).any(dim=-1)
            at = at_positions(slots, differ.shape[1]).expand(len(slots), *differ.shape[:2])
            of_groups = torch.einsum("pbs,bsg->bgp", at.to(found.dtype), differ.to(found.dtype))
            taken = zip(step.sites, step.heads, strict=True)
            sites, heads = zip(*((site, head) for site, of in taken for head in of.get(key, [])), strict=True)
            found.index_add_(1, torch.tensor(sites, device=found.device), of_groups[:, list(heads)])
    return found > 0
