"""Measures of ir_measures for interpretability, to stand beside nDCG in ``pt.Experiment``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import Measure, Metric
from ir_measures.measures import ParamInfo
from ir_measures.measures.base import MeanAgg

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import NO_SIGN, SIGNS

NEUTRAL_BAND = 1e-3
"""Score changes up to this size count as none, unless another band is given."""


def axiom_agreement(frame: pd.DataFrame, band: float = NEUTRAL_BAND, sign: str | None = None) -> pd.DataFrame:
    """How often a ranker's score changes as an axiom expects, query by query.

    Args:
        frame: the output of ``PairScorer`` or ``PatchScorer``: ``qid, score_baseline, score_perturbed`` and, unless the
            expectation is ``+`` for all, ``expected_sign``, in which ``none`` and missing values stand for no
            expectation.
        band: neutral band, in score units: a change of at most this size is none.
        sign: what is expected of s_p - s_b, one of :data:`~pyterrier_mechir.perturb.base.SIGNS`; None takes the
            frame's ``expected_sign``.

    Returns:
        A row per query: ``qid``, ``agreement`` (share of its pairs whose change is the expected one, missing where it
        has none), ``n_pairs`` (pairs counted) and ``n_skipped`` (pairs to which the perturbation did not apply, or of
        which nothing is expected).

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: an unknown sign.
    """
    pt.validate.columns(frame, includes=["qid", "score_baseline", "score_perturbed"])
    agrees = _agrees(frame, band, sign)
    by_query = agrees.groupby(frame["qid"].to_numpy(), sort=False)
    found = by_query.agg(agreement="mean", n_pairs="count", n_rows="size")
    found["n_skipped"] = found.pop("n_rows") - found["n_pairs"]
    return found.rename_axis("qid").reset_index()


def _agrees(frame: pd.DataFrame, band: float, sign: str | None) -> pd.Series:
    """1 where a pair's change is the expected one, 0 where it is not, missing where nothing can be said."""
    delta = frame["score_perturbed"].to_numpy(np.float64) - frame["score_baseline"].to_numpy(np.float64)
    if sign is not None:
        expected = np.full(len(frame), sign, dtype=object)
    elif "expected_sign" in frame.columns:
        expected = frame["expected_sign"].astype(object).fillna(NO_SIGN).to_numpy()
    else:
        expected = np.full(len(frame), "+", dtype=object)
    for name in set(expected):
        one_of("sign", name, (*SIGNS, NO_SIGN))
    agreement = np.full(len(frame), np.nan)
    changes = {
        "+": delta > band,
        "-": delta < -band,
        "+0": delta >= -band,
        "-0": delta <= band,
        "0": np.abs(delta) <= band,
    }
    for name, agrees in changes.items():
        wanted = expected == name
        agreement[wanted] = agrees[wanted]
    agreement[np.isnan(delta)] = np.nan
    return pd.Series(agreement)


class _MeanOfDefined(MeanAgg):
    """The mean of the values that are not missing, itself missing where there are none."""

    def add(self, value: float) -> None:
        if not np.isnan(value):
            super().add(value)


class _AxiomAgreement(Measure):
    """Share of a query's pairs on which the ranker's score changes as the axiom expects.

    Needs ``score_baseline`` and ``score_perturbed``, as ``PairScorer`` and ``PatchScorer`` add them, and
    ``expected_sign`` unless it is ``+`` throughout. ``AxiomAgreement @ 10`` looks at the ten best documents.

    Parameters: ``band``, the neutral band in score units; ``sign``, the expectation, in place of the frame's; and
    ``missing``, the value of a query none of whose pairs counts, NaN unless given. ``ir_measures`` takes the mean over
    the queries that have a value; ``pt.Experiment`` adds all queries up, so that there the mean is NaN where one has
    none, unless ``missing`` is given. A run without pairs, such as a plain retriever's beside one with pairs, has the
    value of ``missing`` throughout.
    """

    NAME = "AxiomAgreement"
    __name__ = "AxiomAgreement"
    DEFAULT = float("nan")
    PRETTY_NAME = "Axiom agreement"
    SHORT_DESC = "Share of pairs on which the score changes as the axiom expects."
    SUPPORTED_PARAMS: dict[str, ParamInfo] = {  # noqa: RUF012 - as declared by ir_measures
        "cutoff": ParamInfo(dtype=int, required=False, desc="ranking cutoff threshold"),
        "band": ParamInfo(dtype=(int, float), required=False, default=NEUTRAL_BAND, desc="neutral band"),
        "sign": ParamInfo(dtype=str, required=False, choices=SIGNS, desc="expected sign of the change"),
        "missing": ParamInfo(dtype=(int, float), required=False, desc="value of a query without pairs"),
    }
    RUN_INPUTS: ClassVar = ["query_id", "doc_id", "score"]
    QREL_INPUTS: ClassVar = ["query_id"]

    def __init__(self, **params: Any):
        super().__init__(**params)
        self.DEFAULT = float(params.get("missing", float("nan")))

    def aggregator(self) -> MeanAgg:
        """The mean over the queries that have a value."""
        return _MeanOfDefined()

    def runtime_impl(self, qrels: pd.DataFrame, run: pd.DataFrame) -> Iterator[Metric]:
        """Values of the queries that the judgments have."""
        run = run[run["query_id"].isin(set(qrels["query_id"]))].rename(columns={"query_id": "qid"})
        if not len(run) or not {"score_baseline", "score_perturbed"} <= set(run.columns):
            return
        cutoff = self.params.get("cutoff")
        if cutoff is not None:
            run = run.groupby("qid", sort=False).head(cutoff)
        found = axiom_agreement(run, self.params.get("band", NEUTRAL_BAND), self.params.get("sign"))
        for qid, agreement in zip(found["qid"], found["agreement"], strict=True):
            yield Metric(qid, self, self.DEFAULT if np.isnan(agreement) else agreement)


AxiomAgreement = _AxiomAgreement()
"""Share of a query's pairs on which the ranker's score changes as the axiom expects (see :class:`_AxiomAgreement`)."""
