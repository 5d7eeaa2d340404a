"""Polyakov, Chen and Eickhoff, SIGIR 2025: which pairs give stable effects, and how to normalise these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes.base import TASB, Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import perturbed, retrieved, with_terms
from pyterrier_mechir.recipes.estimates import Estimate, correlation, deltas, mean_of, records
from pyterrier_mechir.results.statistics import levels, random_halves, resamples, spearman
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.words import lowercase_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = Paper("Polyakov, Chen and Eickhoff, SIGIR 2025", *TASB)

NORMALISATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "difference": lambda delta: np.ones_like(delta),
    "absolute": np.abs,
    "robust": lambda delta: np.sqrt(1 + delta**2),
    "mean change": lambda delta: np.full_like(delta, delta.mean()),
}
"""What moved scores are divided by, as a function of the changes s_p - s_b: nothing; the published abs(s_p - s_b); the
paper's sqrt(1 + (s_p - s_b)^2); and their mean, so that the mean of the quotients is the ratio of means."""

SPREAD = {"absolute": "small changes spread", "robust": "they do not"}
"""What was found of the spread of effects over heads, by normalisation."""

FEATURES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "size of the change": lambda frame: frame["delta"].abs(),
    "idf of the term": lambda frame: frame["idf"],
    "term in the text": lambda frame: frame["occurs"].astype(float),
    "length of the text": lambda frame: frame["text"].map(lambda text: len(text.split())),
}
"""What may tell pairs of stable effects from others."""


@shows_progress
def polyakov25(
    ranker: Any = None,
    data: Any = None,
    *,
    fillers: Sequence[Filler] = ("a", "the"),
    num_queries: int = 16,
    num_results: int = 3,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Patch every head of TFC1 pairs against two fillers, and ask which pairs agree with themselves, and which scale.

    A pair is stable where the order of its heads is the same whatever filler its baseline has: Spearman's correlation
    of its two maps. A normalisation is reliable where the mean maps of random halves of the queries agree.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    pairs                MechIR's 4,000 of TFC1 (and STMC1)     16 topics of the lab collection, 3 documents each
    size of an effect    standard deviation and mean absolute   the same, and the stability of the pair's own map, which
                         effect over heads                      no normalisation changes
    normalisation        abs(s_p - s_b), published before;      these, none, and the mean change (ratio of means), each
                         sqrt(1 + (s_p - s_b)^2), proposed      with how far halves of the queries agree
    features             of term, text and query, by partial    four, by Spearman's correlation with intervals over
                         correlations and CatBoost              queries
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker; None loads one of the paper's, TAS-B.
        data: a frame with ``qid, query, docno, text`` and, optionally, ``term``; a dataset of PyTerrier or its
            name; None takes ``mechir:lab``.
        fillers: two fillers, as in :class:`~pyterrier_mechir.PatchScorer`; the effects are of the first.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``pairs`` (with ``delta``, ``idf``, ``stability``, and ``spread`` and ``size`` of the effects by
        normalisation), ``features`` and ``normalisations``.

    Raises:
        ValueError: a column is missing, not two fillers, fewer than 4 queries, or a ranker that cannot be loaded.
    """
    if isinstance(fillers, str) or len(fillers) != 2 or fillers[0] == fillers[1]:
        raise ValueError(f"fillers is {fillers!r}; give two different ones, such as ('a', 'the').")
    ranker = PAPER.ranker(ranker)
    source = retrieved(data, num_queries=num_queries, num_results=num_results, least=4, seed=seed)
    documents = perturbed(with_terms(source.frame, seed), lambda term: TFC1(term, seed=seed))
    maps = []
    for filler in fillers:
        pairs = PatchScorer(ranker, filler=filler).transform(documents).sort_values(["qid", "docno"], ignore_index=True)
        maps.append(
            np.stack(pairs["patch_scores"].tolist()).reshape(len(pairs), -1) - pairs[["score_baseline"]].to_numpy()
        )
        if filler == fillers[0]:
            first = pairs
    moved = maps[0].astype(np.float64)
    delta = deltas(first).to_numpy(np.float64)
    idf = [source.idf(" ".join(lowercase_words(term))) for term in first["term"]]
    first = first.assign(
        delta=delta, idf=pd.Series(idf, dtype=float), stability=spearman(moved, maps[1].astype(np.float64))
    )

    queries = pd.factorize(first["qid"])[0]
    n_queries = int(queries.max()) + 1
    resampled = np.concatenate([np.ones((1, n_queries)), *resamples(n_queries, n_boot=200, seed=seed)])
    rows, agreement = [], {}
    for name, below in NORMALISATIONS.items():
        effects = moved / below(delta)[:, None]
        first[f"spread {name}"], first[f"size {name}"] = effects.std(axis=1), np.abs(effects).mean(axis=1)
        tells = correlation(np.abs(delta), first[f"spread {name}"], queries, ranks=True, seed=seed)
        agreement[name] = _split_half(effects, queries, resampled if name in SPREAD else resampled[:1], seed)
        rows.append((name, float(agreement[name][0]), *tells))
    columns = ["normalisation", "split_half", "correlation", "ci_low", "ci_high"]
    normalisations = pd.DataFrame(rows, columns=columns)
    of_features = [
        (name, *correlation(of(first), first["stability"], queries, ranks=True, seed=seed))
        for name, of in FEATURES.items()
    ]
    features = pd.DataFrame(of_features, columns=["feature", "correlation", "ci_low", "ci_high"])

    stable = mean_of(first["stability"], first["qid"])
    figures = [
        Figure(f"stability of a pair's map, {fillers[0]!r} against {fillers[1]!r}", None, *stable),
        *(
            Figure(f"stability of a pair and {row.feature}", None, row.correlation, row.ci_low, row.ci_high)
            for row in records(features)
        ),
        *(
            Figure(
                f"size of the change and spread of effects, {row.normalisation}",
                SPREAD[row.normalisation],
                *(row.correlation, row.ci_low, row.ci_high),
            )
            for row in records(normalisations[normalisations["normalisation"].isin(SPREAD)])
        ),
        *(Figure(f"agreement of halves, {row.normalisation}", None, row.split_half) for row in records(normalisations)),
    ]
    known = features[(features["ci_low"] > 0) | (features["ci_high"] < 0)]
    named = ", ".join(f"{row.feature} ({row.correlation:+.2f})" for row in records(known))
    more = agreement["robust"] - agreement["absolute"]
    gain = Estimate(float(more[0]), *map(float, np.nanquantile(more[1:], levels(0.95, n_queries))))
    figures.append(Figure("agreement of halves, robust less absolute", None, *gain))
    findings = [
        f"Pairs are the more stable by: {named}." if named else "No feature is shown to tell stable pairs from others.",
        f"The scale 'robust' {gain.told('lowers', 'raises')} the agreement of halves of the queries beside that of "
        f"'absolute': {gain}.",
    ]
    frames = {"pairs": first, "features": features, "normalisations": normalisations}
    drawn = partial(_draw, first, ranker.short_name)
    return RecipeResult("polyakov25", PAPER, ranker.about(), figures, frames, findings, PAPER.remarks(ranker), drawn)


def _split_half(effects: np.ndarray, queries: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Spearman's correlation of the mean maps of random halves of the queries, the mean over 200 splits.

    Args:
        effects: ``[pair, head]``.
        queries: the number of each pair's query, ``[pair]``.
        counts: how often each query is there, ``[resample, query]``; all of its copies are in one half.
        seed: of the splits.

    Returns:
        ``[resample]``.
    """
    chosen = random_halves(counts.shape[1], n_splits=200, seed=seed)[:, queries]
    found = []
    for weights in counts[:, queries]:
        sides = [side * weights for side in (chosen, ~chosen)]
        there = np.all([side.any(axis=1) for side in sides], axis=0)
        maps = [(side[there] @ effects) / side[there].sum(axis=1)[:, None] for side in sides]
        found.append(spearman(*maps).mean())
    return np.array(found)


def _draw(pairs: pd.DataFrame, name: str, ax: Axes | None = None) -> Axes:
    """The spread of the effects of each pair over the size of its change, by both published normalisations."""
    from pyterrier_mechir.plots.style import MARKERS, QUALITATIVE, finish, legend, new_axes

    ax = new_axes(ax, 5.2, 3.4)
    for place, of in enumerate(("absolute", "robust")):
        marks: dict[str, Any] = {"marker": MARKERS[place], "color": QUALITATIVE[place]}
        ax.scatter(pairs["delta"].abs(), pairs[f"spread {of}"], s=14, label=of, **marks)
    ax.set_yscale("log")
    legend(ax)
    finish(
        ax, f"{name}: effects of pairs, by what they are divided by", "size of the score change", "spread over heads"
    )
    return ax
