"""The methods by which patched scores are computed, and the one function that chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pyterrier_mechir.patching.plan import IntegratedGradients

if TYPE_CHECKING:
    from pyterrier_mechir.models.sites import Site
    from pyterrier_mechir.patching.outcome import SweepResult
    from pyterrier_mechir.patching.plan import Method


def sweeper(method: Method, screen: int | None = None, receivers: Sequence[Site] = ()) -> Callable[..., SweepResult]:
    """The function that computes patched scores by a method, to be called as :func:`.sweep.sweep` is.

    Args:
        method: from :func:`method_of`.
        screen: how many sites to verify exactly; None for none.
        receivers: where patched paths end; none patches all, as methods other than ``exact`` do.
    """
    from pyterrier_mechir.patching.attribution import attribute
    from pyterrier_mechir.patching.integration import integrate
    from pyterrier_mechir.patching.screening import screened
    from pyterrier_mechir.patching.sweep import sweep

    if isinstance(method, str):
        return partial(sweep, receivers=receivers)
    if isinstance(method, IntegratedGradients) and method.over == "activations":
        estimate: Callable[..., SweepResult] = partial(integrate, steps=method.steps)
    else:
        estimate = partial(attribute, method=method)
    return estimate if screen is None else partial(screened, estimate=estimate, k=screen, is_signed=method.is_signed)
