"""Scoring both sides of minimal pairs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.checks import check_batch_size
from pyterrier_mechir.models.sites import Site, Sites, SiteSet
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.plan import Method
from pyterrier_mechir.perturb.axioms.frequency import TFC1
from pyterrier_mechir.perturb.base import Perturbation, as_perturbation
from pyterrier_mechir.rankers.base import REDUCED, Ranker
from pyterrier_mechir.rankers.unwrap import check_ranker
from pyterrier_mechir.results.frames import METADATA, PERTURBATION
from pyterrier_mechir.stages.base.checks import check_results
from pyterrier_mechir.stages.base.effect_columns import ADDED, EffectColumns
from pyterrier_mechir.stages.base.keyed import Keyed
from pyterrier_mechir.stages.base.rows import MinimalPairs
from pyterrier_mechir.stages.perturb_docs import PerturbDocs
from pyterrier_mechir.text.fillers import Filler
from pyterrier_mechir.text.positions import ALL, Positions
from pyterrier_mechir.text.sequences import unique

if TYPE_CHECKING:
    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.patching.cost import Estimate
    from pyterrier_mechir.patching.metrics import Metric
    from pyterrier_mechir.patching.outcome import Calibration, SweepResult
    from pyterrier_mechir.stages.results_writer import ResultsWriter
    from pyterrier_mechir.text.encoding import AlignedPair


class PairScorer(Keyed, pt.Transformer):
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

    sites: Sites = Sites((), (0,), ())
    slots: Positions = ALL
    paths_to: tuple[Site, ...] = ()
    direction: str = "denoise"
    min_delta: float = 0.0
    method: Method = "exact"
    screen: int | None = None
    metric: Metric | None = None

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
        self.ranker = check_ranker(ranker)
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

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a ranker is interpreted, not run as a stage."""
        return {}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score the pairs and rank the documents.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.

        Warns:
            UserWarning: texts that the perturbation left as they were, texts longer than the ranker takes, and patches
                that move no score.
        """
        inp = self.perturbed(inp)
        pairs = MinimalPairs.of(inp, self.text_field)
        self._check_alignments(pairs)
        scores = self.ranker.score(
            inp["query"].tolist(), inp[self.text_field].tolist(), batch_size=self.batch_size, verbose=self.verbose
        )
        columns, swept = self._scored(pairs)
        out = inp.drop(columns=ADDED, errors="ignore").assign(score=scores, **columns)
        made_by = inp.attrs.get(METADATA, {}).get(PERTURBATION)
        known = {} if made_by is None else {PERTURBATION: made_by}
        out.attrs = inp.attrs | {METADATA: known | self.about() | self._metadata(swept)}
        return pt.model.add_ranks(out)

    def perturbed(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The input with its perturbed side, which ``perturbation`` makes where it has none.

        Raises:
            pt.validate.InputValidationError: a column is missing.
        """
        check_results(self, inp, self.text_field)
        if {f"{self.text_field}_perturbed", "query_perturbed"} & set(inp.columns):
            return inp
        perturb = PerturbDocs(self.perturbation or TFC1(), text_field=self.text_field, ranker=self.ranker)
        return perturb.transform(inp)

    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What decides the results, so that a run can be repeated.

        Args:
            fingerprint: as in :meth:`Ranker.about`.

        Returns:
            ``ranker``, as :meth:`Ranker.about` says, and ``scorer``: the class and its settings.
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

    def store(self, path: str | Path, *, shard_size: int = 256) -> ResultsWriter:
        """This stage with its results kept in a :class:`~pyterrier_mechir.PatchResults`, as they are computed.

        What the artifact holds is not computed again, so that a run that died goes on where it was.

        Args:
            path: directory of the artifact, which is made if it is not there.
            shard_size: pairs that are written together; what a run that is killed loses at most.

        Raises:
            ValueError: the stage screens, or ``path`` holds something else.
        """
        from pyterrier_mechir.stages.results_writer import ResultsWriter

        return ResultsWriter(path, self, shard_size=shard_size)

    def estimate(self, frame: pd.DataFrame, *, seconds: float = 10.0) -> Estimate:
        """What scoring a frame will cost on this device, before it is paid.

        Some pairs of a sample are scored and patched to find out.

        Args:
            frame: what the stage would be given.
            seconds: about how long the probe may take; a single patch of a large model may take longer.

        Returns:
            Forward passes, tokens, seconds and memory (:class:`~pyterrier_mechir.patching.cost.Estimate`); printed,
            one line.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        from pyterrier_mechir.patching.cost import SAMPLED_ROWS, Probe, estimated

        check_results(self, frame, self.text_field)
        part = frame if len(frame) <= SAMPLED_ROWS else frame.sample(SAMPLED_ROWS, random_state=0)
        begin = perf_counter()
        made = MinimalPairs.of(self.perturbed(part), self.text_field)
        apart = [made.key(row) for row, text in enumerate(made.perturbed) if text not in (None, made.baselines[row])]
        keys = unique([key for key in apart if key[3] != "free"])[0]
        ranker, contexts, aligned = self._aligned(keys, made.side) if keys else (self.ranker, [], [])
        of_texts = perf_counter() - begin
        pairs = list({pair.key(): pair for pair in aligned if pair is not None}.values())
        sites = [self.sites.sites[i] for i in self.sites.swept]
        n_ways = 2 if self.direction == "both" else 1
        run = partial(self._run, ranker, contexts)
        probe = Probe(ranker, pairs, sites, self.slots, n_ways, self.method == "exact", run)
        return estimated(probe, len(part), len(frame), of_texts, seconds)

    def _metadata(self, swept: SweepResult | None) -> dict[str, Any]:
        calibration = None if swept is None else swept.calibration
        return {} if calibration is None else {"calibration": asdict(calibration)}

    def _scored(self, pairs: MinimalPairs) -> tuple[dict[str, Any], SweepResult | None]:
        """The columns that scoring the pairs adds, and what was swept for them."""
        n = len(pairs.perturbed)
        changed = [i for i, text in enumerate(pairs.perturbed) if text is not None]
        same = [i for i in changed if pairs.perturbed[i] == pairs.baselines[i]]
        if same:
            warnings.warn(
                f"{len(same)} of {n} {'queries' if pairs.side == 'query' else 'documents'} are the same after the "
                "perturbation; their effects are missing.",
                stacklevel=4,
            )
        unaligned = [i for i in changed if pairs.alignments[i] == "free"] if not self.sites.swept else []
        results = EffectColumns(n, self.sites, self.slots, self.direction)
        for rows in (same, unaligned):
            if rows:
                self._warn_of_cut(pairs, rows)
                results.set_scores(
                    rows, *(self._unaligned(pairs, rows, side) for side in (pairs.baselines, pairs.perturbed))
                )
        rows = sorted(set(changed) - set(same) - set(unaligned))
        distinct, which = unique([pairs.key(i) for i in rows])
        swept = None
        if distinct:
            encoded, swept = self._sweep(distinct, pairs.side)
            if self.sites.swept and swept.touched_nothing:
                patched = dict.fromkeys(part.component for i in self.sites.swept for part in self.sites.sites[i].parts)
                warnings.warn(
                    f"patching {', '.join(patched)} touched nothing: no patched score differs from the unpatched one, "
                    f"in any of {len(swept.baseline)} pairs, though the two sides' scores do. What is patched is the "
                    "same on both sides, or the score does not depend on it.",
                    stacklevel=4,
                )
            place = dict(zip(encoded, range(len(encoded)), strict=True))
            found = [(row, place[pair]) for row, pair in zip(rows, which, strict=True) if pair in place]
            results.set_sweep([row for row, _ in found], [pair for _, pair in found], swept)
            if self.slots != ALL:
                aligned = list(encoded.values())
                results.set_tokens({row: aligned[pair] for row, pair in found}, self.ranker.tokenizer)
        return results.columns(self.min_delta), swept

    def _check_alignments(self, pairs: MinimalPairs) -> None:
        patched = {part.component for i in self.sites.swept for part in self.sites.sites[i].parts}
        if patched & {"pattern", "cross_pattern"} and "mask" in pairs.alignments:
            raise ValueError(
                "attention weights cannot be patched in pairs of alignment 'mask': one side attends to positions that "
                "the other masks; patch heads' q, k, v or z, or use another perturbation."
            )

    def _warn_of_cut(self, pairs: MinimalPairs, rows: list[int]) -> None:
        """Say which of some pairs, scored as they stand, are cut, since their sides may then be equal."""
        texts = [[str(side[i]) for i in rows] for side in (pairs.baselines, pairs.perturbed)]
        contexts = [pairs.contexts[i] for i in rows]
        cut = [self.ranker.facing(pairs.side).cuts(contexts, of_side) for of_side in texts]
        n = int(np.logical_or(*cut).sum())
        if n:
            warnings.warn(
                f"{n} of {len(pairs.perturbed)} pairs are scored as they stand and are longer than the "
                f"{self.ranker.max_length} tokens that {self.ranker!r} takes, so that what was changed may be cut off.",
                stacklevel=5,
            )

    def _unaligned(self, pairs: MinimalPairs, rows: list[int], side: Sequence[str | None]) -> np.ndarray:
        """Scores of one side of some pairs, as the texts stand."""
        contexts, texts = [pairs.contexts[i] for i in rows], [str(side[i]) for i in rows]
        queries, documents = (contexts, texts) if pairs.side == "document" else (texts, contexts)
        return self.ranker.score(queries, documents, batch_size=self.batch_size)

    def _aligned(
        self, keys: Sequence[tuple[str, str, str, str]], side: str
    ) -> tuple[Ranker, list[str], list[AlignedPair | None]]:
        """Encode distinct pairs: the ranker that scores them, their contexts, and the pairs, of each filler in turn."""
        ranker = self.ranker.facing(side)
        if self.sites.swept and ranker.sites().shape != self.ranker.sites().shape:
            raise ValueError(
                f"{self!r} cannot patch queries: their encoder {ranker.short_name!r} has other layers, heads or "
                f"neurons than that of documents, {self.ranker.short_name!r}."
            )
        contexts, baselines, perturbed, alignments = zip(*keys, strict=True)
        aligned = ranker.align(contexts, baselines, perturbed, alignments=alignments, filler=self.filler)
        return ranker, unique(contexts)[0], aligned

    def _run(
        self,
        ranker: Ranker,
        contexts: Sequence[str],
        pairs: Sequence[AlignedPair],
        sites: Sequence[Site | SiteSet],
        progress: Callable[[int], object] | None = None,
    ) -> SweepResult:
        """Sweep some pairs at some sites, and measure what is measured."""
        sweep = sweeper(self.method, self.screen, self.paths_to)
        inputs: Batch
        if self.metric is None:
            inputs = ranker.query_inputs(contexts)
        else:
            ranker, pairs, inputs = self.metric.observed(ranker, pairs, contexts)
        return sweep(ranker, pairs, inputs, sites, self.direction, self.batch_size, progress, self.slots)

    def _sweep(self, keys: list[tuple[str, str, str, str]], side: str) -> tuple[dict[int, AlignedPair], SweepResult]:
        """Sweep distinct pairs: those that could be encoded, and their results, averaged over fillers."""
        ranker, contexts, aligned = self._aligned(keys, side)
        encoded = {i: pair for i, pair in enumerate(aligned[: len(keys)]) if pair is not None}
        keyed = {pair.key(): pair for pair in aligned if pair is not None}
        places = dict(zip(keyed, range(len(keyed)), strict=True))
        pairs, sites = list(keyed.values()), [self.sites.sites[i] for i in self.sites.swept]
        with pt.tqdm(total=len(pairs), desc=repr(self.ranker), unit="pair", disable=not self.verbose) as bar:
            result = self._run(ranker, contexts, pairs, sites, bar.update)
        if ranker.dtype in REDUCED and pairs:
            result = replace(result, calibration=self._calibrated(result, ranker, contexts, pairs, sites))
        of_fillers = result.at([places[pair.key()] for pair in aligned if pair is not None])
        return encoded, of_fillers.mean_over(len(aligned) // len(keys))

    def _calibrated(self, result: SweepResult, ranker: Ranker, *swept: Any) -> Calibration:
        """How far what is computed in fewer bits is from float32, found out and told once."""
        if not self._calibrations:
            from pyterrier_mechir.patching.calibration import calibrated

            self._calibrations.append(calibrated(result, partial(self._run, ranker), ranker, *swept))
            warnings.warn(str(self._calibrations[0]), stacklevel=6)
        return self._calibrations[0]


def _plain(value: Any) -> Any:
    """A setting as JSON holds it: itself, or else its repr without addresses."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
