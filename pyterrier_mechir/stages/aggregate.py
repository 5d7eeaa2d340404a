"""Effects of components over many documents: components as retrieved items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.results.estimates import ESTIMATORS, averaged, query_sums, usable
from pyterrier_mechir.results.pairs import COLUMNS, Label, Pairs, read_pairs
from pyterrier_mechir.results.statistics import adjusted, bootstrap, median, n_flips, over, sign_flips
from pyterrier_mechir.stages.inputs import Keyed

_IDENTITY = ["qid", "docno", "score", "rank", "component", "layer", "head"]
_STATISTICS = ["n_pairs", "n_skipped", "mean_delta", "ci_low", "ci_high", "p_value", "p_adjusted"]


def _estimated(pairs: Pairs, estimator: str, ci: float, n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """The columns of an estimate that are numbers, ``[site]`` each."""
    used = usable(pairs, estimator)
    sums = query_sums(pairs, estimator, used)
    estimate = sums.estimator
    if estimator == "median":
        estimate = median(np.where(used, averaged(pairs, estimator), np.nan), pairs.queries)
    score = estimate(np.arange(used.shape[1]))(np.ones((1, len(sums.weights))))[0]
    low = high = p_value = np.full(score.shape, np.nan)
    if n_boot:
        low, high = bootstrap(estimate, sums.present, ci=ci, n_boot=n_boot, seed=seed)
        p_value = sign_flips(sums.values, sums.present, n_flips=n_flips(n_boot, len(score)), seed=seed)
        p_value[~np.isfinite(score)] = np.nan
    return {
        "score": score,
        "n_pairs": used.sum(axis=0),
        "n_skipped": (~used).sum(axis=0),
        "mean_delta": over(sums.deltas.sum(axis=0), sums.weights.sum(axis=0)),
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "p_adjusted": adjusted(p_value),
    }


class AggregateHeads(Keyed, pt.Transformer):
    """Estimates the effect of every component over documents, and ranks the components by it.

    Expected input columns: those of :class:`~pyterrier_mechir.PatchScorer`'s output, of which it needs ``qid,
    score_baseline, score_perturbed, patch_scores, patch_effect`` and the column named by ``by``.

    Output, one row per group and component: ``qid`` (the group), ``docno`` (the component's name, ``L5H8`` or
    ``L5.mlp_out``), ``score`` (its effect), ``rank``, ``component``, ``layer``, ``head`` (missing for a layer-wide
    component), ``slot`` (the token class or position, only where these are patched apart; ``docno`` is then
    ``L5H8@EDIT``), ``estimator`` (only where several are asked for, each with its own ranking), ``n_pairs`` (pairs that
    the estimate used), ``n_skipped`` (pairs whose effects are missing or of weight 0), ``mean_delta`` (mean of
    s_p - s_b over the pairs used, in score units), and

    - ``ci_low``, ``ci_high``: the interval of ``score`` by a bootstrap of queries, which are drawn with all their
      pairs, since pairs of one query are not independent. Its percentiles allow for few queries (Hesterberg, 2015): in
      simulations, 95% intervals covered 92% of the time with 5 queries, 93% with 10, 95% with 100. Where
      ``mean_delta`` may well be 0, that of ``ratio_of_means`` means little.
    - ``p_value``: two-sided. H0: the sum over a query's pairs (of their moved scores; of their ratios for
      ``mean_of_ratios``; of the signs of their ratios for ``median``) is as likely to be of the opposite sign. Signs of
      queries are flipped, in all ways for up to 13 queries, else in random ones: ``n_boot``, or fifty per component
      (at most 10,000) if that is more, so that one component of many can be significant. No p of n queries is below
      2 / 2**n.
    - ``p_adjusted``: p-values adjusted for the components of the group by Benjamini and Hochberg (1995), each estimator
      by itself.

    These four are missing for components that fewer than two queries have. So they are where each query is a group of
    its own (the default): give ``by=None``, or a column with values that queries share, such as ``by="relevance"``.

    Args:
        by: the column whose values are the groups; ``"qid"`` gives one ranking of components per query, None pools all
            queries under qid ``"all"``.
        estimator: ``ratio_of_means`` = mean(moved score) / mean(s_p - s_b); ``mean_of_ratios``, the published one, is
            unstable where a denominator is near 0; ``median`` of the ratios, whose bootstrap is slow (its time grows
            with pairs, not with queries); ``difference``, the mean moved score in score units. ``mean_of_ratios`` and
            ``median`` leave out pairs below the scorer's ``min_delta``; the other two do not. A list gives a row for
            each. Of a scorer with ``direction="both"``, the denoise effects are aggregated.
        ci: coverage of the intervals, between 0 and 1.
        n_boot: number of resamples; 0 leaves intervals and p-values missing.
        seed: of the resampling. Each group is resampled by itself, whatever the others.
        weights: a column of weights of pairs in all means (not the median's), such as a grade or 1 / rank; pairs of
            weight 0 are left out.

    Raises:
        ValueError: an unknown estimator, or none; weights of a median; ``ci`` or ``n_boot`` out of range.
    """

    schematic: ClassVar = {"label": "AggregateHeads"}

    def __init__(
        self,
        *,
        by: str | None = "qid",
        estimator: str | Sequence[str] = "ratio_of_means",
        ci: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
        weights: str | None = None,
    ):
        estimators = [one_of("estimator", name, ESTIMATORS) for name in _listed(estimator)]
        if not estimators:
            raise ValueError(f"estimator is empty; give one of {', '.join(map(repr, ESTIMATORS))}, or several.")
        if weights is not None and "median" in estimators:
            raise ValueError("the median takes no weights; leave them out, or choose estimators that are means.")
        if not 0 < ci < 1:
            raise ValueError(f"ci is {ci}; give a coverage between 0 and 1, such as 0.95.")
        if n_boot < 0:
            raise ValueError(f"n_boot is {n_boot}; give the number of resamples, 0 for no intervals and p-values.")
        self.by = by
        self.estimator = estimator if isinstance(estimator, str) else estimators
        self.ci = ci
        self.n_boot = n_boot
        self.seed = seed
        self.weights = weights

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Aggregate.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: the arrays of the rows are not of one shape; a weight that is no number of 0 or more.
        """
        others = [column for column in (self.by, self.weights) if column not in (None, "qid")]
        pt.validate.columns(inp, includes=list(dict.fromkeys([*COLUMNS, *others])), context=self)
        extra = [] if isinstance(self.estimator, str) else ["estimator"]
        if not len(inp):
            return typed(pd.DataFrame(), _STATISTICS, extra)
        labels, pairs = read_pairs(inp, self.weights)
        swept = np.isfinite(pairs.moved).any(axis=0)
        if swept.any():
            labels, pairs = [label for label, kept in zip(labels, swept, strict=True) if kept], pairs.at_sites(swept)
        if self.by is None:
            groups: dict[Any, Any] = {"all": slice(None)}
        else:
            groups = inp.reset_index(drop=True).groupby(self.by, sort=False).indices
        parts = [
            self._aggregate(str(name), estimator, pairs.rows(rows), labels)
            for name, rows in groups.items()
            for estimator in _listed(self.estimator)
        ]
        extra = extra if labels[0][1] is None else ["slot", *extra]
        return typed(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), _STATISTICS, extra)

    def _aggregate(self, name: str, estimator: str, pairs: Pairs, labels: list[Label]) -> pd.DataFrame:
        estimated = _estimated(pairs, estimator, self.ci, self.n_boot, self.seed)
        return ranked_components(labels, {"qid": name, "estimator": estimator, **estimated})


def _listed(estimator: str | Sequence[str]) -> list[str]:
    return [estimator] if isinstance(estimator, str) else list(estimator)


def ranked_components(labels: list[Label], columns: dict[str, Any]) -> pd.DataFrame:
    """Components as retrieved items: a row each with its name and place, in the order of their ``score``.

    Args:
        labels: what each is.
        columns: other columns, ``score`` among them.
    """
    out = pd.DataFrame(
        {
            "docno": [site.name if slot is None else f"{site.name}@{slot}" for site, slot in labels],
            "component": [site.component for site, _ in labels],
            "layer": [site.layer for site, _ in labels],
            "head": [site.head for site, _ in labels],
            "slot": [slot for _, slot in labels],
            **columns,
        }
    )
    out = out.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return out.assign(rank=np.arange(len(out)))


def typed(frame: pd.DataFrame, statistics: Sequence[str], extra: Sequence[str] = ()) -> pd.DataFrame:
    """The columns of a frame of components in their order and types: its identity, more strings, and statistics."""
    kinds: dict[str, Any] = dict.fromkeys(["rank", "n_pairs", "n_skipped"], "int64") | {"head": "Int64"}
    kinds |= dict.fromkeys(["qid", "docno", "component", *extra], "str")
    columns = [*_IDENTITY, *extra, *statistics]
    frame = frame.reindex(columns=columns)
    kinds["layer"] = "Int64" if frame["layer"].isna().any() else "int64"
    return frame.astype({c: kinds.get(c, "float64") for c in columns})
