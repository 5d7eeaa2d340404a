"""Sweeps of any length: streamed, resumed, and on as many machines as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_batch_size
from pyterrier_mechir.progress import shown
from pyterrier_mechir.results.stored.artifact import PatchResults
from pyterrier_mechir.run.notes import Notes, heard
from pyterrier_mechir.run.source import Source, applied
from pyterrier_mechir.stages.base.perturb_stage import PerturbStage
from pyterrier_mechir.stages.base.stored_stage import StoredStage
from pyterrier_mechir.stages.results_writer import ResultsWriter

ENGINES = ("local", "ray")


def run_sweep(
    pipeline: pt.Transformer,
    frame: pd.DataFrame | Iterable[pd.DataFrame] | str | Path,
    out: str | Path,
    *,
    engine: str = "local",
    shard_size: int = 256,
    n_workers: int | None = None,
    verbose: bool = True,
) -> PatchResults:
    """Score pairs of any number and write the results, in memory that does not grow with the number.

    What the artifact holds is not computed again, whatever wrote it: a run that died goes on where it was when it is
    started again, with this engine or another.

    Args:
        pipeline: a :class:`~pyterrier_mechir.PatchScorer` or :class:`~pyterrier_mechir.PairScorer`, or a pipeline that
            ends with one, such as ``bm25 >> PerturbDocs(TFC1()) >> PatchScorer(ranker)``.
        frame: what the pipeline takes, topics or ``qid, query, docno, text``: a frame; an iterable of frames; or the
            path of a Parquet file, or of a directory of these. The pipeline is given some rows at a time: a frame is
            cut between queries (unless all stages work row by row), the frames of an iterable are taken as they come,
            files are read in pieces, whatever their queries. A stage that needs all documents of a query at once, such
            as a rank cutoff, therefore goes with topics or a frame.
        out: directory of the artifact, which is made if it is not there.
        engine: ``local`` (this process), or ``ray``: Ray Data puts the work on the workers of the cluster that Ray is
            connected to or ``RAY_ADDRESS`` names, else of one that it starts on this machine, one on each GPU if there
            are any. It needs ``pip install "pyterrier-mechir[ray]"``.
        shard_size: pairs that are computed and written together.
        n_workers: of ``ray``, each of which has a copy of the ranker; None takes one for each GPU, or for four cores.
        verbose: show a progress bar, with an estimate of the time that is left.

    Returns:
        The artifact; ``frame()`` reads the results with their ranks, ``shards()`` part by part.

    Raises:
        TypeError: the pipeline does not end with a scorer, or the frame is none of these.
        ValueError: an unusable option; the artifact holds results of another configuration, is being written by another
            run, or has a document with other texts; or a stage cannot be sent to workers.
        ImportError: Ray is not installed.

    Warns:
        UserWarning: all that the scorer warns of, once, at the end.
    """
    one_of("engine", engine, ENGINES)
    if n_workers is not None and (engine == "local" or n_workers < 1):
        raise ValueError(f"n_workers={n_workers} is of use for engine='ray' only, and at least 1; leave it out.")
    before, scorer = split(pipeline)
    writer = ResultsWriter(out, scorer, shard_size=check_batch_size(shard_size) or 256)
    by_row = all(isinstance(stage, PerturbStage) for stage in before)
    if by_row and isinstance(frame, pd.DataFrame) and len(frame):
        writer.check(frame)
    source = Source.of(frame, shard_size, by_row)
    notes = Notes()
    try:
        with pt.tqdm(
            desc=repr(scorer.ranker), unit="pair", total=source.n_pairs, smoothing=0, disable=not shown(verbose)
        ) as bar:
            if engine == "local":
                frames = (applied(before, block) for block in source.blocks)
                writer.stream(frames, _shown(bar), lambda: heard(notes.add))
            else:
                from pyterrier_mechir.run.on_ray import run_on_ray

                run_on_ray(writer, scorer, before, source, n_workers, notes.add, _shown(bar))
    finally:
        notes.tell()
    return PatchResults(out)


def split(pipeline: Any) -> tuple[list[pt.Transformer], StoredStage]:
    """The stages before a pipeline's scorer, and the scorer.

    Raises:
        TypeError: it does not end with a scorer.
    """
    stages = list(pipeline) if isinstance(pipeline, pt.Compose) else [pipeline]
    scorer = stages.pop()
    if not isinstance(scorer, StoredStage):
        raise TypeError(
            "the pipeline of a run should be or end with a PatchScorer, a PairScorer or an AblationScorer, not "
            f"{scorer!r}; what comes after it is for the results of the run."
        )
    return stages, scorer


def _shown(bar: Any) -> Callable[[int, int], None]:
    """Show on a bar how many pairs came, and leave those that were written already out of its estimate of time."""

    def show(n: int, n_written: int) -> None:
        if not bar.disable:
            bar.initial += n_written
            bar.update(n)

    return show
