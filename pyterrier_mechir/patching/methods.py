"""The methods by which patched scores are computed, and the one function that chooses among them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyterrier_mechir.patching.attribution import attribute
from pyterrier_mechir.patching.column import columns
from pyterrier_mechir.patching.integration import integrate, integrate_inputs
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Approximation, Attribution, ColumnReplay, Method
from pyterrier_mechir.patching.screening import screened, screened_by_cells
from pyterrier_mechir.patching.sweep import sweep

Sweeper = Callable[..., SweepResult]
"""Computes patched scores; called as :func:`~pyterrier_mechir.patching.sweep.sweep` is."""


def sweeper(method: Method, screen: float | None = None) -> Sweeper:
    """The function that computes patched scores by a method.

    Args:
        method: from :func:`~pyterrier_mechir.patching.plan.method_of`.
        screen: how many sites to verify exactly, or, a float, which share of the cells; None for none.
    """
    if isinstance(method, str):
        return sweep
    approximate = _approximate(method)
    if screen is None:
        return approximate
    if isinstance(screen, float):
        return partial(screened_by_cells, approximate=approximate, share=screen, is_signed=method.is_signed)
    return partial(screened, approximate=approximate, k=screen, is_signed=method.is_signed)


def _approximate(method: Approximation) -> Sweeper:
    if isinstance(method, Attribution):
        return partial(attribute, method=method)
    if isinstance(method, ColumnReplay):
        return partial(columns, method=method)
    return partial(integrate if method.over == "activations" else integrate_inputs, steps=method.steps)
