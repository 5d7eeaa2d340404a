"""Loading a checkpoint of transformers, and reading its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file


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
