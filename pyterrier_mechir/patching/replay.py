"""Recording a model's run, and running it again from any layer with activations replaced.

The model is never rewritten: its own ``forward`` runs every time. What a patch cannot change is not computed again:
embeddings and layers before the first edit are skipped, the first edited layer starts from its recorded input, and
where the edit comes after that layer's attention, attention is not computed either. Layers after the edit, the final
norm, the pooler and the head are the model's own code on the patched activations.

Shapes: ``B`` runs in the batch, ``n`` patched copies of each, ``S`` positions, ``D`` features, ``G`` groups of
features (one per head for z, else 1). The features of a pattern are, head by head, what each position attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyterrier_mechir.patching.attention import attend, on_pattern, rows_of, weights_of

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.anatomy import Anatomy, Port
    from pyterrier_mechir.rankers.base import Ranker

Batch = dict[str, Tensor]
"""The inputs of a ranker's forward; every tensor has the runs on its first axis."""

AFTER_ATTENTION = frozenset({"z", "attn_out", "resid_mid", "mlp_post", "mlp_out"})
"""Activations whose replacement leaves the attention weights of their own layer unchanged."""


@dataclass(frozen=True)
class Edit:
    """Replace an activation where ``mask`` holds, or, where it is a number, by so much of the way.

    Args:
        layer: the layer.
        activation: its name, as in :data:`~pyterrier_mechir.patching.sites.COMPONENTS`.
        source: the values to take, ``[B, S, D]``.
        mask: which copies, runs, positions and groups take them, broadcastable to ``[n, B, S, G]``: bool, or weights
            between the run's own values (0) and the source's (1).
    """

    layer: int
    activation: str
    source: Tensor
    mask: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """Apply to a running activation ``[n * B, S, D]``; a sequence cut to its first positions is edited there."""
        n, groups = self.mask.shape[0], self.mask.shape[3]
        length = value.shape[1]
        source = self.source[:, :length].unflatten(-1, (groups, -1))
        mask = self.mask[:, :, :length] if self.mask.shape[2] > 1 else self.mask
        running = value.unflatten(0, (n, -1)).unflatten(-1, (groups, -1))
        mix = torch.where if mask.dtype == torch.bool else _part_of_the_way
        return mix(mask.unsqueeze(-1), source, running).flatten(3).flatten(0, 1)


def _part_of_the_way(weight: Tensor, source: Tensor, running: Tensor) -> Tensor:
    return running + weight * (source - running)


@dataclass(frozen=True)
class Recording:
    """One run of a batch: its scores (or what else was read off it) and the activations asked for."""

    scores: Tensor
    activations: dict[tuple[int, str], Tensor]

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        return self.activations[key]

    def rows(self, index: Any) -> Recording:
        """The recording of some of the runs."""
        return Recording(self.scores[index], {key: value[index] for key, value in self.activations.items()})


@contextmanager
def overridden(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replace the ``forward`` of modules, and put back what was there, whatever happens inside."""
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.__dict__["forward"] = forward
        yield


def _restore(module: nn.Module, previous: Callable[..., Any] | None) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous


@contextmanager
def on_port(port: Port, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``function`` with the activation that passes a port; what it returns, unless None, takes its place."""
    if port.is_pattern:

        def weighed(weights: Tensor) -> Tensor | None:
            new = function(rows_of(weights))
            return None if new is None else weights_of(new, weights.shape[1])

        with on_pattern(port.module, weighed):
            yield
        return
    stream: list[Tensor] = []

    def passed(value: Tensor) -> Tensor | None:
        added = stream[0][:, : value.shape[1]] if stream else None
        activation = value if port.part is None else value[..., port.part]
        new = function(activation if added is None else activation + added)
        if new is None:
            return None
        new = new if added is None else new - added
        if port.part is None:
            return new
        return torch.cat([value[..., : port.part.start], new, value[..., port.part.stop :]], dim=-1)

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        value = passed(args[0])
        return None if value is None else (value, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return passed(output)
        value = passed(output[0])
        return None if value is None else (value, *output[1:])

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        stream[:] = args[:1]

    with ExitStack() as stack:
        if port.added_to is not None:
            stack.enter_context(port.added_to.register_forward_pre_hook(keep))
        if port.is_input:
            stack.enter_context(port.module.register_forward_pre_hook(before))
        else:
            stack.enter_context(port.module.register_forward_hook(after))
        yield


def record(
    ranker: Ranker, batch: Batch, wanted: Iterable[tuple[int, str]], read: Callable[[Batch], Tensor] | None = None
) -> Recording:
    """Run a batch and keep the wanted activations.

    Args:
        ranker: the model.
        batch: its inputs, for ``B`` runs.
        wanted: (layer, activation) of each activation to keep.
        read: what runs the model and reads it off, ``ranker.forward`` (which gives scores) or ``ranker.encode``; None
            is the first.

    Returns:
        scores ``[B]`` and activations ``[B, S, D]``.
    """
    activations: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str]) -> Callable[[Tensor], None]:
        return lambda value: activations.__setitem__(key, value)

    with ExitStack() as stack:
        for key in wanted:
            stack.enter_context(on_port(ranker.anatomy.port(*key), keep(key)))
        scores = (read or ranker.forward)(batch)
    return Recording(scores, activations)


@dataclass(frozen=True)
class _Resumption:
    """Where a patched run takes up the recorded one.

    Args:
        layer: the first layer that is computed, in full or in part; the number of layers where none is.
        start: the recorded activation that enters it; None where the run starts at the tokens.
        attention_is_given: whether the attention of that layer is not computed either.
    """

    layer: int
    start: tuple[int, str] | None
    attention_is_given: bool

    @classmethod
    def at(cls, edits: Sequence[tuple[int, str]]) -> _Resumption:
        """Before the first of some edited activations."""
        if any(activation == "embed" for _, activation in edits):
            return cls(0, None, False)
        layer = min(layer + (activation == "resid_post") for layer, activation in edits)
        of_layer = [activation for edited, activation in edits if edited == layer]
        start = (layer, "resid_pre") if of_layer else (layer - 1, "resid_post")
        return cls(layer, start, bool(of_layer) and AFTER_ATTENTION.issuperset(of_layer))


def needed_to_replay(edits: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """What must be recorded of a run to resume it before the first of some edited (layer, activation)."""
    resumption = _Resumption.at(edits)
    start = [] if resumption.start is None else [resumption.start]
    return start + ([(resumption.layer, "z")] if resumption.attention_is_given else [])


def replay(
    ranker: Ranker,
    batch: Batch,
    base: Recording,
    edits: Sequence[Edit],
    read: Callable[[Batch], Tensor] | None = None,
) -> Tensor:
    """Scores of patched copies of recorded runs.

    Args:
        ranker: the model.
        batch: the inputs of the ``B`` runs.
        base: their recording, with what :func:`needed_to_replay` names for the first edited layer.
        edits: the edits; all masks have the same ``n``.
        read: as in :func:`record`.

    Returns:
        ``[n, B]``: the score of each copy of each run.
    """
    anatomy = ranker.anatomy
    resumption = _Resumption.at([(edit.layer, edit.activation) for edit in edits])
    n = edits[0].mask.shape[0]

    def copies(value: Tensor) -> Tensor:
        return value.expand(n, *value.shape).flatten(0, 1)

    forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
    with ExitStack() as stack:
        if resumption.start is not None:
            start = copies(base[resumption.start])
            nothing = start.new_zeros(()).expand(start.shape)
            forwards += [(module, lambda *args, **kwargs: nothing) for module in anatomy.embeddings]
            forwards += [(layer, anatomy.skip) for layer in anatomy.layers[: resumption.layer]]
            entry = min(resumption.layer, anatomy.n_layers - 1)
            stack.enter_context(on_port(anatomy.port(entry, "resid_pre"), lambda value: start))
        if resumption.attention_is_given:
            given = _given_z(anatomy, resumption.layer, copies(base[resumption.layer, "z"]))
            forwards.append((anatomy.attention(resumption.layer), given))
        for edit in edits:
            stack.enter_context(on_port(anatomy.port(edit.layer, edit.activation), edit))
        if ranker.reads_first_token:
            last = anatomy.n_layers - 1
            is_given = resumption.layer > last or (resumption.layer == last and resumption.attention_is_given)
            _narrow_last_layer(anatomy, forwards, stack, is_given)
        stack.enter_context(overridden(forwards))
        scores = (read or ranker.forward)({name: copies(value) for name, value in batch.items()})
    return scores.unflatten(0, (n, -1))


def _given_z(anatomy: Anatomy, layer: int, z: Tensor) -> Callable[..., Any]:
    """An attention that returns known head outputs, for as many positions as the layer was called with."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return anatomy.attention_output(layer, z[:, : hidden_states.shape[1]])

    return forward


def _narrow_last_layer(
    anatomy: Anatomy, forwards: list[tuple[nn.Module, Callable[..., Any]]], stack: ExitStack, attention_is_given: bool
) -> None:
    """Compute only the first position in the last layer, for rankers whose score reads no other.

    Keys and values still come from all positions. Layers whose attention the table does not describe by plain
    query, key and value maps are left as they are.
    """
    last = anatomy.n_layers - 1
    if not attention_is_given:
        maps = anatomy.plain_qkv(last)
        if not maps:
            return
        query, key, value = maps
        context: list[Tensor] = []

        def first(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, None]:
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
        forwards.append((anatomy.attention(last), first))
    stack.enter_context(on_port(anatomy.port(last, "resid_pre"), lambda value: value[:, :1]))
