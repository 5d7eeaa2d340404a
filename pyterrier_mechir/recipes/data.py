"""What recipes run on: documents of a dataset or of a frame, their edited terms, and the pairs that papers selected."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.recipes.estimates import deltas
from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.retrieval import documents, first_stage, quiet, texts
from pyterrier_mechir.stages.perturb_docs import PerturbDocs
from pyterrier_mechir.text.idf import Idf
from pyterrier_mechir.text.words import lowercase_words, query_terms, seeded

LAB = "mechir:lab"
NEEDED = ("qid", "query", "docno", "text")

_OF_LABEL = "the grade of each document, 0 where it is not relevant"


class Documents(NamedTuple):
    """The documents that a recipe runs on.

    Args:
        frame: ``qid, query, docno, text``; ``label`` where they are judged; ``first_stage`` (the score of retrieval)
            where they were retrieved.
        idf: how rare the words of their collection are; of a frame, of its own texts.
        qrels: the judgments ``qid, docno, label``; empty where there are none.
    """

    frame: pd.DataFrame
    idf: Idf
    qrels: pd.DataFrame


def retrieved(
    data: Any, *, num_queries: int, num_results: int, needs: Sequence[str] = (), least: int = 1, seed: int = 0
) -> Documents:
    """The documents that BM25 retrieves of a dataset, or those of a frame as it is.

    Args:
        data: a frame with ``qid, query, docno, text``, and ``label`` where they are judged; a dataset of PyTerrier, or
            its name, which is indexed; None takes ``mechir:lab``.
        num_queries: of a dataset, how many of its topics, drawn at random.
        num_results: of a dataset, documents for each.
        needs: further columns that have to be there.
        least: queries that there have to be.
        seed: of the draw.

    Raises:
        ValueError: a column is missing, too few queries, or no judgments where they are needed.
    """
    check_count("num_queries", num_queries)
    check_count("num_results", num_results)
    if isinstance(data, pd.DataFrame):
        return _of_frame(data, needs, least)
    dataset, topics, qrels = _opened(data)
    topics = topics.sample(min(num_queries, len(topics)), random_state=seed)
    with TemporaryDirectory() as directory:
        bm25, _ = first_stage(dataset, Path(directory) / "index", num_results, say=lambda text: None)
        with quiet():
            found = bm25.transform(topics[["qid", "query"]])
    found = found.rename(columns={"score": "first_stage"})[[*NEEDED, "first_stage"]]
    return _checked(found, dataset, qrels, needs, least)


def judged(data: Any, *, num_queries: int, needs: Sequence[str] = (), least: int = 1, seed: int = 0) -> Documents:
    """The documents of a dataset that are judged, or those of a frame as it is; as :func:`retrieved`.

    Raises:
        ValueError: a column is missing, too few queries, or no judgments.
    """
    check_count("num_queries", num_queries)
    needs = ["label", *needs]
    if isinstance(data, pd.DataFrame):
        return _of_frame(data, needs, least)
    dataset, topics, qrels = _opened(data)
    topics = topics[topics["qid"].isin(qrels["qid"])]
    topics = topics.sample(min(num_queries, len(topics)), random_state=seed)
    found = texts(dataset).transform(qrels[["qid", "docno"]].merge(topics[["qid", "query"]], on="qid"))
    return _checked(found[list(NEEDED)], dataset, qrels, needs, least)


def _opened(data: Any) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """A dataset, its topics and its judgments."""
    if not (data is None or isinstance(data, str) or hasattr(data, "get_topics")):
        raise TypeError(
            f"data is a {type(data).__name__}; give a frame with qid, query, docno and text, a dataset of PyTerrier, "
            "or its name."
        )
    dataset = pt.get_dataset(data or LAB) if data is None or isinstance(data, str) else data
    try:
        qrels = dataset.get_qrels()[["qid", "docno", "label"]]
    except (KeyError, NotImplementedError, ValueError):
        qrels = pd.DataFrame(columns=["qid", "docno", "label"])
    return dataset, dataset.get_topics(), qrels


def _checked(found: pd.DataFrame, dataset: Any, qrels: pd.DataFrame, needs: Sequence[str], least: int) -> Documents:
    if len(qrels):
        found = found.merge(qrels, on=["qid", "docno"], how="left")
    made = _of_frame(found, needs, least)
    return made._replace(idf=Idf.of(documents(dataset)), qrels=qrels)


def _of_frame(frame: pd.DataFrame, needs: Sequence[str], least: int) -> Documents:
    lacking = [name for name in (*NEEDED, *needs) if name not in frame.columns]
    if lacking:
        what = f" ({_OF_LABEL})" if "label" in lacking else ""
        raise ValueError(
            f"the documents have no column {', '.join(lacking)}{what}; this recipe needs "
            f"{', '.join((*NEEDED, *needs))}."
        )
    check_columns(frame, [*NEEDED, *needs])
    if "label" in needs and not pd.api.types.is_numeric_dtype(frame["label"]):
        raise ValueError(f"label is of type {frame['label'].dtype}; give numbers, as by pd.to_numeric: {_OF_LABEL}.")
    if (n_queries := frame["qid"].nunique()) < least:
        raise ValueError(f"there are documents of {n_queries} queries; this recipe needs {least} at least.")
    qrels = frame[["qid", "docno", "label"]].dropna() if "label" in frame.columns else frame.iloc[:0]
    if "label" in needs and not len(qrels):
        raise ValueError("no document is judged; give documents whose label is known.")
    return Documents(frame.reset_index(drop=True), Idf.of(frame["text"].tolist()), qrels)


def with_terms(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A frame with ``term``, one of its terms for each query, drawn at random where there is no such column.

    It also gets ``occurs``, whether the text has the term already. Queries without words are left out.
    """
    if "term" not in frame.columns:
        terms = {query: query_terms(query) for query in frame["query"].unique()}
        drawn = {one: random.Random(seeded(seed, one)).choice(found) for one, found in terms.items() if found}
        frame = frame.assign(term=frame["query"].map(drawn)).dropna(subset="term").reset_index(drop=True)
    pairs = zip(frame["term"], frame["text"], strict=True)
    return frame.assign(occurs=[set(lowercase_words(term)) <= set(lowercase_words(text)) for term, text in pairs])


def perturbed(frame: pd.DataFrame, of_term: Any, **options: Any) -> pd.DataFrame:
    """Perturb the documents of each query by the term of the query.

    Args:
        frame: with ``term``, as :func:`with_terms` gives it.
        of_term: from a term to a :class:`~pyterrier_mechir.perturb.Perturbation`.
        **options: of :class:`~pyterrier_mechir.PerturbDocs`.

    Returns:
        The rows to which it applies.

    Raises:
        ValueError: it applies to none.
    """
    parts = []
    for term, rows in frame.groupby("term", sort=False):
        perturbation: Perturbation = of_term(str(term))
        parts.append(PerturbDocs(perturbation, **options).transform(rows.reset_index(drop=True)))
    made = pd.concat(parts, ignore_index=True)
    made = made[made["text_perturbed"].notna()].reset_index(drop=True)
    if not len(made):
        raise ValueError("the perturbation applies to none of the documents; give others, or more of them.")
    return made


def most_moved(frame: pd.DataFrame, n: int, *, sign: int = 1) -> list[str]:
    """The queries whose scores a perturbation changes most, as published experiments choose them.

    Args:
        frame: ``qid, score_baseline, score_perturbed``.
        n: how many.
        sign: 1 for those of the greatest mean relative change (s_p - s_b) / abs(s_b), -1 for those of the smallest.

    Raises:
        ValueError: there are fewer.
    """
    relative = deltas(frame) / frame["score_baseline"].abs()
    means = relative.groupby(frame["qid"]).mean().sort_values(ascending=sign < 0, kind="stable")
    if len(means) < n:
        raise ValueError(f"{n} queries are to be chosen of {len(means)}; ask for fewer, or give more.")
    return [str(name) for name in means.index[:n]]


def greatest(frame: pd.DataFrame, column: str, n: int, by: str = "label") -> pd.DataFrame:
    """The ``n`` rows of the greatest value of a column within each group, in that order.

    Raises:
        ValueError: a group has fewer.
    """
    sizes = frame.groupby(by).size()
    if sizes.min() < n:
        raise ValueError(
            f"{by} {sizes.idxmin()} has {sizes.min()} pairs, of which {n} are to be kept; ask for fewer, or give more."
        )
    ordered = frame.sort_values([by, column], ascending=[True, False], kind="stable")
    return ordered.groupby(by).head(n).reset_index(drop=True)
