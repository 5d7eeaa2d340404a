"""Column replay: what patches at some positions do to the score, for all positions in one pass.

A *target* run is patched with activations of an aligned *source* run. A slot is a set of positions that are patched
together, and slots do not overlap, so that one tensor holds the patched runs of all of them::

    x [start, B, S, D]    row i: the state of position i in the run in which the slot of i is patched.

A *start* is a (layer, activation) that is patched. In the run in which a slot is patched, the slot's own rows, its
column, are replayed exactly beside the other rows of the target; what the other rows notice of them counts to first
order, but for the softmax of attention, which is exact:

1. The target is recorded with g, the total derivative of its score by z, the outputs of its heads: it holds all that a
   change of z at one row does later, through its own stream, through later layers and other rows.
2. The rows of a start enter at its layer. The model's own layers compute them; attention is computed here. With l_ij
   the target's logits, primes of the patched rows, and P the slot of i: the row of i attends to the patched keys and
   values of the rows of P, and to the target's elsewhere.
3. What the other rows i notice of a slot P, by the attention of a layer, is how far other keys and values of P move
   them (:mod:`~pyterrier_mechir.models.softmax`), summed over heads and rows.
4. After the last layer: the score of the target's final states with the rows of P replaced, less the score.

One slot of all positions has no other rows, so that its score is exact.

Shapes: ``R`` starts, ``B`` runs, ``S`` positions, ``D`` features, ``H`` heads of ``d`` features, ``P`` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyterrier_mechir.models.attention import Heads, computed_by, keeping_heads
from pyterrier_mechir.models.components import STARTS, STREAMS
from pyterrier_mechir.models.gradients import gradients, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.ports import on_port
from pyterrier_mechir.models.recording import Key, Recording, keeping
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.resuming import Edit, copies, past_attention, stream_of
from pyterrier_mechir.models.softmax import Keyed

_CELLS = 2**19
"""Attention weights that are held at once, where there are more starts than one: as many as a cache holds."""


@dataclass(frozen=True)
class Slots:
    """Slots that do not overlap.

    Args:
        of: the slot of each position, ``[B, S]``, from 0; for a position of none ``n`` or more, another for each.
        n: how many there are.
    """

    of: Tensor
    n: int

    @property
    def members(self) -> Tensor:
        """Which positions each slot has, ``[B, S, n]``, as numbers."""
        return torch.nn.functional.one_hot(self.of.clamp(max=self.n), self.n + 1)[..., : self.n].float()

    @property
    def together(self) -> Tensor:
        """Which positions are in one slot, bool ``[B, S, S]``."""
        return self.of[:, :, None] == self.of[:, None, :]

    @property
    def are_single(self) -> bool:
        """Whether no slot has more than one position."""
        return bool((self.together.sum(-1) == 1).all())


@dataclass
class _Layer:
    """What is recorded of a layer of the target.

    Args:
        args: what the layer was called with after the stream.
        kwargs: likewise, by name.
        heads: what its attention computed with.
        z: the heads' outputs, ``[B, S, H, d]``.
        slope: g, likewise.
        stream: what entered it, ``[B, S, D]``.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    heads: Heads
    z: Tensor
    slope: Tensor
    stream: Tensor


@dataclass(frozen=True)
class Target:
    """A target run, as columns need it.

    Args:
        scores: ``[B]``.
        layers: what is recorded of each layer.
        end: the stream that leaves the last layer, ``[B, S, D]``.
    """

    scores: Tensor
    layers: list[_Layer]
    end: Tensor


def record_target(opened: Opened, batch: Batch) -> Target:
    """Record runs that are to be patched; called within :func:`~pyterrier_mechir.models.gradients.differentiable`.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of ``B`` runs.
    """
    anatomy, kept = opened.anatomy, dict[Key, Tensor]()
    called: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    last = (anatomy.n_layers - 1, "resid_post")
    with ExitStack() as stack:
        heads = stack.enter_context(keeping_heads({n: anatomy.attention(n) for n in range(anatomy.n_layers)}))
        for number, layer in enumerate(anatomy.layers):

            def keep_call(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number) -> None:
                called[number] = (args[1:], kwargs)

            handle = layer.register_forward_pre_hook(keep_call, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(on_port(anatomy.port(number, "resid_pre"), keeping(kept, (number, "resid_pre"))))
        stack.enter_context(on_port(anatomy.port(*last), keeping(kept, last)))
        run = record_graph(opened, batch, [(layer, "z") for layer in range(anatomy.n_layers)])
    slopes = gradients(run, [(layer, "z") for layer in range(anatomy.n_layers)])
    n_heads, layers = anatomy.n_heads, []
    for number in range(anatomy.n_layers):
        args, kwargs = called[number]
        z, slope = (value.detach().unflatten(-1, (n_heads, -1)) for value in (run[number, "z"], slopes[number, "z"]))
        layers.append(_Layer(args, kwargs, heads[number].detach(), z, slope, kept[number, "resid_pre"].detach()))
    return Target(run.scores.detach(), layers, kept[last].detach())


@torch.no_grad()
def replay_columns(
    opened: Opened, batch: Batch, target: Target, source: Recording, starts: Sequence[Key], slots: Slots, at_once: int
) -> Tensor:
    """How far each start, patched at each slot, moves the score of each run: ``[R, B, P]``, an estimate.

    Args:
        opened: the model, and how it runs.
        batch: the inputs of the ``B`` runs.
        target: the runs.
        source: what is patched in, with each start.
        starts: (layer, activation) of each (:data:`~pyterrier_mechir.models.components.STARTS`); ``resid_post`` only of
            the last layer.
        slots: the slots.
        at_once: how many positions of all rows are computed at once.
    """
    order = sorted(range(len(starts)), key=lambda number: (starts[number][0], STARTS.index(starts[number][1])))
    n_rows = max(1, at_once // slots.of.numel())
    moved = target.scores.new_empty((len(starts), len(target.scores), slots.n))
    for begin in range(0, len(order), n_rows):
        some = order[begin : begin + n_rows]
        moved[some] = _replayed(opened, batch, target, source, [starts[number] for number in some], slots, at_once)
    return moved


def _replayed(
    opened: Opened, batch: Batch, target: Target, source: Recording, starts: Sequence[Key], slots: Slots, at_once: int
) -> Tensor:
    """As :func:`replay_columns`, of starts in the order in which they enter, all at once."""
    anatomy = opened.anatomy
    rows = target.end.new_empty((0, *target.end.shape))
    moved = target.scores.new_zeros((len(starts), len(target.scores), slots.n))
    for number in range(starts[0][0], anatomy.n_layers):
        layer, of_layer = target.layers[number], [key for key in starts if key[0] == number]
        entering = [source[key] for key in of_layer if key[1] == "resid_pre"]
        within = [
            past_attention(anatomy, number, layer.stream, layer.z.flatten(2), [(key, partial(_put, source[key]))])
            for key in of_layer
            if key[1] not in STREAMS
        ]
        rows = torch.cat([rows, *(value[None] for value in entering)])
        if len(rows):
            rows, noticed = _through(opened, number, layer, rows, slots)
            moved[: len(rows)] += noticed
        rows = torch.cat([rows, *(value[None] for value in within)])
    if starts[-1] == (anatomy.n_layers - 1, "resid_post"):
        rows = torch.cat([rows, source[starts[-1]][None]])
    return moved + _at_end(opened, batch, target, rows, slots, at_once)


def _put(value: Tensor, _: Tensor) -> Tensor:
    return value


def _through(opened: Opened, number: int, layer: _Layer, rows: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """Rows that pass a layer, and what other rows notice of them in its attention.

    Args:
        opened: the model.
        number: of the layer.
        layer: what is recorded of it.
        rows: ``[R, B, S, D]``.
        slots: the slots.

    Returns:
        ``[R, B, S, D]``, and ``[R, B, P]``.
    """
    anatomy, n_runs = opened.anatomy, rows.shape[1]
    noticed = rows.new_zeros((len(rows), n_runs, slots.n))

    def attend(heads: Heads) -> Tensor:
        parts = (heads.query, heads.key, heads.value)
        query, key, value = (part.unflatten(0, (-1, n_runs)) for part in parts)
        z = rows.new_empty((len(rows), *layer.z.shape))
        size = max(1, _CELLS // layer.heads.query.shape[:3].numel() // layer.heads.query.shape[2])
        outside = 1 - slots.members[:, None]
        keyed = Keyed(layer.heads, layer.slope.transpose(1, 2), slots.members)
        for begin in range(0, len(rows), size):
            some = slice(begin, begin + size)
            z[some] = _own(layer, query[some], key[some], value[some], slots).transpose(2, 3)
            noticed[some] = keyed.moved(key[some], value[some]).mul_(outside).sum((2, 3))
        return z.flatten(0, 1)

    with computed_by(anatomy.attention(number), attend):
        args, kwargs = _repeated((layer.args, layer.kwargs), n_runs, len(rows))
        made = stream_of(anatomy.layers[number](rows.flatten(0, 1), *args, **kwargs))
    return made.unflatten(0, (-1, n_runs)), noticed


def _repeated(given: Any, n_runs: int, n: int) -> Any:
    """What a layer was called with for the runs, for ``n`` times as many."""
    if isinstance(given, Tensor):
        is_of_runs = given.ndim > 0 and given.shape[0] == n_runs > 1
        return given.repeat(n, *[1] * (given.ndim - 1)) if is_of_runs else given
    if isinstance(given, dict):
        return {name: _repeated(value, n_runs, n) for name, value in given.items()}
    return tuple(_repeated(value, n_runs, n) for value in given) if isinstance(given, tuple) else given


def _own(layer: _Layer, query: Tensor, key: Tensor, value: Tensor, slots: Slots) -> Tensor:
    """What patched rows attend to: patched rows of their own slot, and the target's others; z, ``[R, B, H, S, d]``."""
    base, together = layer.heads, slots.together[:, None]
    products = query @ base.key.transpose(-1, -2)
    if slots.are_single:
        torch.diagonal(products, dim1=-2, dim2=-1).copy_((query * key).sum(-1))
        weights = base.logits(products, base.mask).softmax(-1)
        own = torch.diagonal(weights, dim1=-2, dim2=-1).clone()
        torch.diagonal(weights, dim1=-2, dim2=-1).zero_()
        return weights @ base.value + own.unsqueeze(-1) * value
    products = torch.where(together, query @ key.transpose(-1, -2), products)
    weights = base.logits(products, base.mask).softmax(-1)
    return (weights * together) @ value + (weights * ~together) @ base.value


def _at_end(opened: Opened, batch: Batch, target: Target, rows: Tensor, slots: Slots, at_once: int) -> Tensor:
    """What final states with the rows of a slot replaced do to the score, ``[R, B, P]``."""
    if opened.pooled is not None:
        weights = opened.pooled.weights(batch).unsqueeze(-1)
        norm = opened.anatomy.final_norm
        before = norm(target.end).float()
        change = weights * (norm(rows.flatten(0, 1)).float().unflatten(0, rows.shape[:2]) - before)
        pooled = (weights * before).sum(1) + torch.einsum("bsp,rbsd->rpbd", slots.members, change)
        return (opened.pooled.score(pooled, batch) - target.scores).transpose(1, 2)
    last = opened.anatomy.n_layers - 1
    base = Recording(target.scores, {(last, "resid_post"): target.end})
    moved = target.scores.new_zeros((len(rows), len(target.scores), slots.n))
    reach = slots.of if opened.reads_at is None else slots.of.gather(1, opened.reads_at(batch)[:, None])
    copied = [(row, slot) for row in range(len(rows)) for slot in reach.unique().tolist() if slot < slots.n]
    size = max(1, at_once // slots.of.numel())
    if opened.compare is not None:
        each = torch.cat([target.end[None], rows])
        whole = Edit(last, "resid_post", each, slots.of.new_ones((len(each), 1, 1, 1), dtype=torch.bool))
        before, *encoded = replay(opened.encoding, batch, base, [whole])
    for begin in range(0, len(copied), size):
        of_rows, of_slots = (list(column) for column in zip(*copied[begin : begin + size], strict=True))
        mask = (slots.of == torch.tensor(of_slots, device=slots.of.device)[:, None, None]).unsqueeze(-1)
        if opened.compare is None:
            scores = replay(opened, batch, base, [Edit(last, "resid_post", rows[of_rows], mask)])
        else:
            made = torch.where(mask, torch.stack([encoded[row] for row in of_rows]), before)
            of_copies = {name: copies(value, len(of_rows)) for name, value in batch.items()}
            scores = opened.compare(made.flatten(0, 1), of_copies).unflatten(0, (len(of_rows), -1))
        moved[of_rows, :, of_slots] = scores - target.scores
    return moved
