"""A text as its words, which of a query's words are terms, and random choices that depend on texts alone.

A word is a run of letters, marks and digits, with inner hyphens and apostrophes. :class:`Words` takes a text apart into
words and the gaps between them, so that perturbations can move, replace and take out words and leave all else as it
stands. :func:`seeded` makes a seed of the texts that a random choice is about, so that a row gets the same choice
whatever the order, batch or process in which it comes.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import regex

from pyterrier_mechir.text.differences import leading, trailing

_FUNCTION_WORDS = """
    a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just may me might more most must my myself no nor not
    now of off on once only or other our ours ourselves out over own same shall she should so some such than that
    the their theirs them themselves then there these they this those through to too under until up upon very was we
    were what when where which while who whom whose why will with would you your yours yourself yourselves
"""

STOPWORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words, which carry no term-matching signal."""

_RUN = r"[\p{L}\p{N}_][\p{L}\p{N}\p{M}\u200c\u200d_]*"

_WORD = regex.compile(rf"({_RUN}(?:['\u2019-]{_RUN})*)")


def words(text: str) -> list[str]:
    """The words of a text as they stand: runs of letters, marks and digits, with inner hyphens and apostrophes."""
    return _WORD.findall(text)


def words_and_marks(text: str) -> list[str]:
    """The words of a text and each mark between them, in their order."""
    parts = enumerate(_WORD.split(text))
    return [item for i, part in parts for item in ([part] if i % 2 else _marks_of(part))]


def marks(text: str) -> list[str]:
    """The marks of a text that are in no word, in their order."""
    return [mark for gap in _WORD.split(text)[0::2] for mark in _marks_of(gap)]


def _marks_of(gap: str) -> list[str]:
    return [mark for mark in gap if not mark.isspace()]


def lowercase_words(text: str) -> list[str]:
    """The default analysis of terms: lower-cased words, unstemmed."""
    return [word.lower() for word in words(text)]


def query_terms(query: str) -> list[str]:
    """The words of a query without function words; all its words where it has no others."""
    found = words(query)
    return [word for word in found if word.lower() not in STOPWORDS] or found


def distinct_terms(query: str) -> dict[str, str]:
    """The distinct terms of a query in their order, as a mapping from the lower-cased term to it as first written."""
    written: dict[str, str] = {}
    for term in query_terms(query):
        written.setdefault(term.lower(), term)
    return written


@lru_cache(maxsize=100_000)
def lemma(word: str, language: str = "en") -> str:
    """The lemma (the form in a dictionary) of a word, as the simplemma library gives it, in the case of the word.

    Args:
        word: the word.
        language: the code of its language.

    Returns:
        The lemma; the word itself where the library knows none, or gives one that is not a single word.
    """
    import simplemma

    found = simplemma.lemmatize(word, lang=language)
    return cased_like(found, word) if words(found) == [found] else word


def cased_like(word: str, other: str) -> str:
    """A lower-case word with the capitals of another, its first letter's or all; any other word as it is."""
    if not word.islower() or not other[:1].isupper():
        return word
    return word.upper() if other.isupper() and len(other) > 1 else word[:1].upper() + word[1:]


class Words(Sequence[str]):
    """A text as words and the gaps around them, so that words can be moved, replaced and taken out.

    Words are compared by their ``keys``, that is lower-cased. Every edit gives a new object; ``str`` gives its text.

    Args:
        text: the text.

    Attributes:
        gaps: what stands before each word and after the last (spaces and marks), one more than there are words.
        keys: the lower-cased words, by which words are compared.
    """

    __slots__ = ("_words", "gaps", "keys")

    def __init__(self, text: str):
        parts = _WORD.split(text)
        self._set(parts[1::2], parts[0::2])

    def _set(self, words: list[str], gaps: list[str], keys: list[str] | None = None) -> Words:
        self._words, self.gaps = words, gaps
        self.keys = [word.lower() for word in words] if keys is None else keys
        return self

    def _with(self, words: list[str], gaps: list[str], keys: list[str] | None = None) -> Words:
        return Words.__new__(Words)._set(words, gaps, keys)

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._words[index]

    def __str__(self) -> str:
        parts = [""] * (2 * len(self._words) + 1)
        parts[0::2], parts[1::2] = self.gaps, self._words
        return "".join(parts)

    def counts(self) -> Counter[str]:
        """How often each key (lower-cased word) occurs."""
        return Counter(self.keys)

    def places(self, keys: str | Collection[str]) -> list[int]:
        """The places, as indices of words, at which a key, or any of some keys, occurs."""
        wanted = {keys} if isinstance(keys, str) else set(keys)
        return [place for place, key in enumerate(self.keys) if key in wanted]

    def replaced(self, words: Mapping[int, str]) -> Words:
        """The text with other words at some places, each in the case of the word that it replaces.

        Args:
            words: from a place to the word that goes there.
        """
        new = {place: cased_like(word, self._words[place]) for place, word in words.items()}
        return self._with([new.get(place, word) for place, word in enumerate(self._words)], self.gaps)

    def between(self, gaps: list[str]) -> Words:
        """The same words with other gaps."""
        return self._with(self._words, gaps, self.keys)

    def lowered(self) -> Words:
        """The text with its words lower-cased."""
        return self._with(self.keys, self.gaps, self.keys)

    def unmarked(self) -> Words:
        """The text without the marks around its words, with a space where two words had nothing else between them."""
        bare = ["".join(filter(str.isspace, gap)) for gap in self.gaps]
        bare[1:-1] = [gap or " " for gap in bare[1:-1]]
        return self.between(bare)

    def permuted(self, order: Sequence[int]) -> Words:
        """The text with its words in another order; the gaps, with their punctuation, stay where they are.

        Args:
            order: for each place, the place that its new word had.
        """
        return self._with([self._words[place] for place in order], self.gaps, [self.keys[place] for place in order])

    def spans(self) -> list[tuple[int, int]]:
        """Where each word begins and ends in the text, in characters."""
        ends = accumulate(len(gap) + len(word) for gap, word in zip(self.gaps, self._words, strict=False))
        return [(end - len(word), end) for end, word in zip(ends, self._words, strict=True)]

    def cuts(self, places: Iterable[int]) -> list[tuple[int, int]]:
        """What :meth:`without` takes out for the word at each of some places: from which character to which."""
        spans, cuts = self.spans(), []
        for place in places:
            begin, end = spans[place]
            before, after = self.gaps[place], self.gaps[place + 1]
            kept = before.rstrip()
            if kept or place:
                cuts.append((begin - len(before) + len(kept), end))
            else:
                cuts.append((0, end + len(after) - len(after.lstrip())))
        return cuts

    def without(self, places: Collection[int]) -> Words:
        """The text without the words at some places and without the space before them; marks beside them stay."""
        kept: list[str] = []
        gaps = [self.gaps[0]]
        for place, word in enumerate(self._words):
            after = self.gaps[place + 1]
            if place not in places:
                kept.append(word)
                gaps.append(after)
            else:
                before = gaps[-1].rstrip()
                gaps[-1] = before + after if before or kept else after.lstrip()
        return self._with(kept, gaps)


def changes(baseline: str, perturbed: str) -> tuple[Counter[str], Counter[str]]:
    """How the words of two texts differ, whatever their order.

    Args:
        baseline: the one text.
        perturbed: the other.

    Returns:
        How many more times the perturbed text has each lower-cased word, and how many more times the baseline has it;
        words that both have as often are in neither.
    """
    before, after = Words(baseline).counts(), Words(perturbed).counts()
    return after - before, before - after


def lacks_one(words: Sequence[str], rest: Sequence[str], places: Iterable[int]) -> bool:
    """Whether some words are others without the one at one of some places.

    Args:
        words: the others.
        rest: the words that may lack one of them.
        places: the places of those that may be lacking, as indices of the others.
    """
    if len(rest) != len(words) - 1:
        return False
    head, tail = leading(words, rest), trailing(words, rest)
    return any(place <= head and len(words) - 1 - place <= tail for place in places)


def insert(text: str, term: str, place: int) -> str:
    """Insert a term into a text; the rest stays as it is.

    Args:
        text: the text.
        term: what is inserted, with a space between it and the words beside it.
        place: the number of the space-separated word before which it goes; one beyond the last is the text's end.
    """
    starts = word_starts(text)
    if place < len(starts):
        return f"{text[: starts[place]]}{term} {text[starts[place] :]}"
    return f"{text} {term}" if text else term


def place_after(text: str, word: int) -> int:
    """The place, as :func:`insert` counts them, right after the word number ``word`` of a text's :class:`Words`."""
    return places_after(text, [word])[0]


def places_after(text: str, words: Iterable[int]) -> list[int]:
    """The places, as :func:`insert` counts them, right after each of some words, by their numbers in :class:`Words`."""
    starts, spans = word_starts(text), Words(text).spans()
    return [bisect_left(starts, spans[word][1]) for word in words]


def word_starts(text: str) -> list[int]:
    """Where each space-separated word of a text begins, in characters."""
    return [match.start() for match in re.finditer(r"\S+", text)]


def seeded(seed: int, *texts: str) -> int:
    """A seed for a random choice about some texts: the same in every process, order and batch.

    Args:
        seed: the user's seed.
        *texts: what the choice may depend on, such as a query and a document.

    Returns:
        A number of 64 bits, as good as independent for other seeds or texts.
    """
    digest = hashlib.blake2b("\x1f".join([str(seed), *texts]).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
