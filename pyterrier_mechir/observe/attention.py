"""Where attention heads look in one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.attention import on_pattern
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.recording import keeping
from pyterrier_mechir.models.sites import Site, name_of_head, select_sites
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

if TYPE_CHECKING:
    from pyterrier_mechir.models.anatomy import Anatomy
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.base import Ranker


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
    opened = ranker.opened
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(on_pattern(opened.anatomy.port(layer, "pattern").module, keeping(patterns, layer)))
        opened.encode(batch)
    return patterns


class TextAttention(NamedTuple):
    """The attention of some heads in one sequence of ``S`` positions.

    Args:
        tokens: its tokens, as the tokenizer writes them.
        token_classes: their token classes, names from :data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`.
        weights: after softmax, float32 ``[head, S, S]``: row ``i`` says where position ``i`` attends, and sums to one.
    """

    tokens: list[str]
    token_classes: list[str]
    weights: np.ndarray


@as_alone()
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
    weights = torch.stack([patterns[site.layer][0, int(site.number or 0)] for site in sites])
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
    sites = select_sites("head", anatomy, names).sites
    for site in sites:
        if site.component not in ("head", "pattern"):
            raise ValueError(f"{site.name!r} is no attention head; name heads like 'L5H8', or give (layer, head).")
    return [Site("head", site.layer, site.number) for site in sites if isinstance(site, Site)]


def _name(entry: Any) -> str:
    """The name of a head given as a name or as (layer, head)."""
    if not isinstance(entry, Sequence) or (len(entry) != 2 and not isinstance(entry, str)):
        raise ValueError(f"{entry!r} is no attention head; name heads like 'L5H8', or give (layer, head).")
    return name_of_head(entry)
