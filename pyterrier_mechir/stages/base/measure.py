"""What a stage measures of minimal pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pyterrier_mechir.models.sites import Site, Sites, SiteSet
from pyterrier_mechir.patching.best import told_of
from pyterrier_mechir.patching.plan import Method, Plan
from pyterrier_mechir.patching.receivers import names_of
from pyterrier_mechir.text.positions import ALL, Positions

if TYPE_CHECKING:
    from pyterrier_mechir.patching.metrics import Metric
    from pyterrier_mechir.patching.outcome import SweepResult
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair

NO_SITES = Sites((), (0,), ())


@dataclass(frozen=True)
class Measure:
    """What is measured of minimal pairs: the scores of both sides, and those of patched runs where sites are given.

    Args:
        sites: what is patched.
        positions: which positions are patched together, and which apart.
        direction: ``denoise``, ``noise`` or ``both``.
        receivers: where patched paths end; none patches all.
        method: how patched scores are computed.
        methods: how those of each site are.
        screen: how many sites to verify exactly, of those that are estimated, or, a float, which share of their cells;
            None for none.
        metric: what is measured in place of the score; None measures the score.
        min_delta: least change of the score for which a normalised effect is given.
    """

    sites: Sites = NO_SITES
    positions: Positions = ALL
    direction: str = "denoise"
    receivers: tuple[Site, ...] = ()
    method: Method = "exact"
    methods: Mapping[Site | SiteSet, Method] = field(default_factory=dict)
    screen: float | None = None
    metric: Metric | None = None
    min_delta: float = 0.0

    def plan(self, sites: Sequence[Site | SiteSet], batch_size: int | None) -> Plan:
        """The plan of a sweep of some of the sites."""
        return Plan(sites, self.direction, batch_size, self.positions, self.receivers)

    def plans(self, batch_size: int | None) -> dict[bool, Plan]:
        """The plans of the sites that are patched exactly (True) and of those that are estimated, where there are any.

        Without sites, an exact plan has none.
        """
        found: dict[bool, list[Site | SiteSet]] = {}
        for site in self.sites.patched:
            found.setdefault(self.methods[site] == "exact", []).append(site)
        return {is_exact: self.plan(sites, batch_size) for is_exact, sites in (found or {True: []}).items()}

    def run(
        self,
        ranker: Ranker,
        contexts: Sequence[str],
        pairs: Sequence[AlignedPair],
        plan: Plan,
        progress: Callable[[int], object] | None = None,
    ) -> SweepResult:
        """Sweep some pairs, and measure what is measured.

        Args:
            ranker: the ranker, facing the side that varies.
            contexts: the distinct queries, or documents where queries vary, that ``pair.query`` indexes.
            pairs: the pairs.
            plan: from :meth:`plan`.
            progress: called with the number of pairs done, as they are done.
        """
        from pyterrier_mechir.patching.methods import sweeper_of

        sweep = sweeper_of(self.methods, self.screen)
        if self.metric is None:
            return sweep(ranker, pairs, ranker.query_inputs(contexts), plan, progress=progress)
        opened, observed, inputs = self.metric.observed(ranker, pairs, contexts)
        return sweep(ranker, observed, inputs, plan, opened=opened, progress=progress)

    def told(self, swept: SweepResult | None) -> dict[str, Any]:
        """What the attrs of a frame of results say of this measure and, where something was swept, of the sweep."""
        told: dict[str, Any] = {}
        if self.sites.sites:
            told |= {"sites": [site.name for site in self.sites.sites], "direction": self.direction}
        if swept is not None and swept.calibration is not None:
            told["calibration"] = asdict(swept.calibration)
        if self.positions.labels is not None:
            told["slots"] = self.positions.labels
        if swept is not None and swept.screening is not None:
            screening = asdict(swept.screening)
            told["screen"] = {name: list(one) if isinstance(one, tuple) else one for name, one in screening.items()}
        told |= told_of(self.method, self.methods)
        if self.receivers:
            told["receivers"] = names_of(self.receivers)
        if self.metric is not None:
            told["metric"] = repr(self.metric)
        return told
