"""Patched attention weights are those of a hand-written patch of eager attention in the unmodified model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from reference import PATHS, Inputs, Reference, inputs_of
from small_models import QUERIES, TEXTS, build
from test_exactness import PAIRS as ALL_PAIRS
from test_exactness import POOLED, assert_same, snapshot
from test_positions import assert_equal, slots_of
from tolerance import widened
from torch import Tensor, nn

from pyterrier_mechir import (
    AggregateHeads,
    BiEncoder,
    CrossEncoder,
    PairScorer,
    PatchScorer,
    PerturbDocs,
    explode_effects,
)
from pyterrier_mechir.models.attention import on_pattern
from pyterrier_mechir.models.resuming import Edit, Entries
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site
from pyterrier_mechir.observe.attention import read_patterns
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import AlignedPair
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta", "modernbert")
PAIRS = [pair for pair in ALL_PAIRS if pair[3] != "mask"]
"""One side of a pair of alignment ``mask`` attends to what the other masks: its weights are not patched."""
KINDS = ("cls dot", "mean cosine", "cross")
MIXED = [(name, KINDS[i % 3]) for i, name in enumerate(ARCHITECTURES)] + [("bert", "cross"), ("bert", "mean cosine")]
"""Every architecture, every kind, and BERT with all of them."""
SITES = [Site("pattern", layer, head) for layer in range(3) for head in range(4)]


class EagerReference(NamedTuple):
    """One pair of a model that attends eagerly, and what its attention modules are."""

    reference: Reference
    attentions: list[nn.Module]
    baseline: Inputs
    perturbed: Inputs
    seen: dict[tuple[bool, int], Tensor]

    @contextmanager
    def attending(self, layer: int, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """With the weights of a layer ``[H, S, S]`` passed through a function, in attention written out here."""
        modeling = sys.modules[type(self.attentions[layer]).__module__]
        eager = modeling.eager_attention_forward

        def attend(module, query, key, value, attention_mask, **kwargs):
            if module is not self.attentions[layer]:
                return eager(module, query, key, value, attention_mask, **kwargs)
            scores = query[0] @ key[0].mT / query.shape[-1] ** 0.5
            if attention_mask is not None:
                scores = scores + attention_mask[0]
            weights = function(scores.softmax(-1))
            return torch.einsum("hqk,hkd->qhd", weights, value[0])[None], weights[None]

        modeling.eager_attention_forward = attend
        try:
            yield
        finally:
            modeling.eager_attention_forward = eager

    def weights(self, noise: bool, layer: int) -> Tensor:
        """The weights of a layer in the run that patches come from, computed once."""
        if (noise, layer) not in self.seen:
            with self.attending(layer, lambda weights: self.seen.setdefault((noise, layer), weights)):
                self.reference.score(self.baseline if noise else self.perturbed)
        return self.seen[noise, layer]

    def patched(self, sites: list[Site], noise: bool, rows: list[int] | None = None) -> float:
        """The score with the rows of the weights of some heads, each in another layer, taken from the other run."""
        with ExitStack() as stack:
            for site in sites:
                taken = self.weights(noise, site.layer)

                def replace(weights: Tensor, site=site, taken=taken) -> Tensor:
                    mixed = weights.clone()
                    places = slice(None) if rows is None else rows
                    mixed[site.number, places] = taken[site.number, places]
                    return mixed

                stack.enter_context(self.attending(site.layer, replace))
            return self.reference.score(self.perturbed if noise else self.baseline)


class Case(NamedTuple):
    ranker: Ranker
    pairs: list[AlignedPair]
    references: list[EagerReference]


@cache
def make(architecture: str, kind: str) -> Case:
    """A ranker that attends as transformers does by default, pairs, and the same model attending eagerly."""
    is_cross = kind.startswith("cross")
    model, tokenizer = build(architecture, is_cross)
    if kind.endswith("eager"):
        model.set_attn_implementation("eager")
    slow, _ = build(architecture, is_cross)
    slow.set_attn_implementation("eager")
    if is_cross:
        ranker: Ranker = CrossEncoder((model, tokenizer))
    else:
        pooling, similarity = POOLED[kind.removesuffix(" eager")]
        ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    paths = PATHS[architecture]
    inside = {"distilbert": "attention", "modernbert": "attn"}.get(architecture, "attention.self")
    prefix = paths.prefix if is_cross else ""
    attentions = [slow.get_submodule(f"{prefix}{paths.layer.format(layer)}.{inside}") for layer in range(3)]
    references = []
    for query, pair in zip(queries, pairs, strict=True):
        if is_cross:
            reference = Reference.cross_encoder(slow)
        else:
            query_inputs = dict(tokenizer(query, return_tensors="pt"))
            reference = Reference.bi_encoder(slow, query_inputs, ranker.pooling, ranker.similarity)
        sides = (inputs_of(side, tokenizer) for side in (pair.baseline, pair.perturbed))
        references.append(EagerReference(reference, attentions, *sides, {}))
    return Case(ranker, pairs, references)


def run(case: Case, sites, positions="all", direction="both", batch_size: int | None = 4) -> SweepResult:
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    made = Positions.of(positions)
    return sweep(case.ranker, case.pairs, inputs, Plan(sites, direction, batch_size, positions=made))


def expected(case: Case, row: int, sites: list[Site], positions, noise: bool) -> np.ndarray:
    one = case.references[row]
    if positions == "all":
        return np.array([one.patched([site], noise) for site in sites])
    slots = slots_of(case.pairs[row], positions)
    return np.array([[one.patched([site], noise, slot) if slot else np.nan for slot in slots] for site in sites])


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pattern_is_exact_in_both_directions(architecture, kind, batch_size):
    case = make(architecture, kind)
    found = run(case, SITES, batch_size=batch_size)
    for row in range(len(PAIRS)) if batch_size else (2,):
        assert_same(found.denoise[row], expected(case, row, SITES, "all", noise=False))
        if row > 1:
            assert_same(found.noise[row], expected(case, row, SITES, "all", noise=True))


@pytest.mark.parametrize(
    ("architecture", "kind"), [("bert", "cls dot eager"), ("modernbert", "cross eager"), ("roberta", "last dot")]
)
def test_a_model_that_attends_eagerly_is_patched_alike(architecture, kind):
    case = make(architecture, kind)
    found = run(case, SITES)
    for row in range(len(PAIRS)):
        assert_same(found.denoise[row], expected(case, row, SITES, "all", noise=False))


@pytest.mark.parametrize("positions", ["class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize(("architecture", "kind"), MIXED)
def test_the_rows_of_every_slot_are_exact(architecture, kind, positions):
    case = make(architecture, kind)
    sites = SITES[KINDS.index(kind) :: 4]
    found = run(case, sites, positions)
    for row, noise in ((0, True), (1, False), (2, True)):
        scores = found.noise[row] if noise else found.denoise[row]
        assert_equal(scores, expected(case, row, sites, positions, noise))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("architecture", "kind"), MIXED)
def test_every_row_is_exact(architecture, kind, direction):
    case = make(architecture, kind)
    sites = [SITES[(ARCHITECTURES.index(architecture) + 4 * KINDS.index(kind)) % 12]]
    found = getattr(run(case, sites, "each", direction), direction)
    for row in (1, 2):
        assert_equal(found[row], expected(case, row, sites, "each", direction == "noise"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_patched_pattern_moves_the_score(architecture, kind):
    """A replacement that nothing reads, as of weights that were used already, would move nothing."""
    found = run(make(architecture, kind), SITES)
    for patched, target in ((found.denoise, found.baseline), (found.noise, found.perturbed)):
        moved = np.abs(patched - target[:, None]) / np.maximum(1, np.abs(target[:, None]))
        assert np.mean(moved > 1e-4) > 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pattern_and_values_together_are_the_output_of_the_head(architecture, kind):
    case = make(architecture, kind)
    both = [SiteSet((site, site._replace(component="v"))) for site in SITES]
    found, wanted = run(case, both), run(case, [site._replace(component="head") for site in SITES])
    assert_same(found.denoise, wanted.denoise)
    assert_same(found.noise, wanted.noise)


@pytest.mark.parametrize("kind", KINDS)
def test_all_patterns_and_values_of_a_layer_are_its_attention(kind):
    case = make("modernbert", kind)
    everything = [
        SiteSet(tuple(Site(component, layer, head) for component in ("pattern", "v") for head in range(4)))
        for layer in range(3)
    ]
    found, wanted = run(case, everything), run(case, [Site("attn_out", layer) for layer in range(3)])
    assert_same(found.denoise, wanted.denoise)


@pytest.mark.parametrize(("architecture", "kind"), MIXED)
def test_patterns_of_several_layers_are_patched_together(architecture, kind):
    case = make(architecture, kind)
    sets = [parse_site(name) for name in ("L0H1.pattern+L2H2.pattern", "L0H3.pattern+L1H0.pattern+L2H1.pattern")]
    found = run(case, sets, "class")
    for row in (1, 2):
        slots = slots_of(case.pairs[row], "class")
        for noise, scores in ((False, found.denoise), (True, found.noise)):
            wanted = [
                [case.references[row].patched(one.members, noise, slot) if slot else np.nan for slot in slots]
                for one in sets
            ]
            assert_equal(scores[row], np.array(wanted))


@pytest.mark.parametrize("architecture", ["distilbert", "modernbert"])
def test_small_token_budgets_split_the_copies_without_changing_a_score(architecture, monkeypatch):
    case = make(architecture, "cls dot")
    everything = run(case, SITES, "class")
    monkeypatch.setattr(case.ranker, "batch_tokens", 150)
    for one, other in zip(everything.noise, run(case, SITES, "class", batch_size=None).noise, strict=True):
        np.testing.assert_allclose(one, other, rtol=widened(1e-5), atol=widened(1e-5))


def batch_of(case: Case) -> dict[str, Tensor]:
    return case.ranker.collate([pair.perturbed for pair in case.pairs], {}, [])


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["cls dot", "cross", "cls dot eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_that_are_read_are_those_of_eager_attention_to_the_bit(architecture, kind):
    case = make(architecture, kind)
    batch = batch_of(case)
    slow = case.references[0].reference.model
    with torch.no_grad():
        out = slow(**batch, output_attentions=True)
        found = read_patterns(case.ranker, batch, range(3))
        assert sorted(found) == [0, 1, 2]
        for layer, weights in enumerate(out.attentions):
            assert torch.equal(found[layer], weights)
    assert set(read_patterns(case.ranker, batch, [1])) == {1}


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_that_is_only_read_scores_as_eager_to_the_bit(architecture, kind):
    case, eager = make(architecture, kind), make(architecture, f"{kind} eager")
    batch = batch_of(case)
    with torch.no_grad(), on_every_pattern(case.ranker, lambda weights: None):
        found = case.ranker.encode(batch)
    with torch.no_grad():
        assert torch.equal(found, eager.ranker.encode(batch))


@contextmanager
def on_every_pattern(ranker: Ranker, function) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in range(ranker.n_layers):
            stack.enter_context(on_pattern(ranker.anatomy.attention(layer), function))
        yield


def test_who_asks_last_sees_what_those_before_it_made():
    case = make("bert", "cross")
    seen = []
    uniform = lambda weights: torch.full_like(weights, 1 / weights.shape[-1])  # noqa: E731
    attention = case.ranker.anatomy.attention(1)
    with torch.no_grad(), on_pattern(attention, uniform), on_pattern(attention, lambda weights: seen.append(weights)):
        case.ranker.encode(batch_of(case))
    assert torch.equal(seen[0], uniform(seen[0]))


def configs(ranker: Ranker) -> list[tuple[int, str]]:
    return [(id(m.config), m.config._attn_implementation) for m in ranker.model.modules() if hasattr(m, "config")]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sweep_of_patterns_leaves_the_model_as_it_was(architecture, failing, monkeypatch):
    case = make(architecture, "cls dot")
    before = snapshot(case.ranker.model), configs(case.ranker)
    if failing:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
            patch.setattr(torch, "where", fail)
            run(case, SITES)
    else:
        run(case, SITES)
    assert (snapshot(case.ranker.model), configs(case.ranker)) == before


def fail(*args, **kwargs):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_attention_outside_the_interface_is_an_error_that_says_so(kind):
    ranker = CrossEncoder(build("mpnet", True)) if kind == "cross" else BiEncoder(build("mpnet", False))
    for options in (
        {"component": "pattern"},
        {"component": ["head", "pattern"]},
        {"heads": [["L1H0.pattern", "L0H1"]]},
    ):
        with pytest.raises(ValueError, match="mpnet computes its attention outside"):
            PatchScorer(ranker, **options)
    with pytest.raises(ValueError, match="mpnet computes its attention outside"):
        read_patterns(ranker, {}, [0])
    assert "pattern" not in set(ranker.sites()["component"])


def test_attention_that_never_forms_its_weights_is_an_error_that_says_so(monkeypatch):
    ranker = CrossEncoder(build("bert", True))
    monkeypatch.setattr(ranker.model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"flash_attention_2 never forms them; load .*'sdpa'"):
        PatchScorer(ranker, "pattern")


def test_a_ranker_lists_its_patterns(ranker):
    found = ranker.sites().set_index(["component", "layer"])
    assert found.loc[("pattern", 2)].tolist() == [ranker.n_heads, "blocks.2.attn.hook_pattern"]
    assert parse_site("L2H3.pattern") == Site("pattern", 2, 3)
    assert Site("pattern", 2, 3).name == "L2H3.pattern"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [("1", QUERIES[0], f"d{i}", TEXTS[i]) for i in (0, 1, 4)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def test_the_stage_gives_a_cell_per_head_and_the_aggregate_names_it(ranker, frame):
    out = PatchScorer(ranker, "pattern", positions="class")(frame)
    assert {effects.shape for effects in out["patch_effect"]} == {(3, 4, 8)}
    heads = AggregateHeads(by=None)(out)
    assert {"L0H0.pattern@EDIT", "L2H3.pattern@CLS"} <= set(heads["docno"])
    assert set(explode_effects(out)["component"]) == {"pattern"}


@pytest.mark.parametrize("options", [{}, {"positions": "class", "direction": "both"}, {"heads": [(0, 1)]}], ids=str)
def test_a_patch_that_nothing_reads_is_warned_of(ranker, frame, options, monkeypatch):
    for kind in (Edit, Entries):
        monkeypatch.setattr(kind, "__call__", lambda self, value: value)
    with pytest.warns(UserWarning, match="patching pattern touched nothing: .* in any of 3 pairs"):
        PatchScorer(ranker, "pattern", **options)(frame)


def test_patching_what_is_the_same_on_both_sides_is_warned_of(ranker, frame):
    with pytest.warns(UserWarning, match="patching embed touched nothing"):
        PatchScorer(ranker, "embed", positions=[0, 99])(frame)


@pytest.mark.parametrize("options", [{}, {"positions": "class"}, {"layers": [1]}], ids=str)
@pytest.mark.parametrize("component", ["pattern", "resid_pre", ["embed", "head"]], ids=str)
def test_patches_of_which_some_move_a_score_are_not_warned_of(ranker, frame, component, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*touched nothing")
        PatchScorer(ranker, component, **options)(frame)


def test_a_sweep_of_nothing_is_not_warned_of(ranker, frame):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*touched nothing")
        PairScorer(ranker)(frame)
        PatchScorer(ranker, "pattern")(frame[:0])
        PatchScorer(ranker, "pattern", layers=[])(frame)
