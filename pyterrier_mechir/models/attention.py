"""Attention weights, read and replaced while a model runs.

transformers forms attention weights only in its eager attention, and lets no hook see them before they are used. Here
one attention function is registered with its attention interface; a layer whose weights somebody asks for is given that
function, by a configuration of its own, for as long as they are asked for. The function is the model's own eager
attention, with its weights passed through whoever asked. All other layers attend as they always do.

Shapes: ``B`` runs, ``H`` heads, ``Q`` query positions (the rows of a pattern, each of which sums to one), ``S`` keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

OnPattern = Callable[[Tensor], Tensor | None]
"""Gets attention weights ``[B, H, Q, S]``; what it returns, unless None, takes their place."""

_IMPLEMENTATION = "mechir_pattern"


@contextmanager
def on_pattern(attention: nn.Module, function: OnPattern) -> Iterator[None]:
    """Call a function with the weights of an attention module, after softmax, before they are applied to the values.

    Args:
        attention: a self-attention module that attends through transformers' attention interface.
        function: what is called; the last that was put there sees what those before it made.
    """
    config: Any = attention.config
    put_on_pattern(attention, function)
    try:
        yield
    finally:
        attention.config = config


def put_on_pattern(attention: nn.Module, function: OnPattern) -> None:
    """Have a function called as in :func:`on_pattern`, from now on."""
    config: Any = attention.config
    asked = copy(config)
    asked._attn_implementation = _IMPLEMENTATION
    asked.on_pattern = (*getattr(config, "on_pattern", ()), function)
    attention.config = asked


def attend(
    attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Plain scaled dot-product attention, for maps that are called outside their module.

    Where :func:`on_pattern` has put a function into the module, the attention weights go through that function.

    Args:
        attention: the attention module that the maps belong to.
        query: ``[B, H, Q, D]``: ``B`` runs, ``H`` heads, ``Q`` query positions, ``S`` key positions, ``D`` per head.
        key: ``[B, H, S, D]``.
        value: ``[B, H, S, D]``.
        attention_mask: as transformers makes it, broadcastable to ``[B, H, Q, S]``.

    Returns:
        The outputs z of the heads, ``[B, Q, H, D]``.
    """
    if attention.config._attn_implementation == _IMPLEMENTATION:  # type: ignore[union-attr]
        return _attention_with_weights(attention, query, key, value, attention_mask)[0]
    z = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    return z.transpose(1, 2)


def _attention_with_weights(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """The eager attention of a module's own architecture, its weights passed through ``config.on_pattern``."""
    if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False):
        attention_mask = _causal(query, key)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.where(attention_mask, query.new_zeros(()), lowest)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    z, own = eager(module, query, key, value, attention_mask, **kwargs)
    weights = own
    for function in module.config.on_pattern:  # type: ignore[union-attr]
        new = function(weights)
        weights = weights if new is None else new
    if weights is not own:
        of_heads = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
        z = torch.matmul(weights, of_heads).transpose(1, 2).contiguous()
    return z, weights


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """The mask that transformers leaves to sdpa where nothing is padded."""
    return torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()


AttentionInterface.register(_IMPLEMENTATION, _attention_with_weights)


def rows_of(weights: Tensor) -> Tensor:
    """Attention weights as an activation of the query positions: ``[B, H, Q, S]`` to ``[B, Q, H * S]``."""
    return weights.transpose(1, 2).flatten(2)


def weights_of(rows: Tensor, n_heads: int) -> Tensor:
    """The reverse of :func:`rows_of`."""
    return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)
