"""How far results in fewer bits are from those in float32, on a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.patching.screening import errors, some
from pyterrier_mechir.patching.sites import Site, SiteSet
from pyterrier_mechir.patching.sweep import SweepResult
from pyterrier_mechir.rankers.precision import in_full

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair

SAMPLED_PAIRS, SAMPLED_SITES = 8, 32
"""Pairs and sites, at most, of which the results are computed in float32 too."""


@dataclass(frozen=True)
class Calibration:
    """How far results in fewer bits are from those in float32.

    Args:
        precision: of the results.
        n_pairs: pairs that were computed in both.
        n_sites: sites, of ``n_all_sites``, that were patched in both.
        n_all_sites: sites that are patched.
        max_score_error: greatest difference of the scores of both sides.
        mean_abs_error: mean difference of patching effects, in score units; NaN where nothing is patched.
        max_abs_error: the greatest of them.
        spearman: rank correlation of effects over pairs and sites; NaN where it is not defined.
    """

    precision: str
    n_pairs: int
    n_sites: int
    n_all_sites: int
    max_score_error: float
    mean_abs_error: float
    max_abs_error: float
    spearman: float

    def __str__(self) -> str:
        sides = f"on a sample of {self.n_pairs} pairs, scores are within {self.max_score_error:.2g} of float32's"
        if not self.n_sites:
            return f"{self.precision}: {sides}."
        return (
            f"{self.precision}: {sides}, and patching effects of {self.n_sites} of {self.n_all_sites} sites within "
            f"{self.max_abs_error:.2g} (mean {self.mean_abs_error:.2g}, in score units; Spearman {self.spearman:.3f})."
        )


def calibrated(
    found: SweepResult,
    run: Callable[[Sequence[str], Sequence[AlignedPair], Sequence[Site | SiteSet]], SweepResult],
    ranker: Ranker,
    contexts: Sequence[str],
    pairs: Sequence[AlignedPair],
    sites: Sequence[Site | SiteSet],
    seed: int = 0,
) -> Calibration:
    """Compute a sample of results again in float32, and compare.

    Args:
        found: the results in fewer bits.
        run: what computed them, called with contexts, pairs and sites.
        ranker: the model, of fewer bits.
        contexts: what ``pair.query`` is an index into.
        pairs: the pairs.
        sites: the sites.
        seed: of the sample.
    """
    rng = np.random.default_rng(seed)
    of_pairs = np.sort(rng.permutation(len(pairs))[:SAMPLED_PAIRS])
    of_sites = np.sort(rng.permutation(len(sites))[:SAMPLED_SITES])
    chosen = [pairs[i] for i in of_pairs]
    queries = list(dict.fromkeys(pair.query for pair in chosen))
    renumbered = [replace(pair, query=queries.index(pair.query)) for pair in chosen]
    with ExitStack() as stack:
        for model in ranker.models:
            stack.enter_context(in_full(model))
        exact = run([contexts[query] for query in queries], renumbered, [sites[i] for i in of_sites])
    among = some(found, of_pairs, of_sites)
    score_error = max(
        float(np.abs(getattr(among, side) - getattr(exact, side)).max()) for side in ("baseline", "perturbed")
    )
    _, mean, largest, correlation = errors(among, exact)
    return Calibration(ranker.dtype, len(of_pairs), len(of_sites), len(sites), score_error, mean, largest, correlation)
