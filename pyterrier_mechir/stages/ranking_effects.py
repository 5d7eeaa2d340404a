"""What each component is worth to the ranking, as a pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt
from ir_measures import Measure, nDCG

from pyterrier_mechir.results.ranking_effects import checked_options, ranking_effects
from pyterrier_mechir.results.rankings import check_rankings, checked_measures, checked_qrels
from pyterrier_mechir.stages.base.keyed import Keyed


class RankingEffects(Keyed, pt.Transformer):
    """Measures how far each component changes the ranking: by how much nDCG, or any measure, differs without it.

    ``(bm25 >> AblationScorer(ranker) >> RankingEffects(qrels, [nDCG @ 10]))(topics)``. Single components of a good
    ranker change a measure by less than queries differ, so that most such maps are noise; the table comes with what
    tells. A notebook, and the report, say it in a sentence.

    Expected input columns: ``qid, docno, score, ablated_scores`` (the score of each document with a component ablated,
    an array over components), compared with the ranking by ``score``. Or those of
    :class:`~pyterrier_mechir.PatchScorer` that patches the score itself: ``qid, docno, score, score_baseline,
    score_perturbed, patch_scores``, compared with the ranking by the scores of the side that was patched (the baseline
    in the direction denoise); documents to which the perturbation did not apply keep their ``score``, and are counted.

    Output, one row per measure and component: ``qid`` (``"all"``), ``docno`` (the component's name), ``score`` (the
    change: ``value`` less the measure of the ranking that it is compared with; positive where the ranking is better
    without the component), ``rank`` (by ``score`` within the measure; equal ones in the order of the components),
    ``component``, ``layer``, ``head``, ``slot`` (only where positions are patched apart), ``measure``, ``value`` (the
    measure without the component), and

    - ``ci_low``, ``ci_high``: the interval of ``score``, by the bootstrap of queries of
      :class:`~pyterrier_mechir.AggregateHeads`;
    - ``p_value``: two-sided. H0: the change of a query is as likely to be of the opposite sign. Signs of queries are
      flipped, in all ways for up to 13 queries, else in ``n_flips`` random ones;
    - ``p_adjusted``: adjusted for the number of components, each measure by itself;
    - ``n_queries``: how many are judged. Others are left out, and counted in ``n_dropped``.

    Values are those of ir_measures, and those of ``pt.Experiment`` on a frame with the scores of one component.
    Documents that are judged but not retrieved count as there; queries that are judged but of which the frame has no
    document do not. A query whose documents are all judged irrelevant counts. Documents of equal score (as float32)
    stand in the reverse order of their ``docno``, as trec_eval has them, for every measure. One evaluator for each set
    of judgments reads the rankings of one component after the other, for every measure alike (73 rankings of 200
    queries with 50 documents: about .4 s).

    ``frame.attrs["mechir"]["ranking_effects"]`` has ``n_queries``, ``n_dropped``, ``n_without_relevant`` (queries that
    no measure of relevance can tell apart), ``n_unpatched``, ``n_components``, the options, and lists of dicts:

    - ``"measures"``, one for each: ``value``, ``ci_low``, ``ci_high`` of the ranking that is compared with; ``spread``,
      the standard deviation of the changes over components; ``split_half``, Spearman's correlation over components
      between the changes on random halves of the queries, the mean of 200 splits: near 0, the order of the components
      is noise; ``detectable``, the smallest change that could have been detected: that of one component which a
      two-sided t test over queries at the level (1 - ci) / components finds with a power of 80%, for the median
      standard error of the components that change anything; ``least_p``, the least adjusted p
      that one component alone can have; ``n_significant``, how many adjusted p are below 1 - ci.
    - ``"held_out"``: the five components of greatest change on the queries that are not held out, with this change
      (``score_selection``), and the one on the held-out queries (``score``) with its interval and p-values, adjusted
      for the five.
    - ``"control"``: with how many of 20 shuffles of the judgments a component was called significant
      (``n_seeds_significant``), how many in each (``n_significant``), and the mean ``spread``.

    Args:
        qrels: judgments: ``qid``, ``docno``, ``label``.
        measures: measures of ir_measures that are means over queries, or their names.
        ci: coverage of the intervals; 1 - ``ci`` is the level of the tests.
        n_boot: number of resamples; 0 leaves intervals and p-values missing.
        n_flips: number of random flips; by default 200 for each component, but at least 10,000 and at most 50,000.
        adjust: ``holm`` (Holm, 1979: the chance of calling any component significant that changes nothing is at most 1
            - ``ci``), or ``bh`` (Benjamini and Hochberg, 1995: so many of those called significant are expected to
            change nothing).
        control: ``shuffled`` repeats the tests with the judgments of each query's retrieved documents exchanged among
            these, never across queries; None does not.
        held_out: queries, as a list of ids or a frame of topics, that take no part in choosing the best components, and
            on which these are measured. The rows of the table are of all queries.
        seed: of the resampling, flips, splits and shuffles.

    Raises:
        ValueError: an option out of range or unknown; measures that are none, or no means; judgments that lack a
            column, are empty, judge a document twice, or whose labels are no whole numbers.
        TypeError: judgments that are no frame; a measure that is none.
    """

    schematic: ClassVar = {"label": "RankingEffects"}

    def __init__(
        self,
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
    ):
        options = checked_options(ci, n_boot, n_flips, adjust, control, held_out, seed)
        self.qrels = checked_qrels(qrels)
        self.measures = checked_measures(measures)
        self.ci = ci
        self.n_boot = n_boot
        self.n_flips = n_flips
        self.adjust = adjust
        self.control = control
        self.held_out = None if options.held_out is None else pd.DataFrame({"qid": options.held_out}, dtype="str")
        self.seed = seed

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Measure.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: no query is judged, or too few on one side of ``held_out``; a document that comes twice or has
                no score; patched scores of a metric or of single positions; a measure without a value for a query.
        """
        check_rankings(inp, self)
        return ranking_effects(
            inp,
            self.qrels,
            self.measures,
            ci=self.ci,
            n_boot=self.n_boot,
            n_flips=self.n_flips,
            adjust=self.adjust,
            control=self.control,
            held_out=self.held_out,
            seed=self.seed,
        )
