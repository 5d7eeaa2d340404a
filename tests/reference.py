"""Activation patching the slow way: one pair, one component at a time, plain hooks on the unmodified model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from small_models import DECODERS
from torch import Tensor, nn

COMPONENTS = ("head", "q", "k", "v", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post", "embed")

CROSS_COMPONENTS = ("cross_head", "cross_q", "cross_k", "cross_v", "cross_attn_out")

PER_HEAD = ("head", "q", "k", "v", "cross_head", "cross_q", "cross_k", "cross_v")


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


class Paths(NamedTuple):
    """Where parts are, as read in transformers' modeling files; ``prefix`` is the encoder's place in a classifier.

    ``maps`` are those of queries, keys and values, ``mid`` the norm that the stream between attention and MLP leaves
    (or, for ModernBERT and decoders, enters; for T5 the part of the layer that it enters), ``cross`` the module of
    cross-attention.
    """

    prefix: str
    layer: str
    attention_projection: str
    mlp_projection: str
    maps: tuple[str, ...]
    mid: str
    cross: str = ""


_BERT_MAPS = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
_BERT_MID = "attention.output.LayerNorm"

PATHS = {
    name: Paths(f"{prefix}.", "encoder.layer.{}", "attention.output.dense", "output.dense", _BERT_MAPS, _BERT_MID)
    for name, prefix in {"bert": "bert", "electra": "electra", "roberta": "roberta", "xlm-roberta": "roberta"}.items()
} | {
    "distilbert": Paths(
        "distilbert.",
        "transformer.layer.{}",
        "attention.out_lin",
        "ffn.lin2",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "sa_layer_norm",
    ),
    "modernbert": Paths("model.", "layers.{}", "attn.Wo", "mlp.Wo", ("attn.Wqkv",) * 3, "mlp_norm"),
    "mpnet": Paths(
        "mpnet.",
        "encoder.layer.{}",
        "attention.attn.o",
        "output.dense",
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention.LayerNorm",
    ),
    **{
        kind + suffix: Paths(
            "",
            f"{stack}.block.{{}}",
            "layer.0.SelfAttention.o",
            f"layer.{mlp}.DenseReluDense.wo",
            tuple(f"layer.0.SelfAttention.{name}" for name in "qkv"),
            "layer.1",
            "layer.1.EncDecAttention",
        )
        for kind in ("t5", "mt5")
        for suffix, stack, mlp in (("", "encoder", 1), (".decoder", "decoder", 2))
    },
    **{
        name: Paths(
            "model.",
            "layers.{}",
            "self_attn.o_proj",
            "mlp.down_proj",
            tuple(f"self_attn.{letter}_proj" for letter in "qkv"),
            "pre_feedforward_layernorm" if name in ("gemma2", "gemma3_text") else "post_attention_layernorm",
        )
        for name in DECODERS
    },
}

_MID_IS_INPUT = ("modernbert", "t5", "mt5", *DECODERS)

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
        decoder: whether what is patched is the decoder of an encoder-decoder.
    """

    def __init__(self, model: nn.Module, to_score: Callable[[Any, Inputs], Tensor], decoder: bool = False):
        self.model = model
        self.to_score = to_score
        self.decoder = decoder
        self.n_layers = model.config.num_decoder_layers if decoder else model.config.num_hidden_layers
        self.n_heads = model.config.num_attention_heads
        self.n_kv_heads = getattr(model.config, "num_key_value_heads", self.n_heads)
        self._seen: dict[tuple[int, str, int], tuple[Inputs, Tensor]] = {}
        self._scores: dict[tuple[Any, ...], tuple[Inputs, Inputs, float]] = {}

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
        return self.to_score(self.model(**inputs), inputs).item()

    def sites(self, component: str) -> list[tuple[int, int | None]]:
        """(layer, head) of each site of a component, in order; head is None where the site is the whole layer's."""
        heads = range(self._n_parts(component)) if component in PER_HEAD else [None]
        return [(layer, head) for layer in range(1 if component == "embed" else self.n_layers) for head in heads]

    def activation(self, inputs: Inputs, component: str, layer: int) -> Tensor:
        """The activation of a component in an ordinary run, ``[1, S, D]``; one run keeps it at every layer."""
        if (id(inputs), component, layer) not in self._seen:

            def keep(at: int, value: Tensor) -> None:
                self._seen[id(inputs), component, at] = inputs, value.clone()

            with ExitStack() as stack:
                for at in range(1 if component == "embed" else self.n_layers):
                    stack.enter_context(self._hook(component, at, partial(keep, at)))
                self.score(inputs)
        return self._seen[id(inputs), component, layer][1]

    def patched(
        self,
        target: Inputs,
        source: Inputs,
        component: str,
        layer: int,
        head: int | None = None,
        positions: list[int] | None = None,
    ) -> float:
        """The score of the target run with one component taken, at all or some positions, from the source run.

        Positions that either side masks are left as they are. Each score is computed once, but for a model with hooks.
        """
        key = (id(target), id(source), component, layer, head, positions if positions is None else tuple(positions))
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return self._patched(target, source, component, layer, head, positions)
        if key not in self._scores:
            score = self._patched(target, source, component, layer, head, positions)
            self._scores[key] = target, source, score
        return self._scores[key][2]

    def _patched(
        self,
        target: Inputs,
        source: Inputs,
        component: str,
        layer: int,
        head: int | None,
        positions: list[int] | None,
    ) -> float:
        taken = self.activation(source, component, layer)
        are_open = self.is_open(target, source)
        if "decoder_input_ids" in target and taken.shape[1] == target["decoder_input_ids"].shape[1]:
            are_open = [True] * taken.shape[1]
        places = [i for i in (range(taken.shape[1]) if positions is None else positions) if are_open[i]]

        def replace(value: Tensor) -> Tensor:
            part = self._part(component, head, value.shape[-1])
            mixed = value.clone()
            mixed[:, places, part] = taken[:, places, part]
            return mixed

        with self._hook(component, layer, replace):
            return self.score(target)

    def is_open(self, target: Inputs, source: Inputs) -> list[bool]:
        """Which positions may be taken: those that both sides attend to."""
        return (target["attention_mask"] & source["attention_mask"])[0].bool().tolist()

    def _part(self, component: str, head: int | None, width: int) -> slice:
        """The features of a value that a site has."""
        if component == "neuron":
            return slice(head, head + 1)
        if head is None:
            return slice(None)
        is_one_map = width == 3 * self.model.config.hidden_size
        size = (width // 3 if is_one_map else width) // self._n_parts(component)
        start = PER_HEAD[1:].index(component) * self.model.config.hidden_size if is_one_map else 0
        return slice(start + head * size, start + (head + 1) * size)

    def readers(self, component: str, head: int) -> list[int]:
        """The heads that read a head's queries, or the keys or values of a group of heads."""
        return [reader for reader in range(self.n_heads) if reader * self._n_parts(component) // self.n_heads == head]

    def _n_parts(self, component: str) -> int:
        return self.n_kv_heads if component in ("k", "v") else self.n_heads

    def _hook(self, component: str, layer: int, function: Callable[[Tensor], Tensor | None]) -> Any:
        module, is_input = self._place(component, layer)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            new = function(args[0])
            if component == "resid_mid" and new is not None:
                args[0].copy_(new)
                return None
            return None if new is None else (new, *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                new = function(output[0])
                return None if new is None else (new, *output[1:])
            return function(output)

        return module.register_forward_pre_hook(before) if is_input else module.register_forward_hook(after)

    def _place(self, component: str, layer: int) -> tuple[nn.Module, bool]:
        paths = PATHS[self.model.config.model_type + (".decoder" if self.decoder else "")]
        has_head = type(self.model).__name__.endswith(("ForSequenceClassification", "ForMaskedLM", "ForCausalLM"))
        path = (paths.prefix if has_head else "") + paths.layer.format(layer)
        if component == "embed":
            stack = getattr(self.model, "encoder", None)
            return getattr(stack, "embed_tokens", None) or self.model.get_input_embeddings(), False
        if component in ("resid_pre", "resid_post"):
            return self.model.get_submodule(path), component == "resid_pre"
        if component == "resid_mid":
            return self.model.get_submodule(f"{path}.{paths.mid}"), self.model.config.model_type in _MID_IS_INPUT
        if component in ("q", "k", "v"):
            return self.model.get_submodule(f"{path}.{paths.maps['qkv'.index(component)]}"), False
        if component in CROSS_COMPONENTS:
            name = component[-1] if component[-2] == "_" else "o"
            return self.model.get_submodule(f"{path}.{paths.cross}.{name}"), component == "cross_head"
        if component == "neuron":
            return self.model.get_submodule(f"{path}.{paths.mlp_projection}"), True
        if component == "mlp_out":
            return self.model.get_submodule(f"{path}.{paths.mlp_projection}"), False
        return self.model.get_submodule(f"{path}.{paths.attention_projection}"), component == "head"
