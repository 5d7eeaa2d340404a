"""What a run will cost, found out from a probe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyterrier_mechir.models.sites import Site, SiteSet, activation_of
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import is_known
from pyterrier_mechir.text.positions import ALL

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


SAMPLED_ROWS = 256
"""Rows, at most, whose lengths stand for those of all."""


@dataclass(frozen=True)
class Cost:
    """What a run will cost on this device.

    Args:
        n_pairs: distinct pairs that are scored; those of a sample, scaled to all rows, where there are many.
        n_sites: sites that are patched in each.
        forward_passes: sequences that go through the model, or the part of it that a patch changes: each text once for
            its own score, both sides of each pair, and one for each patch (sites, at each of their positions, in each
            direction). Where a method estimates patches, these are not counted, nor those that verify some of
            them.
        tokens: in those sequences, without padding.
        seconds: how long it will take.
        memory: bytes; on a CPU the most that the process has held so far or in the probe, and the results; on a GPU the
            most that was held there. NaN where the system does not tell.
        device: where the ranker runs.
        probe_seconds: how long the probe took.
    """

    n_pairs: int
    n_sites: int
    forward_passes: int
    tokens: int
    seconds: float
    memory: float
    device: str
    probe_seconds: float

    def __str__(self) -> str:
        cost = f"about {_duration(self.seconds)} and {self.memory / 2**30:.1f} GiB on {self.device}"
        return (
            f"{self.n_pairs:,} pairs x {self.n_sites} sites: {self.forward_passes:,} forward passes, {self.tokens:,} "
            f"tokens, {cost}"
        )


class Probe(NamedTuple):
    """What is probed.

    Args:
        ranker: the model.
        pairs: a sample of the pairs.
        plan: what is patched in each.
        is_exact: whether each patch is a forward pass, so that sites may be probed in part.
        run: sweeps some of the pairs at some of the sites.
    """

    ranker: Ranker
    pairs: Sequence[AlignedPair]
    plan: Plan
    is_exact: bool
    run: Callable[[Sequence[AlignedPair], Plan], object]

    @property
    def sites(self) -> Sequence[Site | SiteSet]:
        """The sites."""
        return self.plan.sites

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair."""
        return np.array([len(pair.classes) for pair in self.pairs])

    @property
    def patches(self) -> np.ndarray:
        """Patches of each pair, one site at one set of positions in one direction each, but for those that are known.

        Of a stream at all positions the score is the source's, and at the tokens of a layer that sees nothing else,
        patches of tokens that are the same on both sides change nothing.
        """
        plan, n_layers = self.plan, self.ranker.n_layers
        keys = [[activation_of(site, n_layers) for site in one.members] for one in self.sites]
        if plan.positions == ALL:
            are_known = not plan.receivers and self.ranker.opened.reads_stream
            n = sum(not (are_known and is_known(of)) for of in keys)
            return np.full(len(self.pairs), n * len(plan.ways))
        of_tokens = sum(all(key in _OF_TOKENS for key in of) for of in keys)
        slots = np.array([plan.positions.count(pair) for pair in self.pairs])
        edited = np.array([_edited_slots(plan, pair) for pair in self.pairs])
        return ((len(keys) - of_tokens) * slots + of_tokens * edited) * len(plan.ways)

    def seconds(self, limit: float) -> float:
        """How long the sample will take: its texts, both sides, and all patches.

        Growing numbers of pairs are swept until about ``limit`` seconds are gone; of the first pair growing numbers of
        its sites, where each costs something. What is timed last is scaled to all by the operations that they take.
        """
        rng, begin, took, last = np.random.default_rng(0), perf_counter(), 0.0, 0
        pairs, sites = rng.permutation(len(self.pairs)), rng.permutation(len(self.sites))
        work, found = _work(self.ranker, self.lengths), 0.0
        self._timed(pairs[:1], sites[:1])
        for n_pairs, n_sites in self._steps():
            if last and took * n_pairs * n_sites / last > limit - (perf_counter() - begin):
                break
            some, began = pairs[:n_pairs], perf_counter()
            of_sides = self._timed(some, sites[:0])
            of_patches = self._timed(some, sites[:n_sites]) - of_sides if n_sites else 0.0
            took, last = perf_counter() - began, n_pairs * max(1, n_sites)
            weight = work * self.patches if self.is_exact else work
            found = 1.5 * of_sides * work.sum() / work[some].sum()
            if n_sites:
                found += of_patches * len(self.sites) / n_sites * weight.sum() / weight[some].sum()
        return found

    def _steps(self) -> Iterator[tuple[int, int]]:
        """Pairs and sites that are probed after one another."""
        n_pairs, n_sites = 1, 1 if self.is_exact and self.sites else len(self.sites)
        while n_sites < len(self.sites):
            yield 1, n_sites
            n_sites = min(4 * n_sites, len(self.sites))
        while n_pairs < len(self.pairs):
            yield n_pairs, n_sites
            n_pairs *= 2
        yield len(self.pairs), n_sites

    def _timed(self, pairs: np.ndarray, sites: np.ndarray) -> float:
        begin = perf_counter()
        self.run([self.pairs[i] for i in pairs], self.plan.at([self.sites[i] for i in sites]))
        return perf_counter() - begin


def estimated(probes: Sequence[Probe], n_sampled: int, n_rows: int, of_texts: float, limit: float) -> Cost:
    """Scale what probes of the same pairs find, of sites that are patched exactly and of others, to all rows.

    Args:
        probes: of a sample of the rows.
        n_sampled: how many rows the sample has.
        n_rows: how many rows there are.
        of_texts: seconds that perturbing and encoding the sample took.
        limit: about how many seconds the probes may take.
    """
    pairs, ranker = probes[0].pairs, probes[0].ranker
    begin, more = perf_counter(), n_rows / max(1, n_sampled)
    passes = sum(2 + (probe.patches if probe.is_exact else 0) for probe in probes) + np.zeros(len(pairs))
    n_passes, n_tokens = passes.sum() + n_sampled, (passes * probes[0].lengths).sum()
    n_tokens += n_sampled * (probes[0].lengths.mean() if pairs else 0)
    took = of_texts + (sum(probe.seconds(limit / len(probes)) for probe in probes) if pairs else 0.0)
    results = 8.0 * sum(probe.patches.sum() for probe in probes) * more
    return Cost(
        n_pairs=round(len(pairs) * more),
        n_sites=sum(len(probe.sites) for probe in probes),
        forward_passes=round(n_passes * more),
        tokens=round(n_tokens * more),
        seconds=float(took * more),
        memory=peak_memory(ranker) + (float(results) if ranker.device.type == "cpu" else 0.0),
        device=str(ranker.device),
        probe_seconds=of_texts + perf_counter() - begin,
    )


def _edited_slots(plan: Plan, pair: AlignedPair) -> int:
    """How many slots of a pair have a token that differs between its sides."""
    differs = pair.baseline.ids != pair.perturbed.ids
    return int((plan.positions.masks([pair])[:, 0] & differs).any(1).sum())


_OF_TOKENS = tuple((0, name) for name in ("embed", "resid_pre", "q", "k", "v"))
"""Activations that depend at each position on its token alone."""


def _work(ranker: Ranker, lengths: np.ndarray) -> np.ndarray:
    """What a forward pass of sequences takes, in multiplications."""
    anatomy = ranker.anatomy
    of_weights = sum(m.weight.numel() for layer in range(anatomy.n_layers) for m in anatomy.linear_maps(layer))
    of_attention = 2 * anatomy.n_layers * anatomy.width("z")
    return lengths.astype(np.float64) * (of_weights + of_attention * lengths)


def peak_memory(ranker: Ranker) -> float:
    """The most bytes that were held so far: by the process on a CPU, or on the ranker's GPU; NaN where nobody knows."""
    import torch

    if ranker.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(ranker.device))
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _duration(seconds: float) -> str:
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99 * 60 else f"{seconds / 3600:.1f} h"
