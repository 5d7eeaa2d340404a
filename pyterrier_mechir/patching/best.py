"""Which method is the best known for each component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyterrier_mechir.models.components import STARTS, TABLE
from pyterrier_mechir.patching.plan import Attribution, Auto, Method, check_sites, method_of, name_of, reads_softmax
from pyterrier_mechir.text.positions import Positions

if TYPE_CHECKING:
    from pyterrier_mechir.models.sites import Site, SiteSet
    from pyterrier_mechir.patching.metrics import Metric
    from pyterrier_mechir.rankers.base import Ranker


class Best(NamedTuple):
    """The best methods known for a component.

    Args:
        at_all: at all positions together.
        at_classes: at the positions of each token class.
        at_some: at single positions, or those of words.
    """

    at_all: str
    at_classes: str
    at_some: str

    def at(self, positions: Positions) -> str:
        """That for some positions."""
        return {"all": self.at_all, "class": self.at_classes}.get(positions.kind, self.at_some)


_PARTS = Best("attribution", "attribution", "attribution")
_STREAMS = Best("exact", "exact", "column")
_OTHERS = Best("exact", "exact", "exact")

BEST = {name: _PARTS if row.part else _STREAMS if name in STARTS else _OTHERS for name, row in TABLE.items()}
"""The best methods known for each component, as measured against exact patches (``benchmarks/column.py``)."""


def methods_of(
    method: Method, sites: Sequence[Site | SiteSet], positions: Positions, ranker: Ranker, metric: Metric | None = None
) -> dict[Site | SiteSet, Method]:
    """The method of each site: the same for all, or the best for each.

    Args:
        method: from :func:`~pyterrier_mechir.patching.plan.method_of`.
        sites: what is patched.
        positions: which positions are patched together, and which apart.
        ranker: the ranker that is patched.
        metric: what is measured in place of the score.
    """
    if not isinstance(method, Auto):
        return dict.fromkeys(sites, method)
    found: dict[tuple[str, ...], Method] = {}
    for site in sites:
        components = _components(site)
        if components not in found:
            names = {BEST[component].at(positions) for component in components}
            found[components] = _able(names.pop() if len(names) == 1 else "exact", site, ranker, metric)
    return {site: found[_components(site)] for site in sites}


def _components(site: Site | SiteSet) -> tuple[str, ...]:
    return tuple(one.component for one in site.members)


def _able(name: str, site: Site | SiteSet, ranker: Ranker, metric: Metric | None) -> Method:
    """A method, or ``exact`` where the ranker does not allow it for a site."""
    anatomy, towers = ranker.anatomy, ranker.towers()
    try:
        method = method_of(name, anatomy, towers)
        check_sites(method, [site], anatomy, towers, metric)
    except ValueError:
        return "exact"
    return method


def told_of(method: Method, methods: Mapping[Site | SiteSet, Method]) -> dict[str, Any]:
    """What the attrs of results say of the methods of sites, beside the method that was asked for.

    Args:
        method: that.
        methods: of the sites, from :func:`methods_of`.

    Returns:
        ``methods``, where each component has its own: the name of that of each, or of each set of sites, in the terms
        of ``PatchScorer(method=...)``; ``qk_fix``, where queries or keys are estimated by
        :class:`~pyterrier_mechir.Attribution`: whether their softmax is recomputed.
    """
    told: dict[str, Any] = {}
    if isinstance(method, Auto):
        told["methods"] = {
            site.name if len(site.members) > 1 else site.component: name_of(own) for site, own in methods.items()
        }
    fixes = {own.qk_fix for site, own in methods.items() if isinstance(own, Attribution) and reads_softmax([site])}
    return told | ({"qk_fix": fixes == {True}} if fixes else {})
