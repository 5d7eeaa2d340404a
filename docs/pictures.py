"""The pictures of the concepts, each drawn from a real run: ``python docs/pictures.py`` draws those that are old.

The site's build does the same. A picture holds the digest of what drew it, so that one is drawn again where its code
changes. Everything is of the lab collection and the rankers that the package ships, on few documents: seconds in all.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from pyterrier_mechir import (
    AblationScorer,
    AggregateHeads,
    ExplainScore,
    PatchScorer,
    PerturbDocs,
    RankingEffects,
    explode_effects,
    known_circuit,
    plot_words,
)
from pyterrier_mechir.perturb import PROX1, TFC1
from pyterrier_mechir.plots.style import AGAINST, MARKERS, QUALITATIVE, QUIET, WITH, legend

FOLDER = Path(__file__).parent / "concepts" / "pictures"
DPI = 110

_KEY = "Comment"
"""The entry of a picture's metadata that holds the digest of what drew it."""


class Bench(NamedTuple):
    """What every picture is drawn from.

    Args:
        ranker: the shipped cross-encoder whose circuit is known.
        roles: the role of each of its heads, by name.
        documents: frame of ``qid, query, docno, text``: the best of each query, and ``label``.
        qrels: the judgments.
    """

    ranker: Any
    roles: dict[str, str]
    documents: pd.DataFrame
    qrels: pd.DataFrame


@cache
def bench() -> Bench:
    """The ranker and the documents."""
    from pyterrier_pisa import PisaIndex

    dataset = pt.get_dataset("mechir:lab")
    index = PisaIndex(str(Path(mkdtemp()) / "index"), text_field="text").index(dataset.get_corpus_iter())
    bm25 = index.bm25(num_results=5) >> dataset.text_loader("text")
    ranker, truth = known_circuit("query")
    roles = dict(zip(truth["docno"], truth["role"], strict=True))
    return Bench(ranker, roles, bm25(dataset.get_topics()), dataset.get_qrels())


def _pairs(n_queries: int, n_documents: int) -> pd.DataFrame:
    documents = bench().documents
    chosen = documents[documents["rank"] < n_documents]
    return PerturbDocs(TFC1())(chosen[chosen["qid"].isin(chosen["qid"].unique()[:n_queries])])


def patching() -> Figure:
    """One pair: the scores of its sides, and of the baseline run with one head of the other side."""
    patched = PatchScorer(bench().ranker)(_pairs(1, 1)).iloc[0]
    figure, ax = plt.subplots(figsize=(6.2, 3.2), layout="constrained")
    for score, name in ((patched["score_baseline"], "baseline"), (patched["score_perturbed"], "perturbed")):
        ax.axvline(score, color=QUIET, linestyle=":")
        ax.annotate(f"{name}\n{score:.2f}", (score, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    scores = np.asarray(patched["patch_scores"])
    names = [f"L{layer}H{head}" for layer, head in np.ndindex(scores.shape)]
    for row, score in enumerate(scores.ravel()):
        ax.plot([patched["score_baseline"], score], [row, row], color=WITH)
        ax.plot(score, row, "o", color=WITH)
    ax.set(xlabel="score of the baseline run with this head's output from the perturbed run", ylim=(len(names), -1))
    ax.set_yticks(range(len(names)), [f"{name} ({bench().roles[name]})" for name in names], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def alignment() -> Figure:
    """The tokens of the two sides of two pairs, position by position, with their classes."""
    text = "The moon pulls the ocean and the tides."
    row = pd.DataFrame({"qid": ["1"], "query": ["ocean tides"], "docno": ["d"], "text": [text]})
    kinds = (("fill: TFC1", TFC1()), ("permute: PROX1", PROX1()))
    figure, axes = plt.subplots(len(kinds), 1, figsize=(7.6, 3.2), layout="constrained")
    for ax, (title, axiom) in zip(axes, kinds, strict=True):
        told = PatchScorer(bench().ranker, "resid_pre", positions="each", layers=[0])(PerturbDocs(axiom)(row)).iloc[0]
        sides = told["tokens_baseline"], told["tokens"]
        for position, (one, other) in enumerate(zip(*sides, strict=True)):
            for line, token in enumerate((one, other)):
                weight, colour = ("bold", WITH) if one != other else ("normal", "black")
                ax.text(position, -line, token, ha="center", va="center", fontsize=9, weight=weight, color=colour)
            ax.text(position, -2, told["token_classes"][position], ha="center", va="center", fontsize=8, color=AGAINST)
        ax.set(xlim=(-0.6, len(sides[0]) - 0.4), ylim=(-2.5, 0.6), xticks=[])
        ax.set_yticks([0, -1, -2], ["baseline", "perturbed", "class"], fontsize=8)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(title, loc="left", fontsize=10)
    return figure


def estimates() -> Figure:
    """Estimated effects against exact ones, cell by cell, of heads and of streams at positions."""
    pairs = _pairs(4, 1)
    shown = {"head": ("attribution",), "resid_pre": ("attribution", "column")}
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    for ax, (component, methods) in zip(axes, shown.items(), strict=True):
        exact = explode_effects(PatchScorer(bench().ranker, component, positions="each")(pairs))["patch_effect"]
        for number, method in enumerate(methods):
            scorer = PatchScorer(bench().ranker, component, positions="each", method=method)
            told = explode_effects(scorer(pairs))["patch_effect"]
            style = {"color": QUALITATIVE[number + 1], "marker": MARKERS[number], "s": 12, "alpha": 0.7}
            ax.scatter(exact, told, label=method, **style)
        ax.axline((0, 0), slope=1, color=QUIET, linestyle=":", zorder=0)
        ax.set(xlabel="exact effect", ylabel="estimated effect", title=f"{component}, at each position")
        ax.spines[["top", "right"]].set_visible(False)
        legend(ax)
    return figure


def statistics() -> Figure:
    """The effect on each document, and its mean over queries with an interval, by two estimators."""
    ranker, truth = known_circuit("document")
    patched = PatchScorer(ranker)(_pairs(20, 5))
    shown = truth.sort_values("label", ascending=False)["docno"].head(2).tolist()
    shown += truth.loc[truth["role"] == "decoy", "docno"].tolist()
    effects = np.stack(patched["patch_effect"])
    averages = ("ratio_of_means", "mean_of_ratios")
    estimated = {name: AggregateHeads(by=None, estimator=name)(patched) for name in averages}
    figure, ax = plt.subplots(figsize=(6.8, 3.2), layout="constrained")
    draw = np.random.default_rng(0)
    for row, name in enumerate(shown):
        layer, head = (int(part) for part in name[1:].split("H"))
        single = effects[:, layer, head]
        ax.plot(single, row + draw.uniform(-0.12, 0.12, len(single)), ".", color=QUIET, alpha=0.5)
        for number, (estimator, heads) in enumerate(estimated.items()):
            of = heads.set_index("docno").loc[name]
            around = [[of["score"] - of["ci_low"]], [of["ci_high"] - of["score"]]]
            place, label = row + 0.22 + 0.16 * number, estimator if row == 0 else None
            style = {"color": QUALITATIVE[number], "fmt": MARKERS[number], "capsize": 3, "markersize": 5}
            ax.errorbar(of["score"], place, xerr=around, label=label, **style)
    roles = truth.set_index("docno")["role"]
    ax.set_yticks(range(len(shown)), [f"{name} ({roles[name]})" for name in shown])
    ax.set(xlabel="effect (dots: single documents)", ylim=(len(shown) - 0.4, -0.5))
    ax.spines[["top", "right"]].set_visible(False)
    legend(ax, "lower right")
    return figure


def edits() -> Figure:
    """What each head is worth to nDCG@10: the change when it is ablated by its mean."""
    documents = bench().documents
    effects = RankingEffects(bench().qrels, [nDCG @ 10])(AblationScorer(bench().ranker, reference=documents)(documents))
    effects = effects.sort_values(["layer", "head"], ignore_index=True)
    figure, ax = plt.subplots(figsize=(6.2, 3.2), layout="constrained")
    around = [effects["score"] - effects["ci_low"], effects["ci_high"] - effects["score"]]
    ax.errorbar(effects["score"], effects.index, xerr=around, fmt="o", color=AGAINST, capsize=3)
    ax.axvline(0, color=QUIET, linestyle=":")
    ax.set_yticks(effects.index, [f"{name} ({bench().roles[name]})" for name in effects["docno"]], fontsize=8)
    ax.set(xlabel="change of nDCG@10 without the head, with intervals over 44 queries")
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def words() -> Figure:
    """The words of the two best documents of a query, on the colours of what each carries."""
    documents = bench().documents
    first = documents[(documents["qid"] == documents["qid"].iloc[0]) & (documents["rank"] < 2)]
    return plot_words(ExplainScore(bench().ranker)(first)).figure


PICTURES: tuple[Callable[[], Figure], ...] = (patching, alignment, estimates, statistics, edits, words)
"""The functions that draw; a picture has its function's name."""


def digest(draw: Callable[[], Figure]) -> str:
    """What tells whether a picture is of its function as it is."""
    return hashlib.sha256(inspect.getsource(draw).encode()).hexdigest()[:16]


def is_current(draw: Callable[[], Figure], folder: Path = FOLDER) -> bool:
    """Whether a picture is there, and was drawn by its function as it is."""
    path = folder / f"{draw.__name__}.png"
    if not path.exists():
        return False
    with Image.open(path) as image:
        return image.info.get(_KEY) == digest(draw)


def save(draw: Callable[[], Figure], folder: Path = FOLDER) -> Path:
    """Draw a picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.close("all")
    path = folder / f"{draw.__name__}.png"
    draw().savefig(path, dpi=DPI, metadata={"Software": None, _KEY: digest(draw)})
    plt.close("all")
    return path


def draw_all(folder: Path = FOLDER) -> None:
    """Draw the pictures that are not current."""
    for draw in PICTURES:
        if not is_current(draw, folder):
            save(draw, folder)


if __name__ == "__main__":
    draw_all()
