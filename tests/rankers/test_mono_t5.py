"""T5 as a ranker, its encoder or its decoder patched, and T5 encoders as bi-encoders."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from reference import COMPONENTS, CROSS_COMPONENTS, Inputs, Reference, inputs_of, shape
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import QUERIES, TEXTS, build, build_t5, t5_tokenizer
from test_exactness import PAIRS, assert_same, snapshot
from test_paths import path_patched
from test_positions import assert_equal, slots_of
from tolerance import assert_near, widened
from torch import Tensor, nn

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    Attribution,
    BiEncoder,
    CrossEncoder,
    IntegratedGradients,
    PatchScorer,
    PerturbDocs,
    ScoreAttribution,
    ScoreLens,
)
from pyterrier_mechir.models import sites as names
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.observe.attention import read_patterns
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan, method_of
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.mono_t5 import MonoT5
from pyterrier_mechir.text.encoding import AlignedPair
from pyterrier_mechir.text.positions import Positions

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "Query: {query} Document: {document} Relevant:"
LONG = " ".join(TEXTS)

UNMASKED = [0, 1, 3]
"""The pairs of which no side masks a position, so that all positions are patched."""

each_stack = pytest.mark.parametrize("stack", ["encoder", "decoder"])
each_kind = pytest.mark.parametrize("kind", ["t5", "flan"])


class Case(NamedTuple):
    ranker: MonoT5
    pairs: list[AlignedPair]
    reference: Reference
    runs: list[tuple[Inputs, Inputs]]


@cache
def make(kind: str, stack: str, *, eager: bool = False) -> Case:
    """A ranker, the pairs of the exactness tests, the reference, and both sides of each pair as its inputs."""
    model, tokenizer = build_t5(kind)
    if eager:
        model.set_attn_implementation("eager")
    ranker = MonoT5((model, tokenizer), stack=stack)
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    assert [row for row, pair in enumerate(pairs) if pair.is_open.all()] == UNMASKED
    answers = (tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("true", "false"))
    reference = Reference.mono_t5(model, *answers, decoder=stack == "decoder")
    return Case(ranker, pairs, reference, [runs_of(pair) for pair in pairs])


def runs_of(pair: AlignedPair) -> tuple[Inputs, Inputs]:
    start = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}
    return tuple(inputs_of(side, t5_tokenizer()) | start for side in (pair.baseline, pair.perturbed))


def all_sites(case: Case) -> list[Site]:
    """Every site that the reference can patch, and some neurons."""
    lacks = case.ranker.anatomy.lacks
    components = [one for one in (*COMPONENTS, *CROSS_COMPONENTS) if names.COMPONENTS[one] not in lacks]
    whole = [Site(component, *site) for component in components for site in case.reference.sites(component)]
    return whole + [Site("neuron", layer, n) for layer in range(case.ranker.n_layers) for n in (0, 29)]


def run(case: Case, sites=None, direction: str = "both", batch_size: int | None = 4, **options: Any) -> SweepResult:
    return sweep(case.ranker, case.pairs, {}, Plan(sites or all_sites(case), direction, batch_size, **options))


def patched(case: Case, row: int, noise: bool, sites, slots=(None,)) -> np.ndarray:
    """The scores ``[site, slot]`` of a pair's run with sites, or sets, from its other run, on the plain model."""
    return case.reference.patched_each(*case.runs[row][:: -1 if noise else 1], sites, slots)


@cache
def expected(kind: str, stack: str) -> tuple[np.ndarray, np.ndarray]:
    """Denoised and noised scores ``[pair, site]``."""
    case = make(kind, stack)
    ways = [[patched(case, row, noise, all_sites(case))[:, 0] for row in range(4)] for noise in (False, True)]
    return np.array(ways[0]), np.array(ways[1])


# Scores


@torch.no_grad()
def plain_score(model: nn.Module, ids: list[int], words: tuple[str, str] = ("true", "false")) -> float:
    logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
    true, false = (t5_tokenizer().convert_tokens_to_ids(f"▁{word}") for word in words)
    return (logits[true] - logits[false]).item()


def whole_prompts(queries: list[str], texts: list[str], template: str = PROMPT) -> list[list[int]]:
    prompts = [template.replace("{query}", q).replace("{document}", d) for q, d in zip(queries, texts, strict=True)]
    return [t5_tokenizer()(prompt)["input_ids"] for prompt in prompts]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@each_stack
@pytest.mark.parametrize("kind", ["t5", "flan", "mt5"])
def test_a_score_is_that_of_transformers_for_the_whole_prompt(kind, stack, batch_size):
    texts = [*TEXTS, LONG, "", " the moon </s> tides\n\n", "unseen wörds: 東京!"]
    queries = [*QUERIES, QUERIES[0], "why", "", "a 'b' (c)"]
    ranker = MonoT5(build_t5(kind), stack=stack)
    wanted = [plain_score(ranker.model, ids) for ids in whole_prompts(queries, texts)]
    assert np.ptp(wanted) > 0.3
    assert_same(ranker.score(queries, texts, batch_size=batch_size), np.array(wanted))


def test_template_and_words_are_those_given():
    template = "Text: {document}\nQuestion: {query}\nIs it relevant?"
    ranker = MonoT5(build_t5(), template=template, true="yes", false="no")
    ids = whole_prompts(QUERIES, TEXTS, template)
    assert_same(ranker.score(QUERIES, TEXTS), np.array([plain_score(ranker.model, one, ("yes", "no")) for one in ids]))


@each_stack
@pytest.mark.parametrize("max_length", [24, 50])
def test_a_text_that_is_too_long_is_cut_within_the_prompt(max_length, stack):
    ranker = MonoT5(build_t5(), stack=stack, max_length=max_length)
    wanted = []
    for query, text in zip(QUERIES, TEXTS, strict=True):
        prompt = PROMPT.replace("{query}", query).replace("{document}", text)
        whole = t5_tokenizer()(prompt, return_offsets_mapping=True)
        begin = prompt.index("Document: ") + len("Document:")
        of_text = [i for i, (_, end) in enumerate(whole["offset_mapping"]) if begin < end <= begin + 1 + len(text)]
        n_cut = max(0, len(whole["input_ids"]) - max_length)
        cut = set(of_text[len(of_text) - n_cut :])
        wanted.append(plain_score(ranker.model, [id for i, id in enumerate(whole["input_ids"]) if i not in cut]))
    assert_same(ranker.score(QUERIES, TEXTS), np.array(wanted))


@pytest.mark.parametrize(("limit", "longest"), [(None, 512), (90, 90)])
def test_a_checkpoint_is_loaded_with_its_longest_length_or_512(limit, longest, tmp_path):
    model, tokenizer = build_t5()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if limit is not None:
        type(tokenizer).from_pretrained(tmp_path, model_max_length=limit).save_pretrained(tmp_path)
    ranker = MonoT5(tmp_path, device="cpu")
    assert ranker.max_length == longest
    assert_same(ranker.score(QUERIES, TEXTS), MonoT5((model, tokenizer), max_length=longest).score(QUERIES, TEXTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": "both"}, "unknown stack 'both'; choose one of 'encoder', 'decoder'"),
        ({"template": "{query} {text}"}, "should have {query} and {document} once each"),
        ({"true": "true true"}, "true='true true' is not one token"),
        ({"false": "東京"}, "false='東京' is not one token"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message.replace("{", "\\{").replace("}", "\\}")):
        MonoT5(build_t5(), **options)


@pytest.mark.parametrize(
    "loaded", [lambda: build_t5("t5", "T5EncoderModel"), lambda: (build("bert", classifier=True)[0], t5_tokenizer())]
)
def test_a_model_without_a_decoder_is_refused(loaded):
    with pytest.raises(ValueError, match="no encoder-decoder with a language-model head; load a T5ForConditionalGen"):
        MonoT5(loaded())


# What is patched


def test_the_stack_is_part_of_what_a_ranker_is():
    loaded = build_t5()
    encoder, decoder = MonoT5(loaded), MonoT5(loaded, stack="decoder")
    assert encoder == MonoT5(loaded) and hash(encoder) == hash(MonoT5(loaded))
    assert encoder != decoder and encoder.on("decoder") == decoder and decoder.on("encoder") == encoder
    assert encoder.on("encoder") is encoder
    assert encoder.on("decoder").model is encoder.model
    assert (encoder.n_layers, decoder.n_layers) == (3, 2)
    assert encoder.stack == "encoder", "the copy left the ranker as it was"
    assert repr(encoder) == "MonoT5('T5ForConditionalGeneration')"
    assert repr(decoder) == "MonoT5('T5ForConditionalGeneration', stack='decoder')"
    about = {"ranker": "MonoT5", "stack": "decoder", "template": PROMPT, "true": "true", "false": "false"}
    assert about.items() <= decoder.about().items()
    assert decoder.about(fingerprint=True)["weights"] == encoder.about(fingerprint=True)["weights"]
    assert PatchScorer(encoder) != PatchScorer(decoder)
    with pytest.raises(ValueError, match="unknown stack 'middle'"):
        encoder.on("middle")


def test_sites_have_the_names_of_transformer_lens():
    hooks = {stack: MonoT5(build_t5(), stack=stack).sites() for stack in ("encoder", "decoder")}
    assert set(hooks["encoder"]["component"]) == set(names.COMPONENTS) - {c for c in names.COMPONENTS if "cross" in c}
    assert set(hooks["decoder"]["component"]) == set(names.COMPONENTS) - {"q", "k", "pattern", "embed"}
    found = {stack: set(frame["hook"]) for stack, frame in hooks.items()}
    assert {"encoder_blocks.2.attn.hook_z", "encoder_blocks.0.hook_resid_mid", "hook_embed"} <= found["encoder"]
    assert {
        "decoder_blocks.1.self_attn.hook_z",
        "decoder_blocks.1.cross_attn.hook_z",
        "decoder_blocks.0.cross_attn.hook_pattern",
        "decoder_blocks.1.hook_cross_attn_out",
    } <= found["decoder"]
    parts = hooks["decoder"].groupby("component")["n_parts"].first()
    assert (parts["cross_head"], parts["cross_v"], parts["cross_attn_out"], parts["neuron"]) == (4, 4, 1, 48)


@pytest.mark.parametrize(
    "name", ["L1H3.cross", "L0H2.cross_q", "L1H0.cross_v", "L1H1.cross_pattern", "L1.cross_attn_out"]
)
def test_names_of_cross_attention_are_read_back(name):
    site = parse_site(name)
    assert site.component.startswith("cross_")
    assert site.name == name


@pytest.mark.parametrize(
    ("stack", "component", "message"),
    [
        ("encoder", "cross_head", "this stack has no cross-attention"),
        ("decoder", "pattern", "attends there to nothing but itself"),
        ("decoder", ["head", "q"], "attends there to nothing but itself"),
        ("decoder", "embed", "that of its start token in every run"),
    ],
)
def test_a_component_that_a_stack_lacks_is_told(stack, component, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(make("t5", stack).ranker, component)


def test_cross_attention_of_a_model_without_a_decoder_is_told():
    with pytest.raises(ValueError, match="this stack has no cross-attention"):
        PatchScorer(CrossEncoder(build("bert", classifier=True)), "cross_attn_out")


# Exactness


@pytest.mark.parametrize("batch_size", [4, None, 1], ids=["padded", "by length", "singles"])
@each_stack
@each_kind
def test_every_site_is_that_of_one_hook_on_the_plain_model(kind, stack, batch_size):
    case = make(kind, stack)
    found = run(case, batch_size=batch_size)
    for way, wanted in zip((found.denoise, found.noise), expected(kind, stack), strict=True):
        assert_same(way, wanted)
    for side, scores in ((0, found.baseline), (1, found.perturbed)):
        assert_same(scores, np.array([case.reference.score(sides[side]) for sides in case.runs]))


@each_stack
@each_kind
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(kind, stack):
    case = make(kind, stack)
    denoise, noise = expected(kind, stack)
    baseline = np.array([[case.reference.score(sides[0])] for sides in case.runs])
    constant = {("resid_pre", 0), ("resid_mid", 0), ("cross_q", 0), ("head", 0), ("v", 0), ("attn_out", 0)}
    moving = [
        number
        for number, site in enumerate(all_sites(case))
        if site.component != "neuron" and (stack == "encoder" or (site.component, site.layer) not in constant)
    ]
    for other in (baseline, noise[:, moving], np.roll(denoise, 1, axis=0)[:, moving]):
        difference = np.abs(denoise[:, moving] - other)
        assert np.median(difference) > 1e-2
        assert np.mean(difference > 1e-4) > 0.85
    if stack == "decoder":
        still = [i for i in range(denoise.shape[1]) if i not in moving and all_sites(case)[i].component != "neuron"]
        assert_same(denoise[:, still], np.broadcast_to(baseline, (4, len(still))))


@each_stack
def test_small_token_budgets_eager_attention_and_one_direction_give_the_same(stack, monkeypatch):
    case = make("flan", stack, eager=True)
    denoise, noise = expected("flan", stack)
    assert_same(run(case, direction="denoise", batch_size=None).denoise, denoise)
    monkeypatch.setattr(case.ranker, "batch_tokens", 64)
    assert_same(run(case, direction="noise", batch_size=2).noise, noise)


@each_stack
def test_mt5_is_patched_as_t5(stack):
    case = make("mt5", stack)
    sites = [parse_site(name) for name in ("L1H0", "L1.mlp_out", "L0.resid_post", "L1N3")]
    found = run(case, sites)
    for row in range(4):
        assert_same(found.noise[row], patched(case, row, True, sites)[:, 0])


@pytest.mark.parametrize("positions", ["each", "class", [0, 5, -1, -3]], ids=str)
def test_positions_of_the_encoder_are_exact(positions):
    case = make("t5", "encoder")
    sites = [parse_site(name) for name in ("L0H1", "L1H2.k", "L2H0.v", "L1.mlp_out", "L2.resid_mid", "L1.resid_pre")]
    sites = sites[:3] if positions == "each" else sites
    found = run(case, sites, positions=Positions.of(positions))
    for row, pair in enumerate(case.pairs):
        for noise, way in ((False, found.denoise), (True, found.noise)):
            slots = slots_of(pair, positions)
            assert_equal(way[row], patched(case, row, noise, sites, slots))


SETS = {
    "encoder": ["L0H1+L0H3", "L1H0+L2H1.q+L1.mlp_out", "embed+L2N5", "L0H0.k+L1.attn_out+L2.resid_post"],
    "decoder": [
        "L0H1.cross+L1H2.cross",
        "L0H0.cross_k+L0H0.cross_v+L1H3",
        "L1H1.cross_q+L0N5",
        "L0.cross_attn_out+L1.mlp_out",
    ],
}


@each_stack
@each_kind
def test_sets_of_sites_are_exact(kind, stack):
    case = make(kind, stack)
    sets = [parse_site(name) for name in SETS[stack]]
    found = run(case, sets)
    for row in range(4):
        assert_same(found.denoise[row], patched(case, row, False, sets)[:, 0])
        assert_same(found.noise[row], patched(case, row, True, sets)[:, 0])


@contextmanager
def attending(attention: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """With the weights of a module ``[H, Q, S]`` passed through a function, in attention written out here."""
    modeling = sys.modules[type(attention).__module__]
    eager = modeling.eager_attention_forward

    def attend(module, query, key, value, attention_mask, position_bias=None, **kwargs):
        if module is not attention:
            return eager(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)
        scores = query[0] @ key[0].mT + position_bias[0]
        if attention_mask is not None:
            scores = scores + attention_mask[0]
        weights = function(scores.softmax(-1))
        return torch.einsum("hqk,hkd->qhd", weights, value[0])[None], weights[None]

    modeling.eager_attention_forward = attend
    try:
        yield
    finally:
        modeling.eager_attention_forward = eager


def kept(seen: list[Tensor], weights: Tensor) -> Tensor:
    seen.append(weights)
    return weights


def with_head(head: int, taken: Tensor, weights: Tensor) -> Tensor:
    weights[head] = taken[head]
    return weights


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("pattern", "encoder.block.{}.layer.0.SelfAttention"),
        ("cross_pattern", "decoder.block.{}.layer.1.EncDecAttention"),
    ],
)
@each_kind
def test_patterns_are_exact(kind, component, path):
    case = make(kind, "encoder" if component == "pattern" else "decoder")
    slow, _ = build_t5(kind)
    slow.set_attn_implementation("eager")
    rows = UNMASKED
    sites = [Site(component, layer, head) for layer in range(case.ranker.n_layers) for head in range(4)]
    found = sweep(case.ranker, [case.pairs[row] for row in rows], {}, Plan(sites, "both", 3))
    plain = Reference(slow, case.reference.to_score)
    for number, row in enumerate(rows):
        for way, (target, source) in ((found.denoise, case.runs[row]), (found.noise, case.runs[row][::-1])):
            for site, value in zip(sites, way[number], strict=True):
                attention, seen = slow.get_submodule(path.format(site.layer)), []
                with attending(attention, partial(kept, seen)):
                    plain.score(source)
                with attending(attention, partial(with_head, site.number, seen[0])):
                    assert_same(value, plain.score(target))
    moved = np.abs(found.denoise - found.baseline[:, None])
    assert np.median(moved) > 1e-3


def test_paths_within_the_encoder_are_exact():
    case = make("t5", "encoder")
    senders = ["L0H1", "L1H2", "L0.mlp_out", "L1H3.k", "embed", "L0H0+L1H0.q+L0.attn_out"]
    for receivers in (["final"], ["L2H1.q", "L2H0.v"], ["L1H0.k", "L2H3.v"]):
        ends = parse_receivers(receivers, shape(3, 4))
        some = [sender for sender in senders if receivers[0] == "final" or sender.startswith(("L0", "embed"))]
        found = run(case, [parse_site(name) for name in some], receivers=ends)
        for row in (1, 2):
            assert_same(found.denoise[row], path_patched(case.reference, *case.runs[row], some, receivers))
            assert_same(found.noise[row], path_patched(case.reference, *case.runs[row][::-1], some, receivers))


@pytest.mark.bits
@each_stack
def test_a_sweep_leaves_the_model_as_it_was(stack):
    case = make("t5", stack)
    model = case.ranker.model
    before, score = snapshot(model), case.ranker.score(QUERIES, TEXTS)
    run(case)
    assert snapshot(model) == before
    last, calls = case.ranker.anatomy.layers[-1], []

    def fail(layer, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return type(layer).forward(layer, *args, **kwargs)

    last.__dict__["forward"] = MethodType(fail, last)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            run(case)
    finally:
        del last.__dict__["forward"]
    assert snapshot(model) == before
    np.testing.assert_array_equal(case.ranker.score(QUERIES, TEXTS), score)


def test_the_encoder_runs_once_for_all_patches_of_the_decoder():
    case = make("t5", "decoder")
    rows: list[int] = []
    keys = case.ranker.model.decoder.block[1].layer[1].EncDecAttention.k
    shapes: list[int] = []
    forward = keys.forward
    with case.ranker.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    ):
        keys.__dict__["forward"] = lambda value: shapes.append(len(value)) or forward(value)
        try:
            run(case)
        finally:
            del keys.__dict__["forward"]
    assert rows == [8]
    assert set(shapes) == {8}, "keys of the text are computed once for all copies"


# Laws


@each_stack
@each_kind
def test_patching_a_run_into_itself_is_a_no_op(kind, stack):
    case = make(kind, stack)
    same = [pair.__class__(**(vars(pair) | {"baseline": pair.perturbed})) for pair in case.pairs]
    found = run(case._replace(pairs=same))
    for way in (found.denoise, found.noise):
        assert_same(way, np.broadcast_to(found.perturbed[:, None], way.shape))


@pytest.mark.parametrize(
    ("stack", "whole"),
    [
        ("encoder", "L0.resid_pre"),
        ("encoder", "L2.resid_post"),
        ("encoder", "embed"),
        ("decoder", "L0.cross_attn_out+L1.cross_attn_out"),
        ("decoder", "+".join(f"L{layer}H{head}.cross" for layer in range(2) for head in range(4))),
        ("decoder", "L1.resid_post"),
    ],
)
@each_kind
def test_all_that_the_document_does_passes_through(kind, stack, whole):
    case = make(kind, stack)
    found = run(case, [parse_site(whole)])
    assert np.abs(found.perturbed - found.baseline).min() > 1e-3
    rows = UNMASKED if stack == "encoder" else slice(None)
    assert_same(found.denoise[rows, 0], found.perturbed[rows])
    assert_same(found.noise[rows, 0], found.baseline[rows])


@each_kind
def test_keys_and_values_of_all_cross_attention_carry_all_that_is_not_masked(kind):
    case = make(kind, "decoder")
    both = "+".join(f"L{layer}H{head}.cross_{which}" for layer in range(2) for head in range(4) for which in "kv")
    found = run(case, [parse_site(both)])
    assert_same(found.denoise[UNMASKED, 0], found.perturbed[UNMASKED])
    assert_same(found.noise[UNMASKED, 0], found.baseline[UNMASKED])
    assert abs(found.noise[2, 0] - found.baseline[2]) > 1e-4, "what stands at masked positions is none of the text's"


@each_stack
def test_a_batch_gives_what_its_pairs_give_one_by_one(stack):
    case = make("flan", stack)
    together = run(case)
    for row in range(4):
        alone = run(case._replace(pairs=case.pairs[row : row + 1]))
        for name in ("denoise", "noise", "baseline", "perturbed"):
            assert_same(getattr(alone, name)[0], getattr(together, name)[row])


@each_stack
def test_queries_vary_as_documents_do(stack):
    ranker = make("t5", stack).ranker.facing("query")
    pairs = ranker.align(
        TEXTS[:3], QUERIES[:3], [f"{query} tides" for query in QUERIES[:3]], alignments=["fill", "mask", "fill"]
    )
    case = Case(ranker, pairs, make("t5", stack).reference, [runs_of(pair) for pair in pairs])
    cross = "+".join(f"L{layer}.cross_attn_out" for layer in range(2))
    sites = [parse_site(name) for name in ("L1H2", "L0.mlp_out", "L0.resid_pre" if stack == "encoder" else cross)]
    found = run(case, sites)
    for row in range(3):
        assert_same(found.denoise[row], patched(case, row, False, sites)[:, 0])
    assert_same(found.denoise[::2, -1], found.perturbed[::2])
    assert_same(found.perturbed[::2], ranker.score([f"{q} tides" for q in (QUERIES[0], QUERIES[2])], TEXTS[0:3:2]))


# Estimates


Place = tuple[str, int]


def slopes(
    case: Case, inputs: Inputs, places: list[Place], dropped: int | None = None
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Activations of the plain model and the gradients at them, with what one layer adds to the stream held constant.

    Args:
        case: of the model.
        inputs: of a run.
        places: component and layer of each activation.
        dropped: the layer; None for none.
    """
    reference, kept = case.reference, {}
    added = ("attn_out", "cross_attn_out", "mlp_out") if reference.decoder else ("attn_out", "mlp_out")
    with torch.enable_grad(), ExitStack() as stack:
        for place in dict.fromkeys(places):
            stack.enter_context(reference.hook(*place, partial(kept.setdefault, place)))
        for component in () if dropped is None else added:
            stack.enter_context(reference.hook(component, dropped, held))
        score = reference.to_score(reference.model(**inputs), inputs)[0]
        gradients = torch.autograd.grad(score, list(kept.values()), allow_unused=True)
    return {
        place: (value.detach(), torch.zeros_like(value) if gradient is None else gradient)
        for (place, value), gradient in zip(kept.items(), gradients, strict=True)
    }


def held(value: Tensor) -> Tensor:
    """The same value through which no gradient passes, though there is one to take at it: zero."""
    return value * 0 + value.detach()


def estimated(case: Case, row: int, noise: bool, sites: list[Site], dropped: int | None = None) -> np.ndarray:
    target, source = case.runs[row][:: -1 if noise else 1]
    places = [(site.component, site.layer) for site in sites]
    taken, of_target = case.reference.activations_of(source, places), slopes(case, target, places, dropped)
    are_open = (target["attention_mask"] & source["attention_mask"])[0].bool()
    found = []
    for site, place in zip(sites, places, strict=True):
        value, slope = of_target[place]
        part = case.reference.part(site.component, site.number, value.shape[-1])
        products = ((taken[place] - value) * slope)[0, :, part].sum(-1)
        found.append((products[are_open] if len(products) == len(are_open) else products).sum().item())
    return np.array(found)


def some_sites(case: Case) -> list[Site]:
    return [site for site in all_sites(case) if site.number in (None, 0, 2, 29)]


@each_stack
@each_kind
def test_every_estimate_is_change_times_gradient_at_the_patched_run(kind, stack):
    case = make(kind, stack)
    sites = some_sites(case)
    found = sweeper(Attribution(qk_fix=False))(case.ranker, case.pairs, {}, Plan(sites, "both", 4))
    for row in range(4):
        denoised, noised = (estimated(case, row, noise, sites) for noise in (False, True))
        assert np.median(np.abs(denoised)) > 1e-3
        np.testing.assert_allclose(
            found.denoise[row] - found.baseline[row], denoised, rtol=widened(1e-4), atol=widened(3e-5)
        )
        np.testing.assert_allclose(
            found.noise[row] - found.perturbed[row], noised, rtol=widened(1e-4), atol=widened(3e-5)
        )


@each_stack
@each_kind
def test_the_fix_of_queries_and_keys_is_what_heads_give_for_the_sources_times_the_gradient(kind, stack):
    case = make(kind, stack)
    of = "" if stack == "encoder" else "cross_"
    sites = [Site(f"{of}{name}", layer, head) for name in ("q", "k") for layer, head in ((0, 2), (1, 0))]
    found = sweeper(method_of("attribution", case.ranker.anatomy))(case.ranker, case.pairs, {}, Plan(sites, "both", 4))
    for row in range(4):
        for noise, patched, score in ((False, found.denoise, found.baseline), (True, found.noise, found.perturbed)):
            wanted = [of_heads(case, row, noise, site, f"{of}head") for site in sites]
            np.testing.assert_allclose(patched[row] - score[row], wanted, rtol=widened(1e-4), atol=widened(3e-5))
            assert np.abs(wanted).max() > 1e-4


def of_heads(case: Case, row: int, noise: bool, site: Site, head: str) -> float:
    """The change of the heads' outputs where a site is the source's, times the gradient at them."""
    reference, (target, source) = case.reference, case.runs[row][:: -1 if noise else 1]
    taken = reference.activation(source, site.component, site.layer)
    places = reference._places(target, source, taken, None)
    z, slope = slopes(case, target, [(head, site.layer)])[head, site.layer]
    kept = []

    def patch(value):
        part, mixed = reference.part(site.component, site.number, value.shape[-1]), value.clone()
        mixed[:, places, part] = taken[:, places, part]
        return mixed

    with reference.hook(site.component, site.layer, patch), reference.hook(head, site.layer, kept.append):
        reference.score(target)
    return ((kept[0] - z) * slope).sum().item()


@each_stack
def test_grad_drop_holds_all_that_a_layer_adds(stack):
    case = make("t5", stack)
    sites = [site for site in some_sites(case) if not site.component.startswith("resid") and site.component != "embed"]
    method = method_of(Attribution(qk_fix=False, grad_drop=True), case.ranker.anatomy)
    found = sweeper(method)(case.ranker, case.pairs[1:2], {}, Plan(sites, "denoise", 4))
    n_layers = case.ranker.n_layers
    sums = sum(np.abs(estimated(case, 1, False, sites, layer)) for layer in range(n_layers))
    towards = np.sign(found.perturbed[0] - found.baseline[0])
    assert_same(found.denoise[0], found.baseline[0] + towards * sums / (n_layers - 1))


@each_stack
def test_integrated_gradients_over_activations_tend_to_the_exact_scores(stack):
    case = make("t5", stack)
    sites = [
        parse_site(name) for name in (["L0H1", "L1H3.v"] if stack == "encoder" else ["L0H1.cross", "L1H3.cross_v"])
    ]
    method = method_of(IntegratedGradients("activations", steps=40), case.ranker.anatomy)
    found = sweeper(method)(case.ranker, case.pairs, {}, Plan(sites, "both", 4))
    exact = run(case, sites)
    assert np.abs(exact.denoise - exact.baseline[:, None]).max() > 0.1
    np.testing.assert_allclose(found.denoise, exact.denoise, atol=1e-2)
    np.testing.assert_allclose(found.noise, exact.noise, atol=1e-2)


def test_integrated_gradients_over_inputs_are_complete_at_the_embeddings_of_the_encoder():
    case = make("t5", "encoder")
    method = method_of(IntegratedGradients(steps=100), case.ranker.anatomy)
    pair = case.pairs[3:4]
    found = sweeper(method)(case.ranker, pair, {}, Plan([Site("embed", 0)], "denoise", 1))
    np.testing.assert_allclose(found.denoise[:, 0], found.perturbed, atol=1e-2)


@pytest.mark.parametrize("method", ["ig", IntegratedGradients(steps=3)])
def test_a_decoder_has_no_inputs_to_integrate_over(method):
    with pytest.raises(ValueError, match="from which nothing leads to the source's; use 'attribution' or"):
        PatchScorer(make("t5", "decoder").ranker, "cross_head", method=method)


# Stages


FRAME = pd.DataFrame(
    [(f"q{q}", QUERIES[q], f"d{d}", TEXTS[d]) for q, d in [(0, 0), (0, 1), (1, 1), (2, 2), (2, 0), (3, 3)]],
    columns=["qid", "query", "docno", "text"],
)


@pytest.mark.parametrize(
    ("stack", "component", "shape", "best"),
    [
        ("encoder", "head", (3, 4), "L0H0"),
        ("decoder", "cross_head", (2, 4), "L0H0.cross"),
        ("decoder", "cross_attn_out", (2,), "L0.cross_attn_out"),
    ],
)
def test_heads_are_scored_and_ranked(stack, component, shape, best):
    ranker = make("t5", stack).ranker
    scorer = PatchScorer(ranker, component, direction="both")
    out = scorer(FRAME)
    assert_same(
        out.set_index(["qid", "docno"])["score"].loc[list(zip(FRAME["qid"], FRAME["docno"], strict=True))],
        ranker.score(FRAME["query"].tolist(), FRAME["text"].tolist()),
    )
    assert {effect.shape for effect in out["patch_effect"]} == {shape}
    assert np.isfinite(np.stack(out["patch_effect"].tolist())).all()
    heads = (scorer >> AggregateHeads(by=None, n_boot=20))(FRAME)
    assert best in set(heads["docno"]) and len(heads) == np.prod(shape)
    assert set(heads["component"]) == {component}
    effects = out["patch_scores"].map(np.ravel) - out["score_baseline"]
    ratio = np.stack(effects.tolist()).mean(0) / (out["score_perturbed"] - out["score_baseline"]).mean()
    np.testing.assert_allclose(heads.set_index("docno")["score"][best], ratio[0], rtol=widened(1e-4))


def test_the_two_stacks_agree_on_all_but_the_effects():
    encoder, decoder = (PatchScorer(make("t5", stack).ranker, "mlp_out")(FRAME) for stack in ("encoder", "decoder"))
    for column in ("score", "score_baseline", "score_perturbed"):
        assert_same(decoder[column], encoder[column])


@pytest.mark.parametrize("positions", ["each", "class", [0, 1]], ids=str)
def test_positions_of_a_decoder_are_not_patched_apart(positions):
    with pytest.raises(ValueError, match=r"the decoder has one position; give positions='all'"):
        PatchScorer(make("t5", "decoder").ranker, "cross_head", positions=positions)


def test_paths_within_a_decoder_are_refused():
    with pytest.raises(ValueError, match=r"leave receivers out, or patch ranker\.on\('encoder'\)"):
        PatchScorer(make("t5", "decoder").ranker, "head", receivers="final")


@pytest.mark.parametrize(("stack", "component"), [("encoder", "pattern"), ("decoder", "cross_pattern")])
def test_patterns_are_not_patched_where_one_side_masks(stack, component):
    masked = PerturbDocs(TFC1())(FRAME).assign(alignment="mask")
    with pytest.raises(ValueError, match="attention weights cannot be patched in pairs of alignment 'mask'"):
        PatchScorer(make("t5", stack).ranker, component)(masked)


def test_attention_patterns_are_those_of_the_encoder():
    ranker = make("t5", "encoder").ranker
    attention = np.stack(AttentionPatterns(ranker)(FRAME)["attention"].tolist())
    sums = attention.sum(-1)
    np.testing.assert_allclose(sums[~np.isnan(sums)], 1, atol=widened(1e-5))
    ids = whole_prompts(QUERIES[:1], TEXTS[:1])
    slow, _ = build_t5()
    slow.set_attn_implementation("eager")
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(1, len(ids[0]), dtype=torch.long)}
    with torch.no_grad():
        plain = slow.encoder(**batch, output_attentions=True).attentions
        found = read_patterns(ranker, batch, range(3))
    for layer in range(3):
        torch.testing.assert_close(found[layer], plain[layer], rtol=widened(1.3e-6), atol=widened(1e-5))
    with pytest.raises(ValueError, match="attends there to nothing but itself"):
        AttentionPatterns(ranker.on("decoder"))


@each_stack
def test_the_lens_ends_at_the_score(stack):
    out = ScoreLens(make("t5", stack).ranker)(FRAME)
    scores = np.stack(out["layer_scores"].tolist())
    assert_same(scores[:, -1], out["score"].to_numpy())
    assert scores.shape[1] == make("t5", stack).ranker.n_layers + 1
    assert (np.ptp(scores[:, 0]) < 1e-5) == (stack == "decoder"), "a decoder starts from the same in every text"


# T5 encoders as bi-encoders


def checkpoint(directory: Path, *more: Any, kind: str = "t5") -> Path:
    """A sentence-transformers checkpoint of a T5 encoder, or of BERT."""
    loaded = build("bert", classifier=False) if kind == "bert" else build_t5(kind, "T5EncoderModel")
    for part in loaded:
        part.save_pretrained(directory / "encoder")
    modules = [Transformer(str(directory / "encoder"), max_seq_length=40), Pooling(32, "mean"), *more]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory / "saved"), create_model_card=False)
    return directory / "saved"


DENSE = {
    "GTR": lambda: [Dense(32, 20, bias=False, activation_function=nn.Identity()), Normalize()],
    "LaBSE": lambda: [Dense(32, 32, bias=True, activation_function=nn.Tanh()), Normalize()],
    "two maps": lambda: [Dense(32, 32), Dense(32, 8, activation_function=None)],
    "residual": lambda: [Normalize(), Dense(32, 32, use_residual=True), Dense(32, 8, use_residual=True)],
    "ReLU": lambda: [Dense(32, 20, activation_function=nn.ReLU())],
    "none": lambda: [],
}


@pytest.mark.parametrize("name", DENSE)
def test_a_bi_encoder_of_t5_scores_as_sentence_transformers(name, tmp_path):
    torch.manual_seed(3)
    path = checkpoint(tmp_path, *DENSE[name]())
    state = torch.get_rng_state()
    ranker = BiEncoder(path, device="cpu")
    assert torch.equal(torch.get_rng_state(), state), "reading weights draws no random numbers"
    assert type(ranker.model).__name__ == "T5EncoderModel"
    assert (ranker.pooling, ranker.max_length) == ("mean", 40)
    model = SentenceTransformer(str(path), device="cpu")
    texts, queries = [*TEXTS, LONG], [*QUERIES, QUERIES[0]]
    wanted = model.similarity_pairwise(model.encode_query(queries), model.encode_document(texts)).numpy()
    assert_same(ranker.score(queries, texts), wanted)
    assert_same(BiEncoder(model).score(queries, texts), wanted)


def test_weights_in_the_older_format_are_read(tmp_path):
    path = checkpoint(tmp_path, *DENSE["GTR"]())
    wanted = BiEncoder(path, device="cpu").score(QUERIES, TEXTS)
    from safetensors.torch import load_file

    torch.save(load_file(path / "2_Dense" / "model.safetensors"), path / "2_Dense" / "pytorch_model.bin")
    (path / "2_Dense" / "model.safetensors").unlink()
    assert_same(BiEncoder(path, device="cpu").score(QUERIES, TEXTS), wanted)
    (path / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"the Dense of .* has no weights"):
        BiEncoder(path, device="cpu")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda: [Dense(32, 20, activation_function=nn.PReLU())], "the Dense of .* has weights activation_function"),
        (
            lambda: [Dense(32, 20, activation_function=nn.Softmax2d(), module_output_name="scores")],
            "output_name='scores",
        ),
    ],
)
def test_a_projection_that_is_not_computed_is_refused(more, message, tmp_path):
    path = checkpoint(tmp_path, *more())
    for given in (path, SentenceTransformer(str(path), device="cpu")):
        with pytest.raises(ValueError, match=message):
            BiEncoder(given, device="cpu")


def test_the_weights_of_a_projection_are_part_of_the_fingerprint(tmp_path):
    digests = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = checkpoint(tmp_path / str(seed), *DENSE["GTR"]())
        digests.append(BiEncoder(path, device="cpu").about(fingerprint=True)["weights"])
    assert digests[0] != digests[1]


def test_a_whole_t5_checkpoint_gives_its_encoder(tmp_path):
    for part in build_t5():
        part.save_pretrained(tmp_path)
    ranker = BiEncoder(tmp_path, pooling="mean", device="cpu")
    assert type(ranker.model).__name__ == "T5EncoderModel"
    wanted = build_t5()[0].encoder.state_dict()
    for name, weight in ranker.model.encoder.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has a decoder, which a bi-encoder lacks"):
        BiEncoder(build_t5())


@pytest.mark.parametrize(
    ("kind", "pooling", "similarity"), [("t5", "mean", "cosine"), ("flan", "cls", "dot"), ("t5", "last", "dot")]
)
def test_every_site_of_a_t5_bi_encoder_is_exact(kind, pooling, similarity):
    model, tokenizer = build_t5(kind, "T5EncoderModel")
    ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity, max_length=100)
    assert_bi_encoder_exact(ranker, lambda query: Reference.bi_encoder(model, query, pooling, similarity))


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_every_site_before_a_projection_is_exact(kind, tmp_path):
    torch.manual_seed(3)
    projection = Dense(32, 20, activation_function=nn.Tanh())
    ranker = BiEncoder(checkpoint(tmp_path, projection, Normalize(), kind=kind), device="cpu", max_length=100)
    linear = projection.linear.weight.detach(), projection.linear.bias.detach()

    def vectors(states: Tensor, mask: Tensor) -> Tensor:
        pooled = torch.stack([row[at.bool()].mean(0) for row, at in zip(states, mask, strict=True)])
        return nn.functional.normalize(torch.tanh(nn.functional.linear(pooled, *linear)), dim=-1)

    def reference(query: Inputs) -> Reference:
        with torch.no_grad():
            vector = vectors(ranker.model(**query).last_hidden_state, query["attention_mask"])[0]
        return Reference(ranker.model, lambda out, x: vectors(out.last_hidden_state, x["attention_mask"]) @ vector)

    assert_bi_encoder_exact(ranker, reference)
    with pytest.raises(ValueError, match="projects its pooled vectors, which ScoreAttribution does not follow"):
        ScoreAttribution(ranker)


def assert_bi_encoder_exact(ranker: BiEncoder, reference_of: Callable[[Inputs], Reference]) -> None:
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    inputs = ranker.query_inputs(list(dict.fromkeys(queries)))
    references = [reference_of(dict(ranker.tokenizer(query, return_tensors="pt"))) for query in queries]
    sites = [Site(component, *site) for component in COMPONENTS for site in references[0].sites(component)]
    found = sweep(ranker, pairs, inputs, Plan(sites, "denoise", 4))
    for row, (pair, reference) in enumerate(zip(pairs, references, strict=True)):
        target, source = (inputs_of(side, ranker.tokenizer) for side in (pair.baseline, pair.perturbed))
        assert_same(found.baseline[row], reference.score(target))
        wanted = reference.patched_each(target, source, sites)[:, 0]
        assert_near(found.denoise[row], wanted, least=np.abs(wanted).max())


def test_a_classifier_on_the_decoder_reads_every_position_of_the_encoder():
    model, tokenizer = build_t5("t5", "AutoModelForSequenceClassification", num_labels=1)
    ranker: Ranker = CrossEncoder((model, tokenizer), max_length=100)
    pairs = ranker.align(QUERIES[:2], TEXTS[:2], [f"{text} tides" for text in TEXTS[:2]], alignments=["fill"] * 2)
    found = sweep(
        ranker, pairs, {}, Plan([Site("head", 2, 1), Site("mlp_out", 2), Site("resid_post", 2)], "denoise", 2)
    )
    for row, pair in enumerate(pairs):
        target, source = (inputs_of(side, tokenizer) for side in (pair.baseline, pair.perturbed))
        reference = Reference(model.transformer, lambda out, x: out.last_hidden_state[:, -1, 0])

        def score(inputs: Inputs) -> float:
            with torch.no_grad():
                return model(**inputs).logits[0, 0].item()

        reference.score = score
        wanted = [
            reference.patched(target, source, site)
            for site in (("head", 2, 1), ("mlp_out", 2, None), ("resid_post", 2, None))
        ]
        assert_same(found.denoise[row], np.array(wanted))
