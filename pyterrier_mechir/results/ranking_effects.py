"""What each component is worth to the ranking: the change of a measure without it, and whether that is more than noise.

Changes of a measure by single components are small beside what queries differ by. So the table comes with what says how
far it can be believed: how well the maps of halves of the queries agree, how large a change would have been found, what
shuffled judgments give, and what the components that look best on some queries do on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ir_measures import Measure, nDCG
from scipy.stats import t

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.results.aggregate import ranked_components, typed
from pyterrier_mechir.results.frames import METADATA
from pyterrier_mechir.results.ranking_verdicts import POWER, RANKING_EFFECTS
from pyterrier_mechir.results.rankings import (
    TIES,
    Rankings,
    check_rankings,
    checked_measures,
    checked_qrels,
    measured,
    read_rankings,
    shuffled,
)
from pyterrier_mechir.results.statistics import (
    adjusted,
    bootstrap,
    holm,
    least_p,
    random_halves,
    ratio,
    sign_flips,
    spearman,
)

STATISTICS = ["value", "ci_low", "ci_high", "p_value", "p_adjusted", "n_queries"]
"""The columns of numbers of the table."""

ADJUSTMENTS = {"holm": holm, "bh": adjusted}
CONTROLS = ("shuffled",)

_N_SHUFFLES, _N_SPLITS = 20, 200
_N_CHOSEN = 5
"""How many of the components that are best on some queries are followed to the others."""

_DETECTABLE = (
    "the mean change of one component that a two-sided t test at the level (1 - ci) / n_components finds with a power "
    f"of {POWER:g}, for the median standard error of the components that change anything; missing where no p-value can "
    "be that small"
)


class Options(NamedTuple):
    """How changes are judged: as for :class:`~pyterrier_mechir.RankingEffects`."""

    ci: float = 0.95
    n_boot: int = 1000
    n_flips: int | None = None
    adjust: str = "holm"
    control: str | None = None
    held_out: tuple[str, ...] | None = None
    seed: int = 0

    @property
    def alpha(self) -> float:
        """The level of tests."""
        return round(1 - self.ci, 12)

    def flips(self, n_components: int) -> int:
        """How many random flips of signs are drawn; by default as many as let an adjusted p be small."""
        return self.n_flips or max(10_000, min(200 * n_components, 50_000))


def checked_options(
    ci: float, n_boot: int, n_flips: int | None, adjust: str, control: str | None, held_out: Any, seed: int
) -> Options:
    """Options of :class:`~pyterrier_mechir.RankingEffects`.

    Raises:
        ValueError: an option is out of range, or unknown.
    """
    if not 0 < ci < 1:
        raise ValueError(f"ci is {ci}; give a coverage between 0 and 1, such as 0.95.")
    check_count("n_boot", n_boot, 0)
    if n_flips is not None:
        check_count("n_flips", n_flips)
    one_of("adjust", adjust, ADJUSTMENTS)
    if control is not None:
        one_of("control", control, CONTROLS)
    return Options(ci, n_boot, n_flips, adjust, control, _queries(held_out), seed)


def _queries(held_out: Any) -> tuple[str, ...] | None:
    """The ids of queries that are given, as by a frame of topics."""
    if held_out is None:
        return None
    if isinstance(held_out, pd.DataFrame):
        if "qid" not in held_out.columns:
            raise ValueError("held_out has no column 'qid'; give a frame of queries, or their ids.")
        held_out = held_out["qid"].unique()
    if isinstance(held_out, str) or not isinstance(held_out, Iterable):
        raise ValueError(f"held_out is {held_out!r}; give the ids of several queries, or a frame of them.")
    return tuple(dict.fromkeys(map(str, held_out)))


def ranking_effects(
    frame: pd.DataFrame,
    qrels: pd.DataFrame,
    measures: Measure | str | Sequence[Measure | str] = (nDCG @ 10,),
    *,
    ci: float = 0.95,
    n_boot: int = 1000,
    n_flips: int | None = None,
    adjust: str = "holm",
    control: str | None = None,
    held_out: Any = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The change of measures of a ranking by each component.

    Args:
        frame: with ``qid, docno, score, ablated_scores``, or of :class:`~pyterrier_mechir.PatchScorer`.
        qrels: as for :class:`~pyterrier_mechir.RankingEffects`, which says what is computed.
        measures: likewise.
        ci: likewise.
        n_boot: likewise.
        n_flips: likewise.
        adjust: likewise.
        control: likewise.
        held_out: likewise.
        seed: likewise.

    Returns:
        A row for each measure and component, as :class:`~pyterrier_mechir.RankingEffects` gives it.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: as for :class:`~pyterrier_mechir.RankingEffects`.
    """
    options = checked_options(ci, n_boot, n_flips, adjust, control, held_out, seed)
    listed, judgments = checked_measures(measures), checked_qrels(qrels)
    check_rankings(frame)
    if not len(frame):
        return typed(pd.DataFrame(), STATISTICS, ["measure"])
    every = read_rankings(frame)
    rankings = every.only(judgments["qid"])
    n_queries, n_all = len(rankings.queries), len(every.queries)
    if not n_queries:
        raise ValueError(
            f"none of the {n_all} queries is judged, so that nothing can be measured; see that the qid of the frame "
            f"({every.queries[0]!r}) and of the judgments ({judgments['qid'].iloc[0]!r}) are of one kind."
        )
    values = measured(rankings, judgments, listed)
    parts, summaries = [], []
    for measure, of_measure in zip(listed, values, strict=True):
        columns, summary = summarised(of_measure, options)
        names = {"qid": "all", "measure": str(measure), "n_queries": n_queries}
        parts.append(ranked_components(rankings.labels, names | columns))
        summaries.append({"measure": str(measure), **summary})
    extra = ["measure"] if rankings.labels[0][1] is None else ["slot", "measure"]
    made = typed(pd.concat(parts, ignore_index=True), STATISTICS, extra)
    relevant = set(judgments.loc[judgments["label"] > 0, "qid"])
    told: dict[str, Any] = {
        "n_queries": n_queries,
        "n_dropped": n_all - n_queries,
        "n_without_relevant": sum(query not in relevant for query in rankings.queries),
        "n_unpatched": rankings.n_unpatched,
        "n_components": len(rankings.labels),
        **{name: getattr(options, name) for name in ("ci", "alpha", "adjust", "n_boot", "seed")},
        "n_flips": options.flips(len(rankings.labels)),
        "ties": TIES,
        "detectable": _DETECTABLE,
        "measures": summaries,
    }
    if options.held_out is not None:
        told["held_out"] = _held_out(rankings, listed, values, options)
    if options.control is not None:
        told["control"] = _shuffled(rankings, judgments, listed, options)
    kept = {name: frame.attrs[METADATA][name] for name in ("ranker", "scorer") if name in frame.attrs.get(METADATA, {})}
    made.attrs = {METADATA: {**kept, RANKING_EFFECTS: told}}
    return made


def summarised(values: np.ndarray, options: Options) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The statistics of one measure.

    Args:
        values: of each query, ``[query, 1 + component]``, the ranking that is compared with first.
        options: how they are judged.

    Returns:
        The columns of the table, ``[component]`` each; and what is said of all components together: ``value``,
        ``ci_low``, ``ci_high`` (of the ranking that is compared with), ``spread`` (standard deviation of the changes
        over components), ``split_half`` (mean over random splits of Spearman's correlation, over components, of the
        maps of both halves of the queries), ``detectable``, ``least_p`` (the least adjusted p that one
        component alone can have) and ``n_significant``.
    """
    base, changes = values[:, :1], values[:, 1:] - values[:, :1]
    n, n_components = changes.shape
    means = values.mean(axis=0)
    columns = {"value": means[1:], "score": means[1:] - means[0], **_judged(changes, options)}
    low, high = _intervals(base, options)
    least = min(1.0, n_components * least_p(n, options.flips(n_components))) if options.n_boot else np.nan
    return columns, {
        "value": float(means[0]),
        "ci_low": float(low[0]),
        "ci_high": float(high[0]),
        "spread": float(columns["score"].std()),
        "split_half": _split_half(changes, options.seed),
        "detectable": detectable(changes, options.alpha) if least < options.alpha else np.nan,
        "least_p": float(least),
        "n_significant": int((columns["p_adjusted"] < options.alpha).sum()),
    }


def _judged(changes: np.ndarray, options: Options) -> dict[str, np.ndarray]:
    """Intervals and p-values of mean changes, from those of each query, ``[query, component]``."""
    low, high = _intervals(changes, options)
    p_value = np.full(changes.shape[1], np.nan)
    if options.n_boot:
        p_value = _p_values(changes, options)
    return {"ci_low": low, "ci_high": high, "p_value": p_value, "p_adjusted": ADJUSTMENTS[options.adjust](p_value)}


def _intervals(values: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    if not options.n_boot:
        missing = np.full(values.shape[1], np.nan)
        return missing, missing
    present = np.ones(values.shape, dtype=bool)
    estimator = ratio(values, present.astype(np.float64))
    return bootstrap(estimator, present, ci=options.ci, n_boot=options.n_boot, seed=options.seed)


def _p_values(changes: np.ndarray, options: Options) -> np.ndarray:
    present = np.ones(changes.shape, dtype=bool)
    return sign_flips(changes, present, n_flips=options.flips(changes.shape[1]), seed=options.seed)


def detectable(changes: np.ndarray, alpha: float) -> float:
    """The smallest mean change that could have been detected.

    It is that of one component which a two-sided t test over queries at the level alpha / components, the strictest
    step of Holm's and of Benjamini and Hochberg's procedure, finds with a power of :data:`POWER`, if its standard error
    is the median of those of the components that change anything.

    Args:
        changes: of each query, ``[query, component]``.
        alpha: the level after adjustment.

    Returns:
        The change, in units of the measure; missing where nothing changes, or of fewer than two queries.
    """
    n, n_components = changes.shape
    if n < 2:
        return float("nan")
    errors = changes.std(axis=0, ddof=1) / np.sqrt(n)
    errors = errors[errors > 1e-12]
    if not len(errors):
        return float("nan")
    steps = t.ppf(1 - alpha / (2 * n_components), n - 1) + t.ppf(POWER, n - 1)
    return float(np.median(errors) * steps)


def _split_half(changes: np.ndarray, seed: int) -> float:
    """How well the maps of random halves of the queries agree; missing of fewer than 4 queries, or 2 components."""
    n, n_components = changes.shape
    if n < 4 or n_components < 2:
        return float("nan")
    half = random_halves(n, n_splits=_N_SPLITS, seed=seed)
    first, second = (of.astype(np.float64) @ changes / of.sum(axis=1, keepdims=True) for of in (half, ~half))
    agreement = spearman(np.round(first, 12), np.round(second, 12))
    return float(np.nanmean(agreement)) if np.isfinite(agreement).any() else float("nan")


def _held_out(
    rankings: Rankings, measures: Sequence[Measure], values: np.ndarray, options: Options
) -> list[dict[str, Any]]:
    """What the components that are best on the queries that are not held out do on those that are."""
    held = np.isin(rankings.queries, options.held_out or ())
    n_held, n_others = int(held.sum()), int((~held).sum())
    if min(n_held, n_others) < 2:
        raise ValueError(
            f"held_out leaves {n_held} judged queries held out and {n_others} to choose by; each needs at least 2."
        )
    names = [site.name if slot is None else f"{site.name}@{slot}" for site, slot in rankings.labels]
    rows = []
    for measure, of_measure in zip(measures, values, strict=True):
        changes = of_measure[:, 1:] - of_measure[:, :1]
        by = changes[~held].mean(axis=0)
        chosen = np.argsort(-by, kind="stable")[:_N_CHOSEN]
        judged = _judged(changes[held][:, chosen], options)
        found = changes[held][:, chosen].mean(axis=0)
        rows += [
            {
                "measure": str(measure),
                "docno": names[component],
                "score_selection": float(by[component]),
                "score": float(found[place]),
                **{name: float(column[place]) for name, column in judged.items()},
                "n_selection": n_others,
                "n_queries": n_held,
            }
            for place, component in enumerate(chosen)
        ]
    return rows


def _shuffled(
    rankings: Rankings, qrels: pd.DataFrame, measures: Sequence[Measure], options: Options
) -> list[dict[str, Any]]:
    """How often a component is called significant by judgments that say nothing."""
    counts: list[list[int]] = [[] for _ in measures]
    spreads: list[list[float]] = [[] for _ in measures]
    for number in range(_N_SHUFFLES):
        rng = np.random.default_rng((options.seed, number))
        values = measured(rankings, shuffled(qrels, rankings, rng), measures)
        for place, of_measure in enumerate(values):
            changes = of_measure[:, 1:] - of_measure[:, :1]
            spreads[place].append(float(changes.mean(axis=0).std()))
            p_adjusted = ADJUSTMENTS[options.adjust](_p_values(changes, options))
            counts[place].append(int((p_adjusted < options.alpha).sum()))
    return [
        {
            "measure": str(measure),
            "judgments": "shuffled within the retrieved documents of each query",
            "n_seeds": _N_SHUFFLES,
            "n_seeds_significant": sum(count > 0 for count in of_seeds),
            "n_significant": of_seeds,
            "spread": float(np.mean(spread)),
        }
        for measure, of_seeds, spread in zip(measures, counts, spreads, strict=True)
    ]
