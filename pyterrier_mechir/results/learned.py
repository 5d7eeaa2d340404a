"""What something that was learned changes on held-out queries, beside what controls change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from pyterrier_mechir.results.statistics import bootstrap, n_flips, ratio, sign_flips

SHARE_BEATEN, LEAST_CONTROLS = 0.95, 20
"""Which share of the controls an improvement has to beat, and of how many at least."""


@dataclass(frozen=True)
class LearnedReport:
    """What was learned, on held-out queries; shows itself in notebooks.

    Attributes:
        rows: a row for each ranking: ``name``, ``kind`` (``unchanged``, ``learned``, ``control``, ``shuffled``,
            ``mix``, ``seed``), ``value`` (the mean of the measure), ``score`` (its change from the unchanged ranker),
            ``ci_low`` and ``ci_high`` (bootstrap over queries), ``p_value`` (sign flips over queries) and
            ``n_queries``.
        by_query: the measure of each query, a column for each ranking.
        measure: its name.
        control: what the controls are, in the plural: ``permuted gates``.
        agreement: the mean Spearman correlation between what several seeds learned; missing without any.
        notes: what else a reader should know.
    """

    rows: pd.DataFrame
    by_query: pd.DataFrame = field(repr=False)
    measure: str
    control: str
    agreement: float = np.nan
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        values: Mapping[tuple[str, str], pd.Series],
        measure: str,
        control: str,
        *,
        agreement: float = np.nan,
        notes: tuple[str, ...] = (),
        ci: float = 0.95,
        n_boot: int = 2000,
        seed: int = 0,
    ) -> LearnedReport:
        """Compare rankings of the same queries.

        Args:
            values: the measure of each query, by (kind, name); the first is the unchanged ranker's.
            measure: as in the class.
            control: as in the class.
            agreement: as in the class.
            notes: as in the class.
            ci: coverage of the intervals.
            n_boot: resamples of queries.
            seed: of what is drawn.
        """
        by_query = pd.DataFrame({name: series for (_, name), series in values.items()})
        found = by_query.to_numpy(np.float64)
        changes = found - found[:, :1]
        present = np.ones(changes.shape, dtype=bool)
        low, high = bootstrap(ratio(changes, np.ones_like(changes)), present, ci=ci, n_boot=n_boot, seed=seed)
        p_values = sign_flips(changes, present, n_flips=n_flips(n_boot, 1), seed=seed)
        rows = pd.DataFrame(
            {
                "name": list(by_query.columns),
                "kind": [kind for kind, _ in values],
                "value": found.mean(axis=0),
                "score": changes.mean(axis=0),
                "ci_low": low,
                "ci_high": high,
                "p_value": p_values,
                "n_queries": len(found),
            }
        )
        unchanged = rows["kind"] == "unchanged"
        rows.loc[unchanged, ["score", "ci_low", "ci_high", "p_value"]] = np.nan
        return cls(rows, by_query, measure, control, agreement, notes)

    def _of(self, kind: str) -> pd.DataFrame:
        return self.rows[self.rows["kind"] == kind]

    @property
    def learned(self) -> pd.Series:
        """The row of what was learned."""
        return self._of("learned").iloc[0]

    @property
    def n_controls(self) -> int:
        """How many controls there are."""
        return len(self._of("control"))

    @property
    def n_beaten(self) -> int:
        """How many controls have a smaller mean of the measure than what was learned; ties are none."""
        return int((self._of("control")["value"] < self.learned["value"] - 1e-12).sum())

    @property
    def improves(self) -> bool:
        """Whether it is an improvement: the interval is above 0, and at least 19 of 20 controls are beaten."""
        is_rare = self.n_controls >= LEAST_CONTROLS and self.n_beaten >= SHARE_BEATEN * self.n_controls
        return bool(self.learned["ci_low"] > 0 and is_rare)

    def __str__(self) -> str:
        row, before = self.learned, self._of("unchanged").iloc[0]
        verdict = "An improvement." if self.improves else f"Not an improvement: {self._why_not()}."
        parts = [
            f"{self.measure} of {row['n_queries']} held-out queries: {before['value']:.3f}, and {row['value']:.3f} "
            f"with what was learned, {row['score']:+.3f} ({row['ci_low']:+.3f} to {row['ci_high']:+.3f})."
        ]
        if self.n_controls:
            parts.append(f"It is above {self.n_beaten} of {self.n_controls} {self.control}.")
        parts.append(verdict)
        if np.isfinite(self.agreement):
            parts.append(f"Seeds agree by {self.agreement:.2f} (Spearman).")
        return " ".join([*parts, *self.notes])

    def _why_not(self) -> str:
        row = self.learned
        if row["ci_high"] < 0:
            return "it is worse"
        if not row["ci_low"] > 0:
            return "the interval contains 0"
        if self.n_controls < LEAST_CONTROLS:
            return f"that takes {LEAST_CONTROLS} {self.control}, and there are {self.n_controls}"
        return f"chance does as well, as too few {self.control} are beaten"

    def _repr_html_(self) -> str:
        controls = self._of("control")
        shown = self.rows[self.rows["kind"] != "control"].drop(columns="kind")
        if len(controls):
            spread = f"{controls['score'].min():+.3f} to {controls['score'].max():+.3f}"
            mean = f"{controls['score'].mean():+.3f}"
            note = f"<p>{len(controls)} {escape(self.control)}: {spread}, mean {mean}.</p>"
        else:
            note = ""
        table = shown.to_html(index=False, float_format=lambda value: f"{value:.3f}", na_rep="", border=0)
        return f"<div><p>{escape(str(self))}</p>{table}{note}</div>"
