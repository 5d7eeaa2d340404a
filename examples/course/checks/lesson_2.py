"""Self-checks of lesson 2: minimal pairs and axioms."""

from __future__ import annotations

from typing import Any

import pandas as pd

from checks.verdicts import Verdict, answered, choice, exercise, looks_like, right, same, wrong

_MISSING = [
    ("The moon pulls the ocean.", "ocean tides", "The moon pulls the ocean. tides"),
    ("Ocean currents are slow.", "ocean tides", "Ocean currents are slow. tides"),
    ("Some rocks are oceanic.", "ocean tides", "Some rocks are oceanic. ocean tides"),
    ("The tides of an ocean.", "ocean tides", None),
    ("Rocks are hard.", "tides ocean", "Rocks are hard. tides ocean"),
    ("The ocean tides.", "Ocean tides", None),
    ("The ocean tides.", "ocean tides?", None),
]


@exercise("a perturbation, made with @perturbation of a function of text and query")
def missing_terms(answer: Any) -> Verdict:
    """2.1: a perturbation that appends the words of the query that a text lacks."""
    hints = {
        0: "Words end at punctuation: `ocean.` has the word `ocean`. Compare words without it.",
        1: "`Ocean` is the word `ocean`: compare words in lower case.",
        2: "`oceanic` is another word than `ocean`: compare whole words, not parts of the text.",
        3: "Where nothing is missing the perturbation does not apply: return `None`, so that the row is counted as "
        "left out.",
        4: "Words come in the order of the query.",
        5: "`Ocean` is the word `ocean` in a query, too: compare its words in lower case.",
        6: "`tides?` is the word `tides` in a query, too: compare its words without punctuation.",
    }
    for number, (text, query, expected) in enumerate(_MISSING):
        made = answered(answer(text, query))
        if made == expected:
            continue
        told = f"Of the text {text!r} and the query {query!r} it makes {made!r}, where {expected!r} is expected. "
        if isinstance(made, str) and not made.startswith(text):
            return wrong(told + "The text itself has to stay as it is: append to it.")
        return wrong(told + hints[number])
    return right("It changes one thing, leaves the text alone, and says where it does not apply.")


@exercise("one number")
def agreement_by_hand(answer: Any, scored: pd.DataFrame) -> Verdict:
    """2.2: the share of pairs whose score rises."""
    applies = scored["score_perturbed"].notna()
    rises = scored["score_perturbed"] > scored["score_baseline"]
    share = rises[applies].mean()
    if same(answer, share):
        return right(f"{applies.sum()} of {len(scored)} rows have a pair; the others say nothing, for or against.")
    against_text = (scored["score_perturbed"] > scored["score"])[applies].mean()
    mistakes = {
        "This counts the rows to which the axiom does not apply as if they disagreed; a comparison with a missing "
        "value is false. Leave them out.": rises.mean(),
        "Shares are from 0 to 1; this is in per cent.": 100 * share,
        "This is the share of pairs whose score does not rise.": 1 - share,
        "The other side of the pair is the *aligned baseline*, `score_baseline`. `score` is that of the text as it "
        "was retrieved, which is another length.": against_text,
    }
    return looks_like(answer, mistakes, "It is the mean, over the rows that have a pair, of perturbed above baseline.")


@exercise("one number")
def over_control(answer: Any, term: pd.DataFrame, control: pd.DataFrame) -> Verdict:
    """2.3: how far the term moves the score more than a random word as rare does."""
    moved = [(one["score_perturbed"] - one["score_baseline"]).groupby(one["qid"]).mean() for one in (term, control)]
    of_term, of_control = (float(one.mean()) for one in moved)
    over = float((moved[0] - moved[1]).mean())
    if same(answer, over):
        return right("What is left is of the term: place, length and filler are the same on both.")
    mistakes = {
        "This is the term by itself, which has the effect of the place and of the filler in it.": of_term,
        "This is the control by itself.": of_control,
        "The sign is turned round: it should be above 0 where the term does more than the random word.": -over,
        "This is a ratio; a control whose effect is near 0 makes it explode. Take the difference.": of_term
        / of_control,
    }
    otherwise = (
        "Take perturbed less baseline of both, the mean of each query, the difference, and its mean over queries."
    )
    return looks_like(answer, mistakes, otherwise)


@exercise("a letter")
def which_filler(answer: Any) -> Verdict:
    """2.4: what to report where changes depend on the filler."""
    return choice(
        answer,
        "d",
        {
            "a": "The greatest change is the filler that disturbs the model most; choosing it after the fact is "
            "choosing the result.",
            "b": "A convention makes results comparable, and does not make them true: [MASK] is no less of a choice.",
            "c": "Then the two sides differ in length, and with it in every position that follows and in all "
            "attention.",
            "d": "Term and control share the baseline, so it cancels out of their difference, and with it the filler. "
            "What is left compares the term with a random word.",
            "e": "The baseline cancels out, so any filler gives this number: three of them confirm nothing that one "
            "did not. Other queries would.",
        },
    )
