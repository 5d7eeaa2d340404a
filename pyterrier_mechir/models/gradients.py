"""Gradients of scores at a run's activations.

1. Weights take no gradients (:func:`differentiable`); the graph begins at the earliest activation that is asked for.
2. A batch runs with a function at the port of each wanted activation that keeps it in the graph
   (:func:`record_graph`).
3. Runs of a batch do not depend on each other, so that one backward pass from the sum of their scores gives each run's
   own gradient at all wanted activations (:func:`gradients`).
4. GradDrop takes one backward pass for each layer, from that layer's output down, with what the layer adds to the
   stream held constant (:func:`gradients_dropping`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.ports import on_port
from pyterrier_mechir.models.recording import Key, Recording

SHARE = 4
"""How many times fewer tokens a batch has where gradients are taken, since the activations of all layers are kept."""


@contextmanager
def differentiable(opened: Opened, but: Sequence[Tensor] = ()) -> Iterator[None]:
    """Gradients of activations but not of weights, whose modules hold these without gradients for a while.

    Args:
        opened: the model, whose modules are a twin's.
        but: weights that do take gradients.
    """
    plain = [(module, module._parameters) for module in opened.anatomy.model.modules()]
    kept = {id(weight) for weight in but}
    try:
        for module, weights in plain:
            vars(module)["_parameters"] = {
                name: weight if weight is None or id(weight) in kept else weight.detach()
                for name, weight in weights.items()
            }
        with torch.enable_grad():
            yield
    finally:
        for module, weights in plain:
            vars(module)["_parameters"] = weights


def record_graph(opened: Opened, batch: Batch, wanted: Iterable[Key], embedded: Tensor | None = None) -> Recording:
    """Run a batch and keep its scores and the wanted activations, in the graph that leads from these to the scores.

    Args:
        opened: the model, within :func:`differentiable`, and how it runs.
        batch: its inputs.
        wanted: (layer, activation) of each activation to keep.
        embedded: word embeddings to run on, ``[B, S, D]``; None for those of the tokens.
    """
    activations: dict[Key, Tensor] = {}

    def keep(key: Key) -> Callable[[Tensor], Tensor]:
        def passed(value: Tensor) -> Tensor:
            activations[key] = value if value.requires_grad else value.detach().requires_grad_()
            return activations[key]

        return passed

    with ExitStack() as stack:
        if embedded is not None:
            stack.enter_context(on_port(opened.anatomy.port(0, "embed"), lambda value: embedded))
        for key in sorted(wanted):  # attn_out before resid_mid, which may be read from the same output
            stack.enter_context(on_port(opened.anatomy.port(*key), keep(key)))
        scores = opened.forward(batch)
    return Recording(scores, activations)


def gradients(run: Recording, keys: Sequence[Key]) -> dict[Key, Tensor]:
    """The gradient of each run's score at its activations; the graph is kept."""
    return _at(run, keys, run.scores, torch.ones_like(run.scores))


def gradients_dropping(
    run: Recording, keys: Sequence[Key], n_layers: int, added: Sequence[str]
) -> Iterator[dict[Key, Tensor]]:
    """The gradients of each pass of GradDrop, in which what one layer adds to the stream is held constant.

    What comes after the layer has the gradient of the whole model, so that it is computed once; from the layer's output
    down there is one backward pass for each.

    Args:
        run: with the graph of what :func:`needed_to_drop` names.
        keys: where to take gradients.
        n_layers: layers of the model.
        added: the activations of a layer that it adds to the stream.
    """
    end = (n_layers - 1, "resid_post")
    streams = [key for key in needed_to_drop(keys, n_layers, added) if key[1] in ("resid_pre", "resid_post")]
    whole = gradients(run, list(dict.fromkeys([*keys, *streams])))
    for layer in range(n_layers):
        below = [key for key in keys if key[0] <= layer and key != end]
        if not below:
            yield whole
            continue
        stream = end if layer == n_layers - 1 else (layer + 1, "resid_pre")
        outputs = [(layer, name) for name in added]
        with ExitStack() as stack:
            for output in outputs:
                stack.callback(run[output].register_hook(torch.zeros_like).remove)
            dropped = _at(run, below, run[stream], whole[stream])
        yield whole | dropped | {key: torch.zeros_like(dropped[key]) for key in outputs if key in dropped}


def needed_to_drop(keys: Sequence[Key], n_layers: int, added: Sequence[str]) -> list[Key]:
    """The activations that must be in the graph for :func:`gradients_dropping`.

    Those are, of every layer from the earliest one in ``keys``, what it adds to the stream and the stream that leaves
    it. The arguments are as there.
    """
    layers = range(min((layer for layer, _ in keys), default=n_layers), n_layers)
    streams = [(layer + 1, "resid_pre") if layer < n_layers - 1 else (layer, "resid_post") for layer in layers]
    return [*streams, *((layer, name) for layer in layers for name in added)]


def _at(run: Recording, keys: Sequence[Key], outputs: Tensor, weights: Tensor) -> dict[Key, Tensor]:
    inputs = [run[key] for key in keys]
    return dict(zip(keys, torch.autograd.grad(outputs, inputs, weights, retain_graph=True), strict=True))
