"""Whether the two sides of a pair correspond as an alignment claims."""

from __future__ import annotations

from collections import Counter

from pyterrier_mechir.text.words import Words, marks, words_and_marks


def corresponds(alignment: str, baseline: str, perturbed: str) -> bool:
    """Whether the sides of a pair differ, and in the way that an alignment claims.

    Words are compared as they are written, and so are the marks between them: what an edit does not claim to change is
    the same on both sides. ``permute``: the same words and marks in another order. ``swap``: as many words, and the
    same marks. ``fill`` and ``mask``: one side has all words and marks of the other, in their order. ``free`` claims
    nothing more.
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
    """Whether the marks and spaces between the words are the same on both sides."""
    return Words(baseline).gaps == Words(perturbed).gaps
