"""Comparing two pipelines, as a pipeline stage."""

from __future__ import annotations

from typing import ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.results.aggregate import typed
from pyterrier_mechir.results.agreement import agreement_and_stability
from pyterrier_mechir.results.compare import STATISTICS, differences, linear, read_sides
from pyterrier_mechir.results.frames import COLUMNS, METADATA, check_columns
from pyterrier_mechir.stages.base.keyed import Keyed


class CompareHeads(Keyed, pt.Transformer):
    """Runs two pipelines on the same input and compares the effects of their components.

    ``CompareHeads(bm25 >> PatchScorer(one), bm25 >> PatchScorer(other))(topics)`` compares two rankers of the same
    shape; with one ranker and two perturbations, fillers or methods, it compares these. Expected input columns are
    those of the two pipelines, which end in :class:`~pyterrier_mechir.PatchScorer`.

    Output: a row per component, as :func:`~pyterrier_mechir.compare_heads` gives it. ``frame.attrs["mechir"]`` has, as
    lists of dicts, ``"agreement"``: the rows of :func:`~pyterrier_mechir.head_agreement`, and ``"stability"``: those of
    :func:`~pyterrier_mechir.split_halves` for the ``first`` and the ``second`` pipeline (not of fewer than 4 queries).
    These functions also take frames that are computed.

    Args:
        first: a pipeline.
        second: another.
        k: as for :func:`~pyterrier_mechir.head_agreement`.
        estimator: as for :func:`~pyterrier_mechir.compare_heads`.
        ci: coverage of the intervals.
        n_boot: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: an unknown estimator.
    """

    schematic: ClassVar = {"label": "CompareHeads", "inner_pipelines_mode": "unlinked"}

    def __init__(
        self,
        first: pt.Transformer,
        second: pt.Transformer,
        *,
        k: int = 10,
        estimator: str = "ratio_of_means",
        ci: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
    ):
        self.first = first
        self.second = second
        self.k = k
        self.estimator = linear(estimator)
        self.ci = ci
        self.n_boot = n_boot
        self.seed = seed

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Run and compare.

        Raises:
            pt.validate.InputValidationError: a pipeline lacks a column.
            ValueError: as for :func:`~pyterrier_mechir.compare_heads`.
        """
        first, second = self.first.transform(inp), self.second.transform(inp)
        for frame in (first, second):
            check_columns(frame, [*COLUMNS, "docno"], self)
        if not len(first) and not len(second):
            return typed(pd.DataFrame(), STATISTICS)
        sides = read_sides(first, second, self.estimator)
        out = differences(sides, self.ci, self.n_boot, self.seed)
        told = agreement_and_stability(
            *(sides, first, second),
            k=self.k,
            estimator=self.estimator,
            ci=self.ci,
            n_boot=self.n_boot,
            seed=self.seed,
        )
        out.attrs = {METADATA: told}
        return out
