"""Loading checkpoints, and reading what a sentence-transformers checkpoint says of itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last", "last": "last"}


def infer_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA, then MPS, then the CPU."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_checkpoint(
    name: str, auto_class: Any, subfolder: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer.

    Raises:
        ValueError: neither the hub nor the disk has such a checkpoint, or it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(name, subfolder=subfolder)
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder)
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


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the weights of a model, in the precision that they have, and of its fast tokenizer: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    tokens = json.loads(tokenizer.backend_tokenizer.to_str())
    for set_by_calls in ("truncation", "padding"):
        tokens.pop(set_by_calls, None)
    digest.update(json.dumps(tokens, sort_keys=True).encode())
    return digest.hexdigest()


def read_modules(name: str) -> Modules:
    """What a checkpoint's sentence-transformers files say; all None where it has none.

    Raises:
        ValueError: a module or a pooling that the package does not compute.
    """
    listed = _read_json(name, "modules.json")
    if listed is None:
        return Modules()
    found: dict[str, Any] = {}
    for module in listed:
        kind, path = module["type"].rsplit(".", 1)[-1], module["path"]
        if kind == "Transformer":
            found["subfolder"] = path
            settings = _read_json(name, f"{path}/sentence_bert_config.json".lstrip("/")) or {}
            longest = settings.get("max_seq_length")
            found["max_length"] = settings.get("document_length") or longest
            found["max_query_length"] = settings.get("query_length") or longest
            found["lowercase"] = bool(settings.get("do_lower_case"))
        elif kind == "Pooling":
            found["pooling"] = _pooling(name, _read_json(name, f"{path}/config.json") or {})
        elif kind == "Normalize":
            found["similarity"] = "cosine"
        elif kind != "Dropout":
            raise ValueError(f"{name!r} has a sentence-transformers module {kind!r}, which BiEncoder does not compute.")
    settings = _read_json(name, "config_sentence_transformers.json") or {}
    similarity = settings.get("similarity_fn_name")
    if similarity is not None:
        found.setdefault("similarity", one_of(f"similarity of {name!r}", similarity, SIMILARITIES))
    prompts = settings.get("prompts") or {}
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


def _read_json(name: str, path: str) -> Any:
    if Path(name).is_dir():
        file: str | None = str(Path(name) / path) if (Path(name) / path).is_file() else None
    else:
        try:
            file = cached_file(name, path, _raise_exceptions_for_missing_entries=False)
        except OSError:
            return None
    if file is None:
        return None
    return json.loads(Path(file).read_text(encoding="utf-8"))
