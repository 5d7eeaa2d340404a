"""Aggregating effects, as a pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.results.aggregate import aggregate, checked_estimators, needed_columns
from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.stages.base.keyed import Keyed


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
            queries under qid ``"all"``. Pairs whose value is missing are in no group; how many these are, if there are
            any, is in ``attrs["mechir"]["n_ungrouped"]``.
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
        estimators = checked_estimators(estimator, ci, n_boot, weights)
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
            ValueError: the arrays of the rows are not of one shape; a weight that is no number of 0 or more; a column
                that comes twice, or groups of one name.

        Warns:
            UserWarning: pairs that are in no group, since their value of ``by`` is missing.
        """
        check_columns(inp, needed_columns(self.by, self.weights), self)
        return aggregate(
            inp,
            by=self.by,
            estimator=self.estimator,
            ci=self.ci,
            n_boot=self.n_boot,
            seed=self.seed,
            weights=self.weights,
        )
