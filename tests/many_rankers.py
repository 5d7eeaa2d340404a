"""Tiny rankers of every family, with the settings that decide what a score reads, and their slow twins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from reference import Inputs, pool, similarity
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from test_colbert import document_of, kept_vectors, loaded, max_sims, query_vectors
from test_splade import plain_vectors, vectors
from torch import Tensor

from pyterrier_mechir import BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade
from pyterrier_mechir.rankers.base import Ranker

_PROMPT = "Query: {query}\nDocument: {document}\n\nyes or no:"


def _colbert(architecture: str = "bert", **settings: Any) -> ColBERT:
    model, tokenizer, projection = loaded(architecture)
    return ColBERT((model, tokenizer), projection=projection, **settings)


def _generative(architecture: str) -> GenerativeReranker:
    return GenerativeReranker(build_decoder(architecture, "AutoModelForCausalLM"), template=_PROMPT, yes=5, no=7)


def _bi(loaded: Any, pooling: str, similarity: str, **settings: Any) -> BiEncoder:
    return BiEncoder(loaded, pooling=pooling, similarity=similarity, **settings)


def _two_splades() -> Splade:
    return Splade(masked_lm("bert"), query_model=masked_lm("bert", num_hidden_layers=1))


_MAKE: dict[str, Callable[[], Ranker]] = {
    "bi cls dot": lambda: _bi(build("bert", False), "cls", "dot"),
    "bi mean cosine": lambda: _bi(build("distilbert", False), "mean", "cosine"),
    "bi last dot": lambda: _bi(build("roberta", False), "last", "dot"),
    "bi euclidean": lambda: _bi(build("modernbert", False), "mean", "euclidean"),
    "bi prefixed": lambda: _bi(build("mpnet", False), "mean", "cosine", query_prefix="day: ", doc_prefix="of the "),
    "bi llama": lambda: _bi(build_decoder("llama"), "last", "cosine"),
    "bi qwen3": lambda: _bi(build_decoder("qwen3", ends=True), "last", "cosine"),
    "bi t5": lambda: BiEncoder(build_t5("t5", "T5EncoderModel"), pooling="mean"),
    "cross bert": lambda: CrossEncoder(build("bert", True)),
    "cross roberta": lambda: CrossEncoder(build("roberta", True)),
    "bi gemma2": lambda: _bi(build_decoder("gemma2"), "last", "dot"),
    "cross electra": lambda: CrossEncoder(build("electra", True)),
    "cross mpnet": lambda: CrossEncoder(build("mpnet", True)),
    "cross xlm-roberta": lambda: CrossEncoder(build("xlm-roberta", True)),
    "mono t5": lambda: MonoT5(build_t5(), stack="encoder"),
    "mono t5 decoder": lambda: MonoT5(build_t5("flan"), stack="decoder"),
    "generative llama": lambda: _generative("llama"),
    "generative qwen2": lambda: _generative("qwen2"),
    "splade max": lambda: Splade(masked_lm("bert")),
    "splade sum": lambda: Splade(masked_lm("distilbert"), pooling="sum", activation="log1p_relu"),
    "splade query_model": _two_splades,
    "colbert": _colbert,
    "colbert attended": lambda: _colbert(attend_to_masks=True, query_length=20),
    "colbert bare": lambda: _colbert("roberta", expand_queries=False, mask_punctuation=False),
}

KINDS = tuple(_MAKE)


@cache
def ranker(kind: str) -> Ranker:
    """A ranker of a kind; the same each time."""
    return _MAKE[kind]()


ROWS = [
    (QUERIES[0], TEXTS[4]),
    (QUERIES[0], "Two tides (two high tides) each day; most coasts see two."),
    (QUERIES[1], TEXTS[1]),
    (QUERIES[1], "bats"),
    ("night night bats", "Bats, at night!"),
    (QUERIES[0], TEXTS[3]),
]
"""Queries and texts of 1 to 13 words, with words that come twice, and marks."""


def columns(rows: list[tuple[str, str]] = ROWS) -> tuple[list[str], list[str]]:
    """Queries and texts."""
    queries, texts = zip(*rows, strict=True)
    return list(queries), list(texts)


class Plain:
    """The score of a query and a text by the plain model, alone and unpadded.

    Args:
        found: the ranker.
        query: the query.
        text: the text, whose tokens are told.

    Attributes:
        inputs: the model's inputs.
        spans: for each position, the characters of the text that the library of tokenizers says it is made of.
    """

    def __init__(self, found: Ranker, query: str, text: str):
        self.ranker, self.query, self.model = found, query, found.model
        tokenizer: Any = found.tokenizer
        if isinstance(found, ColBERT):
            self.inputs = document_of(tokenizer, text, 150)
            (encoding,) = tokenizer(text).encodings
            of_text = [span if owner == 0 else (0, 0) for span, owner in _owned(encoding)]
            self.spans = [of_text[0], (0, 0), *of_text[1:]]
            return
        number, shift, read = 0, 0, (text,)
        if isinstance(found, CrossEncoder):
            number, read = 1, (query, text)
        elif isinstance(found, (MonoT5, GenerativeReranker)):
            prompt = (
                _PROMPT if isinstance(found, GenerativeReranker) else "Query: {query} Document: {document} Relevant:"
            )
            read = (prompt.replace("{query}", query).replace("{document}", text),)
            shift = read[0].index(text, len(prompt.partition("{query}")[0]) + len(query))
        self.inputs = dict(tokenizer(*read, return_tensors="pt"))
        (encoding,) = tokenizer(*read).encodings
        self.spans = [(b - shift, e - shift) if owner == number else (0, 0) for (b, e), owner in _owned(encoding)]

    def places(self, begin: int, end: int) -> list[int]:
        """The positions of what the text has between two characters."""
        return [at for at, (b, e) in enumerate(self.spans) if b < e and b < end and e > begin]

    def with_token(self, places: list[int], token: int) -> Inputs:
        """The inputs with a token at some positions."""
        ids = self.inputs["input_ids"].clone()
        ids[0, places] = token
        return self.inputs | {"input_ids": ids}

    def hidden(self, places: list[int]) -> Inputs:
        """The inputs with some positions hidden."""
        mask = self.inputs["attention_mask"].clone()
        mask[0, places] = 0
        return self.inputs | {"attention_mask": mask}

    def score(self, inputs: Inputs, embedded: Tensor | None = None) -> Tensor:
        """The score of some inputs, in a graph, with other word embeddings where they are given."""
        found, mask = self.ranker, inputs["attention_mask"]
        given = inputs if embedded is None else {**inputs, "input_ids": None, "inputs_embeds": embedded}
        if isinstance(found, MonoT5):
            true, false = (found.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("true", "false"))
            logits = self.model(**given, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, 0]
            return logits[true] - logits[false]
        out = self.model(**given)
        if isinstance(found, CrossEncoder):
            return out.logits[0, 0]
        if isinstance(found, GenerativeReranker):
            return out.logits[0, -1, 5] - out.logits[0, -1, 7]
        tokenizer: Any = found.tokenizer
        if isinstance(found, Splade):
            kind = {"pooling": found.pooling, "activation": found.activation}
            query = plain_vectors(self.model, tokenizer, [self.query], **kind)[0]
            return vectors(out.logits, mask, **kind)[0] @ query
        if isinstance(found, ColBERT):
            of_query = query_vectors(self.model, tokenizer, found.projection, self.query)
            kept = kept_vectors(out.last_hidden_state, inputs, found.projection, tokenizer)
            return max_sims(of_query, kept).sum()
        assert isinstance(found, BiEncoder)
        encoded = dict(tokenizer(self.query, return_tensors="pt"))
        with torch.no_grad():
            states = self.model(**encoded).last_hidden_state
            query = pool(states, encoded["attention_mask"], found.pooling)[0]
        return similarity(query, pool(out.last_hidden_state, mask, found.pooling), found.similarity)[0]


def _owned(encoding: Any) -> list[tuple[tuple[int, int], int | None]]:
    return list(zip(encoding.offsets, encoding.sequence_ids, strict=True))
