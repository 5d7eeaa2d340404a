"""Activation patching the slow way: one pair, one component at a time, plain hooks on the unmodified model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COMPONENTS = ("head", "attn_out", "mlp_out", "resid_pre")


class Paths(NamedTuple):
    """Where parts are, as read in transformers' modeling files; ``prefix`` is the encoder's place in a classifier."""

    prefix: str
    layer: str
    attention_projection: str
    mlp_projection: str


PATHS = {
    "bert": Paths("bert.", "encoder.layer.{}", "attention.output.dense", "output.dense"),
    "electra": Paths("electra.", "encoder.layer.{}", "attention.output.dense", "output.dense"),
    "roberta": Paths("roberta.", "encoder.layer.{}", "attention.output.dense", "output.dense"),
    "xlm-roberta": Paths("roberta.", "encoder.layer.{}", "attention.output.dense", "output.dense"),
    "distilbert": Paths("distilbert.", "transformer.layer.{}", "attention.out_lin", "ffn.lin2"),
    "modernbert": Paths("model.", "layers.{}", "attn.Wo", "mlp.Wo"),
    "mpnet": Paths("mpnet.", "encoder.layer.{}", "attention.attn.o", "output.dense"),
}

Inputs = dict[str, Tensor]


def inputs_of(side: Any, tokenizer: Any) -> Inputs:
    """The model's inputs for one sequence, unpadded; ``side`` has ``ids``, ``types`` and ``mask``."""
    values = {"input_ids": side.ids, "attention_mask": side.mask, "token_type_ids": side.types}
    return {name: torch.tensor([values[name].tolist()]) for name in tokenizer.model_input_names}


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


class Reference:
    """Scores and patched scores of one model.

    Args:
        model: the transformers model.
        to_score: from the model's output and inputs to the score.
    """

    def __init__(self, model: nn.Module, to_score: Callable[[Any, Inputs], Tensor]):
        self.model = model
        self.to_score = to_score
        self.n_layers = model.config.num_hidden_layers
        self.n_heads = model.config.num_attention_heads
        self._seen: dict[tuple[int, str, int], tuple[Inputs, Tensor]] = {}

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

    @torch.no_grad()
    def score(self, inputs: Inputs) -> float:
        return self.to_score(self.model(**inputs), inputs).item()

    def sites(self, component: str) -> list[tuple[int, int | None]]:
        """(layer, head) of each site of a component, in order; head is None where the site is the whole layer's."""
        heads = range(self.n_heads) if component == "head" else [None]
        return [(layer, head) for layer in range(self.n_layers) for head in heads]

    def activation(self, inputs: Inputs, component: str, layer: int) -> Tensor:
        """The activation of a component in an ordinary run, ``[1, S, D]``; each is computed once."""
        key = (id(inputs), component, layer)
        if key not in self._seen:
            with self._hook(component, layer, lambda value: self._seen.__setitem__(key, (inputs, value.clone()))):
                self.score(inputs)
        return self._seen[key][1]

    def patched(self, target: Inputs, source: Inputs, component: str, layer: int, head: int | None = None) -> float:
        """The score of the target run with one component taken, at all positions, from the source run."""
        taken = self.activation(source, component, layer)

        def replace(value: Tensor) -> Tensor:
            if head is None:
                return taken
            size = value.shape[-1] // self.n_heads
            mixed = value.clone()
            mixed[..., head * size : (head + 1) * size] = taken[..., head * size : (head + 1) * size]
            return mixed

        with self._hook(component, layer, replace):
            return self.score(target)

    def _hook(self, component: str, layer: int, function: Callable[[Tensor], Tensor | None]) -> Any:
        module, is_input = self._place(component, layer)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            new = function(args[0])
            return None if new is None else (new, *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return function(output)

        return module.register_forward_pre_hook(before) if is_input else module.register_forward_hook(after)

    def _place(self, component: str, layer: int) -> tuple[nn.Module, bool]:
        paths = PATHS[self.model.config.model_type]
        is_classifier = type(self.model).__name__.endswith("ForSequenceClassification")
        path = (paths.prefix if is_classifier else "") + paths.layer.format(layer)
        if component == "resid_pre":
            return self.model.get_submodule(path), True
        if component == "mlp_out":
            return self.model.get_submodule(f"{path}.{paths.mlp_projection}"), False
        return self.model.get_submodule(f"{path}.{paths.attention_projection}"), component == "head"
