"""Self-checks of lesson 6: editing a ranker."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pandas as pd

from checks.verdicts import Verdict, exercise, number, right, same, wrong


def damaged(ranker: Any, head: str = "L0H1", factor: float = 20.0) -> Any:
    """A ranker with one bad head, in its weights, so that nothing but its behaviour tells which.

    Args:
        ranker: a ranker of Hugging Face.
        head: the name of the head that is spoilt.
        factor: what it writes is multiplied by this. Near 1 little is spoilt, and little can be found.
    """
    from pyterrier_mechir import CrossEncoder, Scale

    return CrossEncoder((ranker.edited([Scale(head, factor)]).bake(), ranker.tokenizer))


@exercise("the name of a head")
def harmful_head(answer: Any, effects: pd.DataFrame) -> Verdict:
    """6.1: the head without which the ranking of the training queries is best."""
    by_change = effects.sort_values("score", ascending=False)["docno"].tolist()
    if answer == by_change[0]:
        return right("Its change is the greatest of twelve on these queries. Whether it lasts, other queries say: 6.3.")
    if answer == by_change[-1]:
        return wrong(
            "Without this one the ranking is *worst*: it is the head that is needed most. `score` is the change "
            "without it."
        )
    if answer in by_change:
        return wrong(
            f"Number {by_change.index(answer) + 1} of {len(by_change)}: another one's absence does the ranking more "
            "good."
        )
    return wrong("There is no such head; names are those of the column `docno`.")


@exercise("a ranker, made by `broken.edited([...])`")
def repaired(answer: Any, broken: Any, candidates: pd.DataFrame, head: str) -> Verdict:
    """6.2: the broken ranker, without the head that does harm, by 6.1."""
    if answer is broken or not answer.edits:
        return wrong("This ranker has no edits; `edited` gives a new ranker and leaves the old one as it is.")
    few = candidates.head(20)
    queries, texts = few["query"].tolist(), few["text"].tolist()
    before, after = (np.asarray(ranker.score(queries, texts)) for ranker in (broken, answer))
    if np.abs(before - after).max() < 1e-6:
        return wrong("No score has changed: a factor of 1 leaves a head as it is; 0 switches it off.")
    edits = [edit for _, edit in answer.edits]
    sites = [edit.site for edit in edits]
    if sites != [head]:
        return wrong(
            f"It edits {', '.join(sites)}; edit only the head that you found in 6.1, or you cannot say what helped."
        )
    factor, by = (getattr(edits[0], name, None) for name in ("factor", "by"))
    if factor not in (None, 0):
        return wrong(f"A factor of {factor} leaves some of it; 0 switches the head off.")
    if factor is None and by != "zero":
        told = f" by {by!r}" if by else ""
        return wrong(
            f"With `{type(edits[0]).__name__}`{told} the head still writes something, its mean for instance. "
            "A factor of 0 leaves nothing."
        )
    return right("The old ranker is as it was; the new one stands in every pipeline.")


@exercise("three numbers: the change of nDCG@10 and the two ends of its interval")
def held_out_change(
    answer: Any, scored: pd.DataFrame, qrels: pd.DataFrame, train: Any, test: Any, head: str
) -> Verdict:
    """6.3: the change on queries that took no part in the choice."""
    from ir_measures import nDCG

    from pyterrier_mechir import RankingEffects

    def measured(qids: Any) -> tuple[float, float, float]:
        row = RankingEffects(qrels, [nDCG @ 10])(scored[scored["qid"].isin(qids)]).set_index("docno").loc[head]
        return float(row["score"]), float(row["ci_low"]), float(row["ci_high"])

    def near(one: float, other: float) -> bool:  # three digits, as tables of the lesson are rounded, are enough
        return abs(one - other) <= 6e-4

    given = tuple(map(number, answer))
    expected, of_train = measured(test), measured(train)
    if len(given) == 3 and all(map(near, given, expected)):
        above = "The interval excludes 0" if expected[1] > 0 else "The interval contains 0"
        return right(f"{above}, on queries that chose nothing, and one head was tested.")
    if near(given[0], of_train[0]):
        return wrong("That is the change on the queries that *chose* the head.")
    if near(given[0], measured([*train, *test])[0]):
        return wrong("All queries are in it, those that chose the head too.")
    if near(given[0], -expected[0]):
        return wrong("The sign is turned round: `score` is the ranking without the head less the one with it.")
    if len(given) == 3 and near(given[0], expected[0]):
        return wrong("The change is right; the interval is `ci_low` to `ci_high` of the same row.")
    return wrong("Take the rows of the test queries, apply `RankingEffects`, and read the row of the head.")


@exercise("the directory that `save_pretrained` gave")
def saved(answer: Any, mended: Any, broken: Any) -> Verdict:
    """6.4: a checkpoint that transformers loads and that scores as the repaired ranker does."""
    from pathlib import Path

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = Path(answer)
    if not (directory / "config.json").is_file():
        return wrong(f"There is no checkpoint in {directory.name!r}; `save_pretrained(directory)` writes one.")
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    query, text = "neap tides", "Neap tides are small, and spring tides are large."
    with torch.no_grad():
        score = float(model(**tokenizer(query, text, return_tensors="pt")).logits[0, 0])
    of_mended, of_broken = (float(ranker.score([query], [text])[0]) for ranker in (mended, broken))
    if same(score, of_mended, 1e-3):
        return right(f"{score:.4f} by transformers alone, {of_mended:.4f} by the repaired ranker.")
    if same(score, of_broken, 1e-3):
        return wrong("This checkpoint scores as the broken ranker does: you saved the one without the edit.")
    return wrong(f"It scores {score:.4f}, where the repaired ranker scores {of_mended:.4f}: another ranker was saved.")


def new_directory() -> str:
    """A path for a checkpoint, which does not exist yet."""
    return f"{tempfile.mkdtemp()}/checkpoint"
