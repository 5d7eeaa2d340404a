"""Matrix products of fewer bits in models that are float32 otherwise.

The linear maps of the layers, where nearly all of the time goes, keep weights of fewer bits and multiply in them;
products are summed in float32, as the hardware does it. What comes in and goes out is float32, and so are embeddings,
norms, attention weights, the residual stream, pooling and heads, so that rounding does not add up along the stream.
Maps that the model's class keeps in float32 (the second of T5's MLPs, which float16 cannot hold) stay so.

Whether a device computes in a precision is found out by computing a small product in it, once.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyterrier_mechir.checks import warn


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
        model: the model; all that is no weight of a linear map within its layers becomes float32, and so does what its
            class declares to be kept in float32.
        precision: ``torch.bfloat16`` or ``torch.float16``.
    """
    maps = _maps_of_layers(model, precision)
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


def _maps_of_layers(model: nn.Module, precision: torch.dtype) -> list[nn.Linear]:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = {id(module): module for layers in lists for module in layers.modules() if isinstance(module, nn.Linear)}
    kept = _kept_in_float32(model, precision)
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return [module for key, module in found.items() if not (kept and kept.search(names[key]))]


def _kept_in_float32(model: nn.Module, precision: torch.dtype) -> re.Pattern[str] | None:
    """What the weights have in their names that the classes of a model's parts keep in float32; None where none do.

    transformers has two lists: of what float16 cannot hold, and of what neither it nor bfloat16 is precise enough for.
    """
    lists = ["_keep_in_fp32_modules_strict", *(["_keep_in_fp32_modules"] if precision == torch.float16 else [])]
    kept = {name for module in model.modules() for which in lists for name in getattr(module, which, None) or ()}
    spelled = "|".join(re.escape(name).replace(r"\*", "[^.]+") for name in sorted(kept))
    return re.compile(rf"(?:^|\.)(?:{spelled})(?:$|\.)") if kept else None


def check_precision(precision: torch.dtype, device: torch.device) -> None:
    """Check that a device computes in a precision, products and gradients.

    Raises:
        ValueError: it does not.

    Warns:
        UserWarning: a processor has no kernels of its own for it, so that products take longer than in float32; once.
    """
    if precision == torch.float32:
        return
    reason = _fails(precision, device)
    name = str(precision).removeprefix("torch.")
    if reason:
        raise ValueError(f"dtype={name!r} cannot be computed on {str(device)!r} ({reason}); use 'float32'.")
    if device.type == "cpu" and precision in (torch.bfloat16, torch.float16):
        _warn_of_slowness(precision)


@cache
def _fails(precision: torch.dtype, device: torch.device) -> str:
    """Why a small product of a precision and its gradient cannot be computed on a device; empty where they can."""
    try:
        with torch.enable_grad():
            ones = torch.ones((16, 16), dtype=precision, device=device, requires_grad=True)
            product = nn.functional.linear(ones, ones)
            (slope,) = torch.autograd.grad(product, ones, torch.ones_like(product))
        is_right = _all_near(product, 16) and _all_near(slope, 32)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "" if is_right else "the products are wrong"


def _all_near(values: Tensor, wanted: float) -> bool:
    return bool(((values.float() - wanted).abs() < 0.01 * wanted).all())


@cache
def _warn_of_slowness(precision: torch.dtype) -> None:
    if is_x86() and not packs(precision):
        warn(
            f"this processor has no kernels for {str(precision).removeprefix('torch.')}: scores are those of that "
            "precision, but take longer than in float32."
        )


def check_finite(scores: np.ndarray, precision: str) -> None:
    """Check that scores are numbers.

    Raises:
        ValueError: some are not, as where float16 cannot hold what a layer makes.
    """
    n = int((~np.isfinite(scores)).sum())
    if n:
        why = "float16 holds nothing beyond 65504; use dtype='bfloat16' or 'float32'"
        raise ValueError(
            f"{n} of {len(scores)} scores are no finite numbers: "
            f"{why if precision == 'float16' else 'the model gives none for them; check its weights'}."
        )


def is_x86() -> bool:
    """Whether the processor is one that weights are packed for."""
    return platform.machine().lower() in ("x86_64", "amd64")


@cache
def packs(precision: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of a precision here, as a small product tells.

    What it says of the processor would not do: it may be told to use less than that (``ONEDNN_MAX_CPU_ISA``).
    """
    operations: Any = torch.ops.mkldnn
    ones = torch.ones((16, 16), dtype=precision, device="cpu")
    try:
        weight = operations._reorder_linear_weight(ones, len(ones))
        return _all_near(operations._linear_pointwise(ones, weight, None, "none", [], ""), 16)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
