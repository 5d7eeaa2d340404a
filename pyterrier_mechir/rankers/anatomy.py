"""Where the parts of each transformer architecture are.

One row of :data:`ARCHITECTURES` is all that the package knows of an architecture: the sweep engine, the recorder
and every component are written against :class:`Anatomy`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        qkv: in a layer, the query, key and value maps, for layers that apply these to their input as it is and
            attend by plain scaled dot products (no norm before, no rotary or relative positions); otherwise empty.
        embeddings: the modules between token ids and the first layer, from the base model; absent ones are skipped.
        layer_returns_tuple: whether a layer returns its hidden states in a tuple.
    """

    layers: str
    attention: str
    out_proj: str
    mlp_out: str
    qkv: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ("embeddings",)
    layer_returns_tuple: bool = False


_BERT = Architecture(
    layers="encoder.layer",
    attention="attention.self",
    out_proj="attention.output.dense",
    mlp_out="output.dense",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    embeddings=("embeddings", "embeddings_project"),
)

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
    ),
    "modernbert": Architecture(layers="layers", attention="attn", out_proj="attn.Wo", mlp_out="mlp.Wo"),
    "mpnet": Architecture(
        layers="encoder.layer",
        attention="attention.attn",
        out_proj="attention.attn.o",
        mlp_out="output.dense",
        layer_returns_tuple=True,
    ),
}
"""Supported architectures by ``config.model_type``."""


class Port(NamedTuple):
    """A place where an activation can be read and replaced: the input or the output of one module."""

    module: nn.Module
    is_input: bool


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
        self._config = model.config

    def __repr__(self) -> str:
        return f"Anatomy(n_layers={self.n_layers}, n_heads={self.n_heads})"

    def attention(self, layer: int) -> nn.Module:
        return self.layers[layer].get_submodule(self.architecture.attention)

    def out_proj(self, layer: int) -> nn.Module:
        return self.layers[layer].get_submodule(self.architecture.out_proj)

    def qkv(self, layer: int) -> list[nn.Module]:
        """The query, key and value maps of a layer of plain attention; empty for any other."""
        if self._config._attn_implementation not in ("eager", "sdpa"):
            return []
        return [self.layers[layer].get_submodule(path) for path in self.architecture.qkv]

    def skip(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        """The forward of a layer that is not computed."""
        return (hidden_states,) if self.architecture.layer_returns_tuple else hidden_states

    def attention_output(self, layer: int, z: Tensor) -> tuple[Tensor, None]:
        """What the attention module of a layer returns for head outputs z: projected, where it projects itself."""
        projects = self.architecture.out_proj.startswith(self.architecture.attention + ".")
        return (self.out_proj(layer)(z) if projects else z), None

    def port(self, layer: int, activation: str) -> Port:
        """Where the activation ``resid_pre``, ``z``, ``attn_out`` or ``mlp_out`` of a layer passes."""
        if activation == "resid_pre":
            return Port(self.layers[layer], is_input=True)
        if activation == "z":
            return Port(self.out_proj(layer), is_input=True)
        if activation == "attn_out":
            return Port(self.out_proj(layer), is_input=False)
        if activation == "mlp_out":
            return Port(self.layers[layer].get_submodule(self.architecture.mlp_out), is_input=False)
        raise KeyError(activation)

    def groups(self, activation: str) -> int:
        """How many independently patched slices the last axis of an activation has (one per head for z)."""
        return self.n_heads if activation == "z" else 1
