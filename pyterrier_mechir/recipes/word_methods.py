"""Which explanations by words say what a ranker goes by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pyterrier_mechir.observe.words.faithfulness import faithfulness
from pyterrier_mechir.observe.words.orders import QUERY_TERMS
from pyterrier_mechir.plots.faithfulness import plot_faithfulness
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes.base import Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import retrieved
from pyterrier_mechir.stages.explain_score import ExplainScore

PAPER = Paper("this package; measures after DeYoung et al., ACL 2020 (arXiv:1911.03429)")


@shows_progress
def faithful_words(
    ranker: Any,
    data: Any = None,
    *,
    methods: Sequence[str] = ("occlusion", "gradient", "lime"),
    unit: str = "word",
    absence: Any = None,
    num_queries: int = 8,
    num_results: int = 1,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Explain scores by several methods, take out the words that each names, and see how fast the score falls.

    ===================  =====================================  ========================================================
    \                    DeYoung et al. (2020)                  here
    ===================  =====================================  ========================================================
    task                 classification with human rationales   ranking; no rationales are needed
    measures             comprehensiveness, sufficiency         these, and areas of deletion and insertion curves
    words taken out      deleted                                in a way that no method used itself, unless ``absence``
                                                                says how
    control              random words                           these, the rarest words first, and the query's terms
                                                                first, which are the ones to beat
    intervals            none                                   over queries, of the difference to the controls, wider
                                                                for more methods, so that they hold together
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker.
        data: a frame with ``qid, query, docno, text``; a dataset of PyTerrier or its name; None takes ``mechir:lab``.
        methods: of :class:`~pyterrier_mechir.ExplainScore`.
        unit: likewise.
        absence: of :func:`~pyterrier_mechir.faithfulness`.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``faithfulness`` (a row per method and control) and, by the name of each method, its explanations.

    Raises:
        ValueError: a column is missing, no method, or one that the ranker cannot be explained by; fewer than 6 queries;
            or no ranker.
    """
    if not methods:
        raise ValueError("methods is empty; give some of ExplainScore, such as ('occlusion', 'gradient').")
    ranker = PAPER.ranker(ranker)
    source = retrieved(data, num_queries=num_queries, num_results=num_results, least=6, seed=seed)
    explained = {one: ExplainScore(ranker, one, unit, seed=seed).transform(source.frame) for one in methods}
    coverage = 1 - 0.05 / len(methods)
    measured = faithfulness(explained, ranker, absence=absence, idf=source.idf, ci=coverage, seed=seed)

    beaten = "deletion_over_query_terms"
    figures = [
        Figure(f"{name} of {row['method']}", None, row[name], row[f"{name}_low"], row[f"{name}_high"])
        for name in ("deletion", "comprehensiveness")
        for _, row in measured.iterrows()
    ]
    rows = measured[measured["method"].isin(list(methods))]
    figures += [
        Figure(
            f"deletion of {row['method']} less that of {QUERY_TERMS}",
            None,
            row[beaten],
            row[f"{beaten}_low"],
            row[f"{beaten}_high"],
        )
        for _, row in rows.iterrows()
    ]
    better = [row["method"] for _, row in rows.iterrows() if row[f"{beaten}_high"] < 0]
    findings = [
        f"{', '.join(better)} find{'s' if len(better) == 1 else ''} words that matter sooner than the query's terms do."
        if better
        else "No method is shown to find words that matter sooner than the query's own terms do."
    ]
    told = measured.attrs["mechir"]["faithfulness"]
    notes = (
        f"Words were taken out by {told['absence']!r}.",
        f"Each interval is of {coverage:.1%}, so that those of {len(methods)} methods hold together at 95%.",
    )
    drawn = partial(plot_faithfulness, measured, title=f"{ranker.short_name}: words taken out")
    return RecipeResult(
        "faithful_words",
        PAPER,
        ranker.about(),
        figures,
        {"faithfulness": measured, **explained},
        findings,
        notes,
        drawn,
    )
