"""Where sequences of words differ: runs that cover both, as a plain diff finds them, and soon where they are long."""

from __future__ import annotations

import random
import time
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mechir.text.differences import differences

some = settings(max_examples=100, deadline=None, derandomize=True)

letters = st.lists(st.sampled_from("abcd"), max_size=12)


def assert_runs(one, other):
    """The runs cover both sides, and those that differ are apart from each other."""
    i = k = 0
    before = None
    for same, (begin, end), (start, stop) in differences(one, other):
        assert (begin, start) == (i, k)
        assert same != before
        assert not same or one[begin:end] == other[start:stop] != []
        assert end > begin or stop > start
        i, k, before = end, stop, same
    assert (i, k) == (len(one), len(other))


@given(letters, letters, st.integers(1, 120))
@some
def test_runs_cover_both_sides_however_long(one, other, times):
    assert_runs(one * times, other * times)
    assert_runs([*one * times, "x", *other], [*other, *one * times])


@given(letters, letters)
@some
def test_short_sequences_are_compared_as_a_whole(one, other):
    one, other = ["(", *one, ")"], ["[", *other, "]"]
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    expected = [(tag == "equal", (i, j), (k, m)) for tag, i, j, k, m in matcher.get_opcodes()]
    assert differences(one, other) == expected


@pytest.mark.parametrize("vocabulary", [60, 3000])
def test_what_long_sequences_share_is_found(vocabulary):
    rng = random.Random(0)
    words = [f"w{rng.randrange(vocabulary)}" for _ in range(3000)]
    marked = [item for word in words for item in ((word, ",") if rng.random() < 0.25 else (word,))]
    passage = [f"w{rng.randrange(vocabulary)}" for _ in range(1000)]
    for longer in (marked, ["x", *words[:700], *passage, *words[700:], "y"]):
        begin = time.thread_time()
        runs = differences(longer, words)
        assert time.thread_time() - begin < 0.4
        assert sum(end - begin for same, (begin, end), _ in runs if same) == len(words)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a"] * 4000, ["x", *["a"] * 4000, "y", *["a"] * 100]),
        (["a", "b", "c"] * 1300, ["a", "b", "c", "d"] * 1300),
        ([str(i) for i in range(4000)], [str(-i) for i in range(4000)]),
        (["a", "b"] * 2000, ["a", "b", "a"] * 1300),
    ],
    ids=["one word", "a word between", "nothing shared", "other periods"],
)
def test_sequences_without_a_run_of_their_own_do_not_take_long(one, other):
    begin = time.thread_time()
    assert_runs(one, other)
    assert time.thread_time() - begin < 0.6
