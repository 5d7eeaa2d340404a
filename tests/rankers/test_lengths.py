"""A length, a vocabulary or a text that a model cannot take is one sentence, whatever the ranker."""

from __future__ import annotations

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tokenizers import Tokenizer
from tolerance import assert_near, assert_near_effects

from pyterrier_mechir import (
    BiEncoder,
    ColBERT,
    CrossEncoder,
    GenerativeReranker,
    MonoT5,
    PatchScorer,
    PerturbDocs,
    ScoreLens,
    Splade,
)
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.lengths import n_positions

pytestmark = pytest.mark.usefixtures("one_thread")

LM = "AutoModelForCausalLM"
PROMPT = "Query: {query} Document: {document} yes or no:"
OPTIONS = {
    ColBERT: {
        "projection": torch.randn(8, 32, generator=torch.manual_seed(0)),
        "query_marker": "",
        "doc_marker": "",
    },
    GenerativeReranker: {"template": PROMPT},
}
LOADED = {
    BiEncoder: build("bert", False),
    CrossEncoder: build("roberta", True),
    Splade: masked_lm("distilbert"),
    ColBERT: build("mpnet", False),
    MonoT5: build_t5(),
    GenerativeReranker: build_decoder("llama", LM),
}
FAMILIES = list(LOADED)


def made(family, loaded=None, **options):
    return family(loaded or LOADED[family], **OPTIONS.get(family, {}), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [0, -5, 2, 2.5, 64.0, "64", True, np.True_, [64]])
def test_a_length_that_leaves_no_text_or_is_no_number_is_one_sentence(family, value):
    with pytest.raises((ValueError, TypeError), match="max_length is") as error:
        made(family, max_length=value)
    assert "\n" not in str(error.value) and "give" in str(error.value)


@pytest.mark.parametrize("family", [BiEncoder, CrossEncoder, Splade, ColBERT])
def test_a_length_beyond_the_models_positions_is_refused_and_the_last_is_taken(family):
    positions = n_positions(LOADED[family][0])
    assert positions == 160 - 2 * (family in (CrossEncoder, ColBERT))
    with pytest.raises(ValueError, match=f"max_length is {positions + 1}.* give at most {positions}"):
        made(family, max_length=positions + 1)
    ranker = made(family, max_length=np.int64(positions))
    assert type(ranker.max_length) is int and np.isfinite(ranker.score(QUERIES[:1], [" ".join(TEXTS * 3)])).all()


@pytest.mark.parametrize("family", [MonoT5, GenerativeReranker])
def test_relative_and_rotary_positions_have_no_end(family):
    assert made(family, max_length=5000).max_length == 5000


@pytest.mark.parametrize("name", ["max_query_length", "query_length"])
@pytest.mark.parametrize("value", [0, -1, 2, 400, 7.5, "9"])
def test_lengths_of_queries_are_checked_too(name, value):
    family = BiEncoder if name == "max_query_length" else ColBERT
    with pytest.raises((ValueError, TypeError), match="query_length is"):
        made(family, **{name: value})


def test_a_prompt_that_is_longer_than_the_model_takes_is_refused():
    with pytest.raises(ValueError, match=r"max_length is 8, but GenerativeReranker puts \d+ tokens of its own"):
        made(GenerativeReranker, max_length=8)


# Vocabularies


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused_until_they_are_resized(family):
    model, tokenizer = copy.deepcopy(LOADED[family])
    tokenizer.add_tokens(["moonlight"])
    with pytest.raises(ValueError, match=r"embeddings; resize them with model.resize_token_embeddings\(\d+\)"):
        made(family, (model, tokenizer))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert np.isfinite(made(family, (model, tokenizer)).score(["moonlight"], ["the moonlight"])).all()


def with_holes(tokenizer, step: int):
    """The tokenizer with ids that no token has, after the first hundred tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: n + (step if n > 100 else 0) for token, n in vocabulary.items()}
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(state))
    return other


@pytest.mark.parametrize("step", [1, 40])
def test_ids_that_no_token_has_change_nothing(step):
    model, tokenizer = build("bert", False)
    holes, n = with_holes(tokenizer, step), len(tokenizer)
    other = copy.deepcopy(model)
    other.resize_token_embeddings(n + step, mean_resizing=False)
    table = other.get_input_embeddings().weight.data
    table[101 + step :] = model.get_input_embeddings().weight.data[101:]
    one, two = BiEncoder((model, tokenizer)), BiEncoder((other, holes))
    assert_near(two.score(QUERIES, TEXTS), one.score(QUERIES, TEXTS))
    assert "None" not in two.vocabulary.spellings[two.vocabulary.words]
    frame = pd.DataFrame({"qid": list("12"), "query": QUERIES[:2], "docno": list("ab"), "text": TEXTS[:2]})
    for filler in ("a", "random"):
        out = [PatchScorer(ranker, filler=filler)(PerturbDocs(TFC1())(frame)) for ranker in (one, two)]
        assert_near_effects(np.stack(out[1]["patch_effect"]), np.stack(out[0]["patch_effect"]), out[0])


def test_a_term_without_a_token_is_called_by_its_id():
    model, tokenizer = masked_lm("bert")
    model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().bias[-3:] = 50.0
    terms = Splade((model, tokenizer)).expand(TEXTS[:1])["term"].tolist()
    assert {f"[{len(tokenizer) + n}]" for n in range(3)} <= set(terms)


# Empty texts

BARE = build_decoder("qwen2", "AutoModel")


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("side", ["query", "document"])
def test_a_text_without_a_token_is_refused_alone_and_in_a_batch(pooling, side):
    ranker = BiEncoder(BARE, pooling=pooling, similarity="cosine")
    empty = [[QUERIES[0], ""], TEXTS[:2]] if side == "query" else [QUERIES[:2], [TEXTS[0], ""]]
    for rows in (empty, [[column[1]] for column in empty]):
        with pytest.raises(ValueError, match="a text is empty, and the tokenizer of BiEncoder"):
            ranker.score(*rows)


def test_stages_refuse_it_too_and_a_side_that_is_masked_whole():
    ranker = BiEncoder(BARE, pooling="last")
    frame = pd.DataFrame({"qid": ["1"], "query": ["tides"], "docno": ["d"], "text": [""]})
    with pytest.raises(ValueError, match="a text is empty"):
        ScoreLens(ranker)(frame.assign(text_perturbed="", perturbation="x"))
    with pytest.raises(ValueError, match="a text is empty"):
        ranker.align(["tides"], [""], ["tides"], alignments=["mask"])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_text_scores_alike_alone_and_in_a_batch_where_special_tokens_are_read(family):
    ranker = made(family)
    queries, texts = [*QUERIES[:3], "", " "], [TEXTS[0], "", "  ", TEXTS[3], ""]
    alone = [ranker.score([query], [text])[0] for query, text in zip(queries, texts, strict=True)]
    np.testing.assert_allclose(ranker.score(queries, texts), alone, rtol=1e-4, atol=1e-5)
    assert np.isfinite(alone).all()


# Any characters

ODD = {
    "one long word": "pneumono" * 400,
    "many words": "tide moon " * 5000,
    "nul": "tides\0moon \0",
    "lone surrogates": "tides \ud83d moon\udc00",
    "controls": "tides\x07\x1b moon\x7f\u200b\u2060",
    "separators": "tides\u2028moon\u2029\x85night\u00a0day\u3000",
    "right to left": "גאות ושפל \u202eabc\u202c مد وجزر",
    "combining marks": "tide" + "\u0301" * 60 + " e\u0301\u0323",
}


@pytest.mark.filterwarnings("ignore:1 of 1 documents are longer")
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_is_scored_as_query_and_as_document(family, text):
    ranker = made(family)
    assert np.isfinite(ranker.score([text, "tides", text], [TEXTS[0], text, text])).all()
    pairs = [pair for pair in ranker.align(["tides"], [text], [f"tides {text}"], alignments=["fill"]) if pair]
    assert all(len(pair.baseline.ids) == len(pair.perturbed.ids) for pair in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lone_surrogate_is_read_as_the_replacement_character(family):
    ranker = made(family)
    found = ranker.score(["tides \ud800"] * 2, ["moon \udfff.", "moon \ufffd."])
    wanted = ranker.score(["tides \ufffd"], ["moon \ufffd."])
    np.testing.assert_allclose(found, np.repeat(wanted, 2), rtol=1e-4, atol=1e-5)
