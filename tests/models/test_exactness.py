"""Every patched score is that of one hook at a time on the unmodified Hugging Face model."""

from __future__ import annotations

from functools import cache
from types import MethodType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from reference import COMPONENTS, Inputs, Reference, inputs_of
from small_models import ARCHITECTURES, QUERIES, TEXTS, build
from tolerance import widened
from transformers import PreTrainedTokenizerBase

from pyterrier_mechir import BiEncoder, CrossEncoder
from pyterrier_mechir.models.sites import Site, select_sites
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import AlignedPair
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    (QUERIES[0], TEXTS[0], f"{TEXTS[0]} tides tides", "fill"),
    (QUERIES[1], TEXTS[1], f"night bats {TEXTS[1]}", "fill"),
    (QUERIES[5], TEXTS[5], f"iron bridge {TEXTS[5]}", "mask"),
    (QUERIES[1], "tides", "neap tides", "swap"),
]
"""Queries, baselines, perturbed texts and alignments, of lengths from 4 to 80 tokens; two have the same query."""

POOLED = {
    "cls dot": ("cls", "dot"),
    "mean cosine": ("mean", "cosine"),
    "last dot": ("last", "dot"),
}

CASES = [
    *((architecture, kind) for architecture in ARCHITECTURES for kind in ("cls dot", "mean cosine", "cross")),
    ("bert", "last dot"),
    ("distilbert", "last dot"),
    ("modernbert", "cross mean"),
    ("bert", "cross eager"),
    ("distilbert", "cls dot eager"),
    ("modernbert", "mean cosine eager"),
]


MOVING = ("head", "q", "k", "v", "attn_out", "mlp_out")
"""Components that do not by themselves give the whole source run."""


class PairReference(NamedTuple):
    """The reference for the query of a pair."""

    reference: Reference
    tokenizer: PreTrainedTokenizerBase
    inputs: dict[int, tuple[Inputs, Inputs]]

    def runs(self, pair: AlignedPair) -> tuple[Inputs, Inputs]:
        """The inputs of both sides, the same objects at every call, so that the reference runs them once."""
        sides = pair.baseline, pair.perturbed
        return self.inputs.setdefault(id(pair), tuple(inputs_of(side, self.tokenizer) for side in sides))


class Case(NamedTuple):
    ranker: Ranker
    pairs: list[AlignedPair]
    references: list[PairReference]
    baseline: np.ndarray
    perturbed: np.ndarray
    denoise: np.ndarray
    noise: np.ndarray


@cache
def prepare(architecture: str, kind: str) -> tuple[Ranker, list[AlignedPair], list[PairReference]]:
    """A ranker, encoded pairs, and the reference for each."""
    changes = {"classifier_pooling": "mean"} if kind == "cross mean" else {}
    model, tokenizer = build(architecture, kind.startswith("cross"), **changes)
    if kind.endswith("eager"):
        model.set_attn_implementation("eager")
    if kind.startswith("cross"):
        ranker: Ranker = CrossEncoder((model, tokenizer))
    else:
        pooling, similarity = POOLED[kind.removesuffix(" eager")]
        ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    assert [0 in pair.baseline.mask for pair in pairs] == [alignment == "mask" for alignment in alignments]
    references = []
    for query in queries:
        if isinstance(ranker, CrossEncoder):
            reference = Reference.cross_encoder(model)
        else:
            encoded = dict(tokenizer(query, return_tensors="pt"))
            reference = Reference.bi_encoder(model, encoded, ranker.pooling, ranker.similarity)
        references.append(PairReference(reference, tokenizer, {}))
    return ranker, pairs, references


@cache
def make(architecture: str, kind: str) -> Case:
    """A ranker, encoded pairs, and the reference's scores of all sites of all components, in order."""
    ranker, pairs, references = prepare(architecture, kind)
    expected = []
    for pair, of_pair in zip(pairs, references, strict=True):
        reference, (x_b, x_p) = of_pair.reference, of_pair.runs(pair)
        sites = [(component, *site) for component in COMPONENTS for site in reference.sites(component)]
        denoise, noise = (reference.patched_each(*runs, sites)[:, 0] for runs in ((x_b, x_p), (x_p, x_b)))
        expected.append((reference.score(x_b), reference.score(x_p), denoise, noise))
    return Case(ranker, pairs, references, *(np.array(values) for values in zip(*expected, strict=True)))


def all_sites(ranker: Ranker) -> tuple[Site, ...]:
    return select_sites(COMPONENTS, ranker.anatomy).sites


def run(case: Case, direction: str = "both", batch_size: int | None = None, sites=None) -> SweepResult:
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    return sweep(case.ranker, case.pairs, inputs, Plan(sites or all_sites(case.ranker), direction, batch_size))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= widened(1e-5)


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_every_site_is_exact_in_both_directions(architecture, kind, batch_size):
    case = make(architecture, kind)
    found = run(case, batch_size=batch_size)
    for name in ("baseline", "perturbed", "denoise", "noise"):
        assert_same(getattr(found, name), getattr(case, name))


@pytest.mark.parametrize("batch_size", [len(PAIRS), 2, None], ids=["padded", "pairwise", "by length"])
@pytest.mark.parametrize(("architecture", "kind"), [("bert", "cross"), ("mpnet", "cls dot"), ("electra", "cls dot")])
def test_small_token_budgets_split_the_sites_without_changing_a_score(architecture, kind, batch_size, monkeypatch):
    case = make(architecture, kind)
    monkeypatch.setattr(case.ranker, "batch_tokens", 64)
    found = run(case, batch_size=batch_size)
    assert_same(found.denoise, case.denoise)
    assert_same(found.noise, case.noise)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_direction_alone_is_that_direction_of_both(architecture):
    case = make(architecture, "cross")
    for direction, other in (("denoise", "noise"), ("noise", "denoise")):
        found = run(case, direction)
        assert_same(getattr(found, direction), getattr(case, direction))
        assert getattr(found, other) is None


@pytest.mark.parametrize("kind", ["cross", "cls dot"])
def test_results_come_in_the_order_of_the_sites_asked_for(kind):
    case = make("bert", kind)
    order = np.random.default_rng(0).permutation(len(all_sites(case.ranker)))[:9]
    order = np.append(order, order[0])
    found = run(case, sites=[all_sites(case.ranker)[i] for i in order])
    assert_same(found.denoise, case.denoise[:, order])
    assert_same(found.noise, case.noise[:, order])


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kind", ["cross", "cls dot", "mean cosine"])
def test_a_component_swept_alone_is_exact(kind, component):
    case = make("distilbert", kind)
    wanted = [i for i, site in enumerate(all_sites(case.ranker)) if site.component == component]
    found = run(case, batch_size=3, sites=[all_sites(case.ranker)[i] for i in wanted])
    assert_same(found.denoise, case.denoise[:, wanted])
    assert_same(found.noise, case.noise[:, wanted])


@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(architecture, kind):
    case = make(architecture, kind)
    parts = [i for i, site in enumerate(all_sites(case.ranker)) if site.component in MOVING]
    denoise, noise, baseline = case.denoise[:, parts], case.noise[:, parts], case.baseline[:, None]
    for other in (baseline, noise, np.roll(denoise, 1, axis=1), np.roll(denoise, 1, axis=0)):
        difference = np.abs(denoise - other) / np.maximum(1, np.abs(baseline))
        assert np.mean(difference > 1e-4) > 0.85
        assert np.median(difference) > 1e-3


def snapshot(model: torch.nn.Module) -> list[tuple]:
    """What a sweep could leave behind in any module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, module.training, module.__dict__.get("forward"), *(dict(getattr(module, each)) for each in hooks))
        for name, module in model.named_modules()
    ]


def outputs(ranker: Ranker) -> torch.Tensor:
    with torch.no_grad():
        return ranker.model(**dict(ranker.tokenizer(TEXTS, padding=True, return_tensors="pt")))[0]


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sweep_leaves_the_model_as_it_was(architecture, kind):
    case = make(architecture, kind)
    before, states = snapshot(case.ranker.model), outputs(case.ranker)
    run(case)
    assert snapshot(case.ranker.model) == before
    assert torch.equal(outputs(case.ranker), states)


@pytest.mark.bits
@pytest.mark.parametrize("failing_call", [1, 2, 7])
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_error_in_the_middle_of_a_sweep_leaves_the_model_as_it_was(architecture, kind, failing_call, monkeypatch):
    case = make(architecture, kind)
    before, states = snapshot(case.ranker.model), outputs(case.ranker)
    last = case.ranker.anatomy.layers[-1]
    calls = []

    def fail(layer, *args, **kwargs):
        calls.append(args)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return type(layer).forward(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(last.__dict__, "forward", MethodType(fail, last))
        with pytest.raises(RuntimeError, match="out of memory"):
            run(case, batch_size=len(PAIRS))
    assert snapshot(case.ranker.model) == before
    assert torch.equal(outputs(case.ranker), states)
