"""Activation patching the slow way: one pair, unpadded, one component at a time, hooks on the unmodified model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyterrier_mechir.verify.hooks import PATHS, PER_HEAD, Hooks

__all__ = ["PATHS", "PER_HEAD"]

COMPONENTS = ("head", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post", "embed")

CROSS_COMPONENTS = ("cross_head", "cross_q", "cross_k", "cross_v", "cross_attn_out")


class Shape(NamedTuple):
    """What selecting sites needs of a model: how many layers, and how many of what each has."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    def groups(self, activation: str) -> int:
        return self.n_kv_heads if activation in ("k", "v") else self.n_heads


def shape(n_layers: int, n_heads: int, n_kv_heads: int | None = None) -> Shape:
    """A model of some layers and heads, without the model."""
    return Shape(n_layers, n_heads, n_kv_heads or n_heads)


Inputs = dict[str, Tensor]


def inputs_of(side: Any, tokenizer: Any) -> Inputs:
    """The model's inputs for one sequence, unpadded; ``side`` has ``ids``, ``types`` and ``mask``."""
    values = {"input_ids": side.ids, "attention_mask": side.mask, "token_type_ids": side.types}
    return {name: torch.tensor([values[name].tolist()]) for name in tokenizer.model_input_names}


def repeated(inputs: Inputs, n: int) -> Inputs:
    """The inputs of a run in each of ``n`` rows."""
    return {name: value.expand(n, -1) for name, value in inputs.items()}


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Vectors ``[B, d]`` of last hidden states, one row at a time."""
    rows = []
    for row, attended in zip(states, mask.bool(), strict=True):
        kept = row[attended]
        rows.append({"cls": row[0], "mean": kept.mean(0), "last": kept[-1]}[pooling])
    return torch.stack(rows)


def similarity(query: Tensor, documents: Tensor, kind: str) -> Tensor:
    """Scores ``[B]`` of document vectors for a query vector."""
    if kind == "dot":
        return documents @ query
    return nn.functional.cosine_similarity(documents, query[None], dim=-1)


_ROWS = 64
"""Of a batch of runs; larger ones are no faster."""


def _members(site: Any) -> list[tuple[str, int, int | None]]:
    """Component, layer and head of the sites of a set, or of one site."""
    return [tuple(one) for one in getattr(site, "members", [site])]


def _row(values: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One row, as a batch, of inputs or of what a model gives: tensors, and tuples of tensors by layer."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[row : row + 1]
        return tuple(map(of, value)) if isinstance(value, tuple) else value

    return {name: of(value) for name, value in values.items()}


class Reference(Hooks):
    """Scores and patched scores of one model.

    Args:
        model: the transformers model.
        to_score: from the model's output and inputs to the score.
        decoder: whether what is patched is the decoder of an encoder-decoder.
    """

    def __init__(self, model: nn.Module, to_score: Callable[[Any, Inputs], Tensor], decoder: bool = False):
        super().__init__(model, decoder)
        self.to_score = to_score

    @classmethod
    def bi_encoder(cls, model: nn.Module, query: Inputs, pooling: str, kind: str) -> Reference:
        with torch.no_grad():
            vector = pool(model(**query).last_hidden_state, query["attention_mask"], pooling)[0]
        return cls(
            model, lambda out, x: similarity(vector, pool(out.last_hidden_state, x["attention_mask"], pooling), kind)
        )

    @classmethod
    def cross_encoder(cls, model: nn.Module) -> Reference:
        return cls(model, lambda out, x: out.logits[:, 0])

    @classmethod
    def mono_t5(cls, model: nn.Module, true: int, false: int, decoder: bool) -> Reference:
        """The inputs have ``decoder_input_ids`` of one token."""
        return cls(model, lambda out, x: out.logits[:, 0, true] - out.logits[:, 0, false], decoder)

    @classmethod
    def generative(cls, model: nn.Module, yes: int, no: int) -> Reference:
        """The inputs end in the last token of a prompt."""
        return cls(model, lambda out, x: out.logits[:, -1, yes] - out.logits[:, -1, no])

    @torch.no_grad()
    def score(self, inputs: Inputs) -> float:
        return self.scores(inputs).item()

    def scores(self, inputs: Inputs) -> Tensor:
        """The score of each row of inputs, each made of what the model gives for that row alone."""
        out = dict(self.model(**inputs).items())
        rows = range(len(inputs["input_ids"]))
        return torch.cat([self.to_score(SimpleNamespace(**_row(out, i)), _row(inputs, i)) for i in rows])

    def sites(self, component: str) -> list[tuple[int, int | None]]:
        """(layer, head) of each site of a component, in order; head is None where the site is the whole layer's."""
        heads = range(self.n_parts(component)) if component in PER_HEAD else [None]
        return [(layer, head) for layer in range(1 if component == "embed" else self.n_layers) for head in heads]

    def activation(self, inputs: Inputs, component: str, layer: int) -> Tensor:
        """The activation of a component in an ordinary run, ``[1, S, D]``."""
        return self.activations_of(inputs, [(component, layer)])[component, layer]

    def activations_of(self, inputs: Inputs, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Tensor]:
        """The activations of some components at some layers, in one ordinary run."""
        return self.activations(places, lambda: self.score(inputs))

    def patched(self, target: Inputs, source: Inputs, site: Any, positions: list[int] | None = None) -> float:
        """The score of the target run with one site taken, at all or some positions, from the source run.

        Positions that either side masks are left as they are.

        Args:
            target: the run that is scored.
            source: the run that is taken from.
            site: component, layer and head (or None), or the sites of a set, which are all taken at once.
            positions: which; None for all.
        """
        with ExitStack() as stack:
            for component, layer, head in _members(site):
                taken = self.activation(source, component, layer)
                places = self._places(target, source, taken, positions)

                def replace(value: Tensor, component=component, head=head, taken=taken, places=places) -> Tensor:
                    part = self.part(component, head, value.shape[-1])
                    mixed = value.clone()
                    mixed[:, places, part] = taken[:, places, part]
                    return mixed

                stack.enter_context(self.hook(component, layer, replace))
            return self.score(target)

    @torch.no_grad()
    def patched_each(
        self, target: Inputs, source: Inputs, sites: Iterable[Any], slots: Sequence[list[int] | None] = (None,)
    ) -> np.ndarray:
        """:meth:`patched` for each site and slot of positions ``[site, slot]``; missing where a slot has no position.

        The target is run in batches of equal rows. In each row, hooks change the one site that the row is for.
        """
        sites = [_members(site) for site in sites]
        taken = self.activations_of(source, [(component, layer) for site in sites for component, layer, _ in site])
        wanted = [(i, j) for i in range(len(sites)) for j in range(len(slots)) if slots[j] != []]
        found = np.full((len(sites), len(slots)), np.nan)
        for start in range(0, len(wanted), _ROWS):
            cells = wanted[start : start + _ROWS]
            changes: dict[tuple[str, int], list[tuple[int, int | None, list[int]]]] = {}
            for row, (i, j) in enumerate(cells):
                for component, layer, head in sites[i]:
                    places = self._places(target, source, taken[component, layer], slots[j])
                    changes.setdefault((component, layer), []).append((row, head, places))

            def replace(at: tuple[str, int], value: Tensor, changes=changes) -> Tensor:
                mixed = value.clone()
                for row, head, places in changes[at]:
                    part = self.part(at[0], head, value.shape[-1])
                    mixed[row, places, part] = taken[at][0, places, part]
                return mixed

            with ExitStack() as stack:
                for at in changes:
                    stack.enter_context(self.hook(*at, partial(replace, at)))
                scores = self.scores(repeated(target, len(cells)))
            found[tuple(zip(*cells, strict=True))] = scores.numpy()
        return found

    def _places(self, target: Inputs, source: Inputs, taken: Tensor, positions: list[int] | None) -> list[int]:
        """The positions that are patched, of all or of some."""
        are_open = self.is_open(target, source)
        if "decoder_input_ids" in target and taken.shape[1] == target["decoder_input_ids"].shape[1]:
            are_open = [True] * taken.shape[1]
        return [i for i in (range(taken.shape[1]) if positions is None else positions) if are_open[i]]

    def is_open(self, target: Inputs, source: Inputs) -> list[bool]:
        """Which positions may be taken: those that both sides attend to."""
        return (target["attention_mask"] & source["attention_mask"])[0].bool().tolist()

    def readers(self, component: str, head: int) -> list[int]:
        """The heads that read a head's queries, or the keys or values of a group of heads."""
        return [reader for reader in range(self.n_heads) if reader * self.n_parts(component) // self.n_heads == head]
