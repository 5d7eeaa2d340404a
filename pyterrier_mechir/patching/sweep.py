"""The exact sweep: every site of every pair, or chosen cells, batched over sites, directions and pairs.

Shapes: ``B`` runs, ``S`` positions. A cell is a run, a site and a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.components import WHOLE_STREAMS
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.products import packed_products
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.replay import Run, replay
from pyterrier_mechir.models.resuming import Edit, at_positions
from pyterrier_mechir.patching.outcome import SweepResult, patched_of_pairs
from pyterrier_mechir.patching.paths import patched_scores
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.steps import Step, steps_of
from pyterrier_mechir.rankers.batches import batches_of_pairs
from pyterrier_mechir.text.positions import ALL

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


class Runs(NamedTuple):
    """The runs of ``n`` pairs, and which are patched.

    Args:
        batch: the inputs of all baselines, then of all perturbed sides: ``2n`` runs.
        target: which ``B`` of these runs are patched: all baselines, all perturbed sides, or both.
        source: for each of them, the run that its activations are taken from: the other side of its pair.
        slots: which positions of each target a slot has, broadcastable to ``[slot, B, S]``.
        places: the place of each target among the runs of
            :func:`~pyterrier_mechir.patching.outcome.patched_of_pairs`, ``[B]``.
    """

    batch: Batch
    target: slice
    source: slice | torch.Tensor
    slots: torch.Tensor
    places: np.ndarray

    def inputs(self, of: slice | torch.Tensor) -> Batch:
        """The inputs of some of the runs."""
        return {name: value[of] for name, value in self.batch.items()}


ScoreRuns = Callable[[Runs], tuple[torch.Tensor, torch.Tensor]]
"""Scores ``[2n]`` of runs, and patched scores ``[B, site, slot]`` of their targets."""

Cells = Sequence[np.ndarray]
"""Some cells: for each run of :func:`~pyterrier_mechir.patching.outcome.patched_of_pairs`, bool ``[site, slot]``."""


def sweep(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
    run: Run = replay,
    batch_tokens: int | None = None,
    cells: Cells | None = None,
) -> SweepResult:
    """Patch each site of each pair, one at a time, exactly.

    Args:
        ranker: the model, which makes batches of sequences.
        pairs: the aligned pairs.
        query_inputs: what the forward reads of each query, a row per query, indexed by ``pair.query``.
        plan: what is patched.
        opened: how the model runs, and so what is measured; None takes the ranker's own, which gives its scores.
        progress: called with the number of pairs done, as they are done.
        run: what gives the scores of patched copies of recorded runs, without receivers; given another than the
            default, no score is taken as known.
        batch_tokens: tokens in a forward pass, all patched copies together, where batches are formed by length; None
            takes the ranker's.
        cells: which cells to patch, whose copies share batches whatever pairs, sites and slots they are of; None
            patches all.

    Returns:
        The scores, in the order of the pairs; missing where a pair has none of the positions, and in other cells than
        those to patch.
    """
    model, at_once = opened or ranker.opened, batch_tokens or ranker.batch_tokens
    steps = steps_of(plan.sites, ranker.n_layers, plan.receivers)
    wanted = {key for step in steps for key in (*step.needs, *step.activations)}
    patch = partial(patched_scores, model, receivers=plan.receivers, run=run)
    copies = min(at_once, _copies_of_pair(pairs, plan, steps, cells))

    def score(runs: Runs) -> tuple[torch.Tensor, torch.Tensor]:
        recorded = record(model, runs.batch, sorted(wanted))
        known = () if plan.receivers or run is not replay else _known(model, steps, runs)
        chosen = None if cells is None else [cells[place] for place in runs.places]
        return recorded.scores, _sweep_steps(model.anatomy, runs, recorded, steps, patch, at_once, known, chosen)

    return in_batches(ranker, model, pairs, query_inputs, plan, score, at_once // copies, progress)


def cells_that_differ(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    opened: Opened | None = None,
) -> list[np.ndarray]:
    """The cells whose patch takes something else from the source than is there; that of any other moves no score.

    Args are those of :func:`sweep`.

    Returns:
        The cells, in the order of :data:`Cells`; those of both directions are the same.
    """
    if not plan.sites:
        return [np.zeros((0, plan.positions.count(pair)), dtype=bool) for _ in plan.ways for pair in pairs]
    model, steps = opened or ranker.opened, steps_of(plan.sites, ranker.n_layers)
    keys = sorted({key for step in steps for key in step.activations})
    n_sites = len(plan.sites)

    def differ(runs: Runs) -> tuple[torch.Tensor, torch.Tensor]:
        recorded = record(model, runs.batch, keys)
        base, source = recorded.rows(runs.target), recorded.rows(runs.source)
        shape = (len(base.scores), n_sites, len(runs.slots))
        return recorded.scores, _changes(model.anatomy, base, source, steps, shape, runs.slots).float()

    one_way = replace(plan, direction="denoise")
    found = in_batches(ranker, model, pairs, query_inputs, one_way, differ, ranker.batch_tokens // 2)
    cells = [of_pair.reshape(n_sites, -1) > 0 for _, of_pair in patched_of_pairs(found)]
    return cells * len(plan.ways)


def _copies_of_pair(pairs: Sequence[AlignedPair], plan: Plan, steps: Sequence[Step], cells: Cells | None) -> int:
    """How many copies of a pair a step patches: at most, or of chosen cells on average."""
    if cells is None or not pairs:
        slots = max((plan.positions.count(pair) for pair in pairs), default=1)
        return len(plan.ways) * slots * max((len(step.sites) for step in steps), default=1)
    in_step = (sum(int(of_run[step.sites].sum()) for of_run in cells) for step in steps)
    return max(1, -(-max(in_step, default=1) // len(pairs)))


@as_alone()
def in_batches(
    ranker: Ranker,
    opened: Opened,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    score: ScoreRuns,
    budget: int,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Patch pairs batch by batch.

    Args:
        ranker: makes batches of sequences.
        opened: the model that ``score`` runs.
        pairs: the aligned pairs.
        query_inputs: as in :func:`sweep`.
        plan: what is patched.
        score: gives the scores of a batch; called without gradients.
        budget: most tokens of one side of the pairs in a batch, where they are formed by length.
        progress: as in :func:`sweep`.
    """
    baseline, perturbed = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.float32)
    patched: dict[str, list[np.ndarray]] = {way: [np.empty(0)] * len(pairs) for way in plan.ways}
    with torch.no_grad(), packed_products(opened.anatomy):
        for index, group, batch in batches_of_pairs(ranker, pairs, query_inputs, budget, plan.batch_size):
            places = np.concatenate([way * len(pairs) + index for way in range(len(plan.ways))])
            scores, values = score(_runs(group, batch, plan, places))
            baseline[index], perturbed[index] = scores.cpu().numpy().reshape(2, -1)
            for way, of_way in zip(plan.ways, values.cpu().split(len(group)), strict=True):
                for i, pair, value in zip(index, group, of_way.numpy(), strict=True):
                    patched[way][i] = value[:, : plan.positions.count(pair)]
            if progress is not None:
                progress(len(group))
    if plan.positions == ALL:
        shape = (len(pairs), len(plan.sites))
        dense = {way: np.array([v[:, 0] for v in of], np.float32).reshape(shape) for way, of in patched.items()}
        return SweepResult(baseline, perturbed, dense.get("denoise"), dense.get("noise"))
    return SweepResult(baseline, perturbed, patched.get("denoise"), patched.get("noise"))


def _runs(pairs: Sequence[AlignedPair], batch: Batch, plan: Plan, places: np.ndarray) -> Runs:
    n_pairs, device = len(pairs), batch["input_ids"].device
    is_baseline, is_perturbed = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    sides: dict[tuple[str, ...], tuple[slice, slice | torch.Tensor]] = {
        ("denoise",): (is_baseline, is_perturbed),
        ("noise",): (is_perturbed, is_baseline),
        ("denoise", "noise"): (slice(None), torch.arange(2 * n_pairs, device=device).roll(n_pairs)),
    }
    target, source = sides[plan.ways]
    slots = torch.from_numpy(plan.positions.masks(pairs) & _open(pairs)).to(device)
    slots = slots.repeat(1, len(plan.ways), 1) if slots.shape[1] > 1 else slots
    return Runs(batch, target, source, slots, places)


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
    anatomy: Anatomy,
    runs: Runs,
    recorded: Recording,
    steps: Sequence[Step],
    patch: Callable[..., torch.Tensor],
    batch_tokens: int,
    known: Sequence[int],
    chosen: Sequence[np.ndarray] | None,
) -> torch.Tensor:
    """Scores ``[B, site, slot]`` of the targets with each site taken from their sources at the slot's positions.

    Where what is taken is what is there, in all runs, nothing is computed: the score is the target's own, to the last
    bit.

    Args:
        anatomy: of the model.
        runs: what is patched.
        recorded: the recording of all runs, with what each step takes and resumes from.
        steps: all sites, grouped by where their runs resume.
        patch: gives the scores of patched copies of recorded runs, as
            :func:`~pyterrier_mechir.patching.paths.patched_scores` does.
        batch_tokens: tokens in a forward pass.
        known: the sites whose patch makes the target's score that of the source.
        chosen: the cells to patch, ``[site, slot]`` of each target; None for all.
    """
    inputs, base, source = runs.inputs(runs.target), recorded.rows(runs.target), recorded.rows(runs.source)
    n_runs, length = inputs["input_ids"].shape
    n_sites, slots = sum(len(step.sites) for step in steps), runs.slots
    scores = base.scores.new_full((n_runs, n_sites, len(slots)), torch.nan)
    present = slots.any(dim=2).T[:, None]
    changes = _changes(anatomy, base, source, steps, scores.shape, slots)
    wanted = present if chosen is None else present & padded(chosen, scores)
    worth = changes & wanted
    scores[:, list(known)] = source.scores[:, None, None]
    for step in steps:
        swept = [site for site in step.sites if site not in known]
        if chosen is None:
            is_worth = worth.any(0).tolist()
            patches = [(site, slot) for site in swept for slot in range(len(slots)) if is_worth[site][slot]]
            for of_site, of_slot in _chunks(patches, batch_tokens // (n_runs * length)):
                senders = {site: number for number, site in enumerate(dict.fromkeys(of_site))}
                edits = _edits(anatomy, step, list(senders), source)
                which = [senders[site] for site in of_site]
                scores[:, of_site, of_slot] = patch(inputs, base, edits, which, slots[of_slot]).T
        else:
            cells = [(run, swept[number], slot) for run, number, slot in worth[:, swept].nonzero().tolist()]
            for of_run, of_site, of_slot in _chunks(cells, batch_tokens // length):
                rows = torch.tensor(of_run, device=scores.device)
                edits = _edits(anatomy, step, of_site, source.rows(rows, step.activations), each_run=True)
                at = slots.expand(len(slots), n_runs, -1)[of_slot, rows]
                of_rows = {name: value[rows] for name, value in inputs.items()}
                scores[rows, of_site, of_slot] = patch(of_rows, base.rows(rows, step.needs), edits, [0], at[None])[0]
    scores = torch.where(changes, scores, base.scores[:, None, None])
    return scores.masked_fill(~wanted, torch.nan)


def padded(cells: Sequence[np.ndarray], like: torch.Tensor) -> torch.Tensor:
    """The cells of each run, ``[site, slot]``, in one tensor of the shape of another."""
    found = torch.zeros(like.shape, dtype=torch.bool)
    for row, of_run in enumerate(cells):
        found[row, :, : of_run.shape[1]] = torch.from_numpy(of_run)
    return found.to(like.device)


def _chunks(items: Sequence[tuple[int, ...]], size: int) -> Iterator[tuple[list[int], ...]]:
    """Items in groups of a size, at least 1, each as a column for each member."""
    size = max(1, size)
    for begin in range(0, len(items), size):
        yield tuple(map(list, zip(*items[begin : begin + size], strict=True)))


def _edits(anatomy: Anatomy, step: Step, sites: Sequence[int], source: Recording, each_run: bool = False) -> list[Edit]:
    """Edits that take some sites of a step: each in a copy of all runs, or each in a run of its own."""
    edits = []
    for layer, activation in step.activations:
        is_head = step.takes(sites, (layer, activation), anatomy.groups(activation))
        if is_head.any():
            mask = torch.from_numpy(is_head).to(source.scores.device)[:, None, None, :]
            mask = mask.transpose(0, 1) if each_run else mask
            edits.append(Edit(layer, activation, source[layer, activation], mask))
    return edits


def _known(opened: Opened, steps: Sequence[Step], runs: Runs) -> list[int]:
    """The sites whose patch at all positions makes the score that of the source: streams, if nothing else is read.

    Where a position is masked on one side, not all are patched.
    """
    if not opened.reads_stream or runs.slots.numel() > 1 or not runs.slots.all():
        return []
    taken = ((site, list(of)) for step in steps for site, of in zip(step.sites, step.heads, strict=True))
    return [site for site, keys in taken if is_known(keys)]


def is_known(keys: Sequence[Key]) -> bool:
    """Whether what replaces some activations at all positions leaves nothing of the target after them."""
    return len(keys) == 1 and keys[0][1] in WHOLE_STREAMS


def _changes(
    anatomy: Anatomy,
    base: Recording,
    source: Recording,
    steps: Sequence[Step],
    shape: Sequence[int],
    slots: torch.Tensor,
) -> torch.Tensor:
    """Which of the cells ``[B, site, slot]``, of that shape, take from the sources something else than is there."""
    found = base.scores.new_zeros(shape)
    for step in steps:
        for key in step.activations:
            differ = (source[key] != base[key]).unflatten(-1, (anatomy.groups(key[1]), -1)).any(dim=-1)
            at = at_positions(slots, differ.shape[1]).expand(len(slots), *differ.shape[:2])
            of_groups = torch.einsum("pbs,bsg->bgp", at.to(found.dtype), differ.to(found.dtype))
            taken = zip(step.sites, step.heads, strict=True)
            sites, heads = zip(*((site, head) for site, of in taken for head in of.get(key, [])), strict=True)
            found.index_add_(1, torch.tensor(sites, device=found.device), of_groups[:, list(heads)])
    return found > 0
