"""The methods by which patched scores are computed, and the one function that chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.sites import Site, SiteSet
from pyterrier_mechir.patching.attribution import attribute
from pyterrier_mechir.patching.column import columns
from pyterrier_mechir.patching.integration import integrate, integrate_inputs
from pyterrier_mechir.patching.outcome import SweepResult, joined
from pyterrier_mechir.patching.plan import Attribution, Auto, ColumnReplay, IntegratedGradients, Method, Plan
from pyterrier_mechir.patching.screening import screened, screened_by_cells
from pyterrier_mechir.patching.sweep import sweep

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

MethodsOfSites = Mapping[Site | SiteSet, Method]
"""The method of each site, from :func:`~pyterrier_mechir.patching.best.methods_of`."""

Sweeper = Callable[..., SweepResult]
"""Computes patched scores; called as :func:`~pyterrier_mechir.patching.sweep.sweep` is."""


def sweeper(method: Method, screen: float | None = None) -> Sweeper:
    """The function that computes the patched scores of all sites by one method.

    Args:
        method: from :func:`~pyterrier_mechir.patching.plan.method_of`.
        screen: how many sites to verify exactly, or, a float, which share of the cells; None for none.
    """
    if isinstance(method, str):
        return sweep
    if isinstance(method, Auto):
        raise ValueError("Auto is a method for each site; give methods_of what is patched.")
    approximate = _approximate(method)
    return approximate if screen is None else _verified(approximate, screen, method.is_signed)


def sweeper_of(methods: MethodsOfSites, screen: float | None = None) -> Sweeper:
    """The function that computes the patched scores of each site by its own method.

    Args:
        methods: of all sites that it may be called for.
        screen: how many of the sites that are estimated to verify exactly, or, a float, which share of their cells;
            None for none.
    """
    distinct = set(methods.values())
    if len(distinct) > 1:
        return partial(_apart, methods=methods, screen=screen)
    return sweeper(distinct.pop() if distinct else "exact", screen)


def _apart(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch,
    plan: Plan,
    *,
    methods: MethodsOfSites,
    screen: float | None = None,
    opened: Opened | None = None,
    progress: Callable[[int], object] | None = None,
) -> SweepResult:
    """Sweep the sites of each method by themselves, those of exact patches first, with progress of the first.

    Sites or cells that are screened are ranked together, whatever estimates them.
    """
    if not plan.sites:
        return sweep(ranker, pairs, query_inputs, plan, opened=opened, progress=progress)
    numbers: dict[Method, list[int]] = {}
    for number, site in enumerate(plan.sites):
        numbers.setdefault(methods[site], []).append(number)
    ways: list[tuple[Sweeper, list[int]]] = [(sweep, numbers.pop("exact"))] if "exact" in numbers else []
    if screen is None:
        ways += [(sweeper(method), of) for method, of in numbers.items()]
    elif numbers:
        by_estimates = partial(_apart, methods=methods)
        ways.append((_verified(by_estimates, screen), sorted(chain(*numbers.values()))))
    parts = []
    for place, (run, of) in enumerate(ways):
        told = progress if place == 0 else None
        found = run(ranker, pairs, query_inputs, plan.at([plan.sites[n] for n in of]), opened=opened, progress=told)
        parts.append((of, found))
    return joined(parts)


def _verified(approximate: Sweeper, screen: float, is_signed: bool = True) -> Sweeper:
    if isinstance(screen, float):
        return partial(screened_by_cells, approximate=approximate, share=screen, is_signed=is_signed)
    return partial(screened, approximate=approximate, k=screen, is_signed=is_signed)


def _approximate(method: Attribution | IntegratedGradients | ColumnReplay) -> Sweeper:
    if isinstance(method, Attribution):
        return partial(attribute, method=method)
    if isinstance(method, ColumnReplay):
        return partial(columns, method=method)
    return partial(integrate if method.over == "activations" else integrate_inputs, steps=method.steps)
