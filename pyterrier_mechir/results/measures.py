"""Measures of ir_measures for interpretability, to stand beside nDCG in ``pt.Experiment``."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from ir_measures import Measure, Metric
from ir_measures.measures import ParamInfo
from ir_measures.measures.base import MeanAgg
from scipy.stats import entropy

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import NO_SIGN, SIGNS
from pyterrier_mechir.results.effects import change, ratio_of_means
from pyterrier_mechir.results.frames import METADATA, check_columns
from pyterrier_mechir.results.pairs import direction_of

NEUTRAL_BAND = 1e-3
"""Score changes up to this size count as none, unless another band is given."""

_MISSING = ("None", "nan", "<NA>")
"""What becomes of missing values that pandas before 3 turns to text."""


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
    check_columns(frame, ["qid", "score_baseline", "score_perturbed"])
    agrees = _agrees(frame, band, sign)
    by_query = agrees.groupby(frame["qid"].to_numpy(), sort=False)
    found = by_query.agg(agreement="mean", n_pairs="count", n_rows="size")
    found["n_skipped"] = found.pop("n_rows") - found["n_pairs"]
    return found.rename_axis("qid").reset_index()


def _agrees(frame: pd.DataFrame, band: float, sign: str | None) -> pd.Series:
    """1 where a pair's change is the expected one, 0 where it is not, missing where nothing can be said."""
    baseline, perturbed = (frame[f"score_{side}"].to_numpy(np.float64) for side in ("baseline", "perturbed"))
    delta = change(baseline, perturbed)
    if sign is not None:
        expected = np.full(len(frame), sign, dtype=object)
    elif "expected_sign" in frame.columns:
        given = frame["expected_sign"].astype(object)
        expected = given.mask(given.isna() | given.isin(_MISSING), NO_SIGN).to_numpy()
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


def head_qrels(frame: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """Judgments of components by an exact aggregate, to score approximate ones by nDCG, precision or rank overlap.

    The k first components of each query are relevant, the first of grade k, the last of grade 1; all others have grade
    0. ``Compat(p=0.9)`` of ir_measures is a rank-biased overlap with these grades' ideal order. Example::

        exact, estimated = first >> PatchScorer(ranker), first >> PatchScorer(ranker, method="attribution")
        qrels = head_qrels((exact >> AggregateHeads())(topics))
        pt.Experiment([estimated >> AggregateHeads()], topics, qrels, [nDCG @ 10, P @ 10])

    Args:
        frame: the output of :class:`~pyterrier_mechir.AggregateHeads`, with one estimator.
        k: how many components are relevant.

    Returns:
        ``qid, docno`` (the component's name) and ``label``, a row per query and component with an effect.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: ``k`` less than 1, or a component that comes twice.
    """
    check_columns(frame, ["qid", "docno", "score"])
    if k < 1:
        raise ValueError(f"k is {k}; at least one component should be relevant.")
    if frame.duplicated(["qid", "docno"]).any():
        raise ValueError("a component comes more than once for a query; keep the rows of one estimator.")
    ordered = frame[frame["score"].notna()].sort_values("score", ascending=False, kind="stable")
    place = ordered.groupby("qid", sort=False, observed=True).cumcount()
    judged = ordered.assign(label=(k - place).clip(lower=0).astype("int64"))
    return judged.sort_index()[["qid", "docno", "label"]].reset_index(drop=True)


class _MeanOfDefined(MeanAgg):
    """The mean of the values that are not missing, itself missing where there are none."""

    def add(self, value: float) -> None:
        if not np.isnan(value):
            super().add(value)


_OF_RUN_FILES = {"query_id", "doc_id", "rank", "score", "name"}
"""The columns of a run that was read from a file of TREC's format, where those of pairs are lost."""

_PARAMETERS = {
    "cutoff": ParamInfo(dtype=int, required=False, desc="ranking cutoff threshold"),
    "missing": ParamInfo(dtype=(int, float), required=False, desc="value of a query without pairs"),
}


class PairMeasure(Measure):
    """A measure of a query's minimal pairs.

    ``@ k`` looks at the k best documents. Only judged queries count, as for other measures. A query without pairs has
    the value of ``missing``, NaN unless given. ``ir_measures`` takes the mean over the queries that have a value;
    ``pt.Experiment`` adds all queries up, so that there the mean is NaN where one has none, unless ``missing`` is
    given. A run without the columns that are needed, such as a plain retriever's beside one with pairs, has the value
    of ``missing`` throughout; one that was read from a run file of TREC, as by ``pt.Experiment(save_mode="reuse")``, is
    an error, since it may have lost them there.
    """

    DEFAULT = float("nan")
    SUPPORTED_PARAMS: dict[str, ParamInfo] = _PARAMETERS
    RUN_INPUTS: ClassVar = ["query_id", "doc_id", "score"]
    QREL_INPUTS: ClassVar = ["query_id"]
    NEEDED: ClassVar[tuple[str, ...]] = ("score_baseline", "score_perturbed")

    def __init__(self, **params: Any):
        super().__init__(**params)
        self.DEFAULT = float(params.get("missing", float("nan")))

    def aggregator(self) -> MeanAgg:
        """The mean over the queries that have a value."""
        return _MeanOfDefined()

    def runtime_impl(self, qrels: pd.DataFrame, run: pd.DataFrame) -> Iterator[Metric]:
        """Values of the queries that the judgments have."""
        if set(run.columns) == _OF_RUN_FILES:
            raise ValueError(
                f"{self} needs {', '.join(self.NEEDED)}, which a run file of TREC does not keep; give pt.Experiment "
                "save_format=pickle (the module) with another save_dir, or, of a run that never had pairs, drop the "
                "column 'name'."
            )
        run = run[run["query_id"].isin(set(qrels["query_id"]))].rename(columns={"query_id": "qid"})
        check_columns(run, ["qid"])
        has_pairs = set(self.NEEDED) <= set(run.columns)
        told = self._told(run) if has_pairs else {}
        cutoff = self.params.get("cutoff")
        for qid, pairs in run.groupby("qid", sort=False, observed=True):
            pairs.attrs = told
            value = self._of_query(pairs, len(pairs) if cutoff is None else cutoff) if has_pairs else self.DEFAULT
            yield Metric(str(qid), self, self.DEFAULT if np.isnan(value) else value)

    def _told(self, run: pd.DataFrame) -> dict[Hashable, Any]:
        """What the whole run tells about each query's pairs: their attrs."""
        return run.attrs

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        """The value of the first ``n`` of a query's pairs, best first; NaN where none counts."""
        raise NotImplementedError


class _AxiomAgreement(PairMeasure):
    """Share of a query's pairs on which the ranker's score changes as the axiom expects.

    Needs ``score_baseline`` and ``score_perturbed``, as ``PairScorer`` and ``PatchScorer`` add them, and
    ``expected_sign`` unless it is ``+`` throughout. Parameters: ``band``, the neutral band in score units; ``sign``,
    the expectation, in place of the frame's; ``missing``, as for all measures of pairs
    (:class:`~pyterrier_mechir.results.measures.PairMeasure`).
    """

    NAME = "AxiomAgreement"
    __name__ = "AxiomAgreement"
    PRETTY_NAME = "Axiom agreement"
    SHORT_DESC = "Share of pairs on which the score changes as the axiom expects."
    SUPPORTED_PARAMS: dict[str, ParamInfo] = {  # noqa: RUF012 - as declared by ir_measures
        **_PARAMETERS,
        "band": ParamInfo(dtype=(int, float), required=False, default=NEUTRAL_BAND, desc="neutral band"),
        "sign": ParamInfo(dtype=str, required=False, choices=SIGNS, desc="expected sign of the change"),
    }

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        agrees = _agrees(pairs.head(n), self.params.get("band", NEUTRAL_BAND), self.params.get("sign"))
        return float(agrees.mean())


class _ScoreShift(PairMeasure):
    """Mean change of a query's scores, s_p - s_b, in score units.

    Needs ``score_baseline`` and ``score_perturbed``. For ``missing`` see
    :class:`~pyterrier_mechir.results.measures.PairMeasure`.
    """

    NAME = "ScoreShift"
    __name__ = "ScoreShift"
    PRETTY_NAME = "Score shift"
    SHORT_DESC = "Mean change of the score, in score units."

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        return float(_delta(pairs.head(n)).mean())


class _RankShift(PairMeasure):
    """Mean number of ranks that a document gains when it alone is perturbed.

    A document's rank is one more than the number of the query's other documents, all that were retrieved, whose
    ``score`` is greater. What it gains is its rank by ``score_baseline`` less that by ``score_perturbed``, the others
    staying as they are. For ``missing`` see :class:`~pyterrier_mechir.results.measures.PairMeasure`.
    """

    NAME = "RankShift"
    __name__ = "RankShift"
    PRETTY_NAME = "Rank shift"
    SHORT_DESC = "Mean number of ranks gained by a document when it alone is perturbed."

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        scores = pairs["score"].to_numpy(np.float64)
        ordered = np.sort(scores)
        better = {}
        for side in ("score_baseline", "score_perturbed"):
            its = pairs[side].to_numpy(np.float64)
            better[side] = len(scores) - np.searchsorted(ordered, its, side="right") - (scores > its)
        gained = pd.Series(better["score_baseline"] - better["score_perturbed"], dtype=np.float64)
        return float(gained.where(np.isfinite(_delta(pairs)).to_numpy()).head(n).mean())


class _OfEffects(PairMeasure):
    """A measure of the effects of components over a query's pairs."""

    NEEDED = ("score_baseline", "score_perturbed", "patch_scores")

    def _told(self, run: pd.DataFrame) -> dict[Hashable, Any]:
        return {METADATA: {"direction": direction_of(run)}}


class EffectMeasure(_OfEffects):
    """Patching effect of a component over a query's pairs: mean moved score / mean of s_p - s_b.

    ``PatchEffect(layer=5, head=8)``; without ``head``, of a component that a layer has one of. Needs
    ``score_baseline``, ``score_perturbed`` and ``patch_scores`` of all positions, in the direction that the frame's
    attrs say or ``patch_effect`` tells; of ``direction="both"``, that is denoise. For ``missing`` see
    :class:`~pyterrier_mechir.results.measures.PairMeasure`.
    """

    NAME = "PatchEffect"
    __name__ = "PatchEffect"
    PRETTY_NAME = "Patching effect"
    SHORT_DESC = "Share of the score change that a component carries."
    SUPPORTED_PARAMS: dict[str, ParamInfo] = {  # noqa: RUF012 - as declared by ir_measures
        **_PARAMETERS,
        "layer": ParamInfo(dtype=int, required=True, desc="layer"),
        "head": ParamInfo(dtype=int, required=False, desc="head"),
    }

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        effects = _effects(pairs.head(n))
        place = tuple(self.params[name] for name in ("layer", "head") if name in self.params)
        if len(place) != effects.ndim or any(
            i not in range(size) for i, size in zip(place, effects.shape, strict=True)
        ):
            raise ValueError(f"{self!r} names no component: the effects are of shape {effects.shape}.")
        return float(effects[place])


class _EffectConcentration(_OfEffects):
    """How few components carry the effect of a query's pairs: 0 where all carry as much, 1 where one carries all.

    1 - H / log n, where H is the entropy of the positive effects' shares in their sum and n the number of components
    that were patched. Effects, and what is needed, are as for
    :class:`~pyterrier_mechir.results.measures.EffectMeasure`.
    """

    NAME = "EffectConcentration"
    __name__ = "EffectConcentration"
    PRETTY_NAME = "Effect concentration"
    SHORT_DESC = "1 less the normalised entropy of the positive patching effects."

    def _of_query(self, pairs: pd.DataFrame, n: int) -> float:
        effects = _effects(pairs.head(n)).ravel()
        effects = effects[np.isfinite(effects)]
        positive = effects[effects > 0]
        if len(effects) < 2 or not len(positive):
            return float("nan")
        return float(1 - entropy(positive) / np.log(len(effects)))


def _delta(pairs: pd.DataFrame) -> pd.Series:
    """s_p - s_b, missing where the perturbation did not apply."""
    baseline, perturbed = (pairs[f"score_{side}"].astype(np.float64) for side in ("baseline", "perturbed"))
    return change(baseline, perturbed)


def _effects(pairs: pd.DataFrame) -> np.ndarray:
    """The effect of each component over some pairs, as a ratio of means; missing where no pair has it."""
    arrays = list(pairs["patch_scores"])
    if len({np.shape(array) for array in arrays}) > 1:
        raise ValueError("patch_scores has arrays of several shapes; measure one scorer's at a time, of all positions.")
    baseline, perturbed = (pairs[f"score_{side}"].to_numpy(np.float64) for side in ("baseline", "perturbed"))
    return ratio_of_means(direction_of(pairs), np.stack(arrays).astype(np.float64), baseline, perturbed)


AxiomAgreement = _AxiomAgreement()
"""Share of a query's pairs on which the ranker's score changes as the axiom expects (see :class:`_AxiomAgreement`)."""

ScoreShift = _ScoreShift()
"""Mean change of a query's scores (see :class:`_ScoreShift`)."""

RankShift = _RankShift()
"""Mean number of ranks that a document gains when it alone is perturbed (see :class:`_RankShift`)."""

PatchEffect = EffectMeasure()
"""Patching effect of a component over a query's pairs; see
:class:`~pyterrier_mechir.results.measures.EffectMeasure`."""

EffectConcentration = _EffectConcentration()
"""How few components carry the effect of a query's pairs (see :class:`_EffectConcentration`)."""
