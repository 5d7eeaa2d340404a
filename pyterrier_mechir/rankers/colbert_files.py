"""Reading what a ColBERT checkpoint says of itself, in each of the formats that these come in."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import torch

from pyterrier_mechir.models.checkpoints import read_json, read_tensor
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


def read_colbert(name: str) -> ColBERTFiles:
    """The settings of a checkpoint and its projection.

    The formats are that of colbert-ir (``artifact.metadata``, and ``linear.weight`` beside the encoder's weights), that
    of PyLate (``modules.json`` with a Dense, settings in ``config_sentence_transformers.json``), and that of a
    sentence-transformers ``MultiVectorEncoder`` (all settings in its modules).

    Raises:
        ValueError: it has no projection, or something that ColBERT does not compute.
    """
    listed = read_json(name, "modules.json")
    return _of_colbert_ir(name) if listed is None else _of_modules(name, listed)


def _of_colbert_ir(name: str) -> ColBERTFiles:
    projection = read_tensor(name, "", "linear.weight")
    if projection is None:
        raise ValueError(
            f"cannot load {name!r}: it has no linear.weight, the projection of token states; give a checkpoint of "
            "colbert-ir, of PyLate or of sentence-transformers, or a loaded (model, tokenizer) and its projection."
        )
    metadata = read_json(name, "artifact.metadata") or {}
    _check(name, metadata.get("similarity") in (None, "cosine"), f"compares by {metadata.get('similarity')}")
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


def _of_modules(name: str, listed: list[dict[str, Any]]) -> ColBERTFiles:
    settings = read_json(name, "config_sentence_transformers.json") or {}
    similarity, prompts = settings.get("similarity_fn_name"), settings.get("prompts") or {}
    _check(name, similarity != "meanmaxsim", f"compares by {similarity}")
    is_pylate = "query_prefix" in settings
    encoder: dict[str, Any] = {}
    subfolder, projection, skipped = "", None, ()
    for module in listed:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        config = read_json(name, f"{path}/config.json".lstrip("/")) or {}
        if kind == "Transformer":
            subfolder, encoder = path, read_json(name, f"{path}/sentence_bert_config.json".lstrip("/")) or {}
        elif kind == "Dense":
            projection = _composed(projection, _dense(name, path, config))
        elif kind == "MultiVectorMask":
            only = config.get("skiplist_tasks", ["document"]) == ["document"] and not config.get("keep_only_token_ids")
            _check(name, only, "masks other tokens than some of documents")
            skipped = tuple(config.get("skiplist_words") or ())
        else:
            _check(name, kind == "Normalize", f"has a module {kind!r}")
    _check(name, projection is not None, "has no Dense module, the projection of token states")
    length, longest, attends = _pylate_queries(settings) if is_pylate else _expansion(name, encoder)
    cut = (settings if is_pylate else encoder).get("document_length") or encoder.get("max_seq_length")
    modules = Modules(
        subfolder=subfolder,
        query_prefix=prompts.get("query"),
        doc_prefix=prompts.get("document"),
        max_length=cut,
        max_query_length=longest or encoder.get("max_seq_length"),
        lowercase=bool(encoder.get("do_lower_case")),
    )
    return ColBERTFiles(
        modules,
        projection,
        query_marker=settings["query_prefix"] or "" if is_pylate else "",
        doc_marker=settings.get("document_prefix") or "" if is_pylate else "",
        skipped=tuple(settings.get("skiplist_words", PUNCTUATION) or ()) if is_pylate else skipped,
        query_length=length,
        attends=attends,
        splits_prefix=not is_pylate,
    )


def _pylate_queries(settings: dict[str, Any]) -> tuple[int | None, int, bool]:
    """To how many tokens masks fill queries up, the most that queries may have, and whether they attend to masks."""
    longest = settings.get("query_length") or 32
    expands = settings.get("do_query_expansion") is not False
    return longest if expands else None, longest, bool(settings.get("attend_to_expansion_tokens"))


def _expansion(name: str, encoder: dict[str, Any]) -> tuple[int | None, int | None, bool]:
    """What :func:`_pylate_queries` gives, read off the settings of a sentence-transformers ``Transformer`` module."""
    expansion, longest = encoder.get("query_expansion"), encoder.get("query_length")
    if expansion is None:
        return None, longest, False
    _check(name, expansion.get("token") is None, f"fills queries up with {expansion.get('token')!r}")
    length = expansion["length"]
    return length, length if expansion["strategy"] == "fixed" else longest, bool(expansion.get("attend"))


def _dense(name: str, path: str, config: dict[str, Any]) -> torch.Tensor:
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    is_plain = activation == "Identity" and not config.get("bias", True) and not config.get("use_residual")
    _check(name, is_plain, f"projects with an activation ({activation}), a bias or a residual")
    weight = read_tensor(name, path, "linear.weight")
    _check(name, weight is not None, f"has no weights in {path!r}")
    assert weight is not None
    return weight


def _composed(first: torch.Tensor | None, then: torch.Tensor) -> torch.Tensor:
    return then if first is None else then @ first


def _check(name: str, is_fine: bool, what: str) -> None:
    if not is_fine:
        raise ValueError(f"{name!r} {what}, which ColBERT does not compute.")
