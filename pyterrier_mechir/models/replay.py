"""Running a recorded run again from any layer with activations replaced.

The model is never rewritten: its own ``forward`` runs every time, and what a patch cannot change is not computed again.

1. All patched copies of all runs of a batch are stacked on the batch axis.
2. Embeddings and layers before the first edit are skipped; the first edited layer starts from its recorded input.
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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.attention import attend
from pyterrier_mechir.models.components import AFTER_ATTENTION, CODED, INPUTS_OF_HEADS
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.ports import on_port, overridden
from pyterrier_mechir.models.recording import Key, Recording, ending_early, keeping


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
class _Resumption:
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
    def at(cls, edits: Sequence[tuple[int, str]], frozen: int = 0) -> _Resumption:
        """Before the first of some edited activations, with the heads of all layers before ``frozen`` frozen."""
        edits = [(layer, activation.removesuffix(CODED)) for layer, activation in edits]
        if any(activation == "embed" for _, activation in edits):
            layer, start, of_layer = 0, None, []
        else:
            layer = min(layer + (activation == "resid_post") for layer, activation in edits)
            of_layer = [activation for edited, activation in edits if edited == layer]
            start = (layer, "resid_pre") if of_layer else (layer - 1, "resid_post")
        moving = {layer for layer, activation in edits if activation in INPUTS_OF_HEADS}
        given = set(range(layer, frozen)) - moving
        if of_layer and AFTER_ATTENTION.issuperset(of_layer):
            given.add(layer)
        return cls(layer, start, frozenset(given))


def needed_to_replay(edits: Sequence[tuple[int, str]], frozen: int = 0) -> list[tuple[int, str]]:
    """What must be recorded of a run to resume it before the first of some edited (layer, activation).

    Args:
        edits: (layer, activation) of each edit.
        frozen: in how many of the first layers heads are frozen.

    Returns:
        (layer, activation) of each activation: the input of the first layer that runs, unless the run starts at the
        tokens, and z of the layers whose attention, or whose unedited heads, are not computed.
    """
    resumption = _Resumption.at(edits, frozen)
    start = [] if resumption.start is None else [resumption.start]
    return start + [(layer, "z") for layer in sorted(resumption.given.union(range(resumption.layer, frozen)))]


def replay(opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit]) -> Tensor:
    """Scores of patched copies of recorded runs.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_replay` names for the first edited layer.
        edits: the edits; all masks have the same ``n``.

    Returns:
        ``[n, B]``: the score of each copy of each run, or ``[n, B, ...]`` where the forward gives something else.
    """
    n = edits[0].mask.shape[0]
    with _resumed(opened, base, edits):
        scores = opened.forward({name: _copies(value, n) for name, value in batch.items()})
    return scores.unflatten(0, (n, -1))


Run = Callable[[Opened, Batch, Recording, Sequence[Edit]], Tensor]
"""Gives the scores ``[n, B]`` of patched copies of recorded runs, as :func:`replay` does."""


def read(
    opened: Opened, batch: Batch, base: Recording, edits: Sequence[Edit], wanted: Sequence[Key]
) -> dict[Key, Tensor]:
    """Activations in patched copies of recorded runs whose heads are frozen; what follows them is not computed.

    All heads keep their recorded outputs z, but for those whose z, q, k or v is edited.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_replay` names, heads frozen up to the last wanted layer.
        edits: the edits; all masks have the same ``n``.
        wanted: (layer, activation) of each, downstream of an edit: queries, keys and values, as they are before an edit
            of their own, or else the last layer's ``resid_post``.

    Returns:
        ``[n, B, S, D]`` of each; of ``resid_post`` at the first position only, where the score reads no other.
    """
    n = edits[0].mask.shape[0]
    port, found = opened.anatomy.port, dict[Key, Tensor]()
    heads = [key for key in wanted if key[1] in INPUTS_OF_HEADS]
    with ExitStack() as stack:
        end = stack.enter_context(ending_early())

        def end_if_all() -> None:
            if len(found) == len(wanted):
                end()

        for key in heads:
            stack.enter_context(on_port(port(*key), keeping(found, key, end_if_all)))
        stack.enter_context(_resumed(opened, base, edits, 1 + max(layer for layer, _ in wanted), heads))
        for key in set(wanted).difference(heads):
            stack.enter_context(on_port(port(*key), keeping(found, key, end_if_all)))
        opened.forward({name: _copies(value, n) for name, value in batch.items()})
    return {key: value.unflatten(0, (n, -1)) for key, value in found.items()}


def _copies(value: Tensor, n: int) -> Tensor:
    return value.expand(n, *value.shape).flatten(0, 1)


@contextmanager
def _resumed(
    opened: Opened, base: Recording, edits: Sequence[Edit], frozen: int = 0, heads: Sequence[Key] = ()
) -> Iterator[None]:
    """Have the model's forward take up recorded runs before the first edit and apply the edits.

    Args:
        opened: the model.
        base: the recording of the runs.
        edits: the edits.
        frozen: in how many of the first layers heads are frozen.
        heads: (layer, activation) of queries, keys and values that are read, though attention is not computed; without
            them, what is read is the score or the stream that it is made of.
    """
    anatomy = opened.anatomy
    n = edits[0].mask.shape[0]
    resumption = _Resumption.at([(edit.layer, edit.activation) for edit in edits], frozen)
    forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
    with ExitStack() as stack:
        if resumption.start is not None:
            start = _copies(base[resumption.start], n)
            nothing = start.new_zeros(()).expand(start.shape)
            forwards += [(module, lambda *args, **kwargs: nothing) for module in anatomy.embeddings]
            forwards += [(layer, anatomy.skip) for layer in anatomy.layers[: resumption.layer]]
            entry = min(resumption.layer, anatomy.n_layers - 1)
            stack.enter_context(on_port(anatomy.port(entry, "resid_pre"), lambda value: start))
        forwards += [(module, _once(module.forward, n)) for module in anatomy.context_maps()]
        forwards += [(module, _once(module.forward, n)) for module in _unchanged_maps(anatomy, resumption, edits)]
        for layer in resumption.given:
            maps = {anatomy.port(*key).module for key in heads if key[0] == layer}
            forwards.append((anatomy.attention(layer), _given(anatomy, layer, base[layer, "z"], n, maps)))
        for edit in (*_frozen_beside(anatomy, edits, base, frozen), *edits):
            stack.enter_context(on_port(anatomy.port(edit.layer, edit.activation), edit))
        if opened.reads_first_token and not heads:
            _narrow(anatomy, resumption, forwards, stack)
        stack.enter_context(overridden(forwards))
        yield


def _unchanged_maps(anatomy: Anatomy, resumption: _Resumption, edits: Sequence[Edit]) -> list[nn.Module]:
    """The maps of queries, keys and values of the first layer that runs, where it is edited within its heads alone."""
    of_layer = {edit.activation for edit in edits if edit.layer == resumption.layer}
    if resumption.start != (resumption.layer, "resid_pre") or not of_layer or not INPUTS_OF_HEADS.issuperset(of_layer):
        return []
    layer = anatomy.layers[resumption.layer]
    return [layer.get_submodule(path) for path in anatomy.architecture.qkv]


def _once(forward: Callable[..., Any], n: int) -> Callable[..., Any]:
    """The forward of a module that reads the same in all copies, computed for one of them."""
    return lambda value: _copies(forward(value[: len(value) // n]), n)


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
        return anatomy.attention_output(layer, _copies(z[:, : hidden_states.shape[1]], n), **kwargs)

    return forward


def _narrow(
    anatomy: Anatomy,
    resumption: _Resumption,
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
