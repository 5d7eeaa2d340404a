"""Edits that are carried on through the first layer that runs, as far as what they change there is known.

A layer whose input is not edited is not computed as a whole, for each patched copy:

1. Queries, keys, values and patterns of a head change that head's outputs z alone. These are computed, head by head, of
   the recorded run's and of the source's, and take the place of the edit: an edit of z.
2. What comes after attention is computed position by position. Where it is edited at some positions, these alone go
   through the rest of the layer, those of all copies and runs after one another as the positions of one run, and what
   comes out takes the place of the edit: an edit of the stream that leaves the layer.

What can not be carried on is left as it is.

Shapes: ``B`` runs, ``n`` patched copies of each, ``S`` positions, ``D`` features, ``H`` heads of ``d`` features, ``M``
heads of copies that are edited, ``R`` edited positions of all copies and runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyterrier_mechir.models.attention import Heads, attended, computed_by
from pyterrier_mechir.models.components import AFTER_ATTENTION, CODED, CROSS, INPUTS_OF_HEADS, SEEN
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, ending_early
from pyterrier_mechir.models.resuming import Edit, Entries, Resumption, copies, past_attention, resumed

_WITHIN = (INPUTS_OF_HEADS | AFTER_ATTENTION).difference(CROSS)

_WORTH = 0.75
"""Share of the positions that are edited from which on the layer is computed as a whole."""


def needed_to_carry(edits: Sequence[Key]) -> list[Key]:
    """What must be recorded of a run, beside what it is resumed from, to carry some edits on."""
    found, first = [], Resumption.at(edits)
    of_layer = {activation.removesuffix(CODED) for layer, activation in edits if layer == first.layer}
    if of_layer and of_layer <= _WITHIN:
        found.append((first.layer, "z"))
        if of_layer.isdisjoint(SEEN):
            found.append((first.layer, "resid_post"))
    return found


def carried(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit]) -> Sequence[Edit]:
    """Edits that come to the same as others, of as late activations of the first layer that runs as can be.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_carry` names.
        edits: the edits.
    """
    anatomy, first = opened.anatomy, Resumption.at([edit.key for edit in edits])
    own: Sequence[Edit] = [edit for edit in edits if edit.layer == first.layer]
    names = {edit.activation.removesuffix(CODED) for edit in own}
    is_followed = anatomy.is_row_wise and not opened.reads_within and all(edit.mask.dtype == torch.bool for edit in own)
    if first.start != (first.layer, "resid_pre") or not names <= _WITHIN or not is_followed:
        return edits
    into = [edit for edit in own if edit.activation in INPUTS_OF_HEADS]
    if into:
        if not anatomy.follows_attention(first.layer) or any(edit.source.ndim > 3 for edit in into):
            return edits
        after = [edit for edit in own if edit.activation not in INPUTS_OF_HEADS]
        own = [_on_outputs(opened, batch, base, into), *after]
    is_read_whole = first.layer + 1 < anatomy.n_layers or not opened.reads_first_token
    if is_read_whole and names.isdisjoint(SEEN):
        own = _on_stream(opened, base, own)
    return [*own, *(edit for edit in edits if edit.layer != first.layer)]


def _on_outputs(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit]) -> Edit:
    """The edit of z that comes to the same as edits of the inputs of heads of a layer."""
    layer, n_heads = edits[0].layer, opened.anatomy.n_heads
    n_runs, length = base[layer, "z"].shape[:2]
    masks: dict[str, Tensor] = {}
    moved: list[Tensor] = []
    for edit in edits:
        of_heads = edit.mask.repeat_interleave(n_heads // edit.mask.shape[3], dim=3)
        masks[edit.activation] = mask = of_heads.expand(-1, n_runs, length, -1)
        moved.append(mask.any(2, keepdim=True).expand_as(mask) if edit.activation in SEEN else mask)
    at = torch.stack(moved).any(0)
    copy, head = at.any(1).any(1).nonzero(as_tuple=True)

    def edited(activation: str, own: Tensor, source: Tensor) -> Tensor:
        if activation not in masks:
            return own[head]
        return torch.where(masks[activation][copy, :, :, head].unsqueeze(-1), source[head], own[head])

    of_parts = [edit for edit in edits if edit.activation != "pattern"]
    heads = _of_both(opened, batch, base, of_parts, layer)
    both = (part.unflatten(0, (2, n_runs)).transpose(1, 2) for part in (heads.query, heads.key, heads.value))
    query, key, value = (edited(activation, *part) for activation, part in zip("qkv", both, strict=True))
    added = None if heads.mask is None else heads.mask[:n_runs].transpose(0, 1)
    added = added if added is None or len(added) == 1 else added[head]
    of_edited, weights = replace(heads, query=query, key=key, value=value, mask=added), None
    for edit in edits:
        if edit.activation == "pattern":
            source = edit.source.unflatten(2, (n_heads, -1)).permute(2, 0, 1, 3)
            weights = torch.where(masks["pattern"][copy, :, :, head].unsqueeze(-1), source[head], of_edited.weights)
    z = attended(of_edited, weights)
    place = at.new_zeros((len(at), n_heads), dtype=torch.long)
    place[copy, head] = torch.arange(len(copy), device=at.device)
    of_copy, run, position, of_head = at.nonzero(as_tuple=True)
    return Entries(layer, "z", z[place[of_copy, of_head], run, position], at)


def _of_both(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit], layer: int) -> Heads:
    """What the heads of a layer compute with, in recorded runs and, after them, in these edited as a whole."""
    found: list[Heads] = []
    whole = [replace(edit, mask=edit.mask.new_tensor([False, True])[:, None, None, None]) for edit in edits]
    resumption = Resumption(layer, (layer, "resid_pre"), frozenset())
    with ending_early() as end:

        def keep(heads: Heads) -> Tensor:
            found.append(heads)
            end()

        with computed_by(opened.anatomy.attention(layer), keep), resumed(opened, base, whole, 2, resumption, heads=()):
            opened.forward({name: copies(value, 2) for name, value in batch.items()})
    return found[0]


def _on_stream(opened: Opened, base: Recording, edits: Sequence[Edit]) -> Sequence[Edit]:
    """The edit of the stream that leaves a layer that comes to the same as edits after attention at few positions."""
    anatomy, layer = opened.anatomy, edits[0].layer
    stream, z = base[layer, "resid_pre"], base[layer, "z"]
    at = torch.stack([edit.rows(stream.shape[1], len(stream)) for edit in edits]).any(0)
    rows = at.nonzero(as_tuple=True)
    if len(rows[0]) > _WORTH * at.numel():
        return edits
    stream, z = (value[rows[1:]][None] for value in (stream, z))
    made = past_attention(anatomy, layer, stream, z, [(edit.key, edit.packed(rows)) for edit in edits])
    return [Entries(layer, "resid_post", made[0], at[..., None])]
