"""Edits that are a part of what a model computes: activations that are changed wherever it runs.

A patch is put into a model for one run, at a port. An edit belongs to the model: whoever records, patches or takes
gradients of an edited model works on what it computes under the edit. So it goes *into* the modules of a twin
(:mod:`~pyterrier_mechir.models.twins`), whose forwards apply it, and hooks of patches stand outside:

- what enters a module is edited after hooks have seen and replaced it, what leaves it before they do;
- so a recorded activation is never edited twice when a run resumes from it, and as an edit looks at one position at a
  time, to patch and to edit come to the same in either order.

Shapes: activations are ``[B, S, D]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyterrier_mechir.models.anatomy import PLACED, Anatomy, Port
from pyterrier_mechir.models.attention import put_on_pattern, rows_of, weights_of
from pyterrier_mechir.models.recording import Key
from pyterrier_mechir.models.twins import Twins, twin_of


@dataclass
class Rows:
    """What a model was called with last: its rows, for edits that differ from text to text.

    Args:
        ids: token ids, ``[B, S]``.
        mask: which positions are attended to, ``[B, S]``.
    """

    ids: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Affine:
    """Some columns of an activation become ``scale`` times themselves plus ``shift``, at every position.

    Args:
        key: the (layer, activation).
        columns: which features.
        scale: a factor, or one for each column.
        shift: what is added, ``[columns]``; None for nothing.
        decoder: whether the layer is one of the decoder of an encoder-decoder.
    """

    key: Key
    columns: slice
    scale: float | Tensor = 1.0
    shift: Tensor | None = None
    decoder: bool = False

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        scale = self.scale.to(value) if isinstance(self.scale, Tensor) else self.scale
        part = value[..., self.columns] * scale
        if self.shift is not None:
            part = part + self.shift.to(part)
        return torch.cat([value[..., : self.columns.start], part, value[..., self.columns.stop :]], dim=-1)


@dataclass(frozen=True)
class Placed:
    """An edit that is no affine map of each position alike, such as the activation of another text.

    Args:
        key: the (layer, activation).
        columns: which features; None for all.
        function: gives, for an activation and the rows that it is of, what takes the place of these columns.
        decoder: whether the layer is one of the decoder of an encoder-decoder.
    """

    key: Key
    columns: slice | None
    function: Callable[[Tensor, Rows], Tensor]
    decoder: bool = False

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        part = self.function(value, rows).to(value)
        if self.columns is None:
            return part
        return torch.cat([value[..., : self.columns.start], part, value[..., self.columns.stop :]], dim=-1)


Edit = Affine | Placed


class EditedTwins(Twins):
    """The twins of a model under edits: each thread has one, made anew where the model's parts changed.

    Args:
        plain: the twins without the edits; of twins that have some already, these come first.
        edits: the edits, in the order in which those of one activation are applied.
    """

    def __init__(self, plain: Twins, edits: Sequence[Edit]):
        super().__init__(plain.model)
        self.plain: Twins = plain.plain if isinstance(plain, EditedTwins) else plain
        self.edits: tuple[Edit, ...] = (*(plain.edits if isinstance(plain, EditedTwins) else ()), *edits)

    def of_model(self, model: nn.Module) -> EditedTwins:
        return EditedTwins(self.plain.of_model(model), self.edits)

    def current(self) -> Any:
        plain = self.plain.current()
        kept = getattr(self._of_thread, "edited", None)
        if kept is None or kept[0] is not plain:
            kept = self._of_thread.edited = (plain, edited_twin(plain, self.edits))
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"plain": self.plain, "edits": self.edits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["plain"], state["edits"])  # type: ignore[misc]


def edited_twin(plain: Any, edits: Sequence[Edit]) -> Any:
    """A model with modules of its own over the parameters of another, which computes under edits."""
    twin, rows = twin_of(plain), Rows()
    vars(twin)[PLACED] = getattr(plain, PLACED, False) or any(isinstance(edit, Placed) for edit in edits)
    for decoder in sorted({edit.decoder for edit in edits}):
        anatomy = Anatomy(twin, decoder=decoder)
        _keep_rows(anatomy.base, rows)
        ports: dict[Key, list[Edit]] = {}
        for edit in edits:
            if edit.decoder == decoder:
                ports.setdefault(edit.key, []).append(edit)
        # The stream that enters a layer is edited outside of what keeps it for an edit within the layer.
        for key in sorted(ports, key=lambda key: key[1] == "resid_pre"):
            _apply(anatomy.port(*key), _all_of(ports[key], rows))
    return twin


def _all_of(edits: Sequence[Edit], rows: Rows) -> Callable[[Tensor], Tensor]:
    def function(value: Tensor) -> Tensor:
        for edit in edits:
            value = edit(value, rows)
        return value

    return function


def _apply(port: Port, function: Callable[[Tensor], Tensor]) -> None:
    """Have a module apply a function to what enters it, to what leaves it, or to its attention weights."""
    stream: list[Tensor] = []
    if port.is_pattern:
        put_on_pattern(port.module, lambda weights: weights_of(function(rows_of(weights)), weights.shape[1]))
        return

    def changed(value: Tensor) -> Tensor:
        if port.added_to is not None:
            before = stream[0][:, : value.shape[1]]
            return function(value + before) - before
        if port.columns is None:
            return function(value)
        inside = function(value[..., port.columns])
        return torch.cat([value[..., : port.columns.start], inside, value[..., port.columns.stop :]], dim=-1)

    def of_input(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda value, *args, **kwargs: forward(changed(value), *args, **kwargs)

    def of_output(forward: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

        return made

    def keeping(forward: Callable[..., Any]) -> Callable[..., Any]:
        def made(value: Tensor, *args: Any, **kwargs: Any) -> Any:
            stream[:] = [value]
            return forward(value, *args, **kwargs)

        return made

    if port.added_to is not None:
        _wrap(port.added_to, keeping)
    _wrap(port.module, of_input if port.is_input else of_output)


def _keep_rows(module: nn.Module, rows: Rows) -> None:
    """Have a module keep the token ids and the mask that it is called with."""

    def keeping(forward: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            rows.ids = kwargs.get("input_ids", args[0] if args else None)
            rows.mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            return forward(*args, **kwargs)

        return made

    _wrap(module, keeping)


def _wrap(module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    vars(module)["forward"] = around(module.forward)
