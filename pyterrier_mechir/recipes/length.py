"""Savolainen, Amjad and Petcu, SIGIR 2025: what a ranker does where a text grows by words that match nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from pyterrier_mechir.perturb.base import perturbation
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes.base import TASB, Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import most_moved, retrieved
from pyterrier_mechir.recipes.estimates import deltas, found, held_out_heads, mean_of, names_of, records
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.pair_scorer import PairScorer
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.stages.perturb_docs import PerturbDocs
from pyterrier_mechir.text.vocabulary import token_ids
from pyterrier_mechir.text.words import lowercase_words

PAPER = Paper("Savolainen, Amjad and Petcu, SIGIR 2025 (arXiv:2505.02154)", *TASB)

HEADS = ("L0H9", "L1H6", "L0H1", "L2H1")
"""The heads of TAS-B that were analysed."""


@shows_progress
def savolainen25_lnc1(
    ranker: Any = None,
    data: Any = None,
    *,
    word: str = "guantanamo",
    others: Sequence[str] = ("banana", "violin", "the"),
    select: int | None = None,
    n_heads: int = 4,
    num_queries: int = 16,
    num_results: int = 2,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Double the length of each text by a word that no query has, against masked positions, and patch both ways.

    What is measured is the length and the word together; the mean change by other words stands beside it.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    pairs                MS MARCO and mMARCO                    16 topics of the lab collection, 2 documents each
    baseline             [PAD] with embeddings of zero, which   masked positions: nothing attends to them, so that the
                         the others attend to                   baseline scores as the text itself does but for the
                                                                place of the [SEP] behind it
    perturbed            ``guantanamo`` in these places         the same, as many tokens as the text has; texts whose
                                                                double does not fit into the ranker's length are left
                                                                out
    control              none                                   the change by other words
    queries              the 33 of the most negative mean       all; with ``select``, chosen as in the paper, and the
                         relative change                        others' mean change beside theirs, since a choice by
                                                                the outcome flatters it
    direction            both                                   both
    heads                four, given                            chosen on half of the queries, tested on the others
    streams              each position                          classes of tokens, at all layers
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker; None loads the paper's own, TAS-B.
        data: a frame with ``qid, query, docno, text``; a dataset of PyTerrier or its name; None takes ``mechir:lab``.
        word: what the texts are filled up with.
        others: words whose mean change is compared with that word's; may be empty.
        select: keep so many queries, those of the most negative mean relative change, as the paper did (33).
        n_heads: heads that are chosen.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``pairs``, ``heads`` (denoise), ``heads_noise``, ``held_out`` and ``streams`` (``resid_pre`` by class).

    Raises:
        ValueError: a column is missing, fewer than 4 queries, a word that is none, no text short enough, or a ranker
            that cannot be loaded.
    """
    others = [others] if isinstance(others, str) else list(others)
    for one in (word, *others):
        if len(lowercase_words(one)) != 1:
            raise ValueError(f"word is {one!r}; give one word.")
    ranker = PAPER.ranker(ranker)
    source = retrieved(data, num_queries=num_queries, num_results=num_results, least=4, seed=seed)

    def doubled(by: str) -> tuple[pd.DataFrame, int]:
        """The scored pairs of the texts that fit with as many tokens of a word, and how many do not fit."""

        def double(text: str, query: str) -> str | None:
            n = round(len(token_ids(ranker.tokenizer, text)) / ranker.vocabulary.size(by))
            return None if by.lower() in lowercase_words(query) or not n else " ".join([text, *[by] * n])

        made = PerturbDocs(perturbation(double, alignment="mask", sign="-0")).transform(source.frame)
        made = made[made["text_perturbed"].notna()].reset_index(drop=True)
        cut = ranker.cuts(made["query"].tolist(), made["text_perturbed"].tolist()).astype(bool)
        if cut.all():
            raise ValueError(f"no text fits into {ranker!r} at twice its length; give documents of shorter texts.")
        return PairScorer(ranker).transform(made[~cut].reset_index(drop=True)), int(cut.sum())

    every, n_cut = doubled(word)
    of_others = {one: doubled(one)[0] for one in others}
    delta = deltas(every)
    kept = every["qid"].isin(every["qid"] if select is None else most_moved(every, select, sign=-1))
    pairs = every[kept].reset_index(drop=True)
    change = mean_of(delta[kept], every["qid"][kept])

    patched = PatchScorer(ranker).transform(pairs)
    other_way = PatchScorer(ranker, direction="noise").transform(pairs)
    heads, noise = (AggregateHeads(by=None, seed=seed).transform(one) for one in (patched, other_way))
    held_out = held_out_heads(patched, n_heads, seed=seed)
    streams = PatchScorer(ranker, "resid_pre", positions="class").transform(pairs)
    streams = AggregateHeads(by=None, seed=seed).transform(streams)

    figures = [
        Figure(f"mean change of the score by {word}", "below 0", *change),
        *(Figure(f"mean change by {one}", None, *mean_of(deltas(of), of["qid"])) for one, of in of_others.items()),
        Figure(f"{n_heads} strongest heads", names_of(HEADS), names_of(held_out["docno"])),
    ]
    if select is not None:
        figures.append(Figure("mean change in the other queries", None, *mean_of(delta[~kept], every["qid"][~kept])))
    last = int(streams["layer"].max())
    at_first = streams[(streams["slot"] == "CLS") & streams["layer"].isin([1, last])].sort_values("layer")
    figures += [
        Figure(f"effect of the stream into layer {row.layer} at CLS", said, row.score, row.ci_low, row.ci_high)
        for row, said in zip(records(at_first), ("low", "high"), strict=False)
    ]
    findings = [
        f"Twice the length by {word!r} {change.told('lowers', 'raises')} the score: {change}.",
        found(held_out, "carry a share of that change"),
    ]
    short = (
        (f"{n_cut} of {n_cut + len(every)} texts do not fit at twice their length and are left out.",) if n_cut else ()
    )
    drawn = partial(plot_heads, heads, title=f"{ranker.short_name}: a text of twice the length")
    frames = {"pairs": pairs, "heads": heads, "heads_noise": noise, "held_out": held_out, "streams": streams}
    return RecipeResult(
        "savolainen25_lnc1",
        PAPER,
        ranker.about(),
        figures,
        frames,
        findings,
        (*PAPER.remarks(ranker), *short),
        drawn,
    )
