"""Time of activation patching by this package and by its peers, on the same pairs, with the scores held together.

``python benchmarks/peers/compare.py`` measures this package, PyTorch hooks, nnsight, a TransformerLens bridge and
MechIR side by side, writes ``table.md``, ``table.csv`` and ``figure.png``, and fails if patched scores of a system
differ from the others' by more than 0.001. README.md, beside this file, says what it needs and how it measures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from material import MODELS, passages_of_file, passages_of_lab, save_model, save_pairs
from protocol import BLOCK, Answer, Ask, Pairs, Site, lacking
from systems import OURS, SYSTEMS, System, Worker, mechir_python
from table import TASKS, Row, cpu, write

from pyterrier_mechir.patching.outcome import rank_correlation

TOLERANCE = 1e-3
"""Largest difference of patched scores, relative to the greater of 1 and their size."""

CACHE = Path.home() / ".cache" / "pyterrier_mechir" / "peers"

N_PAIRS = {"MiniLM-L6": 32, "BERT-base": 6}
TASKS_OF = {"MiniLM-L6": list(TASKS), "BERT-base": ["head"]}
"""What is measured without options, in about ten minutes on two cores."""

QUICK = {
    "models": ["MiniLM-L6"],
    "n_pairs": 6,
    "few": 2,
    "block_pairs": 1,
    "rounds": 2,
    "sites": 6,
    "batch_sizes": [1, 4],
}

Workers = dict[str, Worker]


def sample(task: str, pairs: Pairs, n: int) -> list[Site]:
    """Sites drawn at random, of the positions that pairs have, CLS among them; 0 for all."""
    rng = np.random.default_rng(0)
    layers, heads, longest = range(pairs.n_layers), range(pairs.n_heads), range(int(pairs.lengths.max()))
    if task == "head":
        every = [Site("head", layer, head) for layer in layers for head in heads]
    else:
        every = [Site(component, layer, position) for component in BLOCK for layer in layers for position in longest]
    if not 0 < n < len(every):
        return every
    shares = [1.0 if task == "head" else float((pairs.lengths > site.number).sum()) for site in every]
    drawn = rng.choice(len(every), n, replace=False, p=np.array(shares) / sum(shares))
    sites = [every[number] for number in sorted(drawn)]
    return sites if task == "head" else list(dict.fromkeys([sites[0]._replace(number=0), *sites[1:]]))


def spread(lengths: np.ndarray, n: int) -> list[int]:
    """Up to ``n`` pairs whose lengths are spread as those of all are: the middles of ``n`` equal parts of them."""
    order = np.argsort(lengths)
    return sorted({int(order[int((part + 0.5) * len(order) / n)]) for part in range(n)})


def at_best_batch_size(worker: Worker, ask: Ask, sizes: list[int]) -> Ask:
    """What is asked with the batch size that takes least, by three of its sites."""
    asks = [ask._replace(batch_size=min(size, len(ask.rows))) for size in sizes]
    tried = {one.batch_size: worker.run(one._replace(sites=one.sites[:3])).seconds for one in asks}
    return ask._replace(batch_size=min(tried, key=lambda size: tried[size]))


def differences(answers: dict[System, Answer], asks: dict[System, Ask]) -> dict[System, float]:
    """How far each exact system's scores are from the median of all at most.

    Raises:
        SystemExit: two systems differ by more than the tolerance.
    """
    exact = [system for system in answers if system.method == "exact"]
    of_systems = {}
    for system in exact:
        sites = [" ".join(map(str, site)) for site in asks[system].sites]
        of_systems[system.name] = pd.DataFrame(answers[system].scores, asks[system].rows, sites).stack()
    scores = pd.DataFrame(of_systems)
    scores = scores[scores.notna().sum(axis=1) > 1]
    size = scores.abs().max(axis=1).clip(lower=1)
    between = (scores.max(axis=1) - scores.min(axis=1)) / size
    if len(between) and between.max() > TOLERANCE:
        worst = int(between.argmax())
        listed = ", ".join(f"{name} {score:.5f}" for name, score in scores.iloc[worst].dropna().items())
        row, site = scores.index[worst]
        raise SystemExit(f"Patched scores differ by {between.max():.1e} (pair {row}, {site}): {listed}.")
    away = scores.sub(scores.median(axis=1), axis=0).abs().div(size, axis=0).max()
    return {system: float(away[system.name]) for system in exact}


def nearness(answers: dict[System, Answer], asks: dict[System, Ask], system: System) -> str:
    """How near an estimate is to exact scores.

    Of heads: the rank correlation of their mean scores over pairs. Of positions: that of the effects of all pairs and
    sites, and the error, the sum of abs(estimate - exact) over that of abs(exact). An effect is the score less that of
    the patch of the first position's embedding, which is the same on both sides.
    """
    exact, estimate = (answers[one].scores for one in (OURS, system))
    if asks[OURS].task == "head":
        return f"Spearman {rank_correlation(exact.mean(axis=0), estimate.mean(axis=0)):.3f}"
    unmoved = exact[:, [asks[OURS].sites.index(Site("resid_pre", 0, 0))]]
    has = ~np.isnan(exact)
    wanted, found = ((scores - unmoved)[has] for scores in (exact, estimate))
    correlation = rank_correlation(wanted, found)
    return f"Spearman {correlation:.3f}, error {np.abs(found - wanted).sum() / np.abs(wanted).sum():.3f}"


def measure(name: str, task: str, pairs: Pairs, workers: Workers, options: argparse.Namespace) -> list[Row]:
    """A row for each system, after ``options.rounds`` rounds in which one system follows the other."""
    sites, every = (sample(task, pairs, n) for n in (options.sites, 0))
    asks: dict[System, Ask] = {}
    for system in (SYSTEMS[key] for key in options.systems if task in SYSTEMS[key].tasks):
        n = options.block_pairs if task == "block" else options.few if system.is_slow else len(pairs.lengths)
        rows = spread(pairs.lengths, n)
        ask = Ask(task, rows, every if system.sweeps_at_once else sites, 0, system.width, system.method)
        if system.sweeps_at_once:
            first = system.tasks[0]
            workers[system.worker].run(ask._replace(task=first, rows=rows[:1], sites=sample(first, pairs, 1)))
        else:
            ask = at_best_batch_size(workers[system.worker], ask, options.batch_sizes)
        asks[system] = ask
    seconds: dict[System, list[float]] = {system: [] for system in asks}
    for number in range(options.rounds):
        answers = {}
        for system, ask in asks.items():
            answers[system] = workers[system.worker].run(ask)
            if np.isnan(answers[system].scores[~lacking(pairs, task, np.array(ask.rows), ask.sites)]).any():
                raise SystemExit(f"{system.name} has no score for some of the sites ({name}, {task}).")
            seconds[system].append(answers[system].seconds / len(ask.rows))
            print(f"{name}, {task}, round {number + 1}: {system.name:32}{seconds[system][-1]:9.3f} s", flush=True)
        away = differences(answers, asks)
    ours = float(np.median(seconds[OURS]))
    made = []
    for system, ask in asks.items():
        n_all = pairs.n_layers * (pairs.n_heads if task == "head" else len(BLOCK))
        timed = "all" if system.sweeps_at_once or len(sites) == len(every) else f"{len(sites)} of {n_all}"
        if task == "block" and timed != "all":
            timed += " x tokens"
        agreement = f"within {max(away[system], 1e-7):.0e}" if system in away else nearness(answers, asks, system)
        middle = float(np.median(seconds[system]))
        settings = (ask.batch_size, system.width, len(ask.rows), timed, agreement, system.note)
        made.append(Row(name, task, system.name, middle, middle / ours, seconds[system], *settings))
    return made


def compare(name: str, options: argparse.Namespace, pythons: dict[str, str]) -> tuple[list[Row], list[str]]:
    """The rows of a model, and the conditions: which pairs, and the versions that each worker runs."""
    passages = passages_of_file(options.pairs) if options.pairs else passages_of_lab()
    scripts = dict.fromkeys(SYSTEMS[key].worker for key in options.systems)
    workers: Workers = {}
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        save_model(name, directory)
        save_pairs(directory, MODELS[name].pooling, passages, options.n_pairs or N_PAIRS[name])
        pairs = Pairs.read(directory)
        try:
            for script in scripts:
                python = pythons.get(script, sys.executable)
                workers[script] = Worker(script, directory, options.threads, python)
            versions = [", ".join(f"{k} {v}" for k, v in worker.versions().items()) for worker in workers.values()]
            tasks = options.tasks or TASKS_OF[name]
            rows = [row for task in tasks for row in measure(name, task, pairs, workers, options)]
        finally:
            for worker in workers.values():
                worker.close()
    ends = f"{pairs.lengths.min()} to {pairs.lengths.max()} tokens, {pairs.lengths.mean():.0f} on average"
    weights = "random weights" if MODELS[name].shape else "weights of all-MiniLM-L6-v2"
    kind = f"{name}: {len(pairs.lengths)} pairs of {ends}; {weights}, {pairs.pooling} pooling, dot product"
    return rows, [kind, *(f"{s.removesuffix('.py')}: {v}" for s, v in zip(scripts, versions, strict=True))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("--out", type=Path, default=Path("out/peers"), help="where the table and the figure go")
    add("--pairs", type=Path, help="Parquet, CSV or JSONL with query and text; the lab collection without it")
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--tasks", nargs="+", choices=TASKS, help="without it, both of MiniLM-L6 and the heads of BERT-base")
    add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="'ours' is always among them")
    add("--rounds", type=int, default=3)
    add("--n-pairs", type=int, help="without it, 32 of MiniLM-L6 and 6 of BERT-base")
    add("--few", type=int, default=4, help="pairs on which MechIR is timed as it comes")
    add("--block-pairs", type=int, default=2, help="pairs whose blocks are patched")
    add("--sites", type=int, default=12, help="sites on which peers are timed; 0 for all")
    add("--batch-sizes", nargs="+", type=int, default=[1, 4, 16], help="of which peers get their best")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--mechir-python", help="an interpreter that has MechIR, in place of the environment made for it")
    add("--mechir-venv", type=Path, default=CACHE / "mechir", help="where that environment is made")
    add("--quick", action="store_true", help="MiniLM-L6 on a few pairs, in about two minutes")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    options.systems = [key for key in SYSTEMS if key == "ours" or key in options.systems]
    return options


def main() -> None:
    options = arguments()
    pythons = {}
    if {"mechir", "trimmed"} & set(options.systems):
        pythons["mechir_worker.py"] = options.mechir_python or mechir_python(options.mechir_venv)
    rows, conditions = [], [f"{cpu()}, {options.threads} threads, float32; medians of {options.rounds} rounds"]
    for name in options.models:
        of_model, seen = compare(name, options, pythons)
        rows += of_model
        conditions += [line for line in seen if line not in conditions]
    print(write(rows, conditions, options.out))


if __name__ == "__main__":
    main()
