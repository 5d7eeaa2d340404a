"""Results on disk: an artifact that other people can load, and that a run that died goes on with.

What scores and what draws lies above results; the two methods that look upwards import it when they are called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pyterrier_mechir.results.stored.store import Store

if TYPE_CHECKING:
    from pyterrier_mechir.stages.base.stored_stage import StoredStage
    from pyterrier_mechir.stages.results_writer import ResultsWriter


class PatchResults(Store):
    """Results of :class:`~pyterrier_mechir.PatchScorer` or :class:`~pyterrier_mechir.PairScorer` on disk.

    Results are written while they are computed, so that a run that died goes on where it was::

        results = PatchResults("tasb-tfc1")
        (bm25 >> PerturbDocs(TFC1()) >> results.writer(PatchScorer(tasb)))(topics)
        AggregateHeads(by=None)(results.frame())

    ``pt.Artifact.load``, ``from_hf``, ``to_hf``, ``to_zenodo`` and ``build_package`` share them with others.

    The directory has ``pt_meta.json`` (what was run: the ranker with its revision and a digest of its weights, the
    scorer's settings, the perturbation with its seed, the versions of the libraries) and ``shards/*.parquet``, which
    any reader of Parquet opens: a row per pair, as the scorer gave it, and ``pair_hash``, a digest of its query and
    texts. One artifact holds the results of one configuration.

    Args:
        path: the directory; it is made by what writes to it.

    Raises:
        ValueError: the directory holds something else.
    """

    def writer(self, scorer: StoredStage | None = None, *, shard_size: int = 256) -> ResultsWriter:
        """A stage that scores and writes, and does not score again what is written.

        Args:
            scorer: a :class:`~pyterrier_mechir.PatchScorer`, :class:`~pyterrier_mechir.PairScorer` or
                :class:`~pyterrier_mechir.AblationScorer`, in whose place the stage stands. None writes what comes in
                from a scorer before it, which then computes everything; a pipeline's ``compile()`` puts the scorer in.
            shard_size: pairs that are written together; what a run that is killed loses at most.
        """
        from pyterrier_mechir.stages.results_writer import ResultsWriter

        return ResultsWriter(self._directory, scorer, shard_size=shard_size)

    def report(
        self,
        path: str | Path = "report.html",
        *,
        qrels: pd.DataFrame | None = None,
        experiment: pd.DataFrame | None = None,
        examples: pd.DataFrame | PatchResults | None = None,
        title: str | None = None,
        ranking_effects: pd.DataFrame | None = None,
        words: pd.DataFrame | PatchResults | None = None,
    ) -> Path:
        """Write a report: one HTML page that needs no network.

        Args:
            path: of the page.
            qrels: judgments (``qid, docno, label``), for how effective the ranker is on these documents.
            experiment: a table of ``pt.Experiment`` to show in their place.
            examples: results of ``positions="each"`` for some of the pairs, whose effects colour the tokens of the
                example documents; as a frame or an artifact.
            title: of the page.
            ranking_effects: a frame of :class:`~pyterrier_mechir.RankingEffects`, for what the ranking can spare.
            words: results of :class:`~pyterrier_mechir.ExplainScore`, for the words behind scores; as a frame or an
                artifact. An artifact of such results needs none.

        Returns:
            The path.

        Raises:
            ValueError: there are no results, or a shard is damaged, and the message says which.
        """
        from pyterrier_mechir.plots.report import write_report

        tokens, explained = (of.frame() if isinstance(of, PatchResults) else of for of in (examples, words))
        return write_report(
            self.frame(),
            path,
            about=self.about,
            qrels=qrels,
            experiment=experiment,
            examples=tokens,
            title=title,
            ranking_effects=ranking_effects,
            words=explained,
        )
