"""Self-checks of the course, one for each exercise: what is wrong with an answer, and not only that it is.

A cell of a notebook ends with the check of its answer, and shows the verdict. What the checks compare with is computed
from the notebook's own frames, so that they go with other queries, collections and rankers too.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from functools import wraps
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd


class Verdict(NamedTuple):
    """What a check says.

    Args:
        state: ``right``, ``wrong``, or ``open`` where there is no answer yet.
        message: what the answer shows, or which mistake it looks like.
    """

    state: str
    message: str

    def _repr_markdown_(self) -> str:
        return {"right": "**Right.** ", "wrong": "**Not yet.** ", "open": ""}[self.state] + self.message


OPEN = Verdict("open", "Not answered yet: put your answer in the place of `...`.")


def right(message: str) -> Verdict:
    return Verdict("right", message)


def wrong(message: str) -> Verdict:
    return Verdict("wrong", message)


def exercise(expected: str) -> Callable[[Callable[..., Verdict]], Callable[..., Verdict]]:
    """Makes a check, of one or several answers, one that notices when there is none.

    Args:
        expected: what the answer should be, in words.
    """

    def checked(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
        @wraps(check)
        def verdict(*given: Any) -> Verdict:
            answers = [one for part in given for one in (part.values() if isinstance(part, Mapping) else [part])]
            if any(answer is ... for answer in answers):
                return OPEN
            try:
                return check(*given)
            except Unanswered:
                return OPEN
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                kind = type(given[0]).__name__
                return wrong(f"Expected is {expected}; this is of the type {kind}, and cannot be checked: {error}.")

        return verdict

    return checked


class Unanswered(Exception):
    """A function of the student gives ``...``."""


def answered(value: Any) -> Any:
    if value is ...:
        raise Unanswered
    return value


def same(one: Any, other: Any, tolerance: float = 1e-3) -> bool:
    """Whether two numbers are the same, or within a share of the second one."""
    return bool(abs(float(one) - float(other)) <= tolerance * max(abs(float(other)), 1e-9))


def looks_like(answer: Any, mistakes: Mapping[str, Any], otherwise: str) -> Verdict:
    """The mistake whose number an answer is."""
    found = [message for message, number in mistakes.items() if same(answer, number)]
    return wrong(found[0] if found else otherwise)


def choice(answer: Any, correct: str, because: Mapping[str, str]) -> Verdict:
    """The verdict on one letter of several, each of which has what is to be said of it."""
    letter = str(answer).strip().lower()
    if letter not in because:
        return wrong(f"Choose one of the letters {', '.join(because)}.")
    return right(because[letter]) if letter == correct else wrong(because[letter])


# Lesson 1: a ranker opened.


@exercise("the vector that one head gives at one position")
def output_of_head(answer: Any, cache: Any, tokens: list[str]) -> Verdict:
    """1.1: what head L1H2 gives at the first `tides`."""
    vector = np.asarray(answer.detach() if hasattr(answer, "detach") else answer, dtype=float)
    heads = np.asarray(cache["z", 1][0].detach(), dtype=float)
    place, (n_positions, n_heads, width) = tokens.index("tides"), heads.shape
    if vector.shape != (width,):
        return wrong(
            f"A head gives {width} numbers at a position; this has the shape {vector.shape}. The axes of `cache['z', "
            "1]` are text, position, head and number: choose one of each of the first three."
        )
    if np.allclose(vector, heads[place, 2], atol=1e-6):
        return right("The axes are text, position, head, number. Patching puts another run's numbers in this place.")
    for position in range(n_positions):
        for head in range(n_heads):
            if np.allclose(vector, heads[position, head], atol=1e-6):
                return wrong(
                    f"This is L1H{head} at position {position} (`{tokens[position]}`); asked is L1H2 at the first "
                    "`tides`, the one of the query. Positions and heads are counted from 0."
                )
    return wrong("These numbers are of no head of layer 1 at any position; is it layer 1 of `z` that you took?")


def _most(attention: np.ndarray, classes: list[str], of: str, to: str) -> set[str]:
    """The heads that give the most attention from one class to another, within a hundredth of it."""
    weights = np.nan_to_num(attention[:, :, classes.index(of), classes.index(to)])
    places = np.argwhere(weights >= 0.99 * weights.max())
    return {f"L{layer}H{head}" for layer, head in places}


@exercise("a set of names of heads, such as {'L0H1'}")
def lookers(answer: Any, attention: np.ndarray, classes: list[str]) -> Verdict:
    """1.2: the heads that look most from the query's words to the same words of the document."""
    if np.ndim(answer) == 0 and not isinstance(answer, (str, set, frozenset)):
        return wrong("`argmax` gives one place, counted through the whole table. Give names, such as `{'L0H3'}`.")
    given = {answer} if isinstance(answer, str) else set(answer)
    found = _most(attention, classes, "Q-", "D-")
    if given == found:
        return right(f"{' and '.join(sorted(found))} cannot be told apart by where they look.")
    if not all(isinstance(name, str) for name in given):
        return wrong("Give names, such as `'L0H1'`, in the place of numbers.")
    if given and given < found:
        return wrong("It has a twin: another head gives as much. `max` shows the first of equal ones only.")
    if given == _most(attention, classes, "D-", "Q-"):
        return wrong("That is the other direction, from the document to the query. Rows attend to columns.")
    if given == _most(attention, classes, "Q-", "OTHER"):
        return wrong("`OTHER` are words of the document that are not in the query; `D-` are those that are.")
    return wrong("Take `attention[:, :, row, column]` of `Q-` and `D-`, and look for its greatest values.")


@exercise("the number of a layer")
def settled_layer(answer: Any, agreement: pd.DataFrame) -> Verdict:
    """1.3: the first layer after which three quarters of the pairs of documents stand in the final order."""
    tau = agreement.set_index("layer")["tau"]

    def first(share: pd.Series) -> int:
        below = share.index[~(share > 0.75)]
        return int(below.max()) + 1 if len(below) else int(share.index.min())

    layer, as_share = first((1 + tau) / 2), first(tau)
    if int(answer) == layer:
        return right(
            "tau is the share of pairs in the same order less that of the others, so the share is (1 + tau) / 2."
        )
    if int(answer) == as_share:
        return wrong("tau itself is no share of pairs: it runs from -1 to 1, and 0 is a coin's toss.")
    if int(answer) == layer - 1:
        return wrong(
            "Off by one: the row `layer` l is the stream that *enters* layer l, the last row what leaves the last."
        )
    return wrong(
        "Turn each tau into the share of pairs in the same order; from which row on is it above three quarters?"
    )


@exercise("a letter")
def what_attention_says(answer: Any) -> Verdict:
    """1.4: what follows from where heads look."""
    return choice(
        answer,
        "c",
        {
            "a": "Equal patterns, but what a head *writes*, and who reads it, is not in the pattern.",
            "b": "It need not be even one: a head may look at the match while another way makes the score.",
            "c": "Where a head looks is an observation; what the score needs, only an intervention can say (lesson 3).",
            "d": "The lens told when the ranking can be *read*; the heads of layer 1 may well have prepared it.",
        },
    )


# Lesson 2: minimal pairs and axioms.

_MISSING = [
    ("The moon pulls the ocean.", "ocean tides", "The moon pulls the ocean. tides"),
    ("Ocean currents are slow.", "ocean tides", "Ocean currents are slow. tides"),
    ("Some rocks are oceanic.", "ocean tides", "Some rocks are oceanic. ocean tides"),
    ("The tides of an ocean.", "ocean tides", None),
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
    """2.4: what to report where fillers disagree."""
    return choice(
        answer,
        "d",
        {
            "a": "The greatest change is the filler that disturbs the model most; choosing it after the fact is "
            "choosing the result.",
            "b": "A convention makes results comparable, and does not make them true: [MASK] is no less of a choice.",
            "c": "Then the two sides differ in length, and with it in every position that follows and in all "
            "attention.",
            "d": "The question is about the term; what changes with the filler is not. The control has the same "
            "filler.",
        },
    )


# Lesson 3: patching against a known circuit.


@exercise("two functions of patched, baseline and perturbed")
def two_effects(denoise: Any, noise: Any) -> Verdict:
    """3.1: the effects in both directions, from three scores."""
    baseline, perturbed = 1.0, 5.0
    for name, function, patched in (("denoise", denoise, 2.0), ("noise", noise, 4.0)):
        values = [float(answered(function(p, baseline, perturbed))) for p in (patched, baseline, perturbed)]
        expected = [0.25, 0.0, 1.0] if name == "denoise" else [0.25, 1.0, 0.0]
        if np.allclose(values, expected):
            continue
        told = f"`{name}`, patched {patched:.0f} between {baseline:.0f} and {perturbed:.0f}, gives {values[0]:.3g}: "
        flipped = [1 - value for value in expected]
        if np.allclose(values, flipped):
            return wrong(
                told + "this is the other direction. Denoising starts at the baseline, so that a patch without "
                "effect leaves the baseline's score; noising starts at the perturbed side."
            )
        if np.allclose(values, [-value for value in expected]):
            return wrong(
                told + "the sign is turned round. 1 should mean that the patch does all that the perturbation does."
            )
        if np.allclose(values, [4 * value for value in expected]):
            return wrong(
                told + "this is in score units; divide by the score change, so that documents can be compared."
            )
        return wrong(
            told + f"expected is {expected[0]}. How far did the patch move the run, as a share of the whole way?"
        )
    return right("0 is no effect and 1 all of it, in both directions, so that they can be compared.")


@exercise("names of heads by role: a list of names, or one name")
def named_circuit(answer: Mapping[str, Any], truth: pd.DataFrame) -> Verdict:
    """3.2: which heads match, which gather, which one is the decoy."""
    given = {role: {heads} if isinstance(heads, str) else set(heads) for role, heads in answer.items()}
    roles = {role: set(names) for role, names in truth.groupby("role")["docno"] if role != "inert"}
    if set(given) != set(roles):
        return wrong(f"Give the roles {', '.join(sorted(roles))}, each with its heads.")
    if given == roles:
        return right(
            "The decoy looks where the matching head looks, and nothing reads it: only patching tells them apart."
        )
    if given["matching"] == roles["decoy"]:
        return wrong(
            "The matching head that you name has no effect when it is patched: you went by attention, as the decoy "
            "wants."
        )
    if given["matching"] & roles["gathering"]:
        return wrong("The matching head looks from query words to the same words of the document; yours acts at [CLS].")
    if given["gathering"] < roles["gathering"]:
        return wrong(
            "There are more gathering heads: which heads of the last layer have an effect far above the others'?"
        )
    if given["gathering"] - roles["gathering"]:
        extra = ", ".join(sorted(given["gathering"] - roles["gathering"]))
        return wrong(
            f"{extra} among the gathering heads: an interval above 0 is not yet an effect that matters. How large is "
            "it?"
        )
    if given["decoy"] != roles["decoy"]:
        return wrong(
            "The decoy gives as much attention as the matching head, and has no effect: look at lesson 1's twins."
        )
    return wrong("Which head has nearly all of the effect, in a layer before the last?")


@exercise("one number")
def patched_together(answer: Any, ranker: Any, pairs: pd.DataFrame, effects: Mapping[str, float]) -> Verdict:
    """3.3: what both gathering heads do together; ``effects`` has what each of them does alone."""
    from pyterrier_mechir import AggregateHeads, PatchScorer

    names = tuple(effects)
    patched = PatchScorer(ranker, heads=[list(names)])(pairs)
    together = float(AggregateHeads(by=None, n_boot=0)(patched)["score"].iloc[0])
    if same(answer, together):
        return right("Each alone has about half, together they have all of it: here effects add up, nearly.")
    alone = list(effects.values())
    mistakes = {
        "This is the sum of the two effects alone. It is near, but it is not measured: heads may depend on each "
        "other. Patch them as one set.": sum(alone),
        **{
            f"This is {name} alone; a set is a list inside the list of `heads`.": value
            for name, value in effects.items()
        },
    }
    return looks_like(answer, mistakes, "Patch `heads=[[..., ...]]`, aggregate with `by=None`, and take `score`.")


@exercise("the name of a token class")
def where_it_acts(answer: Any, by_class: pd.DataFrame) -> Verdict:
    """3.4: the token class at which the matching head has its effect."""
    heads = by_class[by_class["docno"].str.startswith("L1H2@")].set_index("slot")["score"]
    found = heads.idxmax()
    if answer == found:
        return right("It acts where it *writes*: at the query's word, which has looked at the document's.")
    return wrong(
        {
            "EDIT": "The added word is what the head looks *at*. A patch asks where its output is changed.",
            "D+": "The document's words are what the head looks *at*. A patch asks where its output is changed.",
            "CLS": "That is where the gathering heads act, a layer later.",
            "Q-": "`Q-` are the query's other words; the pair differs in the word that was added.",
        }.get(str(answer), f"Look for the greatest effect of `L1H2@...` among {', '.join(map(str, heads.index))}.")
    )


# Lesson 4: estimates, statistics, and how not to fool oneself.


def _shifts(patched: pd.DataFrame, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """How far a head moves the score of each document, and how far the two sides are apart."""
    baseline = patched["score_baseline"].to_numpy(float)
    moved = np.stack(patched["patch_scores"])[:, layer, head] - baseline
    return moved, patched["score_perturbed"].to_numpy(float) - baseline


@exercise("one number")
def ratio_of_means(answer: Any, patched: pd.DataFrame, layer: int, head: int) -> Verdict:
    """4.1: the effect of a head over documents."""
    moved, apart = _shifts(patched, layer, head)
    if same(answer, moved.mean() / apart.mean()):
        return right("Documents whose score hardly changes count little in it, as they should.")
    mistakes = {
        "This is the mean of each document's ratio: a few documents whose score hardly changes decide it. Divide "
        "means.": (moved / apart).mean(),
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
    if int(answer) == needed(n_heads, 2) == answer:
        return right(
            f"2 / 2^{answer} times {n_heads} is below {level}. With fewer queries no effect, however large, is."
        )
    return looks_like(
        answer, mistakes, "The least p of n queries is 2 / 2^n; times the number of heads it is to be below the level."
    )


@exercise("a function of moved, apart, choose and report that gives the number of a head, and its effect")
def chosen_and_reported(answer: Any) -> Verdict:
    """4.3: the best head of one half, measured on the other."""
    rng = np.random.default_rng(7)
    moved = rng.normal(0.1, 1.0, (12, 30))
    apart = rng.uniform(0.5, 1.5, 12)
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
    "c": (True, "A map cannot agree with another more than it does with itself; `split_halves` gives that measure."),
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


# Lesson 5: words and order.


def without(text: str, *words: str) -> str:
    """A text without all occurrences of some words, and without the space before them."""
    for word in words:
        text = re.sub(rf"\s*(?<![\w'-]){re.escape(word)}(?![\w'-])", "", text)
    return text


@exercise("one number")
def both_forms(answer: Any, ranker: Any, query: str, text: str, words: tuple[str, str]) -> Verdict:
    """5.1: what the score loses without two words together."""
    whole, *left = ranker.score([query] * 4, [text, *(without(text, word) for word in words), without(text, *words)])
    alone, together = [float(whole - one) for one in left[:2]], float(whole - left[2])
    if same(answer, together):
        return right(
            "Together they carry far more than the sum of what each carries alone: either one can stand for both."
        )
    mistakes = {
        "This is the sum of what each carries alone. What one of them can do for both is lost in neither; take both "
        "out.": sum(alone),
        "The sign is turned round: the score with the words, less the score without.": -together,
        "This is the score without the words; asked is what is lost.": float(left[2]),
        **{f"This is {word!r} alone; take both out.": value for word, value in zip(words, alone, strict=True)},
    }
    return looks_like(
        answer, mistakes, "Score the text as it is and without both words; `checks.without` takes words out."
    )


@exercise("two lists of names of methods")
def believable(random: Any, terms: Any, table: pd.DataFrame) -> Verdict:
    """5.2: the methods no better than random orders, and those better than the words of the query first."""
    rows = table[~table["method"].isin(["random order", "IDF order", "query terms first"])].set_index("method")
    not_random = set(rows.index[rows["deletion_over_random_high"] >= 0])
    better = set(rows.index[rows["deletion_over_query_terms_high"] < 0])
    by_point = set(rows.index[rows["deletion_over_query_terms"] < 0])
    if set(random) == not_random and set(terms) == better:
        return right("An interval that contains 0 decides nothing; the order to beat is the one that needs no method.")
    if set(terms) != better and set(terms) == by_point:
        return wrong(
            "By the middle of the interval only. Better than the words of the query is what lies *all* below 0."
        )
    if set(terms) - by_point:
        return wrong(
            "A small deletion area is good: the score falls at once. Better is *below* 0 in "
            "`deletion_over_query_terms`."
        )
    if set(random) == set(rows.index) - not_random:
        return wrong("These are those that *are* better than random orders; asked is who cannot be told from them.")
    if set(random) != not_random:
        return wrong(
            "A method is better than random orders where the interval of `deletion_over_random` lies all below 0."
        )
    return wrong("Look again at the interval of `deletion_over_query_terms`: who lies all below 0?")


@exercise("a list of words of the first document")
def turned_order(answer: Any, ranker: Any, query: str, above: str, below: str) -> Verdict:
    """5.3: a smallest set of words without which the first document falls below the second."""
    words = [answer] if isinstance(answer, str) else list(answer)
    absent = [word for word in words if without(above, word) == above]
    if absent or not words:
        return wrong(f"Not in the first document: {', '.join(absent) or 'no word at all'}. Case and ending count.")
    if len(words) > 8:
        return wrong(f"{len(words)} words are no reason that anyone reads; look for one of at most 8.")
    subsets = [part for size in range(len(words) + 1) for part in combinations(words, size)]
    *scores, second = ranker.score([query] * (len(subsets) + 1), [without(above, *part) for part in subsets] + [below])
    turns = [part for part, score in zip(subsets, scores, strict=True) if score < second]
    if not turns:
        return wrong(f"Without them the first document still has {scores[-1]:.3f}, above the second's {second:.3f}.")
    if turns[0] != tuple(words):
        return wrong(
            f"It turns, but {list(turns[0])} alone do so: a reason should have nothing in it that is not needed."
        )
    return right(f"{scores[0]:.3f} became {scores[-1]:.3f}, below {second:.3f}: a cause, checked by scoring.")


# Lesson 6: editing a ranker.

DAMAGE = ("L0H1", 20.0)


def damaged(ranker: Any) -> Any:
    """A ranker with one bad head, in its weights, so that nothing but its behaviour tells which."""
    from pyterrier_mechir import CrossEncoder, Scale

    return CrossEncoder((ranker.edited([Scale(*DAMAGE)]).bake(), ranker.tokenizer))


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
def repaired(answer: Any, broken: Any, candidates: pd.DataFrame) -> Verdict:
    """6.2: the broken ranker, without the head that does harm."""
    if answer is broken or not answer.edits:
        return wrong("This ranker has no edits; `edited` gives a new ranker and leaves the old one as it is.")
    few = candidates.head(20)
    queries, texts = few["query"].tolist(), few["text"].tolist()
    before, after = (np.asarray(ranker.score(queries, texts)) for ranker in (broken, answer))
    if np.abs(before - after).max() < 1e-6:
        return wrong("No score has changed: a factor of 1 leaves a head as it is; 0 switches it off.")
    edits = [edit for _, edit in answer.edits]
    sites = [edit.site for edit in edits]
    if sites != [DAMAGE[0]]:
        return wrong(
            f"It edits {', '.join(sites)}; edit only the head that you found in 6.1, or you cannot say what helped."
        )
    if getattr(edits[0], "factor", 0) != 0:
        return wrong(f"A factor of {edits[0].factor} leaves some of it; 0 switches the head off.")
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

    given = tuple(float(number) for number in answer)
    expected, of_train = measured(test), measured(train)
    if len(given) == 3 and all(map(same, given, expected)):
        above = "The interval excludes 0" if expected[1] > 0 else "The interval contains 0"
        return right(f"{above}, on queries that chose nothing, and one head was tested.")
    if same(given[0], of_train[0]):
        return wrong("That is the change on the queries that *chose* the head.")
    if same(given[0], measured([*train, *test])[0]):
        return wrong("All queries are in it, those that chose the head too.")
    if same(given[0], -expected[0]):
        return wrong("The sign is turned round: `score` is the ranking without the head less the one with it.")
    if len(given) == 3 and same(given[0], expected[0]):
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
