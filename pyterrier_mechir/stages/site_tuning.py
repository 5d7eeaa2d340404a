"""Learning the output weights of chosen sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from pyterrier_mechir.checks import check_number
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.learned import LearnedReport
from pyterrier_mechir.stages.base.learned_stage import LearnedStage

if TYPE_CHECKING:
    from pyterrier_mechir.interventions.learning import Course, Setting


class SiteTuning(LearnedStage):
    """Fine-tunes the output weights of some heads, neurons or MLPs alone, and then re-ranks with them.

    Of a head these are its columns of W_O, of an MLP all of the weights of its last map, of a neuron its column there.
    They are tuned in a copy of the model, all else in which is frozen; the ranker and its model stay as they are.
    What comes out, :attr:`learned`, is a ranker with an ordinary model:
    ``tuning.learned.model.save_pretrained(directory)``. Queries and documents of a bi-encoder share its weights;
    where queries have a model of their own, that of the documents is tuned.

    Losses, temperature and validation are as in :class:`~pyterrier_mechir.HeadGates`: the step of the greatest nDCG@10
    on the validation queries is kept, with ``loss="distill"`` that of the least loss.

    ``fit(res_tr, qrels_tr, res_va, qrels_va)`` learns, also in a pipeline. Expected input columns: ``qid, query, docno,
    text``. Adds ``score`` and ``rank``.

    Args:
        ranker: a ranker whose weights are float32 or float64.
        sites: names of sites: ``L3H4``, ``L3N17``, ``L5.mlp_out`` or ``L5.attn_out``.
        loss: as in :class:`~pyterrier_mechir.HeadGates`.
        l2: how hard weights are pulled back to what they were: a squared change as great as the squared weights, on the
            mean over sites, costs ``l2`` times what the ranker's scores are worth, as in
            :class:`~pyterrier_mechir.HeadGates`.
        steps: steps of Adam.
        lr: their rate.
        batch_queries: queries in a step.
        batch_docs: most candidates of a query in a step, at most half of them relevant where there are others; None
            for all.
        validate_every: steps from one validation to the next.
        seed: of what is drawn.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown option or site, a site without output weights, or two that share weights.
    """

    schematic: ClassVar = {"label": "SiteTuning"}

    control = "random sites"

    def __init__(
        self,
        ranker: Ranker,
        sites: Sequence[str],
        *,
        loss: str = "listwise",
        l2: float = 0.0,
        steps: int = 60,
        lr: float = 1e-3,
        batch_queries: int = 8,
        batch_docs: int | None = 16,
        validate_every: int = 5,
        seed: int = 0,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        from pyterrier_mechir.interventions.tuning import check_sites

        super().__init__(
            ranker,
            loss=loss,
            steps=steps,
            lr=lr,
            batch_queries=batch_queries,
            batch_docs=batch_docs,
            validate_every=validate_every,
            seed=seed,
            text_field=text_field,
            batch_size=batch_size,
            verbose=verbose,
        )
        self.sites, self.l2 = check_sites(self.ranker, sites), check_number("l2", l2)
        self._changes = np.empty(0)

    def _learn(self, course: Course, given: Setting) -> None:
        from pyterrier_mechir.interventions.learning import learn
        from pyterrier_mechir.interventions.tuning import Tuning

        tuning = Tuning(self.ranker, self.sites, self.l2)
        found = learn(tuning, course, given)
        self._changes = np.concatenate([number.cpu().double().numpy().ravel() for number in found.numbers])
        self._keep(tuning.finished(), found.temperature, found.history)

    def report(
        self,
        res: pd.DataFrame,
        qrels: pd.DataFrame,
        n_random: int = 20,
        *,
        n_shuffled: int = 1,
        n_seeds: int = 0,
        ci: float = 0.95,
        n_boot: int = 2000,
    ) -> LearnedReport:
        """What the tuned weights change on held-out queries, beside what tuning other sites changes.

        Args:
            res: as in :meth:`HeadGates.report <pyterrier_mechir.HeadGates.report>`.
            qrels: their judgments.
            n_random: how many random sets of as many sites of the same layers (of MLPs, of any layers) are tuned in the
                same way, no set twice; where there are not so many sets, as many as there are. Each takes as long as
                ``fit``.
            n_shuffled: as there.
            n_seeds: as there.
            ci: coverage of the intervals.
            n_boot: resamples of queries.

        Returns:
            The report; ``improves`` is true only if the interval is above 0 and at least 19 of 20 random sites, of at
            least 20, are beaten.

        Raises:
            ValueError: nothing was learned yet, a query was learned or validated on, or there are no other sites.
        """
        return self._report(res, qrels, n_random, n_shuffled, n_seeds, ci, n_boot)

    def _controls(self, n: int) -> Iterator[Ranker]:
        from pyterrier_mechir.interventions.tuning import random_sites

        rng = np.random.default_rng([self.seed, 1])
        for sites in random_sites(self.ranker, self.sites, n, rng) if n else ():
            yield self._again(self.seed, sites=sites).learned

    def _numbers(self) -> np.ndarray:
        return self._changes
