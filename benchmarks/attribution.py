"""How well gradients rank the heads of a bi-encoder, and how much faster than patching them.

``python benchmarks/attribution.py [MODEL]`` patches all heads of a bi-encoder (a Hugging Face id or a directory) over
judged passages of the lab collection, a query term appended to each (TFC1), exactly and by each estimate. Effects are
aggregated over pairs as a ratio of means. It prints, for each estimate,

- Spearman's rank correlation of its aggregated effects with the exact ones (of their sizes, for the unsigned GradDrop),
- how many of the ten sites of greatest exact effect are among its own ten,
- seconds of CPU time, and how many times fewer these are than those of the exact sweep of the same sites.

The targets for attribution are a correlation of 0.95, nine of ten, and ten times. The QK fix is compared on queries and
keys. Each time is of one run after a warm-up on a few pairs, without the ranking of the passages that comes with it.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from pyterrier_mechir import AggregateHeads, Attribution, BiEncoder, IntegratedGradients, PatchScorer, PerturbDocs
from pyterrier_mechir.commands.rankers import HUB_ID
from pyterrier_mechir.patching.outcome import rank_correlation
from pyterrier_mechir.patching.plan import Method
from pyterrier_mechir.perturb import TFC1


class Run(NamedTuple):
    """The aggregated effect of each site, by name, and the seconds taken."""

    effects: pd.Series
    seconds: float


def pairs_of_the_lab(n: int) -> pd.DataFrame:
    """Judged passages, with a query term appended."""
    lab = pt.get_dataset("mechir:lab")
    texts = pd.DataFrame(list(lab.get_corpus_iter(verbose=False)))
    judged = lab.get_qrels().merge(lab.get_topics(), on="qid").merge(texts, on="docno")
    frame = judged.sample(min(n, len(judged)), random_state=0).assign(score=0.0, rank=0)
    perturbed = PerturbDocs(TFC1()).transform(frame[["qid", "query", "docno", "text", "score", "rank"]])
    return perturbed[perturbed["text_perturbed"].notna()].reset_index(drop=True)


def measure(ranker: BiEncoder, pairs: pd.DataFrame, component: str | list[str], direction: str, method: Method) -> Run:
    scorer = PatchScorer(ranker, component, direction=direction, method=method)
    scorer.transform(pairs.head(4))
    begin = time.process_time()
    out = scorer.transform(pairs)
    middle = time.process_time()
    ranker.score(pairs["query"].tolist(), pairs["text"].tolist())
    seconds = (middle - begin) - (time.process_time() - middle)
    heads = AggregateHeads(by=None, n_boot=0).transform(out)
    return Run(heads.set_index("docno")["score"], seconds)


def report(name: str, exact: Run, estimate: Run, is_signed: bool = True) -> None:
    wanted = exact.effects if is_signed else exact.effects.abs()
    found = estimate.effects[wanted.index]
    best, its_best = (set(effects.abs().nlargest(10).index) for effects in (wanted, found))
    correlation = rank_correlation(wanted.to_numpy(np.float64), found.to_numpy(np.float64))
    print(
        f"  {name:36}{correlation:9.3f}{len(best & its_best):8}{estimate.seconds:9.2f} s"
        f"{exact.seconds / estimate.seconds:8.1f} x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=HUB_ID)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--direction", choices=("denoise", "noise"), default="denoise")
    parser.add_argument("--steps", type=int, default=10, help="of integrated gradients over inputs")
    parser.add_argument("--own-steps", type=int, default=0, help="of integrated gradients over activations; 0 for none")
    options = parser.parse_args()
    ranker = BiEncoder(options.model)
    pairs = pairs_of_the_lab(options.pairs)
    print(
        f"{ranker.n_layers} x {ranker.n_heads} heads, {len(pairs)} pairs, {options.direction}, "
        f"{torch.get_num_threads()} threads\n  {'':36}{'Spearman':>9}{'top 10':>8}{'time':>11}{'faster':>10}"
    )
    methods: dict[str, Method] = {
        "attribution": Attribution(),
        "GradDrop": Attribution(grad_drop=True),
        f"integrated gradients ({options.steps} steps)": IntegratedGradients(steps=options.steps),
    }
    if options.own_steps:
        name = f"over activations ({options.own_steps} steps)"
        methods[name] = IntegratedGradients(over="activations", steps=options.own_steps)
    exact = measure(ranker, pairs, "head", options.direction, "exact")
    report("heads: exact", exact, exact)
    for name, method in methods.items():
        is_signed = not isinstance(method, Attribution) or method.is_signed
        report(f"heads: {name}", exact, measure(ranker, pairs, "head", options.direction, method), is_signed)
    of_queries = measure(ranker, pairs, ["q", "k"], options.direction, "exact")
    report("queries and keys: exact", of_queries, of_queries)
    for name, method in {"first order": Attribution(qk_fix=False), "QK fix": Attribution()}.items():
        report(f"queries and keys: {name}", of_queries, measure(ranker, pairs, ["q", "k"], options.direction, method))


if __name__ == "__main__":
    main()
