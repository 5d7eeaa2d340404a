"""Reading what a ColBERT checkpoint says of itself, in each of the formats that these come in."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import torch

from pyterrier_mechir.models.checkpoints import read_json, read_tensors
from pyterrier_mechir.rankers.declared import Declared, Encoder, Part, Settings, declared
from pyterrier_mechir.rankers.modules import first_encoder, take_prompts
from pyterrier_mechir.rankers.settings import Modules

PUNCTUATION = tuple(string.punctuation)


@dataclass(frozen=True)
class ColBERTFiles:
    """What the files of a checkpoint fix.

    Args:
        modules: where the encoder is, texts before queries and documents, and longest lengths.
        projection: the weight of the linear map of token states, ``[dim, hidden]``.
        query_marker: the token after the first of every query; empty for none.
        doc_marker: the same of documents.
        skipped: tokens of documents that take no part in MaxSim.
        query_length: up to how many tokens queries are filled up with masks; None for not at all.
        attends: whether the tokens of a query attend to these masks.
        splits_prefix: whether a marker may be the first token of the text that comes before.
    """

    modules: Modules
    projection: torch.Tensor | None = None
    query_marker: str = "[unused0]"
    doc_marker: str = "[unused1]"
    skipped: tuple[str, ...] = PUNCTUATION
    query_length: int | None = 32
    attends: bool = False
    splits_prefix: bool = False


def read_colbert(model: Any) -> tuple[Any, ColBERTFiles]:
    """The settings of a checkpoint and its projection.

    The formats are that of colbert-ir (``artifact.metadata``, and ``linear.weight`` beside the encoder's weights), that
    of PyLate (``modules.json`` with a Dense, settings in ``config_sentence_transformers.json``), and that of a
    sentence-transformers ``MultiVectorEncoder`` (all settings in its modules), which may be loaded.

    Args:
        model: what ColBERT is given.

    Returns:
        What it is to load, or the loaded ``(model, tokenizer)``; and the settings.

    Raises:
        ValueError: it has no projection, or something that ColBERT does not compute.
    """
    if isinstance(model, tuple):
        return model, ColBERTFiles(Modules(max_query_length=32))
    found = declared(model, "ColBERT")
    if found is None:
        return model, _of_colbert_ir(str(model))
    read = _of_modules(found)
    found.end()
    return found.model, read


def _of_colbert_ir(name: str) -> ColBERTFiles:
    projection = read_tensors(name, "", "linear.weight").get("linear.weight")
    if projection is None:
        raise ValueError(
            f"cannot load {name!r}: it has no linear.weight, the projection of token states; give a checkpoint of "
            "colbert-ir, of PyLate or of sentence-transformers, or a loaded (model, tokenizer) and its projection."
        )
    metadata = read_json(name, "artifact.metadata") or {}
    told = Settings(repr(name), "ColBERT", dict(metadata))
    if metadata.get("similarity") not in (None, "cosine"):
        told.fail(f"compares by {metadata['similarity']}")
    told.only("interaction", "colbert")
    length = metadata.get("query_maxlen") or 32
    return ColBERTFiles(
        Modules(max_length=metadata.get("doc_maxlen") or 220, max_query_length=length),
        projection,
        query_marker=metadata.get("query_token_id") or "[unused0]",
        doc_marker=metadata.get("doc_token_id") or "[unused1]",
        skipped=PUNCTUATION if metadata.get("mask_punctuation", True) else (),
        query_length=length,
        attends=bool(metadata.get("attend_to_mask_tokens")),
    )


def _of_modules(found: Declared) -> ColBERTFiles:
    told = found.settings
    kind = told.left.get("model_type")
    if kind == "ColBERT" and not isinstance(found.model, str):
        told.fail("is a loaded model of PyLate", "save it, and give its directory")
    kinds = ("Dense", "Normalize", "MultiVectorMask")
    encoder = first_encoder(found, kinds, task="feature-extraction", output="last_hidden_state")
    similarity = told.take("similarity_fn_name")
    if similarity == "meanmaxsim":
        told.fail(f"compares by {similarity} (similarity_fn_name)")
    is_pylate = "query_prefix" in told.left
    projection, skipped = None, None
    for part in found.parts[1:]:
        if part.kind == "MultiVectorMask":
            skipped = _skipped(part.settings)
            continue
        part.settings.only("module_input_name", "token_embeddings")
        part.settings.only("module_output_name", "token_embeddings")
        if part.kind == "Dense":
            projection = _composed(projection, _dense(part))
    if projection is None:
        told.fail("has no Dense module, the projection of token states")
    steps = [part.kind for part in found.parts[1:] if part.kind != "MultiVectorMask"]
    if (is_pylate or kind == "ColBERT") and steps[-1] != "Normalize":
        steps.append("Normalize")
    if steps != [*["Dense"] * (len(steps) - 1), "Normalize"]:
        told.fail(f"goes through {', '.join(steps)} from token states to vectors, and not through Dense and Normalize")
    prompts = take_prompts(told)
    if is_pylate:
        return _of_pylate(told, projection, encoder, prompts)
    if encoder.expansion is not None and skipped is None:
        told.fail("fills queries up, and has no MultiVectorMask module to count what they are filled up with")
    length, longest, attends = _expansion(found.parts[0].settings, encoder)
    modules = Modules(**encoder.where, **prompts, max_length=encoder.longest_document, max_query_length=longest)
    return ColBERTFiles(modules, projection, "", "", skipped or (), length, attends, splits_prefix=True)


def _of_pylate(told: Settings, projection: torch.Tensor, encoder: Encoder, prompts: dict[str, Any]) -> ColBERTFiles:
    longest, expands = told.take("query_length") or 32, told.take("do_query_expansion") is not False
    cut = told.take("document_length") or encoder.longest_document
    modules = Modules(**encoder.where, **prompts, max_length=cut, max_query_length=longest)
    words = told.take("skiplist_words")
    return ColBERTFiles(
        modules,
        projection,
        query_marker=told.take("query_prefix") or "",
        doc_marker=told.take("document_prefix") or "",
        skipped=PUNCTUATION if words is None else tuple(words),
        query_length=longest if expands else None,
        attends=bool(told.take("attend_to_expansion_tokens", "attend_to_mask_tokens")),
    )


def _skipped(told: Settings) -> tuple[str, ...]:
    """The tokens of documents that a MultiVectorMask leaves out."""
    told.only("skiplist_tasks", ["document"])
    return tuple(told.take("skiplist_words") or ())


def _expansion(told: Settings, encoder: Encoder) -> tuple[int | None, int | None, bool]:
    """To how many tokens masks fill queries up, the most that queries may have, and whether they attend to masks."""
    if encoder.expansion is None:
        return None, encoder.longest_query, False
    of_queries = Settings(f"{told.where}, in query_expansion,", "ColBERT", dict(encoder.expansion))
    length, is_fixed = of_queries.take("length"), of_queries.take("strategy") == "fixed"
    attends = bool(of_queries.take("attend"))
    of_queries.end()
    return length, length if is_fixed else encoder.longest_query, attends


def _dense(part: Part) -> torch.Tensor:
    told = part.settings
    activation = str(told.take("activation_function") or "Tanh").rsplit(".", 1)[-1]
    told.skip("in_features", "out_features")
    is_plain = activation == "Identity" and told.take("bias") is False and not told.take("use_residual")
    if not is_plain:
        told.fail(f"projects with an activation ({activation}), a bias or a residual")
    weights = part.weights()
    if weights.keys() != {"linear.weight"}:
        told.fail(f"has the weights {', '.join(sorted(weights)) or 'of none'}, and not linear.weight alone")
    return weights["linear.weight"]


def _composed(first: torch.Tensor | None, then: torch.Tensor) -> torch.Tensor:
    return then if first is None else then @ first
