"""Coverage: which of the query's terms and aspects a text has at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.frequency import exchange
from pyterrier_mechir.perturb.insertion import Insertion, check_position, place_of
from pyterrier_mechir.perturb.similarity import Similar
from pyterrier_mechir.perturb.words import Words, changes, distinct_terms, insert


def split_terms(text: str, query: str) -> tuple[list[str], list[str]]:
    """The lower-cased query terms that a text has, and those that it lacks."""
    present = set(Words(text).keys)
    terms = distinct_terms(query)
    return [term for term in terms if term in present], [term for term in terms if term not in present]


class LB1(Perturbation):
    """An added occurrence of a query term that the text has gives way to one of a term that it lacks.

    Args:
        position: where the term is added, as in :class:`TFC1`, but not ``beside``.
        seed: of the choice of terms and place.

    Does not apply unless the text has one of the query's terms and lacks another, and as many words as the index.

    Raises:
        ValueError: an unknown position.
    """

    alignment = "swap"
    sign = "+"
    own_baseline = True
    statement = "Of two texts that match otherwise, the one with a query term that the other lacks scores higher."
    change = "added query term that the text has → query term that it lacks"
    source = "Lv and Zhai, CIKM 2011"

    def __init__(self, position: str | int = "end", seed: int = 0):
        self.position, self.seed = check_position(position, beside=False), seed

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        seen, unseen = split_terms(text, query)
        rng = self._random(self.seed, text, query)
        place = place_of(self.position, text, "", rng)
        if not seen or not unseen or place is None:
            return None
        written = distinct_terms(query)
        return insert(text, written[rng.choice(seen)], place), insert(text, written[rng.choice(unseen)], place)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged = exchange(baseline, perturbed)
        if exchanged is None:
            return False
        seen, unseen = split_terms(baseline, query)
        repeated, missing = exchanged
        return repeated in seen and missing in unseen and Words(baseline).counts()[repeated] > 1


class LB2(Insertion):
    """The first occurrence of a query term, to be set against another occurrence of one that the text has.

    The axiom is about the difference of two effects: ``LB2("first")`` adds a query term that the text lacks,
    ``LB2("further")`` one that it has, on the same rows. ``Sweep(LB2, occurrence=["first", "further"])`` runs both.

    Args:
        occurrence: ``first`` or ``further``.
        position: as in :class:`TFC1`, but not ``beside``.
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
    """The only occurrence of a query term is taken out of the baseline, one of several of another of the other side.

    Args:
        seed: of the choice of the terms and the occurrence.

    Does not apply unless the text has all query terms, one of them once and another more often.
    """

    alignment = "fill"
    sign = "+"
    own_baseline = True
    statement = "Of two texts of equal length, one that has all query terms beats one that lacks some."
    change = "without the only occurrence of a query term → without one of several of another"
    source = "Wu and Fang, ECIR 2012"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        words, terms = Words(text), distinct_terms(query)
        counts = words.counts()
        single = [term for term in terms if counts[term] == 1]
        several = [term for term in terms if counts[term] > 1]
        if not single or not several or len(single) + len(several) < len(terms):
            return None
        rng = self._random(self.seed, text, query)
        without_single = words.without(words.places(rng.choice(single)))
        place = rng.choice(words.places(rng.choice(several)))
        return str(without_single), str(words.without({place}))

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        if added.total() != 1 or removed.total() != 1:
            return False
        (single,), (repeated,) = added, removed
        before, after, terms = Words(baseline), Words(perturbed), distinct_terms(query)
        rest = list(after.without(set(after.places(single))))
        return (
            {term for term in terms if term not in before.keys} == {single}
            and repeated in terms
            and before.counts()[repeated] > 1
            and all(term in after.keys for term in terms)
            and any(list(before.without({place})) == rest for place in before.places(repeated))
        )


class REG(Perturbation):
    """An extra occurrence of the best covered aspect of the query gives way to a term of the least covered one.

    Args:
        similar: similar words of a term: a mapping, a function, a ranker or
            :class:`~pyterrier_mechir.perturb.similarity.WordNet`. Query terms that are similar to each other are one
            aspect, and similar words in the text count as covering it. None makes every term an aspect of its own.
        seed: of the choice of the occurrence.

    Does not apply unless the best covered aspect has two words more in the text than the least covered one, so that it
    can spare one, and a word that covers no other aspect.
    """

    alignment = "swap"
    sign = "+"
    statement = "A text that covers the least covered aspect of the query better scores higher."
    change = "extra term of the best covered aspect → term of the least covered aspect"
    source = "Zheng and Fang, ECIR 2010"

    def __init__(self, similar: Any = None, seed: int = 0):
        self.similar = None if similar is None else Similar.of(similar)
        self.seed = seed

    def _aspects(self, query: str) -> list[set[str]]:
        """The query's aspects: each the lower-cased words that cover it."""
        aspects: list[set[str]] = []
        for term in distinct_terms(query):
            words = {term, *(word.lower() for word in self.similar(term))} if self.similar else {term}
            joined = [aspect for aspect in aspects if term in aspect or words & aspect & set(distinct_terms(query))]
            aspects = [aspect for aspect in aspects if aspect not in joined] + [words.union(*joined)]
        return aspects

    def _exchanges(self, words: Words, query: str) -> tuple[list[int], list[str]]:
        """The places that can be spared, and the lower-cased query terms that can go there."""
        counts, aspects = words.counts(), self._aspects(query)
        cover = [sum(counts[word] for word in aspect) for aspect in aspects]
        if not aspects or max(cover) - min(cover) < 2:
            return [], []
        best, least = (
            set().union(*(aspect for aspect, covered in zip(aspects, cover, strict=True) if covered == wanted))
            for wanted in (max(cover), min(cover))
        )
        places = [place for place in words.places(best) if sum(words.keys[place] in aspect for aspect in aspects) == 1]
        return places, [term for term in distinct_terms(query) if term in least]

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        places, terms = self._exchanges(words, query)
        if not places:
            return None
        place = self._random(self.seed, text, query).choice(places)
        return str(words.replaced({place: distinct_terms(query)[terms[0]]}))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged, words = exchange(baseline, perturbed), Words(baseline)
        places, terms = self._exchanges(words, query)
        return exchanged is not None and exchanged[0] in {words.keys[i] for i in places} and exchanged[1] in terms


class ANTI_REG(REG):
    """The pair of :class:`REG`, with the opposite expectation."""

    sign = "-"
    statement = "A text that covers the best covered aspect of the query better scores higher."
