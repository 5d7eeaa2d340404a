"""What a sentence-transformers checkpoint says of itself: pooling, maps, norms, prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.checkpoints import read_json, read_tensor
from pyterrier_mechir.models.modes import over_same_memory
from pyterrier_mechir.rankers.settings import SIMILARITIES, Modules

_COMPUTED = {
    "BiEncoder": ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"),
    "Splade": ("Transformer", "MLMTransformer", "SpladePooling"),
}
"""The modules that each ranker computes."""

_TRANSFORMERS = ("Transformer", "MLMTransformer")

_DESCRIBED = ("Pooling", "SpladePooling", "Dense")

_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}


class _Module(NamedTuple):
    """One module, wherever it is described.

    Args:
        kind: its class.
        settings: what it says of itself; of the transformer, what it fixes, by the names of :class:`Modules`.
        weights: gives the weight and the bias of its linear map.
    """

    kind: str
    settings: dict[str, Any]
    weights: Callable[[], tuple[torch.Tensor | None, torch.Tensor | None]]


def read_modules(name: str, ranker: str = "BiEncoder") -> Modules:
    """What a checkpoint's sentence-transformers files say; all None where it has none.

    Args:
        name: the id or directory.
        ranker: the class that is to compute what they say, for messages.

    Raises:
        ValueError: a module or a pooling that the package does not compute.
    """
    listed = read_json(name, "modules.json")
    if listed is None:
        return Modules()
    found = _found(name, _of_files(name, listed, ranker))
    settings = read_json(name, "config_sentence_transformers.json") or {}
    similarity = settings.get("similarity_fn_name")
    if similarity is not None:
        found.setdefault("similarity", one_of(f"similarity of {name!r}", similarity, SIMILARITIES))
    return _with_prompts(found, settings.get("prompts"))


def loaded_modules(model: Any) -> tuple[tuple[Any, Any], Modules]:
    """The (model, tokenizer) of a SentenceTransformer that is loaded, and what its modules fix.

    Raises:
        ValueError: a module or a pooling that BiEncoder does not compute.
    """
    found = _found(type(model).__name__, _of_model(model))
    if model.similarity_fn_name in SIMILARITIES:
        found.setdefault("similarity", model.similarity_fn_name)
    return (model[0].auto_model, model.tokenizer), _with_prompts(found, model.prompts)


def _of_files(name: str, listed: Sequence[dict[str, str]], ranker: str) -> Iterator[_Module]:
    for module in listed:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind not in _COMPUTED[ranker]:
            raise ValueError(f"{name!r} has a sentence-transformers module {kind!r}, which {ranker} does not compute.")
        if kind in _TRANSFORMERS:
            said = read_json(name, f"{path}/sentence_bert_config.json".lstrip("/")) or {}
            longest = said.get("max_seq_length")
            settings = {
                "subfolder": path,
                "max_length": said.get("document_length") or longest,
                "max_query_length": said.get("query_length") or longest,
                "lowercase": bool(said.get("do_lower_case")),
            }
        else:
            settings = (read_json(name, f"{path}/config.json") or {}) if kind in _DESCRIBED else {}
        yield _Module(kind, settings, partial(_stored_weights, name, path))


def _stored_weights(name: str, path: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return read_tensor(name, path, "linear.weight"), read_tensor(name, path, "linear.bias")


def _of_model(model: Any) -> Iterator[_Module]:
    for module in model:
        kind = type(module).__name__
        if kind not in _COMPUTED["BiEncoder"]:
            raise ValueError(f"the {type(model).__name__} has a module {kind}, which BiEncoder does not compute.")
        if kind in _TRANSFORMERS:
            settings = dict.fromkeys(("max_length", "max_query_length"), model.max_seq_length)
            settings["lowercase"] = bool(getattr(module, "do_lower_case", False))
        else:
            settings = module.get_config_dict() if kind in _DESCRIBED else {}
        yield _Module(kind, settings, partial(_held_weights, module))


def _held_weights(module: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return module.linear.weight, module.linear.bias


def _found(name: str, modules: Iterable[_Module]) -> dict[str, Any]:
    """The settings that a checkpoint's modules fix, read in their order, by the names of :class:`Modules`."""
    found: dict[str, Any] = {}
    for kind, settings, weights in modules:
        if kind in _TRANSFORMERS:
            found |= settings
        elif kind == "Pooling":
            found["pooling"] = _pooling(name, settings)
        elif kind == "SpladePooling":
            found["pooling"] = settings.get("pooling_strategy")
            found["activation"] = settings.get("activation_function")
        elif kind == "Dense":
            found["projection"] = _with_dense(found, name, settings, *weights())
        elif kind == "Normalize":
            found["similarity"] = "cosine"
    return found


def _with_prompts(found: dict[str, Any], prompts: dict[str, str] | None) -> Modules:
    prompts = prompts or {}
    return Modules(**found, query_prefix=prompts.get("query"), doc_prefix=prompts.get("document"))


def _pooling(name: str, settings: dict[str, Any]) -> str:
    mode = settings.get("pooling_mode")
    if mode is None:
        modes = [key for key, on in settings.items() if on is True and key.startswith("pooling_mode_")]
        mode = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in modes]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise ValueError(f"{name!r} pools by {' and '.join(modes) or 'nothing'}; BiEncoder knows cls, mean and last.")
    if settings.get("include_prompt") is False:
        raise ValueError(f"{name!r} leaves its prompt out of the pooling, which BiEncoder does not do.")
    return _POOLING[modes[0]]


_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}


def _with_dense(
    found: dict[str, Any], name: str, settings: dict[str, Any], weight: torch.Tensor | None, bias: torch.Tensor | None
) -> nn.Sequential:
    """The projection of what was found, followed by a Dense module.

    Raises:
        ValueError: the module does not come between pooling and normalisation, or does more than a linear map and tanh.
    """
    kind = str(settings.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    places = {settings.get(f"module_{side}_name") or "sentence_embedding" for side in ("input", "output")}
    if kind not in _ACTIVATIONS or places != {"sentence_embedding"} or settings.get("use_residual"):
        raise ValueError(
            f"{name!r} has a Dense module with activation {kind} of {' and '.join(sorted(places))}"
            f"{' and a residual' if settings.get('use_residual') else ''}; BiEncoder computes one of the pooled "
            "vector, with tanh or no activation."
        )
    if "similarity" in found:
        raise ValueError(f"{name!r} projects normalised vectors, which BiEncoder does not do.")
    if weight is None:
        raise ValueError(f"cannot load {name!r}: its Dense module has no weights.")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(over_same_memory(weight.detach()).float(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(over_same_memory(bias.detach()).float(), requires_grad=False)
    return nn.Sequential(*found.get("projection", ()), linear, _ACTIVATIONS[kind]())
