"""Rankers that encode queries and documents apart: pairs that vary on either side, and the reference for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
from reference import COMPONENTS, PATHS, Inputs, Reference, inputs_of
from small_models import TEXTS
from test_exactness import PAIRS, assert_same
from test_pattern import EagerReference
from torch import nn

from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.sites import Site, parse_site, select_sites
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Method, Plan, method_of
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import TOKEN_CLASSES, AlignedPair
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

QUERY_PAIRS = [
    (TEXTS[1], "bats night", "bats night heat", "fill"),
    (TEXTS[5], "iron bridge", "iron heat bridge", "mask"),
    (TEXTS[0], "two high tides", "two high heat", "swap"),
    (TEXTS[0], "tides two high heat", "tides heat two high", "permute"),
]
"""Documents, queries, perturbed queries and alignments."""

SLOTTED = ["L1H2", "L2H1.q", "L0H3.k", "L2H0.v", "L1.attn_out", "L2.mlp_out", "L1N7", "L2.resid_mid", "L2.resid_post"]


class Case(NamedTuple):
    """A ranker that faces the side on which pairs vary, pairs, its query inputs, and a reference for each pair."""

    ranker: Ranker
    pairs: list[AlignedPair]
    inputs: Batch
    contexts: list[str]
    references: list[EagerReference]

    def runs(self, row: int, noise: bool) -> tuple[Inputs, Inputs]:
        """The inputs of the run that is patched, and of that which patches come from."""
        sides = self.references[row].baseline, self.references[row].perturbed
        return sides[::-1] if noise else sides


def eager(model: nn.Module) -> nn.Module:
    """A copy of a model that attends eagerly."""
    made = deepcopy(model)
    made.set_attn_implementation("eager")
    return made


def case_of(ranker: Ranker, side: str, reference: Callable[[nn.Module, str], Reference]) -> Case:
    """The pairs that vary on a side.

    Args:
        ranker: the ranker.
        side: ``document`` or ``query``.
        reference: makes the reference of a pair, given the model that is patched and the text that does not vary.
    """
    facing = ranker.facing(side)
    contexts, baselines, perturbed, alignments = zip(*(PAIRS if side == "document" else QUERY_PAIRS), strict=True)
    pairs = facing.align(contexts, baselines, perturbed, alignments=alignments)
    slow, architecture = eager(facing.model), facing.model.config.model_type
    paths = PATHS[architecture]
    inside = {"distilbert": "attention", "modernbert": "attn", "mpnet": "attention.attn"}
    has_head = type(slow).__name__.endswith("ForMaskedLM")
    of_layer = f"{paths.prefix if has_head else ''}{paths.layer}.{inside.get(architecture, 'attention.self')}"
    attentions = [slow.get_submodule(of_layer.format(layer)) for layer in range(facing.n_layers)]
    references = []
    for context, pair in zip(contexts, pairs, strict=True):
        sides = (inputs_of(one, facing.tokenizer) for one in (pair.baseline, pair.perturbed))
        references.append(EagerReference(reference(slow, context), attentions, *sides, {}))
    distinct = unique(contexts)[0]
    return Case(facing, pairs, facing.query_inputs(distinct), distinct, references)


def all_sites(ranker: Ranker) -> list[Site]:
    """Every site of every component, but only some neurons."""
    chosen = list(select_sites(COMPONENTS, ranker.anatomy).sites)
    chosen += [Site("neuron", layer, neuron) for layer in range(ranker.n_layers) for neuron in (0, 7)]
    if "pattern" not in ranker.anatomy.lacks:
        chosen += [Site("pattern", layer, head) for layer in range(ranker.n_layers) for head in range(2)]
    return chosen


def patch(
    case: Case,
    sites: Sequence[Site] | None = None,
    direction: str = "both",
    batch_size: int | None = None,
    positions: str | list[int] = "all",
    method: Method = "exact",
    receivers: str | Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
) -> SweepResult:
    """Patch the pairs of a case, or some of them."""
    ends = parse_receivers(receivers, case.ranker.anatomy)
    run = sweeper(method_of(method, case.ranker.anatomy))
    pairs = case.pairs if rows is None else [case.pairs[row] for row in rows]
    chosen = all_sites(case.ranker) if sites is None else sites
    plan = Plan(chosen, direction, batch_size, Positions.of(positions), ends)
    return run(case.ranker, pairs, case.inputs, plan)


def slots_of(case: Case, row: int, positions: str | list[int]) -> list[list[int] | None]:
    """The positions of each slot of a pair that may be patched; None for all."""
    n, of_pair = len(case.pairs[row].classes), case.pairs[row].classes
    if positions == "all":
        return [None]
    if positions == "each":
        slots = [[i] for i in range(n)]
    elif positions == "class":
        slots = [[i for i in range(n) if of_pair[i] == number] for number in range(len(TOKEN_CLASSES))]
    else:
        slots = [[i + n * (i < 0)] if -n <= i < n else [] for i in positions]
    are_open = case.references[row].reference.is_open(*case.runs(row, False))
    return [[i for i in slot if are_open[i]] for slot in slots]


def expected(case: Case, row: int, noise: bool, sites=None, positions: str | list[int] = "all") -> np.ndarray:
    """Scores ``[site, slot]`` of a pair with one hook at a time; missing where a slot has no position."""
    one, slots = case.references[row], slots_of(case, row, positions)
    chosen = all_sites(case.ranker) if sites is None else sites
    is_pattern = np.array([site.component == "pattern" for site in chosen])
    found = np.empty((len(chosen), len(slots)))
    others = [site for site in chosen if site.component != "pattern"]
    found[~is_pattern] = one.reference.patched_each(*case.runs(row, noise), others, slots)
    for at in np.flatnonzero(is_pattern):
        found[at] = [np.nan if slot == [] else one.patched([chosen[at]], noise, slot) for slot in slots]
    return found


def is_patched(case: Case, row: int, site: Site) -> bool:
    """Whether a site may be patched in a pair: not the weights of one that masks positions on one side."""
    return site.component != "pattern" or case.pairs[row].is_open.all()


def assert_exact(case: Case, batch_size: int | None) -> None:
    """Every site of every pair in both directions is that of one hook at a time on the plain model."""
    sites = all_sites(case.ranker)
    found = patch(case, sites, batch_size=batch_size)
    for row, one in enumerate(case.references):
        assert_same(found.baseline[[row]], np.array([one.reference.score(one.baseline)]))
        assert_same(found.perturbed[[row]], np.array([one.reference.score(one.perturbed)]))
        some = [number for number, site in enumerate(sites) if is_patched(case, row, site)]
        for noise, scores in ((False, found.denoise), (True, found.noise)):
            wanted = expected(case, row, noise, [sites[number] for number in some])[:, 0]
            assert_same(scores[row][some], wanted)


def assert_slots(case: Case, positions: str | list[int], rows: Sequence[int] = (0, 1, 2)) -> None:
    """So is every slot of some sites."""
    sites = [parse_site(name) for name in SLOTTED]
    found = patch(case, sites, positions=positions, rows=rows)
    for place, row in enumerate(rows):
        for noise, scores in ((False, found.denoise), (True, found.noise)):
            wanted = expected(case, row, noise, sites, positions)
            assert (np.isnan(scores[place]) == np.isnan(wanted)).all()
            assert_same(np.nan_to_num(scores[place]), np.nan_to_num(wanted))


def assert_moves(case: Case) -> None:
    """Patches move scores so that a wrong one would be seen."""
    sites = list(select_sites(["head", "v", "attn_out", "mlp_out"], case.ranker.anatomy).sites)
    found = patch(case, sites)
    for other in (found.baseline[:, None], found.noise, np.roll(found.denoise, 1, axis=1)):
        difference = np.abs(found.denoise - other) / np.maximum(1, np.abs(found.baseline[:, None]))
        assert np.mean(difference > 1e-4) > 0.8
