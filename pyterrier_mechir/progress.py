"""Whether progress bars are shown: asked for stage by stage, or at once for all stages that run within a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_ALL_SHOWN = ContextVar("_ALL_SHOWN", default=False)


def shown(verbose: bool) -> bool:
    """Whether a long call shows its bar.

    Args:
        verbose: its own setting.
    """
    return verbose or _ALL_SHOWN.get()


@contextmanager
def all_shown() -> Iterator[None]:
    """Show the bars of the stages that run within, whatever their own settings."""
    token = _ALL_SHOWN.set(True)
    try:
        yield
    finally:
        _ALL_SHOWN.reset(token)


def shows_progress(call: Callable[P, R]) -> Callable[P, R]:
    """Let a function that runs stages show their bars: where its keyword ``verbose`` is true."""

    @wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.get("verbose"):
            return call(*args, **kwargs)
        with all_shown():
            return call(*args, **kwargs)

    return called
