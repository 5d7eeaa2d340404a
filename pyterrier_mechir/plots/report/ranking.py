"""What the report shows of ranking effects: what they amount to, and the greatest of them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pyterrier_mechir.plots.markup import bar_ends, interval, interval_bar, number, p_value, signed
from pyterrier_mechir.results.frames import METADATA, check_columns, strongest_first
from pyterrier_mechir.results.ranking_verdicts import RANKING_EFFECTS, level_of, verdicts

_MOST_ROWS = 10


def spared(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Ranking effects as tables, one for each measure.

    Args:
        frame: of :class:`~pyterrier_mechir.RankingEffects`.

    Returns:
        For each measure its name, the sentences about it, the rows of greatest absolute change, how many there are,
        whether some are significant, at what level, and the rows of held-out queries.

    Raises:
        pt.validate.InputValidationError: a column is missing.
    """
    check_columns(frame, ["docno", "score", "measure", "value", "ci_low", "ci_high", "p_adjusted"])
    told = frame.attrs.get(METADATA, {}).get(RANKING_EFFECTS, {})
    tables = []
    for measure in frame["measure"].unique():
        rows = frame[frame["measure"] == measure]
        shown = strongest_first(rows).head(_MOST_ROWS)
        ends = bar_ends(shown["score"], shown["ci_low"], shown["ci_high"])
        tables.append(
            {
                "measure": measure,
                "notes": verdicts(rows),
                "rows": [_row(row, ends, level_of(frame)) for row in shown.itertuples()],
                "n_components": len(rows),
                "alpha": level_of(frame),
                "held_out": [_held_out(row) for row in told.get("held_out", ()) if row["measure"] == measure],
            }
        )
    return tables


def _row(row: Any, ends: tuple[float, float], alpha: float) -> dict[str, Any]:
    return {
        "name": row.docno,
        "value": number(row.value),
        "change": signed(row.score),
        "bar": interval_bar(row.score, row.ci_low, row.ci_high, ends),
        "interval": interval(row.ci_low, row.ci_high),
        "p": p_value(row.p_adjusted),
        "is_significant": row.p_adjusted < alpha,
    }


def _held_out(row: dict[str, Any]) -> list[str]:
    return [
        row["docno"],
        signed(row["score_selection"]),
        signed(row["score"]),
        interval(row["ci_low"], row["ci_high"]),
        p_value(row["p_adjusted"]),
    ]
