"""Noise on every matrix product, which shows what depends on the last bits of products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        *("linear", "matmul", "mm", "bmm", "mv", "dot", "einsum", "addmm", "addmv", "baddbmm", "addbmm", "tensordot"),
        *("_addmm_activation", "mkldnn_linear", "scaled_dot_product_attention", "_cosine_similarity"),
        "_scaled_dot_product_attention_math",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
    )
) | {"mkldnn::_linear_pointwise"}
"""The operations that multiply matrices, among them those that gradients are made of."""


class Noise(TorchDispatchMode):
    """Multiplies each entry of each matrix product by a random number near 1, which differs from call to call.

    It acts on what the thread that enters it computes, gradients included, whatever calls the products; the numbers are
    the same each time that it is made.

    Args:
        size: how far from 1 the numbers are at most.
    """

    def __init__(self, size: float):
        super().__init__()
        self.size = size
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._schema.name not in _PRODUCTS:
            return found
        if isinstance(found, Tensor):
            return self._noisy(found)
        return type(found)([self._noisy(found[0]), *found[1:]])

    def _noisy(self, product: Tensor) -> Tensor:
        if not product.is_floating_point() or product.layout != torch.strided:
            return product
        generator = self._generators.setdefault(product.device, torch.Generator(product.device).manual_seed(0))
        off = torch.empty_like(product).uniform_(-self.size, self.size, generator=generator)
        return product.addcmul_(product, off)
