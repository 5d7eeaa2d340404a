"""The parts of one loaded model, and the places where its activations are read and replaced."""

from __future__ import annotations

import sys
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from pyterrier_mechir.models.architectures import ARCHITECTURES
from pyterrier_mechir.models.components import CODED, CROSS, HOOKS

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from pyterrier_mechir.models.autoencoder import Autoencoder


PLACED = "_has_placed_edits"
"""The attribute of a model that says that it computes under edits that tell positions apart."""


class Port(NamedTuple):
    """A place where an activation can be read and replaced.

    Args:
        module: the module that the activation goes into or comes out of.
        is_input: whether the activation goes into the module; else it comes out of it.
        columns: which features of the module's input or output are the activation; None for all of them.
        added_to: a module to whose input the value is added; the activation is the sum.
        is_pattern: whether the module is an attention, and the activation its attention weights.
        autoencoder: encodes the activation; what is read and replaced are then its features, not the activation itself.
    """

    module: nn.Module
    is_input: bool
    columns: slice | None = None
    added_to: nn.Module | None = None
    is_pattern: bool = False
    autoencoder: Autoencoder | None = None


class Anatomy:
    """The parts of one loaded model.

    Args:
        model: a transformers model, with or without a task head.
        decoder: of a model with an encoder and a decoder, whether to describe the decoder; else the encoder.

    Raises:
        ValueError: the architecture has no row in :data:`ARCHITECTURES`, or the model leaves out what its attention
            computes.
    """

    def __init__(self, model: PreTrainedModel, *, decoder: bool = False):
        kind = model.config.model_type + (".decoder" if decoder else "")
        if kind not in ARCHITECTURES:
            raise ValueError(
                f"{type(model).__name__} has architecture {kind!r}, which pyterrier_mechir does not know; supported: "
                f"{', '.join(sorted(ARCHITECTURES))}. To add it, describe where its parts are: "
                f"pyterrier_mechir.rankers.anatomy.ARCHITECTURES[{kind!r}] = Architecture(...)."
            )
        self.architecture = ARCHITECTURES[kind]
        self.model = model
        base: Any = model.base_model.get_submodule(self.architecture.stack)
        self.layers: list[nn.Module] = list(base.get_submodule(self.architecture.layers).children())
        self.embeddings = [getattr(base, name) for name in self.architecture.embeddings if hasattr(base, name)]
        self.n_layers = len(self.layers)
        self.n_heads: int = model.config.num_attention_heads
        self.n_kv_heads: int = getattr(model.config, "num_key_value_heads", None) or self.n_heads
        self.base: nn.Module = base
        self._word_embedding: nn.Module = (base if self.architecture.stack else model).get_input_embeddings()
        self._config = base.config
        if getattr(self._config, "attn_logit_softcapping", None) and self._config._attn_implementation == "sdpa":
            raise ValueError(
                f"{type(model).__name__} attends by sdpa, which does not limit its logits softly as it was trained to; "
                "load it with attn_implementation='eager'."
            )
        self._decoder = decoder
        self.autoencoders: dict[tuple[int, str], tuple[Autoencoder, int]] = {}

    def of(self, twin: PreTrainedModel) -> Anatomy:
        """The same parts of another model of the same shape, such as a :mod:`twin <pyterrier_mechir.models.twins>`.

        Raises:
            ValueError: the other has not as many layers, heads or features.
        """
        made = Anatomy(twin, decoder=self._decoder)
        if made.shape != self.shape:
            raise ValueError(
                f"the {type(twin).__name__} had {self!r} when the ranker was made, and has {made!r} now; make the "
                "ranker again."
            )
        made.autoencoders = self.autoencoders
        return made

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, heads, groups of these, and the widths of the stream, of all heads and of the MLP."""
        return self.n_layers, self.n_heads, self.n_kv_heads, self.width("resid_pre"), self.width("z"), self.n_neurons

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

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last layer and the final states; a module that changes nothing where there is none."""
        from torch import nn

        name = self.architecture.final_norm
        return self.base.get_submodule(name) if name else nn.Identity()

    def linear_maps(self, layer: int) -> list[nn.Linear]:
        """All linear maps of a layer."""
        from torch import nn

        return [module for module in self.layers[layer].modules() if isinstance(module, nn.Linear)]

    def plain_qkv(self, layer: int) -> list[nn.Module]:
        """The query, key and value maps of a layer.

        Empty where the layer does more than apply them to its input and attend by scaled dot products (rotary
        positions, norms), or where the model attends by another implementation than eager or sdpa.
        """
        if not self.architecture.plain_attention or self._config._attn_implementation not in ("eager", "sdpa"):
            return []
        return [self.layers[layer].get_submodule(path) for path in self.architecture.qkv]

    @property
    def cross_attends(self) -> bool:
        """Whether this is a decoder that reads what an encoder made."""
        return bool(self.architecture.cross_attention)

    @property
    def added(self) -> tuple[str, ...]:
        """The activations of a layer that it adds to the residual stream."""
        return ("attn_out", "cross_attn_out", "mlp_out") if self.cross_attends else ("attn_out", "mlp_out")

    def context_maps(self) -> list[nn.Module]:
        """The modules whose input is what the encoder made: the keys and values of cross-attention, of all layers."""
        return [layer.get_submodule(path) for layer in self.layers for path in self.architecture.cross_qkv[1:]]

    def skip(self, hidden_states: Tensor, mask: Any = None, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The forward of a layer that is not computed: gives back its input, in the form that layers return."""
        if self.architecture.hands_on_bias:
            return hidden_states, self._bias(bias, mask, hidden_states.shape[1]), None
        return (hidden_states,) if self.architecture.layer_returns_tuple else hidden_states

    def attention_output(self, layer: int, z: Tensor, **inputs: Any) -> tuple[Any, ...]:
        """What the attention module of a layer returns for head outputs z: projected, where it projects itself.

        Args:
            layer: the layer.
            z: the outputs, ``[B, S, D]``.
            **inputs: what the module was called with, beside the hidden states.
        """
        projects = self.architecture.out_proj.startswith(self.architecture.attention + ".")
        output = self.out_proj(layer)(z) if projects else z
        if self.architecture.hands_on_bias:
            return output, self._bias(inputs.get("position_bias"), inputs.get("mask"), z.shape[1]), None
        return output, None

    def _bias(self, bias: Tensor | None, mask: Tensor | None, length: int) -> Tensor:
        """The bias of attention by relative positions, which the first layer of T5 computes and all others are given.

        A layer that is not computed has to give it to the next one all the same.

        Args:
            bias: what the layer was given; None for the first layer, whose bias is computed here.
            mask: the attention mask, which attention outside transformers' attention interface adds to the bias.
            length: how many positions there are.

        Returns:
            The bias, with the mask added to it where the next layer expects it so.
        """
        if bias is not None:
            return bias
        bias = self.attention(0).compute_bias(length, length)  # type: ignore[operator]
        return bias if mask is None or self._has_interface else bias + mask

    @property
    def _has_interface(self) -> bool:
        modeling = sys.modules[type(self.attention(0)).__module__]
        return self.architecture.attention_interface and hasattr(modeling, "eager_attention_forward")

    @property
    def is_row_wise(self) -> bool:
        """Whether layers compute all but attention for each position by itself, wherever it is.

        Not so where somebody's hooks or edits may tell positions apart, nor in decoders, which read an encoder.
        """
        if self.cross_attends or getattr(self.model, PLACED, False):
            return False
        return not any(m._forward_hooks or m._forward_pre_hooks for layer in self.layers for m in layer.modules())

    def follows_attention(self, layer: int) -> bool:
        """Whether what the attention of a layer computes with can be read."""
        attention: Any = self.attention(layer)
        return "pattern" not in self.lacks and attention.config._attn_implementation in ("eager", "sdpa")

    @property
    def lacks(self) -> dict[str, str]:
        """The activations that cannot be read or replaced in this model, each with the reason, for an error message."""
        implementation = self._config._attn_implementation
        found: dict[str, str] = {}
        if not self._has_interface:
            reason = f"{self._config.model_type} computes its attention outside transformers' attention interface"
        elif implementation not in ("eager", "sdpa"):
            reason = f"{implementation} never forms them; load the model with attn_implementation='sdpa'"
        else:
            reason = ""
        if reason:
            weights = f"the attention weights of this model cannot be read or replaced: {reason}."
            found |= dict.fromkeys(("pattern", "cross_pattern"), weights)
        if not self.cross_attends:
            return found | dict.fromkeys(
                CROSS, "this stack has no cross-attention; patch a decoder that reads an encoder."
            )
        alone = (
            "a decoder that reads at its first position attends there to nothing but itself, so that q, k and pattern "
            "of its self-attention change nothing; patch head, v, or the cross-attention's cross_q and cross_pattern."
        )
        start = "the word embedding of a decoder is that of its start token in every run; patch what follows it."
        return found | dict.fromkeys(("q", "k", "pattern"), alone) | {"embed": start}

    def hook(self, component: str, layer: int) -> str:
        """What TransformerLens calls a component of a layer."""
        name = HOOKS[component]
        of_layer = f"self_{name}" if self.cross_attends and name.startswith("attn.") else name
        return name if component == "embed" else f"{self.architecture.blocks}.{layer}.{of_layer}"

    def port(self, layer: int, activation: str) -> Port:
        """Where an activation of a layer passes (see :data:`~pyterrier_mechir.models.components.COMPONENTS`).

        Raises:
            ValueError: it cannot be reached in this model.
        """
        if activation in self.lacks:
            raise ValueError(self.lacks[activation])
        if activation.endswith(CODED):
            name = activation.removesuffix(CODED)
            if (layer, name) not in self.autoencoders:
                raise ValueError(f"no autoencoder is attached to {name} of layer {layer}; see ranker.attach.")
            return self.port(layer, name)._replace(autoencoder=self.autoencoders[layer, name][0])
        if activation == "pattern":
            return Port(self.attention(layer), is_input=False, is_pattern=True)
        of = self.layers[layer].get_submodule
        table = self.architecture
        if activation == "cross_pattern":
            return Port(of(table.cross_attention), is_input=False, is_pattern=True)
        if activation in ("cross_z", "cross_attn_out"):
            return Port(of(table.cross_out_proj), is_input=activation == "cross_z")
        if activation in CROSS:
            return Port(of(table.cross_qkv[("cross_q", "cross_k", "cross_v").index(activation)]), is_input=False)
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
        return Port(of(table.qkv[0]), is_input=False, columns=slice(which * width, (which + 1) * width))

    def writer(self, layer: int, activation: str) -> tuple[nn.Module, bool]:
        """The module whose output an activation is, or is a sum with, and whether it is that output alone.

        Args:
            layer: the layer.
            activation: any that comes out of a module: a stream, an output, the queries, keys and values, the word
                embeddings.
        """
        table = self.architecture
        if activation == "resid_pre" and layer:
            return self.writer(layer - 1, "resid_post")
        if activation == "resid_pre":
            widened = getattr(self.base, "embeddings_project", None)
            first = self.base.get_submodule(table.first_norm) if table.first_norm else self._word_embedding
            return first if widened is None else widened, True
        if activation == "resid_post":
            inside = table.out_norm or (table.added_norms[1] if table.added_norms else table.mlp_out)
            return self.layers[layer].get_submodule(inside), bool(table.out_norm)
        port = self.port(layer, activation)
        return port.module, port.added_to is None

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
            path.append(self.base.get_submodule(table.final_norm))
        return path

    def width(self, activation: str) -> int:
        """How many features an activation has."""
        if activation.removeprefix("cross_") in ("z", "q", "k", "v"):
            size = int(self.out_proj(0).weight.shape[1]) // self.n_heads  # type: ignore[index]
            return size * self.groups(activation)
        if activation == "embed":
            return int(self._word_embedding.weight.shape[1])  # type: ignore[index]
        if activation.endswith(CODED) or activation == "mlp_post":
            return self.groups(activation)
        return int(self._config.hidden_size)

    def attach(self, key: tuple[int, str], autoencoder: Autoencoder, n_features: int) -> Anatomy:
        """This anatomy with an autoencoder that tells the features of the activation of a layer.

        Raises:
            ValueError: another that is attached to that activation, in another layer, has not as many features.
        """
        layer, name = key
        made, same = copy(self), {"resid_pre": (layer - 1, "resid_post"), "resid_post": (layer + 1, "resid_pre")}
        made.autoencoders = {**self.autoencoders, key: (autoencoder, n_features)}
        if name in same and same[name][0] in range(self.n_layers):
            made.autoencoders[same[name]] = (autoencoder, n_features)
        if len({n for (_, name), (_, n) in made.autoencoders.items() if name == key[1]}) > 1:
            raise ValueError("autoencoders of the same activation should have as many features in all layers.")
        return made

    def groups(self, activation: str) -> int:
        """How many independently patched slices the last axis of an activation has.

        One per head; per group of heads for the keys and values that these share; per neuron; or one in all.
        """
        if activation in ("z", "q", "pattern") or (activation in CROSS and activation != "cross_attn_out"):
            return self.n_heads
        if activation in ("k", "v"):
            return self.n_kv_heads
        if activation.endswith(CODED):
            name = activation.removesuffix(CODED)
            return next((n for (_, of), (_, n) in self.autoencoders.items() if of == name), 0)
        return self.n_neurons if activation == "mlp_post" else 1
