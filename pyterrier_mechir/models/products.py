"""The linear maps of a model's layers with their weights laid out for the processor.

PyTorch multiplies matrices on a CPU through MKL, from weights in their usual order. oneDNN, which PyTorch comes with
and its compiler uses, multiplies faster from weights that it has laid out once, and applies a GELU that follows to each
part of the product while it is in the cache. Sums are the same but for their order. Weights are laid out when they are
first used, kept as long as the model lives, and laid out again where somebody changed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from pyterrier_mechir.models.ports import overridden
from pyterrier_mechir.models.precision import Reduced, is_x86, packs

if TYPE_CHECKING:
    from pyterrier_mechir.models.anatomy import Anatomy


LARGEST = 2**30
"""Most bytes of weights of a model's layers that are laid out, since these are kept twice."""

_ROWS = 2048
"""Rows that the layout is chosen for."""

_NOTHING: tuple[str, list[float], str] = ("none", [], "")
"""What comes after a product that nothing comes after."""


class _Packed(NamedTuple):
    """Weights that are laid out for the processor.

    Args:
        weight: the weights as oneDNN wants them.
        of: the address and the version counter of the plain weights that they were made of, which tell whether those
            have changed since.
    """

    weight: Tensor
    of: tuple[int, int]


_packed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()

_transposed: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()


@contextmanager
def packed_products(anatomy: Anatomy) -> Iterator[None]:
    """Compute the linear maps of the layers from packed weights; gradients pass through them where weights take none.

    Models are left as they are where packing is of no use: on a GPU, on other processors than x86, where the weights
    take more than :data:`LARGEST` bytes, and where they have fewer bits than the processor multiplies.
    """
    every = (linear for layer in range(anatomy.n_layers) for linear in anatomy.linear_maps(layer))
    maps = [linear for linear in every if _can_be_packed(linear)]
    if sum(int(linear.weight.nbytes) for linear in maps) > LARGEST:
        maps = []
    with ExitStack() as stack:
        activated = {} if not maps else _activations(anatomy, maps)
        forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (linear, _product(linear, is_activated=linear in activated)) for linear in maps
        ]
        forwards += [(gelu, _by_mode(gelu, lambda value: value)) for gelu in activated.values()]
        stack.enter_context(overridden(forwards))
        yield


def _can_be_packed(module: nn.Linear) -> bool:
    if type(module) not in (nn.Linear, Reduced) or "forward" in module.__dict__:
        return False
    weight: Any = module.weight
    if weight.is_inference():
        return False
    reduced = isinstance(module, Reduced) and not module.in_full
    precision = torch.bfloat16 if reduced else torch.float32
    return weight.device.type == "cpu" and weight.dtype == precision and _is_supported(precision)


def _is_supported(precision: torch.dtype) -> bool:
    return is_x86() and bool(torch.backends.mkldnn.enabled) and packs(precision)


def _activations(anatomy: Anatomy, maps: list[nn.Linear]) -> dict[nn.Module, nn.Module]:
    """The maps whose output goes through a GELU and nowhere else, and that GELU."""
    found: dict[nn.Module, nn.Module] = {}
    paths = anatomy.architecture.mlp_in
    for layer in anatomy.layers if len(paths) == 1 else ():
        into: Any = layer.get_submodule(paths[0])
        gelus = [module for module in layer.modules() if _is_gelu(module)]
        if (
            into in maps
            and len(gelus) == 1
            and not _is_watched(into, gelus[0])
            and into.weight.shape[0] == anatomy.n_neurons
        ):
            found[into] = gelus[0]
    return found


def _is_watched(linear: nn.Module, gelu: nn.Module) -> bool:
    """Whether somebody's hook sees what passes from one to the other."""
    return bool(linear._forward_hooks or gelu._forward_pre_hooks or gelu._forward_hooks)


def _is_gelu(module: nn.Module) -> bool:
    if isinstance(module, nn.GELU):
        return module.approximate == "none"
    return isinstance(module, GELUActivation) and getattr(module, "act", None) is nn.functional.gelu


_Forward = Callable[[Tensor], Tensor]


def _by_mode(module: nn.Module, plain: _Forward, differentiable: _Forward | None = None) -> _Forward:
    """One forward that chooses at each call, by whether gradients are on.

    Args:
        module: the module.
        plain: what it computes by where gradients are off.
        differentiable: what it computes by where they are on; None for the module's own forward.
    """
    own = type(module).forward
    with_gradients = differentiable or (lambda value: own(module, value))
    return lambda value: with_gradients(value) if torch.is_grad_enabled() else plain(value)


def _product(linear: Any, is_activated: bool) -> _Forward:
    weight, multiply = _laid_out(linear), torch.ops.mkldnn._linear_pointwise
    precision = weight.dtype
    bias = None if linear.bias is None else linear.bias.detach().to(precision)
    after: tuple[str, list[float], str] = ("gelu", [], "none") if is_activated else _NOTHING

    def plain(value: Tensor) -> Tensor:
        product = multiply(value.to(precision), weight, bias, *after)
        return product if is_activated else product.float()

    def differentiable(value: Tensor) -> Tensor:
        if linear.weight.requires_grad:
            return type(linear).forward(linear, value)
        return _Product.apply(value, weight, bias, linear)

    return _by_mode(linear, plain, differentiable)


class _Product(torch.autograd.Function):
    """A linear map of packed weights that take no gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, linear: nn.Module) -> Tensor:
        ctx.linear = linear
        return torch.ops.mkldnn._linear_pointwise(value.to(weight.dtype), weight, bias, *_NOTHING).float()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        weight = _laid_out(ctx.linear, transposed=True)
        slope = slopes[0].to(weight.dtype)
        return torch.ops.mkldnn._linear_pointwise(slope, weight, None, *_NOTHING).float(), None, None, None


def _laid_out(linear: Any, transposed: bool = False) -> Tensor:
    known = _transposed if transposed else _packed
    weight = linear.weight.detach()
    now = (weight.data_ptr(), linear.weight._version)
    if linear not in known or known[linear].of != now:
        given = weight.T.contiguous() if transposed else weight
        known[linear] = _Packed(torch.ops.mkldnn._reorder_linear_weight(given, _ROWS), now)
    return known[linear].weight
