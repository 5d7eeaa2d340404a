"""Where the parts of each transformer architecture are.

One row of :data:`ARCHITECTURES` is all that the package knows of an architecture: the sweep engine, the recorder
and every component are written against :class:`Anatomy`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """Paths of the parts of one architecture.

    Args:
        layers: the list of layers, from the base model.
        attention: in a layer, the self-attention module. Called with the layer's hidden states, it returns a tuple
            that begins with the heads' outputs z (or, where ``out_proj`` lies inside it, with ``out_proj(z)``).
        out_proj: in a layer, the linear map of the concatenated head outputs z to the attention output.
        mlp_out: in a layer, the last linear map of the MLP.
        qkv: in a layer, the query, key and value maps, or the one map that gives all three after one another.
        mid_norm: in a layer, the norm whose output is the residual stream between attention and MLP; empty where that
            stream is not normed (pre-norm layers).
        out_norm: in a layer, the norm whose output is the residual stream that leaves the layer; empty as above.
        final_norm: the norm between the last layer and the model's output, from the base model; empty where the last
            layer's stream is the output.
        plain_attention: whether layers apply ``qkv`` to their input as it is and attend by plain scaled dot products,
            with no norm before and no rotary or relative positions.
        attention_interface: whether attention goes through transformers' attention interface, where its weights can be
            read and replaced.
        embeddings: the modules between token ids and the first layer, from the base model; absent ones are skipped.
        layer_returns_tuple: whether a layer returns its hidden states in a tuple.
        added_norms: in a layer, norms of what attention and MLP give, before it is added to the stream; empty where
            it is added as it is.
    """

    layers: str
    attention: str
    out_proj: str
    mlp_out: str
    qkv: tuple[str, ...]
    mid_norm: str = ""
    out_norm: str = ""
    final_norm: str = ""
    plain_attention: bool = False
    attention_interface: bool = True
    embeddings: tuple[str, ...] = ("embeddings",)
    layer_returns_tuple: bool = False
    added_norms: tuple[str, str] | tuple[()] = ()


_BERT = Architecture(
    layers="encoder.layer",
    attention="attention.self",
    out_proj="attention.output.dense",
    mlp_out="output.dense",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    mid_norm="attention.output.LayerNorm",
    out_norm="output.LayerNorm",
    plain_attention=True,
    embeddings=("embeddings", "embeddings_project"),
)

_LLAMA = Architecture(
    layers="layers",
    attention="self_attn",
    out_proj="self_attn.o_proj",
    mlp_out="mlp.down_proj",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    final_norm="norm",
    embeddings=("embed_tokens",),
)

_GEMMA = replace(_LLAMA, added_norms=("post_attention_layernorm", "post_feedforward_layernorm"))

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _BERT,
    "electra": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": Architecture(
        layers="transformer.layer",
        attention="attention",
        out_proj="attention.out_lin",
        mlp_out="ffn.lin2",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        mid_norm="sa_layer_norm",
        out_norm="output_layer_norm",
        plain_attention=True,
    ),
    "modernbert": Architecture(
        layers="layers",
        attention="attn",
        out_proj="attn.Wo",
        mlp_out="mlp.Wo",
        qkv=("attn.Wqkv",),
        final_norm="final_norm",
    ),
    "mpnet": Architecture(
        layers="encoder.layer",
        attention="attention.attn",
        out_proj="attention.attn.o",
        mlp_out="output.dense",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        mid_norm="attention.LayerNorm",
        attention_interface=False,
        out_norm="output.LayerNorm",
        layer_returns_tuple=True,
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
}
"""Supported architectures by ``config.model_type``."""


class Port(NamedTuple):
    """A place where an activation can be read and replaced.

    Args:
        module: the module that the activation goes into or comes out of.
        is_input: which of the two.
        part: the features that are the activation's; None for all.
        added_to: a module to whose input the value is added; the activation is the sum.
        is_pattern: whether the activation is the weights of the module, an attention.
    """

    module: nn.Module
    is_input: bool
    part: slice | None = None
    added_to: nn.Module | None = None
    is_pattern: bool = False


class Anatomy:
    """The parts of one loaded model.

    Args:
        model: a transformers model, with or without a task head.

    Raises:
        ValueError: the architecture has no row in :data:`ARCHITECTURES`.
    """

    def __init__(self, model: PreTrainedModel):
        kind = model.config.model_type
        if kind not in ARCHITECTURES:
            raise ValueError(
                f"{type(model).__name__} has architecture {kind!r}, which pyterrier_mechir does not know; supported: "
                f"{', '.join(sorted(ARCHITECTURES))}. To add it, describe where its parts are: "
                f"pyterrier_mechir.rankers.anatomy.ARCHITECTURES[{kind!r}] = Architecture(...)."
            )
        self.architecture = ARCHITECTURES[kind]
        base = model.base_model
        self.layers: list[nn.Module] = list(base.get_submodule(self.architecture.layers).children())
        self.embeddings = [getattr(base, name) for name in self.architecture.embeddings if hasattr(base, name)]
        self.n_layers = len(self.layers)
        self.n_heads: int = model.config.num_attention_heads
        self.n_kv_heads: int = getattr(model.config, "num_key_value_heads", None) or self.n_heads
        self._base: nn.Module = base
        self._word_embedding: nn.Module = model.get_input_embeddings()
        self._config = model.config

    def __repr__(self) -> str:
        return f"Anatomy(n_layers={self.n_layers}, n_heads={self.n_heads})"

    @property
    def n_neurons(self) -> int:
        """Hidden units of a layer's MLP."""
        return int(self.layers[0].get_submodule(self.architecture.mlp_out).weight.shape[1])  # type: ignore[index]

    def attention(self, layer: int) -> nn.Module:
        return self.layers[layer].get_submodule(self.architecture.attention)

    def out_proj(self, layer: int) -> nn.Module:
        return self.layers[layer].get_submodule(self.architecture.out_proj)

    def plain_qkv(self, layer: int) -> list[nn.Module]:
        """The query, key and value maps of a layer of plain attention; empty for any other."""
        if not self.architecture.plain_attention or self._config._attn_implementation not in ("eager", "sdpa"):
            return []
        return [self.layers[layer].get_submodule(path) for path in self.architecture.qkv]

    def skip(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        """The forward of a layer that is not computed."""
        return (hidden_states,) if self.architecture.layer_returns_tuple else hidden_states

    def attention_output(self, layer: int, z: Tensor) -> tuple[Tensor, None]:
        """What the attention module of a layer returns for head outputs z: projected, where it projects itself."""
        projects = self.architecture.out_proj.startswith(self.architecture.attention + ".")
        return (self.out_proj(layer)(z) if projects else z), None

    @property
    def lacks(self) -> dict[str, str]:
        """The activations that this model does not let one reach, and why."""
        implementation = self._config._attn_implementation
        if not self.architecture.attention_interface:
            reason = f"{self._config.model_type} computes its attention outside transformers' attention interface"
        elif implementation not in ("eager", "sdpa"):
            reason = f"{implementation} never forms them; load the model with attn_implementation='sdpa'"
        else:
            return {}
        return {"pattern": f"the attention weights of this model cannot be read or replaced: {reason}."}

    def port(self, layer: int, activation: str) -> Port:
        """Where an activation of a layer passes (see :data:`~pyterrier_mechir.patching.sites.COMPONENTS`).

        Raises:
            ValueError: it cannot be reached in this model.
        """
        if activation in self.lacks:
            raise ValueError(self.lacks[activation])
        if activation == "pattern":
            return Port(self.attention(layer), is_input=False, is_pattern=True)
        of = self.layers[layer].get_submodule
        table = self.architecture
        if activation in ("resid_pre", "resid_post"):
            return Port(self.layers[layer], is_input=activation == "resid_pre")
        if activation in ("z", "attn_out"):
            return Port(self.out_proj(layer), is_input=activation == "z")
        if activation in ("mlp_post", "mlp_out"):
            return Port(of(table.mlp_out), is_input=activation == "mlp_post")
        if activation == "resid_mid" and table.mid_norm:
            return Port(of(table.mid_norm), is_input=False)
        if activation == "resid_mid":
            added = of(table.added_norms[0]) if table.added_norms else self.out_proj(layer)
            return Port(added, is_input=False, added_to=self.layers[layer])
        if activation == "embed":
            return Port(self._word_embedding, is_input=False)
        which = ("q", "k", "v").index(activation)
        if len(table.qkv) == 3:
            return Port(of(table.qkv[which]), is_input=False)
        width = self._config.hidden_size
        return Port(of(table.qkv[0]), is_input=False, part=slice(which * width, (which + 1) * width))

    def direct_path(self) -> list[tuple[int, str] | nn.Module]:
        """What the residual stream is made of: the activations that are added to it (z through ``out_proj``) and the
        norms that it passes, in their order.

        Raises:
            ValueError: the architecture's row does not say where the norms are.
        """
        table = self.architecture
        if bool(table.mid_norm) != bool(table.out_norm) or not (table.out_norm or table.final_norm):
            raise ValueError(
                f"the row of {self._config.model_type!r} in ARCHITECTURES does not say which norms its residual stream "
                "passes (mid_norm and out_norm of each layer, or final_norm), so no score can be attributed along it; "
                "add them, or use ScoreLens or PatchScorer instead."
            )
        path: list[tuple[int, str] | nn.Module] = [(0, "resid_pre")]
        for number, layer in enumerate(self.layers):
            for activation, norm in (("z", table.mid_norm), ("mlp_out", table.out_norm)):
                path.append((number, activation))
                if norm:
                    path.append(layer.get_submodule(norm))
        if table.final_norm:
            path.append(self._base.get_submodule(table.final_norm))
        return path

    def groups(self, activation: str) -> int:
        """How many independently patched slices the last axis of an activation has.

        One per head; per group of heads for the keys and values that these share; per neuron; or one in all.
        """
        if activation in ("z", "q", "pattern"):
            return self.n_heads
        if activation in ("k", "v"):
            return self.n_kv_heads
        return self.n_neurons if activation == "mlp_post" else 1
