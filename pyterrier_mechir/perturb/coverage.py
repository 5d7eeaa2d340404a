"""Coverage: which of the query's terms and aspects a text has at all."""

from __future__ import annotations

from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.frequency import exchange
from pyterrier_mechir.perturb.insertion import Insertion, check_position, place_of
from pyterrier_mechir.perturb.similarity import Similar
from pyterrier_mechir.perturb.words import Words, distinct_terms, insert


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

    Does not apply unless the text has one of the query's terms and lacks another.

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

    Does not apply unless the text has one of the query's terms and lacks another.

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

    def _is_term(self, term: str, baseline: str, query: str) -> bool:
        return term in self._candidates(baseline, query)


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
        exchanged = exchange(baseline, perturbed)
        if exchanged is None:
            return False
        repeated, single = exchanged
        before, after = Words(baseline).counts(), Words(perturbed).counts()
        terms = distinct_terms(query)
        lacking = {term for term in terms if not before[term]}
        return lacking == {single} and before[repeated] > 1 and repeated in terms and all(after[term] for term in terms)


class REG(Perturbation):
    """An extra occurrence of the best covered aspect of the query gives way to a term of the least covered one.

    Args:
        similar: similar words of a term: a mapping, a function, a ranker or
            :class:`~pyterrier_mechir.perturb.similarity.WordNet`. Query terms that are similar to each other are one
            aspect, and similar words in the text count as covering it. None makes every term an aspect of its own.
        seed: of the choice of the occurrence.

    Does not apply to a query of one aspect, nor where none is covered twice, nor where the least covered aspect is
    covered as well as the best.
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

    def _uneven(self, words: Words, query: str) -> tuple[list[set[str]], list[set[str]]]:
        """The best and the least covered aspects; none where the best has no term to spare."""
        counts = words.counts()
        cover = [(sum(counts[word] for word in aspect), aspect) for aspect in self._aspects(query)]
        best, least = max((c for c, _ in cover), default=0), min((c for c, _ in cover), default=0)
        if best < 2 or least == best:
            return [], []
        return [aspect for c, aspect in cover if c == best], [aspect for c, aspect in cover if c == least]

    def __call__(self, text: str, query: str) -> str | None:
        words, terms = Words(text), distinct_terms(query)
        best, least = self._uneven(words, query)
        if not best:
            return None
        rng = self._random(self.seed, text, query)
        place = rng.choice(words.places(rng.choice(best)))
        return str(words.replaced({place: next(written for term, written in terms.items() if term in least[0])}))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged = exchange(baseline, perturbed)
        best, least = self._uneven(Words(baseline), query)
        return (
            exchanged is not None
            and any(exchanged[0] in aspect for aspect in best)
            and any(exchanged[1] in aspect for aspect in least)
            and exchanged[1] in distinct_terms(query)
        )


class ANTI_REG(REG):
    """The pair of :class:`REG`, with the opposite expectation."""

    sign = "-"
    statement = "A text that covers the best covered aspect of the query better scores higher."
