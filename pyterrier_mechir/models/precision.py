"""Matrix products of fewer bits in models that are float32 otherwise.

The linear maps of the layers, where nearly all of the time goes, keep weights of fewer bits and multiply in them;
products are summed in float32, as the hardware does it. What comes in and goes out is float32, and so are embeddings,
norms, attention weights, the residual stream, pooling and heads, so that rounding does not add up along the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Reduced(nn.Linear):
    """A linear map that multiplies in the precision of its weights, and takes and gives float32.

    Made of a plain one by :func:`reduce_products`.

    Attributes:
        original: the weights before they were rounded; None where they never had more bits.
        in_full: whether to multiply in float32 for the moment, by the weights before they were rounded.
    """

    original: Tensor | None = None
    in_full: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if self.in_full:
            weight = self.weight if self.original is None else self.original.to(input.device)
            return nn.functional.linear(input.float(), weight.float(), self.bias)
        precision = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(precision)
        return nn.functional.linear(input.to(precision), self.weight, bias).float()


def reduce_products(model: nn.Module, precision: torch.dtype) -> nn.Module:
    """Have the layers of a transformers model multiply in fewer bits; the model itself is changed.

    Args:
        model: the model; all that is no weight of a linear map within its layers becomes float32.
        precision: ``torch.bfloat16`` or ``torch.float16``.
    """
    maps = _maps_of_layers(model)
    for linear in maps:
        linear.__class__ = Reduced
        rounded = linear.weight.detach().to(precision)
        if linear.weight.dtype != precision:
            linear.original = linear.weight.detach()
        linear.weight = nn.Parameter(rounded, requires_grad=False)
    kept = {id(linear.weight) for linear in maps}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in kept and tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return model


def precision_of(model: nn.Module) -> torch.dtype:
    """The precision that the layers of a model multiply in."""
    reduced = next((module for module in model.modules() if isinstance(module, Reduced)), None)
    return next(model.parameters()).dtype if reduced is None else reduced.weight.dtype


@contextmanager
def in_full(model: nn.Module) -> Iterator[None]:
    """Multiply in float32 for a while, by the weights as they were before they were rounded."""
    maps = [module for module in model.modules() if isinstance(module, Reduced)]
    for linear in maps:
        linear.in_full = True
    try:
        yield
    finally:
        for linear in maps:
            linear.in_full = False


def _maps_of_layers(model: nn.Module) -> list[nn.Linear]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = {id(module): module for layers in lists for module in layers.modules() if isinstance(module, nn.Linear)}
    return list(found.values())
