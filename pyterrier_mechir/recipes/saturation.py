"""Van Marken and Petcu, 2025: each further occurrence of a query term is worth less."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.axioms.frequency import TFC2
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes.base import TASB, Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import perturbed, retrieved, with_terms
from pyterrier_mechir.recipes.estimates import deltas, found, held_out_heads, mean_of, names_of, records
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.pair_scorer import PairScorer
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.fillers import Filler

PAPER = Paper("van Marken and Petcu, 2025 (arXiv:2510.06728)", *TASB)

HEADS = ("L0H9", "L1H6", "L2H3")
"""The heads of TAS-B that were found again."""


@shows_progress
def vanmarken25_tfc2(
    ranker: Any = None,
    data: Any = None,
    *,
    ks: Sequence[int] = (0, 1, 2, 4, 8),
    n_heads: int = 3,
    filler: Filler = "a",
    num_queries: int = 16,
    num_results: int = 6,
    num_patched: int = 1,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Append K occurrences of a query term to the baseline and K + 1 to the perturbed side, at one length, for each K.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    pairs                100 MS MARCO queries, 100 documents    16 topics of the lab collection, 6 documents each
    K                    1 to 10, and 50                        0, 1, 2, 4, 8; any with ``ks``
    length               filled up with ``a`` to the greatest   the same; the filler that takes the place of the last
                         K                                      occurrence is put in on token ids
    documents patched    all                                    the first ``num_patched`` of each query
    effect               mean of ratios                         ratio of means
    gain                 its mean, by K                         the same, with an interval over queries, that of the
                                                                last K less that of the first, pair by pair, and that of
                                                                the first K by whether the text has the term already
    heads                by eye                                 chosen on half of the queries, tested on the others
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker; None loads the paper's own, TAS-B.
        data: a frame with ``qid, query, docno, text`` and, optionally, ``term``; a dataset of PyTerrier or its
            name; None takes ``mechir:lab``.
        ks: how many occurrences the baseline gets, two numbers at least.
        n_heads: heads that are chosen.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        num_patched: of each query, documents whose heads are patched, the first by the ranker.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``gains`` (by K), ``pairs`` (by K, with ``k``), ``heads`` (by K, whose ``qid`` is K) and ``held_out``.

    Raises:
        ValueError: a column is missing, fewer than two K, fewer than 4 queries, an option out of range, or a ranker
            that cannot be loaded.
    """
    ks = sorted({check_count("k", k, least=0) for k in ks})
    if len(ks) < 2:
        raise ValueError(f"ks is {ks}; give two numbers at least, such as (1, 2, 4).")
    ranker = PAPER.ranker(ranker)
    source = retrieved(data, num_queries=num_queries, num_results=num_results, least=4, seed=seed)
    documents = with_terms(source.frame, seed)

    scored, swept = [], []
    for k in ks:
        pairs = perturbed(documents, lambda term, k=k: TFC2(k, ks[-1], term, seed=seed))
        pairs = PairScorer(ranker, filler=filler).transform(pairs).assign(k=k)
        scored.append(pairs)
        first = pairs[pairs["rank"] < num_patched].reset_index(drop=True)
        swept.append(PatchScorer(ranker, filler=filler).transform(first))
    pairs, patched = pd.concat(scored, ignore_index=True), pd.concat(swept, ignore_index=True)
    patched.attrs = swept[0].attrs
    pairs = pairs.assign(gain=deltas(pairs))
    rows = [(k, *mean_of(of_k["gain"], of_k["qid"]), len(of_k)) for k, of_k in pairs.groupby("k")]
    gains = pd.DataFrame(rows, columns=["k", "gain", "ci_low", "ci_high", "n_pairs"])

    at_first = pairs[pairs["k"] == ks[0]]
    wide = pairs.pivot_table(index=["qid", "docno"], columns="k", values="gain")
    less = mean_of(wide[ks[-1]] - wide[ks[0]], wide.index.get_level_values("qid"))
    falls = float((np.diff(wide.to_numpy(), axis=1) < 0).mean())
    heads = AggregateHeads(by="k", seed=seed).transform(patched)
    held_out = held_out_heads(patched[patched["k"] == ks[0]].reset_index(drop=True), n_heads, seed=seed)
    figures = [
        *(
            Figure(f"gain by appended occurrence {row.k + 1}", None, row.gain, row.ci_low, row.ci_high)
            for row in records(gains)
        ),
        *(
            Figure(
                f"gain by appended occurrence {ks[0] + 1}, texts {how} the term", None, *mean_of(of["gain"], of["qid"])
            )
            for how, of in (("with", at_first[at_first["occurs"]]), ("without", at_first[~at_first["occurs"]]))
        ),
        Figure(f"gain by appended occurrence {ks[-1] + 1} less that by {ks[0] + 1}", "below 0", *less),
        Figure("share of steps of K at which the gain falls", None, falls),
        Figure(f"{n_heads} strongest heads", names_of(HEADS), names_of(held_out["docno"])),
    ]
    findings = [
        f"From appended occurrence {ks[0] + 1} to {ks[-1] + 1} the gain {less.told('falls', 'rises')}: the change is "
        f"{less}.",
        found(held_out, f"carry a share of the gain by appended occurrence {ks[0] + 1}"),
    ]
    drawn = partial(
        plot_heads,
        heads[heads["qid"] == str(ks[0])],
        title=f"{ranker.short_name}: appended occurrence {ks[0] + 1} of a query term",
    )
    frames = {"gains": gains, "pairs": pairs, "heads": heads, "held_out": held_out}
    return RecipeResult(
        "vanmarken25_tfc2", PAPER, ranker.about(), figures, frames, findings, PAPER.remarks(ranker), drawn
    )
