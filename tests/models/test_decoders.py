"""Decoders score as transformers and sentence-transformers do, and every site is exact, keys of groups among them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from gradients import attribution, expected, fixed, run
from reference import COMPONENTS, Reference, inputs_of, pool, shape, similarity
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import DECODERS, QUERIES, TEXTS, build, build_decoder, decoder_tokenizer
from test_exactness import PAIRS, PairReference, assert_same, snapshot
from test_integrated_gradients import STEPS, over_inputs
from test_paths import patch as patched_paths
from test_paths import path_patched
from test_pattern import EagerReference
from test_positions import assert_equal, slots_of
from tolerance import widened

from pyterrier_mechir import (
    AttentionPatterns,
    AttentionTo,
    Attribution,
    BiEncoder,
    CrossEncoder,
    IntegratedGradients,
    PatchScorer,
)
from pyterrier_mechir.models.checkpoints import attending
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site, select_sites
from pyterrier_mechir.observe.attention import read_patterns
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.generative import GenerativeReranker
from pyterrier_mechir.text.encoding import TOKEN_CLASSES, AlignedPair
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = "AutoModelForSequenceClassification"
KINDS = ("last cosine", "head")
LONG = " ".join(TEXTS)


class Case(NamedTuple):
    ranker: Ranker
    pairs: list[AlignedPair]
    references: list[PairReference]


@cache
def make(architecture: str, kind: str) -> Case:
    """A bi-encoder by its pooling and similarity, or a reranker with a classification head; pairs; a reference."""
    model, tokenizer = build_decoder(architecture, HEAD if kind == "head" else "AutoModel", ends=True)
    if kind == "head":
        ranker: Ranker = GenerativeReranker((model, tokenizer), template="{query} is in {document}")
        plain = copy.deepcopy(model)
        plain.config.pad_token_id = -1  # which no input has: the last position is read
        made = [Reference.cross_encoder(plain)] * len(PAIRS)
    else:
        pooling, compared = kind.split()
        ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=compared)
        encoded = [dict(tokenizer(query, return_tensors="pt")) for query, *_ in PAIRS]
        made = [Reference.bi_encoder(model, query, pooling, compared) for query in encoded]
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    assert [0 in pair.baseline.mask for pair in pairs] == [alignment == "mask" for alignment in alignments]
    return Case(ranker, pairs, [PairReference(reference, tokenizer, {}) for reference in made])


def all_sites(ranker: Ranker) -> tuple[Site | SiteSet, ...]:
    anatomy = ranker.anatomy
    sites = select_sites(COMPONENTS, anatomy).sites
    return (*sites, Site("neuron", 0, 5), Site("neuron", 1, 40))


def swept(case: Case, sites, positions="all", batch_size: int | None = len(PAIRS), direction="both") -> SweepResult:
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    made = Positions.of(positions)
    return sweep(case.ranker, case.pairs, inputs, Plan(sites, direction, batch_size, positions=made))


def runs_of(case: Case, row: int, noise: bool):
    """The reference of a pair, its target and its source."""
    of_pair = case.references[row]
    return of_pair.reference, *of_pair.runs(case.pairs[row])[:: -1 if noise else 1]


each_decoder = pytest.mark.parametrize("architecture", DECODERS)
each_case = pytest.mark.parametrize(("architecture", "kind"), [(name, kind) for name in DECODERS for kind in KINDS])
mixed = pytest.mark.parametrize(
    ("architecture", "kind"), [(name, KINDS[number % 2]) for number, name in enumerate(DECODERS)]
)


@pytest.mark.parametrize("max_length", [None, 24])
@each_decoder
def test_bi_encoder_scores_as_transformers(architecture, max_length):
    model, tokenizer = build_decoder(architecture, ends=True)
    texts, queries = [*TEXTS, LONG, "", "unseen wörds: 東京!"], [*QUERIES, LONG, QUERIES[0], ""]

    @torch.no_grad()
    def vector(text: str, pooling: str) -> torch.Tensor:
        inputs = tokenizer(text, truncation=max_length is not None, max_length=max_length, return_tensors="pt")
        return pool(model(**inputs).last_hidden_state, inputs["attention_mask"], pooling)

    for pooling, kind in (("last", "cosine"), ("mean", "dot")):
        ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=kind, max_length=max_length)
        pairs = zip(queries, texts, strict=True)
        wanted = [similarity(vector(q, pooling)[0], vector(t, pooling), kind).item() for q, t in pairs]
        for batch_size in (None, 4):
            assert_same(ranker.score(queries, texts, batch_size=batch_size), np.array(wanted))


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@each_case
def test_every_site_is_exact_in_both_directions(architecture, kind, batch_size):
    case = make(architecture, kind)
    sites = all_sites(case.ranker)
    found = swept(case, sites, batch_size=batch_size)
    for row in range(len(PAIRS)) if batch_size else (1, 3):
        for noise in (False, True) if row in (0, 3) else (row == 1,):
            reference, target, source = runs_of(case, row, noise)
            own, patched = (found.perturbed, found.noise) if noise else (found.baseline, found.denoise)
            assert_same(own[row], np.array(reference.score(target)))
            assert_same(patched[row], reference.patched_each(target, source, sites)[:, 0])


@each_case
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(architecture, kind):
    case = make(architecture, kind)
    parts = [site for site in all_sites(case.ranker) if site.component in ("head", "q", "k", "v", "mlp_out")]
    found = swept(case, [*parts, *patterns(case.ranker)])
    for other in (found.baseline[:, None], found.noise, np.roll(found.denoise, 1, axis=1)):
        assert np.mean(np.abs(found.denoise - other) > 1e-4) > 0.8


@pytest.mark.parametrize("positions", ["each", "class", [0, 2, -1, 60]], ids=str)
@mixed
def test_every_slot_is_exact(architecture, kind, positions):
    case = make(architecture, kind)
    sites = all_sites(case.ranker)[DECODERS.index(architecture) :: 7]
    found = swept(case, sites, positions)
    for row, noise in ((1, False), (3, True)) if positions == "each" else ((2, False), (3, True)):
        reference, target, source = runs_of(case, row, noise)
        wanted = reference.patched_each(target, source, sites, slots_of(case.pairs[row], positions))
        assert_equal((found.noise if noise else found.denoise)[row], wanted)


# Attention weights


class GroupedReference(EagerReference):
    """Eager attention in which heads share keys and values, and logits may be capped, written out here."""

    @contextmanager
    def attending(self, layer, function) -> Iterator[None]:
        modeling = sys.modules[type(self.attentions[layer]).__module__]
        eager = modeling.eager_attention_forward

        def attend(module, query, key, value, attention_mask, scaling, softcap=None, **kwargs):
            if module is not self.attentions[layer]:
                return eager(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **kwargs)
            rows = []
            for head in range(query.shape[1]):
                scores = scaling * query[0, head] @ key[0, head // 2].T
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                rows.append(scores + attention_mask[0, 0])
            weights = function(torch.stack(rows).softmax(-1))
            z = torch.stack([weights[head] @ value[0, head // 2] for head in range(len(rows))], dim=1)
            return z[None], weights[None]

        modeling.eager_attention_forward = attend
        try:
            yield
        finally:
            modeling.eager_attention_forward = eager


def patterns(ranker: Ranker) -> list[Site]:
    return [Site("pattern", layer, head) for layer in range(ranker.n_layers) for head in range(ranker.n_heads)]


def eager(case: Case, row: int) -> GroupedReference:
    of_pair = case.references[row]
    slow = copy.copy(of_pair.reference)
    slow.model = copy.deepcopy(of_pair.reference.model)
    slow.model.set_attn_implementation("eager")
    attentions = [layer.self_attn for layer in slow.model.base_model.layers]
    return GroupedReference(slow, attentions, *of_pair.runs(case.pairs[row]), {})


@pytest.mark.parametrize("batch_size", [len(PAIRS), 1], ids=["padded", "alone"])
@each_case
def test_every_pattern_is_exact_in_both_directions(architecture, kind, batch_size):
    case = make(architecture, kind)
    sites = patterns(case.ranker)
    found = swept(case, sites, batch_size=batch_size)
    for row in (0, 1, 3) if batch_size > 1 else (1,):
        reference = eager(case, row)
        for noise, patched in ((False, found.denoise), (True, found.noise)):
            assert_same(patched[row], np.array([reference.patched([site], noise) for site in sites]))


@mixed
def test_the_rows_of_a_pattern_are_exact_by_class(architecture, kind):
    case = make(architecture, kind)
    sites = patterns(case.ranker)[1::3]
    found = swept(case, sites, "class")
    reference, slots = eager(case, 1), slots_of(case.pairs[1], "class")
    wanted = [[reference.patched([site], False, slot) if slot else np.nan for slot in slots] for site in sites]
    assert_equal(found.denoise[1], np.array(wanted))


@pytest.mark.bits
@each_decoder
def test_weights_that_are_read_are_those_of_eager_attention_to_the_bit(architecture):
    case = make(architecture, "last cosine")
    slow = copy.deepcopy(case.ranker.model)
    slow.set_attn_implementation("eager")
    for rows in ([0, 1, 2, 3], [1]):
        batch = case.ranker.collate([case.pairs[row].perturbed for row in rows], {}, [])
        with torch.no_grad():
            attentions = slow(**batch, output_attentions=True).attentions
            found = read_patterns(case.ranker, batch, range(2))
        for layer, weights in enumerate(attentions):
            assert torch.equal(found[layer], weights)


@mixed
def test_patterns_of_a_group_and_its_values_are_the_outputs_of_its_heads(architecture, kind):
    case = make(architecture, kind)
    names = [(f"L{i}H0.pattern+L{i}H1.pattern+L{i}H0.v", f"L{i}H0+L{i}H1") for i in range(2)]
    names += [(f"L{i}H2.pattern+L{i}H3.pattern+L{i}H1.v", f"L{i}H2+L{i}H3") for i in range(2)]
    for row in (0, 1, 3):
        one = case._replace(pairs=[case.pairs[row]], references=[case.references[row]])
        inputs = one.ranker.query_inputs([PAIRS[row][0]])
        pairs = [replace(one.pairs[0], query=0)]
        made, wanted = (
            sweep(one.ranker, pairs, inputs, Plan([parse_site(n) for n in of])) for of in zip(*names, strict=True)
        )
        assert_same(made.denoise, wanted.denoise)


@mixed
def test_where_a_head_looks_is_measured_and_patched(architecture, kind):
    case = make(architecture, kind)
    slow = copy.deepcopy(case.ranker.model)
    slow.set_attn_implementation("eager")
    slow.config.output_attentions, slow.config.pad_token_id = True, -1
    metric = AttentionTo((1, 3), "SEP", "EDIT")
    opened, rows, inputs = metric.observed(case.ranker, case.pairs, [])
    sites = [parse_site(name) for name in ("L0H1", "L1H3.q", "L1H1.k", "L0H0.v", "embed")]
    found = sweep(case.ranker, rows, inputs, Plan(sites, "both"), opened=opened)
    for row in (0, 1, 3):
        of, to = (case.pairs[row].classes == TOKEN_CLASSES.index(name) for name in ("SEP", "EDIT"))

        def mass(out, inputs, of=of, to=to):
            return out.attentions[1][:, 3][:, of][:, :, to].sum(-1).mean(-1)

        reference = Reference(slow, mass)
        x_b, x_p = case.references[row].runs(case.pairs[row])
        assert_same(found.baseline[row], np.array(reference.score(x_b)))
        assert_same(found.denoise[row], reference.patched_each(x_b, x_p, sites)[:, 0])
        assert_same(found.noise[row], reference.patched_each(x_p, x_b, sites)[:, 0])


@each_decoder
def test_attention_between_token_classes_is_that_of_eager_attention(architecture):
    ranker = make(architecture, "last cosine").ranker
    slow = copy.deepcopy(ranker.model)
    slow.set_attn_implementation("eager")
    frame = pd.DataFrame({"qid": ["1", "2"], "query": QUERIES[:2], "docno": ["a", "b"], "text": TEXTS[:2]})
    out = AttentionPatterns(ranker)(frame)
    for row in range(2):
        (pair,) = ranker.align([QUERIES[row]], [TEXTS[row]], [TEXTS[row]], alignments=["fill"])
        with torch.no_grad():
            plain = slow(**inputs_of(pair.perturbed, ranker.tokenizer), output_attentions=True).attentions
        for i, source in enumerate(TOKEN_CLASSES):
            for j, target in enumerate(TOKEN_CLASSES):
                of, to = (pair.classes == TOKEN_CLASSES.index(name) for name in (source, target))
                wanted = torch.cat(plain).numpy()[:, :, of][..., to].sum(-1).mean(-1) if of.any() else np.nan
                np.testing.assert_allclose(
                    out["attention"].iloc[row][..., i, j], wanted, rtol=widened(1e-4), atol=widened(1e-6)
                )


# Paths, groups, estimates

SENDERS = ["L0H1", "L0.mlp_out", "L0H1.k", "L0H0.v", "L0H3.q", "embed", "L0H0+L0H1.k+L0.attn_out"]
RECEIVERS = {"final": ["final"], "q": ["L1H3.q"], "k and v": ["L1H1.k", "L1H0.v"]}


@pytest.mark.parametrize("receivers", RECEIVERS)
@mixed
def test_every_path_is_exact(architecture, kind, receivers):
    case = make(architecture, kind)
    ends = RECEIVERS[receivers]
    found = patched_paths(case.ranker, case.pairs, SENDERS, ends, "both", batch_size=len(PAIRS))
    for row, noise in ((1, False), (2, True)):
        reference, target, source = runs_of(case, row, noise)
        wanted = path_patched(reference, target, source, SENDERS, ends)
        assert_same((found.noise if noise else found.denoise)[row], wanted)


@each_decoder
def test_a_group_that_a_layer_does_not_have_is_an_error_that_says_which_there_are(architecture):
    ranker = make(architecture, "last cosine").ranker
    assert PatchScorer(ranker, "k").sites.shape == PatchScorer(ranker, "v").sites.shape == (2, 2)
    assert PatchScorer(ranker, "q").sites.shape == PatchScorer(ranker, "pattern").sites.shape == (2, 4)
    parts = ranker.sites().query("layer == 0").set_index("component")["n_parts"]
    assert (parts["k"], parts["v"], parts["q"], parts["head"]) == (2, 2, 4, 4)
    message = r"no head \(0, 2\): the model has layers 0 to 1 of heads 0 to 1\."
    for options in (
        {"component": "k", "heads": [(0, 2)]},
        {"heads": [["L0H1", "L0H2.v"]]},
        {"receivers": ["L0H2.k"], "component": "embed"},
    ):
        with pytest.raises(ValueError, match=message):
            PatchScorer(ranker, **options)
    assert parse_receivers("L1H3.q", shape(2, 4, 2)) == (Site("q", 1, 3),)


@each_case
def test_estimates_from_gradients_are_those_of_autograd_on_the_plain_model(architecture, kind):
    case = make(architecture, kind)
    sites = all_sites(case.ranker)
    for method, slow, rows in (
        (Attribution(), fixed, (1, 2)),
        (Attribution(qk_fix=False), attribution, (1, 2)),
        (IntegratedGradients(steps=STEPS), over_inputs, (3,)),
    ):
        found = run(case, method, sites)
        for row in rows:
            for noise, patched in ((False, found.denoise), (True, found.noise)):
                wanted = expected(case, slow, row, noise, sites)[:, 0]
                np.testing.assert_allclose(patched[row], wanted, rtol=widened(3e-5), atol=widened(3e-5))


@mixed
def test_integrating_along_each_site_tends_to_the_exact_score(architecture, kind):
    case = make(architecture, kind)
    sites = [parse_site(name) for name in ("L0H2", "L1H1.k", "L0H0.v", "L1H2.pattern", "L1.resid_mid")]
    exact = swept(case, sites, direction="denoise").denoise
    errors = [
        np.abs(run(case, IntegratedGradients("activations", steps), sites, "denoise").denoise - exact).max()
        for steps in (2, 20)
    ]
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 1e-2 * np.abs(exact).max()


# Laws


@each_case
def test_a_run_patched_into_itself_stays_and_the_first_stream_is_the_whole_source(architecture, kind):
    case = make(architecture, kind)
    sites = [*all_sites(case.ranker), *patterns(case.ranker)]
    same = [replace(pair, perturbed=pair.baseline) for pair in case.pairs]
    found = swept(case._replace(pairs=same), sites)
    assert_same(found.denoise, np.broadcast_to(found.baseline[:, None], found.denoise.shape))
    first = swept(case, [Site("resid_pre", 0), Site("embed", 0)])
    rows = [0, 1, 3]
    assert_same(first.denoise[rows], np.broadcast_to(first.perturbed[rows, None], (3, 2)))
    assert_same(first.noise[rows], np.broadcast_to(first.baseline[rows, None], (3, 2)))


@each_case
def test_a_batch_gives_what_its_pairs_give_one_by_one(architecture, kind):
    case = make(architecture, kind)
    sites = [*all_sites(case.ranker), *patterns(case.ranker)]
    together, alone = swept(case, sites), swept(case, sites, batch_size=1)
    for name in ("baseline", "perturbed", "denoise", "noise"):
        assert_same(getattr(together, name), getattr(alone, name))


@pytest.mark.parametrize("kind", KINDS)
@each_decoder
def test_no_keys_and_values_are_kept_and_the_model_is_left_as_it_was(architecture, kind, monkeypatch):
    case = make(architecture, kind)
    before = snapshot(case.ranker.model)

    def fail(*args, **kwargs):
        raise AssertionError("a cache was made")

    monkeypatch.setattr(tf.cache_utils.DynamicCache, "__init__", fail)
    with pytest.raises(AssertionError, match="a cache was made"):
        case.ranker.model(input_ids=torch.tensor([[5, 6]]))
    case.ranker.score(QUERIES, TEXTS)
    swept(case, [*patterns(case.ranker), Site("embed", 0), Site("k", 1, 1)])
    run(case, "attribution", [Site("head", 0, 0)])
    assert snapshot(case.ranker.model) == before
    assert case.ranker.model.config.use_cache


def test_a_decoder_with_a_classification_head_is_no_cross_encoder():
    with pytest.raises(ValueError, match="is a decoder, which reads a prompt; use GenerativeReranker"):
        CrossEncoder(build_decoder("qwen3", HEAD))


# Checkpoints of embedding models

INSTRUCT = "Instruct: Given a question, find passages that answer it\nQuery:"


def saved(directory, loaded, pooling: str, **options):
    """A checkpoint of sentence-transformers, its vectors normalised, and itself as its library loads it."""
    for part in loaded:
        part.save_pretrained(directory / "encoder")
    encoder = Transformer(str(directory / "encoder"), max_seq_length=options.pop("max_length", None))
    modules = [encoder, Pooling(encoder.get_embedding_dimension(), pooling), Normalize()]
    made = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine", **options)
    made.save(str(directory / "saved"), create_model_card=False)
    how = attending(loaded[0].config)
    return directory / "saved", SentenceTransformer(str(directory / "saved"), device="cpu", model_kwargs=how)


def cosines(model: SentenceTransformer, queries: list[str], texts: list[str]) -> np.ndarray:
    return model.similarity_pairwise(model.encode_query(queries), model.encode_document(texts)).numpy()


@pytest.mark.parametrize("max_length", [None, 30])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("architecture", [name for name in DECODERS if decoder_tokenizer(name).pad_token])
def test_an_embedding_model_with_an_instruction_scores_as_sentence_transformers(
    architecture, ends, max_length, tmp_path
):
    loaded = build_decoder(architecture, ends=ends)
    prompts = {"query": INSTRUCT, "document": ""}
    path, plain = saved(tmp_path, loaded, "lasttoken", prompts=prompts, max_length=max_length)
    ranker = BiEncoder(path, device="cpu")
    assert (ranker.pooling, ranker.similarity) == ("last", "cosine")
    assert (ranker.query_prefix, ranker.doc_prefix, ranker.max_length) == (INSTRUCT, "", max_length or 400)
    ids = ranker.sequences.plain([""], ["tides"])[0].ids
    assert (ids[-1] == ranker.tokenizer.eos_token_id) == ends
    texts, queries = [*TEXTS, LONG, "a\nline"], [*QUERIES, LONG, "why? where?"]
    assert_same(ranker.score(queries, texts), cosines(plain, queries, texts))


@pytest.mark.parametrize(
    "prompts",
    [("query: ", "passage: "), ("Represent this sentence for searching relevant passages: ", ""), (INSTRUCT, "")],
    ids=["e5", "bge", "instruct"],
)
@pytest.mark.parametrize(("architecture", "pooling"), [("bert", "cls"), ("xlm-roberta", "mean"), ("modernbert", "cls")])
def test_prefixes_of_encoders_score_as_sentence_transformers(architecture, pooling, prompts, tmp_path):
    path, plain = saved(tmp_path, build(architecture, classifier=False), pooling)
    of_query, of_text = (dict(zip(("query", "document"), prompts, strict=True))[side] for side in ("query", "document"))
    wanted = plain.similarity_pairwise(plain.encode(QUERIES, prompt=of_query), plain.encode(TEXTS, prompt=of_text))
    ranker = BiEncoder(path, device="cpu", query_prefix=of_query, doc_prefix=of_text)
    assert_same(ranker.score(QUERIES, TEXTS), wanted.numpy())


def test_a_tokenizer_of_the_fixtures_does_what_its_kind_does():
    assert decoder_tokenizer("qwen3").tokenize("tides. \nyes")[-1] == "yes"
    assert decoder_tokenizer("llama").tokenize("tides\nyes")[-2:] == ["<0x0A>", "yes"]
    assert decoder_tokenizer("gemma").tokenize(" a") == ["▁a"]
    assert {decoder_tokenizer(name).pad_token for name in DECODERS} == {"</s>", None, "<|endoftext|>", "<pad>"}


def test_a_model_that_leaves_out_the_cap_of_its_logits_is_refused():
    model, tokens = build_decoder("gemma2")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=r"does not limit its logits.*attn_implementation='eager'"):
        BiEncoder((model, tokens), pooling="last")
    model.set_attn_implementation("eager")
    assert BiEncoder((model, tokens), pooling="last").n_layers == 2
