"""How far results in fewer bits are from those in float32, on a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.models.precision import in_full
from pyterrier_mechir.patching.outcome import Calibration, SweepResult, errors, some
from pyterrier_mechir.patching.plan import Plan

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


SAMPLED_PAIRS, SAMPLED_SITES = 8, 32
"""Pairs and sites, at most, of which the results are computed in float32 too."""


def calibrated(
    found: SweepResult,
    run: Callable[[Ranker, Sequence[str], Sequence[AlignedPair], Plan], SweepResult],
    ranker: Ranker,
    contexts: Sequence[str],
    pairs: Sequence[AlignedPair],
    plan: Plan,
    seed: int = 0,
) -> Calibration:
    """Compute a sample of results again in float32, and compare.

    Args:
        found: the results in fewer bits.
        run: what computed them.
        ranker: the model, of fewer bits.
        contexts: what ``pair.query`` is an index into.
        pairs: the pairs.
        plan: what is patched.
        seed: of the sample.
    """
    rng, sites = np.random.default_rng(seed), plan.sites
    of_pairs = np.sort(rng.permutation(len(pairs))[:SAMPLED_PAIRS])
    of_sites = np.sort(rng.permutation(len(sites))[:SAMPLED_SITES])
    chosen = [pairs[i] for i in of_pairs]
    queries = list(dict.fromkeys(pair.query for pair in chosen))
    renumbered = [replace(pair, query=queries.index(pair.query)) for pair in chosen]
    with ExitStack() as stack:
        for model in ranker.models:
            stack.enter_context(in_full(model))
        exact = run(ranker, [contexts[query] for query in queries], renumbered, plan.at([sites[i] for i in of_sites]))
    among = some(found, of_pairs, of_sites)
    score_error = max(
        float(np.abs(getattr(among, side) - getattr(exact, side)).max()) for side in ("baseline", "perturbed")
    )
    error = errors(among, exact)
    return Calibration(
        ranker.dtype,
        len(of_pairs),
        len(of_sites),
        len(sites),
        score_error,
        error.mean_abs_error,
        error.max_abs_error,
        error.spearman,
    )
