"""Chen, Merullo and Eickhoff, SIGIR 2024: where a ranker notices one more occurrence of a query term."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes import published as of_papers
from pyterrier_mechir.recipes.base import TASB, Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import most_moved, perturbed, retrieved, with_terms
from pyterrier_mechir.recipes.estimates import deltas, found, held_out_heads, mean_of, names_of, records
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.attention_patterns import AttentionPatterns
from pyterrier_mechir.stages.pair_scorer import PairScorer
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.fillers import Filler

PAPER = Paper("Chen, Merullo and Eickhoff, SIGIR 2024 (arXiv:2405.02503)", *TASB)

HEADS = ("L0H9", "L1H6", "L2H3", "L3H8")
"""The heads that carry the signal of term frequency in TAS-B."""

INJECTIONS: dict[str, dict[str, Any]] = {
    "append": {"position": "end"},
    "prepend": {"position": "start"},
    "replace": {"replace": "all"},
}
"""The diagnostic sets, by the options of TFC1: TFC1-I at either end, and TFC1-R."""

CHANGES = {"append": 4.33, "prepend": 7.36, "replace": None}
"""The mean changes of TAS-B's score."""

NEGATIVE = {"append": 0.032, "prepend": 0.022, "replace": None}
"""The shares of pairs whose score falls."""

LOOKS = (("EDIT", "D+"), ("D+", "EDIT"), ("EDIT", "D-"), ("EDIT", "SEP"), ("OTHER", "SEP"))
"""From where to where attention was measured: the injected term, its other occurrences, other query terms, the end."""


@shows_progress
def chen24_tfc1(
    ranker: Any = None,
    data: Any = None,
    *,
    inject: str = "append",
    published: str | Path | None = None,
    select: int | None = None,
    band: int = 1,
    n_heads: int = 4,
    filler: Filler = "a",
    num_queries: int = 16,
    num_results: int = 10,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Inject one query term into each text, against a filler, and patch blocks and heads.

    Each query has one term. The ranker ranks its documents; those at both ends of the ranking are patched, from the
    perturbed run into the baseline: the streams and what layers add to them at each class of tokens, every head at all
    positions, and the strongest heads (with their attention patterns) at each class of tokens.

    ===================  ==========================================  ===================================================
    \                    the paper                                   here
    ===================  ==========================================  ===================================================
    pairs                100 MS MARCO queries, 100 documents each    16 topics of the lab collection, 10 documents each;
                                                                     the paper's own with ``published``
    queries              those of the greatest mean relative change  all; with ``select``, chosen as in the paper
    term                 one of each query's, drawn                  the same
    documents patched    all; reported for ranks 1-10 and 91-100     the first and last ``band`` of each query alone
    baseline             the text with ``a`` in the term's place     the same, on token ids, as many as the term has
    positions            each, then binned into six classes          eight classes, each patched at once
    effect               mean of ratios                              ratio of means, since ratios of small changes are
                                                                     unstable; the mean of ratios beside it
    heads                by eye                                      chosen on half of the queries, tested on the others
    control              none                                        a random word as rare in the term's place
    ===================  ==========================================  ===================================================

    Args:
        ranker: a ranker; None loads the paper's own, TAS-B.
        data: a frame with ``qid, query, docno, text`` and, optionally, ``term``; a dataset of PyTerrier or its
            name; None takes the pairs of ``published``, else ``mechir:lab``.
        inject: ``append``, ``prepend``, or ``replace``: all occurrences of the term give way to fillers (TFC1-R).
        published: the folder of ``tfc1_tasb.tsv.gz`` (:func:`~pyterrier_mechir.recipes.published.tfc1`), whose pairs
            are run where no data are given, and whose scores of TAS-B stand beside ours.
        select: keep so many queries, those of the greatest mean relative change, as the paper did.
        band: documents at either end of each ranking that are patched.
        n_heads: heads that are chosen.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``changes`` (of scores, by both ends of the rankings, and the control), ``pairs``, ``heads`` and
        ``heads_by_ranks``, ``heads_by_occurrence`` (does the text have the term already?), ``held_out``, ``blocks`` and
        ``head_classes`` (by class), ``attention`` (of the chosen heads, from class to class), and with ``published``
        ``published_changes``.

    Raises:
        ValueError: a column is missing, an unknown injection, fewer than 4 queries, an option out of range, or a ranker
            that cannot be loaded.
    """
    options = INJECTIONS[one_of("inject", inject, INJECTIONS)]
    check_count("band", band)
    ranker = PAPER.ranker(ranker)
    diagnostic = None if published is None else of_papers.tfc1(published)
    source = retrieved(
        diagnostic if data is None and diagnostic is not None else data,
        num_queries=num_queries,
        num_results=num_results,
        least=4,
        seed=seed,
    )
    documents = with_terms(source.frame, seed)

    def of_term(term: str) -> TFC1:
        return TFC1(term, seed=seed, **options)

    # How far the score moves, and how far by a random word in the same place.
    scorer = PairScorer(ranker, filler=filler)
    pairs = scorer.transform(perturbed(documents, of_term))
    if select is not None:
        pairs = pairs[pairs["qid"].isin(most_moved(pairs, select))].reset_index(drop=True)
    control = perturbed(documents, of_term, control="random_term", idf=source.idf, ranker=ranker)
    control = scorer.transform(control[control["qid"].isin(pairs["qid"])].reset_index(drop=True))
    delta, of_control = (deltas(one) for one in (pairs, control))
    change, change_control = mean_of(delta, pairs["qid"]), mean_of(of_control, control["qid"])

    # Both ends of each ranking by the ranker are patched.
    n = pairs.groupby("qid")["rank"].transform("size")
    first, last = ((n >= 2 * band) & at_end for at_end in (pairs["rank"] < band, pairs["rank"] >= n - band))
    pairs = pairs.assign(ranks=np.where(first, "first", np.where(last, "last", "between")))
    ends = pairs[first | last].reset_index(drop=True)
    left_out = pairs["qid"].nunique() - ends["qid"].nunique()
    both = ["ratio_of_means", "mean_of_ratios"]
    patched = PatchScorer(ranker, filler=filler).transform(ends)
    heads = AggregateHeads(by=None, estimator=both, seed=seed).transform(patched)
    held_out = held_out_heads(patched, n_heads, seed=seed)
    chosen = held_out["docno"].tolist()

    # Where: blocks and the chosen heads, class of tokens by class of tokens.
    blocks = PatchScorer(ranker, "block", positions="class", filler=filler).transform(ends)
    at = list(zip(held_out["layer"].astype(int), held_out["head"].astype(int), strict=True))
    sites = [*chosen, *(f"{name}.pattern" for name in chosen)]
    classes = PatchScorer(ranker, heads=sites, positions="class", filler=filler).transform(ends)
    attention = _attention(AttentionPatterns(ranker, at).transform(ends), chosen)

    by_ranks = AggregateHeads(by="ranks", seed=seed).transform(patched)
    frames = {
        "changes": pd.concat(
            [
                of_papers.changes(pairs, delta),
                of_papers.changes(pairs, delta, "ranks"),
                of_papers.changes(control, of_control).assign(group="random word"),
            ],
            ignore_index=True,
        ),
        "pairs": pairs,
        "heads": heads,
        "heads_by_ranks": by_ranks,
        "heads_by_occurrence": AggregateHeads(by="occurs", seed=seed).transform(patched),
        "held_out": held_out,
        "blocks": AggregateHeads(by="ranks", seed=seed).transform(blocks),
        "head_classes": AggregateHeads(by=None, seed=seed).transform(classes),
        "attention": attention,
    }
    figures = [
        Figure("mean change of the score", CHANGES[inject], *change),
        Figure("mean change by a random word", None, *change_control),
        Figure("share of pairs whose score falls", NEGATIVE[inject], float((delta < 0).mean())),
        Figure(f"{n_heads} strongest heads", names_of(HEADS), names_of(chosen)),
    ]
    for group, place, said in (("first", "top", "strong"), ("last", "end", "weak")):
        rows = by_ranks[(by_ranks["qid"] == group) & (by_ranks["docno"] == chosen[0])]
        figures += [
            Figure(f"effect of {chosen[0]} at the {place} of rankings", said, row.score, row.ci_low, row.ci_high)
            for row in records(rows)
        ]
    if diagnostic is not None and inject != "replace":
        delta_tasb = diagnostic[f"tasb_{inject}"] - diagnostic["tasb_base"]
        frames["published_changes"] = of_papers.changes(diagnostic, delta_tasb)
        mean = mean_of(delta_tasb, diagnostic["qid"])
        figures.append(Figure("mean change of TAS-B's scores in the published file", CHANGES[inject], *mean))
    keys = ["qid", "docno"]
    both_ways = pairs.assign(of_term=delta).merge(control.assign(of_word=of_control)[[*keys, "of_word"]], on=keys)
    own = mean_of(both_ways["of_term"] - both_ways["of_word"], both_ways["qid"])
    figures.insert(2, Figure("the term's less the random word's, pair by pair", None, *own))
    findings = [
        f"The term changes the score by {change}, a random word by {change_control}; pair by pair, {own} is the "
        "term's own.",
        found(held_out, "carry a share of the change"),
        *_replicates(by_ranks, chosen[0]),
    ]
    main = heads[heads["estimator"] == both[0]]
    drawn = partial(plot_heads, main, title=f"{ranker.short_name}: {inject} a query term")
    short = (f"{left_out} queries of fewer than {2 * band} pairs are patched nowhere.",) if left_out else ()
    notes = (*PAPER.remarks(ranker), *short)
    return RecipeResult("chen24_tfc1", PAPER, ranker.about(), figures, frames, findings, notes, drawn)


def _replicates(by_ranks: pd.DataFrame, head: str) -> list[str]:
    """Whether the strongest head carries more at the top of rankings than at their end, as was published."""
    of_head = by_ranks[by_ranks["docno"] == head].set_index("qid")
    if not {"first", "last"} <= set(of_head.index):
        return []
    first, last = of_head.loc["first"], of_head.loc["last"]
    told = f"{head} carries {first['score']:.3f} at the top of rankings and {last['score']:.3f} at their end"
    if first["ci_low"] > last["ci_high"]:
        return [f"{told}: stronger at the top, as published."]
    return [f"{told}: that heads carry more at the top, as published, is not found."]


def _attention(frame: pd.DataFrame, heads: list[str]) -> pd.DataFrame:
    """The attention of heads from class to class, averaged over pairs that have both, with intervals over queries."""
    weights = np.stack(frame["attention"].tolist())
    rows = []
    for number, name in enumerate(heads):
        for source, target in LOOKS:
            values = weights[:, number, TOKEN_CLASSES.index(source), TOKEN_CLASSES.index(target)]
            estimate = mean_of(values, frame["qid"])
            rows.append((name, source, target, *estimate, int(np.isfinite(values).sum())))
    return pd.DataFrame(rows, columns=["docno", "from", "to", "attention", "ci_low", "ci_high", "n_pairs"])
