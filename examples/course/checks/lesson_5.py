"""Self-checks of lesson 5: words and order."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pandas as pd

from checks.verdicts import Verdict, exercise, looks_like, right, same, wrong


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
    random, terms = ([one] if isinstance(one, str) else one for one in (random, terms))
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
    """5.3: a smallest list of words without which the first document falls below the second."""
    words = [answer] if isinstance(answer, str) else list(answer)
    absent = [word for word in words if without(above, word) == above]
    if absent or not words:
        return wrong(f"Not in the first document: {', '.join(absent) or 'no word at all'}. Case and ending count.")
    if len(words) > 8:
        return wrong(f"{len(words)} words are no reason that anyone reads; look for one of at most 8.")

    def turning(parts: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], list[float], float]:
        texts = [*(without(above, *part) for part in parts), below]
        *left, second = map(float, ranker.score([query] * len(texts), texts))
        return [part for part, score in zip(parts, left, strict=True) if score < second], left, second

    subsets = [part for size in range(len(words) + 1) for part in combinations(words, size)]
    turns, scores, second = turning(subsets)
    if not turns:
        return wrong(f"Without them the first document still has {scores[-1]:.3f}, above the second's {second:.3f}.")
    if turns[0] != tuple(words):
        return wrong(
            f"It turns, but {list(turns[0])} alone do so: a reason should have nothing in it that is not needed."
        )
    of_text = list(dict.fromkeys(re.findall(r"[\w'-]+", above)))
    for size in range(1, min(len(words), 3)):  # all pairs of words take about a second, all triples too long
        if turning(list(combinations(of_text, size)))[0]:
            fewer = "one word" if size == 1 else "two words"
            return wrong(
                f"It turns, and needs all of its words; but {fewer} of the document can do the same: look for a "
                "smaller list."
            )
    return right(f"{scores[0]:.3f} became {scores[-1]:.3f}, below {second:.3f}: a cause, checked by scoring.")
