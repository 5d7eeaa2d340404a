"""Self-checks of lesson 3: patching against a known circuit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from checks.verdicts import Verdict, answered, exercise, looks_like, right, same, wrong

# Scores (patched, baseline, perturbed) with the effect of denoising: a patch may move the score the wrong way, or too
# far, and a perturbation may lower it.
_BEYOND = (((-1.0, 1.0, 5.0), -0.5), ((7.0, 1.0, 5.0), 1.5))
_LOWERED = ((4.0, 5.0, 1.0), 0.25)


@exercise("two functions of patched, baseline and perturbed")
def two_effects(denoise: Any, noise: Any) -> Verdict:
    """3.1: the effects in both directions, from three scores."""
    baseline, perturbed = 1.0, 5.0
    for name, function, patched in (("denoise", denoise, 2.0), ("noise", noise, 4.0)):
        values = [float(answered(function(p, baseline, perturbed))) for p in (patched, baseline, perturbed)]
        expected = [0.25, 0.0, 1.0] if name == "denoise" else [0.25, 1.0, 0.0]
        if np.allclose(values, expected):
            if problem := _signs(name, function):
                return wrong(problem)
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


def _signs(name: str, function: Any) -> str | None:
    """What is wrong with an effect where a score is not between the two sides, or where the perturbed side is lower."""

    def gives(scores: tuple[float, float, float], denoised: float) -> tuple[str, float, float]:
        expected = denoised if name == "denoise" else 1 - denoised
        value = float(answered(function(*scores)))
        told = "`{}`, patched {:.0f}, baseline {:.0f} and perturbed {:.0f}, gives {:.3g}: ".format(name, *scores, value)
        return told, value, expected

    for scores, denoised in _BEYOND:
        told, value, expected = gives(scores, denoised)
        if not np.isclose(value, expected):
            why = "is cut off at 0 and 1" if np.isclose(value, np.clip(expected, 0, 1)) else "has lost its sign"
            return (
                f"{told}expected is {expected}. The effect {why}, but a patch may move the score the wrong way, or too "
                "far, and that is to be seen."
            )
    told, value, expected = gives(*_LOWERED)
    if not np.isclose(value, expected):
        return f"{told}expected is {expected}. A perturbation may lower the score; divide by the change with its sign."
    return None


@exercise("names of heads by role: a list of names, or one name")
def named_circuit(answer: Mapping[str, Any], truth: pd.DataFrame) -> Verdict:
    """3.2: which heads match, which gather, which one is the decoy."""
    given = {role: {heads} if isinstance(heads, str) else set(heads) for role, heads in answer.items()}
    known = set(truth["docno"])
    unknown = [name for heads in given.values() for name in heads if name not in known]
    if unknown or any(isinstance(heads, tuple) for heads in answer.values()):
        shown = f": there is no head {unknown[0]!r}" if unknown else ""
        return wrong(f"Names of heads are like 'L1H2', and several names stand in a list{shown}.")
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


# What a head looks at that acts at one of these classes.
_LOOKED_AT = {"Q+": {"EDIT": "added word", "D+": "same word elsewhere"}, "EDIT": {"Q+": "query's word"}}
_WRITTEN = {
    "Q+": "at the query's word, which has looked at the document's",
    "EDIT": "at the added word, which has looked at the query's",
}


@exercise("the name of a token class")
def where_it_acts(answer: Any, by_class: pd.DataFrame, head: str) -> Verdict:
    """3.4: the token class at which the matching head has its effect."""
    effects = by_class[by_class["docno"].str.startswith(f"{head}@")].set_index("slot")["score"]
    if effects.empty:
        raise ValueError(f"the table has no row of {head}")
    found, given = str(effects.idxmax()), str(answer)
    if given == found:
        return right(f"It acts where it *writes*: {_WRITTEN.get(found, f'at {found}')}.")
    if given in effects.index and given in _LOOKED_AT.get(found, {}):
        looked_at = _LOOKED_AT[found][given]
        return wrong(f"The {looked_at} is what the head looks *at*. A patch asks where its output is changed.")
    if given in effects.index and given == "CLS":
        return wrong("That is where the gathering heads act, a layer later.")
    if given in effects.index and given == "Q-":
        return wrong("`Q-` are the query's other words; the pair differs in the word that was added.")
    return wrong(f"Look for the greatest effect of `{head}@...` among {', '.join(map(str, effects.index))}.")
