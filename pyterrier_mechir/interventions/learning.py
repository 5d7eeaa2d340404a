"""Learning numbers in a ranker by what they do to the ranking of candidates: the one loop, for gates and for weights.

1. The temperature is learned first: that at which the loss of the scores as they are is least. What that loss is less
   than the loss of equal scores is what the scores are worth, the unit of penalties.
2. Each step takes the candidates of some training queries, the gradient of a loss (:mod:`~.losses`) at the numbers
   (:mod:`~.pulled_back`), and a step of Adam. The temperature is learned along, unless numbers are pulled towards 0:
   then both could shrink together, to no effect on the ranking.
3. Every few steps the validation queries are ranked, and the numbers of the best step are kept. The ranker as it was is
   step 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor

from pyterrier_mechir.interventions.candidates import Candidates
from pyterrier_mechir.interventions.losses import calibrated, mean_loss, spread
from pyterrier_mechir.interventions.pulled_back import pulled_back
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.base import Ranker

LEAST_WORTH = 0.01
"""What scores are taken to be worth at least, in nats a query."""

HOTTEST = 1e6
"""By how much a temperature may differ from where it began, as a factor, before it counts as diverged."""


class Learner(Protocol):
    """Numbers in a ranker that are learned."""

    ranker: Ranker
    """The ranker, as the numbers have it."""
    numbers: list[Tensor]
    """What Adam changes."""
    leaves: list[Tensor]
    """What the model computes with: made of the numbers, and what gradients are taken at."""

    def put(self) -> None:
        """Have the model compute with the numbers as they are now, within their bounds."""

    def gradients(self, of_leaves: Sequence[Tensor]) -> list[Tensor]:
        """The gradients at the numbers, given those at the leaves."""

    def penalty(self) -> Tensor:
        """What is added to the loss, as a share of what the scores are worth."""


@dataclass(frozen=True)
class Course:
    """How numbers are learned.

    Args:
        loss: one of :data:`~pyterrier_mechir.interventions.losses.LOSSES`.
        steps: of Adam.
        lr: its rate.
        batch_queries: queries in a step.
        batch_docs: most candidates of a query in a step; None for all.
        validate_every: steps from one validation to the next.
        seed: of what is drawn.
        holds_temperature: whether the temperature stays where it begins.
        by_measure: whether the best step is that of the greatest nDCG@10; else of the least loss with its penalty.
        batch_size: sequences in a forward pass; None batches by length.
        told: what a progress bar and errors call it.
        verbose: whether to show the bar.
    """

    loss: str
    steps: int
    lr: float
    batch_queries: int
    batch_docs: int | None
    validate_every: int
    seed: int
    holds_temperature: bool
    by_measure: bool
    batch_size: int | None
    told: str
    verbose: bool


@dataclass(frozen=True)
class Task:
    """Candidates and what a loss wants of them.

    Args:
        candidates: the candidates.
        targets: gains, or a teacher's scores over its temperature, ``[row]``.
    """

    candidates: Candidates
    targets: np.ndarray


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Args:
        numbers: those of the best step.
        temperature: of that step.
        step: which it was.
        history: a row per step.
    """

    numbers: list[Tensor]
    temperature: float
    step: int
    history: pd.DataFrame


@dataclass(frozen=True)
class Setting:
    """What is learned from.

    Args:
        train: the training candidates.
        validation: the validation candidates.
        temperature: to begin with.
        worth: what the scores are worth: by how much their loss is less than that of equal scores, in nats a query.
    """

    train: Task
    validation: Task
    temperature: float
    worth: float

    @property
    def tells_nothing(self) -> bool:
        """Whether the scores tell next to nothing of what is wanted of them."""
        return self.worth < LEAST_WORTH

    @property
    def unit(self) -> float:
        """What penalties are counted in."""
        return max(self.worth, LEAST_WORTH)


def setting(loss: str, train: Candidates, validation: Candidates, scores: Sequence[np.ndarray]) -> Setting:
    """What is learned from.

    Args:
        loss: one of :data:`~pyterrier_mechir.interventions.losses.LOSSES`.
        train: the training candidates.
        validation: the validation candidates.
        scores: the ranker's scores of these two, before anything is learned.
    """
    known = [np.asarray(each, dtype=np.float64) for each in scores]
    width = spread(known[0], train.groups)
    targets = [each / width for each in known] if loss == "distill" else [train.gains, validation.gains]
    temperature, worth = calibrated(loss, known[0], targets[0], train.groups, width)
    first = width if loss == "distill" else temperature
    return Setting(Task(train, targets[0]), Task(validation, targets[1]), first, worth)


def learn(learner: Learner, course: Course, given: Setting) -> Learned:
    """Learn the numbers.

    Args:
        learner: the numbers.
        course: how.
        given: from what.

    Raises:
        ValueError: scores, loss or temperature diverge.
    """
    rng = np.random.default_rng(course.seed)
    train, heat = given.train, torch.tensor(np.log(given.temperature), dtype=torch.float64)
    heat.requires_grad_(not course.holds_temperature)
    adam = torch.optim.Adam([*learner.numbers, *([] if course.holds_temperature else [heat])], lr=course.lr, eps=1e-6)
    order: list[int] = []
    best = _validated(learner, course, given, heat, 0)
    rows = [best.row]
    for step in pt.tqdm(range(1, course.steps + 1), desc=course.told, unit="step", disable=not shown(course.verbose)):
        if not order:
            order = rng.permutation(len(train.candidates.groups)).tolist()
        which, order = order[: course.batch_queries], order[course.batch_queries :]
        drawn = train.candidates.drawn(rng, np.array(which), course.batch_docs)
        loss = _stepped(learner, course, given, drawn, heat, adam, step)
        _check(step, course, loss, heat, given.temperature)
        row: dict[str, Any] = {"step": step, "temperature": float(heat.detach().exp())}
        if step % course.validate_every == 0 or step == course.steps:
            now = _validated(learner, course, given, heat, step)
            best, row = max(best, now, key=lambda one: one.key), now.row
        rows.append(row | {"loss": loss})
    names = ["step", "loss", "validation_loss", "validation", "temperature"]
    history = pd.DataFrame(rows).reindex(columns=names)
    with torch.no_grad():
        for number, kept in zip(learner.numbers, best.numbers, strict=True):
            number.copy_(kept)
    learner.put()
    return Learned(best.numbers, best.row["temperature"], best.row["step"], history)


def _stepped(
    learner: Learner, course: Course, given: Setting, drawn: np.ndarray, heat: Tensor, adam: Any, step: int
) -> float:
    """Take one step; the loss before it."""
    queries, texts, groups = given.train.candidates.take(drawn)
    scores = torch.from_numpy(_scores(learner, course, queries, texts, step)).requires_grad_()
    adam.zero_grad()
    loss = mean_loss(course.loss, scores, given.train.targets[drawn], groups, heat)
    whole = loss + given.unit * learner.penalty().to(loss)
    whole.backward()
    assert scores.grad is not None
    of_leaves = pulled_back(learner.ranker, learner.leaves, queries, texts, scores.grad, course.batch_size)
    for number, gradient in zip(learner.numbers, learner.gradients(of_leaves), strict=True):
        number.grad = gradient.to(number) if number.grad is None else number.grad + gradient.to(number)
    adam.step()
    learner.put()
    return float(whole.detach())


@dataclass(frozen=True)
class _Validated:
    key: tuple[float, ...]
    numbers: list[Tensor]
    row: dict[str, Any]


def _validated(learner: Learner, course: Course, given: Setting, heat: Tensor, step: int) -> _Validated:
    """How well the validation queries are ranked."""
    task, found = given.validation, given.validation.candidates
    scores = _scores(learner, course, found.queries, found.texts, step)
    groups = found.groups
    if course.loss != "distill":
        groups = [rows for rows in groups if found.gains[rows].max() > found.gains[rows].min()]
    with torch.no_grad():
        penalty = given.unit * float(learner.penalty())
        loss = np.nan
        if groups:
            loss = float(mean_loss(course.loss, torch.from_numpy(scores), task.targets, groups, heat)) + penalty
    measured = float(found.ndcg(scores).mean()) if found.qrels is not None else np.nan
    objective = -np.nan_to_num(loss, nan=penalty)
    return _Validated(
        (measured, objective) if course.by_measure else (objective,),
        [number.detach().clone() for number in learner.numbers],
        {"step": step, "validation_loss": loss, "validation": measured, "temperature": float(heat.detach().exp())},
    )


def _scores(learner: Learner, course: Course, queries: list[str], texts: list[str], step: int) -> np.ndarray:
    try:
        return learner.ranker.score(queries, texts, batch_size=course.batch_size).astype(np.float64)
    except ValueError as error:
        if not step:
            raise
        raise ValueError(
            f"{course.told} diverged: at step {step} {error} Give a smaller lr than {course.lr:g}."
        ) from error


def _check(step: int, course: Course, loss: float, heat: Tensor, began: float) -> None:
    temperature = float(heat.detach().exp())
    is_far = not np.isfinite(temperature) or not 1 / HOTTEST < temperature / began < HOTTEST
    if is_far or not np.isfinite(loss):
        what = f"the temperature, which began at {began:.3g}, is {temperature:.3g}" if is_far else f"the loss is {loss}"
        raise ValueError(f"{course.told} diverged: at step {step} {what}; give a smaller lr than {course.lr:g}.")
