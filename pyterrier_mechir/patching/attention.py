"""Attention weights: reading them, replacing them, and summing them up.

transformers forms attention weights only in its eager attention, and lets no hook see them before they are used. Here
one attention function is registered with its attention interface; a layer whose weights somebody asks for is given that
function, by a configuration of its own, for as long as they are asked for. The function is the model's own eager
attention, with its weights passed through whoever asked. All other layers attend as they always do.

Shapes: ``B`` runs, ``H`` heads, ``Q`` query positions (the rows of a pattern, each of which sums to one), ``S`` keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from pyterrier_mechir.patching.sites import Site, select_sites
from pyterrier_mechir.rankers.encoding import TOKEN_CLASSES

if TYPE_CHECKING:
    from pyterrier_mechir.patching.recording import Batch
    from pyterrier_mechir.rankers.anatomy import Anatomy
    from pyterrier_mechir.rankers.base import Ranker

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
    asked = copy(config)
    asked._attn_implementation = _IMPLEMENTATION
    asked.on_pattern = (*getattr(config, "on_pattern", ()), function)
    attention.config = asked
    try:
        yield
    finally:
        attention.config = config


def attend(
    attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Plain attention as a module does it: with its weights read where somebody asks for them.

    Args:
        attention: the module.
        query: ``[B, H, Q, D]``.
        key: ``[B, H, S, D]``.
        value: ``[B, H, S, D]``.
        attention_mask: as transformers makes it, broadcastable to ``[B, H, Q, S]``.

    Returns:
        ``[B, Q, H, D]``.
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


def read_patterns(ranker: Ranker, batch: Batch, layers: Iterable[int]) -> dict[int, Tensor]:
    """The attention weights of a batch.

    Args:
        ranker: the model.
        batch: its inputs, for ``B`` runs.
        layers: the layers asked for.

    Returns:
        For each layer ``[B, H, S, S]``, after softmax: row ``i`` says where position ``i`` attends, and sums to one.

    Raises:
        ValueError: the architecture does not let its attention weights be read.
    """
    patterns: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            keep = partial(patterns.__setitem__, layer)
            stack.enter_context(on_pattern(ranker.anatomy.port(layer, "pattern").module, keep))
        ranker.encode(batch)
    return patterns


class TextAttention(NamedTuple):
    """The attention of some heads in one sequence of ``S`` positions.

    Args:
        tokens: its tokens, as the tokenizer writes them.
        token_classes: their token classes, names from :data:`~pyterrier_mechir.rankers.encoding.TOKEN_CLASSES`.
        weights: after softmax, float32 ``[head, S, S]``: row ``i`` says where position ``i`` attends, and sums to one.
    """

    tokens: list[str]
    token_classes: list[str]
    weights: np.ndarray


def attention_of(ranker: Ranker, query: str, text: str, heads: Sequence[Any]) -> TextAttention:
    """Where attention heads look in one text, token by token.

    Args:
        ranker: the model. The sequence is the one that it scores: a bi-encoder's has the text alone, a cross-encoder's
            the query and the text.
        query: the query; it also decides which tokens are of its terms.
        text: the document's text.
        heads: the heads, as (layer, head) or names such as ``"L5H8"``.

    Returns:
        The tokens, their token classes, and the weights of the heads in their order: those that the model gives when it
        attends eagerly.

    Raises:
        ValueError: an unknown head, or an architecture that does not let its attention weights be read.
    """
    sites = head_sites(ranker.anatomy, heads)
    ranker = ranker.facing("document")
    (pair,) = ranker.align([query], [text], [text], alignments=["fill"])
    assert pair is not None, "a text beside itself has no edit that could be lost"
    batch = ranker.collate([pair.perturbed], {}, [])
    with torch.no_grad():
        patterns = read_patterns(ranker, batch, range(1 + max(site.layer for site in sites)))
    weights = torch.stack([patterns[site.layer][0, int(site.head or 0)] for site in sites])
    tokens = ranker.tokenizer.convert_ids_to_tokens(pair.perturbed.ids.tolist())
    classes = [TOKEN_CLASSES[number] for number in pair.classes]
    return TextAttention(list(map(str, tokens)), classes, weights.float().cpu().numpy())


def head_sites(anatomy: Anatomy, heads: Sequence[Any] | None) -> list[Site]:
    """The attention heads of a model that entries name.

    Args:
        anatomy: the model's.
        heads: entries such as (layer, head) or ``"L5H8"``; None is all heads.

    Raises:
        ValueError: no entry, or one that is no attention head of the model.
    """
    names = None if heads is None else [_name(entry) for entry in heads]
    if names == []:
        raise ValueError("an empty list of heads reads nothing; leave it out, or name heads like 'L5H8'.")
    sites = select_sites("head", anatomy.n_layers, anatomy.n_heads, names).sites
    for site in sites:
        if site.component not in ("head", "pattern"):
            raise ValueError(f"{site.name!r} is no attention head; name heads like 'L5H8', or give (layer, head).")
    return [Site("head", site.layer, site.head) for site in sites if isinstance(site, Site)]


def _name(entry: Any) -> str:
    """The name of a head given as a name or as (layer, head)."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Sequence) or len(entry) != 2:
        raise ValueError(f"{entry!r} is no attention head; name heads like 'L5H8', or give (layer, head).")
    return f"L{entry[0]}H{entry[1]}"
