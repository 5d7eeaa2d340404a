"""Self-checks of lesson 4: estimates, statistics, and how not to fool oneself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from checks.verdicts import Verdict, answered, exercise, looks_like, number, right, same, wrong


def _shifts(patched: pd.DataFrame, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """How far a head moves the score of each document, and how far the two sides are apart."""
    baseline = patched["score_baseline"].to_numpy(float)
    moved = np.stack(patched["patch_scores"])[:, layer, head] - baseline
    return moved, patched["score_perturbed"].to_numpy(float) - baseline


@exercise("one number")
def ratio_of_means(answer: Any, patched: pd.DataFrame, layer: int, head: int) -> Verdict:
    """4.1: the effect of a head over documents."""
    moved, apart = _shifts(patched, layer, head)
    is_kept = np.abs(apart) >= 1e-3  # the package's min_delta, unless another is asked for
    if same(answer, moved.mean() / apart.mean()):
        return right("Documents whose score hardly changes count little in it, as they should.")
    mistakes = {
        "This is the mean of each document's ratio: a few documents whose score hardly changes decide it. Divide "
        "means.": (moved / apart).mean(),
        "This is `mean_of_ratios`, which leaves out documents whose score changes by less than 0.001. With or without "
        "them, a few documents decide it. Divide means.": (moved / apart)[is_kept].mean(),
        "Upside down: what the patch moves, divided by what the perturbation moves.": apart.mean() / moved.mean(),
        "This is the mean change in score units; divide it by the mean change between the two sides.": moved.mean(),
        "This is the median of the ratios.": np.median(moved / apart),
        "The baseline is to be subtracted from the patched score, before anything is averaged.": (
            np.stack(patched["patch_scores"])[:, layer, head].mean() / apart.mean()
        ),
    }
    return looks_like(answer, mistakes, "mean(patched - baseline) / mean(perturbed - baseline).")


@exercise("a whole number")
def queries_needed(answer: Any, n_heads: int = 72, level: float = 0.05) -> Verdict:
    """4.2: how many queries it takes for one head of all to be significant."""

    def needed(tests: int, sides: int) -> int:
        queries = 1
        while sides / 2**queries * tests >= level:
            queries += 1
        return queries

    mistakes = {
        "That is enough for a single test. Many heads are looked at: multiply the p by their number.": needed(1, 2),
        "One-sided: all signs as they are, or all turned round, are two of the 2^n ways.": needed(n_heads, 1),
        "One-sided, and for one test only.": needed(1, 1),
    }
    given, enough = number(answer), needed(n_heads, 2)
    if given == enough:
        return right(
            f"2 / 2^{enough} times {n_heads} is below {level}. With fewer queries no head that stands alone is, "
            "however large its effect. (Several heads of equally small p help each other by Benjamini and Hochberg.)"
        )
    if math.ceil(given) == enough:
        return wrong("Round up: there are only whole queries, and with one fewer the p is too large.")
    otherwise = "The least p of n queries is 2 / 2^n; times the number of heads it is to be below the level."
    return looks_like(math.ceil(given), mistakes, otherwise)


@exercise("a function of moved, apart, choose and report that gives the number of a head, and its effect")
def chosen_and_reported(answer: Any) -> Verdict:
    """4.3: the best head of one half, measured on the other."""
    rng = np.random.default_rng(27)  # of which each way to choose that is told below finds another head
    moved = rng.normal(0.1, 1.0, (12, 30))
    apart = rng.uniform(0.05, 1.5, 12)
    choose, report = np.arange(0, 12, 2), np.arange(1, 12, 2)

    def effects(rows: Any) -> np.ndarray:
        found: np.ndarray = moved[rows].mean(0) / apart[rows].mean()
        return found

    made = answered(answer(moved.copy(), apart.copy(), choose, report))
    head, effect = int(made[0]), float(made[1])
    best = int(effects(choose).argmax())
    everywhere = int(effects(slice(None)).argmax())
    if head == best and same(effect, effects(report)[best]):
        return right("The queries that chose the head no longer speak for it.")
    if head == int((moved / apart[:, None])[choose].mean(0).argmax()):
        return wrong("The head is chosen by the mean of ratios. Divide means: mean(moved) / mean(apart) over `choose`.")
    if head == best and same(effect, effects(choose)[best]):
        return wrong(
            "The effect is of the queries that chose the head: the best of many is the best by luck, too (winner's "
            "curse)."
        )
    if head == int(effects(report).argmax()):
        return wrong(
            "The head is chosen on `report`: then these queries chose it, and can no longer be used to measure it."
        )
    if head == everywhere:
        return wrong("The head is chosen on all queries, so those it is measured on helped to choose it.")
    if head == best:
        return wrong(
            "The right head, but its effect on `report` is mean(moved) / mean(apart) over these queries alone."
        )
    return wrong("Choose the head with the greatest mean(moved) / mean(apart) over the rows `choose`, axis 0.")


_CLAIMS = {
    "a": (False, "Significant means other than 0. Whether two heads differ is another test, of their difference."),
    "b": (False, "No evidence of an effect is no evidence of none: look how far the interval reaches."),
    "c": (
        True,
        "Halves that agree by r make a whole of reliability 2r / (1 + r), here 0.75. Its root, 0.87, is about the most "
        "that any other map can reach.",
    ),
    "d": (False, "The strongest of many is measured too high on the queries that chose it; report it on others."),
    "e": (True, "Random heads, random words and shuffled judgments show what the method finds where nothing is."),
}


@exercise("True or False for each of the letters")
def which_claims(answer: Mapping[str, bool]) -> Verdict:
    """4.4: which claims hold."""
    if set(answer) != set(_CLAIMS):
        return wrong(f"Answer each of {', '.join(_CLAIMS)}.")
    missed = [letter for letter, (holds, _) in _CLAIMS.items() if bool(answer[letter]) != holds]
    if missed:
        return wrong(" ".join(f"({letter}) {_CLAIMS[letter][1]}" for letter in missed))
    return right("The other three are easily written below a head map, too.")
