"""Activations of an unmodified transformers model, read and replaced by one hook of torch: the slow way, to compare.

Where parts are is written down here once more, as transformers' modeling files have it, and nothing is taken from
:mod:`~pyterrier_mechir.models`: what the two say of a model is compared, so that one of them alone cannot be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

COMPONENTS = (
    *("head", "q", "k", "v", "attn_out", "mlp_out", "neuron", "resid_pre", "resid_mid", "resid_post", "embed"),
    *("cross_head", "cross_q", "cross_k", "cross_v", "cross_attn_out"),
)
"""The components that this module knows; attention patterns are no input or output of a module."""

PER_HEAD = ("head", "q", "k", "v", "cross_head", "cross_q", "cross_k", "cross_v")


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


DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")

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

_HEADED = ("ForSequenceClassification", "ForMaskedLM", "ForCausalLM")


class Hooks:
    """Where the activations of one model are, and hooks there.

    Args:
        model: the transformers model.
        decoder: whether what is patched is the decoder of an encoder-decoder.

    Raises:
        KeyError: the architecture is none of :data:`PATHS`.
    """

    def __init__(self, model: nn.Module, decoder: bool = False):
        self.model: Any = model
        self.decoder = decoder
        config: Any = model.config
        self.n_layers: int = config.num_decoder_layers if decoder else config.num_hidden_layers
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = getattr(config, "num_key_value_heads", None) or self.n_heads
        self._paths = PATHS[config.model_type + (".decoder" if decoder else "")]

    def hook(self, component: str, layer: int, function: Callable[[Tensor], Tensor | None]) -> Any:
        """Call a function with an activation whenever it passes; what it returns, unless None, takes its place.

        Args:
            component: its name, one of :data:`COMPONENTS`.
            layer: the layer.
            function: called with the activation of all heads or neurons.

        Returns:
            The handle; used in a ``with`` block, the hook is there for the block.
        """
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

    def activations(
        self, places: Iterable[tuple[str, int]], run: Callable[[], object]
    ) -> dict[tuple[str, int], Tensor]:
        """The activations of some components at some layers, in one ordinary run.

        Args:
            places: (component, layer) of each.
            run: runs the model.
        """
        found: dict[tuple[str, int], Tensor] = {}

        def keep(place: tuple[str, int], value: Tensor) -> None:
            found[place] = value.clone()

        with ExitStack() as stack:
            for place in dict.fromkeys(places):
                stack.enter_context(self.hook(*place, partial(keep, place)))
            run()
        return found

    def part(self, component: str, number: int | None, width: int) -> slice:
        """The features of an activation of some width that a head or neuron has; all, where ``number`` is None."""
        if component == "neuron" and number is not None:
            return slice(number, number + 1)
        if number is None:
            return slice(None)
        is_one_map = width == 3 * self.model.config.hidden_size
        size = (width // 3 if is_one_map else width) // self.n_parts(component)
        start = PER_HEAD[1:].index(component) * self.model.config.hidden_size if is_one_map else 0
        return slice(start + number * size, start + (number + 1) * size)

    def n_parts(self, component: str) -> int:
        """Into how many heads, or groups of heads, an activation of a layer is split."""
        return self.n_kv_heads if component in ("k", "v") else self.n_heads

    def _place(self, component: str, layer: int) -> tuple[nn.Module, bool]:
        """The module that an activation goes into or comes out of, and whether it goes in."""
        paths, kind = self._paths, self.model.config.model_type
        path = (paths.prefix if type(self.model).__name__.endswith(_HEADED) else "") + paths.layer.format(layer)
        if component == "embed":
            stack = getattr(self.model, "encoder", None)
            return getattr(stack, "embed_tokens", None) or self.model.get_input_embeddings(), False
        if component in ("resid_pre", "resid_post"):
            return self.model.get_submodule(path), component == "resid_pre"
        if component == "resid_mid":
            return self.model.get_submodule(f"{path}.{paths.mid}"), kind in _MID_IS_INPUT
        if component in ("q", "k", "v"):
            return self.model.get_submodule(f"{path}.{paths.maps['qkv'.index(component)]}"), False
        if component.startswith("cross_"):
            name = component[-1] if component[-2] == "_" else "o"
            return self.model.get_submodule(f"{path}.{paths.cross}.{name}"), component == "cross_head"
        if component in ("neuron", "mlp_out"):
            return self.model.get_submodule(f"{path}.{paths.mlp_projection}"), component == "neuron"
        return self.model.get_submodule(f"{path}.{paths.attention_projection}"), component == "head"
