"""The slow reference: runs in rows of a batch are the runs by themselves, and nothing is kept from one to the next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import COMPONENTS, CROSS_COMPONENTS, Inputs, Reference
from small_models import DECODERS, TEXTS, build, build_decoder, build_t5
from test_exactness import assert_same

from pyterrier_mechir.models.sites import parse_site

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS = [None, [], [1, 3, 5]]
SETS = [parse_site(name) for name in ("L0H1+L0H3", "L1H0+L1.mlp_out", "L0H2+L1.resid_mid+L1N5", "embed+L0.attn_out")]


def sides(tokenizer, **more: torch.Tensor) -> tuple[Inputs, Inputs]:
    """Two texts of equal length, of which each masks a position that the other does not."""
    found = []
    for text, masked in ((TEXTS[1], 4), (" ".join(reversed(TEXTS[1].split())), 2)):
        inputs = dict(tokenizer(text, return_tensors="pt"))
        inputs = {name: value[:, :12].clone() for name, value in inputs.items()}
        inputs["attention_mask"][0, masked] = 0
        found.append(inputs | more)
    return found[0], found[1]


def made(kind: str) -> tuple[Reference, tuple[Inputs, Inputs]]:
    if kind.startswith("t5"):
        model, tokenizer = build_t5()
        start = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)}
        return Reference.mono_t5(model, 5, 9, decoder=kind == "t5 decoder"), sides(tokenizer, **start)
    if kind in DECODERS:
        model, tokenizer = build_decoder(kind, "AutoModelForCausalLM")
        return Reference.generative(model, 7, 8), sides(tokenizer)
    architecture, pooling = kind.split()
    model, tokenizer = build(architecture, pooling == "cross")
    runs = sides(tokenizer)
    if pooling == "cross":
        return Reference.cross_encoder(model), runs
    return Reference.bi_encoder(model, runs[1], pooling, "cosine"), runs


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        *((kind, 64) for kind in ("bert cross", "distilbert cls", "modernbert mean", "mpnet last", "gemma2", "t5")),
        ("t5 decoder", 3),
        ("distilbert cls", 5),
    ],
)
def test_each_row_is_a_run_with_the_hooks_of_one_site(kind, rows, monkeypatch):
    monkeypatch.setattr("reference._ROWS", rows)
    reference, (target, source) = made(kind)
    components = (*CROSS_COMPONENTS, "head", "mlp_out") if kind == "t5 decoder" else COMPONENTS
    whole = [(component, *site) for component in components for site in reference.sites(component)]
    sites = [*whole[::4], *SETS[:2], *([] if kind == "t5 decoder" else SETS[2:])]
    slots = SLOTS[:1] if kind == "t5 decoder" else SLOTS
    found = reference.patched_each(target, source, sites, slots)
    for i, site in enumerate(sites):
        for j, slot in enumerate(slots):
            if slot == []:
                assert np.isnan(found[i, j])
            else:
                assert_same(found[i, j], np.array(reference.patched(target, source, site, slot)))
    assert np.nanstd(found) > 1e-3


def test_rows_are_scored_one_by_one():
    """So that a score may look at its own run only, as ``out.last_hidden_state[0]``."""
    model, tokenizer = build("bert", classifier=False)
    reference = Reference(model, lambda out, inputs: out.last_hidden_state[0, 0, :1])
    target, source = sides(tokenizer)
    found = reference.patched_each(target, source, [("head", *site) for site in reference.sites("head")])[:, 0]
    assert len(set(found.round(6))) == len(found) == 12


@torch.no_grad()
def test_a_weight_that_is_changed_in_place_is_seen_at_the_next_call():
    reference, (target, source) = made("bert cross")
    sites = [("head", 1, 2), ("mlp_out", 2, None)]
    before = reference.patched_each(target, source, sites), reference.patched(target, source, sites[0])
    weight = reference.model.bert.encoder.layer[0].output.dense.weight
    weight.data *= 2
    after = reference.patched_each(target, source, sites), reference.patched(target, source, sites[0])
    weight.data /= 2
    assert np.abs(after[0] - before[0]).min() > 1e-5 and abs(after[1] - before[1]) > 1e-5
    assert_same(reference.patched_each(target, source, sites), before[0])
