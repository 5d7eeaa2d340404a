"""Estimates from gradients the slow way: one pair, unpadded, plain hooks and autograd on the unmodified model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from reference import COMPONENTS, Inputs, Reference
from small_models import build
from test_exactness import PAIRS, POOLED, PairReference
from torch import Tensor

from pyterrier_mechir import BiEncoder, CrossEncoder
from pyterrier_mechir.models.sites import Site, SiteSet, select_sites
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Method, Plan, method_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import AlignedPair
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique


class Case(NamedTuple):
    ranker: Ranker
    pairs: list[AlignedPair]
    references: list[PairReference]


@cache
def make(architecture: str, kind: str) -> Case:
    """A ranker with random weights, and the pairs of the exactness tests."""
    return case_of(*build(architecture, kind == "cross"), kind)


def case_of(model, tokenizer, kind: str) -> Case:
    if kind == "cross":
        ranker: Ranker = CrossEncoder((model, tokenizer))
    else:
        pooling, similarity = POOLED[kind]
        ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    references = []
    for query in queries:
        if kind == "cross":
            reference = Reference.cross_encoder(model)
        else:
            encoded = dict(tokenizer(query, return_tensors="pt"))
            reference = Reference.bi_encoder(model, encoded, ranker.pooling, ranker.similarity)
        references.append(PairReference(reference, tokenizer, {}))
    return Case(ranker, pairs, references)


def all_sites(ranker: Ranker) -> tuple[Site | SiteSet, ...]:
    """Every site of every component, and of some neurons."""
    neurons = [Site("neuron", layer, neuron) for layer in range(ranker.n_layers) for neuron in (0, 7)]
    return (*select_sites(COMPONENTS, ranker.anatomy).sites, *neurons)


def run(
    case: Case,
    method: Method,
    sites: Sequence[Site | SiteSet] | None = None,
    direction: str = "both",
    batch_size: int | None = len(PAIRS),
    positions: str | Sequence[int] = "all",
    rows: Sequence[int] = range(len(PAIRS)),
    screen: int | None = None,
) -> SweepResult:
    """Patched scores of some of the pairs by a method, in one padded batch unless told otherwise."""
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    function = sweeper(method_of(method, case.ranker.anatomy), screen)
    pairs = [case.pairs[row] for row in rows]
    chosen = all_sites(case.ranker) if sites is None else sites
    return function(case.ranker, pairs, inputs, Plan(chosen, direction, batch_size, Positions.of(positions)))


def open_slots(pair: AlignedPair, slots: list[list[int] | None] | None) -> list[list[int]]:
    """The slots, where None stands for all positions that are attended to on both sides."""
    everywhere = np.flatnonzero(pair.is_open).tolist()
    return [everywhere if slot is None else slot for slot in slots or [None]]


Estimate = Callable[[Reference, Inputs, Inputs, Site, list[int] | None], float]
"""How far the score of a target moves, by an estimate, if a site at some positions (or all) is that of a source."""


def expected(
    case: Case, estimate: Estimate, row: int, noise: bool, sites=None, slots: list[list[int] | None] | None = None
) -> np.ndarray:
    """Patched scores ``[site, slot]`` of a pair by an estimate."""
    reference = case.references[row].reference
    target, source = case.references[row].runs(case.pairs[row])[:: -1 if noise else 1]
    score = reference.score(target)
    return np.array(
        [
            [
                np.nan
                if slot == []
                else score + sum(estimate(reference, target, source, p, slot) for p in site.members)
                for slot in open_slots(case.pairs[row], slots)
            ]
            for site in (all_sites(case.ranker) if sites is None else sites)
        ]
    )


def score_of(reference: Reference, inputs: Inputs) -> Tensor:
    """The score, in a graph."""
    with torch.enable_grad():
        return reference.to_score(reference.model(**inputs), inputs)[0]


Slopes = dict[tuple[str, int], tuple[Tensor, Tensor]]
"""An activation and the gradient of the score at it, by component and layer."""


def slopes(reference: Reference, inputs: Inputs, *hooks) -> Slopes:
    """All activations of a run, and the gradients at them; ``hooks`` are entered before."""
    kept: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        for component in (*COMPONENTS, "neuron"):
            for layer in range(1 if component == "embed" else reference.n_layers):
                keep = partial(kept.__setitem__, (component, layer))
                stack.enter_context(reference.hook(component, layer, keep))
        score = score_of(reference, inputs)
    constant = {key for key, value in kept.items() if not value.requires_grad}
    varying = [key for key in kept if key not in constant]
    gradients = torch.autograd.grad(score, [kept[key] for key in varying], allow_unused=True)
    found = dict(zip(varying, gradients, strict=True))
    return {
        key: (value.detach(), torch.zeros_like(value) if found.get(key) is None else found[key])
        for key, value in kept.items()
    }


def product(reference: Reference, change: Tensor, gradient: Tensor, site: Site, positions: list[int] | None) -> float:
    """The product of a change and a gradient, summed over a site's features at some positions."""
    part = reference.part(site.component, site.number, change.shape[-1])
    of_positions = (change * gradient)[0, :, part].sum(-1)
    return (of_positions if positions is None else of_positions[positions]).sum().item()


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a reference, inputs and more, computed once for each of these."""
    made: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def found(reference: Reference, *args: Any) -> Any:
        key = (id(reference), *(id(a) if isinstance(a, dict) else a for a in args))
        if key not in made:
            made[key] = (reference, args, function(reference, *args))
        return made[key][2]

    return found


slopes_at = cached(slopes)


def estimate(at: Slopes, source: Slopes, reference: Reference, site: Site, positions: list[int] | None) -> float:
    """[n(source) - n(target)] . ds/dn."""
    key = site.component, site.layer
    return product(reference, source[key][0] - at[key][0], at[key][1], site, positions)


def attribution(reference: Reference, target: Inputs, source: Inputs, site: Site, positions=None) -> float:
    """The estimate from the gradient at the target."""
    return estimate(slopes_at(reference, target), slopes_at(reference, source), reference, site, positions)


@cached
def z_under(reference: Reference, target: Inputs, source: Inputs, site: Site, positions: tuple[int, ...]) -> Tensor:
    """The outputs of the heads of a layer where queries or keys of it, at some positions, are the source's."""
    taken = slopes_at(reference, source)[site.component, site.layer][0]
    of_cross = site.component.removesuffix("q").removesuffix("k")

    def patch(value: Tensor) -> Tensor:
        part, mixed = reference.part(site.component, site.number, value.shape[-1]), value.clone()
        mixed[:, positions, part] = taken[:, positions, part]
        return mixed

    kept: list[Tensor] = []
    patched = reference.hook(site.component, site.layer, patch)
    with torch.no_grad(), patched, reference.hook(f"{of_cross}head", site.layer, kept.append):
        reference.score(target)
    return kept[0]


def fixed(reference: Reference, target: Inputs, source: Inputs, site: Site, positions=None) -> float:
    """The change of the outputs of heads under the source's queries or keys, times the gradient at them."""
    if site.component.removeprefix("cross_") not in ("q", "k"):
        return attribution(reference, target, source, site, positions)
    here, n = slopes_at(reference, target), slopes_at(reference, source)[site.component, site.layer][0].shape[1]
    places = tuple(range(n) if positions is None else positions)
    head = "cross_head" if site.component.startswith("cross_") else "head"
    z, slope = here[head, site.layer]
    return ((z_under(reference, target, source, site, places) - z) * slope).sum().item()
