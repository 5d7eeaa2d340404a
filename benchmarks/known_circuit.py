"""Which methods find the heads that are known to cause the score, and which fall for the decoy.

``python benchmarks/known_circuit.py [DIRECTORY ...] [--figure FILE]`` ranks the heads of both rankers of
:func:`~pyterrier_mechir.known_circuit`, and of checkpoints that ``examples/known_circuit/train.py`` wrote, by each
method, over the three best documents of BM25 for each topic of the lab collection, a query term appended (TFC1). For
each ranker it prints the evidence that lies beside it, and a table of methods:

- AUC: how likely a head of the circuit stands above one that is not part of it;
- P@k: how many of the first k heads are of the circuit, which has k;
- nDCG over all heads, by their labels;
- the places of the matching head and of the decoy among the 12 heads;
- the share of queries on which the first k heads are the circuit.

Values are of the heads ranked over all queries; intervals are those of a bootstrap of queries, 95%. A method's score of
a head is signed where the method is. ``--figure`` draws exact patching beside attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier_pisa import PisaIndex
from scipy.stats import rankdata

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    Attribution,
    IntegratedGradients,
    KnownCircuit,
    PatchScorer,
    PerturbDocs,
    known_circuit,
)
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.known_circuit import DIRECTIONS, read_circuit
from pyterrier_mechir.retrieval import quiet

Scores = pd.DataFrame
"""A method's scores of heads summed over the pairs of each query, ``[query, head]``."""


def pairs_of_the_lab(depth: int) -> pd.DataFrame:
    dataset = pt.get_dataset("mechir:lab")
    with TemporaryDirectory() as directory, quiet():
        index = PisaIndex(f"{directory}/index", text_field="text").index(dataset.get_corpus_iter())
        retrieved = (index.bm25(num_results=depth) >> dataset.text_loader("text"))(dataset.get_topics())
    pairs = PerturbDocs(TFC1())(retrieved)
    return pairs[pairs["text_perturbed"].notna()].reset_index(drop=True)


def by_patching(known: KnownCircuit, pairs: pd.DataFrame, component: str | list[str] = "head", **options) -> Scores:
    """What patches move scores by; of several components of a head, the sum."""
    patched = PatchScorer(known.ranker, component, **options)(pairs)
    moved = AggregateHeads(estimator="difference", n_boot=0)(patched)
    moved = moved.assign(name=moved["docno"].str.partition(".")[0], total=moved["score"] * moved["n_pairs"])
    return moved.pivot_table(index="qid", columns="name", values="total", aggfunc="sum")


def by_attention(known: KnownCircuit, pairs: pd.DataFrame, start: str, ends: list[str]) -> Scores:
    """The share of attention that goes from one class of tokens to others."""
    frame = AttentionPatterns(known.ranker)(pairs)
    classes = frame.attrs["mechir"]["classes"]
    of_pairs = np.stack(list(frame["attention"]))[..., classes.index(start), [classes.index(end) for end in ends]]
    return _summed(frame, of_pairs.sum(axis=-1), known)


def by_lexical_match(known: KnownCircuit, pairs: pd.DataFrame) -> Scores:
    """The share of attention that goes to another occurrence of the same word, wherever it stands."""
    frame = AttentionPatterns(known.ranker, features="lexical_match")(pairs)
    return _summed(frame, np.stack(list(frame["feature_attention"]))[..., 0], known)


def _summed(frame: pd.DataFrame, of_pairs: np.ndarray, known: KnownCircuit) -> Scores:
    columns = [f"L{layer}H{head}" for layer in range(known.ranker.n_layers) for head in range(known.ranker.n_heads)]
    return pd.DataFrame(of_pairs.reshape(len(frame), -1), columns=columns).groupby(frame["qid"].to_numpy()).sum()


METHODS: dict[str, Callable[[KnownCircuit, pd.DataFrame], Scores]] = {
    "exact, denoise": lambda *of: by_patching(*of),
    "exact, noise": lambda *of: by_patching(*of, direction="noise"),
    "attribution, denoise": lambda *of: by_patching(*of, method="attribution"),
    "attribution, noise": lambda *of: by_patching(*of, method="attribution", direction="noise"),
    "attribution, GradDrop": lambda *of: by_patching(*of, method=Attribution(grad_drop=True)),
    "integrated gradients, denoise": lambda *of: by_patching(*of, method=IntegratedGradients(steps=10)),
    "integrated gradients, noise": lambda *of: by_patching(
        *of, method=IntegratedGradients(steps=10), direction="noise"
    ),
    "paths to the final stream": lambda *of: by_patching(*of, receivers="final"),
    "queries and keys, exact": lambda *of: by_patching(*of, ["q", "k"]),
    "queries and keys, first order": lambda *of: by_patching(*of, ["q", "k"], method=Attribution(qk_fix=False)),
    "queries and keys, QK fix": lambda *of: by_patching(*of, ["q", "k"], method=Attribution()),
    "attention, query to document": lambda *of: by_attention(*of, "Q+", ["EDIT", "D+"]),
    "attention, document to query": lambda *of: by_attention(*of, "EDIT", ["Q+"]),
    "attention, lexical match": by_lexical_match,
}


def measures(scores: np.ndarray, heads: pd.DataFrame) -> dict[str, np.ndarray]:
    """How good rankings are, ``[ranking]`` each, from scores ``[ranking, head]``."""
    labels = heads["label"].to_numpy()
    is_circuit = labels > 0
    k, n = int(is_circuit.sum()), len(labels)
    places = rankdata(-scores, axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")
    discounts = 1 / np.log2(np.arange(n) + 2)
    above = k * (n - k) - (places[:, is_circuit].sum(axis=1) - k * (k + 1) / 2)
    at_k = is_circuit[best[:, :k]].mean(axis=1)
    return {
        "AUC": above / (k * (n - k)),
        "P@k": at_k,
        "nDCG": labels[best] @ discounts / (np.sort(labels)[::-1] @ discounts),
        "matching at": places[:, heads["role"].eq("matching").to_numpy()][:, 0],
        "decoy at": places[:, heads["role"].eq("decoy").to_numpy()][:, 0],
        "circuit first": at_k == 1,
    }


def row(scores: Scores, heads: pd.DataFrame, n_boot: int = 1000) -> list[str]:
    """The measures of a method, with their intervals where they have any width."""
    of_queries = scores[heads["docno"]].to_numpy(np.float64)
    drawn = np.random.default_rng(0).multinomial(len(of_queries), np.full(len(of_queries), 1 / len(of_queries)), n_boot)
    values, resampled = measures(of_queries.sum(axis=0)[None], heads), measures(drawn @ of_queries, heads)
    return cells(values, resampled, measures(of_queries, heads)["circuit first"].mean())


def row_of_chance(heads: pd.DataFrame, n_orders: int = 10_000) -> list[str]:
    """The means of the measures over random orders, with what 95% of the orders have."""
    drawn = measures(np.random.default_rng(0).random((n_orders, len(heads))), heads)
    return cells(
        {name: np.array([values.mean()]) for name, values in drawn.items()}, drawn, drawn["circuit first"].mean()
    )


def cells(values: dict[str, np.ndarray], resampled: dict[str, np.ndarray], first: float) -> list[str]:
    written = []
    for name in ("AUC", "P@k", "nDCG", "matching at", "decoy at"):
        low, high = np.quantile(resampled[name], [0.025, 0.975])
        style = ".2f" if name in ("AUC", "P@k", "nDCG") else ".3g"
        written.append(f"{values[name][0]:{style}}" + (f" ({low:{style}} to {high:{style}})" if low < high else ""))
    return [*written, f"{first:.0%}"]


def evidence(heads: pd.DataFrame) -> str:
    """The evidence as a table: of the inert heads that which is farthest from doing nothing, in each column."""
    columns = {"effect, denoise": "denoise", "effect, noise": "noise", "gain left without": "gain_left"}
    columns |= {"change of nDCG@10 without": "ndcg_change", "attention to the same word": "attention"}
    lines = ["| head | role | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]

    def cell(row: pd.Series, name: str) -> str:
        return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"

    for _, its in heads[heads["role"] != "inert"].sort_values("label", ascending=False, kind="stable").iterrows():
        lines.append(f"| {its['docno']} | {its['role']} | " + " | ".join(cell(its, n) for n in columns.values()) + " |")
    inert = heads[heads["role"] == "inert"]
    nothing = {"gain_left": 1.0}
    farthest = [inert.loc[(inert[name] - nothing.get(name, 0)).abs().idxmax()] for name in columns.values()]
    last = [cell(its, name) for its, name in zip(farthest, columns.values(), strict=True)]
    return "\n".join([*lines, f"| {len(inert)} others | inert, the farthest | " + " | ".join(last) + " |"])


def report(known: KnownCircuit, pairs: pd.DataFrame) -> None:
    of_roles = known.heads[known.heads["role"] != "inert"].groupby("role", sort=False)["docno"]
    facts = known.heads.attrs["facts"]
    placed = "; ".join(f"{role} {', '.join(names)}" for role, names in of_roles)
    print(f"\n{known.ranker.short_name}, seed {facts['seed']}: {placed}\n{facts}\n\n{evidence(known.heads)}\n")
    print("| method | AUC | P@k | nDCG | matching at | decoy at | circuit first |\n|---|---|---|---|---|---|---|")
    for name, method in METHODS.items():
        print("|", " | ".join([name, *row(method(known, pairs), known.heads)]), "|", flush=True)
    print("|", " | ".join(["random order", *row_of_chance(known.heads)]), "|", flush=True)


def draw(known: KnownCircuit, pairs: pd.DataFrame, file: Path) -> None:
    """Exact patching beside attention: a bar for each head, in the colour of its role."""
    from matplotlib.figure import Figure

    heads = known.heads
    looks = by_attention(known, pairs, "Q+", ["EDIT", "D+"])[heads["docno"]].sum() / len(pairs)
    panels = {
        "attention to the appended term": looks.to_numpy(),
        "effect when patched (exact)": AggregateHeads(by=None, n_boot=0)(PatchScorer(known.ranker)(pairs))
        .set_index("docno")["score"][heads["docno"]]
        .to_numpy(),
    }
    colours = {"matching": "#0072b2", "gathering": "#56b4e9", "decoy": "#d55e00", "inert": "#bbbbbb"}
    figure = Figure(figsize=(8, 2.9), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for role, colour in colours.items():
            at = np.flatnonzero(heads["role"] == role)
            bars = axes.bar(at, values[at], color=colour, hatch="//" if role == "decoy" else None, label=role)
            if role != "inert":
                axes.bar_label(bars, [role] * len(at), fontsize=7, rotation=90, padding=2)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(heads)), heads["docno"], rotation=90, fontsize=7)
        axes.set_ylim(-0.05, 1.35)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    parser.add_argument("--depth", type=int, default=3, help="documents for each query")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    pairs = pairs_of_the_lab(options.depth)
    print(f"{len(pairs)} pairs of {pairs['qid'].nunique()} queries, {torch.get_num_threads()} threads")
    if options.figure:
        draw(known_circuit("query"), pairs, options.figure)
    for known in [*map(known_circuit, DIRECTIONS), *map(read_circuit, options.directories)]:
        report(known, pairs)


if __name__ == "__main__":
    main()
