"""The options that the modules and settings of a sentence-transformers model fix of each ranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyterrier_mechir.models.checkpoints import read_json
from pyterrier_mechir.rankers.declared import TRANSFORMERS, Declared, Encoder, Part, Settings, declared, take_encoder
from pyterrier_mechir.rankers.projection import Step, cut_to, read_step
from pyterrier_mechir.rankers.settings import SIMILARITIES, Modules

_POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}

_OLDER_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_STEPS = ("Dense", "LayerNorm", "Normalize")

_INCREASING = ("Identity", "Sigmoid", "Tanh", "LogSigmoid", "Softplus", "Softsign", "Softmax", "LogSoftmax")
"""Activation functions that leave the order of one logit, or of the margin of two, as it is."""


def read_modules(model: Any, ranker: str) -> tuple[Any, Modules]:
    """What a model of sentence-transformers fixes.

    Args:
        model: what a ranker is given: an id or directory, a loaded model of sentence-transformers, or anything else.
        ranker: the class of the ranker: ``BiEncoder``, ``Splade`` or ``CrossEncoder``.

    Returns:
        What the ranker is to load, or the loaded ``(model, tokenizer)``; and the options. All are None where the
        model is none of sentence-transformers.

    Raises:
        ValueError: a module or a setting that the ranker does not compute.
    """
    found = declared(model, ranker)
    if found is None:
        if ranker == "CrossEncoder" and isinstance(model, (str, Path)):
            _check_activation(_older_activation(str(model)))
        return model, Modules()
    read = {"BiEncoder": _bi_encoder, "Splade": _splade, "CrossEncoder": _cross_encoder}[ranker](found)
    found.end()
    return found.model, Modules(**read)


def take_prompts(told: Settings) -> dict[str, Any]:
    """What is put before queries and documents, as ``encode_query`` and ``encode_document`` do.

    These leave ``default_prompt_name`` to ``encode``, on purpose: an empty prompt of theirs goes before it.
    """
    told.skip("default_prompt_name")
    prompts = told.take("prompts") or {}
    return {"query_prefix": prompts.get("query"), "doc_prefix": prompts.get("document")}


def first_encoder(found: Declared, others: tuple[str, ...], **of_encoder: str) -> Encoder:
    """Read the first module, and check that the others are of the kinds that a ranker computes after it.

    Args:
        found: what the model declares.
        others: these kinds.
        of_encoder: for :func:`~pyterrier_mechir.rankers.declared.take_encoder`.
    """
    found.check((*TRANSFORMERS, *others))
    if [part.kind in TRANSFORMERS for part in found.parts] != [True, *[False] * (len(found.parts) - 1)]:
        found.settings.fail("does not begin with its one Transformer module")
    return take_encoder(found.parts[0], **of_encoder)


def _apart(found: Declared, encoder: Encoder) -> dict[str, Any]:
    """The options of an encoder of queries and documents that does not fill queries up."""
    if encoder.expansion is not None:
        found.parts[0].settings.refuse("query_expansion", encoder.expansion)
    return {**encoder.where, "max_length": encoder.longest_document, "max_query_length": encoder.longest_query}


def _bi_encoder(found: Declared) -> dict[str, Any]:
    read = _tower(found)
    if found.of_queries is None:
        return read
    of_queries, lengths = _tower(found.of_queries), ("subfolder", "max_length", "max_query_length")
    if any(not _is_same(read[name], of_queries[name]) for name in read.keys() - {*lengths}):
        found.settings.fail("has a Router whose queries and documents are pooled, projected or lower-cased differently")
    given = found.of_queries.model
    model = given if isinstance(given, tuple) else of_queries["subfolder"]
    return read | {"max_query_length": of_queries["max_query_length"], "query_model": model}


def _is_same(one: Any, other: Any) -> bool:
    """Whether settings of two routes are the same; of projections, step by step and weight by weight."""
    if not isinstance(one, tuple):
        return bool(one == other)
    if [str(step) for step in one] != [str(step) for step in other]:
        return False
    weights = [(step.weights(), same.weights()) for step, same in zip(one, other, strict=True)]
    return all(mine.keys() == its.keys() and all(mine[k].equal(its[k]) for k in mine) for mine, its in weights)


def _tower(found: Declared) -> dict[str, Any]:
    kinds = ("Pooling", *_STEPS, "Dropout")
    encoder = first_encoder(found, kinds, task="feature-extraction", output="last_hidden_state")
    if [at for at, part in enumerate(found.parts) if part.kind == "Pooling"] != [1]:
        found.settings.fail("does not have one Pooling module, next to its Transformer")
    told = found.settings
    similarity = told.take("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        told.refuse("similarity_fn_name", similarity)
    steps: list[Step] = []
    for part in found.parts[2:]:
        if part.kind == "Dropout":
            part.settings.skip("dropout")
        else:
            steps.append(read_step(part))
    dim = told.take("truncate_dim")
    if dim is not None:
        steps.append(cut_to(dim))
    return {
        **_apart(found, encoder),
        **_pooling(found.parts[1]),
        **take_prompts(told),
        "similarity": similarity,
        "projection": tuple(steps),
    }


def _pooling(part: Part) -> dict[str, Any]:
    told = part.settings
    told.skip("embedding_dimension", "word_embedding_dimension")
    older = [mode for name, mode in _OLDER_POOLINGS.items() if told.take(name)]
    modes = told.take("pooling_mode") or older or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ValueError(f"{told.where} pools by {' and '.join(modes)}; BiEncoder knows cls, mean and last.")
    return {"pooling": _POOLINGS[modes[0]], "pools_prefix": told.take("include_prompt") is not False}


def _splade(found: Declared) -> dict[str, Any]:
    encoder = first_encoder(found, ("SpladePooling",), task="fill-mask", output="logits")
    if len(found.parts) != 2:
        found.settings.fail("has other modules than a Transformer and one SpladePooling")
    told, of_pooling = found.settings, found.parts[1].settings
    similarity = told.take("similarity_fn_name") or "dot"
    if similarity != "dot":
        told.fail(f"compares by {similarity} (similarity_fn_name)")
    of_pooling.skip("embedding_dimension", "word_embedding_dimension", "chunk_size")
    return {
        **_apart(found, encoder),
        **take_prompts(told),
        "pooling": of_pooling.take("pooling_strategy"),
        "activation": of_pooling.take("activation_function"),
    }


def _older_activation(name: str) -> Settings:
    """The activation function that the config of a cross-encoder without modules names."""
    config = read_json(name, "config.json") or {}
    older = config.get("sbert_ce_default_activation_function")
    found = (config.get("sentence_transformers") or {}).get("activation_fn") or older
    return Settings(repr(name), "CrossEncoder", {"activation_fn": found})


def _check_activation(told: Settings) -> None:
    activation = str(told.take("activation_fn") or "torch.nn.modules.linear.Identity")
    if not activation.startswith("torch.nn.") or activation.rsplit(".", 1)[-1] not in _INCREASING:
        told.refuse("activation_fn", activation)


def _cross_encoder(found: Declared) -> dict[str, Any]:
    encoder = first_encoder(found, (), task="sequence-classification", output="logits", name="scores")
    told = found.settings
    _check_activation(told)
    prompts, name = told.take("prompts") or {}, told.take("default_prompt_name")
    told.skip("keep_in_fp32_modules", "similarity_fn_name")
    prefix = None if name is None else prompts.get(name)
    return {**encoder.where, "max_length": encoder.longest, "query_prefix": prefix}
