"""The components of a bridge, laid over the layers of a transformers model.

TransformerLens puts hook points where its components are called. Ours only hold the points, so that each name has one
meaning in all architectures; :class:`~pyterrier_mechir.lens.adapter.RankerAdapter` sees to it that they fire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import AttentionBridge, BlockBridge, EmbeddingBridge, LinearBridge, MLPBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent


def hold_points(component: GeneralizedComponent, names: Iterable[str], kept: Sequence[str] = ()) -> None:
    """Give a component of a bridge hook points, and take away its own that would never fire, and all aliases.

    Args:
        component: the component.
        names: the names of the hook points that it gets.
        kept: the names of its own hook points that fire, and stay.
    """
    for name, child in list(component.named_children()):
        if isinstance(child, HookPoint) and name not in kept:
            delattr(component, name)
            component._hook_registry.pop(name, None)
    for name in names:
        setattr(component, name, HookPoint())
    component.hook_aliases = {}


class Block(BlockBridge):
    """A layer: ``hook_in`` and ``hook_out`` are the residual stream around it.

    Args:
        name: the path of the list of layers.
        submodules: the components in a layer, by their names.
        points: the names of its hook points.
        returns_tuple: whether the layer returns its hidden states in a tuple.
    """

    def __init__(
        self, name: str, submodules: dict[str, GeneralizedComponent], points: Iterable[str], returns_tuple: bool
    ):
        super().__init__(name, submodules=submodules)
        self._returns_tuple = returns_tuple
        hold_points(self, points, kept=("hook_in", "hook_out"))

    def _extract_layer_idx(self) -> int:
        return int(str(self.name).rpartition(".")[2])

    def _maybe_wire_capture_hooks(self) -> None:
        """Nothing: what TransformerLens would catch here supposes a norm before the MLP."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self, "_start_at_layer_idx", None)
        if start is not None and self._extract_layer_idx() < start:
            return (args[0],) if self._returns_tuple else args[0]
        return super().forward(*args, **kwargs)


class Attention(AttentionBridge):
    """What an attention module reads and gives; it has no place of its own in the model.

    Args:
        config: of the bridge.
        maps: the maps of queries, keys, values and outputs.
        points: the names of its hook points.
    """

    supports_split_qkv_fork = False

    def __init__(self, config: Any, maps: dict[str, GeneralizedComponent], points: Iterable[str]):
        super().__init__(None, config, submodules=maps)
        hold_points(self, points)

    def _weight_layout_in_out(self, proj: Any) -> bool:
        return False


class MLP(MLPBridge):
    """What an MLP reads and gives; it has no place of its own in the model.

    Args:
        config: of the bridge.
        maps: the maps to and from its hidden units.
        points: the names of its hook points.
    """

    mirror_placeholder_hooks = False

    def __init__(self, config: Any, maps: dict[str, GeneralizedComponent], points: Iterable[str]):
        super().__init__(None, config, submodules=maps)
        hold_points(self, points)
        if "in" in maps and "gate" not in maps:
            self.hook_aliases = {"hook_pre": "in.hook_out"}

    def _weight_layout_in_out(self, proj: Any) -> bool:
        return False


class Embed(EmbeddingBridge):
    """The word embeddings; their hook point is fired from without, wherever the model calls them."""

    def __init__(self, name: str):
        super().__init__(name)
        hold_points(self, (), kept=("hook_out",))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._modules["_original_component"](*args, **kwargs)  # type: ignore[misc]


class MapSlice(LinearBridge):
    """One of several maps, such as queries, keys and values, that the model computes by one map for all of them.

    Its weight and bias are slices of that one map's, taken whenever they are asked for, so that changes are seen.

    Args:
        path: the map for all of them, in a layer.
        number: which slice of that map's output, from 0.
        of: how many slices there are.
    """

    def __init__(self, path: str, number: int, of: int):
        super().__init__(None)
        self._path, self._number, self._of = path, number, of
        hold_points(self, ())

    def set_original_component(self, original_component: nn.Module) -> None:
        """Remember the map for all of them, but not as a module of this one: the layer has it among its own already."""
        self.__dict__["_whole"] = original_component.get_submodule(self._path)

    def _part(self, name: str) -> Tensor | None:
        whole = getattr(self._whole, name)
        return None if whole is None else whole.chunk(self._of)[self._number]

    @property
    def weight(self) -> Tensor | None:
        """``[out, in]``."""
        return self._part("weight")

    @property
    def bias(self) -> Tensor | None:
        """``[out]``, or None where the map for all of them has none."""
        return self._part("bias")


def maps_of(names: Sequence[str], paths: Sequence[str], whole: str) -> dict[str, GeneralizedComponent]:
    """Linear maps of a layer, by what TransformerLens calls them.

    Args:
        names: what each map is called, such as ``q``, ``k``, ``v``.
        paths: where each is in a layer; or a single path, of the one map whose output is all of theirs in a row.
        whole: what that one map is called.
    """
    if len(paths) == len(names):
        return {name: LinearBridge(path) for name, path in zip(names, paths, strict=True)}
    slices = {name: MapSlice(paths[0], number, len(names)) for number, name in enumerate(names)}
    return {whole: LinearBridge(paths[0]), **slices}


_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)


class _Softmax(TorchFunctionMode):
    """While active, passes the input and the output of each softmax over attention scores through hook points.

    Args:
        shape: ``(B, H, Q)``, the shape of the scores but for their last axis, by which their softmax is told from
            others.
        scores: the hook point that the scores go through.
        pattern: the hook point that the attention weights go through.
    """

    def __init__(self, shape: tuple[int, ...], scores: HookPoint, pattern: HookPoint):
        super().__init__()
        self._shape = shape
        self._scores = scores
        self._pattern = pattern

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _SOFTMAX or args[0].shape[:-1] != self._shape:
            return func(*args, **(kwargs or {}))
        return self._pattern(func(self._scores(args[0]), *args[1:], **(kwargs or {})))


def watch_softmax(attention: nn.Module, n_heads: int, scores: HookPoint, pattern: HookPoint) -> None:
    """Have eager attention pass its scores and weights, ``[B, H, Q, S]``, through hook points while it computes.

    Args:
        attention: the module.
        n_heads: how many heads it has.
        scores: sees the scores as they enter softmax: scaled, with biases and masks added.
        pattern: sees the weights that come out of it, before they are applied to the values.
    """
    forward: Callable[..., Any] = attention.forward

    @wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        with _Softmax((states.shape[0], n_heads, states.shape[1]), scores, pattern):
            return forward(*args, **kwargs)

    attention.forward = watched
