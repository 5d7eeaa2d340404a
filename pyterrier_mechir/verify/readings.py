"""Scores of the same checkpoint by other code: sentence-transformers, or transformers and a formula, one at a time.

Nothing here is taken from the rankers but their settings: texts are tokenised by a plain call of the tokenizer, the
model is called by itself on one unpadded sequence, and what it gives becomes a score by a formula that is written down
here once more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from pyterrier_mechir.models.checkpoints import attending, read_json
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.bi_encoder import BiEncoder
from pyterrier_mechir.rankers.colbert import ColBERT
from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
from pyterrier_mechir.rankers.generative import GenerativeReranker
from pyterrier_mechir.rankers.load import family_of
from pyterrier_mechir.rankers.mono_t5 import MonoT5
from pyterrier_mechir.rankers.splade import Splade

Scores = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Scores of (query, text) pairs; NaN for one that this reading does not score."""


@dataclass(frozen=True)
class Reading:
    """Another way to score with the same checkpoint.

    Args:
        by: whose code it is, for a sentence: ``sentence-transformers' own reading of the same files``.
        score: gives the scores.
        is_apart: whether it has loaded the files itself, so that settings and weights are compared too.
    """

    by: str
    score: Scores
    is_apart: bool


_FIELDS = re.compile(r"(\{instruction\}|\{query\}|\{document\})")

_OVERRIDDEN = ("encode", "compare", "forward", "score", "parts", "collate", "query_inputs", "sequences")


def own_ways(ranker: Ranker) -> list[str]:
    """What a class of the user's own computes otherwise than the family that it derives from."""
    family = family_of(ranker)
    if family is None:
        return [type(ranker).__name__]
    return [name for name in _OVERRIDDEN if getattr(type(ranker), name, None) is not getattr(family, name, None)]


def reading_of(ranker: Ranker, given: Any, model: nn.Module) -> Reading:
    """The reading that a ranker's scores are compared with.

    Args:
        ranker: the ranker.
        given: what the ranker was made of, where that is a model of sentence-transformers.
        model: a copy of the ranker's model, for want of files.

    Raises:
        LookupError: nothing else reads this; the message says why.
    """
    files = ranker._checkpoint if isinstance(ranker._checkpoint, str) else None
    library = _library_of(given, ranker.tokenizer) if files is None else _loaded_library(ranker, files)
    if library is not None:
        by = "sentence-transformers' own reading of the same files" if files else "the model of sentence-transformers"
        return Reading(by, library, is_apart=True)
    if own_ways(ranker):
        raise LookupError(
            f"{type(ranker).__name__} computes its scores in its own way ({', '.join(own_ways(ranker))}), which no "
            "library has"
        )
    if files is None:
        return Reading("transformers, run on the ranker's own model and settings", formula(ranker, model), False)
    apart = _loaded(ranker, files, model)
    return Reading("transformers' own reading of the same files", formula(ranker, *apart), True)


def _library_of(given: Any, tokenizer: Any) -> Scores | None:
    """The scores of a loaded model of sentence-transformers; None for anything else."""
    kinds = [
        base.__name__ for base in type(given).__mro__ if base.__module__.partition(".")[0] == "sentence_transformers"
    ]
    by = {"CrossEncoder": _predicted}
    by |= dict.fromkeys(("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"), _similar)
    score = next((by[kind] for kind in kinds if kind in by), None)

    def with_tokenizer_kept(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        assert score is not None
        with _as_it_cuts_now(tokenizer):
            return score(given, queries, texts)

    return None if score is None else with_tokenizer_kept


@contextmanager
def _as_it_cuts_now(tokenizer: Any) -> Iterator[None]:
    """Leave a tokenizer cutting and padding as it did, which calls of it change."""
    backend = tokenizer.backend_tokenizer
    cut, padded = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation() if cut is None else backend.enable_truncation(**cut)
        backend.no_padding() if padded is None else backend.enable_padding(**padded)


def _loaded_library(ranker: Ranker, files: str) -> Scores | None:
    """sentence-transformers, which loads the files; None where they are none of its own.

    Raises:
        LookupError: they are, and it is not installed, or the ranker is of none of its kinds.
    """
    if read_json(files, "modules.json") is None:
        return None
    if find_spec("sentence_transformers") is None:
        raise LookupError("sentence-transformers, which wrote these files, is not installed (pip install it)")
    import sentence_transformers

    names: dict[Any, str] = {
        BiEncoder: "SentenceTransformer",
        Splade: "SparseEncoder",
        ColBERT: "MultiVectorEncoder",
        CrossEncoder: "CrossEncoder",
        GenerativeReranker: "CrossEncoder",
    }
    name = names.get(family_of(ranker), "")
    if not hasattr(sentence_transformers, name):
        raise LookupError(
            f"the files are of sentence-transformers, whose installed version has no {name or type(ranker).__name__}"
        )
    return _library_of(getattr(sentence_transformers, name)(files, device=str(ranker.device)), ranker.tokenizer)


def _predicted(model: Any, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    pairs = list(zip(queries, texts, strict=True))
    found = np.asarray(model.predict(pairs, activation_fn=nn.Identity(), show_progress_bar=False, batch_size=1))
    return np.asarray(found, dtype=np.float64).reshape(len(pairs), -1)[:, -1] - (
        0 if found.ndim == 1 or found.shape[1] == 1 else found[:, 0]
    )


def _similar(model: Any, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    options = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": 1}
    found = []
    for query, text in zip(queries, texts, strict=True):
        sides = model.encode_query([query], **options), model.encode_document([text], **options)
        found.append(float(model.similarity_pairwise(*sides)[0]))
    return np.array(found)


def _loaded(ranker: Ranker, files: str, model: nn.Module) -> tuple[nn.Module, Any]:
    """The files' model, of the class that the ranker loaded them by, and tokenizer, as transformers loads them."""
    of_class = getattr(transformers, type(model).__name__)
    options: Any = {"trust_remote_code": False, "dtype": torch.float64 if ranker.dtype == "float64" else torch.float32}
    apart = of_class.from_pretrained(files, **options, **attending(model.config)).to(ranker.device).eval()
    return apart, transformers.AutoTokenizer.from_pretrained(files, trust_remote_code=False)


def formula(ranker: Ranker, model: nn.Module, tokenizer: Any = None) -> Scores:
    """The scores of a family by its formula, of any model of the ranker's kind, in that model's precision.

    Args:
        ranker: whose settings are read.
        model: what is run.
        tokenizer: reads the texts; None takes a copy of the ranker's own.
    """
    of_family = _FORMULAS[family_of(ranker)]
    reads = deepcopy(ranker.tokenizer) if tokenizer is None else tokenizer

    def score(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        with torch.no_grad():
            return np.array(
                [of_family(ranker, model, reads, *pair) for pair in zip(queries, texts, strict=True)], np.float64
            )

    return score


def _inputs(tokenizer: Any, model: nn.Module, *texts: str, max_length: int, **options: Any) -> dict[str, Tensor]:
    device: Any = model.device
    cut = {"truncation": True, "max_length": max_length, **options}
    return {name: value.to(device) for name, value in tokenizer(*texts, return_tensors="pt", **cut).items()}


def _bi_encoder(ranker: Any, model: nn.Module, tokenizer: Any, query: str, text: str) -> float:
    vectors = []
    queries: Any = model if ranker._query_model is ranker.model else ranker._query_model
    sides = (
        (queries, ranker.query_prefix + query, ranker.max_query_length),
        (model, ranker.doc_prefix + text, ranker.max_length),
    )
    for reader, read, longest in sides:
        states = reader(**_inputs(tokenizer, reader, read, max_length=longest)).last_hidden_state[0]
        vector = {"cls": states[0], "last": states[-1], "mean": states.mean(0)}[ranker.pooling][None]
        for step in ranker.projection or ():
            vector = step(vector.float())
        vectors.append(vector[0])
    one, other = vectors[0].to(vectors[1].dtype), vectors[1]
    if ranker.similarity == "dot":
        return float(one @ other)
    if ranker.similarity == "cosine":
        return float(nn.functional.cosine_similarity(one, other, dim=0))
    return -float((one - other).norm(2 if ranker.similarity == "euclidean" else 1))


def _cross_encoder(ranker: Any, model: nn.Module, tokenizer: Any, query: str, text: str) -> float:
    pair = (ranker._query_prefix + query, text)
    logits = model(**_inputs(tokenizer, model, *pair, max_length=ranker.max_length)).logits[0]
    if len(logits) == 1:
        return float(logits[0])
    relevant, other = logits[ranker.relevant_label], logits[1 - ranker.relevant_label]
    return float(relevant if ranker.score_type == "logit" else relevant - other)


def _prompted(ranker: Any, model: nn.Module, tokenizer: Any, prompt: str, **options: Any) -> dict[str, Tensor] | None:
    """The inputs of a prompt; None for one that is too long, as every library cuts prompts in its own way."""
    inputs = _inputs(tokenizer, model, prompt, max_length=10**6, truncation=False, **options)
    return inputs if inputs["input_ids"].shape[1] <= ranker.max_length else None


def _mono_t5(ranker: Any, model: Any, tokenizer: Any, query: str, text: str) -> float:
    prompt = ranker.template.replace("{query}", query, 1).replace("{document}", text, 1)
    inputs = _prompted(ranker, model, tokenizer, prompt)
    if inputs is None:
        return math.nan
    start = torch.tensor([[model.config.decoder_start_token_id]], device=model.device)
    logits = model(**inputs, decoder_input_ids=start).logits[0, 0]
    true, false = ranker._answers
    return float(logits[true] - logits[false])


def _generative(ranker: Any, model: Any, tokenizer: Any, query: str, text: str) -> float:
    filled: dict[str, str] = {"{instruction}": ranker.instruction or "", "{query}": query, "{document}": text}
    prompt = "".join(filled.get(part, part) for part in _FIELDS.split(str(ranker.template)))
    inputs = _prompted(ranker, model, tokenizer, prompt, add_special_tokens=ranker.add_special_tokens)
    if inputs is None:
        return math.nan
    if not ranker._answers:
        return float(model.score(model.base_model(**inputs).last_hidden_state[0, -1])[0])
    logits = model(**inputs).logits[0, -1]
    return float(logits[ranker._answers[0]] - (logits[ranker._answers[1]] if len(ranker._answers) > 1 else 0))


def _splade(ranker: Any, model: Any, tokenizer: Any, query: str, text: str) -> float:
    sides = (
        (ranker.query_prefix + query, ranker.max_query_length),
        (ranker.doc_prefix + text, ranker.max_length),
    )
    queries: Any = model if ranker._query_encoder is None else ranker._query_encoder.model
    vectors = []
    for one, (read, longest) in zip((queries, model), sides, strict=True):
        weights = one(**_inputs(tokenizer, one, read, max_length=longest)).logits[0].relu().log1p()
        weights = weights if ranker.activation == "relu" else weights.log1p()
        vectors.append(weights.amax(0) if ranker.pooling == "max" else weights.sum(0))
    return float(vectors[0].to(vectors[1].dtype) @ vectors[1])


def _colbert(ranker: Any, model: Any, tokenizer: Any, query: str, text: str) -> float:
    vectors = []
    for side in ("query", "document"):
        prefix, marker, longest = (
            (ranker.query_prefix + query, ranker.query_marker, ranker.max_query_length)
            if side == "query"
            else (ranker.doc_prefix + text, ranker.doc_marker, ranker.max_length)
        )
        inputs = _inputs(tokenizer, model, prefix, max_length=longest - bool(marker))
        marks = [tokenizer.convert_tokens_to_ids(marker.strip() if marker.strip() else marker)] if marker else []
        ids = [*inputs["input_ids"][0, :1].tolist(), *marks, *inputs["input_ids"][0, 1:].tolist()]
        attended = [1] * len(ids)
        counted = [True] * len(ids)
        padding = ranker._query_template.padding
        if side == "query" and padding is not None:
            n = max(0, padding.length - len(ids))
            ids, attended = ids + [padding.token] * n, attended + [int(ranker.attend_to_masks)] * n
            counted += [True] * n
        elif side == "document":
            skipped = set(tokenizer.convert_tokens_to_ids([t for t in ranker.skipped if t in tokenizer.get_vocab()]))
            counted = [token not in skipped for token in ids]
        made = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([attended])}
        if "token_type_ids" in inputs:
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])
        states = model(**{name: value.to(model.device) for name, value in made.items()}).last_hidden_state[0]
        of_tokens = states @ ranker.projection.to(states.dtype).T
        vectors.append(nn.functional.normalize(of_tokens, dim=-1)[torch.tensor(counted)])
    return float((vectors[0] @ vectors[1].T).amax(1).sum())


_FORMULAS: dict[Any, Callable[..., float]] = {
    BiEncoder: _bi_encoder,
    CrossEncoder: _cross_encoder,
    MonoT5: _mono_t5,
    GenerativeReranker: _generative,
    Splade: _splade,
    ColBERT: _colbert,
}
