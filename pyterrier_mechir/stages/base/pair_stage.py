"""What the stages that score minimal pairs have in common: from the rows of a frame to distinct pairs, and back."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.checks import check_batch_size, warn
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.perturb.base import Perturbation, as_perturbation
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.base import REDUCED, Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.results.frames import METADATA, PERTURBATION, as_cells, perturbed_side
from pyterrier_mechir.stages.base.checks import check_results, check_rows
from pyterrier_mechir.stages.base.effect_columns import ADDED, SLOT_UNITS, EffectColumns
from pyterrier_mechir.stages.base.measure import Measure
from pyterrier_mechir.stages.base.perturb_stage import perturbed
from pyterrier_mechir.stages.base.rows import AlignedRows, PairRows
from pyterrier_mechir.stages.base.stored_stage import StoredStage
from pyterrier_mechir.stages.base.unit_rows import check_units
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.positions import ALL

if TYPE_CHECKING:
    from pyterrier_mechir.patching.outcome import Calibration, SweepResult
    from pyterrier_mechir.patching.plan import Plan


POOR = 0.9
"""Estimates whose rank correlation with exact effects is lower are warned of."""


class PairStage(StoredStage):
    """Scores both sides of every minimal pair of a frame, and measures what its :attr:`measure` says.

    1. A frame without a perturbed side is perturbed (:meth:`perturbed`).
    2. The ranker scores the texts themselves: an ordinary re-ranking.
    3. The rows' pairs are read, and those whose sides are equal, or are not to be aligned, scored as they stand.
    4. The other pairs, each distinct one once, are aligned and swept (:mod:`~pyterrier_mechir.patching`).
    5. Results go back to the rows that have each pair, as columns.

    The arguments are those of :class:`~pyterrier_mechir.PairScorer`.
    """

    added = ADDED

    def __init__(
        self,
        ranker: Ranker,
        perturbation: Perturbation | None,
        filler: Filler | Sequence[Filler],
        text_field: str,
        batch_size: int | None,
        verbose: bool,
    ):
        self.ranker = document_ranker(ranker)
        self.perturbation = perturbation
        self.filler = filler
        self.text_field = text_field
        self.batch_size = check_batch_size(batch_size)
        self.verbose = verbose
        self._calibrations: list[Calibration] = []  # of the first frame; copies of the stage have the same list
        if not filler:
            raise ValueError('no filler given; name one, such as "a".')
        if perturbation is not None:
            as_perturbation(perturbation)

    @property
    @abstractmethod
    def measure(self) -> Measure:
        """What is measured."""

    @property
    def whole_frame(self) -> str:
        if self.measure.screen is None:
            return ""
        return (
            "a screened run verifies the best sites, or cells, of the whole frame, so it cannot be written in parts; "
            "leave screen out, or write its output with writer() after it"
        )

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a ranker is interpreted, not run as a stage."""
        return {}

    @as_alone()
    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score the pairs and rank the documents.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.

        Warns:
            UserWarning: texts that the perturbation left as they were, texts longer than the ranker takes, and patches
                that move no score.
        """
        inp, measure = self.perturbed(inp), self.measure
        pairs = PairRows.of(inp, self.text_field, self.n_units)
        _check_alignments(measure, pairs)
        scores = self.ranker.score(
            inp["query"].tolist(), inp[self.text_field].tolist(), batch_size=self.batch_size, verbose=self.verbose
        )
        columns, swept = self._scored(measure, pairs)
        if pairs.units is not None:
            columns[SLOT_UNITS] = as_cells([of_row.words for of_row in pairs.units])
        out = inp.drop(columns=ADDED, errors="ignore").assign(score=scores, **columns)
        made_by = inp.attrs.get(METADATA, {}).get(PERTURBATION)
        known = {} if made_by is None else {PERTURBATION: made_by}
        out.attrs = inp.attrs | {METADATA: known | self.about() | measure.told(swept)}
        return pt.model.add_ranks(out)

    @property
    def n_units(self) -> int:
        return self.measure.positions.n_units

    def prepared(self, inp: pd.DataFrame) -> pd.DataFrame:
        return self.perturbed(inp)

    def perturbed(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The input with its perturbed side, which ``perturbation`` makes where it has none.

        Raises:
            pt.validate.InputValidationError: a column is missing.
        """
        check_results(self, inp, self.text_field)
        if self.n_units:
            check_units(self, inp)
        if perturbed_side(inp, self.text_field) is not None:
            return inp
        check_rows(inp, ["query", self.text_field])
        return perturbed(inp, self.text_field, as_perturbation(self.perturbation or TFC1()).bind(self.ranker))

    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What decides the results, so that a run can be repeated.

        Args:
            fingerprint: as in ``Ranker.about``.

        Returns:
            ``ranker``, as ``Ranker.about`` says, and ``scorer``: the class and its settings.
        """
        unrelated = ("ranker", "perturbation", "batch_size", "verbose")
        settings = {
            attribute.name: _plain(attribute.value)
            for attribute in pt.inspect.transformer_attributes(self)
            if attribute.name not in unrelated
        }
        return {
            "ranker": self.ranker.about(fingerprint=fingerprint),
            "scorer": {"stage": type(self).__name__, **settings},
        }

    def _scored(self, measure: Measure, pairs: PairRows) -> tuple[dict[str, Any], SweepResult | None]:
        """The columns that scoring the pairs adds, and what was swept for them."""
        n = len(pairs.perturbed)
        changed = [i for i, text in enumerate(pairs.perturbed) if text is not None]
        same = [i for i in changed if pairs.perturbed[i] == pairs.baselines[i]]
        if same:
            warn(
                f"{len(same)} of {n} {'queries' if pairs.side == 'query' else 'documents'} are the same after the "
                "perturbation; their effects are missing.",
            )
        unaligned = [i for i in changed if pairs.alignments[i] == "free"] if not measure.sites.swept else []
        results = EffectColumns(n, measure.sites, measure.positions, measure.direction)
        for rows in (same, unaligned):
            if rows:
                self._warn_of_cut(pairs, rows)
                results.set_scores(
                    rows, *(self._unaligned(pairs, rows, side) for side in (pairs.baselines, pairs.perturbed))
                )
        rows = sorted(set(changed) - set(same) - set(unaligned))
        if not rows:
            return results.columns(measure.min_delta), None
        aligned, swept = self._swept(measure, pairs, rows)
        _warn_of_untouched(measure, swept)
        _warn_of_poor(swept)
        encoded = {i: pair for i, pair in enumerate(aligned.pairs[: aligned.n]) if pair is not None}
        places = dict(zip(encoded, range(len(encoded)), strict=True))
        found = {row: places[pair] for row, pair in aligned.places.items() if pair in places}
        results.set_sweep(list(found), list(found.values()), swept)
        if measure.positions != ALL:
            of_rows = {row: encoded[aligned.places[row]] for row in found}
            results.set_tokens(of_rows, self.ranker.tokenizer)
        return results.columns(measure.min_delta), swept

    def _swept(self, measure: Measure, pairs: PairRows, rows: list[int]) -> tuple[AlignedRows, SweepResult]:
        """The distinct pairs of some rows, and the results of those that could be encoded, averaged over fillers."""
        ranker = self._facing(measure, pairs.side)
        aligned = pairs.aligned(ranker, rows, self.filler)
        keyed = {pair.key(): pair for pair in aligned.pairs if pair is not None}
        places = dict(zip(keyed, range(len(keyed)), strict=True))
        distinct, plan = list(keyed.values()), measure.plan(measure.sites.patched, self.batch_size)
        with pt.tqdm(total=len(distinct), desc=repr(self.ranker), unit="pair", disable=not shown(self.verbose)) as bar:
            result = measure.run(ranker, aligned.contexts, distinct, plan, bar.update)
        if ranker.dtype in REDUCED and distinct:
            result = replace(result, calibration=self._calibrated(measure, result, ranker, aligned, plan))
        of_fillers = result.at([places[pair.key()] for pair in aligned.pairs if pair is not None])
        return aligned, of_fillers.mean_over(len(aligned.pairs) // aligned.n)

    def _facing(self, measure: Measure, side: str) -> Ranker:
        """The ranker with pairs that vary on a side."""
        ranker = self.ranker.facing(side)
        if measure.sites.swept and ranker.sites().shape != self.ranker.sites().shape:
            raise ValueError(
                f"{self!r} cannot patch queries: their encoder {ranker.short_name!r} has other layers, heads or "
                f"neurons than that of documents, {self.ranker.short_name!r}."
            )
        return ranker

    def _warn_of_cut(self, pairs: PairRows, rows: list[int]) -> None:
        """Say which of some pairs, scored as they stand, are cut, since their sides may then be equal."""
        texts = [[str(side[i]) for i in rows] for side in (pairs.baselines, pairs.perturbed)]
        contexts = [pairs.contexts[i] for i in rows]
        cut = [self.ranker.facing(pairs.side).cuts(contexts, of_side) for of_side in texts]
        n = int(np.logical_or(*cut).sum())
        if n:
            warn(
                f"{n} of {len(pairs.perturbed)} pairs are scored as they stand and are longer than the "
                f"{self.ranker.max_length} tokens that {self.ranker!r} takes, so that what was changed may be cut off.",
            )

    def _unaligned(self, pairs: PairRows, rows: list[int], side: Sequence[str | None]) -> np.ndarray:
        """Scores of one side of some pairs, as the texts stand."""
        contexts, texts = [pairs.contexts[i] for i in rows], [str(side[i]) for i in rows]
        queries, documents = (contexts, texts) if pairs.side == "document" else (texts, contexts)
        return self.ranker.score(queries, documents, batch_size=self.batch_size)

    def _calibrated(
        self, measure: Measure, result: SweepResult, ranker: Ranker, aligned: AlignedRows, plan: Plan
    ) -> Calibration:
        """How far what is computed in fewer bits is from float32, found out and told once."""
        if not self._calibrations:
            from pyterrier_mechir.patching.calibration import calibrated

            pairs = list({pair.key(): pair for pair in aligned.pairs if pair is not None}.values())
            self._calibrations.append(calibrated(result, measure.run, ranker, aligned.contexts, pairs, plan))
            warn(str(self._calibrations[0]))
        return self._calibrations[0]


def _check_alignments(measure: Measure, pairs: PairRows) -> None:
    if {"pattern", "cross_pattern"} & set(measure.sites.patched_components) and "mask" in pairs.alignments:
        raise ValueError(
            "attention weights cannot be patched in pairs of alignment 'mask': one side attends to positions that "
            "the other masks; patch heads' q, k, v or z, or use another perturbation."
        )


def _warn_of_untouched(measure: Measure, swept: SweepResult) -> None:
    if measure.sites.swept and swept.touched_nothing:
        warn(
            f"patching {', '.join(measure.sites.patched_components)} touched nothing: no patched score differs from "
            f"the unpatched one, in any of {len(swept.baseline)} pairs, though the two sides' scores do. What is "
            "patched is the same on both sides, or the score does not depend on it.",
        )


def _warn_of_poor(swept: SweepResult) -> None:
    if swept.screening is not None and swept.screening.spearman < POOR:
        warn(
            f"estimates that were not verified rank {swept.screening.n_sampled} sampled patches with a Spearman "
            f"correlation of {swept.screening.spearman:.2f} with exact ones; raise screen, or use method='exact'.",
        )


def _plain(value: Any) -> Any:
    """A setting as JSON holds it: itself, or else its repr without addresses."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
