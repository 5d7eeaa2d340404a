"""How long a sequence a model takes, and whether what is asked for fits it."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from pyterrier_mechir.text.encoding import Template


def n_positions(model: nn.Module) -> int | None:
    """How many positions a model has an embedding of; None where positions are relative or rotary, without an end."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and hasattr(module, "num_embeddings"):
            padding: Any = getattr(module, "padding_idx", None)
            return int(module.num_embeddings) - (0 if padding is None else padding + 1)
    return None


def check_length(name: str, value: Any, template: Template, model: nn.Module, reader: str) -> int:
    """A length that a user asks for, or that a checkpoint declares.

    Args:
        name: of the option.
        value: the length, in tokens with special ones.
        template: what is around the texts in every sequence.
        model: the model.
        reader: what messages call the ranker.

    Raises:
        TypeError: it is no whole number.
        ValueError: no token of a text would be left, or the model has fewer positions.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; give a whole number of tokens, or None for the checkpoint's own.")
    length = int(value)
    least, most = template.n_special + len(template.order), n_positions(model)
    if length < least:
        raise ValueError(
            f"{name} is {value}, but {reader} puts {template.n_special} tokens of its own around texts; give at least "
            f"{least}."
        )
    if most is not None and length > most:
        raise ValueError(f"{name} is {value}, but {reader} has {most} positions; give at most {most}.")
    return length


def within(model: nn.Module, length: int | None) -> int | None:
    """A length that the files of a checkpoint declare, which may be more than the model has positions for."""
    most = n_positions(model)
    return length if most is None or length is None else min(length, most)


def check_vocabulary(n_ids: int, model: Any) -> None:
    """Check that a model has an embedding of each token.

    Raises:
        ValueError: the tokenizer has more.
    """
    n_rows = model.get_input_embeddings().weight.shape[0]
    if n_ids > n_rows:
        raise ValueError(
            f"the tokenizer has token ids up to {n_ids - 1}, but the {type(model).__name__} has {n_rows} embeddings; "
            f"resize them with model.resize_token_embeddings({n_ids}), or give the tokenizer that the model has."
        )
