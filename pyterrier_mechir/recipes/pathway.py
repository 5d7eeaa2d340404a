"""Lu, Chen and Eickhoff, EMNLP 2025: from heads that match terms to heads that score, as BM25 would."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.models.sites import select_sites
from pyterrier_mechir.observe.attention import attention_of
from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.progress import shows_progress
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.recipes.base import Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.data import perturbed, retrieved, with_terms
from pyterrier_mechir.recipes.estimates import (
    Estimate,
    correlation,
    deltas,
    found,
    halves,
    held_out_heads,
    mean_of,
    names_of,
    records,
)
from pyterrier_mechir.results.frames import strongest_first
from pyterrier_mechir.results.statistics import adjusted
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.idf import Idf

PAPER = Paper("Lu, Chen and Eickhoff, EMNLP 2025 (arXiv:2502.04645)", "cross-encoder/ms-marco-MiniLM-L-12-v2", "133 MB")

MATCHING = "L7H9 L8H1 L4H9 L2H1 L8H8 L6H5 L1H7 L5H7 L5H9 L3H1 L8H0 L6H3 L0H8"
SCORING = "L10H1"

REGRESSION, BM25 = 0.8157, 0.4200
"""Correlations with the score: of the regression on matching attention and idf, and of BM25."""

PREDICTED = {
    "predicted": "matching attention and the direction that stands for idf",
    "predicted_without_idf": "matching attention alone",
    "predicted_others": "random other heads and that direction",
}
"""The regressions, by their columns."""

PARTS = ("q", "k", "v")
_DIRECTIONS = 10
"""Directions of the embeddings that are held against idf."""


@shows_progress
def lu25_pathway(
    ranker: Any = None,
    data: Any = None,
    *,
    n_scoring: int = 2,
    n_matching: int = 4,
    idf: Any = None,
    filler: Filler = "a",
    num_queries: int = 24,
    num_results: int = 10,
    num_patched: int = 1,
    seed: int = 0,
    verbose: bool = False,
) -> RecipeResult:
    r"""Patch the paths from heads to the end, from heads to those that score, and rebuild the score as BM25 would.

    Scoring heads are those whose paths to the last stream carry most of what one more query term does to the score;
    matching heads are those whose paths to the queries, keys or values of the scoring heads carry most.

    ===================  =====================================  ========================================================
    \                    the paper                              here
    ===================  =====================================  ========================================================
    ranker               ms-marco-MiniLM-L-12-v2                any; of one that reads no query beside the document, the
                                                                regression is left out
    pairs                TFC1, STMC1, TFC2 and LNC2             TFC1: a query term is appended
    paths                every other head's z frozen, MLPs      the same
                         and norms free
    scoring heads        L10H1, by eye                          chosen on half of the queries, tested on the others
    matching heads       13, by paths to L10H1 and attention    likewise, by the best of the paths to q, k and v
    idf                  the first singular vector of the       the same, held against the collection's idf; the next
                         embeddings                             nine directions beside it
    regression           features of each query token: its idf  sums over the query's tokens: idf; of each matching
                         by the embeddings; of each matching    head, attention to the document, and attention times
                         head, attention to the document; and   idf; tested on queries that were not fitted
                         their product
    control              BM25 alone                             this, the same without idf, and random other heads, as
                                                                many
    ===================  =====================================  ========================================================

    Args:
        ranker: a ranker of two layers at least; None loads the paper's own.
        data: a frame with ``qid, query, docno, text`` and, optionally, ``term`` and ``first_stage`` (BM25's score); a
            dataset of PyTerrier or its name; None takes ``mechir:lab``.
        n_scoring: heads that are called scoring.
        n_matching: heads that are called matching.
        idf: how rare words are, whatever :meth:`Idf.of <pyterrier_mechir.perturb.Idf.of>` takes; None takes the
            collection, or the texts of the frame.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        num_queries: of a dataset, topics, drawn at random.
        num_results: of a dataset, documents that BM25 retrieves for each.
        num_patched: of each query, documents that are patched, the first of the frame.
        seed: of all draws.
        verbose: show progress bars.

    Returns:
        Frames ``heads`` (all paths), ``to_final``, ``to_scoring`` (by ``part``, q, k and v), ``scoring``, ``matching``,
        ``directions`` (of the embeddings) and, with a regression, ``fitted``.

    Raises:
        ValueError: a column is missing, fewer than 4 queries, idf without the vocabulary's words, an option out of
            range, a ranker of one layer, or one that cannot be loaded.
    """
    check_count("n_scoring", n_scoring)
    check_count("n_matching", n_matching)
    ranker = PAPER.ranker(ranker)
    if ranker.n_layers < 2:
        raise ValueError(f"{ranker!r} has one layer, so that no head is before another; give a ranker of two at least.")
    source = retrieved(data, num_queries=num_queries, num_results=num_results, least=4, seed=seed)
    documents = with_terms(source.frame, seed)
    rarity = source.idf if idf is None else Idf.of(idf)
    pairs = perturbed(documents, lambda term: TFC1(term, seed=seed))
    pairs = pairs.groupby("qid", sort=False).head(num_patched).reset_index(drop=True)

    # Which heads score: their paths to the last stream, through no other head.
    heads = AggregateHeads(by=None, seed=seed).transform(PatchScorer(ranker, filler=filler).transform(pairs))
    above = range(1, ranker.n_layers)
    final = PatchScorer(ranker, receivers="final", layers=above, filler=filler).transform(pairs)
    scoring = held_out_heads(final, n_scoring, seed=seed)

    # Which heads match: their paths to the scoring heads.
    paths, tested = [], []
    for part in PARTS:
        receivers = [f"{name}.{part}" for name in scoring["docno"]]
        patched = PatchScorer(ranker, receivers=receivers, filler=filler).transform(pairs)
        paths.append(AggregateHeads(by=None, seed=seed).transform(patched).assign(part=part))
        tested.append(held_out_heads(patched, n_matching, seed=seed).assign(part=part))
    to_scoring, candidates = pd.concat(paths, ignore_index=True), pd.concat(tested, ignore_index=True)
    matching = (
        strongest_first(candidates, "score_selection").drop_duplicates("docno").head(n_matching).reset_index(drop=True)
    )
    matching["p_adjusted"] = adjusted(matching["p_value"].to_numpy(np.float64))

    directions, of_tokens = _directions(ranker, rarity)
    first = directions.iloc[0]
    frames = {
        "heads": heads,
        "to_final": AggregateHeads(by=None, seed=seed).transform(final),
        "to_scoring": to_scoring,
        "scoring": scoring,
        "matching": matching,
        "directions": directions,
    }
    of_idf = Estimate(*(first[name] for name in ("r", "ci_low", "ci_high")))
    change = mean_of(deltas(final), final["qid"])
    strongest = matching.iloc[0]
    figures = [
        Figure("mean change of the score", None, *change),
        Figure("scoring heads", SCORING, names_of(scoring["docno"])),
        Figure("matching heads", MATCHING, names_of(matching["docno"])),
        Figure(
            f"effect of the path from {strongest['docno']} to {strongest['part']} of the scoring heads",
            None,
            *(strongest[name] for name in ("score", "ci_low", "ci_high")),
        ),
        Figure("first direction of the embeddings and idf", "strong", *of_idf),
    ]
    findings = [
        f"Scoring: {found(scoring, 'bring a share of the change to the end')}",
        f"Matching: {found(matching, 'bring a share of the change to the scoring heads')}",
        f"The first direction of the embeddings {'tells' if of_idf.ci_low > 0 else 'is not shown to tell'} idf: "
        f"{of_idf}.",
    ]
    notes = PAPER.remarks(ranker)
    if ranker.reads_query:
        frames["fitted"] = fitted = _fitted(ranker, documents, matching["docno"].tolist(), of_tokens, seed)
        told = {name: _correlated(fitted, name, seed) for name in (*PREDICTED, "first_stage")}
        figures += [
            *(
                Figure(f"regression on {of} and the score", REGRESSION if name == "predicted" else None, *told[name])
                for name, of in PREDICTED.items()
            ),
            Figure("BM25 and the score", BM25, *told["first_stage"]),
        ]
        named = {**PREDICTED, "first_stage": "BM25"}
        correlate = [f"{named[one]} by {of}" for one, of in told.items() if np.isfinite(of.value)]
        findings.append(f"With the score of queries that were not fitted correlate: {'; '.join(correlate)}.")
    else:
        notes = (*notes, f"{ranker!r} reads no query beside the document, so that no attention goes between them.")
    drawn = partial(
        plot_heads,
        to_scoring[to_scoring["part"] == strongest["part"]],
        title=f"{ranker.short_name}: paths to scoring heads",
    )
    return RecipeResult("lu25_pathway", PAPER, ranker.about(), figures, frames, findings, notes, drawn)


def _directions(ranker: Ranker, idf: Idf) -> tuple[pd.DataFrame, np.ndarray]:
    """How far the first directions of the embedding table tell idf, and the idf that the first gives each token.

    Returns:
        ``direction, singular_value, r`` (Pearson, over the vocabulary's words that the collection has), with an
        interval by Fisher's z, ``n_words``; and ``[vocabulary]``, standardised, rising with rarity.

    Raises:
        ValueError: fewer than 4 words are known.
    """
    table = ranker.embeddings().astype(np.float64)
    values, vectors = np.linalg.eigh(table.T @ table)
    order = np.argsort(-values)[:_DIRECTIONS]
    singular = np.sqrt(np.maximum(values[order], np.finfo(np.float64).tiny))
    left = table @ vectors[:, order] / singular
    words = ranker.vocabulary.words
    known = [(token, idf(ranker.vocabulary.spellings[token].lower())) for token in words]
    known = [(token, value) for token, value in known if value is not None]
    if len(known) < 4:
        raise ValueError(f"idf has {len(known)} words of the vocabulary of {ranker!r}; give the idf of a collection.")
    tokens, rarity = (np.array(part) for part in zip(*known, strict=True))
    r = np.array([np.corrcoef(column[tokens], rarity)[0, 1] for column in left.T])
    reach = 1.96 / np.sqrt(max(len(tokens) - 3, 1))
    low, high = (np.tanh(np.arctanh(r) + sign * reach) for sign in (-1, 1))
    frame = pd.DataFrame({"direction": np.arange(len(r)), "singular_value": singular, "r": np.abs(r)})
    turned = np.sign(r)
    frame = frame.assign(
        ci_low=np.minimum(turned * low, turned * high), ci_high=np.maximum(turned * low, turned * high)
    )
    of_tokens = turned[0] * (left[:, 0] - left[tokens, 0].mean()) / left[tokens, 0].std()
    return frame.assign(n_words=len(tokens)), of_tokens


def _fitted(ranker: Ranker, documents: pd.DataFrame, heads: list[str], idf: np.ndarray, seed: int) -> pd.DataFrame:
    """The score of each document, and what linear regressions fitted on the other half of the queries say it is.

    They are on the attention of some heads, with idf and without, and on that of as many random other heads, with idf.
    """
    names = [site.name for site in select_sites("head", ranker.anatomy).patched]
    rest = np.random.default_rng(seed).permutation([name for name in names if name not in heads])
    others = rest[: len(heads)].tolist()
    rows = [_features(ranker, row.query, row.text, [*heads, *others], idf) for row in records(documents)]
    of_idf, attended, weighed = (np.array(part) for part in zip(*rows, strict=True))
    mine, theirs = slice(len(heads)), slice(len(heads), None)
    score = ranker.score(documents["query"].tolist(), documents["text"].tolist()).astype(np.float64)
    first = documents["qid"].isin(halves(documents, seed)[0]["qid"]).to_numpy()

    def fitted(*parts: np.ndarray) -> np.ndarray:
        features, predicted = np.column_stack([np.ones(len(score)), *parts]), np.empty(len(score))
        for fit in (first, ~first):
            predicted[~fit] = features[~fit] @ np.linalg.lstsq(features[fit], score[fit], rcond=None)[0]
        return predicted

    columns = [name for name in ("qid", "docno", "first_stage") if name in documents.columns]
    return documents[columns].assign(
        score=score,
        predicted=fitted(of_idf, attended[:, mine], weighed[:, mine]),
        predicted_without_idf=fitted(attended[:, mine]),
        predicted_others=fitted(of_idf, attended[:, theirs], weighed[:, theirs]),
    )


def _features(
    ranker: Ranker, query: str, text: str, heads: list[str], idf: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sums over the tokens of a query: idf; of each head, attention to the document, and attention times idf."""
    read = attention_of(ranker, query, text, heads)
    classes = np.array(read.token_classes)
    of_query, of_document = (np.isin(classes, some) for some in (("Q+", "Q-"), ("EDIT", "D+", "D-", "OTHER")))
    tokens = np.array(read.tokens)[of_query]
    weights = idf[ranker.tokenizer.convert_tokens_to_ids(tokens.tolist())]
    attended = read.weights[:, of_query][:, :, of_document].sum(axis=2).astype(np.float64)
    return float(weights.sum()), attended.sum(axis=1), attended @ weights


def _correlated(fitted: pd.DataFrame, column: str, seed: int) -> Estimate:
    if column not in fitted.columns:
        return Estimate(np.nan, np.nan, np.nan)
    return correlation(fitted[column], fitted["score"], pd.factorize(fitted["qid"])[0], seed=seed)
