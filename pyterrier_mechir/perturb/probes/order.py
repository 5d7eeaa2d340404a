"""Robustness probes of the order: words and sentences shuffled, reversed, taken out, put in; entities exchanged."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, groupby, islice, pairwise

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.correspond import same_gaps
from pyterrier_mechir.perturb.outcomes import Edits, OfOutcomes
from pyterrier_mechir.perturb.probes.wording import ABNIRML, CHECKLIST
from pyterrier_mechir.text.units import sentence_spans
from pyterrier_mechir.text.words import STOPWORDS, Words

PLACES = ("start", "end", "random")
"""Where a sentence is taken out or put in."""


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text, as the sentencex library finds them, without the space around them."""
    return tuple(text[begin:end] for begin, end in sentence_spans(text).tolist())


def joined(one: str, other: str) -> str:
    """Two texts, with a space between them where there are two."""
    return f"{one} {other}" if one and other else one or other


class ShuffleWords(Perturbation):
    """The words change places at random; marks stay. Does not apply to a text of one distinct word.

    Args:
        seed: of the order.
    """

    alignment = "permute"
    sign = "-0"
    statement = "Words in random order do not raise the score."
    change = "words → the same words in random order"
    source = ABNIRML

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        if len(set(words)) < 2:
            return None
        rng = self._random(self.seed, text, query)
        order = list(range(len(words)))
        while [words[place] for place in order] == list(words):
            rng.shuffle(order)
        return str(words.permuted(order))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return same_gaps(baseline, perturbed)


class ReverseWords(Perturbation):
    """The words stand in reverse order; marks stay. Does not apply to a text that reads the same."""

    alignment = "permute"
    sign = "-0"
    statement = "Words in reverse order do not raise the score."
    change = "words → the same words in reverse order"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        backwards = words.permuted(range(len(words) - 1, -1, -1))
        return str(backwards) if list(backwards) != list(words) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return list(Words(perturbed)) == list(Words(baseline))[::-1] and same_gaps(baseline, perturbed)


class _OfSentences(Perturbation):
    """A text as its sentences, joined by spaces."""

    def _joined(self, order: Sequence[str], text: str) -> str | None:
        made = " ".join(order)
        return made if list(Words(made)) != list(Words(text)) else None


class ShuffleSentences(_OfSentences):
    """The sentences change places at random. Does not apply to a text of one distinct sentence.

    Args:
        seed: of the order.
    """

    alignment = "permute"
    statement = "Sentences stand in random order."
    change = "sentences → the same sentences in random order"
    source = ABNIRML

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, text: str, query: str) -> str | None:
        found = list(sentences(text))
        of_words = [tuple(Words(sentence)) for sentence in found]
        if len(set(of_words)) < 2:
            return None
        rng = self._random(self.seed, text, query)
        order = list(range(len(found)))
        while [of_words[place] for place in order] == of_words:
            rng.shuffle(order)
        return self._joined([found[place] for place in order], text)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return _pieces(baseline, perturbed)


def _pieces(baseline: str, perturbed: str) -> bool:
    """Whether every sentence of a baseline is in the perturbed text as it stands."""
    found = set(sentences(perturbed))
    return all(sentence in found or sentence in perturbed for sentence in sentences(baseline))


class ReverseSentences(_OfSentences):
    """The sentences stand in reverse order. Does not apply to a text of one sentence, or that reads the same."""

    alignment = "permute"
    statement = "Sentences stand in reverse order."
    change = "sentences → the same sentences in reverse order"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        return self._joined(sentences(text)[::-1], text)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed == " ".join(sentences(baseline)[::-1])


class DeleteSentence(OfOutcomes):
    """Takes a sentence out; masked positions stand in its place. Does not apply to a text of one sentence.

    Args:
        position: which one: ``start``, ``end`` or ``random``.
        seed: of a random one.

    Raises:
        ValueError: an unknown position.
    """

    alignment = "mask"
    statement = "A sentence is taken out."
    change = "sentence → masked positions"
    source = ABNIRML

    def __init__(self, position: str = "random", seed: int = 0):
        self.position, self.seed = one_of("position", position, PLACES), seed

    def _outcomes(self, text: str) -> Edits:
        found = sentences(text)
        starts = [0, *accumulate(len(sentence) + 1 for sentence in found)]
        cuts = [*pairwise(starts[:-1]), (starts[-2] - 1, starts[-1] - 1)] if len(found) > 1 else []
        chosen = {"start": slice(0, 1), "end": slice(-1, None), "random": slice(None)}[self.position]
        return Edits(" ".join(found), [(*cut, "") for cut in cuts[chosen]])


class AddSentence(OfOutcomes):
    """Puts a sentence before or after the text, set against masked positions in the baseline.

    Args:
        sentence: the sentence, or several of which one is drawn per row, say of documents judged not relevant.
        position: ``start``, ``end`` or ``random`` (one of these two).
        seed: of the random choices.

    Does not apply where the text has the sentence already.

    Raises:
        ValueError: an unknown position, or no sentence.
    """

    alignment = "mask"
    statement = "A sentence is added."
    change = "masked positions → sentence"
    source = ABNIRML

    def __init__(self, sentence: str | Sequence[str], position: str = "end", seed: int = 0):
        self.sentence, self.seed = sentence, seed
        if not self._sentences() or not all(one.strip() for one in self._sentences()):
            raise ValueError("no sentence given; name one or several.")
        self.position = one_of("position", position, PLACES)

    def _sentences(self) -> list[str]:
        return [self.sentence] if isinstance(self.sentence, str) else list(self.sentence)

    def _outcomes(self, text: str) -> Edits:
        added = [sentence for sentence in self._sentences() if sentence not in text]
        space, end = " " if text else "", len(text)
        before = [(0, 0, sentence + space) for sentence in added if self.position != "end"]
        return Edits(text, before + [(end, end, space + one) for one in added if self.position != "start"])


class PrependQuery(Perturbation):
    """Puts the query before the text, set against fillers in the baseline. Does not apply to an empty query."""

    alignment = "fill"
    sign = "+"
    statement = "A text that begins with the query scores higher."
    change = "fillers → the query"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        return joined(query, text) if query.strip() else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed == joined(query, baseline)


class SwapEntities(OfOutcomes):
    """Two names of the text change places. A name is a run of capitalised words that does not begin a sentence.

    Args:
        seed: of the choice of the names.

    Does not apply to a text without two such names of as many words.
    """

    alignment = "permute"
    statement = "Two names change places."
    change = "name ↔ other name"
    source = CHECKLIST

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _outcomes(self, text: str) -> Sequence[str]:
        return _Exchanges(Words(text))


class _Exchanges(Sequence[str]):
    """The texts in which two names, of as many words, have changed places. A text is made when it is asked for."""

    def __init__(self, words: Words):
        self._words, self._names = words, _names(words)
        of_length: Counter[int] = Counter()
        same: Counter[tuple[str, ...]] = Counter()
        later = []
        for name in reversed(self._names):
            later.append(of_length[len(name)] - same[self._written(name)])
            of_length[len(name)] += 1
            same[self._written(name)] += 1
        self._until = list(accumulate(reversed(later)))

    def _written(self, name: range) -> tuple[str, ...]:
        return tuple(self._words[name.start : name.stop])

    def _differ(self, one: range, other: range) -> bool:
        return len(one) == len(other) and self._written(one) != self._written(other)

    def _exchanged(self, one: range, other: range) -> Words:
        order = list(range(len(self._words)))
        order[one.start : one.stop], order[other.start : other.stop] = other, one
        return self._words.permuted(order)

    def __len__(self) -> int:
        return self._until[-1] if self._until else 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        first = bisect_right(self._until, index)
        one, skipped = self._names[first], self._until[first - 1] if first else 0
        others = (other for other in self._names[first + 1 :] if self._differ(one, other))
        return str(self._exchanged(one, next(islice(others, index - skipped, None))))

    def __contains__(self, text: object) -> bool:
        made = Words(str(text))
        if made.gaps != self._words.gaps:
            return False
        changed = [place for place, (old, new) in enumerate(zip(self._words, made, strict=True)) if old != new]
        ends = {changed[0], changed[-1]} if changed else ()
        names = [name for name in self._names if any(place in name for place in ends)]
        return len(names) == 2 and self._differ(*names) and list(self._exchanged(*names)) == list(made)


def _names(words: Words) -> list[range]:
    """Runs of places of capitalised words, joined by spaces, that do not begin a sentence."""

    def capitalised(place: int) -> bool:
        return words[place][:1].isupper() and words.keys[place] not in STOPWORDS

    def begins(place: int) -> bool:
        return place == 0 or any(mark in words.gaps[place] for mark in ".!?\n")

    runs = []
    for is_name, run in groupby(range(len(words)), capitalised):
        places = list(run) if is_name else []
        start = 0
        for i in range(1, len(places) + 1):
            if i == len(places) or words.gaps[places[i]].strip():
                runs.append(range(places[start], places[i - 1] + 1))
                start = i
    return [run for run in runs if not begins(run[0])]
