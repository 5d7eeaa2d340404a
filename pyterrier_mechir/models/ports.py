"""Putting functions into a model for a while: in place of a forward, or where an activation passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, cat, nn

from pyterrier_mechir.models.attention import on_pattern, rows_of, weights_of

if TYPE_CHECKING:
    from pyterrier_mechir.models.anatomy import Port
    from pyterrier_mechir.models.autoencoder import Autoencoder


@contextmanager
def overridden(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replace the ``forward`` of modules, and put back what was there, whatever happens inside."""
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.__dict__["forward"] = forward
        yield


def _restore(module: nn.Module, previous: Callable[..., Any] | None) -> None:
    if previous is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = previous


def _on_features(
    autoencoder: Autoencoder, function: Callable[[Tensor], Tensor | None]
) -> Callable[[Tensor], Tensor | None]:
    """Turn a function of an activation's features into one of the activation.

    Where the function gives new features, the activation becomes itself + decode(new) - decode(old): it moves by what
    the change of the features makes, and keeps what the autoencoder does not reconstruct.
    """

    def on_activation(activation: Tensor) -> Tensor | None:
        features = autoencoder.encode(activation.detach())
        new = function(features)
        if new is None:
            return None
        return activation + (autoencoder.decode(new) - autoencoder.decode(features)).to(activation.dtype)

    return on_activation


@contextmanager
def on_port(port: Port, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call ``function`` with the activation that passes a port; what it returns, unless None, takes its place."""
    if port.autoencoder is not None:
        function = _on_features(port.autoencoder, function)
    if port.is_pattern:

        def weighed(weights: Tensor) -> Tensor | None:
            new = function(rows_of(weights))
            return None if new is None else weights_of(new, weights.shape[1])

        with on_pattern(port.module, weighed):
            yield
        return
    stream: list[Tensor] = []

    def passed(value: Tensor) -> Tensor | None:
        added = stream[0][:, : value.shape[1]] if stream else None
        activation = value if port.columns is None else value[..., port.columns]
        new = function(activation if added is None else activation + added)
        if new is None:
            return None
        new = new if added is None else new - added
        if port.columns is None:
            return new
        return cat([value[..., : port.columns.start], new, value[..., port.columns.stop :]], dim=-1)

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        value = passed(args[0])
        return None if value is None else (value, *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return passed(output)
        value = passed(output[0])
        return None if value is None else (value, *output[1:])

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        stream[:] = args[:1]

    with ExitStack() as stack:
        if port.added_to is not None:
            stack.enter_context(port.added_to.register_forward_pre_hook(keep))
        if port.is_input:
            stack.enter_context(port.module.register_forward_pre_hook(before))
        else:
            stack.enter_context(port.module.register_forward_hook(after))
        yield
