"""How far a ranking depends on where in the documents the answers stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from ir_measures import Measure, calc_aggregate, nDCG

from pyterrier_mechir.results.frames import check_columns


def position_sensitivity(
    results: pd.DataFrame, qrels: pd.DataFrame, positions: Mapping[str, Any], measure: Measure = nDCG @ 10
) -> pd.DataFrame:
    """The position sensitivity index (Zeng et al., 2025): ``1 - min s_p / max s_p`` over positions p of the evidence.

    Args:
        results: a ranking: ``qid, docno, score``.
        qrels: judgments: ``qid, docno, label``.
        positions: for each query, where in its relevant documents the answer stands, such as ``"begin"``; queries that
            it lacks play no part.
        measure: s_p, the mean over the queries of a position.

    Returns:
        A row per position: ``position``, ``value`` (s_p) and ``n_queries``. ``attrs["mechir"]`` has
        ``position_sensitivity`` (0 where all positions do alike, 1 where one finds nothing; NaN where all find
        nothing) and the ``measure``.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: fewer than two positions have judged queries.
    """
    check_columns(results, ["qid", "docno", "score"])
    check_columns(qrels, ["qid", "docno", "label"])
    judged = set(qrels["qid"])
    of_query = {str(qid): where for qid, where in positions.items() if str(qid) in judged}
    places = list(dict.fromkeys(of_query.values()))
    if len(places) < 2:
        raise ValueError(
            f"{len(places)} positions have judged queries; sensitivity to position is told by two or more."
        )
    run = results.rename(columns={"qid": "query_id", "docno": "doc_id"})[["query_id", "doc_id", "score"]]
    truth = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    rows = []
    for place in places:
        queries = {qid for qid, where in of_query.items() if where == place}
        found = calc_aggregate([measure], truth[truth["query_id"].isin(queries)], run[run["query_id"].isin(queries)])
        rows.append((place, found[measure], len(queries)))
    out = pd.DataFrame(rows, columns=["position", "value", "n_queries"])
    greatest = float(out["value"].max())
    index = 1 - float(out["value"].min()) / greatest if greatest > 0 else float("nan")
    out.attrs["mechir"] = {"position_sensitivity": index, "measure": str(measure)}
    return out
