"""Head sweeps on GPUs: pairs a second, and the share of what the GPU can do.

``python benchmarks/gpu.py`` prints, for all-MiniLM-L6-v2 and a model of the size of BERT-base, in float32 and bfloat16,
and for growing numbers of tokens in a forward pass, pairs a second, operations a second and their share of the rate at
which the GPU multiplies large matrices in that precision (see ``floor.py``). A share that grows no more with the tokens
means that the sweep is bound by computing rather than by launching. With several GPUs it also runs a sweep on all of
them through Ray (``run_sweep(engine="ray")``), against one. ``--device cpu`` tries the benchmark itself without a GPU.
"""

from __future__ import annotations

import argparse
import time
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from floor import ROWS, operations, rankers, rate, seconds, work_of
from peers.material import MODELS, passages_of_lab

from pyterrier_mechir import PatchScorer, run_sweep
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep

LARGE = (*ROWS, 16384, 65536)
"""Rows of the matrices by which a GPU's rate is measured."""


def one_gpu(name: str, dtype: str, options: argparse.Namespace) -> None:
    """Print a row for each number of tokens in a forward pass."""
    (ranker,) = rankers(name, [dtype], options.device)
    work = work_of(ranker, options.pairs)
    fastest = rate(ranker, ROWS if options.device == "cpu" else LARGE)
    for tokens in options.batch_tokens:
        ranker.batch_tokens = tokens
        took = seconds(lambda: sweep(ranker, work.pairs, work.inputs, Plan(work.sites)), ranker.device, 2)
        reached = operations(work) / took
        print(
            f"{name:12}{dtype:10}{tokens:9,}{len(work.pairs) / took:10.2f} pairs/s{reached / 1e12:9.2f} TFLOP/s"
            f"{reached / fastest:8.0%} of {fastest / 1e12:.1f}",
            flush=True,
        )


def many_gpus(name: str, dtype: str, options: argparse.Namespace) -> None:
    """Print pairs a second of one GPU and of all, with their start left out."""
    (ranker,) = rankers(name, [dtype], "cpu")
    of_workers: dict[int, float] = {}
    for n in (1, torch.cuda.device_count()):
        took = []
        for n_pairs in (options.pairs, 3 * options.pairs):
            numbers = [str(number) for number in range(n_pairs)]
            frame: pd.DataFrame = passages_of_lab(n_pairs).assign(qid=numbers, docno=numbers, score=0.0, rank=0)
            with TemporaryDirectory() as out:
                begin = time.perf_counter()
                run_sweep(PatchScorer(ranker), frame, out, engine="ray", n_workers=n, shard_size=64, verbose=False)
                took.append(time.perf_counter() - begin)
        of_workers[n] = 2 * options.pairs / max(1e-9, took[1] - took[0])
        print(f"{name:12}{dtype:10}{n} GPUs{of_workers[n]:10.2f} pairs/s", flush=True)
    print(f"{'':22}speed-up {np.divide(*reversed(list(of_workers.values()))):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[4096, 16384, 65536, 262144])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is at hand; --device cpu tries the benchmark on a CPU.")
    print(torch.cuda.get_device_name() if options.device == "cuda" else options.device, f"torch {torch.__version__}")
    for name in options.models:
        for dtype in options.dtypes:
            one_gpu(name, dtype, options)
    if options.device == "cuda" and torch.cuda.device_count() > 1:
        many_gpus(options.models[-1], options.dtypes[-1], options)


if __name__ == "__main__":
    main()
