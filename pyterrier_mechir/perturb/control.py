"""Controls: what an effect is compared with. No edit at all, or the same edit with a term that does not matter."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from pyterrier_mechir.perturb.base import Chain, OfPairs, Pair, Perturbation, as_perturbation
from pyterrier_mechir.perturb.correspond import corresponds
from pyterrier_mechir.text.differences import differences
from pyterrier_mechir.text.idf import Idf, Lexicon, same_band
from pyterrier_mechir.text.similar import Embedder
from pyterrier_mechir.text.words import STOPWORDS, Words, lowercase_words


class Identity(Perturbation):
    """Leaves every text as it is: the control whose effects are all missing, as there is no change to divide by."""

    statement = "The text itself: a control without effects."
    change = "nothing"
    source = "control"

    def __call__(self, text: str, query: str) -> str:
        return text

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        return baseline == perturbed


class RandomTerm(OfPairs):
    """The edit of another perturbation, with random terms: what of an effect is not about the query's terms.

    Every word that the perturbation puts into the text, function words left aside, becomes a random word of the
    collection, about as rare, that neither the query nor the text has. Where it only takes occurrences of a word out,
    as many occurrences of another word of the text go instead, one that is about as rare and not in the query, and
    that the text keeps or loses likewise. The edit stays where it is. The expected sign is kept, so that the agreement
    of the control with it can be set against that of the perturbation; where both sides of a pair are made, the other
    side keeps the perturbation's own terms, so that nothing is expected.

    Of a chain, the first perturbation is controlled and the second applied to what it made. A control draws once per
    row; ``Sweep(lambda seed: RandomTerm(TFC1(), idf, seed), seed=range(5))`` runs several draws.

    Args:
        perturbation: the perturbation.
        idf: where the words come from, and how rare they are (see :meth:`pyterrier_mechir.perturb.Idf.of`): a
            dataset or an iterable of documents; the stems of an index are no words.
        seed: of the choice of the words.
        ranker: a ranker, in whose tokenizer the random word is to have as many pieces as the word that it stands for,
            so that control and perturbation are set against as many fillers. None does not match them.

    Does not apply where the perturbation does not, changes no content word, takes several different words out, or
    where there is no other word to take.

    Raises:
        ValueError: a perturbation of alignment ``permute``, which changes no word, or frequencies of stems.
    """

    statement = "The edit of another perturbation with random words: what is not about the query's terms."
    change = "words put in → random words as rare"
    source = "control"

    def __init__(self, perturbation: Perturbation, idf: Any, seed: int = 0, ranker: Embedder | None = None):
        self.perturbation, self.seed = as_perturbation(perturbation), seed
        self.idf, self.ranker = Idf.of(idf), ranker
        for member in self.perturbation.members:
            if _first(member).alignment == "permute":
                raise ValueError(f"{member!r} puts no word in, so that none can be a random one.")
        self.idf.check_words()
        self.alignment = self.perturbation.alignment
        self.own_baseline = self.perturbation.own_baseline
        self.sign = None if self.own_baseline else self.perturbation.sign

    @property
    def name(self) -> str:
        return f"{self.perturbation.name}.random_term"

    @property
    def members(self) -> tuple[Perturbation, ...]:
        inner = self.perturbation.members
        return (self,) if inner == (self.perturbation,) else tuple(self._of(member) for member in inner)

    def _of(self, member: Perturbation) -> RandomTerm:
        """This control of one of the perturbation's members."""
        return self if member == self.perturbation else self.with_settings(perturbation=member)

    def pair(self, text: str, query: str) -> Pair | None:
        if isinstance(self.perturbation, Chain):
            one = self.with_settings(perturbation=self.perturbation.first).pair(text, query)
            two = None if one is None else self.perturbation.second.pair(one.perturbed, query)
            return None if one is None or two is None else Pair(one.baseline, two.perturbed, self)
        pair = self.perturbation.pair(text, query)
        if pair is None:
            return None
        before, after = Words(pair.baseline), Words(pair.perturbed)
        rng = self._random(self.seed, text, f"{query}\x1frandom term")
        asked = set(lowercase_words(query))
        put_in = _put_in(before, after)
        if put_in:
            perturbed = self._put_in_instead(before, after, put_in, asked, rng)
        else:
            perturbed = self._taken_out_instead(before, _put_in(after, before), asked, rng)
        return None if perturbed is None else Pair(pair.baseline, str(perturbed), self._of(pair.by))

    def _put_in_instead(
        self, before: Words, after: Words, places: list[int], asked: set[str], rng: random.Random
    ) -> Words | None:
        """The perturbed side with random words in some places."""
        taken = {*before.keys, *asked}
        instead: dict[str, str] = {}
        for place in places:
            term = after.keys[place]
            if term not in instead:
                word = self._lexicon(after[place]).near(self.idf(term), rng, exclude=taken)
                if word is None:
                    return None
                instead[term] = word
                taken.add(word)
        return after.replaced({place: instead[after.keys[place]] for place in places})

    def _taken_out_instead(self, before: Words, places: list[int], asked: set[str], rng: random.Random) -> Words | None:
        """The baseline without as many occurrences of another word."""
        terms = {before.keys[place] for place in places}
        if len(terms) != 1:
            return None
        choices = self._spared(before, terms.pop(), len(places), asked)
        if not choices:
            return None
        found = before.places(rng.choice(choices))
        return before.without(set(rng.sample(found, len(places))))

    def _spared(self, before: Words, term: str, n: int, asked: Collection[str]) -> list[str]:
        """Words of a text to take out ``n`` times in place of a term."""
        counts, rarity = before.counts(), self.idf(term)
        size = self._size(term)
        return sorted(
            word
            for word, count in counts.items()
            if word not in asked
            and word not in STOPWORDS
            and count >= n
            and (count == n) == (counts[term] == n)
            and rarity is not None
            and (found := self.idf(word)) is not None
            and same_band(found, rarity)
            and self._size(word) == size
        )

    def _size(self, word: str) -> int:
        """The number of pieces of a word, the same for all words where no ranker counts them."""
        return 0 if self.ranker is None else self.ranker.vocabulary.size(word)

    def _lexicon(self, word: str) -> Lexicon:
        """The words that can take a word's place."""
        if self.ranker is None:
            return self.idf.lexicon
        return self.ranker.vocabulary.lexicons(self.idf).get(self._size(word), Lexicon([], []))

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether the sides correspond and differ by words outside the query, in the places of the perturbation.

        Where the baseline is the text itself, the places, and how rare the words are, are compared with the pair that
        the perturbation makes of it.
        """
        if isinstance(self.perturbation, Chain):
            return baseline != perturbed if self.own_baseline else self(baseline, query) == perturbed
        if not corresponds(self.alignment, baseline, perturbed):
            return False
        before, after, asked = Words(baseline), Words(perturbed), set(lowercase_words(query))
        put_in, taken_out = _put_in(before, after), _put_in(after, before)
        changed = {after.keys[i] for i in put_in} or {before.keys[i] for i in taken_out}
        if not changed or not changed.isdisjoint(asked):
            return False
        if self.own_baseline:
            return True
        real = self.perturbation.pair(baseline, query)
        if real is None:
            return False
        wanted = Words(real.perturbed)
        if put_in:
            return _put_in(before, wanted) == put_in and all(
                self._of_band(wanted.keys[place], after.keys[place]) for place in put_in
            )
        terms = {before.keys[place] for place in _put_in(wanted, before)}
        return len(terms) == 1 and changed <= set(self._spared(before, terms.pop(), len(taken_out), asked))

    def _of_band(self, term: str, word: str) -> bool:
        """Whether a word can have been drawn for a term: the collection has it, and it is about as rare."""
        value = self.idf(word)
        return value is not None and self.idf.lexicon.is_near(self.idf(term), value)

    def bind(self, ranker: Embedder) -> RandomTerm:
        """The control with a bound perturbation, and the ranker's word pieces unless it was given a ranker."""
        return self.with_settings(perturbation=self.perturbation.bind(ranker), ranker=self.ranker or ranker)


def _first(perturbation: Perturbation) -> Perturbation:
    """The perturbation that a chain begins with; any other as it is."""
    return _first(perturbation.first) if isinstance(perturbation, Chain) else perturbation


def _put_in(before: Words, after: Words) -> list[int]:
    """The places of the words, function words left aside, that one text has and another lacks."""
    runs = differences(before.keys, after.keys)
    places = (place for same, _, span in runs if not same for place in range(*span))
    more = after.counts() - before.counts()
    return [place for place in places if after.keys[place] in more and after.keys[place] not in STOPWORDS]
