"""The files of a checkpoint that transformers and sentence-transformers load: of each family, in its own format.

sentence-transformers' classes are named as releases before 5.4 had them, which later ones still read. None of them is
imported: what is written is JSON and tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pyterrier_mechir.models.checkpoints import read_json
from pyterrier_mechir.rankers.base import UNLIMITED, Ranker
from pyterrier_mechir.rankers.bi_encoder import BiEncoder
from pyterrier_mechir.rankers.colbert import ColBERT
from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
from pyterrier_mechir.rankers.generative import GenerativeReranker
from pyterrier_mechir.rankers.load import family_of
from pyterrier_mechir.rankers.mono_t5 import MonoT5
from pyterrier_mechir.rankers.splade import Splade
from pyterrier_mechir.rankers.templates import read_prompt

Models = Mapping[str, Any]
"""The models of a ranker with its edits in their weights, by the side that each encodes, or ``both``."""

_OF_LIBRARY = "sentence_transformers.models."
_OF_SPARSE = "sentence_transformers.sparse_encoder.models."
_TRANSFORMER = "sentence_bert_config.json"
_OF_MODEL = "config_sentence_transformers.json"

_OLDER_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


def written_family(ranker: Ranker) -> type[Ranker]:
    """The family as whose checkpoint a ranker is written.

    Raises:
        TypeError: it is of none.
    """
    family = family_of(ranker)
    if family is None:
        raise TypeError(f"{type(ranker).__name__} has no checkpoint of its own; bake() gives its model.")
    return family


def write(ranker: Ranker, models: Models, directory: Path) -> dict[str, Any]:
    """Write all that a ranker is made of.

    Args:
        ranker: the ranker, whose settings are written.
        models: its models.
        directory: an empty one.

    Returns:
        The options with which the class reads the directory as the ranker is, beyond what the files say.

    Raises:
        ValueError: something that its format cannot hold.
    """
    return _FILES[written_family(ranker)](ranker, models, directory)


def _json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: of.detach().cpu().contiguous().clone() for name, of in tensors.items()}, file)


def _pretrained(ranker: Ranker, model: Any, directory: Path) -> None:
    model.save_pretrained(directory)
    ranker.tokenizer.save_pretrained(directory)


def _modules(directory: Path, kinds: Mapping[str, str]) -> None:
    """``modules.json``: the class of each module, by its folder, in their order."""
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    _json(directory / "modules.json", rows)


def _only(ranker: Ranker, models: Models, kind: str) -> Any:
    """The model of a ranker that has one for both sides.

    Raises:
        ValueError: it has two.
    """
    if "both" not in models:
        raise ValueError(
            f"{ranker!r} is edited on one side, and a {kind} has one encoder for queries and documents; edit both "
            "sides alike."
        )
    return models["both"]


# Dense vectors


def _bi_encoder(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    after = _after_encoder(ranker)
    if "both" in models:
        _pretrained(ranker, models["both"], directory)
        _json(directory / _TRANSFORMER, _lengths(ranker))
        kinds = {"": "Transformer"} | {f"{n}_{kind}": kind for n, (kind, *_) in enumerate(after, 1)}
        _modules(directory, {path: _OF_LIBRARY + kind for path, kind in kinds.items()})
        names = list(kinds)[1:]
    else:
        names = [f"query_{n}_{kind}" for n, (kind, *_) in enumerate(after, 1)]
        kinds = {f"{side}_0_Transformer": "Transformer" for side in models}
        for side, model in models.items():
            _pretrained(ranker, model, directory / f"{side}_0_Transformer")
            _json(directory / f"{side}_0_Transformer" / _TRANSFORMER, _lengths(ranker))
        kinds |= {name: kind for name, (kind, *_) in zip(names, after, strict=True)}
        router = {
            "types": {name: _OF_LIBRARY + kind for name, kind in kinds.items()},
            "structure": {side: [f"{side}_0_Transformer", *names] for side in models},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        }
        _json(directory / "router_config.json", router)
        _modules(directory, {"": f"{_OF_LIBRARY}Router"})
    for name, (_, settings, weights) in zip(names, after, strict=True):
        _json(directory / name / "config.json", settings)
        if weights:
            _tensors(directory / name / "model.safetensors", weights)
    cuts = [step.apply.keywords["dim"] for step in ranker.projection or () if step.kind == "Truncate"]
    compares = {"similarity_fn_name": ranker.similarity, **({"truncate_dim": cuts[0]} if cuts else {})}
    _json(directory / _OF_MODEL, {"model_type": "SentenceTransformer", **_prompts(ranker), **compares})
    return {}


def _prompts(ranker: Any) -> dict[str, Any]:
    return {"prompts": {"query": ranker.query_prefix, "document": ranker.doc_prefix}, "default_prompt_name": None}


def _lengths(ranker: Any) -> dict[str, Any]:
    """The settings of a Transformer: older releases know one length, which is written alone where it is enough."""
    of_queries = {} if ranker.max_query_length == ranker.max_length else {"query_length": ranker.max_query_length}
    longest = {} if ranker.max_length == UNLIMITED else {"max_seq_length": ranker.max_length}
    return {**longest, "do_lower_case": False, **of_queries}


def _after_encoder(ranker: Any) -> list[tuple[str, dict[str, Any], Mapping[str, Tensor]]]:
    """The kind, the settings and the weights of each module after the encoder."""
    modes = {name: pooling == ranker.pooling for pooling, name in _OLDER_POOLINGS.items()}
    width = int(ranker.model.config.hidden_size)
    found: list[tuple[str, dict[str, Any], Mapping[str, Tensor]]] = []
    found.append(("Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": True}, {}))
    steps = ranker.projection or ()
    for step in steps:
        weights = step.weights()
        if step.kind == "Dense":
            found.append((step.kind, _dense(step.apply.keywords, weights), weights))
        elif step.kind == "LayerNorm":
            found.append((step.kind, {"dimension": len(weights["norm.weight"])}, weights))
        elif step.kind == "Normalize":
            found.append((step.kind, {}, {}))
    if ranker.similarity == "cosine" and not any(step.kind == "Truncate" for step in steps):
        found.append(("Normalize", {}, {}))
    return found


def _dense(options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    width, dim = weights["linear.weight"].shape[::-1]
    function = type(options["activation"])
    return {
        "in_features": width,
        "out_features": dim,
        "bias": "linear.bias" in weights,
        "activation_function": f"{function.__module__}.{function.__qualname__}",
        **({"use_residual": True} if options["residual"] else {}),
    }


# Sparse vectors and late interaction


def _splade(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    _pretrained(ranker, _only(ranker, models, "SparseEncoder"), directory)
    _json(directory / _TRANSFORMER, _lengths(ranker))
    _modules(directory, {"": f"{_OF_SPARSE}MLMTransformer", "1_SpladePooling": f"{_OF_SPARSE}SpladePooling"})
    width = int(ranker.model.config.vocab_size)
    pooling = {"pooling_strategy": ranker.pooling, "activation_function": ranker.activation}
    _json(directory / "1_SpladePooling" / "config.json", {**pooling, "word_embedding_dimension": width})
    _json(directory / _OF_MODEL, {"model_type": "SparseEncoder", **_prompts(ranker), "similarity_fn_name": "dot"})
    return {}


def _colbert(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    """In the format of PyLate, which has markers; else, with queries filled up otherwise, of a MultiVectorEncoder."""
    _pretrained(ranker, _only(ranker, models, "ColBERT"), directory)
    dim, width = ranker.projection.shape
    masks = ranker._query_template.padding
    is_pylate = masks is None or masks.length == ranker.max_query_length
    dense = {"in_features": width, "out_features": dim, "bias": False}
    dense |= {"activation_function": "torch.nn.modules.linear.Identity"}
    _tensors(directory / "1_Dense" / "model.safetensors", {"linear.weight": ranker.projection})
    if is_pylate:
        _json(directory / "1_Dense" / "config.json", dense)
        _modules(directory, {"": f"{_OF_LIBRARY}Transformer", "1_Dense": "pylate.models.Dense.Dense"})
        _json(directory / _TRANSFORMER, {"max_seq_length": ranker.max_length, "do_lower_case": False})
        told = {
            "query_prefix": ranker.query_marker,
            "document_prefix": ranker.doc_marker,
            "query_length": ranker.max_query_length,
            "document_length": ranker.max_length,
            "attend_to_expansion_tokens": ranker.attend_to_masks,
            "do_query_expansion": masks is not None,
            "skiplist_words": list(ranker.skipped),
        }
        _json(
            directory / _OF_MODEL, {"model_type": "ColBERT", **_prompts(ranker), "similarity_fn_name": "MaxSim", **told}
        )
        return {}
    places = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    modules = "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask"
    kinds = {"": "Transformer", "1_Dense": "Dense", "3_Normalize": "Normalize"}
    listed = {path: _OF_LIBRARY + kind for path, kind in kinds.items()}
    _modules(directory, {**{path: listed[path] for path in ("", "1_Dense")}, "2_MultiVectorMask": modules, **listed})
    _json(directory / "1_Dense" / "config.json", dense | places)
    _json(directory / "2_MultiVectorMask" / "config.json", {"skiplist_words": list(ranker.skipped)})
    _json(directory / "3_Normalize" / "config.json", places)
    filled = {"strategy": "min", "length": masks.length, "attend": ranker.attend_to_masks}
    sides = {"query_length": ranker.max_query_length, "document_length": ranker.max_length}
    _json(directory / _TRANSFORMER, {"max_seq_length": ranker.max_length, "query_expansion": filled, **sides})
    prompts = {"query": ranker.query_marker + ranker.query_prefix, "document": ranker.doc_marker + ranker.doc_prefix}
    of_model = {"model_type": "MultiVectorEncoder", "prompts": prompts, "similarity_fn_name": "maxsim"}
    _json(directory / _OF_MODEL, of_model)
    return {}


# Query and document read together


def _cross_encoder(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    _pretrained(ranker, models["both"], directory)
    prefix, was = ranker._query_prefix, _of_original(ranker, _OF_MODEL)
    if was or prefix or ranker.max_length != ranker._longest():
        reads = {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
        }
        _json(directory / _TRANSFORMER, {"max_seq_length": ranker.max_length, "do_lower_case": False, **reads})
        _modules(directory, {"": "sentence_transformers.base.modules.transformer.Transformer"})
        prompts = {"prompts": {"query": prefix}, "default_prompt_name": "query"} if prefix else {}
        kept = {name: was[name] for name in ("activation_fn",) if name in was}
        _json(directory / _OF_MODEL, {"model_type": "CrossEncoder", **prompts, **kept})
    return {"score": ranker.score_type, "relevant_label": ranker.relevant_label, "max_length": ranker.max_length}


def _of_original(ranker: Any, file: str) -> dict[str, Any]:
    """A JSON file of the checkpoint that a ranker was loaded from; nothing where there is none."""
    name = ranker._checkpoint
    return (read_json(name, file) if isinstance(name, str) else None) or {}


def _generative(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    """The modules of sentence-transformers stay where the prompt and the answers are those that they declare."""
    _pretrained(ranker, models["both"], directory)
    name = ranker._checkpoint
    declared = read_prompt(name)[1] if isinstance(name, str) else None
    told = (ranker.template, ranker.instruction or None, ranker._answers)
    if declared is not None:
        of_files = [answer for answer in (declared.yes, declared.no) if answer is not None]
        if told == (declared.template, declared.instruction, of_files):
            _copy_modules(name, directory)
    options = {"template": ranker.template, "instruction": ranker.instruction or None, "yes": ranker.yes}
    return options | {
        "no": ranker.no,
        "add_special_tokens": ranker.add_special_tokens,
        "max_length": ranker.max_length,
    }


def _copy_modules(name: str, directory: Path) -> None:
    """Write the settings of sentence-transformers as a checkpoint has them, with its Transformer at the top."""
    listed = read_json(name, "modules.json")
    for number, module in enumerate(listed):
        files = (_TRANSFORMER,) if number == 0 else ("config.json",)
        for file in files:
            found = read_json(name, f"{module['path']}/{file}".lstrip("/"))
            if found is not None:
                _json(directory / ("" if number == 0 else module["path"]) / file, found)
    listed[0]["path"] = ""
    _json(directory / "modules.json", listed)
    _json(directory / _OF_MODEL, read_json(name, _OF_MODEL) or {})


def _mono_t5(ranker: Any, models: Models, directory: Path) -> dict[str, Any]:
    _pretrained(ranker, models["both"], directory)
    return {name: getattr(ranker, name) for name in ("stack", "template", "true", "false", "max_length")}


_FILES: dict[type[Ranker], Callable[[Any, Models, Path], dict[str, Any]]] = {
    BiEncoder: _bi_encoder,
    CrossEncoder: _cross_encoder,
    MonoT5: _mono_t5,
    GenerativeReranker: _generative,
    Splade: _splade,
    ColBERT: _colbert,
}
