"""MechIR (Parry, Chen, Eickhoff and MacAvaney, ECIR 2025): heads that carry TFC1 and TDC, by the grade of relevance."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.axioms.discrimination import TDC
from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.recipes import published as of_papers
from pyterrier_mechir.recipes.base import TASB, Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import greatest, judged
from pyterrier_mechir.recipes.estimates import deltas, found, held_out_heads, mean_of, names_of, records
from pyterrier_mechir.results.agreement import head_agreement
from pyterrier_mechir.results.frames import strongest_first
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.pair_scorer import PairScorer
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.stages.perturb_docs import PerturbDocs
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.idf import Idf

PAPERS = {
    kind: Paper("Parry, Chen, Eickhoff and MacAvaney, ECIR 2025 (arXiv:2501.10165)", checkpoint, size)
    for kind, checkpoint, size in (
        ("bi", *TASB),
        ("cross", "crystina-z/monoELECTRA_LCE_nneg31", "438 MB"),
    )
}

HEADS = {
    ("bi", "TFC1"): "L1H6 L2H3 L4H0 L4H6 L5H8",
    ("bi", "TDC"): "L1H6 L4H3 L4H0 L5H1 L4H6",
    ("cross", "TFC1"): "L11H8 L3H8 L9H7 L11H10 L4H6",
    ("cross", "TDC"): "L11H0 L5H4 L0H10 L5H8 L9H7",
}
"""The heads of greatest absolute mean effect over all grades, by ranker and axiom."""

READINGS = ("published", "defined")


@shows_progress
def mechir25(
    ranker: Any = None,
    data: Any = None,
    *,
    axiom: str = "TFC1",
    reading: str = "published",
    kind: str = "bi",
    published: str | Path | None = None,
    per_grade: int = 10,
    idf: Any = None,
    filler: Filler = "a",
    num_queries: int = 44,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Perturb judged documents, keep those of the greatest change in each grade, and patch every head.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    pairs                judged passages of DL 2019 and 2020    judged documents of the lab collection; the paper's own
                                                                with ``published``
    kept                 the 1,000 of the greatest change per   the same rule, ``per_grade`` of each; the mean change
                         grade, of the texts without fillers    of all pairs is told beside theirs
    TFC1                 a random query term is appended        the same (``reading`` makes no difference)
    TDC                  the query term of the highest idf is   ``published`` appends it, and looks words up as the
                         appended, looked up without stemming   collection counted them; ``defined`` is the axiom: the
                         in an index of stems, so that most     commonest query term gives way to the rarest
                         inflected words count as rarest
    filler               ``X``                                  ``a``, or any
    effect               mean of ratios, whose denominator is   the same, beside the ratio of means; how many
                         of the texts *with* fillers, so that   denominators are small is in ``changes``
                         the choice does not protect it
    control              none                                   a random word as rare in the term's place
    heads                the strongest over all pairs           chosen on half of the queries, tested on the others
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker; None loads the paper's own of the ``kind``.
        data: a frame with ``qid, query, docno, text, label``; a dataset of PyTerrier with judgments, or its name; None
            takes the pairs of ``published``, else ``mechir:lab``.
        axiom: ``TFC1`` or ``TDC``.
        reading: ``published`` or ``defined``.
        kind: the published ranker that is compared with: ``bi`` (TAS-B) or ``cross`` (monoELECTRA).
        published: the folder of MechIR's tables and arrays (:func:`~pyterrier_mechir.recipes.published.topk` and
            :func:`~pyterrier_mechir.recipes.published.maps`).
        per_grade: pairs that are kept of each grade; of published pairs too.
        idf: how rare words are, whatever :meth:`Idf.of <pyterrier_mechir.perturb.Idf.of>` takes; None takes the
            collection, or the texts of the frame.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        num_queries: of a dataset, topics, drawn at random.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``changes`` (of the scores of the pairs that are kept, with fillers, by grade), ``pairs``, ``heads``,
        ``heads_by_grade`` (both estimators) and ``held_out``; with ``published`` also ``published_changes``,
        ``published_heads`` and ``agreement`` (of our map with the published one).

    Raises:
        ValueError: a column is missing, labels that are no whole numbers, an unknown option, a grade of fewer pairs
            than are kept, or a ranker that cannot be loaded.
    """
    one_of("axiom", axiom, ("TFC1", "TDC"))
    one_of("reading", reading, READINGS)
    paper = PAPERS[one_of("kind", kind, PAPERS)]
    ranker = paper.ranker(ranker)
    tables = None if published is None else of_papers.topk(published, kind, axiom)
    own = data is None and tables is not None
    source = judged(tables if own else data, num_queries=num_queries, least=4, seed=seed)
    rarity = source.idf if idf is None else Idf.of(idf)

    # The pairs of the greatest change, of the texts as they are: both sides are scored without fillers.
    append = TFC1(seed=seed) if axiom == "TFC1" else TDC(rarity, seed=seed)
    edit = append if axiom == "TFC1" or reading == "published" else TDC(rarity, seed=seed, reading="swap")
    made = source.frame if own else PerturbDocs(edit).transform(source.frame)
    made = made[made["text_perturbed"].notna()].dropna(subset="label").reset_index(drop=True)
    if not own:
        scores = (ranker.score(made["query"].tolist(), made[one].tolist()) for one in ("text_perturbed", "text"))
        made["score_delta"] = np.subtract(*scores)
    if (made["label"] % 1 != 0).any():
        raise ValueError("label has fractions; grades are whole numbers, of each of which pairs are kept.")
    pairs = greatest(made.astype({"label": "int64"}), "score_delta", per_grade)

    both = ["mean_of_ratios", "ratio_of_means"]
    patched = PatchScorer(ranker, filler=filler).transform(pairs)
    heads = AggregateHeads(by=None, estimator=both, seed=seed).transform(patched)
    by_grade = AggregateHeads(by="label", estimator=both, seed=seed).transform(patched)
    held_out = held_out_heads(patched, 5, seed=seed)
    control = PerturbDocs(edit, control="random_term", idf=source.idf, ranker=ranker)
    controlled = PairScorer(ranker, filler=filler).transform(
        control.transform(pairs[["qid", "query", "docno", "text", "label"]])
    )
    delta, of_control = (deltas(one) for one in (patched, controlled))
    change, change_control = mean_of(delta, patched["qid"]), mean_of(of_control, controlled["qid"])

    # Changes that were published are of another ranker.
    of_all = [] if own else [mean_of(made["score_delta"], made["qid"])]

    changes = pd.concat(
        [of_papers.changes(patched, delta), of_papers.changes(patched, delta, "label")], ignore_index=True
    )
    frames = {"changes": changes, "pairs": patched, "heads": heads, "heads_by_grade": by_grade, "held_out": held_out}
    figures = [
        Figure("mean change of the score, kept pairs", None, *change),
        Figure("mean change by a random word, of the same texts", None, *change_control),
        *(Figure("mean change of the score, all pairs, without fillers", None, *one) for one in of_all),
        *(
            Figure(f"share of small changes in grade {row.group}", None, row.small)
            for row in records(changes[changes["group"] != "all"])
        ),
        *(Figure(f"5 strongest heads by {one}", HEADS[kind, axiom], _strongest(heads, one)) for one in both),
    ]
    findings = [
        f"In the {len(pairs)} pairs that were kept for {'the published' if own else 'their'} change, the edit changes "
        f"the score by {change}{''.join(f', in all {len(made)} by {one}' for one in of_all)}; random words in the "
        f"texts that were kept change it by {change_control}.",
        found(held_out, "carry a share of the change"),
    ]
    if published is not None and tables is not None:
        frames["published_changes"] = of_papers.changes(tables, tables["score_delta"], "label")
        frames["published_heads"] = of_papers.maps(published, kind, axiom)
        compared = _agreement(patched, frames["published_heads"])
        frames |= {"agreement": compared} if len(compared) else {}
        figures += [
            Figure(f"{row.measure} of our map and the published", None, row.value, row.ci_low, row.ci_high)
            for row in records(compared)
        ]
    main = heads[heads["estimator"] == "ratio_of_means"]
    drawn = partial(plot_heads, main, title=f"{ranker.short_name}: {edit.name}, judged documents")
    return RecipeResult("mechir25", paper, ranker.about(), figures, frames, findings, paper.remarks(ranker), drawn)


def _strongest(heads: pd.DataFrame, estimator: str) -> str:
    return names_of(strongest_first(heads[heads["estimator"] == estimator])["docno"].head(5))


def _agreement(patched: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """How far our map agrees with the published one; no rows where the ranker is of another shape."""
    whole = published[published["qid"] == "all"]
    shape = tuple(whole[["layer", "head"]].max() + 1)
    if np.shape(patched["patch_scores"].iloc[0]) != shape:
        return pd.DataFrame(columns=["measure", "value", "ci_low", "ci_high"])
    return head_agreement(patched, whole[["docno", "score"]], k=5, estimator="mean_of_ratios")
