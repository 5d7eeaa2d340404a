"""Loading checkpoints, and reading what a sentence-transformers checkpoint says of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.bi_encoder import SIMILARITIES


@dataclass(frozen=True)
class Modules:
    """What the modules of a sentence-transformers checkpoint fix; None where they fix nothing."""

    subfolder: str = ""
    pooling: str | None = None
    similarity: str | None = None
    query_prefix: str | None = None
    doc_prefix: str | None = None
    max_length: int | None = None
    max_query_length: int | None = None
    lowercase: bool = False
    activation: str | None = None
    projection: nn.Sequential | None = None


_COMPUTED = {
    "BiEncoder": ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"),
    "Splade": ("Transformer", "MLMTransformer", "SpladePooling"),
}
"""The modules that each ranker computes."""

_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}


def infer_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA, then MPS, then the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


_ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
"""Which class loads the encoder alone of an encoder-decoder, by ``config.model_type``."""


def load_checkpoint(
    name: str, auto_class: Any, subfolder: str, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer.

    Raises:
        ValueError: neither the hub nor the disk has such a checkpoint, or it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(name, subfolder=subfolder)
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
        if auto_class is AutoModel and config.model_type in _ENCODERS:
            auto_class = getattr(transformers, _ENCODERS[config.model_type])
        model, loaded = auto_class.from_pretrained(
            name, subfolder=subfolder, config=config, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot load {name!r}: give the id of a Hugging Face checkpoint, a directory that holds one, or a loaded "
            f"(model, tokenizer). The reason was: {reason}"
        ) from error
    absent = [weight for weight in loaded["missing_keys"] if not _is_unused(weight, auto_class)]
    if absent:
        listed = ", ".join(sorted(absent)[:3])
        raise ValueError(f"cannot load {name!r} by {auto_class.__name__}: the checkpoint has no weights for {listed}.")
    return model, tokenizer


def _is_unused(weight: str, auto_class: Any) -> bool:
    """Whether a missing weight plays no part: an encoder's pooler, which no pooling here reads."""
    return auto_class is AutoModel and weight.startswith("pooler.")


def fingerprint(weights: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the weights of a model, in the precision that they have, and of its fast tokenizer: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    tokens = json.loads(tokenizer.backend_tokenizer.to_str())
    for set_by_calls in ("truncation", "padding"):
        tokens.pop(set_by_calls, None)
    digest.update(json.dumps(tokens, sort_keys=True).encode())
    return digest.hexdigest()


def read_modules(name: str, ranker: str = "BiEncoder") -> Modules:
    """What a checkpoint's sentence-transformers files say; all None where it has none.

    Args:
        name: the id or directory.
        ranker: the class that is to compute them.

    Raises:
        ValueError: a module or a pooling that the package does not compute.
    """
    listed = read_json(name, "modules.json")
    if listed is None:
        return Modules()
    found: dict[str, Any] = {}
    for module in listed:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind not in _COMPUTED[ranker]:
            raise ValueError(f"{name!r} has a sentence-transformers module {kind!r}, which {ranker} does not compute.")
        if kind in ("Transformer", "MLMTransformer"):
            found["subfolder"] = path
            settings = read_json(name, f"{path}/sentence_bert_config.json".lstrip("/")) or {}
            longest = settings.get("max_seq_length")
            found["max_length"] = settings.get("document_length") or longest
            found["max_query_length"] = settings.get("query_length") or longest
            found["lowercase"] = bool(settings.get("do_lower_case"))
        elif kind == "Pooling":
            found["pooling"] = _pooling(name, read_json(name, f"{path}/config.json") or {})
        elif kind == "SpladePooling":
            settings = read_json(name, f"{path}/config.json") or {}
            found["pooling"] = settings.get("pooling_strategy")
            found["activation"] = settings.get("activation_function")
        elif kind == "Dense":
            linear = (read_tensor(name, path, f"linear.{part}") for part in ("weight", "bias"))
            found["projection"] = _with_dense(found, name, read_json(name, f"{path}/config.json") or {}, *linear)
        elif kind == "Normalize":
            found["similarity"] = "cosine"
    settings = read_json(name, "config_sentence_transformers.json") or {}
    similarity = settings.get("similarity_fn_name")
    if similarity is not None:
        found.setdefault("similarity", one_of(f"similarity of {name!r}", similarity, SIMILARITIES))
    prompts = settings.get("prompts") or {}
    return Modules(**found, query_prefix=prompts.get("query"), doc_prefix=prompts.get("document"))


def loaded_modules(model: Any) -> tuple[tuple[Any, Any], Modules]:
    """The (model, tokenizer) of a SentenceTransformer that is loaded, and what its modules fix.

    Raises:
        ValueError: a module or a pooling that BiEncoder does not compute.
    """
    found: dict[str, Any] = {"max_length": model.max_seq_length, "max_query_length": model.max_seq_length}
    name = type(model).__name__
    for module in model:
        kind = type(module).__name__
        if kind not in _COMPUTED["BiEncoder"]:
            raise ValueError(f"the {name} has a module {kind}, which BiEncoder does not compute.")
        if kind == "Transformer":
            found["lowercase"] = bool(getattr(module, "do_lower_case", False))
        elif kind == "Pooling":
            found["pooling"] = _pooling(name, module.get_config_dict())
        elif kind == "Dense":
            settings = module.get_config_dict()
            found["projection"] = _with_dense(found, name, settings, module.linear.weight, module.linear.bias)
        elif kind == "Normalize":
            found["similarity"] = "cosine"
    if model.similarity_fn_name in SIMILARITIES:
        found.setdefault("similarity", model.similarity_fn_name)
    prompts = model.prompts or {}
    modules = Modules(**found, query_prefix=prompts.get("query"), doc_prefix=prompts.get("document"))
    return (model[0].auto_model, model.tokenizer), modules


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
    linear.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return nn.Sequential(*found.get("projection", ()), linear, _ACTIVATIONS[kind]())


def read_tensor(name: str, folder: str, key: str) -> torch.Tensor | None:
    """A weight in a folder of a checkpoint; None where there is none."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = find_file(name, f"{folder}/{file}".lstrip("/"))
        if found is not None and found.suffix == ".bin":
            weight: torch.Tensor | None = torch.load(found, "cpu", weights_only=True).get(key)
            return weight
        if found is not None:
            with safe_open(found, framework="pt") as weights:
                return weights.get_tensor(key) if key in weights.keys() else None  # noqa: SIM118
    return None


def read_json(name: str, path: str) -> Any:
    """A JSON file of a checkpoint; None where it has no such file."""
    file = find_file(name, path)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def find_file(name: str, path: str) -> Path | None:
    """A file of a checkpoint; None where it has no such file."""
    if Path(name).is_dir():
        return Path(name) / path if (Path(name) / path).is_file() else None
    try:
        file = cached_file(name, path, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if file is None else Path(file)
