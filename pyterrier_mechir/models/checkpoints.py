"""Loading a checkpoint of transformers, and reading its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]
from safetensors import safe_open
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto
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
    name: str, auto_class: Any, subfolder: str, dtype: torch.dtype | str, read_apart: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer.

    Args:
        name: the id or directory of the checkpoint.
        auto_class: the class of transformers that loads it.
        subfolder: where in the checkpoint they are.
        dtype: precision of the weights.
        read_apart: weights for which the model has no place and that whoever asks reads for itself.

    Raises:
        ValueError: neither the hub nor the disk has such a checkpoint, it is quantised, it cannot be read without
            running code of its own, or it lacks weights or has some for which no model of its architecture has a place.
    """
    check_directory(name, subfolder)
    try:
        config = AutoConfig.from_pretrained(name, subfolder=subfolder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder, trust_remote_code=False)
        if auto_class is AutoModel and config.model_type in _ENCODERS:
            auto_class = getattr(transformers, _ENCODERS[config.model_type])
        quantised = getattr(config, "quantization_config", None) is not None
        if not quantised:
            model, loaded = auto_class.from_pretrained(
                name,
                subfolder=subfolder,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                **attending(config),
            )
    except UnpicklingError as error:
        raise _no_model(
            name,
            "its weights are pickled with objects that are no tensors, which are not read because they may run code; "
            "give a checkpoint with weights in safetensors.",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        check_model(name, subfolder)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _no_model(
            name,
            "give the id of a Hugging Face checkpoint, a directory that holds one, or a loaded (model, tokenizer). The "
            f"reason was: {_cut(reason, 200)}",
        ) from error
    if quantised:
        raise _no_model(
            name,
            "its weights are quantised, so that they cannot be read and patched; take the checkpoint that it was made "
            "from, with dtype='bfloat16' to save memory.",
        )
    absent = [weight for weight in loaded["missing_keys"] if not _is_unused(weight, auto_class)]
    if absent:
        listed = ", ".join(sorted(absent)[:3])
        raise ValueError(f"cannot load {name!r} by {auto_class.__name__}: the checkpoint has no weights for {listed}.")
    strange = sorted(_strange(loaded["unexpected_keys"], model) - {*read_apart})
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise ValueError(
            f"cannot load {name!r}: {type(model).__name__} has no place for its weights {', '.join(strange[:3])}"
            f"{more}, which may decide its scores; give a checkpoint of sentence-transformers that has them in modules "
            "of their own, or, to score without them, a loaded (model, tokenizer)."
        )
    return model, tokenizer


def attending(config: Any) -> dict[str, str]:
    """How a model has to attend for its scores to be right, as an option of ``from_pretrained``; empty for any way.

    Products of queries and keys that are softly limited (Gemma 2) are so in eager attention only; up to 5.20,
    transformers takes another where it is not told.
    """
    return {} if getattr(config, "attn_logit_softcapping", None) is None else {"attn_implementation": "eager"}


_ADAPTER = "adapter_config.json"

_ADAPTER_ALONE = (
    "it has an adapter of PEFT and no model; load the model that it was trained on, put the adapter on it with "
    "peft.PeftModel.from_pretrained, and give what merge_and_unload() makes of both as (model, tokenizer), or save it."
)


def check_directory(name: str, folder: str = "") -> None:
    """Check that there is a checkpoint in a directory; of a name on the hub, nothing is checked.

    Args:
        name: the directory, or what may be the name of a checkpoint on the hub.
        folder: the folder in it that has the model; empty for the directory itself, where sentence-transformers and
            ColBERT may have a list of folders in its place.

    Raises:
        ValueError: there is no such directory, or it has no model.
    """
    path = Path(name)
    if not path.is_dir():
        if path.is_file():
            raise _no_model(name, "it is a file; give the directory that it is in.")
        if not _may_be_on_hub(name):
            raise _no_model(name, "there is no such directory, and no Hugging Face id is written so.")
        return
    path = path / folder
    described = ("config.json", *(() if folder else ("modules.json", "artifact.metadata")))
    weights = [file for kind in ("model*.safetensors", "pytorch_model*.bin") for file in path.glob(kind)]
    if (path / _ADAPTER).is_file() and not weights:
        raise _no_model(name, _ADAPTER_ALONE)
    if not any((path / file).is_file() for file in described):
        raise _no_model(name, f"there is no config.json in {str(path)!r}; give the directory of a saved model.")


def check_model(name: str, folder: str = "") -> None:
    """Check that a checkpoint is no adapter without a model, on the hub or in a directory.

    Raises:
        ValueError: it is.
    """
    files = [find_file(name, f"{folder}/{file}".lstrip("/")) for file in (_ADAPTER, "config.json")]
    if files[0] is not None and files[1] is None:
        raise _no_model(name, _ADAPTER_ALONE)


def _may_be_on_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _no_model(name: str, reason: str) -> ValueError:
    return ValueError(f"cannot load {_cut(name, 120)!r}: {reason}")


def _cut(text: str, n: int) -> str:
    return text if len(text) <= n else f"{text[:n]}..."


_HEADED = (
    "PRETRAINING",
    "MASKED_LM",
    "SEQUENCE_CLASSIFICATION",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "TOKEN_CLASSIFICATION",
    "QUESTION_ANSWERING",
    "MULTIPLE_CHOICE",
    "CAUSAL_LM",
)
"""What transformers puts upon the models of an architecture, by the names of its tables."""


def _strange(unexpected: Collection[str], model: PreTrainedModel) -> set[str]:
    """Weights that are in a checkpoint and not in a model, and that are of no head that transformers knows.

    A head of another task, such as that of pretraining, is left out by whoever asks for a model without it.
    """
    bare = {key: key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] for key in unexpected}
    strange = {key for key, part in bare.items() if part != "pooler"}
    own = {name for name, _ in model.named_children()}
    config = deepcopy(model.config)
    config.num_hidden_layers, config.num_labels = 1, 2
    for task in _HEADED if strange else ():
        found = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING").get(type(config), ())
        for headed in found if isinstance(found, tuple) else (found,):
            with torch.device("meta"):
                heads = {name for name, _ in headed(config).named_children()} - own
            strange = {key for key in strange if bare[key] not in heads}
        if not strange:
            break
    return strange


def _is_unused(weight: str, auto_class: Any) -> bool:
    """Whether a missing weight plays no part: an encoder's pooler, which no pooling here reads."""
    return auto_class is AutoModel and weight.startswith("pooler.")


def lowercased(tokenizer: Any) -> Any:
    """A copy of a fast tokenizer that lower-cases texts first, but for its special tokens; as sentence-transformers."""
    made = deepcopy(tokenizer)
    before = made.backend_tokenizer.normalizer
    lower = normalizers.Lowercase()
    made.backend_tokenizer.normalizer = lower if before is None else normalizers.Sequence([lower, before])
    return made


def fingerprint(weights: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the weights of a model, in the precision that they have, and of its fast tokenizer: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(json.dumps(how_it_reads(tokenizer), sort_keys=True).encode())
    return digest.hexdigest()


def how_it_reads(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that decides which tokens a fast tokenizer makes of a text."""
    tokens: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for set_by_calls in ("truncation", "padding"):
        tokens.pop(set_by_calls, None)
    return tokens


def read_tensors(name: str, folder: str, *keys: str) -> dict[str, torch.Tensor]:
    """The weights in a folder of a checkpoint, by name.

    Args:
        name: the id or directory of the checkpoint.
        folder: the folder in it; empty for the checkpoint's own.
        keys: which weights, of those that are there; none for all.
    """
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = find_file(name, f"{folder}/{file}".lstrip("/"))
        if found is not None and found.suffix == ".bin":
            weights: dict[str, torch.Tensor] = torch.load(found, "cpu", weights_only=True)
            return {key: weight for key, weight in weights.items() if key in (keys or weights)}
        if found is not None:
            with safe_open(found, framework="pt") as stored:
                there = stored.keys()
                return {key: stored.get_tensor(key) for key in there if key in (keys or there)}
    return {}


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
