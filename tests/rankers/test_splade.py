"""SPLADE: scores and expansions of the reference implementations, exact patches, effects on single terms."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from apart import Case, all_sites, assert_exact, assert_moves, assert_slots, case_of, patch
from gradients import Case as GradientCase
from gradients import PairReference, fixed
from gradients import expected as estimated
from reference import Inputs, Reference
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, masked_lm, tokenizer
from test_exactness import PAIRS, assert_same
from test_paths import path_patched
from test_rankers import QUERIES_AND_LONG, TEXTS_AND_LONG
from tolerance import assert_near, assert_near_effects
from torch import Tensor, nn

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    BiEncoder,
    PairScorer,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    ScoreLens,
    Splade,
    TermWeight,
)
from pyterrier_mechir.models import products
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1, Typos
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = ("document", "query")
CASES = [
    *((name, "document") for name in ARCHITECTURES),
    *((name, "query") for name in ("bert", "roberta", "modernbert", "mpnet")),
]
KINDS = {"max": {}, "sum": {"pooling": "sum", "activation": "log1p_relu"}}


def vectors(logits: Tensor, mask: Tensor, pooling: str = "max", activation: str = "relu") -> Tensor:
    """Vectors over the vocabulary, one text and position at a time."""
    rows = []
    for of_text, attended in zip(logits, mask.bool(), strict=True):
        weights = [torch.log(1 + torch.clamp(at, min=0)) for at in of_text[attended]]
        weights = torch.stack([torch.log(1 + at) for at in weights] if activation == "log1p_relu" else weights)
        rows.append(weights.max(0).values if pooling == "max" else weights.sum(0))
    return torch.stack(rows)


@torch.no_grad()
def plain_vectors(model: nn.Module, tokenizer, texts: list[str], longest: int | None = None, **kind: str) -> Tensor:
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return vectors(model(**inputs).logits, inputs["attention_mask"], **kind)


def plain_scores(model: nn.Module, tokenizer, queries, texts, longest=None, **kind: str) -> np.ndarray:
    sides = (plain_vectors(model, tokenizer, side, longest, **kind) for side in (queries, texts))
    return torch.linalg.vecdot(*sides).numpy()


@cache
def make(architecture: str, side: str = "document", kind: str = "max") -> Case:
    model, made = masked_lm(architecture)
    ranker = Splade((model, made), **KINDS[kind])

    def reference(slow: nn.Module, context: str) -> Reference:
        fixed = plain_vectors(slow, made, [context], **KINDS[kind])[0]

        def score(out, inputs: Inputs) -> Tensor:
            return vectors(out.logits, inputs["attention_mask"], **KINDS[kind]) @ fixed

        return Reference(slow, score)

    return case_of(ranker, side, reference)


@pytest.fixture(scope="module")
def ranker() -> Splade:
    return Splade(masked_lm("bert"))


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = zip(QUERIES[:4], TEXTS[:4], strict=True)
    return pd.DataFrame([{"qid": str(i), "query": q, "docno": f"d{i}", "text": t} for i, (q, t) in enumerate(rows)])


# Scores


@pytest.mark.parametrize("max_length", [None, 24])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_the_plain_formula(architecture, max_length):
    loaded = masked_lm(architecture)
    for kind in KINDS.values():
        found = Splade(loaded, max_length=max_length, **kind).score(QUERIES_AND_LONG, TEXTS_AND_LONG)
        assert_same(found, plain_scores(*loaded, QUERIES_AND_LONG, TEXTS_AND_LONG, max_length, **kind))


def saved(directory, pooling: str = "max", activation: str = "relu", prompts=None, **lengths) -> SparseEncoder:
    """A sparse encoder of sentence-transformers, as it loads itself from a directory."""
    for part in masked_lm("distilbert"):
        part.save_pretrained(directory / "plain")
    head = Transformer(str(directory / "plain"), transformer_task="fill-mask", **lengths)
    pooled = SpladePooling(pooling_strategy=pooling, activation_function=activation)
    SparseEncoder(modules=[head, pooled], prompts=prompts, device="cpu").save(str(directory / "sparse"))
    return SparseEncoder(str(directory / "sparse"), device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "sum", "activation": "log1p_relu"},
        {"max_seq_length": 30, "prompts": {"query": "heat house: ", "document": "day "}},
    ],
    ids=["max", "sum", "prompts"],
)
def test_a_directory_is_read_as_sentence_transformers_reads_it(tmp_path, settings):
    encoder = saved(tmp_path, **settings)
    ranker = Splade(tmp_path / "sparse", device="cpu")
    as_they_are = {"convert_to_sparse_tensor": False}
    queries = encoder.encode_query(QUERIES_AND_LONG, **as_they_are)
    texts = encoder.encode_document(TEXTS_AND_LONG, **as_they_are)
    found = ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG)
    assert_same(found, encoder.similarity(queries, texts).diagonal().numpy())
    assert (ranker.pooling, ranker.activation) == (settings.get("pooling", "max"), settings.get("activation", "relu"))
    for side, given, made in (("document", TEXTS_AND_LONG, texts), ("query", QUERIES_AND_LONG, queries)):
        terms = ranker.facing(side).expand(given)
        numbers = ranker.tokenizer.convert_tokens_to_ids(terms["term"].tolist())
        dense = torch.zeros_like(made)
        dense[terms["text"].tolist(), numbers] = torch.tensor(terms["weight"].to_numpy())
        assert_same(dense.numpy(), made.numpy())


def test_a_checkpoint_of_the_older_module_is_read_alike(tmp_path):
    expected_scores = Splade(masked_lm("distilbert")).score(QUERIES, TEXTS)
    saved(tmp_path)
    path = tmp_path / "sparse" / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["type"] = "sentence_transformers.sparse_encoder.models.MLMTransformer.MLMTransformer"
    path.write_text(json.dumps(modules))
    assert_same(Splade(str(tmp_path / "sparse"), device="cpu").score(QUERIES, TEXTS), expected_scores)


def test_a_plain_checkpoint_pools_by_the_maximum(tmp_path):
    for part in masked_lm("bert"):
        part.save_pretrained(tmp_path)
    assert_same(Splade(tmp_path).score(QUERIES, TEXTS), plain_scores(*masked_lm("bert"), QUERIES, TEXTS))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch(ranker, batch_size):
    assert_same(ranker.score(QUERIES, TEXTS, batch_size=batch_size), ranker.score(QUERIES, TEXTS))
    assert ranker.score([], []).shape == (0,)


def test_logits_are_computed_in_parts(ranker, monkeypatch):
    wanted = ranker.score(QUERIES, TEXTS)
    monkeypatch.setattr("pyterrier_mechir.rankers.splade._ELEMENTS", 1)
    assert_same(ranker.score(QUERIES, TEXTS), wanted)


def test_a_query_without_terms_scores_nothing():
    model, made = masked_lm("bert")
    with torch.no_grad():
        model.get_output_embeddings().bias -= 1000
    assert (Splade((model, made)).score(QUERIES, TEXTS) == 0).all()


def test_reduced_precision_stays_close(ranker):
    model, made = masked_lm("bert")
    found = Splade((model.to(torch.bfloat16), made)).score(QUERIES, TEXTS)
    np.testing.assert_allclose(found, ranker.score(QUERIES, TEXTS), rtol=0.1)


class Doubled(nn.Module):
    """A masked language model whose logits are twice what its vocabulary projection gives."""

    def __init__(self):
        super().__init__()
        self.inner, _ = masked_lm("bert")

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name in ("inner", "_modules") else getattr(self.inner, name)

    def forward(self, **inputs: Tensor):
        out = self.inner(**inputs)
        out.logits = out.logits * 2
        return out


def test_a_model_whose_logits_are_not_just_a_projection_is_scored_as_it_is():
    ranker = Splade((Doubled(), tokenizer("bert")))
    assert ranker._decoder is None
    assert_same(ranker.score(QUERIES, TEXTS), plain_scores(Doubled(), tokenizer("bert"), QUERIES, TEXTS))


# Two encoders


def test_queries_may_have_an_encoder_of_their_own(frame):
    documents, queries = masked_lm("bert"), masked_lm("distilbert")
    ranker = Splade(documents, query_model=queries, max_query_length=17, max_length=30)
    sides = plain_vectors(*queries, QUERIES_AND_LONG, 17), plain_vectors(*documents, TEXTS_AND_LONG, 30)
    assert_same(ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG), torch.linalg.vecdot(*sides).numpy())
    facing = ranker.facing("query")
    assert (facing.model, facing.max_length, facing.max_query_length) == (queries[0], 17, 30)
    assert facing.facing("document") == ranker
    assert_same(facing.score(QUERIES, TEXTS), ranker.score(QUERIES, TEXTS))
    assert ranker != Splade(documents, max_query_length=17, max_length=30)
    assert ranker.about(fingerprint=True)["weights"] != Splade(documents).about(fingerprint=True)["weights"]
    out = (PerturbQueries(Typos()) >> PatchScorer(ranker, "resid_pre", layers=[0]))(frame)
    assert_same(np.stack(list(out["patch_scores"]))[:, 0], out["score_perturbed"].to_numpy())


def test_encoders_of_different_vocabularies_are_an_error():
    with pytest.raises(ValueError, match="different vocabularies"):
        Splade(masked_lm("bert"), query_model=masked_lm("roberta"))


def test_a_query_encoder_of_another_size_can_be_scored_but_not_patched(frame):
    ranker = Splade(masked_lm("bert"), query_model=masked_lm("bert", num_hidden_layers=2))
    perturbed = PerturbQueries(Typos())(frame)
    assert PairScorer(ranker)(perturbed)["score_perturbed"].notna().all()
    with pytest.raises(ValueError, match="cannot patch queries"):
        PatchScorer(ranker)(perturbed)


# Patches


@pytest.mark.parametrize(("architecture", "side"), CASES)
def test_every_site_is_exact_in_both_directions(architecture, side):
    assert_exact(make(architecture, side), batch_size=4 if side == "document" else None)


@pytest.mark.parametrize("side", SIDES)
def test_every_site_is_exact_with_summed_vectors(side):
    assert_exact(make("distilbert", side, "sum"), batch_size=None)


@pytest.mark.parametrize("positions", ["each", "class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize(("architecture", "side"), [("bert", "document"), ("modernbert", "query")])
def test_every_slot_is_exact(architecture, side, positions):
    rows = (1, 3) if positions == "each" else (0, 1, 2)
    assert_slots(make(architecture, side), positions, rows)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ["bert", "electra", "modernbert"])
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(architecture, side):
    assert_moves(make(architecture, side))


@pytest.mark.parametrize("side", SIDES)
def test_the_laws_of_patching_hold(side):
    case = make("bert", side)
    sites = [site for site in all_sites(case.ranker) if site.component != "pattern"]
    same = case._replace(pairs=[replace(pair, perturbed=pair.baseline) for pair in case.pairs])
    itself = patch(same, sites)
    for scores in (itself.denoise, itself.noise):
        assert_same(scores, np.broadcast_to(itself.baseline[:, None], scores.shape))
    unmasked = [row for row, pair in enumerate(case.pairs) if pair.is_open.all()]
    whole = patch(case, [Site("resid_pre", 0)], rows=unmasked)
    assert_same(whole.denoise[:, 0], whole.perturbed)
    assert_same(whole.noise[:, 0], whole.baseline)
    together = patch(case, sites, batch_size=len(case.pairs))
    for row in range(len(case.pairs)):
        alone = patch(case, sites, rows=[row])
        assert_same(alone.denoise[0], together.denoise[row])
        assert_same(alone.noise[0], together.noise[row])


@pytest.mark.bits
def test_a_sweep_never_computes_the_whole_vocabulary(monkeypatch):
    model, made = masked_lm("bert")
    with torch.no_grad():
        model.get_output_embeddings().bias -= 1
    ranker = Splade((model, made))
    queries, baselines, perturbed, alignments = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    inputs = ranker.query_inputs(unique(queries)[0])
    n_terms = int(inputs["query_terms"].unique().numel())
    assert n_terms not in (32, 48) and n_terms < 0.6 * model.config.vocab_size
    widths = []
    plain = torch.nn.functional.linear

    def seen(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        widths.append(len(weight))
        return plain(states, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", seen)
    monkeypatch.setattr(products, "_is_supported", lambda precision: False)
    sweep(ranker, pairs, inputs, Plan([Site("head", 1, 2), Site("resid_post", 2)], batch_size=len(pairs)))
    assert set(widths) == {32, 48, n_terms}


@pytest.mark.parametrize("side", SIDES)
def test_estimates_are_those_of_the_plain_model(side):
    case = make("bert", side)
    sites = [parse_site(name) for name in ("L0H1", "L1H2.q", "L2.mlp_out", "L1N7", "L2.resid_pre", "embed")]
    found = patch(case, sites, method="attribution", direction="denoise")
    references = [PairReference(one.reference, case.ranker.tokenizer, {}) for one in case.references]
    plain = GradientCase(case.ranker, case.pairs, references)
    for row in range(len(case.pairs)):
        wanted = estimated(plain, fixed, row, False, sites)[:, 0]
        assert_near(found.denoise[row], wanted, least=max(1, abs(found.baseline[row])))


# Pipelines


def test_documents_and_queries_go_through_pipelines(ranker, frame):
    heads = (PerturbDocs(TFC1()) >> PatchScorer(ranker) >> AggregateHeads(by=None, n_boot=20))(frame)
    assert len(heads) == ranker.n_layers * ranker.n_heads
    assert heads["score"].notna().all() and heads["n_pairs"].eq(4).all()
    out = (PerturbQueries(Typos()) >> PatchScorer(ranker, "resid_pre", layers=[0], min_delta=0))(frame)
    assert_near_effects(np.stack(list(out["patch_effect"]))[:, 0], 1, out)
    assert_same(out["score"].to_numpy(), ranker.score(frame["query"], frame["text"]))
    assert_same(AttentionPatterns(ranker, heads=["L1H2"])(frame)["score"].to_numpy(), out["score"].to_numpy())


def test_each_layer_can_be_read_by_the_head_of_the_model(ranker, frame):
    out = ScoreLens(ranker)(frame)
    scores = np.stack(list(out["layer_scores"]))
    assert_same(scores[:, -1], out["score"].to_numpy())
    model, made = masked_lm("bert")
    for row, (query, text) in enumerate(zip(frame["query"], frame["text"], strict=True)):
        inputs = made(text, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
            of_layers = [vectors(model.cls(state), inputs["attention_mask"])[0] for state in states]
        wanted = [(of_layer @ plain_vectors(model, made, [query])[0]).item() for of_layer in of_layers]
        assert_same(scores[row], np.array(wanted))


def test_the_settings_tell_rankers_apart():
    loaded = masked_lm("bert")
    ranker = Splade(loaded)
    assert ranker == Splade(loaded) and hash(ranker) == hash(Splade(loaded))
    assert len({ranker, Splade(loaded, pooling="sum"), Splade(loaded, max_query_length=9)}) == 3
    assert repr(ranker) == "Splade('BertForMaskedLM')"
    about = ranker.about()
    assert (about["ranker"], about["pooling"], about["activation"]) == ("Splade", "max", "relu")
    assert ranker.facing("query").facing("document") == ranker


# Expansion


def test_an_expansion_names_the_terms_of_greatest_weight(ranker):
    frame = ranker.expand(TEXTS, k=5)
    assert list(frame.columns) == ["text", "term", "weight"]
    wanted = plain_vectors(*masked_lm("bert"), TEXTS).topk(5)
    assert frame["text"].tolist() == np.repeat(np.arange(len(TEXTS)), 5).tolist()
    assert_same(frame["weight"].to_numpy(), wanted.values.flatten().numpy())
    assert frame["term"].tolist() == tokenizer("bert").convert_ids_to_tokens(wanted.indices.flatten().tolist())
    assert ranker.expand([]).columns.tolist() == ["text", "term", "weight"] and not len(ranker.expand([]))


# Weights of single terms

TERM = "does"


@cache
def weighed(architecture: str, side: str) -> Case:
    """Pairs whose score is the weight of a term, and the same of the plain model."""
    model, made = masked_lm(architecture)
    ranker = Splade((model, made))
    (number,) = ranker.vocabulary.pieces([TERM])[0]

    def reference(slow: nn.Module, context: str) -> Reference:
        return Reference(slow, lambda out, inputs: vectors(out.logits, inputs["attention_mask"])[:, number])

    case = case_of(ranker, side, reference)
    _, pairs, inputs = TermWeight(TERM).observed(case.ranker, case.pairs, case.contexts)
    return case._replace(pairs=pairs, inputs=inputs)


@pytest.mark.parametrize(("architecture", "side"), [("bert", "document"), ("distilbert", "query")])
def test_the_weight_of_a_term_is_that_of_the_plain_model(architecture, side):
    case = weighed(architecture, side)
    assert_exact(case, batch_size=None)
    assert any(one.reference.score(one.perturbed) > 0.1 for one in case.references)


@pytest.mark.parametrize("receivers", [["final"], ["L2H1.v", "L2H3.q"]], ids=str)
def test_paths_may_end_at_the_weight_of_a_term(receivers):
    case = weighed("bert", "document")
    senders = ["L0H1", "L1H2", "L1.mlp_out"]
    found = patch(case, [parse_site(name) for name in senders], "denoise", receivers=receivers)
    for row in (0, 1, 3):
        target, source = case.runs(row, noise=False)
        reference = case.references[row].reference
        assert_same(found.denoise[row], path_patched(reference, target, source, senders, receivers))


def test_the_stage_measures_a_term_and_ranks_by_score(ranker, frame):
    rows = PerturbDocs(TFC1())(frame)
    term = ranker.expand([rows["text_perturbed"].iloc[0]], k=1)["term"].iloc[0]
    stage = PatchScorer(ranker, metric=TermWeight(term), receivers="final", layers=[2], min_delta=0)
    out = stage(rows)
    number = ranker.tokenizer.convert_tokens_to_ids(term)
    plain = plain_vectors(*masked_lm("bert"), rows["text_perturbed"].tolist())[:, number]
    assert_same(out["score_perturbed"].to_numpy(), plain.numpy())
    assert_same(out["score"].to_numpy(), ranker.score(frame["query"], frame["text"]))
    assert out.attrs["mechir"]["metric"] == f"TermWeight(term={term!r})"
    assert stage == PatchScorer(ranker, metric=TermWeight(term), receivers="final", layers=[2], min_delta=0)
    of_query = (PerturbQueries(Typos()) >> PatchScorer(ranker, metric=TermWeight(term)))(frame)
    queries = PerturbQueries(Typos())(frame)["query_perturbed"].tolist()
    assert_same(of_query["score_perturbed"].to_numpy(), plain_vectors(*masked_lm("bert"), queries)[:, number].numpy())


@pytest.mark.parametrize(
    ("term", "found"), [("echoes", "echo, ##es"), ("東", "[UNK]"), ("", "none"), ("heat pump", "heat, pump")]
)
def test_a_term_that_is_not_one_token_is_an_error(ranker, term, found):
    with pytest.raises(ValueError, match=f"not a single token of the vocabulary .*but {re.escape(found)}"):
        PatchScorer(ranker, metric=TermWeight(term))


@pytest.mark.parametrize("term", ["##ight", "[SEP]", "heat", "Heat"])
def test_a_token_of_the_vocabulary_is_a_term(ranker, term):
    assert ranker.term_inputs(term)["query_terms"].item() == tokenizer("bert").convert_tokens_to_ids(
        term.lower() if term == "Heat" else term
    )


def test_rankers_without_a_vector_over_the_vocabulary_have_no_weights_of_terms():
    with pytest.raises(ValueError, match="no vector over the vocabulary"):
        PatchScorer(BiEncoder(build("bert", classifier=False)), metric=TermWeight("heat"))


# What cannot be


@pytest.mark.parametrize("classifier", [False, True])
def test_a_model_without_a_head_over_the_vocabulary_is_an_error(classifier):
    with pytest.raises(ValueError, match="no logits over the vocabulary"):
        Splade(build("bert", classifier))


@pytest.mark.parametrize("settings", [{"pooling": "mean"}, {"activation": "gelu"}])
def test_unknown_settings_are_errors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Splade(masked_lm("bert"), **settings)


def test_a_dense_checkpoint_and_another_similarity_are_errors(tmp_path):
    saved(tmp_path)
    path = tmp_path / "sparse" / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"similarity_fn_name": "cosine"}))
    with pytest.raises(ValueError, match="compares by cosine"):
        Splade(tmp_path / "sparse")
    with pytest.raises(ValueError, match="'SpladePooling', which BiEncoder does not compute"):
        BiEncoder(str(tmp_path / "sparse"))
