"""Semantic matching: words that are similar to a query term."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.axioms.coverage import split_terms
from pyterrier_mechir.perturb.axioms.frequency import exchange
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.insertion import Insertion, check_position, place_of
from pyterrier_mechir.text.similar import Embedder, Similar
from pyterrier_mechir.text.words import Words, changes, distinct_terms, insert, lacks_one, lowercase_words

FANG_2006 = "Fang and Zhai, SIGIR 2006"


def _similar_to(similar: Similar, terms: list[str], text: str, query: str) -> dict[str, str]:
    """For each of some query terms that has one, its most similar word that neither the query nor the text has."""
    taken = {*Words(text).keys, *lowercase_words(query)}
    found = {term: similar.best(term, exclude=taken) for term in terms}
    return {term: word for term, word in found.items() if word is not None}


class _OfSimilar(Perturbation):
    """A perturbation that looks similar words up."""

    similar: Similar

    def bind(self, ranker: Embedder) -> Any:
        """The perturbation with the neighbours in the ranker's embedding table, unless it was given similar words."""
        return self if self.similar.known else self.with_settings(similar=ranker)


class STMC1(_OfSimilar, Insertion):
    """Adds a word that is similar to a query term, set against a filler in the baseline.

    With the ranker's ``filler="random"``, the word is compared with a random one.

    Args:
        similar: similar words of a term: a mapping, a function, a ranker (its embedding table's neighbours) or
            :class:`~pyterrier_mechir.text.similar.WordNet`. None takes the ranker of the ``PatchScorer`` or
            ``PairScorer`` that is given the perturbation; elsewhere it has to be named, as in
            ``PerturbDocs(STMC1(similar=ranker))``.
        position: as in :class:`~pyterrier_mechir.perturb.TFC1`, but not ``beside``.
        n: how many times, one after the other.
        seed: of the random choices.

    Does not apply where no query term has a similar word outside the query and the text.

    Raises:
        ValueError: an unknown position; or, when applied, no similar words to look in.
    """

    sign = "+"
    statement = "A text with a word that is similar to a query term beats one with another word."
    change = "filler → word similar to a query term"
    source = f"{FANG_2006}; Lu, Chen and Eickhoff, EMNLP 2025"

    def __init__(self, similar: Any = None, position: str | int = "end", n: int = 1, seed: int = 0):
        super().__init__(check_position(position, beside=False), n, seed)
        self.similar = Similar.of(similar, self.name)

    def _term(self, text: str, query: str) -> str | None:
        found = _similar_to(self.similar, list(distinct_terms(query)), text, query)
        return self._random(self.seed, text, query).choice(list(found.values())) if found else None

    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        return (
            words.total() == 1
            and words.keys().isdisjoint({*lowercase_words(query), *Words(baseline).keys})
            and any(self.similar.related(asked, word) for asked in distinct_terms(query) for word in words)
        )


class STMC2(_OfSimilar):
    """Words similar to a query term give way to the term itself.

    Both are added to the text: similar words to the baseline, the term to the perturbed side.

    Args:
        similar: as in :class:`STMC1`.
        n: how often the similar word is added; the term is added once.
        position: as in :class:`~pyterrier_mechir.perturb.TFC1`, but not ``beside``.
        seed: of the choice of the term and of a random position.

    Does not apply where no query term has a similar word outside the query and the text.

    Raises:
        ValueError: as :class:`STMC1`.
    """

    alignment = "swap"
    sign = "+"
    own_baseline = True
    statement = "An occurrence of a query term is worth more than any number of words similar to it."
    change = "added similar word → added query term"
    source = FANG_2006

    def __init__(self, similar: Any = None, n: int = 1, position: str | int = "end", seed: int = 0):
        self.similar, self.n, self.seed = Similar.of(similar, self.name), check_count("n", n), seed
        self.position = check_position(position, beside=False)

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        written = distinct_terms(query)
        found = _similar_to(self.similar, list(written), text, query)
        rng = self._random(self.seed, text, query)
        place = place_of(self.position, text, "", rng)
        if not found or place is None:
            return None
        term = rng.choice(list(found))
        return insert(text, " ".join([found[term]] * self.n), place), insert(text, written[term], place)

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        if added.total() != 1 or len(removed) != 1:
            return False
        (term,), (word,) = added, removed
        before, after = Words(baseline), Words(perturbed)
        rest = list(before.without(set(before.places(word))))
        return (
            term in distinct_terms(query)
            and before.counts()[word] == self.n
            and self.similar.related(term, word)
            and lacks_one(after, rest, after.places(term))
        )


class STMC3(_OfSimilar):
    """A further occurrence of a query term that the text has gives way to a word similar to one that it lacks.

    The two words may differ in rarity too.

    Args:
        similar: as in :class:`STMC1`.
        position: where the word is added, as in :class:`~pyterrier_mechir.perturb.TFC1`, but not ``beside``.
        seed: of the random choices.

    Does not apply unless the text has one of the query's terms and lacks another that has a similar word.

    Raises:
        ValueError: as :class:`STMC1`.
    """

    alignment = "swap"
    sign = "+"
    own_baseline = True
    statement = "Covering a missing query term by a similar word beats repeating one that is there."
    change = "added query term that the text has → word similar to one that it lacks"
    source = FANG_2006

    def __init__(self, similar: Any = None, position: str | int = "end", seed: int = 0):
        self.similar, self.seed = Similar.of(similar, self.name), seed
        self.position = check_position(position, beside=False)

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        seen, unseen = split_terms(text, query)
        rng = self._random(self.seed, text, query)
        place = place_of(self.position, text, "", rng)
        if not seen or not unseen or place is None:
            return None
        found = _similar_to(self.similar, unseen, text, query)
        if not found:
            return None
        word = rng.choice(list(found.values()))
        return insert(text, distinct_terms(query)[rng.choice(seen)], place), insert(text, word, place)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged = exchange(baseline, perturbed)
        if exchanged is None:
            return False
        seen, unseen = split_terms(baseline, query)
        repeated, word = exchanged
        return (
            repeated in seen
            and Words(baseline).counts()[repeated] > 1
            and any(self.similar.related(term, word) for term in unseen)
        )


class Synonym(_OfSimilar):
    """Every occurrence of one query term gives way to the word most similar to it, in a document or in a query.

    Args:
        similar: as in :class:`STMC1`.
        seed: of the choice of the term.

    Does not apply where no query term occurs that has a similar word outside the query and the text.

    Raises:
        ValueError: as :class:`STMC1`.
    """

    alignment = "swap"
    sign = "-0"
    statement = "A query term is replaced by a similar word."
    change = "query term → similar word"
    source = "Penha, Câmara and Hauff, ECIR 2022"

    def __init__(self, similar: Any = None, seed: int = 0):
        self.similar, self.seed = Similar.of(similar, self.name), seed

    def __call__(self, text: str, query: str) -> str | None:
        seen, _ = split_terms(text, query)
        found = _similar_to(self.similar, seen, text, query)
        if not found:
            return None
        term = self._random(self.seed, text, query).choice(list(found))
        words = Words(text)
        return str(words.replaced(dict.fromkeys(words.places(term), found[term])))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        if len(added) != 1 or len(removed) != 1:
            return False
        (word,), (term,) = added, removed
        before = Words(baseline).keys
        return (
            term in distinct_terms(query)
            and word not in {*before, *lowercase_words(query)}
            and Words(perturbed).keys == [word if key == term else key for key in before]
            and self.similar.related(term, word)
        )


class DIV(Synonym):
    """A query term gives way to a new word on the topic, so that the text's vocabulary overlaps less with the query's.

    The pair and the options are those of :class:`Synonym`; the expectation is the axiom's. Rankers that match terms go
    against it, so that it is a control for them.
    """

    sign = "+"
    statement = "Of two texts on the topic, the one whose vocabulary overlaps less with the query scores higher."
    change = "query term → new word on the topic"
    source = "Gollapudi and Sharma, WWW 2009"
