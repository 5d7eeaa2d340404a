"""Runs that no mode of torch reaches which somebody has set around them.

A score is the model's, in the precision of its weights, whatever stands around the call: ``torch.inference_mode``,
``torch.autocast``, another default dtype or device. Whether gradients are on stays as it is. What is asked of kernels
(``torch.use_deterministic_algorithms``) is followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that autocast may be on for."""


@contextmanager
def as_alone() -> Iterator[None]:
    """Compute as if no mode of torch were set around: a ``with`` block, or a decorator of a function.

    Modes are of the thread, and set for this thread only. The default dtype alone is of the process: where it is not
    float32, it is float32 for as long as any thread is within such a block.
    """
    import torch

    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            gradients = torch.is_grad_enabled()
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))
        for kind in _DEVICES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # torch 2.6 has get_default_device see no blocks
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32)
        yield


class _DefaultDtype:
    """float32 as the default dtype while any thread is inside; afterwards, what it was before the first came."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before: torch.dtype | None = None

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                if self._before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        import torch

        with self._lock:
            self._inside -= 1
            if not self._inside and self._before not in (None, torch.float32):
                torch.set_default_dtype(self._before)


_float32 = _DefaultDtype()


def over_same_memory(tensor: Tensor) -> Tensor:
    """A tensor itself, or, where it was made in ``torch.inference_mode``, an ordinary one over the same memory.

    Tensors that were made in that mode never take part in a graph, not even afterwards.
    """
    import torch

    if not tensor.is_inference():
        return tensor
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    made = made.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else made
