"""The linear maps of a model's layers with their weights laid out for the processor.

PyTorch multiplies matrices on a CPU through MKL, from weights in their usual order. oneDNN, which PyTorch comes with
and its compiler uses, multiplies faster, where the processor has AVX-512, from weights that it has laid out once, and
applies a GELU that follows to each part of the product while it is in the cache. Sums are the same but for their order.

Weights are laid out once in each call, as soon as it has brought enough rows to make up for that, and are forgotten
when the call ends: nothing tells for certain whether a weight was changed since (a write through ``.data`` or through a
numpy view leaves no trace), so nothing made of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

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

_WORTH = 512
"""Rows from which on laying out the weights takes less time than it saves."""

_NOTHING: tuple[str, list[float], str] = ("none", [], "")
"""What comes after a product that nothing comes after."""


@contextmanager
def packed_products(anatomy: Anatomy) -> Iterator[None]:
    """Compute the linear maps of the layers from packed weights; gradients pass through them where weights take none.

    Models are left as they are where packing is of no use: on a GPU, on processors without AVX-512, where the weights
    take more than :data:`LARGEST` bytes, and where they have fewer bits than the processor multiplies.
    """
    every = (linear for layer in range(anatomy.n_layers) for linear in anatomy.linear_maps(layer))
    maps = [linear for linear in every if _can_be_packed(linear)]
    if sum(int(linear.weight.nbytes) for linear in maps) > LARGEST:
        maps = []
    with ExitStack() as stack:
        activated = {} if not maps else _activations(anatomy, maps)
        forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (linear, _Product(linear, activated.get(linear))) for linear in maps
        ]
        forwards += [(gelu, partial(_unless_differentiable, gelu)) for gelu in activated.values()]
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
    return is_x86() and bool(torch.backends.mkldnn.enabled) and _is_faster(precision) and packs(precision)


def _is_faster(precision: torch.dtype) -> bool:
    """Whether products by packed weights take less time: of float32, those of AVX-512 alone; with AVX2 MKL's do."""
    return precision != torch.float32 or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _activations(anatomy: Anatomy, maps: list[nn.Linear]) -> dict[nn.Module, nn.Module]:
    """The maps whose output goes through a GELU and nowhere else, and that GELU."""
    found: dict[nn.Module, nn.Module] = {}
    paths = anatomy.architecture.mlp_in
    for layer in anatomy.layers if len(paths) == 1 else ():
        into = dict(layer.named_modules()).get(paths[0])
        gelus = [module for module in layer.modules() if _is_gelu(module)]
        if (
            isinstance(into, nn.Linear)
            and into in maps
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


def _own_forward(module: Any, value: Tensor) -> Tensor:
    """What a module's class computes, whatever stands in place of its forward."""
    made: Tensor = type(module).forward(module, value)
    return made


def _unless_differentiable(gelu: nn.Module, value: Tensor) -> Tensor:
    """The forward of a GELU that the product before it has applied where gradients are off."""
    return _own_forward(gelu, value) if torch.is_grad_enabled() else value


class _Product:
    """The forward of one linear map, for one call of the package.

    Args:
        linear: the map.
        gelu: what comes after it, which it applies where gradients are off; None for nothing.
    """

    def __init__(self, linear: Any, gelu: nn.Module | None):
        self.linear, self.gelu = linear, gelu
        self.n_rows = 0
        self.laid_out: dict[bool, Tensor] = {}

    def __call__(self, value: Tensor) -> Tensor:
        is_differentiable = torch.is_grad_enabled()
        self.n_rows += value.numel() // value.shape[-1]
        if self.n_rows < _WORTH or (is_differentiable and self.linear.weight.requires_grad):
            product = _own_forward(self.linear, value)
            return product if is_differentiable or self.gelu is None else _own_forward(self.gelu, product)
        if is_differentiable:
            return _Differentiable.apply(value, self)
        if self.gelu is not None:
            return self.multiply(value, self.weight(), self.bias, ("gelu", [], "none"))
        return self.multiply(value, self.weight(), self.bias).float()

    @property
    def bias(self) -> Tensor | None:
        bias = self.linear.bias
        return None if bias is None else bias.detach().to(self.linear.weight.dtype)

    def weight(self, transposed: bool = False) -> Tensor:
        """The weights, laid out when they are first asked for."""
        if transposed not in self.laid_out:
            plain = self.linear.weight.detach()
            given = plain.T.contiguous() if transposed else plain
            self.laid_out[transposed] = _laid_out(given)
        return self.laid_out[transposed]

    def multiply(
        self,
        value: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        after: tuple[str, list[float], str] = _NOTHING,
    ) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(value.to(weight.dtype), weight, bias, *after)
        return product


def _laid_out(weight: Tensor) -> Tensor:
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return laid_out


class _Differentiable(torch.autograd.Function):
    """A linear map of packed weights that take no gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, product: _Product) -> Tensor:
        ctx.product = product
        return product.multiply(value, product.weight(), product.bias).float()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        product: _Product = ctx.product
        return product.multiply(slopes[0], product.weight(transposed=True)).float(), None
