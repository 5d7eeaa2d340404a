"""A text as units that an explanation is told in: its words, its sentences, or a tokenizer's tokens.

Units are spans of the very text, so that two occurrences of a word are two units, and what stands between them (spaces,
marks) stays as it is. A word is a run of letters, marks and digits (:mod:`~pyterrier_mechir.text.words`); in scripts
that put no spaces between words, such as Chinese, Japanese or Thai, each letter is a unit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, compress, pairwise

import numpy as np
import regex

from pyterrier_mechir.text.words import Words

UNITS = ("word", "token", "sentence")
"""What a text can be told in. Tokens depend on a tokenizer, so a ranker finds them."""

_SCRIPTS = "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar Tibetan"
_UNSPACED = "".join(rf"\p{{Script={script}}}" for script in _SCRIPTS.split()) + "\u30fc\uff70"
_WITHIN_WORDS = regex.compile(rf"[{_UNSPACED}][\p{{M}}\u200d]*|[^{_UNSPACED}]+")


def word_spans(text: str) -> np.ndarray:
    """Where the words of a text begin and end, in characters: int64 ``[n, 2]``."""
    spans = [
        (begin + found.start(), begin + found.end())
        for begin, end in Words(text).spans()
        for found in _WITHIN_WORDS.finditer(text[begin:end])
    ]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def sentence_spans(text: str) -> np.ndarray:
    """Where the sentences of a text begin and end, without the space around them, in characters: int64 ``[n, 2]``."""
    return np.array(_sentences(text), dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=10_000)
def _sentences(text: str) -> tuple[tuple[int, int], ...]:
    import sentencex

    # A lone surrogate is no character that the library could be given.
    lengths = map(len, sentencex.segment("en", re.sub("[\ud800-\udfff]", "\ufffd", text)))
    found = []
    for begin, end in pairwise([0, *accumulate(lengths)]):
        part = text[begin:end]
        if part.strip():
            found.append((begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())))
    return tuple(found)


def token_spans(text: str, spans: np.ndarray) -> np.ndarray:
    """Where the tokens of a text begin and end, without the space around them, in characters: int64 ``[n, 2]``.

    Tokens that are made of one character, as bytes are, or that have one in common, are one unit.

    Args:
        text: the text.
        spans: what each token is made of, int64 ``[t, 2]``, in the order of the text; tokens without characters, and
            of spaces alone, are no units.
    """
    found: list[list[int]] = []
    for begin, end in spans.tolist():
        part = text[max(begin, 0) : end]
        if not part.strip():
            continue
        begin, end = max(begin, 0) + len(part) - len(part.lstrip()), max(begin, 0) + len(part.rstrip())
        if found and begin < found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def units_at(spans: np.ndarray, of_tokens: np.ndarray) -> np.ndarray:
    """The unit that each token is of: int64 ``[t]``, -1 for none; a token of two units is of the first.

    Args:
        spans: the units' spans, ``[n, 2]``, in the order of the text and disjoint.
        of_tokens: what each token is made of, ``[t, 2]``.
    """
    if not len(spans):
        return np.full(len(of_tokens), -1, dtype=np.int64)
    begins, ends = of_tokens.T
    unit = np.searchsorted(spans[:, 1], begins, side="right").astype(np.int64)
    overlaps = spans[np.minimum(unit, len(spans) - 1), 0] < ends
    return np.where((unit < len(spans)) & overlaps & (begins < ends), unit, -1)


class Removable:
    """A text from which units can be taken out, each with the space before it; marks beside a unit stay.

    What is taken out of the beginning of a text goes with the space after it.

    Args:
        text: the text.
        spans: of its units, ``[n, 2]``, in the order of the text and disjoint.
    """

    def __init__(self, text: str, spans: np.ndarray):
        self._parts, end = [], 0
        for begin, next_end in spans.tolist():
            kept = text[end:begin].rstrip()
            self._parts += [kept, text[end + len(kept) : next_end]]
            end = next_end
        self._parts.append(text[end:])
        self._starts_with_space = text[:1].isspace()

    def kept(self, units: Sequence[bool]) -> str:
        """The text with some of its units.

        Args:
            units: of each unit, whether it is kept.
        """
        keeps = [True] * len(self._parts)
        keeps[1::2] = units
        text = "".join(compress(self._parts, keeps))
        return text if self._starts_with_space else text.lstrip()
