"""Perlman, Nijasure and Allan: heads that look along the features of relevance are those that a ranker needs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir.models.sites import select_sites
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes.base import Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import judged
from pyterrier_mechir.recipes.estimates import correlation_of_maps, halves, records
from pyterrier_mechir.stages.ablation_scorer import AblationScorer
from pyterrier_mechir.stages.attention_patterns import RARE, AttentionPatterns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = Paper(
    "Perlman, Nijasure and Allan, Emergence of relevance during LoRA",
    "castorini/rankllama-v1-7b-lora-passage",
    "13.5 GB with its base",
)

CORRELATIONS = {"rarity": ".92, -.89", "interaction": ".71, -.68", "lexical_match": ".37, -.63"}
"""Spearman's correlations over heads of the attention of RankLLaMA along a feature with its margin when the head's
update is kept, and when it is left out."""


LOSS, SIZE = "the margin lost", "the size of its change"


@shows_progress
def perlman_feature_attention(
    ranker: Any = None,
    data: Any = None,
    *,
    idf: Any = None,
    rare_above: float = RARE,
    num_queries: int = 20,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Measure how much of its attention each head gives to features of relevance, and what scores lose without it.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    ranker               RankLLaMA-7B, with LoRA                any whose attention can be read
    attention            N_f: the share of attention, but to    the same, of relevant documents (``label`` above 0)
                         the first position, along the pairs
                         of positions of a feature
    features             lexical match, rarity, interaction,    the three (interaction of rankers that read the query
                         and compositions                       beside the document)
    importance           the score margin when a head's LoRA    what the margin of relevant over irrelevant documents
                         update is kept, or left out            loses when the head is ablated by its mean
    queries              50, the same for both                  attention on half of the queries, margins on the others
    correlation          Spearman, over heads                   the same, with the loss and with its size, an interval
                                                                over the queries of the margins, and a p-value by
                                                                permuting heads
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker; None loads the paper's own, RankLLaMA.
        data: a frame with ``qid, query, docno, text, label``; a dataset of PyTerrier with judgments, or its name; None
            takes ``mechir:lab``.
        idf: how rare words are, as for :class:`~pyterrier_mechir.AttentionPatterns`; None takes the collection.
        rare_above: likewise.
        num_queries: of a dataset, topics, drawn at random.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``heads`` (``docno, layer, head``, the attention by feature, and ``loss``, that of the margin) and
        ``features`` (their correlations with the loss, and with its size).

    Raises:
        ValueError: a column is missing, labels that are no numbers, fewer than 4 queries with relevant and irrelevant
            documents, attention that cannot be read, or a ranker that cannot be loaded.
    """
    ranker = PAPER.ranker(ranker)
    source = judged(data, num_queries=num_queries, seed=seed)
    documents = source.frame.dropna(subset="label").reset_index(drop=True)
    relevant = documents["label"] > 0
    has_both = relevant.groupby(documents["qid"]).transform("nunique") == 2
    documents = documents[has_both].reset_index(drop=True)
    if (n_queries := documents["qid"].nunique()) < 4:
        raise ValueError(
            f"{n_queries} queries have both relevant and irrelevant documents; half of them are held out, so give 4 at "
            "least."
        )
    first, others = halves(documents, seed)

    features = ["lexical_match", "rarity", *(["interaction"] if ranker.reads_query else [])]
    reader = AttentionPatterns(ranker, features=features, idf=source.idf if idf is None else idf, rare_above=rare_above)
    shares = np.stack(reader.transform(first[first["label"] > 0].reset_index(drop=True))["feature_attention"].tolist())
    attention = np.nanmean(shares, axis=0).reshape(-1, len(features))

    reference = documents[["query", "text"]]
    losses, n_kept = _margin_losses(AblationScorer(ranker, reference=reference).transform(others))
    sites = select_sites("head", ranker.anatomy).patched
    heads = pd.DataFrame([(site.name, site.layer, site.number) for site in sites], columns=["docno", "layer", "head"])
    heads = heads.assign(**dict(zip(features, attention.T, strict=True)), loss=losses.mean(axis=0))

    rows = [
        (one, what, *correlation_of_maps(heads[one].to_numpy(), losses, absolute=what == SIZE, seed=seed))
        for what in (LOSS, SIZE)
        for one in features
    ]
    table = pd.DataFrame(rows, columns=["feature", "of", "correlation", "ci_low", "ci_high", "p_value"])
    published = {(one, LOSS): CORRELATIONS[one] for one in features}
    figures = [
        *(
            Figure(f"{one} and {of} (p {p_value:.3f})", published.get((one, of)), *estimate)
            for one, of, *estimate, p_value in table.itertuples(index=False)
        ),
        *(Figure(f"head of most attention along {one}", None, _most(heads, heads[one])) for one in features),
        Figure("head that changes the margin most", None, _most(heads, heads["loss"].abs())),
    ]
    shown = table[(table["p_value"] < 0.05 / len(table)) & ((table["ci_low"] > 0) | (table["ci_high"] < 0))]
    named = ", ".join(f"{row.feature} with {row.of} ({row.correlation:+.2f})" for row in records(shown))
    findings = [
        f"Attention along a feature tells which heads the margin depends on: {named}."
        if named
        else "No feature's attention is shown to tell which heads the margin depends on."
    ]
    notes = (*PAPER.remarks(ranker), f"Margins are of {n_kept} queries that attention was not measured on.")
    drawn = partial(_draw, heads, features, ranker.short_name)
    frames = {"heads": heads, "features": table}
    return RecipeResult("perlman_feature_attention", PAPER, ranker.about(), figures, frames, findings, notes, drawn)


def _most(heads: pd.DataFrame, values: pd.Series) -> str:
    """The head of the greatest value."""
    return str(heads["docno"].iloc[int(values.to_numpy().argmax())])


def _margin_losses(ablated: pd.DataFrame) -> tuple[np.ndarray, int]:
    """What the margin of relevant over irrelevant documents loses without each head, ``[query, head]``."""
    scores = np.stack(ablated["ablated_scores"].tolist()).reshape(len(ablated), -1).astype(np.float64)
    losses = ablated[["score"]].to_numpy(np.float64) - scores
    relevant, queries = (ablated["label"] > 0).to_numpy(), ablated["qid"].to_numpy()
    sides = [pd.DataFrame(losses[side]).groupby(queries[side]).mean() for side in (relevant, ~relevant)]
    of_queries = (sides[0] - sides[1]).to_numpy()
    return of_queries, len(of_queries)


def _draw(heads: pd.DataFrame, features: list[str], name: str, ax: Axes | None = None) -> Axes:
    """What the margin loses without each head, over its attention to each feature."""
    from pyterrier_mechir.plots.style import MARKERS, QUALITATIVE, finish, legend, new_axes

    ax = new_axes(ax, 5.2, 3.4)
    for place, one in enumerate(features):
        ax.scatter(heads[one], heads["loss"], s=14, label=one, marker=MARKERS[place], color=QUALITATIVE[place])
    legend(ax)
    finish(ax, f"{name}: attention along features, and what heads are worth", "share of attention", "margin lost")
    return ax
