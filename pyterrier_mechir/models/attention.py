"""Attention weights, read and replaced while a model runs.

transformers forms attention weights only in its eager attention, and lets no hook see them before they are used. Here
one attention function is registered with its attention interface; a layer whose weights somebody asks for is given that
function, by a configuration of its own, for as long as they are asked for. The function is the model's own eager
attention, with its weights passed through whoever asked. All other layers attend as they always do.

Shapes: ``B`` runs, ``H`` heads, ``Q`` query positions (the rows of a pattern, each of which sums to one), ``S`` keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

OnPattern = Callable[[Tensor], Tensor | None]
"""Gets attention weights ``[B, H, Q, S]``; what it returns, unless None, takes their place."""

Place = TypeVar("Place", bound=Hashable)

_IMPLEMENTATION = "mechir_pattern"

_COMPUTED = "mechir_computed"


@dataclass(frozen=True)
class Heads:
    """What the attention of a layer computes with, after rotary positions and norms of queries and keys.

    Args:
        query: ``[B, H, Q, d]``.
        key: ``[B, H, S, d]``, those that several heads share repeated for each.
        value: ``[B, H, S, d]``, likewise.
        mask: what is added to the logits, broadcastable to ``[B, H, Q, S]``: masks and biases of relative positions;
            None for nothing.
        scale: what products of queries and keys are multiplied with.
        cap: what logits are softly limited to (Gemma 2), before the mask; None for no limit.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    cap: float | None

    def logits(self, products: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of products of queries and keys, and a mask of the same shape."""
        found = products * self.scale
        if self.cap is not None:
            found = (found / self.cap).tanh() * self.cap
        return found if mask is None else found + mask

    @property
    def weights(self) -> Tensor:
        """The attention weights, ``[B, H, Q, S]``."""
        return self.logits(self.query @ self.key.transpose(-1, -2), self.mask).softmax(-1)

    def rows(self, index: Tensor) -> Heads:
        """Those of some of the ``B`` runs, by their numbers."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[index]
        return replace(self, query=self.query[index], key=self.key[index], value=self.value[index], mask=mask)

    def detach(self) -> Heads:
        """The same outside of any graph."""
        return replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach())


OnHeads = Callable[[Heads], Tensor]
"""Gets what an attention computes with, and gives the heads' outputs z, ``[B, Q, H, d]``."""


@contextmanager
def on_pattern(attention: nn.Module, function: OnPattern) -> Iterator[None]:
    """Call a function with the weights of an attention module, after softmax, before they are applied to the values.

    Args:
        attention: a self-attention module that attends through transformers' attention interface.
        function: what is called; the last that was put there sees what those before it made.
    """
    with _as_it_was(attention):
        put_on_pattern(attention, function)
        yield


def put_on_pattern(attention: nn.Module, function: OnPattern) -> None:
    """Have a function called as in :func:`on_pattern`, from now on."""
    _ask(attention, _IMPLEMENTATION, on_pattern=(*getattr(attention.config, "on_pattern", ()), function))


@contextmanager
def computed_by(attention: nn.Module, function: OnHeads) -> Iterator[None]:
    """Have a function compute the outputs of the heads of an attention module.

    Args:
        attention: a self-attention module that attends through transformers' attention interface.
        function: what computes them.
    """
    with _as_it_was(attention):
        _ask(attention, _COMPUTED, computed_by=function)
        yield


@contextmanager
def keeping_heads(attentions: Mapping[Place, nn.Module]) -> Iterator[dict[Place, Heads]]:
    """Keep what attention modules compute with while a model runs.

    Args:
        attentions: attention modules that attend through transformers' attention interface.

    Yields:
        What each computed with when it ran last.
    """
    kept: dict[Place, Heads] = {}
    with ExitStack() as stack:
        for place, attention in attentions.items():
            stack.enter_context(_as_it_was(attention))
            _ask(attention, _IMPLEMENTATION, on_heads=partial(kept.__setitem__, place))
        yield kept


@contextmanager
def _as_it_was(attention: nn.Module) -> Iterator[None]:
    """Give an attention module its own config back at the end."""
    config = attention.config
    try:
        yield
    finally:
        attention.config = config


def _ask(attention: nn.Module, implementation: str, **functions: Any) -> None:
    """Have an attention module attend by an implementation, which finds functions in its config."""
    asked: Any = copy(attention.config)
    asked._attn_implementation = implementation
    vars(asked).update(functions)
    attention.config = asked


def attended(heads: Heads, weights: Tensor | None = None) -> Tensor:
    """The outputs z of heads, ``[B, H, Q, d]``.

    Args:
        heads: what they compute with.
        weights: attention weights ``[B, H, Q, S]`` to use in the place of their own.
    """
    if weights is None and heads.cap is None:
        query, key, value = heads.query, heads.key, heads.value
        return nn.functional.scaled_dot_product_attention(query, key, value, heads.mask, scale=heads.scale)
    return (heads.weights if weights is None else weights) @ heads.value


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
    """The eager attention of a module's own architecture, its weights passed through ``config.on_pattern``.

    What it computes with is given to ``config.on_heads``.
    """
    config: Any = module.config
    if getattr(config, "on_heads", None) is not None:
        config.on_heads(_heads(module, query, key, value, attention_mask, **kwargs))
    attention_mask = _added(module, query, key, attention_mask)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    z, own = eager(module, query, key, value, attention_mask, **kwargs)
    weights = own
    for function in getattr(config, "on_pattern", ()):
        new = function(weights)
        weights = weights if new is None else new
    if weights is not own:
        of_heads = value.repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
        z = torch.matmul(weights, of_heads).transpose(1, 2).contiguous()
    return z, weights


def _computed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention that ``config.computed_by`` computes."""
    config: Any = module.config
    return config.computed_by(_heads(module, query, key, value, attention_mask, **kwargs)), None


def _heads(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> Heads:
    """What an attention that is called through transformers' attention interface computes with."""
    mask = _added(module, query, key, attention_mask)
    if position_bias is not None:
        mask = position_bias if mask is None else position_bias + mask
    n = query.shape[1] // key.shape[1]
    key, value = (part if n == 1 else part.repeat_interleave(n, dim=1) for part in (key, value))
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return Heads(query, key, value, mask, scale, softcap)


def _added(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor | None:
    """A mask as what is added to logits."""
    if mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False):
        mask = _causal(query, key)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, query.new_zeros(()), torch.finfo(query.dtype).min)
    return mask


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """The mask that transformers leaves to sdpa where nothing is padded."""
    return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()


AttentionInterface.register(_IMPLEMENTATION, _attention_with_weights)
AttentionInterface.register(_COMPUTED, _computed)


def rows_of(weights: Tensor) -> Tensor:
    """Attention weights as an activation of the query positions: ``[B, H, Q, S]`` to ``[B, Q, H * S]``."""
    return weights.transpose(1, 2).flatten(2)


def weights_of(rows: Tensor, n_heads: int) -> Tensor:
    """The reverse of :func:`rows_of`."""
    return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)
