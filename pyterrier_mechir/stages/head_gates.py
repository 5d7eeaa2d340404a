"""Learning one number for each attention head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_number
from pyterrier_mechir.interventions.edited import edited
from pyterrier_mechir.interventions.edits import Scale
from pyterrier_mechir.interventions.gates import STAGES, Gates, edits_of, gate_frame
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.learned import LearnedReport
from pyterrier_mechir.stages.base.learned_stage import LearnedStage

if TYPE_CHECKING:
    from pyterrier_mechir.interventions.learning import Course, Learned, Setting

STRENGTHS = {"retention": 6.0, "removal": 1.0}
"""How many times ``l1`` gates are pulled, by where to."""


class HeadGates(LearnedStage):
    """Learns by which number to multiply the output z of each attention head, and then re-ranks with these gates.

    The weights of the ranker stay as they are. Gates begin at 1. A pull of ``l1`` keeps them there unless the loss
    speaks against a head (``pull="retention"``), or closes them unless the loss needs a head (``pull="removal"``). The
    loss is of scores over a temperature, which is learned: first that of the scores as they are, then along with the
    gates; where these are pulled towards 0, it is held, as both could shrink together. Of a bi-encoder, queries and
    documents are under the same gates; of monoT5, the heads are those of self-attention in the stack that is patched.

    Every few steps the validation queries are ranked, and the gates of the step of the greatest nDCG@10 are kept (of
    equal ones, that of the least loss); with ``loss="distill"``, ``pull="removal"`` or ``roles`` those of the least
    loss, pull included.

    ``fit(res_tr, qrels_tr, res_va, qrels_va)`` learns, also in a pipeline: ``(bm25 >> text >> HeadGates(...)).fit``.
    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank``.

    Args:
        ranker: a ranker, which may be edited already.
        l1: how hard gates are pulled: the mean distance of gates from where they are pulled to costs ``l1`` times what
            the ranker's scores are worth, which is by how much their loss is less than that of equal scores. With
            ``roles`` the same for both stages; without, ``retention`` pulls six times as hard, so that heads stay near
            1 of which a few steps tell nothing certain.
        loss: ``listwise`` (softmax over candidates against their judgments), ``pairwise`` (logistic), or ``distill``
            (towards the ranking of the ranker without gates; needs no judgments).
        pull: ``retention`` pulls gates towards 1, ``removal`` towards 0.
        max_gate: the greatest that a gate may become; the least is 0.
        steps: steps of Adam; with ``roles``, of each of three stages.
        lr: their rate.
        batch_queries: queries in a step.
        batch_docs: most candidates of a query in a step, at most half of them relevant where there are others; None
            for all.
        validate_every: steps from one validation to the next.
        roles: run the stages of causal head gating (Nam et al., NeurIPS 2025), with gates from 0 to 1: gates without
            a pull, and from these both with a pull towards 1 (retention) and towards 0 (removal). A head that is open
            after both is *facilitating*, one that is closed after both *interfering*, one that only the pull keeps
            open *irrelevant*. ``pull`` says which of the two stages ranks.
        seed: of what is drawn.
        text_field: column of the document text.
        batch_size: documents in a forward pass; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown option, or a number out of its range.
    """

    schematic: ClassVar = {"label": "HeadGates"}

    control = "permuted gates"

    def __init__(
        self,
        ranker: Ranker,
        *,
        l1: float = 0.5,
        loss: str = "listwise",
        pull: str = "retention",
        max_gate: float = 2.0,
        steps: int = 60,
        lr: float = 0.05,
        batch_queries: int = 8,
        batch_docs: int | None = 16,
        validate_every: int = 5,
        roles: bool = False,
        seed: int = 0,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
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
        self.l1, self.max_gate = check_number("l1", l1), check_number("max_gate", max_gate, above=0.0)
        self.pull, self.roles = one_of("pull", pull, STAGES), roles
        if self.max_gate < 1:
            raise ValueError(f"max_gate is {max_gate!r}; gates begin at 1, so give at least that.")
        self._gates = np.ones((0, 0))
        self._stages: dict[str, np.ndarray] = {}

    def _by_measure(self) -> bool:
        return super()._by_measure() and self.pull == "retention" and not self.roles

    @property
    def _strength(self) -> float:
        """How hard gates are pulled, in what the scores are worth."""
        return self.l1 * STRENGTHS["removal" if self.roles else self.pull]

    def _holds_temperature(self) -> bool:
        return self.pull == "removal" and not self.roles

    def _learn(self, course: Course, given: Setting) -> None:
        start = np.ones((self.ranker.n_layers, self.ranker.n_heads))
        if not self.roles:
            found = self._trained(course, given, start, self._strength, self.pull)
            self._gates, self._stages, history = found.numbers[0].numpy(), {}, found.history
        else:
            plain = self._trained(course, given, start, 0.0, "retention")
            start, given = plain.numbers[0].numpy(), replace(given, temperature=plain.temperature)
            held = replace(course, holds_temperature=True)
            stages = {stage: self._trained(held, given, start, self._strength, stage) for stage in STAGES}
            self._stages = {stage: each.numbers[0].numpy() for stage, each in stages.items()}
            self._gates, found = self._stages[self.pull], stages[self.pull]
            named = {"none": plain, **stages}
            history = pd.concat([each.history.assign(stage=stage) for stage, each in named.items()], ignore_index=True)
        self._keep(edited(self.ranker, edits_of(self._gates)), found.temperature, history)

    def _trained(self, course: Course, given: Setting, start: np.ndarray, l1: float, pull: str) -> Learned:
        from pyterrier_mechir.interventions.learning import learn

        bound = min(self.max_gate, 1.0) if self.roles else self.max_gate
        return learn(Gates(self.ranker, start, bound, l1, pull), course, given)

    @property
    def gates(self) -> pd.DataFrame:
        """A row per head: ``docno`` (``L3H4``), ``layer``, ``head``, ``gate``; with ``roles`` also ``retention`` and
        ``removal`` (the gates of both stages), ``facilitating``, ``interfering``, ``irrelevant`` (how far the head has
        each role, from 0 to 1) and ``role`` (the greatest of these).

        Raises:
            ValueError: nothing was learned yet.
        """
        _ = self.learned
        return gate_frame(self._gates, self._stages.get("retention"), self._stages.get("removal"))

    @property
    def edits(self) -> tuple[Scale, ...]:
        """The gates as edits, for ``ranker.edited``; gates of exactly 1 are left out.

        Raises:
            ValueError: nothing was learned yet.
        """
        _ = self.learned
        return edits_of(self._gates)

    def report(
        self,
        res: pd.DataFrame,
        qrels: pd.DataFrame,
        n_permuted: int = 20,
        *,
        n_shuffled: int = 1,
        n_seeds: int = 0,
        ci: float = 0.95,
        n_boot: int = 2000,
    ) -> LearnedReport:
        """What the gates change on held-out queries, beside what chance changes.

        Args:
            res: candidates of queries that were neither learned nor validated on. Where they have a ``score``, such as
                BM25's, a mix of it with the ranker's own (at .3, both standardised within each query) is the yardstick.
            qrels: their judgments.
            n_permuted: how many times the same gates are dealt to heads at random.
            n_shuffled: how many times gates are learned from judgments that are shuffled among each query's candidates.
            n_seeds: how many more seeds to learn with, to see whether they agree.
            ci: coverage of the intervals.
            n_boot: resamples of queries.

        Returns:
            The report; ``improves`` is true only if the interval is above 0 and at least 19 of 20 permuted gates, of
            at least 20, are beaten.

        Raises:
            ValueError: nothing was learned yet, or a query was learned or validated on.
        """
        return self._report(res, qrels, n_permuted, n_shuffled, n_seeds, ci, n_boot)

    def permuted(self, n: int) -> list[np.ndarray]:
        """The gates dealt to heads at random, ``n`` times ``[layer, head]``; the same for the same seed."""
        rng = np.random.default_rng([self.seed, 1])
        return [rng.permutation(self._gates.ravel()).reshape(self._gates.shape) for _ in range(n)]

    def _controls(self, n: int) -> Iterator[Ranker]:
        return (edited(self.ranker, edits_of(gates)) for gates in self.permuted(n))

    def _numbers(self) -> np.ndarray:
        return self._gates.ravel()

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), self._gates.tobytes())
