"""Scoring both sides of minimal pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.stages.base.checks import check_results
from pyterrier_mechir.stages.base.measure import Measure
from pyterrier_mechir.stages.base.pair_stage import PairStage
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.stages.results_writer import Storing
from pyterrier_mechir.text.fillers import Filler

if TYPE_CHECKING:
    from pyterrier_mechir.patching.cost import Cost


class PairScorer(PairStage, Storing):
    """Scores both sides of every minimal pair, aligned as for patching, without patching anything.

    It tells how far a perturbation moves a ranker's score, at the cost of two forward passes a document; it is what
    :class:`~pyterrier_mechir.AxiomAgreement` measures.

    Expected input columns: ``qid, query, docno, text``, and ``text_perturbed`` or ``query_perturbed`` (without them
    ``perturbation`` is applied first) with, optionally, ``alignment`` and ``text_baseline`` or ``query_baseline``.

    Adds ``score`` and ``rank`` (the ranker's own, of the text: the output is an ordinary re-ranking), and
    ``score_baseline`` and ``score_perturbed``, which are missing where the perturbation does not apply. The sides of a
    perturbation of alignment ``free`` are scored as they stand. Missing alignments are ``fill``.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        perturbation: applied where the input has no perturbed text; :class:`~pyterrier_mechir.perturb.TFC1` by default.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        text_field: column of the document text.
        batch_size: documents that are scored together; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unusable option.
    """

    schematic: ClassVar = {"label": "PairScorer"}

    def __init__(
        self,
        ranker: Ranker,
        *,
        perturbation: Perturbation | None = None,
        filler: Filler | Sequence[Filler] = "a",
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        super().__init__(ranker, perturbation, filler, text_field, batch_size, verbose)

    @property
    def measure(self) -> Measure:
        """What is measured: the scores of both sides."""
        return Measure()

    def estimate(self, frame: pd.DataFrame, *, seconds: float = 10.0) -> Cost:
        """What scoring a frame will cost on this device, before it is paid.

        Some pairs of a sample are scored and patched to find out.

        Args:
            frame: what the stage would be given.
            seconds: about how long the probe may take; a single patch of a large model may take longer.

        Returns:
            Forward passes, tokens, seconds and memory (:class:`~pyterrier_mechir.patching.cost.Cost`); printed,
            one line.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        from pyterrier_mechir.patching.cost import SAMPLED_ROWS, Probe, estimated

        check_results(self, frame, self.text_field)
        sample = frame if len(frame) <= SAMPLED_ROWS else frame.sample(SAMPLED_ROWS, random_state=0)
        begin, measure = perf_counter(), self.measure
        made = PairRows.of(self.perturbed(sample), self.text_field, self.n_units)
        apart = [row for row, text in enumerate(made.perturbed) if text not in (None, made.baselines[row])]
        rows = [row for row in apart if made.alignments[row] != "free"]
        ranker = self._facing(measure, made.side) if rows else self.ranker
        aligned = made.aligned(ranker, rows, self.filler)
        of_texts = perf_counter() - begin
        pairs = list({pair.key(): pair for pair in aligned.pairs if pair is not None}.values())
        run = partial(measure.run, ranker, aligned.contexts)
        plans = measure.plans(self.batch_size)
        probes = [Probe(ranker, pairs, plan, is_exact, run) for is_exact, plan in plans.items()]
        return estimated(probes, len(sample), len(frame), of_texts, seconds)
