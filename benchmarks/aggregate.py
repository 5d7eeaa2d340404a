"""How long intervals and p-values of many components over many pairs take, and how much memory.

``python benchmarks/aggregate.py`` makes 100,000 pairs of 1,000 queries with the effects of 12 x 12 heads, aggregates
them without resamples and with 1,000, and prints the seconds that either takes and the process's peak memory. The
target is 60 s and 4 GB on two cores.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pandas as pd

from pyterrier_mechir import AggregateHeads


def made_up(n_pairs: int, n_queries: int) -> pd.DataFrame:
    """A frame as PatchScorer gives it, of random effects."""
    rng = np.random.default_rng(0)
    delta = rng.normal(1, 0.5, n_pairs).astype(np.float32)
    effects = rng.normal(0.05, 0.2, (n_pairs, 12, 12)).astype(np.float32)
    return pd.DataFrame(
        {
            "qid": rng.integers(n_queries, size=n_pairs).astype(str),
            "score_baseline": np.float32(0),
            "score_perturbed": delta,
            "patch_scores": list(effects * delta[:, None, None]),
            "patch_effect": list(effects),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--estimator", default="ratio_of_means")
    options = parser.parse_args()
    frame = made_up(options.pairs, options.queries)
    for n_boot in (0, options.resamples):
        begin = time.perf_counter()
        AggregateHeads(by=None, estimator=options.estimator, n_boot=n_boot).transform(frame)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{n_boot:6} resamples{time.perf_counter() - begin:9.2f} s{peak:8.2f} GiB at the peak", flush=True)


if __name__ == "__main__":
    main()
