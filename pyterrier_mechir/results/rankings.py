"""The ranking that each component leaves, and what measures of ir_measures say of it.

A frame of :class:`~pyterrier_mechir.PatchScorer`'s or ``AblationScorer``'s holds a score of every document for every
component. Each component so gives a ranking of each query's documents. What measures read is its order only: the
documents are handed over with their places as scores, so that every provider of ir_measures breaks ties alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure
from ir_measures.measures.base import MeanAgg

from pyterrier_mechir.results.frames import METADATA, Label, check_columns, has_token_effects, labelled_sites

TIES = "documents of equal score (as float32) stand in the reverse order of their docno, as trec_eval has them"
"""How ties are broken."""

ABLATED = ("qid", "docno", "score", "ablated_scores")
PATCHED = ("qid", "docno", "score", "score_baseline", "score_perturbed", "patch_scores")
"""What a frame of ablated scores, and one of patched scores, has to have."""

_ANY = pd.DataFrame({"qid": ["q"], "docno": ["d"], "label": [1]})
"""Judgments to try measures on."""


class Rankings(NamedTuple):
    """The rankings of each query's documents, without any change and by the scores that each component leaves.

    Args:
        labels: the components.
        queries: the queries, in the order in which they appear.
        docnos: the documents of each.
        places: of these documents, the best greatest, ``[document, 1 + component]`` for each query; the first column is
            the ranking that the others are compared with.
        n_unpatched: documents without patched scores, which keep their own.
    """

    labels: list[Label]
    queries: list[str]
    docnos: list[list[str]]
    places: list[np.ndarray]
    n_unpatched: int

    def only(self, queries: Iterable[str]) -> Rankings:
        """The rankings of some of the queries."""
        wanted = set(queries)
        kept = [number for number, query in enumerate(self.queries) if query in wanted]
        return self._replace(
            queries=[self.queries[number] for number in kept],
            docnos=[self.docnos[number] for number in kept],
            places=[self.places[number] for number in kept],
        )


def check_rankings(frame: Any, context: pt.Transformer | None = None) -> None:
    """Check that a frame has ablated or patched scores.

    Args:
        frame: the frame.
        context: the stage that needs them, for the message.

    Raises:
        pt.validate.InputValidationError: it has neither, or lacks what they are compared with.
        ValueError: as for :func:`~pyterrier_mechir.results.frames.check_columns`.
        TypeError: it is no frame.
    """
    check_columns(frame, [], context)
    with pt.validate.any(frame, context=context) as either:
        either.columns(includes=list(ABLATED), mode="ablated")
        either.columns(includes=list(PATCHED), mode="patched")
    check_columns(frame, ["qid", "docno"], context)


def read_rankings(frame: pd.DataFrame) -> Rankings:
    """The rankings that a frame holds.

    Ablated scores are compared with ``score``. Patched scores are compared with the scores of the side that was
    patched: ``score_baseline`` in the direction denoise, ``score_perturbed`` in the direction noise.

    Args:
        frame: not empty, as :func:`check_rankings` wants it; of ablated and patched scores, the ablated ones are read.

    Raises:
        ValueError: patched scores of a metric or of single positions, or whose direction nothing tells; arrays of
            several shapes; a document that comes twice for a query, or whose score is missing.
    """
    repeated = frame.duplicated(["qid", "docno"])
    if repeated.any():
        qid, docno = frame.loc[repeated, ["qid", "docno"]].iloc[0]
        raise ValueError(
            f"(qid, docno) = ({qid!r}, {docno!r}) comes more than once; drop_duplicates(['qid', 'docno']) first."
        )
    column = "ablated_scores" if "ablated_scores" in frame.columns else "patch_scores"
    shapes = {np.shape(array) for array in frame[column]}
    if len(shapes) > 1:
        raise ValueError(f"{column} has arrays of shapes {sorted(shapes)}; measure one scorer's at a time.")
    base = _compared_with(frame, column)
    sites, slots = labelled_sites(frame, shapes.pop())
    labels = [(site, slot) for site in sites for slot in ([None] if slots is None else slots)]
    moved: np.ndarray = np.stack([np.asarray(array, dtype=np.float32).ravel() for array in frame[column]])
    swept = ~np.isnan(moved).all(axis=0)
    if not swept.any():
        raise ValueError(f"{column} is missing for all documents, so that there is no ranking to measure.")
    moved, labels = moved[:, swept], [label for label, kept in zip(labels, swept, strict=True) if kept]
    own = frame["score"].to_numpy(np.float32)
    unpatched = np.isnan(moved).all(axis=1) if column == "patch_scores" else np.zeros(len(frame), dtype=bool)
    base = np.where(unpatched, own, base)
    scores = np.column_stack([base, np.where(unpatched[:, None], own[:, None], moved)])
    if np.isnan(scores).any():
        row = frame.iloc[int(np.isnan(scores).any(axis=1).argmax())]
        raise ValueError(
            f"a score is missing for (qid, docno) = ({row['qid']!r}, {row['docno']!r}), so that it has no place in a "
            "ranking; drop the row, or score it."
        )
    return _ranked(labels, frame, scores, int(unpatched.sum()))


def _compared_with(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The scores that those of a column are compared with, one for each document."""
    if column == "ablated_scores":
        return frame["score"].to_numpy(np.float32)
    metadata = frame.attrs.get(METADATA, {})
    if "metric" in metadata:
        raise ValueError(
            f"patch_scores hold {metadata['metric']}, which ranks no documents; give scores that were patched without "
            "metric=."
        )
    if has_token_effects(frame):
        raise ValueError(
            "patched scores of single positions belong to one text each and rank no documents; give those of all "
            "positions, or of positions='class'."
        )
    sides = {"denoise": "score_baseline", "both": "score_baseline", "noise": "score_perturbed"}
    direction = metadata.get("direction")
    if direction not in sides:
        raise ValueError(
            f"the frame does not say in which direction it was patched, since its attrs[{METADATA!r}] are gone, so "
            "that nothing tells which scores to compare with; measure right after PatchScorer."
        )
    return frame[sides[direction]].to_numpy(np.float32)


def _ranked(labels: list[Label], frame: pd.DataFrame, scores: np.ndarray, n_unpatched: int) -> Rankings:
    """Rankings by scores ``[row, 1 + component]``, of which equal ones stand as :data:`TIES` says."""
    qids, docnos = (frame[name].astype(str).to_numpy(np.object_) for name in ("qid", "docno"))
    numbers, queries = pd.factorize(qids)
    by_docno = np.argsort(docnos, kind="stable")[::-1]
    rows = by_docno[np.argsort(numbers[by_docno], kind="stable")]
    of_query = np.split(rows, np.cumsum(np.bincount(numbers))[:-1])
    places = []
    for members in of_query:
        order = np.argsort(-scores[members], axis=0, kind="stable")
        place = np.empty(order.shape)
        np.put_along_axis(place, order, np.arange(len(members), 0, -1.0)[:, None], axis=0)
        places.append(place)
    return Rankings(labels, list(queries), [docnos[members].tolist() for members in of_query], places, n_unpatched)


def checked_measures(measures: Measure | str | Sequence[Measure | str]) -> tuple[Measure, ...]:
    """Measures of ir_measures, as a tuple.

    Args:
        measures: one or several, or their names (``"nDCG@10"``).

    Raises:
        ValueError: there is none, or one comes twice, is unknown, cannot be computed, or is no mean over queries.
        TypeError: what is no measure.
    """
    listed = [measures] if isinstance(measures, (Measure, str)) else list(measures)
    found = []
    for measure in listed:
        if not isinstance(measure, (Measure, str)):
            raise TypeError(f"{measure!r} is no measure; give measures of ir_measures, such as nDCG @ 10.")
        try:
            found.append(ir_measures.parse_measure(measure) if isinstance(measure, str) else measure)
        except (ValueError, NameError) as error:
            raise ValueError(f"{measure!r} names no measure of ir_measures ({error}).") from None
    if not found:
        raise ValueError("measures is empty; give at least one, such as nDCG @ 10.")
    if len(set(found)) < len(found):
        raise ValueError(f"measures has one twice: {', '.join(map(str, found))}.")
    for measure in found:
        if not isinstance(measure.aggregator(), MeanAgg):
            raise ValueError(
                f"{measure} is no mean over queries, so that it has no interval over them; choose another."
            )
        try:
            ir_measures.evaluator([measure], pt.model.to_ir_measures(_ANY))
        except (ValueError, AssertionError) as error:
            raise ValueError(f"ir_measures cannot compute {measure}: {str(error).splitlines()[0]}") from None
    return tuple(found)


def checked_qrels(qrels: Any) -> pd.DataFrame:
    """Judgments as ``qid``, ``docno``, ``label`` and, where they have one, ``iteration``.

    Raises:
        ValueError: they lack a column, are empty, judge a document twice, or a label is no whole number.
        TypeError: they are no frame.
    """
    if not isinstance(qrels, pd.DataFrame):
        raise TypeError(f"the judgments are a {type(qrels).__name__}, not a DataFrame of qid, docno and label.")
    lacking = [name for name in ("qid", "docno", "label") if name not in qrels.columns]
    if lacking:
        raise ValueError(
            f"the judgments have no column {lacking[0]!r}; give qid, docno and label, as dataset.get_qrels() does."
        )
    check_columns(qrels, ["qid", "docno"])
    if not len(qrels):
        raise ValueError("the judgments are empty, so that nothing can be measured.")
    labels = pd.to_numeric(qrels["label"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if not (labels == np.floor(labels)).all():
        row = qrels.iloc[int((labels != np.floor(labels)).argmax())]
        raise ValueError(f"the label of ({row['qid']!r}, {row['docno']!r}) is {row['label']}, not a whole number.")
    made = qrels[["qid", "docno"]].astype(str).assign(label=labels.astype(np.int64)).reset_index(drop=True)
    keys = ["qid", "docno"]
    if "iteration" in qrels.columns:
        made["iteration"] = qrels["iteration"].astype(str).to_numpy()
        keys.append("iteration")
    if made.duplicated(keys).any():
        row = made[made.duplicated(keys)].iloc[0]
        raise ValueError(f"({row['qid']!r}, {row['docno']!r}) is judged more than once; keep one of its labels.")
    return made


def measured(rankings: Rankings, qrels: pd.DataFrame, measures: Sequence[Measure]) -> np.ndarray:
    """Measures of all rankings.

    One evaluator of ir_measures reads the judgments once and is then given the rankings of one component after the
    other. Documents that are judged but not retrieved count as in ``pt.Experiment``.

    Args:
        rankings: of queries that are judged.
        qrels: as :func:`checked_qrels` gives them; of other queries they are ignored.
        measures: as :func:`checked_measures` gives them.

    Returns:
        ``[measure, query, 1 + component]``.

    Raises:
        ValueError: a measure has no value for a query.
    """
    judged = qrels[qrels["qid"].isin(rankings.queries)]
    evaluator = ir_measures.evaluator(measures, pt.model.to_ir_measures(judged))
    of_measure = {measure: number for number, measure in enumerate(measures)}
    of_query = {query: number for number, query in enumerate(rankings.queries)}
    values = np.full((len(measures), len(rankings.queries), 1 + len(rankings.labels)), np.nan)
    for column in range(values.shape[-1]):
        run = {
            query: dict(zip(docnos, places[:, column].tolist(), strict=True))
            for query, docnos, places in zip(*rankings[1:4], strict=True)
        }
        for metric in evaluator.iter_calc(run):
            values[of_measure[metric.measure], of_query[metric.query_id], column] = metric.value
    missing = ~np.isfinite(values).all(axis=(1, 2))
    if missing.any():
        raise ValueError(
            f"{measures[int(missing.argmax())]} has no value for some queries; choose measures that the order of the "
            "documents and their judgments decide."
        )
    return values


def shuffled(qrels: pd.DataFrame, rankings: Rankings, rng: np.random.Generator) -> pd.DataFrame:
    """Judgments of which those of each query's retrieved documents are exchanged among these.

    That a document is not judged goes with its judgment; those of documents that were not retrieved stay, so that the
    ideal ranking of a query is the same.

    Args:
        qrels: as :func:`checked_qrels` gives them.
        rankings: whose documents are the candidates.
        rng: of the permutations.
    """
    moved: dict[tuple[str, str], str] = {}
    for query, docnos in zip(rankings.queries, rankings.docnos, strict=True):
        order = rng.permutation(len(docnos))
        moved |= {(query, docno): docnos[place] for docno, place in zip(docnos, order.tolist(), strict=True)}
    pairs = zip(qrels["qid"], qrels["docno"], strict=True)
    return qrels.assign(docno=[moved.get(pair, pair[1]) for pair in pairs])
