"""Where a patched run takes up a recorded one, and what is put into the model for that.

The model is never rewritten: its own ``forward`` runs every time, and what a patch cannot change is not computed again.

1. All patched copies of all runs of a batch are stacked on the batch axis.
2. Embeddings and layers before the first edit are skipped; the first layer that runs starts from its recorded input,
   edited where that is what is patched. Its queries, keys and values are computed where that input changes, and the
   others once for all copies.
3. Where the edits come after that layer's attention, the recorded head outputs z take the place of its attention. Heads
   may also be frozen in layers that follow: recorded outputs then stand there too.
4. Edits replace activations as they pass their ports.
5. What follows, the final norm, the pooler and the head, is the model's own code on the patched activations; where the
   score reads the first position only, the last layer computes no other.

Shapes: ``B`` runs in the batch, ``n`` patched copies of each, ``S`` positions, ``D`` features, ``G`` groups of
features (one per head for z, else 1). The features of a pattern are, head by head, what each position attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.attention import attend
from pyterrier_mechir.models.components import AFTER_ATTENTION, CODED, INPUTS_OF_HEADS
from pyterrier_mechir.models.opened import Opened
from pyterrier_mechir.models.ports import on_port, overridden
from pyterrier_mechir.models.recording import Key, Recording

Rows = tuple[Tensor, ...]
"""Copies, runs and positions, ``[R]`` each: an index of ``[n, B, S]``."""


@dataclass(frozen=True)
class Edit:
    """An activation to replace, as a whole or by interpolation, in some copies, runs, positions and groups of features.

    Args:
        layer: the layer.
        activation: its name, as in :data:`~pyterrier_mechir.models.components.COMPONENTS`.
        source: the values to take, ``[B, S, D]``, or ``[n, B, S, D]`` where the copies take different ones.
        mask: which copies, runs, positions and groups take them, broadcastable to ``[n, B, S, G]``: bool, or a
            number between 0 (keeps the run's own value) and 1 (takes the source's), by which the two are mixed.
    """

    layer: int
    activation: str
    source: Tensor
    mask: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """Edit an activation of the running copies, ``[n * B, S, D]``; it may have the first positions only."""
        n, groups = self.mask.shape[0], self.mask.shape[3]
        length = value.shape[1]
        source = self.source[..., :length, :].unflatten(-1, (groups, -1))
        mask = self.mask[:, :, :length] if self.mask.shape[2] > 1 else self.mask
        running = value.unflatten(0, (n, -1)).unflatten(-1, (groups, -1))
        mix = torch.where if mask.dtype == torch.bool else _part_of_the_way
        return mix(mask.unsqueeze(-1), source, running).flatten(3).flatten(0, 1)

    @property
    def key(self) -> Key:
        """The (layer, activation)."""
        return self.layer, self.activation

    def rows(self, length: int, n_runs: int) -> Tensor:
        """The positions at which anything is replaced, bool ``[n, B, S]``."""
        return self.mask.any(-1).expand(-1, n_runs, length)

    def packed(self, rows: Rows) -> Edit:
        """The edit of one run, whose positions are some positions of copies and runs after one another."""
        source = self.source[rows if self.source.ndim == 4 else rows[1:]]
        mask = self.mask.expand(-1, *self.source.shape[-3:-1], -1)
        return replace(self, source=source[None], mask=mask[rows][None, None])


@dataclass(frozen=True)
class Entries(Edit):
    """An edit of single entries, which has values for these alone.

    Args:
        layer: the layer.
        activation: its name.
        source: the values, ``[R, D / G]``, one for each entry of the mask that holds, in their order.
        mask: which copies, runs, positions and groups take them, bool ``[n, B, S, G]`` in full.
    """

    def __call__(self, value: Tensor) -> Tensor:
        n, length, groups = self.mask.shape[0], value.shape[1], self.mask.shape[3]
        source = self.source[self.mask.nonzero()[:, 2] < length] if length < self.mask.shape[2] else self.source
        running = value.unflatten(0, (n, -1)).unflatten(-1, (groups, -1))
        return running.index_put((self.mask[:, :, :length],), source).flatten(3).flatten(0, 1)

    def packed(self, rows: Rows) -> Edit:
        """As that of an edit: all entries that have values are in these rows."""
        return replace(self, mask=self.mask[rows][None, None])


def at_positions(at: Tensor, length: int) -> Tensor:
    """The positions at which an activation is patched, given those of the sequence.

    The activations of an encoder have the positions of the sequence, and are patched there. A decoder that reads an
    encoder has positions of its own, to which those of the sequence say nothing: it is patched at all of them wherever
    any position of the sequence is.

    Args:
        at: whether to patch, bool ``[..., S]`` over the positions of the sequence, or ``[..., 1]`` for all of them.
        length: how many positions the activation has.

    Returns:
        ``at`` itself where it has one entry for each position of the activation, or one for all; else ``[..., 1]``.
    """
    return at if at.shape[-1] in (1, length) else at.any(dim=-1, keepdim=True)


def _part_of_the_way(weight: Tensor, source: Tensor, running: Tensor) -> Tensor:
    return running + weight * (source - running)


@dataclass(frozen=True)
class Resumption:
    """Where a patched run takes up the recorded one.

    Args:
        layer: the first layer that is computed, in full or in part; the number of layers where none is.
        start: the recorded activation that enters it; None where the run starts at the tokens.
        given: layers, from that one on, whose attention is not computed: their recorded head outputs z take its place.
    """

    layer: int
    start: tuple[int, str] | None
    given: frozenset[int]

    @classmethod
    def at(cls, edits: Sequence[tuple[int, str]], frozen: int = 0) -> Resumption:
        """Before the first of some edited activations, with the heads of all layers before ``frozen`` frozen."""
        edits = [(layer, activation.removesuffix(CODED)) for layer, activation in edits]
        if any(activation == "embed" for _, activation in edits):
            layer, start, of_layer = 0, None, []
        else:
            layer = min(layer + (activation == "resid_post") for layer, activation in edits)
            moved = (layer - 1, "resid_post") in edits
            of_layer = [] if moved else [activation for edited, activation in edits if edited == layer]
            start = (layer - 1, "resid_post") if moved else (layer, "resid_pre")
        moving = {layer for layer, activation in edits if activation in INPUTS_OF_HEADS}
        given = set(range(layer, frozen)) - moving
        if of_layer and AFTER_ATTENTION.issuperset(of_layer):
            given.add(layer)
        return cls(layer, start, frozenset(given))


def copies(value: Tensor, n: int) -> Tensor:
    """``n`` copies of ``[B, ...]`` after one another on the first axis."""
    return value.expand(n, *value.shape).flatten(0, 1)


def stream_of(made: Any) -> Tensor:
    """The stream among what a layer returns, ``[B, S, D]``."""
    stream: Tensor = made[0] if isinstance(made, tuple) else made
    return stream


def past_attention(
    anatomy: Anatomy, layer: int, stream: Tensor, z: Tensor, edits: Iterable[tuple[Key, Callable[[Tensor], Tensor]]]
) -> Tensor:
    """The stream that leaves a layer, ``[B, S, D]``, whose attention is not computed.

    Args:
        anatomy: of the model.
        layer: the layer.
        stream: what enters it, ``[B, S, D]``.
        z: the outputs of its heads, ``[B, S, D]``.
        edits: what replaces activations of the layer after attention, each by its (layer, activation).
    """
    # Of what attention returns beside its output, the bias that T5 hands on to later layers, nothing is read here.
    attention = anatomy.attention(layer), lambda *_, **__: anatomy.attention_output(layer, z, position_bias=z)
    with ExitStack() as stack:
        stack.enter_context(overridden([attention]))
        for key, edit in edits:
            stack.enter_context(on_port(anatomy.port(*key), edit))
        return stream_of(anatomy.layers[layer](stream))


@contextmanager
def resumed(
    opened: Opened,
    base: Recording,
    edits: Sequence[Edit],
    n: int,
    resumption: Resumption,
    frozen: int = 0,
    heads: Sequence[Key] | None = None,
) -> Iterator[None]:
    """Have the model's forward take up recorded runs, ``n`` copies of each, and apply edits.

    Args:
        opened: the model.
        base: the recording of the runs.
        edits: the edits.
        n: how many copies.
        resumption: where they take up, before the first edit.
        frozen: in how many of the first layers heads are frozen.
        heads: (layer, activation) of queries, keys and values that are read, though attention is not computed; None
            where what is read is the score or the stream that it is made of.
    """
    anatomy = opened.anatomy
    spared = _spared(anatomy, resumption, edits, n)
    forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
    with ExitStack() as stack:
        if resumption.start is not None:
            start = copies(base[resumption.start], n)
            for edit in edits:
                start = edit(start) if edit.key == resumption.start else start
            nothing = start.new_zeros(()).expand(start.shape)
            forwards += [(module, lambda *args, **kwargs: nothing) for module in anatomy.embeddings]
            forwards += [(layer, anatomy.skip) for layer in anatomy.layers[: resumption.layer]]
            entry = min(resumption.layer, anatomy.n_layers - 1)
            stack.enter_context(on_port(anatomy.port(entry, "resid_pre"), lambda value: start))
        forwards += [(module, _once(module.forward, n)) for module in anatomy.context_maps()]
        forwards += spared
        for layer in resumption.given:
            maps = {anatomy.port(*key).module for key in heads or () if key[0] == layer}
            forwards.append((anatomy.attention(layer), _given(anatomy, layer, base[layer, "z"], n, maps)))
        for edit in (*_frozen_beside(anatomy, edits, base, frozen), *edits):
            if edit.key != resumption.start:
                stack.enter_context(on_port(anatomy.port(*edit.key), edit))
        if opened.reads_first_token and heads is None:
            _narrow(anatomy, resumption, forwards, stack)
        stack.enter_context(overridden(forwards))
        yield


def _spared(
    anatomy: Anatomy, resumption: Resumption, edits: Sequence[Edit], n: int
) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Forwards of the query, key and value maps of the first layer that runs, which compute what changes alone.

    Where the stream that enters the layer is edited at some positions, that is at these; where only what is within the
    layer is, at none.
    """
    layer, entering = resumption.layer, (resumption.layer, "resid_pre")
    if n == 1 or resumption.start is None or layer == anatomy.n_layers or layer in resumption.given:
        return []
    moving = [edit for edit in edits if edit.key == resumption.start or _uncoded(edit.key) == entering]
    if not anatomy.is_row_wise or any(edit.mask.shape[2] == 1 for edit in moving):
        return []
    changed = [edit.mask.any(-1) for edit in moving]
    module = anatomy.layers[layer]
    maps = [module.get_submodule(path) for path in anatomy.architecture.qkv]
    if not changed:
        return [(found, _once(found.forward, n)) for found in maps]
    return [(found, _where(found.forward, reduce(torch.logical_or, changed))) for found in maps]


def _uncoded(key: Key) -> Key:
    return key[0], key[1].removesuffix(CODED)


def _once(forward: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The forward of a module that reads the same in all copies, computed for one of them."""
    return lambda value: copies(forward(value[: len(value) // n]), n)


def _where(forward: Callable[..., Any], changed: Tensor) -> Callable[..., Any]:
    """The forward of a module that maps each position by itself, of input that is the same in all copies elsewhere.

    Args:
        forward: the module's own.
        changed: where the input is not the same, bool ``[n, B or 1, S]``.
    """

    def mapped(value: Tensor) -> Tensor:
        value = value.unflatten(0, (len(changed), -1))
        here = changed[:, :, : value.shape[2]].expand(value.shape[:3])
        as_others = here.to(torch.uint8).argmin(0)[None, :, :, None]
        same = value.gather(0, as_others.expand(1, *value.shape[1:])).flatten(0, 2)
        made = forward(torch.cat([same, value[here]])[None])[0]
        same, moved = made.split([len(same), len(made) - len(same)])
        everywhere = same.unflatten(0, value.shape[1:3]).expand(*value.shape[:3], -1)
        return everywhere.index_put((here,), moved).flatten(0, 1)

    return mapped


def _frozen_beside(anatomy: Anatomy, edits: Sequence[Edit], base: Recording, frozen: int) -> Iterator[Edit]:
    """Edits that put back the recorded outputs z of the heads that are to stay frozen beside heads that are edited.

    A frozen layer does not compute its attention, unless q, k, v or the pattern of some of its heads are edited: then
    it computes that of all heads. Of these layers, the outputs of all heads that no edit touches are replaced by what
    was recorded.

    Args:
        anatomy: of the model.
        edits: the edits that are asked for.
        base: the recording of the runs, with z of the layers in question.
        frozen: in how many of the first layers heads are frozen.

    Yields:
        One edit of z for each such layer, whose mask holds for the heads that are kept, copy by copy.
    """
    moving: dict[int, Tensor] = {}
    for edit in edits:
        if edit.activation in INPUTS_OF_HEADS and edit.layer < frozen:
            heads = edit.mask.flatten(1, 2).any(dim=1)[:, None, None]
            heads = heads.repeat_interleave(anatomy.n_heads // heads.shape[-1], dim=-1)
            moving[edit.layer] = moving.get(edit.layer, heads) | heads
    for layer, heads in moving.items():
        yield Edit(layer, "z", base[layer, "z"], ~heads)


def _given(anatomy: Anatomy, layer: int, z: Tensor, n: int, maps: Iterable[nn.Module]) -> Callable[..., Any]:
    """An attention that returns known head outputs, for as many positions as the layer was called with.

    Args:
        anatomy: of the model.
        layer: the layer.
        z: the outputs, ``[B, S, D]``.
        n: how many copies.
        maps: of queries, keys or values; called, so that what they give can be read.
    """

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        for module in maps:
            module(hidden_states)
        return anatomy.attention_output(layer, copies(z[:, : hidden_states.shape[1]], n), **kwargs)

    return forward


def _narrow(
    anatomy: Anatomy,
    resumption: Resumption,
    forwards: list[tuple[nn.Module, Callable[..., Any]]],
    stack: ExitStack,
) -> None:
    """Compute only the first position where nothing reads any other, for rankers whose score reads no other.

    That is from the layer on from which all attention is given, or else in the last layer, whose keys and values still
    come from all positions. Layers whose attention is neither given nor described by the table as plain query, key and
    value maps are left as they are.
    """
    last = anatomy.n_layers - 1
    first = anatomy.n_layers
    while first > resumption.layer and first - 1 in resumption.given:
        first -= 1
    if resumption.layer < first == anatomy.n_layers:
        maps = anatomy.plain_qkv(last)
        if not maps:
            return
        query, key, value = maps
        context: list[Tensor] = []

        def narrowed(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Any, ...]:
            q, k, v = (
                module(states).unflatten(-1, (anatomy.n_heads, -1)).transpose(1, 2)
                for module, states in ((query, hidden_states), (key, context[0]), (value, context[0]))
            )
            mask = None if attention_mask is None else attention_mask[..., :1, :]
            z = attend(anatomy.attention(last), q, k, v, mask)
            return anatomy.attention_output(last, z.flatten(2))

        def keep_context(hidden_states: Tensor) -> None:
            context[:] = [hidden_states]

        stack.enter_context(on_port(anatomy.port(last, "resid_pre"), keep_context))
        forwards.append((anatomy.attention(last), narrowed))
    stack.enter_context(on_port(anatomy.port(min(first, last), "resid_pre"), lambda value: value[:, :1]))
