"""Edits in weights: a baked model scores as the edited ranker does, and what weights cannot hold is said."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from small_models import build, build_decoder, build_t5, masked_lm
from tolerance import assert_near

from pyterrier_mechir import (
    Ablate,
    Add,
    BiEncoder,
    ColBERT,
    CrossEncoder,
    FairAttention,
    GenerativeReranker,
    MonoT5,
    Scale,
    Splade,
    head_means,
)
from pyterrier_mechir.interventions.vectors import place_of

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES, TEXTS = small_models.QUERIES[:3], small_models.TEXTS[:3]

TEMPLATE = "Query: {query} Document: {document} Relevant:"

RANKERS = {
    "bert": lambda: BiEncoder(build("bert", False), pooling="mean", similarity="cosine"),
    "electra": lambda: CrossEncoder(build("electra", True)),
    "distilbert": lambda: Splade(masked_lm("distilbert")),
    "mpnet": lambda: BiEncoder(build("mpnet", False)),
    "roberta": lambda: ColBERT(build("roberta", False), projection=torch.eye(8, 32), query_marker="", doc_marker=""),
    "modernbert": lambda: CrossEncoder(build("modernbert", True)),
    "llama": lambda: GenerativeReranker(build_decoder("llama", "AutoModelForCausalLM"), template=TEMPLATE, yes=5, no=7),
    "qwen3": lambda: BiEncoder(build_decoder("qwen3"), pooling="last", similarity="cosine"),
    "mistral": lambda: BiEncoder(build_decoder("mistral"), pooling="last", similarity="cosine"),
    "gemma2": lambda: BiEncoder(build_decoder("gemma2"), pooling="last", similarity="cosine"),
    "t5": lambda: MonoT5(build_t5()),
    "t5 decoder": lambda: MonoT5(build_t5(), stack="decoder"),
    "t5 encoder": lambda: BiEncoder(build_t5("t5", "T5EncoderModel"), pooling="mean"),
}

_POST_NORM = ("bert", "electra", "distilbert", "mpnet", "roberta")
_SUMMED = ("L0.resid_mid", "L0.resid_post", "L1.resid_mid", "L1.resid_post")
"""Streams that are sums in pre-norm models."""


def sites(name: str, ranker: Any) -> list[str]:
    """A site of each component, and each stream."""
    cross = ["L1H1.cross", "L1H1.cross_q", "L1H1.cross_v", "L1H1.cross_k", "L1.cross_attn_out"] if "dec" in name else []
    heads = ["L0H1", "L1H1.v"]
    plain = [] if "dec" in name else ["embed", "L0.resid_pre", "L1H1.q", "L1H1.k"]
    of_layers = ["L0.attn_out", "L1.mlp_out", "L0N3"]
    return [*plain, *heads, *cross, *of_layers, *_SUMMED]


def vector(ranker: Any, site: str) -> np.ndarray:
    _, columns = place_of(ranker, site)
    return np.random.default_rng(len(site)).normal(0, 0.3, columns.stop - columns.start).astype(np.float32)


def by_baked(ranker: Any, model: Any) -> np.ndarray:
    """The scores of a ranker by another model, which no edits are put into."""
    made = copy(ranker)
    made._twins = made._query_twins = made._twins.of_all_threads(model)
    return made.score(QUERIES, TEXTS)


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def assert_baked(edited: Any) -> None:
    before = weights_of(edited.model)
    model = edited.bake()
    assert type(model) is type(edited.model) and not model.training
    assert_near(by_baked(edited, model), edited.score(QUERIES, TEXTS))
    after = edited.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def cannot(name: str, site: str, adds: bool) -> str:
    """What is said where weights cannot hold an edit; empty where they can."""
    component = site.rpartition(".")[2]
    if name in _POST_NORM:
        return ""
    if name in ("t5", "t5 decoder") and site in ("embed", "L0.resid_pre"):
        return "one table of word embeddings for its encoder and its decoder"
    if not adds:
        return "is a sum that is normed later" if site in _SUMMED else ""
    if site == "embed" or (site == "L0.resid_pre" and name != "modernbert") or name in ("modernbert", "llama"):
        return ""
    if name == "qwen3" and ("H" in site or component in ("attn_out", "resid_mid")):
        return ""
    if name == "gemma2" and ("H" in site or component == "attn_out"):
        return ""
    return "has no bias, nor has the config of"


@pytest.mark.parametrize("name", RANKERS)
def test_each_site_is_baked_or_refused_with_the_reason(name):
    plain = RANKERS[name]()
    before = plain.about(fingerprint=True)["weights"]
    base, moved = plain.score(QUERIES, TEXTS), []
    for site in sites(name, plain):
        for edit in (Scale(site, 0.3), Add(site, vector(plain, site), 2.0)):
            edited = plain.edited([edit])
            reason = cannot(name, site, isinstance(edit, Add))
            if reason:
                with pytest.raises(ValueError, match=reason) as told:
                    edited.bake()
                assert str(told.value).startswith(repr(edit)) and "keep the edited ranker" in str(told.value)
                continue
            assert_baked(edited)
            moved.append(float(np.abs(edited.score(QUERIES, TEXTS) - base).max()))
    assert np.median(moved) > 1e-3
    assert plain.about(fingerprint=True)["weights"] == before


@pytest.mark.parametrize("name", ["bert", "electra", "distilbert", "modernbert", "llama"])
def test_means_sets_and_compositions_are_baked(name):
    plain = RANKERS[name]()
    texts = [{"query": query, "text": text} for query, text in zip(QUERIES, TEXTS, strict=True)]
    import pandas as pd

    means = head_means(plain, pd.DataFrame(texts))
    heads = [f"L{layer}H{head}" for layer in range(plain.n_layers) for head in range(plain.n_heads)]
    assert_baked(plain.edited([Ablate(head, by="mean") for head in heads[::3]], reference=means))
    gates = np.random.default_rng(0).uniform(0, 2, len(heads))
    gated = plain.edited([Scale(head, gate) for head, gate in zip(heads, gates, strict=True)])
    assert_baked(gated)
    first = [Scale("L0H1", 0.5), Add("L0.attn_out", vector(plain, "L0.attn_out")), Scale("L1N3", -1)]
    then = [Add("L0H1", vector(plain, "L0H1")), Scale("L0.attn_out", 0.7), Ablate("L1H0.v"), Ablate("L1.mlp_out")]
    assert_baked(gated.edited(first).edited(then))
    assert_baked(plain.edited([Ablate(head) for head in heads]).edited([Add("L1H1", vector(plain, "L1H1"))]))


def test_one_edit_after_another_is_both_at_once():
    plain = RANKERS["bert"]()
    one, other = Scale("L0H1", 0.5), Add("L1.resid_post", vector(plain, "L1.resid_post"))
    at_once = weights_of(plain.edited([one, other]).bake())
    after = weights_of(plain.edited([one]).edited([other]).bake())
    assert all(torch.equal(at_once[name], weight) for name, weight in after.items())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_edits_that_change_nothing_leave_every_bit(name):
    plain = RANKERS[name]()
    nothing = [Scale("L0H1", 1.0), Add("L1.resid_post", vector(plain, "L1.resid_post"), alpha=0.0), Scale("L1N2", 1)]
    for edited in (plain, plain.edited(nothing), plain.edited([Scale("L0H0", 2.0)]).edited([Scale("L0H0", 0.5)])):
        model = edited.bake()
        assert model is not plain.model
        found, wanted = model.state_dict(), plain.model.state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
        assert model.config.to_dict() == plain.model.config.to_dict()


def test_only_what_an_edit_is_of_changes():
    plain = RANKERS["bert"]()
    changed = plain.edited([Ablate("L1H2")]).bake().state_dict()
    before = plain.model.state_dict()
    name = "encoder.layer.1.attention.output.dense.weight"
    assert [key for key in before if not torch.equal(before[key], changed[key])] == [name]
    size = 32 // 4
    assert torch.equal(changed[name][:, : 2 * size], before[name][:, : 2 * size])
    assert not changed[name][:, 2 * size : 3 * size].any()


def test_a_constant_added_to_keys_changes_no_score():
    for name in ("bert", "mpnet"):
        plain = RANKERS[name]()
        edited = plain.edited([Add("L1H1.k", vector(plain, "L1H1.k"), 5.0)])
        wanted = plain.score(QUERIES, TEXTS)
        assert_near(edited.score(QUERIES, TEXTS), wanted)
        assert_near(by_baked(plain, edited.bake()), wanted)


def test_a_head_over_the_vocabulary_keeps_the_embeddings_that_it_had():
    plain = Splade(masked_lm("bert"))
    assert plain.model.get_output_embeddings().weight is plain.model.get_input_embeddings().weight
    model = plain.edited([Scale("embed", 0.5)]).bake()
    table = plain.model.get_input_embeddings().weight
    assert torch.equal(model.get_output_embeddings().weight, table)
    assert torch.equal(model.get_input_embeddings().weight, 0.5 * table)
    assert model.config.tie_word_embeddings is False and plain.model.config.tie_word_embeddings is True


def test_a_switch_of_the_config_gives_biases_and_nothing_else():
    plain = RANKERS["llama"]()
    model = plain.edited([Add("L1H1", vector(plain, "L1H1"))]).bake()
    assert model.config.attention_bias and not model.config.mlp_bias and not plain.model.config.attention_bias
    new = model.state_dict().keys() - plain.model.state_dict().keys()
    assert new == {f"model.layers.{n}.self_attn.{part}_proj.bias" for n in (0, 1) for part in "qkvo"}
    shifted = [name for name in new if model.state_dict()[name].any()]
    assert shifted == ["model.layers.1.self_attn.o_proj.bias"]


def test_each_stack_of_an_encoder_decoder_is_baked():
    plain = RANKERS["t5"]()
    both = plain.edited([Scale("L0H1", 0.3)]).on("decoder").edited([Scale("L1H2.cross", 0.2)])
    assert_baked(both)


REFUSED = {
    "attention": (lambda: FairAttention(baskets=4), "from position to position"),
    "resample": (lambda: Ablate("L0H1", by="resample", reference=TEXTS), "differs from text to text"),
    "class": (lambda: Ablate("L0H1", by="mean", per="position class", reference=TEXTS), "from position to position"),
}


@pytest.mark.parametrize("edit", REFUSED)
def test_what_is_no_map_of_each_position_alike_is_refused(edit):
    made, reason = REFUSED[edit]
    with pytest.raises(ValueError, match=reason) as told:
        RANKERS["bert"]().edited([made()]).bake()
    assert str(told.value).startswith(("Ablate('L0H1'", "FairAttention(")) and "keep the edited ranker" in str(
        told.value
    )


def test_one_side_alone_is_no_model():
    edited = RANKERS["bert"]().edited([Scale("L0H1", 0.3)], side="document")
    with pytest.raises(ValueError, match=r"encodes queries otherwise than documents.*save_pretrained"):
        edited.bake()


def test_queries_of_another_model_are_told_to_be_saved_apart():
    ranker = Splade(masked_lm("bert"), query_model=masked_lm("bert"))
    with pytest.raises(ValueError, match=r"another model for queries.*query_model=other_saved"):
        ranker.edited([Scale("L0H1", 0.3)]).bake()


def test_reduced_precision_and_adapters_are_refused():
    from peft import LoraConfig, get_peft_model

    reduced = BiEncoder(build("bert", False), dtype="bfloat16")
    with pytest.raises(ValueError, match=r"multiplies in bfloat16.*dtype='float32'"):
        reduced.edited([Scale("L0H1", 0.3)]).bake()
    model, tokenizer = build("bert", False)
    adapted = BiEncoder((get_peft_model(model, LoraConfig(target_modules=["query"])), tokenizer))
    with pytest.raises(ValueError, match=r"has an adapter of PEFT.*merge_and_unload"):
        adapted.bake()


def test_half_precision_stays_as_it_is():
    model, tokenizer = build("bert", False)
    edited = BiEncoder((model.double(), tokenizer)).edited([Scale("L0H1", 0.3), Ablate("L1.mlp_out")])
    made = edited.bake()
    assert made.dtype == torch.float64
    assert_near(by_baked(edited, made), edited.score(QUERIES, TEXTS))
