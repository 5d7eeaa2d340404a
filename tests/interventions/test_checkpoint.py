"""A saved checkpoint scores as the edited ranker does: by its class, by transformers and by sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from saved import PAIRS, assert_read_back, edited
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import assert_near
from torch import nn

from pyterrier_mechir import (
    Ablate,
    BiEncoder,
    ColBERT,
    CrossEncoder,
    GenerativeReranker,
    MonoT5,
    Scale,
    Splade,
    check_ranker,
    load_ranker,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATE = "Query: {query} Document: {document} Relevant:"


def without_biases(ranker: Any) -> Any:
    return ranker.edited([Scale("L0H1", 0.3), Ablate("L1.mlp_out"), Scale("L1N3", 2.0)])


def by_library(model: Any) -> np.ndarray:
    found = model.similarity_pairwise(model.encode_query(QUERIES), model.encode_document(TEXTS))
    return (found.to_dense() if found.is_sparse else found).cpu().numpy()


# Bi-encoders


def sentence(
    tmp_path: Path, *more: nn.Module, architecture: str = "bert", pooling: str = "mean", **options: Any
) -> Any:
    for part in build(architecture, False):
        part.save_pretrained(tmp_path / "plain")
    torch.manual_seed(1)
    modules = [Transformer(str(tmp_path / "plain")), Pooling(32, pooling), *more]
    return SentenceTransformer(modules=modules, device="cpu", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean", "similarity": "cosine"},
        {"pooling": "cls", "similarity": "dot", "query_prefix": "why ", "doc_prefix": "the moon "},
        {"pooling": "last", "similarity": "euclidean", "max_length": 20, "max_query_length": 6},
        {"pooling": "mean", "similarity": "manhattan", "max_length": 9, "max_query_length": 14},
    ],
    ids=lambda options: options["similarity"],
)
def test_a_loaded_model_becomes_a_sentence_transformer_with_all_settings(options, tmp_path):
    plain = BiEncoder(build("bert", False), **options)
    before, ranker = plain.about(fingerprint=True), edited(plain)
    assert ranker.save_pretrained(tmp_path / "made") == tmp_path / "made"
    wanted = ranker.score(QUERIES, TEXTS)
    assert_near(by_library(SentenceTransformer(str(tmp_path / "made"), device="cpu")), wanted)
    assert_near(BiEncoder(tmp_path / "made").score(QUERIES, TEXTS), wanted)
    assert_read_back(ranker, tmp_path / "made")
    assert plain.about(fingerprint=True) == before
    assert np.abs(wanted - plain.score(QUERIES, TEXTS)).max() > 1e-3


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ([Normalize()], {}),
        ([Dense(32, 12, activation_function=nn.GELU()), LayerNorm(12)], {"similarity_fn_name": "dot"}),
        ([Dense(32, 12, bias=False, use_residual=True), Normalize()], {"truncate_dim": 5}),
        ([Normalize(), Dense(32, 12)], {"similarity_fn_name": "manhattan", "truncate_dim": 7}),
    ],
    ids=["normalised", "ANCE", "residual cut", "distance cut"],
)
@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "directory"])
def test_what_comes_after_the_pooling_is_written(more, options, loaded, tmp_path):
    model = sentence(tmp_path, *more, **options, prompts={"query": "why ", "document": ""})
    if not loaded:
        model.save_pretrained(str(tmp_path / "first"), create_model_card=False)
    ranker = edited(BiEncoder(model if loaded else tmp_path / "first"))
    ranker.save_pretrained(tmp_path / "made")
    wanted = ranker.score(QUERIES, TEXTS)
    assert_near(by_library(SentenceTransformer(str(tmp_path / "made"), device="cpu")), wanted)
    assert_read_back(ranker, tmp_path / "made")


@pytest.mark.parametrize("name", ["modernbert", "roberta", "t5", "llama", "gemma2"])
def test_other_architectures_become_sentence_transformers(name, tmp_path):
    options = {"pooling": "mean", "similarity": "cosine"}
    if name == "t5":
        ranker = without_biases(BiEncoder(build_t5("t5", "T5EncoderModel"), **options))
    elif name in ("llama", "gemma2"):
        ranker = BiEncoder(build_decoder(name), **options | {"pooling": "last"})
        ranker = edited(ranker) if name == "llama" else without_biases(ranker)
    else:
        ranker = edited(BiEncoder(build(name, False), **options))
    ranker.save_pretrained(tmp_path / "made")
    eagerly = {"model_kwargs": {"attn_implementation": "eager"}} if name == "gemma2" else {}
    assert ('model_kwargs={"attn_implementation": "eager"}' in (tmp_path / "made" / "README.md").read_text()) is bool(
        eagerly
    )
    made = SentenceTransformer(str(tmp_path / "made"), device="cpu", **eagerly)
    assert_near(by_library(made), ranker.score(QUERIES, TEXTS))
    assert_read_back(ranker, tmp_path / "made")


def test_lowercased_text_stays_lowercased(tmp_path):
    model = sentence(tmp_path, architecture="roberta")
    model[0].do_lower_case = True
    ranker = edited(BiEncoder(model, similarity="cosine"))
    ranker.save_pretrained(tmp_path / "made")
    upper = [text.upper() for text in TEXTS]
    made = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    found = made.similarity_pairwise(made.encode_query(QUERIES), made.encode_document(upper)).numpy()
    assert_near(found, ranker.score(QUERIES, upper))


# Two encoders


@pytest.mark.parametrize("side", ["query", "document"])
def test_one_side_becomes_a_router_that_is_read_back(side, tmp_path):
    options = {"max_length": 20, "max_query_length": 6, "query_prefix": "why "}
    plain = BiEncoder(build("bert", False), pooling="mean", similarity="cosine", **options)
    ranker, both = edited(plain, side), edited(plain)
    wanted = ranker.score(QUERIES, TEXTS)
    assert np.abs(wanted - both.score(QUERIES, TEXTS)).max() > 1e-3
    ranker.save_pretrained(tmp_path / "made")
    library = SentenceTransformer(str(tmp_path / "made"), device="cpu")
    assert_near(by_library(library), wanted)
    for read in (BiEncoder(tmp_path / "made"), BiEncoder(library), assert_read_back(ranker, tmp_path / "made")):
        assert_near(read.score(QUERIES, TEXTS), wanted)
        of_document, of_query = read.model.state_dict(), read.facing("query").model.state_dict()
        untouched, changed = (of_query, of_document) if side == "document" else (of_document, of_query)
        before = plain.model.state_dict()
        assert all(torch.equal(untouched[name], weight) for name, weight in before.items())
        assert not all(torch.equal(changed[name], weight) for name, weight in before.items())


def test_a_router_may_be_edited_and_patched_like_any_other(tmp_path):
    from pyterrier_mechir import PatchScorer

    plain = BiEncoder(build("bert", False), pooling="mean")
    ranker = plain.edited([Scale("L0H1", 0.3)], "query")
    read = BiEncoder(ranker.save_pretrained(tmp_path / "a"))
    twice, wanted = edited(read, "document"), edited(ranker, "document")
    assert_near(twice.score(QUERIES, TEXTS), wanted.score(QUERIES, TEXTS))
    assert_near(BiEncoder(twice.save_pretrained(tmp_path / "b")).score(QUERIES, TEXTS), wanted.score(QUERIES, TEXTS))
    with pytest.raises(ValueError, match="encodes queries otherwise than documents"):
        read.bake()
    rows = [("q", *pair, f"d{i}") for i, pair in enumerate(PAIRS[:2])]
    frame = pd.DataFrame(rows, columns=["qid", "query", "text", "docno"])
    found, same = (PatchScorer(one, min_delta=0)(frame) for one in (read, ranker))
    for name in ("patch_scores", "score_perturbed"):
        assert_near(np.stack(found[name].tolist()), np.stack(same[name].tolist()))
    assert check_ranker(read, frame).passed
    weights = [one.about(fingerprint=True)["weights"] for one in (read, plain)]
    assert weights[0] != weights[1]


def altered(directory: Path, change: Any) -> Path:
    file = directory / "router_config.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    return directory


@pytest.mark.parametrize("kind", ["third route", "mapped", "pooled apart"])
def test_other_routers_stay_refused(kind, tmp_path):
    ranker = BiEncoder(build("bert", False)).edited([Scale("L0H1", 0.3)], "query")
    directory = ranker.save_pretrained(tmp_path / "made")
    message = "module 'Router'"
    if kind == "third route":
        altered(directory, lambda told: told["structure"].update(other=["query_0_Transformer", "query_1_Pooling"]))
    elif kind == "mapped":
        altered(directory, lambda told: told["parameters"].update(route_mappings={"('query', 'text')": "document"}))
    else:
        message = "pooled, projected or lower-cased differently"
        altered(directory, lambda told: told["types"].update(other_1_Pooling=told["types"]["query_1_Pooling"]))
        altered(directory, lambda told: told["structure"].update(query=["query_0_Transformer", "other_1_Pooling"]))
        (directory / "other_1_Pooling").mkdir()
        (directory / "other_1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    with pytest.raises(ValueError, match=message):
        BiEncoder(directory)


def test_a_router_of_encoders_of_different_sizes_is_refused(tmp_path):
    ranker = BiEncoder(build("bert", False)).edited([Scale("L0H1", 0.3)], "query")
    directory = ranker.save_pretrained(tmp_path / "made")
    for part in build("bert", False, num_hidden_layers=2):
        part.save_pretrained(directory / "query_0_Transformer")
    with pytest.raises(ValueError, match="encodes queries by another architecture, or by other tokens"):
        BiEncoder(directory)


# Splade and ColBERT


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
@pytest.mark.parametrize("options", [{}, {"pooling": "sum", "activation": "log1p_relu", "query_prefix": "why "}])
def test_a_sparse_encoder(architecture, options, tmp_path):
    ranker = edited(Splade(masked_lm(architecture), max_query_length=8, **options)).edited([Scale("embed", 0.8)])
    ranker.save_pretrained(tmp_path / "made")
    assert_near(by_library(SparseEncoder(str(tmp_path / "made"), device="cpu")), ranker.score(QUERIES, TEXTS))
    assert_read_back(ranker, tmp_path / "made")


@pytest.mark.parametrize(
    "options",
    [
        {"query_marker": "[unused0]", "doc_marker": "[unused1]"},
        {"query_marker": "", "doc_marker": "", "query_length": 9, "attend_to_masks": True, "mask_punctuation": False},
        {"query_marker": "[unused0]", "doc_marker": "", "expand_queries": False, "query_length": 7, "max_length": 20},
    ],
    ids=["as published", "attending", "without masks"],
)
def test_late_interaction_is_read_by_sentence_transformers(options, tmp_path):
    model, tokenizer = build("bert", False, vocab_size=200)
    tokenizer = type(tokenizer).from_pretrained(saved_tokenizer(tokenizer, tmp_path / "tokens"))
    tokenizer.add_tokens(["[unused0]", "[unused1]"], special_tokens=True)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    ranker = edited(ColBERT((model, tokenizer), projection=weight, **options))
    ranker.save_pretrained(tmp_path / "made")
    assert_near(by_library(MultiVectorEncoder(str(tmp_path / "made"), device="cpu")), ranker.score(QUERIES, TEXTS))
    assert_read_back(ranker, tmp_path / "made")


def saved_tokenizer(tokenizer: Any, directory: Path) -> Path:
    tokenizer.save_pretrained(directory)
    return directory


def test_queries_that_are_filled_up_to_another_length_stay_so(tmp_path):
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    for part in build("bert", False):
        part.save_pretrained(tmp_path / "plain")
    places = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    torch.manual_seed(2)
    modules = [
        Transformer(str(tmp_path / "plain"), query_expansion={"strategy": "min", "length": 8}, query_length=10),
        Dense(32, 8, bias=False, activation_function=nn.Identity(), **places),
        MultiVectorMask(skiplist_words=["day", "."]),
        Normalize(**places),
    ]
    ranker = edited(ColBERT(MultiVectorEncoder(modules=modules, device="cpu")))
    ranker.save_pretrained(tmp_path / "made")
    assert_near(by_library(MultiVectorEncoder(str(tmp_path / "made"), device="cpu")), ranker.score(QUERIES, TEXTS))
    assert_read_back(ranker, tmp_path / "made")


@pytest.mark.parametrize("made", [Splade, ColBERT])
def test_one_side_of_an_encoder_without_routers_is_refused(made, tmp_path):
    ranker = (
        Splade(masked_lm("bert"))
        if made is Splade
        else ColBERT(build("bert", False), projection=torch.eye(8, 32), query_marker="", doc_marker="")
    )
    with pytest.raises(ValueError, match=r"has one encoder for queries and documents; edit both sides alike"):
        edited(ranker, "query").save_pretrained(tmp_path / "made")
    assert not list(tmp_path.iterdir())


# Query and document read together


@pytest.mark.parametrize("architecture", ["bert", "electra", "modernbert"])
def test_a_cross_encoder(architecture, tmp_path):
    ranker = edited(CrossEncoder(build(architecture, True)))
    ranker.save_pretrained(tmp_path / "made")
    assert not (tmp_path / "made" / "modules.json").exists()
    made = SentenceCrossEncoder(str(tmp_path / "made"), device="cpu")
    assert_near(made.predict(PAIRS, activation_fn=nn.Identity()), ranker.score(QUERIES, TEXTS))
    assert_read_back(ranker, tmp_path / "made")


def test_the_prompt_the_length_and_the_activation_of_a_cross_encoder_stay(tmp_path):
    for part in build("bert", True):
        part.save_pretrained(tmp_path / "plain")
    options = {"prompts": {"r": "why "}, "default_prompt_name": "r", "activation_fn": nn.Tanh(), "max_length": 30}
    SentenceCrossEncoder(str(tmp_path / "plain"), device="cpu", **options).save_pretrained(str(tmp_path / "first"))
    ranker = edited(CrossEncoder(tmp_path / "first", max_length=20))
    ranker.save_pretrained(tmp_path / "made")
    made = SentenceCrossEncoder(str(tmp_path / "made"), device="cpu")
    assert_near(made.predict(PAIRS), np.tanh(ranker.score(QUERIES, TEXTS)))
    assert_read_back(ranker, tmp_path / "made")


def test_two_labels_and_their_margin_stay(tmp_path):
    ranker = edited(CrossEncoder(build("bert", True, num_labels=2), relevant_label=0, score="logit"))
    ranker.save_pretrained(tmp_path / "made")
    read = assert_read_back(ranker, tmp_path / "made")
    assert read.score_type == "logit" and read.relevant_label == 0
    model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "made").eval()
    tokens = tf.AutoTokenizer.from_pretrained(tmp_path / "made")(
        QUERIES, TEXTS, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert_near(model(**tokens).logits[:, 0].numpy(), ranker.score(QUERIES, TEXTS))


def test_both_stacks_of_mono_t5(tmp_path):
    ranker = without_biases(MonoT5(build_t5(), false="no", true="yes")).on("decoder")
    ranker = ranker.edited([Scale("L0H1.cross", 0.2), Ablate("L1H0")])
    ranker.save_pretrained(tmp_path / "made")
    assert_read_back(ranker, tmp_path / "made")
    model = tf.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "made").eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "made")
    wanted = []
    for query, text in PAIRS:
        tokens = tokenizer(f"Query: {query} Document: {text} Relevant:", return_tensors="pt")
        with torch.no_grad():
            logits = model(**tokens, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
        wanted.append(float(logits[yes] - logits[no]))
    assert_near(ranker.score(QUERIES, TEXTS), wanted)


@pytest.mark.parametrize("head", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_a_generative_reranker(head, tmp_path):
    answers = {"yes": 5, "no": 7} if "Causal" in head else {}
    ranker = edited(GenerativeReranker(build_decoder("llama", head), template=TEMPLATE, **answers))
    ranker.save_pretrained(tmp_path / "made")
    assert_read_back(ranker, tmp_path / "made")


def test_a_cross_encoder_of_a_language_model_stays_one(tmp_path):
    from sentence_transformers.cross_encoder.modules import LogitScore

    model, tokenizer = build_decoder("qwen2", "AutoModelForCausalLM")
    tokenizer = type(tokenizer).from_pretrained(saved_tokenizer(tokenizer, tmp_path / "tokens"))
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'query' %}Query: {{ message['content'] }}"
        "{% else %}\nDocument: {{ message['content'] }}{% endif %}{% endfor %}\nyes or no:"
    )
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "plain")
    encoder = Transformer(str(tmp_path / "plain"), transformer_task="text-generation")
    library = SentenceCrossEncoder(modules=[encoder, LogitScore(5, 7)], device="cpu")
    library.save_pretrained(str(tmp_path / "first"))
    plain = load_ranker(tmp_path / "first", verbose=False)
    assert_near(plain.score(QUERIES, TEXTS), library.predict(PAIRS, activation_fn=nn.Identity()), 1e-4)
    ranker = without_biases(plain)
    ranker.save_pretrained(tmp_path / "made")
    made = SentenceCrossEncoder(str(tmp_path / "made"), device="cpu")
    assert_near(made.predict(PAIRS, activation_fn=nn.Identity()), ranker.score(QUERIES, TEXTS), 1e-4)
    assert_read_back(ranker, tmp_path / "made")
