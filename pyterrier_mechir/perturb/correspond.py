"""How the two sides of a pair of texts correspond: whether as an alignment claims, and under which alignment at all.

Here texts are compared, word by word; :mod:`pyterrier_mechir.text.alignment` aligns their tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pyterrier_mechir.text.words import Words, marks, words_and_marks


def corresponds(alignment: str, baseline: str, perturbed: str) -> bool:
    """Whether the sides of a pair differ, and only in the way that an alignment claims.

    Words are compared as they are written, and so are the marks between them: what an edit does not claim to change is
    the same on both sides. ``permute``: the same words and marks in another order. ``swap``: as many words, and the
    same marks. ``fill`` and ``mask``: one side has all words and marks of the other, in their order. ``free`` claims
    nothing more.

    Args:
        alignment: one of :data:`~pyterrier_mechir.text.alignment.ALIGNMENTS`.
        baseline: the one text.
        perturbed: the other.
    """
    if baseline == perturbed:
        return False
    if alignment == "free":
        return True
    before, after = words_and_marks(baseline), words_and_marks(perturbed)
    if alignment == "permute":
        return before != after and Counter(before) == Counter(after)
    if alignment == "swap":
        same_marks = marks(baseline) == marks(perturbed)
        return same_marks and len(Words(baseline)) == len(Words(perturbed))
    shorter, longer = sorted((before, after), key=len)
    rest = iter(longer)
    return all(item in rest for item in shorter)


def same_gaps(baseline: str, perturbed: str) -> bool:
    """Whether the marks and spaces before, between and after the words are the same in two texts."""
    return Words(baseline).gaps == Words(perturbed).gaps


def joint_alignment(alignments: Iterable[str]) -> str:
    """The alignment of pairs that any of several perturbations, or all of them, may have changed.

    Args:
        alignments: the alignments of the perturbations.

    Returns:
        The one that all have; else ``free`` where one is, as nothing corresponds then; else ``mask`` where insertions
        are set against masked positions only, and ``fill`` where one is against fillers or there is no insertion.
    """
    found = set(alignments)
    if len(found) == 1:
        return found.pop()
    if "free" in found:
        return "free"
    return "mask" if "mask" in found and "fill" not in found else "fill"
