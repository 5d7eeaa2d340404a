"""Coverage: which of the query's terms and aspects a text has at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.axioms.frequency import exchange
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.insertion import Insertion, check_position, place_of
from pyterrier_mechir.text.idf import Idf, same_band
from pyterrier_mechir.text.similar import Similar
from pyterrier_mechir.text.words import Words, changes, distinct_terms, insert, lacks_one


def split_terms(text: str, query: str) -> tuple[list[str], list[str]]:
    """The lower-cased terms of a query that a text has, and those that it lacks, each in the query's order."""
    present = set(Words(text).keys)
    terms = distinct_terms(query)
    return [term for term in terms if term in present], [term for term in terms if term not in present]


def as_rare(idf: Idf | None, one: str, other: str) -> bool:
    """Whether a collection has two terms, one as rare as the other; without a collection, any two terms are."""
    if idf is None:
        return True
    first, second = idf(one), idf(other)
    return first is not None and second is not None and same_band(first, second)


class LB1(Perturbation):
    """An added occurrence of a query term that the text has gives way to one of a term that it lacks.

    Args:
        position: where the term is added, as in :class:`~pyterrier_mechir.perturb.TFC1`, but not ``beside``.
        seed: of the choice of terms and place.
        idf: where document frequencies come from (see :meth:`pyterrier_mechir.perturb.Idf.of`), so that the two
            terms are as rare as each other. None takes any two, and then the sides differ in rarity too.

    Does not apply unless the text has one of the query's terms and lacks another, as rare where ``idf`` is given, and
    as many words as the index.

    Raises:
        TypeError: ``idf`` is of another kind.
        ValueError: an unknown position.
    """

    alignment = "swap"
    sign = "+"
    own_baseline = True
    statement = "Of two texts that match otherwise, the one with a query term that the other lacks scores higher."
    change = "added query term that the text has → query term that it lacks"
    source = "Lv and Zhai, CIKM 2011"

    def __init__(self, position: str | int = "end", seed: int = 0, idf: Any = None):
        self.position, self.seed = check_position(position, beside=False), seed
        self.idf = None if idf is None else Idf.of(idf)

    def _exchanges(self, text: str, query: str) -> list[tuple[str, str]]:
        """The lower-cased terms of which the first can give way to the second."""
        written = distinct_terms(query)
        seen, unseen = split_terms(text, query)
        return [(one, other) for one in seen for other in unseen if as_rare(self.idf, written[one], written[other])]

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        exchanges = self._exchanges(text, query)
        rng = self._random(self.seed, text, query)
        place = place_of(self.position, text, "", rng)
        if not exchanges or place is None:
            return None
        written = distinct_terms(query)
        repeated, missing = (written[term] for term in rng.choice(exchanges))
        return insert(text, repeated, place), insert(text, missing, place)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged = exchange(baseline, perturbed)
        return (
            exchanged is not None
            and exchanged in self._exchanges(baseline, query)
            and Words(baseline).counts()[exchanged[0]] > 1
        )


class LB2(Insertion):
    """Adds the first occurrence of a query term, or a further one of another, to compare what each is worth.

    The axiom is about the difference of two effects: ``LB2("first")`` adds a query term that the text lacks,
    ``LB2("further")`` one that it has, on the same rows. ``Sweep(LB2, occurrence=["first", "further"])`` runs both. The
    two terms may differ in rarity too.

    Args:
        occurrence: ``first`` or ``further``.
        position: as in :class:`~pyterrier_mechir.perturb.TFC1`, but not ``beside``.
        n: how many occurrences are added.
        seed: of the random choices.

    Does not apply unless the text has one of the query's terms and lacks another, and as many words as the index.

    Raises:
        ValueError: an unknown option.
    """

    sign = "+"
    statement = "The first occurrence of a query term is worth more than a further one of another term."
    change = "filler → query term that the text lacks (further: that it has)"
    source = "Lv and Zhai, CIKM 2011"

    def __init__(self, occurrence: str = "first", position: str | int = "end", n: int = 1, seed: int = 0):
        super().__init__(check_position(position, beside=False), n, seed)
        self.occurrence = one_of("occurrence", occurrence, ("first", "further"))

    def _candidates(self, text: str, query: str) -> list[str]:
        seen, unseen = split_terms(text, query)
        return [] if not seen or not unseen else unseen if self.occurrence == "first" else seen

    def _term(self, text: str, query: str) -> str | None:
        terms = self._candidates(text, query)
        return distinct_terms(query)[self._random(self.seed, text, query).choice(terms)] if terms else None

    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        return words.total() == 1 and words.keys() <= set(self._candidates(baseline, query))


class AND(Perturbation):
    """The baseline lacks a query term; the perturbed side has all of them, and one of them less often.

    Both sides are made of the text: of the baseline the only occurrence of one query term is taken out, of the
    perturbed side one of several occurrences of another.

    Args:
        seed: of the choice of the terms and the occurrence.
        idf: as in :class:`LB1`.

    Does not apply unless the text has all query terms, one of them once and another, as rare where ``idf`` is given,
    more often.
    """

    alignment = "fill"
    sign = "+"
    own_baseline = True
    statement = "Of two texts of equal length, one that has all query terms beats one that lacks some."
    change = "without the only occurrence of a query term → without one of several of another"
    source = "Wu and Fang, ECIR 2012"

    def __init__(self, seed: int = 0, idf: Any = None):
        self.seed = seed
        self.idf = None if idf is None else Idf.of(idf)

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        words, terms = Words(text), distinct_terms(query)
        counts = words.counts()
        choices = [
            (one, other)
            for one in terms
            for other in terms
            if counts[one] == 1 and counts[other] > 1 and as_rare(self.idf, terms[one], terms[other])
        ]
        if not choices or not all(counts[term] for term in terms):
            return None
        rng = self._random(self.seed, text, query)
        single, repeated = rng.choice(choices)
        place = rng.choice(words.places(repeated))
        return str(words.without(words.places(single))), str(words.without({place}))

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        if added.total() != 1 or removed.total() != 1:
            return False
        (single,), (repeated,) = added, removed
        before, after, terms = Words(baseline), Words(perturbed), distinct_terms(query)
        rest = list(after.without(set(after.places(single))))
        return (
            terms.keys() - set(before.keys) == {single}
            and repeated in terms
            and as_rare(self.idf, terms[single], terms[repeated])
            and before.counts()[repeated] > 1
            and terms.keys() <= set(after.keys)
            and lacks_one(before, rest, before.places(repeated))
        )


class REG(Perturbation):
    """An extra occurrence of the best covered aspect of the query gives way to a term of the least covered one.

    Args:
        similar: similar words of a term: a mapping, a function, a ranker or
            :class:`~pyterrier_mechir.text.similar.WordNet`. Query terms that are similar to each other are one
            aspect, and similar words in the text count as covering it. None makes every term an aspect of its own.
        seed: of the choice of the occurrence.
        idf: as in :class:`LB1`.

    Does not apply unless the best covered aspect has two words more in the text than the least covered one, so that it
    can spare one, and a word that covers no other aspect, as rare as the other term where ``idf`` is given.
    """

    alignment = "swap"
    sign = "+"
    statement = "A text that covers the least covered aspect of the query better scores higher."
    change = "extra term of the best covered aspect → term of the least covered aspect"
    source = "Zheng and Fang, ECIR 2010"

    def __init__(self, similar: Any = None, seed: int = 0, idf: Any = None):
        self.similar = None if similar is None else Similar.of(similar)
        self.idf = None if idf is None else Idf.of(idf)
        self.seed = seed

    def _aspects(self, query: str) -> list[set[str]]:
        """The query's aspects: each the lower-cased words that cover it."""
        aspects: list[set[str]] = []
        terms = distinct_terms(query)
        for term in terms:
            words = {term, *(word.lower() for word in self.similar(term))} if self.similar else {term}
            joined = [aspect for aspect in aspects if term in aspect or words & aspect & terms.keys()]
            aspects = [aspect for aspect in aspects if aspect not in joined] + [words.union(*joined)]
        return aspects

    def _exchanges(self, words: Words, query: str) -> list[tuple[int, str]]:
        """The places that can be spared, each with the lower-cased query terms that can go there."""
        counts, aspects = words.counts(), self._aspects(query)
        cover = [sum(counts[word] for word in aspect) for aspect in aspects]
        if not aspects or max(cover) - min(cover) < 2:
            return []
        best, least = (
            set().union(*(aspect for aspect, covered in zip(aspects, cover, strict=True) if covered == wanted))
            for wanted in (max(cover), min(cover))
        )
        places = [place for place in words.places(best) if sum(words.keys[place] in aspect for aspect in aspects) == 1]
        terms = {term: written for term, written in distinct_terms(query).items() if term in least}
        return [(place, term) for place in places for term in terms if as_rare(self.idf, words[place], terms[term])]

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        exchanges = dict(self._exchanges(words, query)[::-1])
        if not exchanges:
            return None
        place = self._random(self.seed, text, query).choice(sorted(exchanges))
        return str(words.replaced({place: distinct_terms(query)[exchanges[place]]}))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged, words = exchange(baseline, perturbed), Words(baseline)
        return exchanged in [(words.keys[place], term) for place, term in self._exchanges(words, query)]


class ANTI_REG(REG):
    """The pair of :class:`REG`, with the opposite expectation."""

    sign = "-"
    statement = "A text that covers the best covered aspect of the query better scores higher."
