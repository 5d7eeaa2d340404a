"""Where two sequences of words are the same and where they differ, in a time that grows as their length does.

What both begin and end with is set aside. What is left, where it is short, is compared as a whole by
:class:`difflib.SequenceMatcher`, which takes the longest run that both have and then those on its two sides. The time
that this takes grows with the square of the length, so longer ones are cut first where they are sure to correspond, at
the runs of a few words that both have once, and where there are none they are compared window by window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

Run = tuple[bool, tuple[int, int], tuple[int, int]]
"""Words that are the same or that differ: whether they are the same, their span in the one and in the other."""

_Block = tuple[int, int, int]
"""Words that are the same: where they begin in the one and in the other, and how many they are."""

_WHOLE = 200
"""How many words on either side are compared as a whole."""

_ANCHORS = (4, 2, 1)
"""How many words the runs have at which longer ones are cut: what is left between the longer runs, at shorter ones."""

_WINDOW = 32
"""How many words of either side are compared at a time where nothing says how they correspond."""


def leading(one: Sequence[str], other: Sequence[str], i: int = 0, k: int = 0) -> int:
    """How many items, words or characters, two sequences both have from two places on before the first that differ."""
    n = 0
    while i + n < len(one) and k + n < len(other) and one[i + n] == other[k + n]:
        n += 1
    return n


def trailing(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items, words or characters, two sequences both end with."""
    return leading(one[::-1], other[::-1])


def differences(one: Sequence[str], other: Sequence[str]) -> list[Run]:
    """The runs of words that two sequences share and those by which they differ, in their order.

    Args:
        one: the words of the one.
        other: the words of the other.

    Returns:
        Runs that cover both; a run that differs may be empty on one side, and is between runs that are the same.
    """
    runs: list[Run] = []
    i = k = 0
    for begin, start, n in _joined([*_blocks(list(one), list(other), _ANCHORS), (len(one), len(other), 0)]):
        if begin > i or start > k:
            runs.append((False, (i, begin), (k, start)))
        i, k = begin + n, start + n
        if n:
            runs.append((True, (begin, i), (start, k)))
    return runs


def _joined(blocks: Iterable[_Block]) -> Iterator[_Block]:
    """The same blocks, of which none is empty but the last, and none begins where another ends."""
    i = k = n = 0
    for begin, start, more in blocks:
        if (begin, start) == (i + n, k + n):
            n += more
            continue
        if n:
            yield i, k, n
        i, k, n = begin, start, more
    yield i, k, n


def _blocks(one: list[str], other: list[str], sizes: Sequence[int]) -> Iterator[_Block]:
    """The words that two sequences share; they are cut at runs of the given sizes where they are long."""
    head = leading(one, other)
    tail = trailing(one[head:], other[head:])
    yield 0, 0, head
    left, right = one[head : len(one) - tail], other[head : len(other) - tail]
    if not left or not right:
        inside: Iterable[_Block] = ()
    elif max(len(left), len(right)) <= _WHOLE:
        inside = _compared(left, right)
    else:
        inside = _cut(left, right, sizes[0], sizes[1:]) if sizes else _in_windows(left, right)
    for i, k, n in inside:
        yield head + i, head + k, n
    yield len(one) - tail, len(other) - tail, tail


def _compared(one: list[str], other: list[str]) -> list[_Block]:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return [(i, k, n) for i, k, n in matcher.get_matching_blocks() if n]


def _cut(one: list[str], other: list[str], size: int, smaller: Sequence[int]) -> Iterator[_Block]:
    """The words that two sequences share between the runs of a size that each of them has once."""
    i = k = 0
    for end, stop in [*_anchors(one, other, size), (len(one), len(other))]:
        for begin, start, n in _blocks(one[i:end], other[k:stop], smaller):
            yield i + begin, k + start, n
        i, k = end, stop


def _anchors(one: list[str], other: list[str], size: int) -> list[tuple[int, int]]:
    """Where the runs of a size begin that each of two sequences has once: the most that are in the same order."""
    places, others = (_once(words, size) for words in (one, other))
    common = [(place, others[run]) for run, place in places.items() if run in others]
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for number, (_, place) in enumerate(common):
        length = bisect_left(ends, place)
        before.append(last[length - 1] if length else -1)
        ends[length : length + 1], last[length : length + 1] = [place], [number]
    rising = []
    number = last[-1] if last else -1
    while number >= 0:
        rising.append(common[number])
        number = before[number]
    return rising[::-1]


def _once(words: list[str], size: int) -> dict[tuple[str, ...], int]:
    """The runs of a size that occur once, and where."""
    runs = list(zip(*(words[i:] for i in range(size)), strict=False))
    counts = Counter(runs)
    return {run: place for place, run in enumerate(runs) if counts[run] == 1}


def _in_windows(one: list[str], other: list[str]) -> Iterator[_Block]:
    """The words that two sequences share, found in windows: the next begins where what is sure of the last one ends."""
    i = k = 0
    while i < len(one) and k < len(other):
        blocks = _compared(one[i : i + _WINDOW], other[k : k + _WINDOW])
        left, more = len(one) - i, len(other) - k
        if max(left, more) > _WINDOW:
            blocks = [block for block in blocks if max(block[:2]) < _WINDOW // 2]
        for begin, start, n in blocks:
            yield i + begin, k + start, n
        if blocks:
            begin, start, n = blocks[-1]
            i, k = i + begin + n, k + start + n
            n = leading(one, other, i, k)
            yield i, k, n
            i, k = i + n, k + n
        else:
            step = _WINDOW // 2
            i, k = i + step * (left >= more), k + step * (more >= left)
