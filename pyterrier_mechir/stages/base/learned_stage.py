"""What the stages have in common that learn from judgments, and then re-rank."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import combinations, starmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count, check_number, warn
from pyterrier_mechir.interventions.candidates import CUTOFF, Candidates, check_apart
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.patching.outcome import rank_correlation
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.learned import LearnedReport
from pyterrier_mechir.stages.base.checks import check_results, check_rows
from pyterrier_mechir.stages.base.text_stage import TextStage

if TYPE_CHECKING:
    from pyterrier_mechir.interventions.learning import Course, Setting

MIX = 0.3
"""What the first stage's score weighs in the mix that is the yardstick of a report."""


class LearnedStage(TextStage, pt.Estimator):
    """A re-ranker that learns numbers in a ranker from judged candidates.

    Args:
        ranker: a ranker.
        loss: ``listwise``, ``pairwise`` or ``distill``.
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
    """

    control: str
    """What the controls of a report are, in the plural."""

    def __init__(
        self,
        ranker: Ranker,
        *,
        loss: str,
        steps: int,
        lr: float,
        batch_queries: int,
        batch_docs: int | None,
        validate_every: int,
        seed: int,
        text_field: str,
        batch_size: int | None,
        verbose: bool,
    ):
        from pyterrier_mechir.interventions.losses import LOSSES

        super().__init__(ranker, text_field=text_field, batch_size=batch_size, verbose=verbose)
        self.loss = one_of("loss", loss, LOSSES)
        self.steps, self.batch_queries = check_count("steps", steps), check_count("batch_queries", batch_queries)
        self.batch_docs = None if batch_docs is None else check_count("batch_docs", batch_docs, 2)
        self.validate_every = check_count("validate_every", validate_every)
        self.lr, self.seed = check_number("lr", lr, above=0.0), seed
        self._learned: Ranker | None = None
        self._data: tuple[Candidates, Candidates, Any] | None = None
        self._seen = pd.DataFrame({"qid": [], "query": []})
        self._history = pd.DataFrame()
        self._temperature = np.nan

    @as_alone()
    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame | None,
        topics_or_res_va: pd.DataFrame | None,
        qrels_va: pd.DataFrame | None,
    ) -> Any:
        """Learn from the training queries, and keep the step that is best on the validation queries.

        Args:
            topics_or_res_tr: candidates with their texts: ``qid, query, docno, text``.
            qrels_tr: their judgments: ``qid, docno, label``. ``loss="distill"`` reads none.
            topics_or_res_va: candidates of other queries.
            qrels_va: their judgments; ``loss="distill"`` needs none.

        Warns:
            UserWarning: some queries have no judgments, or none that tell candidates apart, and are left out; or the
                ranker's scores tell next to nothing of the judgments.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: no query has judgments, a validation query is one of the training, or the loss diverges.
        """
        if topics_or_res_va is None:
            raise ValueError(f"{type(self).__name__} keeps the best step by validation queries; give fit() some.")
        is_distilled = self.loss == "distill"
        if not is_distilled and (qrels_tr is None or qrels_va is None):
            raise ValueError(f"loss={self.loss!r} needs judgments; give qrels, or loss='distill', which needs none.")
        for frame in (topics_or_res_tr, topics_or_res_va):
            check_results(self, frame, self.text_field)
            check_rows(frame, ["query", self.text_field])
        check_apart(topics_or_res_tr, topics_or_res_va, "validation queries are training queries too")
        train = Candidates.of(topics_or_res_tr, None if is_distilled else qrels_tr, self.text_field, "training")
        validation = Candidates.of(topics_or_res_va, qrels_va, self.text_field, "validation")
        train = train if is_distilled else train.that_teach()
        scores = [
            self.ranker.score(each.queries, each.texts, batch_size=self.batch_size) for each in (train, validation)
        ]
        self._data = train, validation, scores
        both = pd.concat([topics_or_res_tr[["qid", "query"]], topics_or_res_va[["qid", "query"]]])
        self._seen = both.drop_duplicates().reset_index(drop=True)
        given = self._fit(*self._data)
        if given.tells_nothing:
            warn(
                "the ranker's scores of the training candidates tell next to nothing of their judgments: by "
                f"{self.loss!r} they are {max(given.worth, 0.0):.1g} nats a query better than equal scores. Are these "
                "their judgments?"
            )
        return self

    def _fit(self, train: Candidates, validation: Candidates, scores: Any) -> Setting:
        """Learn, with the ranker's own scores of both known."""
        from pyterrier_mechir.interventions.learning import setting

        course = self._course()
        self._learned, self._history, self._temperature = None, pd.DataFrame(), np.nan
        given = setting(self.loss, train, validation, scores)
        self._learn(course, given)
        return given

    @abstractmethod
    def _learn(self, course: Course, given: Setting) -> None:
        """Learn, and :meth:`_keep` what was learned."""

    def _keep(self, ranker: Ranker, temperature: float, history: pd.DataFrame) -> None:
        self._learned, self._temperature, self._history = ranker, temperature, history

    def _holds_temperature(self) -> bool:
        """Whether the temperature stays as it is for the scores before anything is learned."""
        return False

    def _by_measure(self) -> bool:
        """Whether the best step is that of the best measure, and not of the least loss."""
        return self.loss != "distill"

    def _course(self) -> Course:
        from pyterrier_mechir.interventions.learning import Course

        return Course(
            self.loss,
            self.steps,
            self.lr,
            self.batch_queries,
            self.batch_docs,
            self.validate_every,
            self.seed,
            self._holds_temperature(),
            self._by_measure(),
            self.batch_size,
            type(self).__name__,
            self.verbose,
        )

    @property
    def learned(self) -> Ranker:
        """The ranker with what was learned: a ranker like any other.

        Raises:
            ValueError: nothing was learned yet.
        """
        if self._learned is None:
            raise ValueError(f"{self!r} has learned nothing yet; call fit() first, with candidates and judgments.")
        return self._learned

    @property
    def history(self) -> pd.DataFrame:
        """A row per step: ``step``, ``loss`` (of the step's queries, with the penalty), ``validation_loss`` (likewise),
        ``validation`` (nDCG@10) and ``temperature``. The two of the validation are missing where there was none. Of
        several stages, ``stage`` says which.

        Raises:
            ValueError: nothing was learned yet.
        """
        _ = self.learned
        return self._history

    @property
    def temperature(self) -> float:
        """What scores were divided by in the loss, as it was learned.

        Raises:
            ValueError: nothing was learned yet.
        """
        _ = self.learned
        return self._temperature

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        return {"score": self.learned.score(queries, texts, batch_size=self.batch_size, verbose=self.verbose)}

    def _key(self) -> tuple[Any, ...]:
        return (*super()._key(), self._learned)

    @as_alone()
    def _report(
        self,
        res: pd.DataFrame,
        qrels: pd.DataFrame,
        n_controls: int,
        n_shuffled: int,
        n_seeds: int,
        ci: float,
        n_boot: int,
    ) -> LearnedReport:
        learned = self.learned
        check_results(self, res, self.text_field)
        check_rows(res, ["query", self.text_field])
        check_apart(self._seen, res, "held-out queries were learned or validated on")
        held_out = Candidates.of(res, qrels, self.text_field, "held-out")
        notes: list[str] = []

        def measured(ranker: Ranker) -> pd.Series:
            return held_out.ndcg(ranker.score(held_out.queries, held_out.texts, batch_size=self.batch_size))

        own = self.ranker.score(held_out.queries, held_out.texts, batch_size=self.batch_size)
        values = {("unchanged", "unchanged"): held_out.ndcg(own), ("learned", "learned"): measured(learned)}
        for number, ranker in enumerate(self._controls(check_count("the number of controls", n_controls, 0)), 1):
            values["control", f"{self.control.split()[0]} {number}"] = measured(ranker)
        for number in range(1, check_count("n_shuffled", n_shuffled, 0) + 1):
            shuffled = None if self.loss == "distill" else self._shuffled(self.seed + number)
            if shuffled is not None:
                values["shuffled", f"shuffled judgments {number}"] = measured(shuffled.learned)
        if n_shuffled and self.loss == "distill":
            notes.append("Nothing was learned from judgments, so that there are none to shuffle.")
        others = [self._again(self.seed + number) for number in range(1, check_count("n_seeds", n_seeds, 0) + 1)]
        for number, other in enumerate(others, 1):
            values["seed", f"seed {self.seed + number}"] = measured(other.learned)
        if "score" in res.columns:
            first = res.set_index(["qid", "docno"])["score"].astype(np.float64)
            ids = pd.MultiIndex.from_arrays([held_out.qids, held_out.docnos])
            known = first.reindex(ids).to_numpy()
            if np.isfinite(known).all():
                mixed = _mixed(own.astype(np.float64), known, held_out.groups)
                values["mix", f"mix with the first stage ({MIX:g})"] = held_out.ndcg(mixed)
            else:
                notes.append("Some candidates have no score of the first stage, so that there is no mix with it.")
        return LearnedReport.of(
            values,
            f"nDCG@{CUTOFF}",
            self.control,
            agreement=_agreement([each._numbers() for each in (self, *others)]),
            notes=tuple(notes),
            ci=ci,
            n_boot=n_boot,
            seed=self.seed,
        )

    @abstractmethod
    def _controls(self, n: int) -> Iterator[Ranker]:
        """Rankers that have as much changed at random."""

    @abstractmethod
    def _numbers(self) -> np.ndarray:
        """What was learned, as numbers in one axis."""

    def _again(self, seed: int, **changes: Any) -> Any:
        """Another stage, fitted on the same candidates."""
        made = self._like(seed=seed, **changes)
        assert self._data is not None
        made._fit(*self._data)
        return made

    def _shuffled(self, seed: int) -> Any:
        """Another stage, fitted on judgments that are shuffled among the candidates of each query."""
        made = self._like()
        assert self._data is not None
        train, validation, scores = self._data
        made._fit(train.shuffled(seed), validation.shuffled(seed), scores)
        return made

    def _like(self, **changes: Any) -> Any:
        """Another stage with these settings, but for changes."""
        settings = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(self)}
        return type(self)(**{**settings, "verbose": False, **changes})


def _mixed(own: np.ndarray, first: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Two scores, each standardised within each query, in one."""
    out = np.empty(len(own))
    for rows in groups:
        parts = [(each - each.mean()) / (each.std() or 1.0) for each in (own[rows], first[rows])]
        out[rows] = (1 - MIX) * parts[0] + MIX * parts[1]
    return out


def _agreement(numbers: list[np.ndarray]) -> float:
    """The mean Spearman correlation of all pairs; missing where there are none, or where all numbers are the same."""
    found = [value for value in starmap(rank_correlation, combinations(numbers, 2)) if not np.isnan(value)]
    return float(np.mean(found)) if found else float("nan")
