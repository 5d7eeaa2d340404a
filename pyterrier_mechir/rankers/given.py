"""What a ranker is made of, checked before anything is loaded or read, for every family alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir.models.modes import as_alone

if TYPE_CHECKING:
    from torch import nn

_GIVE = "give a Hugging Face id, a directory, or a loaded (model, tokenizer)"

_QUANTISERS = ("torchao", "bitsandbytes", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "compressed_tensors")
"""Packages whose modules or weights are quantised; torch's own have that in the names of their modules."""


def constructor(init: Callable[..., None]) -> Callable[..., None]:
    """The ``__init__`` of a family, which checks first what it is given, and loads as if no mode of torch were set."""
    takes_model = list(signature(init).parameters)[1:2] == ["model"]

    @wraps(init)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        if takes_model and (args or "model" in kwargs):
            check_given(args[0] if args else kwargs["model"], type(self).__name__, self.libraries)
        with as_alone():
            init(self, *args, **kwargs)

    return made


def check_given(given: Any, family: str, libraries: tuple[str, ...] = ()) -> None:
    """Check that a ranker can be made of what is given: a name, a directory, or a pair of a model and its tokenizer.

    Args:
        given: what is to be checked.
        family: the class that is to be made of it.
        libraries: the packages whose models the class takes too, by their first names.

    Raises:
        TypeError: it is nothing of the kind; the message says what it is, and what to give.
        ValueError: a directory without a checkpoint, or a model whose weights are quantised.
    """
    if isinstance(given, (str, Path)):
        from pyterrier_mechir.models.checkpoints import check_directory

        check_directory(str(given))
    elif isinstance(given, tuple) and len(given) == 2:
        _check_pair(*given, family)
    elif not any(_is_of(library, given) for library in libraries):
        what = f"a {type(given).__name__}"
        if isinstance(given, (tuple, list)):
            what = f"a {type(given).__name__} of {', '.join(type(part).__name__ for part in given[:3]) or 'nothing'}"
        raise TypeError(f"{family} cannot be made of {what}; {_GIVE}.")


def _is_of(library: str, thing: Any) -> bool:
    return library in (base.__module__.partition(".")[0] for base in type(thing).__mro__)


def _check_pair(model: Any, tokenizer: Any, family: str) -> None:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.models.twins import unwrapped

    given = f"({type(model).__name__}, {type(tokenizer).__name__})"
    if isinstance(model, PreTrainedTokenizerBase) and isinstance(tokenizer, nn.Module):
        raise TypeError(f"{family} was given {given}, the wrong way round; give (model, tokenizer).")
    if _is_of("sentence_transformers", model):
        raise TypeError(f"{family} was given {given}, and the first has its own tokenizer; give it alone.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{family} was given {given}, and the first is no model; {_GIVE}.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"{family} was given {given}, and the second is no tokenizer; give (model, tokenizer), with the tokenizer "
            "that AutoTokenizer.from_pretrained loads."
        )
    inner = unwrapped(model)
    if not hasattr(inner, "config"):
        raise TypeError(
            f"{family} was given {given}, and the first is no transformers model; give the one that it holds."
        )
    quantised = _quantised(inner)
    if quantised:
        raise ValueError(
            f"{type(model).__name__} is quantised ({quantised}), so that its weights cannot be read and patched; load "
            "it without quantisation, and use dtype='bfloat16' to save memory."
        )


def _quantised(model: nn.Module) -> str:
    """What shows that weights of a model are quantised; empty where nothing does."""
    if getattr(model, "is_quantized", False):
        return "is_quantized"
    for module in model.modules():
        package = type(module).__module__
        if package.partition(".")[0] in _QUANTISERS or "quantized" in package.split("."):
            return f"it has a {package}.{type(module).__name__}"
    for name, weight in model.named_parameters():
        if weight.dtype.itemsize < 2 or type(weight.data).__module__.partition(".")[0] in _QUANTISERS:
            return f"{name} is of {weight.dtype}"
    return ""
