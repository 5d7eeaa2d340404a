"""Robustness probes of single terms: one more or one less, in a document or in a query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.insertion import Insertion
from pyterrier_mechir.text.idf import Idf
from pyterrier_mechir.text.words import STOPWORDS, Words, changes, distinct_terms, lowercase_words

Noise = str | Sequence[str] | Idf | None
"""What :class:`AddTerm` takes its words from."""


class AddTerm(Insertion):
    """Adds words that are not in the query, set against fillers in the baseline.

    Args:
        noise: what is added: a word or sentence; several, of which one is drawn per row; an
            :class:`~pyterrier_mechir.perturb.Idf`, to draw a word as rare as one of the query's terms; or None, to
            repeat one of the document's own words. Queries need one of the others.
        position: as in :class:`~pyterrier_mechir.perturb.TFC1`.
        n: how many times, one after the other.
        seed: of the random choices.

    Does not apply where there is nothing to add that shares no word with the query.

    Raises:
        TypeError: ``noise`` is of another kind.
        ValueError: an unknown position, ``n`` less than 1, or ``noise`` without words.
    """

    sign = "-0"
    statement = "A word that is not in the query is added."
    change = "filler → word outside the query"
    source = "Penha, Câmara and Hauff, ECIR 2022"

    def __init__(self, noise: Noise = None, position: str | int = "end", n: int = 1, seed: int = 0):
        super().__init__(position, n, seed)
        self.noise = noise
        self.fits_queries = noise is not None
        if noise is None or isinstance(noise, Idf):
            return
        if not isinstance(noise, (str, Sequence)):
            raise TypeError(f"noise should be a text, several, an Idf or None, not {type(noise).__name__}.")
        if not noise or not all(map(lowercase_words, [noise] if isinstance(noise, str) else noise)):
            raise ValueError(f"noise is {noise!r}; give texts that have words.")

    def _choices(self, text: str, query: str) -> list[str]:
        """What may be added of what was given, or of the text's own words."""
        if isinstance(self.noise, str):
            choices = [self.noise]
        elif self.noise is None or isinstance(self.noise, Idf):
            choices = sorted({word for word in Words(text).keys if word not in STOPWORDS})
        else:
            choices = list(self.noise)
        asked = set(lowercase_words(query))
        return [choice for choice in choices if asked.isdisjoint(lowercase_words(choice))]

    def _term(self, text: str, query: str) -> str | None:
        rng = self._random(self.seed, text, query)
        if isinstance(self.noise, Idf):
            terms, taken = list(distinct_terms(query).values()), {*lowercase_words(query), *Words(text).keys}
            return self.noise.near(rng.choice(terms), rng, exclude=taken) if terms else None
        choices = self._choices(text, query)
        return rng.choice(choices) if choices else None

    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        if isinstance(self.noise, Idf):
            taken = {*lowercase_words(query), *Words(baseline).keys}
            return words.total() == 1 and words.keys().isdisjoint(taken) and self.noise(next(iter(words))) is not None
        return any(words == Counter(lowercase_words(choice)) for choice in self._choices(baseline, query))


class RemoveTerm(Perturbation):
    """Takes out every occurrence of one query term; fillers stand in their places.

    Args:
        seed: of the choice of the term.

    Does not apply where no query term occurs, or no other word.
    """

    alignment = "fill"
    sign = "-0"
    statement = "A query term is taken out."
    change = "query term → filler"
    source = "Penha, Câmara and Hauff, ECIR 2022"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        present = set(words.keys)
        occurring = [term for term in distinct_terms(query) if term in present]
        if not occurring:
            return None
        places = set(words.places(self._random(self.seed, text, query).choice(occurring)))
        return str(words.without(places)) if len(places) < len(words) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        return (
            not added
            and len(removed) == 1
            and removed.keys() <= distinct_terms(query).keys()
            and removed.keys().isdisjoint(Words(perturbed).keys)
        )
