"""Adapters of TransformerLens, by which it knows the architectures of rankers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import ArchitectureAdapter, LinearBridge, NormalizationBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from pyterrier_mechir.lens.components import MLP, Attention, Block, Embed, maps_of, watch_softmax
from pyterrier_mechir.lens.names import adapted
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.architectures import Architecture
from pyterrier_mechir.models.components import COMPONENTS, PER_HEAD
from pyterrier_mechir.models.ports import on_port


class RankerAdapter(ArchitectureAdapter):
    """Tells TransformerLens where the parts of a model are, for all architectures that rankers have.

    It reads them off :data:`~pyterrier_mechir.models.architectures.ARCHITECTURES`, so that the hook points named as in
    :data:`~pyterrier_mechir.models.components.HOOKS` are the sites of the same names. Whatever stands on the layers,
    be it a head for classification, one over the vocabulary or none, is left as it is: the bridge returns what the
    model does.

    Args:
        cfg: of the bridge.

    Attributes:
        anatomy: the parts of the model; None until :meth:`prepare_model`.
    """

    supports_generation = False
    supports_causal_loss = False
    supports_compatibility_mode = False
    supports_hf_output_attentions = False
    supports_fold_ln = False

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.anatomy: Anatomy | None = None
        self._ports: ExitStack | None = None
        self.component_mapping = {}
        self.weight_processing_conversions = dict(self._qkvo_weight_conversions(include_biases=True))

    def prepare_model(self, model: Any) -> None:
        """Have a model attend eagerly, and describe it.

        Args:
            model: a transformers model.

        Raises:
            ValueError: its architecture is unknown.
        """
        anatomy = self.anatomy = self.anatomy or Anatomy(model)
        model.set_attn_implementation("eager")
        self._describe(model, anatomy)
        self.component_mapping = self._components(model, anatomy)

    def _describe(self, model: Any, anatomy: Anatomy) -> None:
        """Set what TransformerLens cannot read, or misreads, in the model's configuration."""
        cfg, table = self.cfg, anatomy.architecture
        names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        is_rms = not any(isinstance(module, nn.LayerNorm) for module in anatomy.layers[0].modules())
        cfg.n_layers, cfg.n_heads, cfg.d_mlp = anatomy.n_layers, anatomy.n_heads, anatomy.n_neurons
        cfg.d_head = _width(anatomy, table.qkv[0]) // (anatomy.n_heads * (4 - len(table.qkv)))
        cfg.normalization_type = "RMS" if is_rms else "LN"
        cfg.uses_rms_norm = cfg.final_rms = is_rms
        is_whole = len(table.mlp_in) == 1 and _width(anatomy, table.mlp_in[0]) == 2 * anatomy.n_neurons
        cfg.gated_mlp = is_whole or len(table.mlp_in) == 2 or bool(getattr(model.config, "is_gated_act", False))
        cfg.attn_only = False
        cfg.attention_dir = "causal" if getattr(anatomy.attention(0), "is_causal", False) else "bidirectional"
        if "rotary_emb" in names:
            cfg.positional_embedding_type = "rotary"
        elif "relative_attention_bias" in names:
            cfg.positional_embedding_type = "relative_positional_bias"
        else:
            cfg.positional_embedding_type = "standard"

    def _components(self, model: nn.Module, anatomy: Anatomy) -> dict[str, GeneralizedComponent]:
        table = anatomy.architecture
        points = self._points(anatomy)
        norms = {"ln1": table.mid_norm, "ln2": table.out_norm}
        parts: dict[str, GeneralizedComponent] = {name: self._norm(path) for name, path in norms.items() if path}
        for name, (_, qkv, out) in attentions(table).items():
            maps = {**maps_of(("q", "k", "v"), qkv, "qkv"), "o": LinearBridge(out)}
            parts[name] = Attention(self.cfg, maps, (*points.pop(name), "hook_attn_scores", "hook_pattern"))
        names = ("gate", "in") if self.cfg.gated_mlp else ("in",)
        into = maps_of(names, table.mlp_in, "gate_in") if table.mlp_in else {}
        parts["mlp"] = MLP(self.cfg, {**into, "out": LinearBridge(table.mlp_out)}, points.pop("mlp"))
        layers = _path(model, anatomy.layers[0]).rpartition(".")[0]
        found: dict[str, GeneralizedComponent] = {
            table.blocks: Block(layers, parts, points.pop(""), table.layer_returns_tuple)
        }
        if "embed" not in anatomy.lacks:
            found["embed"] = Embed(_path(model, anatomy.port(0, "embed").module))
        if table.final_norm:
            stack, name = layers.removesuffix(table.layers), table.blocks.replace("blocks", "ln_final")
            found[name] = self._norm(stack + table.final_norm)
        return found

    def _norm(self, path: str) -> NormalizationBridge:
        return NormalizationBridge(path, self.cfg, use_native_layernorm_autograd=True)

    @staticmethod
    def _points(anatomy: Anatomy) -> dict[str, list[str]]:
        """The hook points of the sites of a layer that fire at ports, by the part of the layer that holds them."""
        found: dict[str, list[str]] = {name: [] for name in ("", "mlp", *attentions(anatomy.architecture))}
        for component in _fired(anatomy):
            part, _, name = anatomy.hook(component, 0).split(".", 2)[2].rpartition(".")
            found[part].append(name)
        return found

    def setup_hook_compatibility(self, bridge: Any) -> None:
        """Have the hook points of a bridge fire, which TransformerLens asks for when it has made one."""
        anatomy = self.anatomy
        if anatomy is None or self._ports is not None:
            return
        self._ports = ExitStack()
        table = anatomy.architecture
        if "embed" not in anatomy.lacks:
            self._ports.enter_context(on_port(anatomy.port(0, "embed"), _fire(bridge.embed.hook_out)))
        for layer, block in enumerate(getattr(bridge, table.blocks)):
            for component in _fired(anatomy):
                point = block.get_submodule(anatomy.hook(component, layer).split(".", 2)[2])
                activation = COMPONENTS[component]
                heads = anatomy.groups(activation) if component in PER_HEAD else None
                self._ports.enter_context(on_port(anatomy.port(layer, activation), _fire(point, heads)))
            for name, (path, *_) in attentions(table).items():
                part = block.get_submodule(name)
                module = anatomy.layers[layer].get_submodule(path)
                watch_softmax(module, anatomy.n_heads, part.hook_attn_scores, part.hook_pattern)


def attentions(table: Architecture) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """The attentions of a layer: the paths of their modules, their query, key and value maps and their projections."""
    own = table.attention, table.qkv, table.out_proj
    if not table.cross_attention:
        return {"attn": own}
    return {"self_attn": own, "cross_attn": (table.cross_attention, table.cross_qkv, table.cross_out_proj)}


def _fired(anatomy: Anatomy) -> list[str]:
    """The components of a layer whose hook points fire at ports; those of attention weights see softmax instead."""
    elsewhere = {"embed", "pattern", "cross_pattern", *anatomy.lacks}
    return [component for component, activation in COMPONENTS.items() if activation not in elsewhere]


def _width(anatomy: Anatomy, path: str) -> int:
    """How many features a linear map of the layers gives."""
    module: Any = anatomy.layers[0].get_submodule(path)
    return int(module.weight.shape[0])


def _path(model: nn.Module, module: nn.Module) -> str:
    """Where a module is in a model."""
    return next(name for name, found in model.named_modules() if found is module)


def _fire(point: HookPoint, heads: int | None = None) -> Callable[[Tensor], Tensor | None]:
    """What passes an activation ``[B, S, D]`` through a hook point, as ``[B, S, H, D / H]`` where heads have parts."""

    def function(value: Tensor) -> Tensor | None:
        if not point.has_hooks():
            return None
        before = value if heads is None else value.unflatten(-1, (heads, -1))
        version = None if before.is_inference() else before._version
        after: Tensor = point(before)
        if after is before and version is not None and after._version == version:
            return None
        return after if heads is None else after.flatten(-2)

    return function


def register() -> None:
    """Make the adapter known to TransformerLens for all architectures that it has none for.

    An installed package is found by its entry points; this does the same for one that is not, or was installed before.
    """
    ArchitectureAdapterFactory.discover_entry_points()
    for name in adapted():
        if name not in ArchitectureAdapterFactory._adapters:
            ArchitectureAdapterFactory.register_adapter(name, RankerAdapter)
