"""The TransformerLens bridge of a ranker computes what the ranker does, and its names mean what the sites' do."""

from __future__ import annotations

import pickle
import warnings
from copy import deepcopy
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from test_exactness import snapshot
from tolerance import widened
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from pyterrier_mechir import BiEncoder, CrossEncoder, PatchScorer
from pyterrier_mechir.lens.adapter import RankerAdapter, register
from pyterrier_mechir.lens.names import ADAPTER, GROUP, adapted, entry_points, hook_table
from pyterrier_mechir.models.components import COMPONENTS, PER_HEAD
from pyterrier_mechir.models.recording import record
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.colbert import ColBERT
from pyterrier_mechir.rankers.generative import GenerativeReranker
from pyterrier_mechir.rankers.mono_t5 import MonoT5
from pyterrier_mechir.rankers.splade import Splade

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]

ENCODERS = [(name, kind) for name in ARCHITECTURES for kind in ("bi", "cross")]
DECODERS = ("llama", "qwen3", "gemma2")
CASES = [*ENCODERS, *((name, "last") for name in DECODERS), ("t5", "mean")]
OTHERS = ["monoT5", "monoT5 decoder", "splade", "colbert", "generative", "ranking head"]

QUERY = "why does the moon pull the ocean"
TEXT, PERTURBED = "the x moon y the tides z", "the z moon y the tides x"
"""Texts of as many tokens, whatever the tokenizer."""


@cache
def ranker_of(name: str, kind: str) -> Ranker:
    if kind == "cross":
        return CrossEncoder(build(name, classifier=True))
    if name == "t5":
        return BiEncoder(build_t5("t5", "T5EncoderModel"), pooling=kind)
    if name in DECODERS:
        return BiEncoder(build_decoder(name), pooling=kind)
    return BiEncoder(build(name, classifier=False), pooling="mean" if name == "mpnet" else "cls")


@cache
def other_ranker(name: str) -> Ranker:
    if name == "monoT5":
        return MonoT5(build_t5("flan"))
    if name == "monoT5 decoder":
        return MonoT5(build_t5(), stack="decoder")
    if name == "splade":
        return Splade(masked_lm("distilbert"))
    if name == "colbert":
        projection = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        return ColBERT(build("bert", classifier=False), projection=projection, query_marker="", doc_marker="")
    if name == "generative":
        return GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM"))
    return GenerativeReranker(build_decoder("llama", "AutoModelForSequenceClassification"))


def inputs_of(ranker: Ranker) -> dict[str, Tensor]:
    """All texts as the ranker's model reads them, padded, in their order."""
    (part,) = ranker.parts(QUERIES, TEXTS, batch_size=len(TEXTS))
    order = np.argsort(part.rows)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: part.inputs[name][order] for name in names if name in part.inputs}


def output_of(inputs: dict[str, Tensor], output: Tensor) -> Tensor:
    """Logits, or the last states at the positions that are attended to; transformers' attentions differ at others."""
    return output if output.ndim == 2 else output[inputs["attention_mask"].bool()]


def assert_close(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> None:
    found, expected = (
        np.asarray(value.detach() if isinstance(value, Tensor) else value) for value in (found, expected)
    )
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= widened(1e-5) * max(1, np.abs(expected).max())


@pytest.mark.bits
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_bridge_returns_what_the_model_does(name, kind):
    ranker = ranker_of(name, kind)
    inputs = inputs_of(ranker)
    assert isinstance(ranker.lens, TransformerBridge)
    with torch.no_grad():
        output = ranker.model(**inputs)
        expected = output.logits if kind == "cross" else output.last_hidden_state
        ids = inputs.pop("input_ids")
        found = ranker.lens(ids, **inputs)
        cached, _ = ranker.lens.run_with_cache(ids, **inputs)
    assert_close(output_of(inputs, found), output_of(inputs, expected))
    assert torch.equal(found, cached)


def test_positions_are_the_models_own_where_a_mask_has_gaps():
    ranker = ranker_of("bert", "cross")
    inputs = inputs_of(ranker)
    inputs["attention_mask"][:, 2:4] = 0
    with torch.no_grad():
        expected = ranker.model(**inputs).logits
        assert_close(ranker.lens(inputs.pop("input_ids"), **inputs), expected)


@pytest.mark.bits
@pytest.mark.parametrize(("name", "kind"), [*CASES, *((name, "other") for name in OTHERS)])
def test_scores_with_cache_and_with_hooks_are_the_rankers_in_the_order_given(name, kind):
    ranker = other_ranker(name) if kind == "other" else ranker_of(name, kind)
    queries, texts = [*QUERIES, QUERIES[0]], [*TEXTS, TEXTS[0]]
    expected = ranker.score(queries, texts)
    with torch.no_grad():
        scores, activations = ranker.run_with_cache(queries, texts)
        assert_close(scores, expected)
        assert torch.equal(ranker.run_with_hooks(queries, texts), scores)
        assert_close(ranker.run_with_hooks(queries[1], texts[1]), expected[1:2])
    assert np.array_equal(ranker.score(queries, texts), expected)
    assert set(activations.keys()) == set(ranker.hook_dict)
    assert set(ranker.sites()["hook"]) <= set(ranker.hook_dict)
    assert {len(value) for value in activations.values()} == {len(texts)}


@pytest.mark.parametrize(("name", "kind"), [*CASES, *((name, "other") for name in OTHERS)])
def test_every_activation_is_that_of_the_site_of_its_name(name, kind):
    ranker = other_ranker(name) if kind == "other" else ranker_of(name, kind)
    (part,) = ranker.parts([QUERY], [TEXT])
    sites = ranker.sites()
    keys = [(layer, COMPONENTS[component]) for component, layer in zip(sites["component"], sites["layer"], strict=True)]
    with torch.no_grad():
        expected = record(ranker.opened, part.inputs, keys)
        _, activations = ranker.run_with_cache(QUERY, TEXT)
    for component, hook, key in zip(sites["component"], sites["hook"], keys, strict=True):
        found = activations[hook].transpose(1, 2) if component.endswith("pattern") else activations[hook]
        assert found.ndim == (4 if component in PER_HEAD else 3)
        assert_close(found.flatten(2), expected[key])
        assert expected[key].abs().max() > 1e-3


def patched(ranker: Ranker, hook: str, source: Tensor, head: int | None, of_pattern: bool = False) -> float:
    """The score of the text with one activation, or one head's part of it, taken from elsewhere."""

    def take(activation: Tensor, hook: object) -> Tensor:
        if head is None:
            return source
        part = (slice(None), head) if of_pattern else (slice(None), slice(None), head)
        activation = activation.clone()
        activation[part] = source[part]
        return activation

    return ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(hook, take)]).item()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_patch_by_hooks_gives_the_score_that_the_sweep_does(name, kind):
    ranker = ranker_of(name, kind)
    pairs = ranker.align([QUERY], [TEXT], [PERTURBED], alignments=["swap"])
    rows = ranker.sites().query("component != 'neuron'")
    of_rows = [
        (row.hook, Site(row.component, row.layer, part if row.component in PER_HEAD else None))
        for row in rows.itertuples()
        for part in range(row.n_parts)
    ]
    swept = sweep(ranker, pairs, ranker.query_inputs([QUERY]), Plan([site for _, site in of_rows], "denoise"))
    with torch.no_grad():
        score, _ = ranker.run_with_cache(QUERY, TEXT, names_filter=[])
        perturbed, source = ranker.run_with_cache(QUERY, PERTURBED)
        found = [patched(ranker, hook, source[hook], s.number, s.component == "pattern") for hook, s in of_rows]
    assert_close(score, swept.baseline)
    assert_close(perturbed, swept.perturbed)
    assert_close(np.array(found), swept.denoise[0])
    assert np.mean(np.abs(np.array(found) - score.item()) > 1e-4) > 0.6


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] != "cross"])
def test_scores_become_the_pattern_and_edits_of_either_reach_the_score(name, kind):
    ranker = ranker_of(name, kind)
    where = "encoder_blocks" if name == "t5" else "blocks"
    pattern, scores, z = (f"{where}.0.attn.hook_{each}" for each in ("pattern", "attn_scores", "z"))
    with torch.no_grad():
        plain, activations = ranker.run_with_cache(QUERY, TEXT, names_filter=[pattern, scores])
        assert_close(activations[scores].softmax(-1), activations[pattern])

        def towards_first(activation: Tensor, hook: object) -> Tensor:
            activation[:, 1, :, 0] += 3
            return activation

        edited = towards_first(activations[scores].clone(), None).softmax(-1)
        by_scores = ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(scores, towards_first)])
        by_pattern = ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(pattern, lambda activation, hook: edited)])
        silent = ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(pattern, lambda activation, hook: activation * 0)])
        no_heads = ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(z, lambda activation, hook: activation * 0)])
    assert_close(by_scores, by_pattern)
    assert_close(silent, no_heads)
    for moved in (by_scores, silent):
        assert abs(moved - plain).item() > 1e-3


def test_scores_before_softmax_are_scaled_products_of_queries_and_keys_with_the_mask():
    ranker = ranker_of("bert", "cross")
    with torch.no_grad():
        _, activations = ranker.run_with_cache(QUERIES[:2], TEXTS[:2])
    q, k = (activations[each, 1].transpose(1, 2) for each in ("q", "k"))
    products = q @ k.mT / q.shape[-1] ** 0.5
    attended = inputs_of(ranker)["attention_mask"][:2, : products.shape[-1]].bool()
    attended = attended[:, None, None, :].expand_as(products)
    scores = activations["attn_scores", 1]
    assert_close(scores[attended], products[attended])
    assert (scores[~attended] < -1e30).all() and not attended.all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_patterns_are_the_attentions_that_transformers_gives(name):
    ranker = ranker_of(name, "cross")
    model, _ = build(name, classifier=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs_of(ranker), output_attentions=True).attentions
        _, activations = ranker.run_with_cache(QUERIES, TEXTS)
    for layer, expected in enumerate(attentions):
        assert_close(activations["pattern", layer], expected)


@pytest.mark.bits
@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "t5"])
def test_a_run_stops_at_a_layer_and_starts_again_from_its_stream(name, kind):
    ranker = ranker_of(name, kind)
    lens, inputs = ranker.lens, inputs_of(ranker)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        output, activations = lens.run_with_cache(ids, **inputs)
        for layer in range(ranker.n_layers):
            stopped = lens(ids, stop_at_layer=layer, **inputs)
            assert torch.equal(stopped, activations["resid_pre", layer])
            started, later = lens.run_with_cache(stopped, start_at_layer=layer, **inputs)
            assert torch.equal(started, output)
            assert {int(key.split(".")[1]) for key in later if key.startswith("blocks")} == set(
                range(layer, ranker.n_layers)
            )


def test_the_layers_before_a_start_are_not_computed():
    ranker = ranker_of("bert", "bi")
    lens, inputs, ran = ranker.lens, inputs_of(ranker), []
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        stopped = lens(ids, stop_at_layer=2, **inputs)
        handles = [
            layer.register_forward_hook(lambda *args, number=number: ran.append(number))
            for number, layer in enumerate(lens.ranker.anatomy.layers)
        ]
        lens(stopped, start_at_layer=2, **inputs)
    for handle in handles:
        handle.remove()
    assert ran == [2]


@pytest.mark.bits
@pytest.mark.parametrize("name", ["bert", "modernbert", "mpnet"])
def test_a_lens_leaves_the_ranker_and_its_results_as_they_were(name):
    ranker = CrossEncoder(build(name, classifier=True))
    frame = pd.DataFrame({"qid": ["1", "2"], "query": QUERIES[:2], "docno": ["a", "b"], "text": TEXTS[:2]})
    scorer = PatchScorer(ranker, ["head", "mlp_out"], perturbation=TFC1())
    before, modules, model = scorer(frame), snapshot(ranker.model), deepcopy(ranker.model.config)
    with torch.no_grad():
        ranker.run_with_cache(QUERIES, TEXTS)
        ranker.run_with_hooks(
            QUERY, TEXT, fwd_hooks=[("blocks.0.attn.hook_z", lambda activation, hook: activation * 2)]
        )
    ranker.lens.add_hook("blocks.1.hook_resid_mid", lambda activation, hook: activation * 0)
    after = scorer(frame)
    for column in ("score", "score_baseline", "score_perturbed", "patch_scores", "patch_effect"):
        assert np.array_equal(np.stack(before[column]), np.stack(after[column]))
    assert snapshot(ranker.model) == modules
    assert ranker.model.config.to_dict() == model.to_dict()
    assert ranker.model.config._attn_implementation == model._attn_implementation


def test_the_weights_of_a_lens_are_the_rankers():
    model, tokenizer = build("distilbert", classifier=True)
    ranker = CrossEncoder((deepcopy(model), tokenizer))
    before = ranker.run_with_hooks(QUERY, TEXT)
    with torch.no_grad():
        ranker.anatomy.out_proj(1).weight *= 1.5
        ranker.model.classifier.bias += 1
    after = ranker.run_with_hooks(QUERY, TEXT)
    assert_close(after, ranker.score([QUERY], [TEXT]))
    assert abs(after - before).item() > 0.5
    assert {weight.data_ptr() for weight in ranker.lens.parameters()} == {
        weight.data_ptr() for weight in ranker.model.parameters()
    }


def test_a_lens_is_made_once_and_is_no_part_of_what_a_ranker_is(tmp_path):
    for part in build("bert", classifier=True):
        part.save_pretrained(tmp_path)
    ranker, other = CrossEncoder(tmp_path, device="cpu"), CrossEncoder(tmp_path, device="cpu")
    assert ranker.lens is ranker.lens
    assert ranker.lens.ranker.lens is ranker.lens
    assert (ranker, hash(ranker)) == (other, hash(other))
    again = pickle.loads(pickle.dumps(ranker))
    assert "lens" not in vars(again) and again == other
    assert_close(again.run_with_hooks(QUERY, TEXT), other.score([QUERY], [TEXT]))


def test_a_ranker_of_queries_runs_its_documents():
    ranker = ranker_of("bert", "bi").facing("query")
    assert_close(ranker.run_with_hooks(QUERIES, TEXTS), ranker.score(QUERIES, TEXTS))


@pytest.mark.parametrize(("name", "kind"), [("bert", "cross"), ("modernbert", "cross"), ("llama", "last")])
def test_weights_have_the_names_of_transformer_lens(name, kind):
    ranker = ranker_of(name, kind)
    lens = ranker.lens
    with torch.no_grad():
        _, activations = ranker.run_with_cache(QUERY, TEXT)
        attention, mlp, into = lens.blocks[0].attn, lens.blocks[0].mlp, "qkv" if name == "modernbert" else "q"
        states = activations[f"blocks.0.attn.{into}.hook_in"]
        for head_of, weight in (("q", lens.W_Q), ("k", lens.W_K), ("v", lens.W_V)):
            bias = getattr(attention, f"b_{head_of.upper()}")
            made = torch.einsum("bsm,hmd->bshd", states, weight[0])
            assert_close(activations[head_of, 0], made if bias is None else made + bias)
        made = torch.einsum("bshd,hdm->bsm", activations["z", 0], lens.W_O[0])
        assert_close(activations["attn_out", 0], made if attention.b_O is None else made + attention.b_O)
        if name == "bert":
            made = activations["blocks.0.mlp.in.hook_in"] @ lens.W_in[0] + lens.b_in[0]
            assert_close(activations["pre", 0], made)
            assert_close(activations["post", 0], nn.functional.gelu(made))
        else:
            into = "gate_in" if name == "modernbert" else "in"
            states = activations[f"blocks.0.mlp.{into}.hook_in"]
            act = nn.functional.gelu if name == "modernbert" else nn.functional.silu
            assert_close(activations["post", 0], act(states @ mlp.W_gate) * (states @ mlp.W_in))
        assert torch.equal(lens.W_E, ranker.model.get_input_embeddings().weight)


def test_gradients_flow_through_hooks():
    ranker = ranker_of("modernbert", "cross")
    scale = torch.ones((), requires_grad=True)
    hook = ("blocks.0.hook_resid_mid", lambda activation, hook: activation * scale)
    ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[hook]).sum().backward()
    found, step = scale.grad.item(), 1e-2
    with torch.no_grad():
        up, down = (
            ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(hook[0], lambda activation, hook, by=by: activation * by)])
            for by in (1 + step, 1 - step)
        )
    assert found == pytest.approx((up - down).item() / (2 * step), rel=0.05)
    assert abs(found) > 1e-2


@pytest.mark.bits
def test_a_hook_may_change_an_activation_in_place_or_only_look():
    ranker = ranker_of("modernbert", "bi")
    name, seen = "blocks.1.hook_resid_mid", []

    def look(activation: Tensor, hook: object) -> None:
        seen.append(activation)

    def halve(activation: Tensor, hook: object) -> Tensor:
        activation *= 0.5
        return activation

    with torch.no_grad():
        plain = ranker.run_with_hooks(QUERY, TEXT)
        assert torch.equal(ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(name, look)]), plain)
        halved = ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(name, lambda activation, hook: activation * 0.5)])
        assert torch.equal(ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(name, halve)]), halved)
    with torch.inference_mode():
        assert_close(ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[(name, halve)]), halved)
    assert len(seen) == 1
    assert abs(halved - plain).item() > 1e-3


def test_a_softmax_in_a_hook_is_no_attention():
    ranker = ranker_of("llama", "last")
    name, seen = "blocks.0.attn.hook_q", []
    hooks = [
        (name, lambda activation, hook: seen.append(activation.softmax(-1))),
        ("blocks.0.attn.hook_pattern", lambda activation, hook: seen.append(activation)),
    ]
    ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=hooks)
    assert len(seen) == 2


def test_only_the_hook_points_asked_for_are_cached():
    ranker = ranker_of("bert", "cross")
    name = "blocks.1.attn.hook_z"
    for names_filter in (name, [name], lambda hook: hook == name):
        _, activations = ranker.run_with_cache(QUERY, TEXT, names_filter=names_filter)
        assert isinstance(activations, ActivationCache)
        assert list(activations.keys()) == [name]
    assert not ranker.run_with_cache(QUERY, TEXT, names_filter=[])[1].keys()


def test_what_cannot_be_run_is_said_in_a_sentence():
    ranker = ranker_of("bert", "cross")
    with pytest.raises(ValueError, match=r"'blocks\.9\.hook_mlp_out' is no hook point"):
        ranker.run_with_cache(QUERY, TEXT, names_filter="blocks.9.hook_mlp_out")
    with pytest.raises(KeyError, match=r"blocks\.0\.hook_nothing"):
        ranker.run_with_hooks(QUERY, TEXT, fwd_hooks=[("blocks.0.hook_nothing", lambda activation, hook: None)])
    for queries, texts in ((QUERIES[:2], TEXTS[:3]), ([], [])):
        with pytest.raises(ValueError, match=f"{len(queries)} queries and {len(texts)} texts are no pairs"):
            ranker.run_with_cache(queries, texts)


def test_a_lens_is_made_and_run_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classifier, kind in ((False, BiEncoder), (True, CrossEncoder)):
            kind(build("xlm-roberta", classifier)).run_with_cache(QUERIES, TEXTS)


def test_a_bridge_tokenises_a_text_as_the_ranker_does():
    for name in ARCHITECTURES:
        ranker = ranker_of(name, "bi")
        assert ranker.lens.to_tokens(TEXT).tolist() == [ranker.tokenizer(TEXT)["input_ids"]]


def test_the_entry_points_name_an_adapter_for_classes_of_transformers():
    lines = dict(line.split(" = ") for line in entry_points().splitlines())
    assert list(lines) == adapted()
    for name, value in lines.items():
        assert issubclass(getattr(transformers, name), transformers.PreTrainedModel)
        assert EntryPoint(name, value.strip('"'), GROUP).load() is RankerAdapter
    assert {"BertModel", "MPNetForSequenceClassification", "T5EncoderModel", "Qwen3Model"} <= set(lines)


def test_the_package_declares_these_entry_points():
    declared = (ROOT / "pyproject.toml").read_text()
    assert f'[project.entry-points."{GROUP}"]\n{entry_points()}\n' in declared


def test_what_transformer_lens_has_itself_stays_its_own():
    native = dict(ArchitectureAdapterFactory._adapters)
    register()
    for name in ("BertForMaskedLM", "LlamaForCausalLM", "Qwen3ForCausalLM"):
        assert native[name] is ArchitectureAdapterFactory._adapters[name] is not RankerAdapter
    assert ADAPTER.partition(":")[2] == RankerAdapter.__name__


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_transformer_lens_builds_a_bridge_by_the_name_of_the_class(name, kind):
    register()
    ranker = ranker_of(name, kind)
    model = deepcopy(ranker.model)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    assert isinstance(bridge.adapter, RankerAdapter) and isinstance(bridge.cfg, TransformerBridgeConfig)
    inputs = inputs_of(ranker)
    with torch.no_grad():
        expected = ranker.model(**inputs)[0]
        ids = inputs.pop("input_ids")
        output, activations = bridge.run_with_cache(ids, **inputs)
        assert_close(output_of(inputs, output), output_of(inputs, expected))
        if name not in ("t5", "electra"):
            assert_close(bridge(activations["resid_pre", 1], start_at_layer=1, **inputs), output)
        _, of_lens = ranker.lens.run_with_cache(ids, **inputs)
    assert set(activations.keys()) == set(of_lens.keys())


def test_the_page_lists_the_names_and_the_classes():
    page = (ROOT / "docs" / "howto" / "transformer_lens.md").read_text()
    assert hook_table() in page
    assert all(f"`{name}`" in page for name in adapted())


def test_the_snippet_of_the_page_runs(capsys):
    page = (ROOT / "docs" / "howto" / "transformer_lens.md").read_text()
    snippet = page.split("```python\n")[2].split("```")[0]
    exec(compile(snippet, "page", "exec"), {"ranker": ranker_of("bert", "cross")})
    assert "tensor" in capsys.readouterr().out
