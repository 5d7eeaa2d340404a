"""Self-checks of lesson 1: a ranker opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from checks.verdicts import Verdict, choice, exercise, right, wrong


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
