"""Which heads a ranking can spare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ir_measures import Measure, iter_calc, nDCG

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count, check_number
from pyterrier_mechir.interventions.edits import Ablate
from pyterrier_mechir.interventions.references import head_means
from pyterrier_mechir.models.sites import select_sites
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.recipes.base import Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import retrieved
from pyterrier_mechir.recipes.estimates import Estimate, halves, mean_of, names_of, records
from pyterrier_mechir.results.ranking_verdicts import verdicts
from pyterrier_mechir.results.rankings import checked_measures
from pyterrier_mechir.stages.ablation_scorer import AblationScorer
from pyterrier_mechir.stages.ranking_effects import RankingEffects

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = Paper("this package; after Michel, Levy and Neubig, NeurIPS 2019 (arXiv:1905.10650)")

SHARES = (0.25, 0.5, 0.75)


@shows_progress
def head_ablation(
    ranker: Any,
    data: Any = None,
    *,
    measure: Measure | str = nDCG @ 5,
    by: str = "mean",
    shares: Sequence[float] = SHARES,
    n_random: int = 3,
    margin: float = 0.02,
    num_queries: int = 20,
    num_results: int = 6,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Ablate each head by itself, order them by how far they move scores, and ablate more and more of them at once.

    A head matters to a ranking by how far it moves scores *within* a query: what it adds to all documents alike orders
    nothing. That is measured of each head on half of the queries, where the share of the heads that can be spared is
    chosen too. On the others, the heads that move scores least are ablated together, and beside them random heads, as
    many.

    ===================  =====================================  ========================================================
    \                    Michel et al. (2019)                   here
    ===================  =====================================  ========================================================
    model and task       BERT, MNLI; a transformer, WMT         any ranker, any measure of ir_measures
    ablation             a gate of 0                            the mean over the documents, or 0
    importance           the gradient of the loss by the gate   how far scores move within a query when the head alone
                                                                is ablated, in standard deviations of the scores
    order                re-estimated every 10 %                estimated once
    queries              importance and loss on the same data   order and share chosen on half of the queries, tested on
                                                                the others
    control              none                                   random heads, shuffled judgments
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker.
        data: a frame with ``qid, query, docno, text, label``; a dataset of PyTerrier with judgments, or its name; None
            takes ``mechir:lab``.
        measure: of ir_measures.
        by: ``mean`` or ``zero``, as in :class:`~pyterrier_mechir.AblationScorer`.
        shares: of the heads that are ablated together.
        n_random: random orders of the heads.
        margin: a loss of the measure that is none to speak of: what can be spared is the greatest share whose interval
            lies above ``-margin`` on the queries that choose.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``heads`` (``docno, layer, head, moves``: the order, those that move least first; ``change`` of the
        measure, with ``p_adjusted``, over all queries), ``effects`` (of RankingEffects) and ``curve`` (the change of
        the measure without more and more heads, by ``order``: ``least``, ``random``, their difference query by query,
        and ``choosing``, which is ``least`` on the queries that choose; all others are held out).

    Raises:
        ValueError: a column is missing, documents without judgments or none of which is relevant, fewer than 4 judged
            queries, an option out of range or unknown, or no ranker.
        TypeError: a ranker that cannot be edited, or a measure that is none.
    """
    check_number("margin", margin, above=0)
    check_count("n_random", n_random, least=0)
    one_of("by", by, ("mean", "zero"))
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares is {shares!r}; give shares of the heads above 0 and up to 1, such as (0.25, 0.5).")
    ranker = PAPER.ranker(ranker)
    if not isinstance(ranker, Interactive):
        raise TypeError(f"{ranker!r} has no edited(), by which heads are ablated together; give a ranker of a family.")
    (measure,) = checked_measures([measure])
    source = retrieved(data, num_queries=num_queries, num_results=num_results, needs=["label"], seed=seed)
    qrels = source.qrels.astype({"label": "int64"})
    documents = source.frame[source.frame["qid"].isin(qrels["qid"])].reset_index(drop=True)
    if (n_queries := documents["qid"].nunique()) < 4:
        raise ValueError(f"{n_queries} queries are judged; half of them are held out, so give 4 at least.")
    if not _of_queries(documents.assign(score=documents["label"].fillna(0)), qrels, measure).any():
        raise ValueError(
            f"{measure} is 0 for each of {n_queries} queries in the best of orders, so that it can lose nothing; give "
            "documents some of which are relevant."
        )

    reference = head_means(ranker, documents) if by == "mean" else None
    ablated = AblationScorer(ranker, by=by, reference=reference).transform(documents)
    chosen, others = halves(ablated, seed)
    by_query = RankingEffects(qrels, [measure], control="shuffled", held_out=others["qid"].unique(), seed=seed)
    effects = by_query.transform(ablated)
    names = np.array([site.name for site in select_sites("head", ranker.anatomy).patched])
    moves = _moves(chosen)
    order = np.argsort(moves, kind="stable")
    heads = pd.DataFrame({"docno": names[order], "moves": moves[order]}).merge(
        effects[["docno", "layer", "head", "score", "p_adjusted"]].rename(columns={"score": "change"}), on="docno"
    )

    # Both halves of the queries, without more and more heads.
    of_chosen, own = (_of_queries(half, qrels, measure) for half in (chosen, others))

    def measured(of: pd.DataFrame, without: np.ndarray) -> pd.Series:
        edited = ranker.edited([Ablate(str(name), by, reference) for name in without])
        return _of_queries(edited.scorer().transform(of), qrels, measure)

    rng = np.random.default_rng(seed)
    random = [rng.permutation(names) for _ in range(n_random)]
    rows = []
    for size in sorted({max(1, round(share * len(names))) for share in shares}):
        fewest = names[order][:size]
        of_order = {"choosing": measured(chosen, fewest) - of_chosen, "least": measured(others, fewest) - own}
        if random:
            of_order["random"] = pd.concat([measured(others, one[:size]) - own for one in random], axis=1).mean(axis=1)
            of_order["least less random"] = of_order["least"] - of_order["random"]
        rows += [(size, kind, *mean_of(change, change.index), len(change)) for kind, change in of_order.items()]
    curve = pd.DataFrame(rows, columns=["n_heads", "order", "change", "ci_low", "ci_high", "n_queries"])

    figures = [
        Figure(f"{measure} on {len(own)} queries", None, *mean_of(own, own.index)),
        *(
            Figure(f"change without {row.n_heads} heads, {row.order}", None, row.change, row.ci_low, row.ci_high)
            for row in records(curve[curve["order"] != "choosing"])
        ),
        Figure("heads that move scores most", None, names_of(heads["docno"].iloc[::-1].head(5))),
        Figure("heads that move scores least", None, names_of(heads["docno"].head(5))),
    ]
    findings = [_spared(curve, len(names), str(measure), margin), *verdicts(effects)]
    frames = {"heads": heads, "effects": effects, "curve": curve}
    drawn = partial(_draw, curve, f"{ranker.short_name}: {measure} without heads")
    return RecipeResult("head_ablation", PAPER, ranker.about(), figures, frames, findings, (), drawn)


def _moves(ablated: pd.DataFrame) -> np.ndarray:
    """How far each head moves the scores of a query's documents against each other, ``[head]``, in their deviations."""
    moved = np.stack(ablated["ablated_scores"].tolist()).reshape(len(ablated), -1) - ablated[["score"]].to_numpy()
    within = pd.DataFrame(moved.astype(np.float64)).groupby(ablated["qid"].to_numpy()).std(ddof=0)
    spread = ablated["score"].astype(float).groupby(ablated["qid"].to_numpy()).std(ddof=0)
    return np.asarray(within.mean().to_numpy() / max(float(spread.mean()), np.finfo(np.float32).tiny))


def _spared(curve: pd.DataFrame, n: int, measure: str, margin: float) -> str:
    """How many heads the queries that choose can spare, and what becomes of the others, in words."""
    choosing = curve[curve["order"] == "choosing"]
    enough = choosing[choosing["ci_low"] > -margin]
    if not len(enough):
        return (
            f"No share of the heads is shown to cost less than {margin:g} on the queries that choose; more would tell."
        )
    size = int(enough["n_heads"].max())
    told = {
        row.order: Estimate(row.change, row.ci_low, row.ci_high) for row in records(curve[curve["n_heads"] == size])
    }
    holds = "can be spared" if told["least"].ci_low > -margin else "are not shown to be spared"
    said = (
        f"{size} of {n} heads, chosen with their number on half of the queries, {holds} on the others: {measure} "
        f"changes by {told['least']}"
    )
    if "random" not in told:
        return f"{said}."
    return f"{said}; without as many random heads it changes by {told['random']}, the difference being " + (
        f"{told['least less random']}."
    )


def _of_queries(ranked: pd.DataFrame, qrels: pd.DataFrame, measure: Measure) -> pd.Series:
    """The measure of each query of a ranking."""
    judged = qrels[qrels["qid"].isin(ranked["qid"])]
    judged = judged.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    run = ranked.rename(columns={"qid": "query_id", "docno": "doc_id"})[["query_id", "doc_id", "score"]]
    return pd.Series({one.query_id: one.value for one in iter_calc([measure], judged, run)}).sort_index()


def _draw(curve: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """The change of the measure over the number of heads that are ablated."""
    from pyterrier_mechir.plots.style import FAINT, MARKERS, QUALITATIVE, finish, legend, new_axes

    ax = new_axes(ax, 5.2, 3.4)
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    shown = curve[curve["order"].isin(["least", "random"])]
    for place, (kind, rows) in enumerate(shown.groupby("order", sort=False)):
        ends = np.abs(rows[["ci_low", "ci_high"]].to_numpy().T - rows["change"].to_numpy())
        style: dict[str, Any] = {"marker": MARKERS[place], "color": QUALITATIVE[place]}
        ax.errorbar(rows["n_heads"], rows["change"], yerr=ends, capsize=2, label=kind, **style)
    legend(ax)
    finish(ax, title, "heads ablated together", "change")
    return ax
