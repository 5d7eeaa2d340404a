"""A ranker whose score is a sum over words gets its own weights back from every method."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import QUERIES, TEXTS, build, masked_lm
from test_colbert import loaded
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, ColBERT, ExplainScore, Splade

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = pd.DataFrame(
    {
        "qid": ["a", "b", "c"],
        "query": QUERIES[:3],
        "docno": ["x", "y", "z"],
        "text": [TEXTS[4] + " day day", *TEXTS[1:3]],
    }
)


@torch.no_grad()
def flattened(model: torch.nn.Module, mask: int | None = None) -> torch.nn.Module:
    """A BERT whose last states are its word embeddings: nothing is added to them and nothing normalised."""
    bert = getattr(model, "bert", model)
    bert.embeddings.position_embeddings.weight.zero_()
    bert.embeddings.token_type_embeddings.weight.zero_()
    bert.embeddings.LayerNorm = torch.nn.Identity()
    if mask is not None:
        bert.embeddings.word_embeddings.weight[mask] = 0
    for layer in bert.encoder.layer:
        for block in (layer.attention.output, layer.output):
            block.dense.weight.zero_()
            block.dense.bias.zero_()
            block.LayerNorm = torch.nn.Identity()
    return model


@cache
def linear() -> BiEncoder:
    """Scores by the dot product of mean word embeddings."""
    model, tokenizer = build("bert", False)
    return BiEncoder((flattened(model, tokenizer.mask_token_id), tokenizer), pooling="mean", similarity="dot")


def weights(query: str, text: str) -> tuple[list[float], float]:
    """What each word of a text adds to the score of the linear ranker, and the special tokens and marks."""
    table, tokenizer = linear().model.get_input_embeddings().weight.detach().double(), linear().tokenizer
    of_query = table[torch.tensor(tokenizer(query)["input_ids"])].mean(0)
    encoded = tokenizer(text, return_offsets_mapping=True)
    carried = (table[torch.tensor(encoded["input_ids"])] @ of_query / len(encoded["input_ids"])).tolist()
    words: dict[int, float] = {}
    for (begin, end), value in zip(encoded["offset_mapping"], carried, strict=True):
        if text[begin:end].isalnum():
            start = max((at for at in range(begin + 1) if at == 0 or not text[at - 1].isalnum()), default=0)
            words[start] = words.get(start, 0.0) + value
    return [words[start] for start in sorted(words)], sum(carried) - sum(words.values())


@pytest.mark.parametrize("of", ["document", "query"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("occlusion", {"absence": "mask"}),
        ("gradient", {}),
        ("ig", {"absence": "mask", "steps": 3}),
        ("lime", {"absence": "mask"}),
    ],
)
def test_a_linear_ranker_gets_its_weights_back(method, options, of):
    out = ExplainScore(linear(), method, of=of, **options)(FRAME).sort_index()
    for made in out.itertuples():
        sides = (made.query, made.text) if of == "document" else (made.text, made.query)
        of_words, rest = weights(*sides)
        assert_near(made.score, sum(of_words) + rest)
        assert_near(made.unit_scores, of_words)
        if method == "gradient":
            assert_near(made.unit_rest, rest)
        else:
            assert_near(made.score_empty, rest)
        if method == "lime":
            assert made.fit_r2 > 1 - 1e-6
            assert made.unit_errors.max() < 1e-5
        if method == "ig":
            assert abs(made.sum_error) < 1e-5
            assert made.unit_rest == 0
    assert np.abs(np.concatenate(out["unit_scores"].tolist())).max() > 0.01


def test_words_of_a_linear_ranker_carry_the_same_alone_and_together():
    frame = FRAME.head(1)
    alone, together = (
        ExplainScore(linear(), absence="mask", all_occurrences=value)(frame).loc[0] for value in (False, True)
    )
    assert alone["units"] == ["tides", "day", "day"]
    assert_near(together["unit_scores"], [alone["unit_scores"][0], *[alone["unit_scores"][1:].sum()] * 2])


# Sums over tokens, by hand


@pytest.fixture(scope="module")
def by_terms() -> Splade:
    """A SPLADE whose logits are the dot products of word embeddings with rows of its head, less a number."""
    model, tokenizer = masked_lm("bert")
    flattened(model)
    model.cls.predictions.transform = torch.nn.Identity()
    return Splade((model, tokenizer))


@pytest.mark.bits  # which of two equal words matches best
def test_terms_of_a_splade_are_the_sums_that_a_pencil_gives(by_terms):
    text, query = "Bats, night. bats", "bats night"
    out = ExplainScore(by_terms, "terms", interactions=True)(
        pd.DataFrame({"qid": ["1"], "query": [query], "docno": ["d"], "text": [text]})
    ).loc[0]
    model, tokenizer = by_terms.model, by_terms.tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [
        *("[CLS]", "bats", ",", "night", ".", "bats", "[SEP]")
    ]
    head, table = model.cls.predictions.decoder, model.get_input_embeddings().weight
    logits = {
        word: [
            saturated(value)
            for value in (head.weight @ table[tokenizer.convert_tokens_to_ids(word)] + head.bias).tolist()
        ]
        for word in ("[CLS]", "bats", ",", "night", ".", "[SEP]")
    }
    pairs = np.zeros((3, 4))
    for term in range(len(head.bias)):
        of_query = [logits[word][term] for word in ("[CLS]", "bats", "night", "[SEP]")]
        of_text = [logits[word][term] for word in ("[CLS]", "bats", ",", "night", ".", "bats", "[SEP]")]
        in_query = [2, 0, 1, 2][int(np.argmax(of_query))]
        in_text = [3, 0, 3, 1, 3, 2, 3][int(np.argmax(of_text))]
        pairs[in_query, in_text] += max(of_query) * max(of_text)
    assert out["units"] == ["Bats", "night", "bats"]
    assert out["query_units"] == ["bats", "night"]
    assert_near(out["interactions"], pairs)
    assert_near(out["unit_scores"], pairs.sum(0)[:3])
    assert_near(out["unit_rest"], pairs.sum(0)[3])
    assert_near(out["score"], pairs.sum())
    assert pairs[:, 2].sum() == 0  # the second of two equal words raises no term


def saturated(value: float) -> float:
    return float(np.log1p(max(value, 0.0)))


@pytest.mark.bits  # which of two equal words matches best
def test_matches_of_a_colbert_are_the_cosines_that_a_pencil_gives():
    model, tokenizer, _ = deepcopy(loaded("bert"))
    found = ColBERT((flattened(model), tokenizer), projection=torch.eye(32), expand_queries=False)
    out = ExplainScore(found, "terms", interactions=True)(
        pd.DataFrame({"qid": ["1"], "query": ["high tides"], "docno": ["d"], "text": ["Tides, bats, tides"]})
    ).loc[0]
    table = model.get_input_embeddings().weight.detach()

    def vectors(*tokens: str) -> np.ndarray:
        rows = table[torch.tensor(tokenizer.convert_tokens_to_ids(list(tokens)))]
        return (rows / rows.norm(dim=1, keepdim=True)).numpy()

    query = vectors("[CLS]", "[unused0]", "high", "tides", "[SEP]")
    document = vectors("[CLS]", "[unused1]", "tides", "bats", "tides", "[SEP]")  # marks take no part
    pairs = np.zeros((3, 4))
    for vector, row in zip(query, (2, 2, 0, 1, 2), strict=True):
        cosines = document @ vector
        pairs[row, (3, 3, 0, 1, 2, 3)[int(cosines.round(5).argmax())]] += cosines.max()
    assert out["units"] == ["Tides", "bats", "tides"]
    assert_near(out["interactions"], pairs)
    assert_near(out["unit_scores"], pairs.sum(0)[:3])
    assert_near(out["unit_rest"], pairs.sum(0)[3])
    assert_near(pairs[1, 0], 1.0)  # [CLS] and [SEP] match themselves, and so does the first of two equal words
    assert_near(out["score"], pairs.sum())
