"""Threads over two rankers that share a model, for a while: each result must be what it is alone.

    python benchmarks/threads.py [--seconds 60] [--threads 8]

Threads score, sweep, and sweep until they are interrupted, in turns. Exits 1 where a result differs from the
single-threaded one by more than float32's rounding, or where anything in the caller's model has changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from small_models import QUERIES, TEXTS, build

from pyterrier_mechir import BiEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.models.sites import select_sites
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1

TOLERANCE = 1e-5


def state(model: torch.nn.Module) -> list[tuple]:
    """What a run could leave in a module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, type(module), module.training, sorted(vars(module)), [list(getattr(module, each)) for each in hooks])
        for name, module in model.named_modules()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-5)
    model, tokenizer = build("bert", classifier=False)
    rankers = [BiEncoder((model, tokenizer)), BiEncoder((model, tokenizer), pooling="mean", similarity="cosine")]
    n = min(len(QUERIES), len(TEXTS))
    frame = pd.DataFrame(
        {"qid": [*map(str, range(n))], "query": QUERIES[:n], "docno": [*map(str, range(n))], "text": TEXTS[:n]}
    )
    pairs = PerturbDocs(TFC1())(frame.assign(score=0.0, rank=0))
    weights, before = {name: value.clone() for name, value in model.state_dict().items()}, state(model)

    def patched(ranker: BiEncoder, method: str) -> np.ndarray:
        return np.stack(PatchScorer(ranker, method=method)(pairs)["patch_scores"].to_list())

    def interrupted(ranker: BiEncoder, error: type[BaseException]) -> np.ndarray:
        """A sweep that ends in an error when its second batch has been patched."""
        calls = Counter[str]()

        def count(n: int) -> None:
            calls["batches"] += n
            if calls["batches"] > 1:
                raise error

        aligned = ranker.align(QUERIES[:n], TEXTS[:n], pairs["text_perturbed"].tolist(), alignments=["edit"] * n)
        plan = Plan(select_sites("head", ranker.anatomy, None).sites, batch_size=1)
        try:
            sweep(ranker, [pair for pair in aligned if pair], ranker.query_inputs(QUERIES[:n]), plan, progress=count)
        except (RuntimeError, KeyboardInterrupt):
            return np.ones(1)
        return np.zeros(1)

    jobs: list[tuple[str, Callable[[], np.ndarray]]] = []
    for number, ranker in enumerate(rankers):
        jobs += [
            (f"scores of ranker {number}", partial(ranker.score, QUERIES[:n] * 4, TEXTS[:n] * 4)),
            (f"patches of ranker {number}", partial(patched, ranker, "exact")),
            (f"attribution of ranker {number}", partial(patched, ranker, "attribution")),
            (f"a sweep of ranker {number} that fails", partial(interrupted, ranker, RuntimeError)),
            (f"a sweep of ranker {number} that is interrupted", partial(interrupted, ranker, KeyboardInterrupt)),
        ]
    alone = [job() for _, job in jobs]
    end, runs, wrong = time.monotonic() + options.seconds, Counter[str](), Counter[str]()

    def work(thread: int) -> None:
        turn = thread
        while time.monotonic() < end:
            turn = (turn + 1) % len(jobs)
            name, job = jobs[turn]
            runs[name] += 1
            wrong[name] += not np.allclose(job(), alone[turn], rtol=TOLERANCE, atol=TOLERANCE)

    with ThreadPoolExecutor(options.threads) as pool:
        list(pool.map(work, range(options.threads)))
    same = all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for name, count in runs.items():
        print(f"{name:45} {count:6} runs, {wrong[name]} of them wrong")
    print(f"weights {'are bit-equal' if same else 'CHANGED'}")
    print(f"modules {'are as before' if state(model) == before else 'CHANGED'}")
    return int(bool(sum(wrong.values())) or not same or state(model) != before)


if __name__ == "__main__":
    raise SystemExit(main())
