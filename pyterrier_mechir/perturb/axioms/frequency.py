"""Term frequency axioms: how often a query term occurs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.insertion import Insertion, check_position, insertions
from pyterrier_mechir.perturb.outcomes import Edits
from pyterrier_mechir.text.idf import BAND, Analysis, Idf, same_band
from pyterrier_mechir.text.words import Words, distinct_terms, insert, lowercase_words, query_terms

FANG_2004 = "Fang, Tao and Zhai, SIGIR 2004"


class TFC1(Insertion):
    """Adds an occurrence of a query term, set against a filler in the baseline.

    With ``replace`` it is the other way round: one occurrence of the term, or all of them, are taken out, and fillers
    stand in their places (TFC1-R; van Marken and Petcu, 2025). Then the ranker should score the perturbed document
    lower.

    Args:
        term: the term; None draws one of the query's terms at random, function words left aside.
        position: ``end``, ``start``, ``random``, ``beside`` (right after an occurrence of the term), or a word index
            of the text (0 is its start).
        n: how many occurrences are added, one after the other.
        replace: ``"one"`` or ``"all"`` occurrences of the term give way to fillers; nothing is inserted.
        seed: of the random choices, which depend on nothing else but the row's query and text.

    Does not apply to a query without words; where the text has fewer words than the index; or, with ``beside`` and
    ``replace``, where the term does not occur.

    Raises:
        TypeError: ``term`` is no text.
        ValueError: an unknown option, ``n`` less than 1, a term of several words with ``beside`` or ``replace``, or a
            position or ``n`` with ``replace``.
    """

    sign = "+"
    statement = "At equal length, the text with more occurrences of a query term scores higher."
    change = "filler → query term"
    source = FANG_2004

    def __init__(
        self,
        term: str | None = None,
        position: str | int = "end",
        seed: int = 0,
        *,
        n: int = 1,
        replace: str | None = None,
    ):
        super().__init__(position, n, seed)
        if term is not None and not isinstance(term, str):
            raise TypeError(f"term should be a word, or None to draw one of the query's, not {type(term).__name__}.")
        self.term = term
        self.replace = None if replace is None else one_of("replace", replace, ("one", "all"))
        if term is not None and len(lowercase_words(term)) != 1 and (replace is not None or position == "beside"):
            raise ValueError(f"term {term!r} is not one word, so its occurrences are not looked for; give one word.")
        if replace is not None:
            if position != "end" or n != 1:
                raise ValueError("position and n are of an insertion; leave them out with replace.")
            self.sign = "-"
            self.statement = "At equal length, the text with fewer occurrences of a query term scores lower."
            self.change = "query term → filler"
            self.source = "van Marken and Petcu, 2025 (arXiv:2510.06728)"

    @property
    def name(self) -> str:
        return "TFC1-R" if self.replace else super().name

    def _term(self, text: str, query: str) -> str | None:
        if self.term is not None:
            return self.term
        terms = query_terms(query)
        if self.replace is not None or self.position == "beside":
            present = set(Words(text).keys)
            terms = [term for term in terms if term.lower() in present]
        return self._random(self.seed, text, query).choice(terms) if terms else None

    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        if self.term is not None:
            return words == Counter(lowercase_words(self.term))
        return words.total() == 1 and words.keys() <= distinct_terms(query).keys()

    def __call__(self, text: str, query: str) -> str | None:
        if not self.replace:
            return super().__call__(text, query)
        term = self._term(text, query)
        words = Words(text)
        places = [] if term is None else words.places(lowercase_words(term)[0])
        if not places:
            return None
        if self.replace == "one":
            places = [self._random(self.seed, text, f"{query}\x1fposition").choice(places)]
        return str(words.without(set(places)))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        if not self.replace:
            return super()._claim(baseline, perturbed, query)
        words = Words(baseline)
        terms = [self.term.lower()] if self.term else distinct_terms(query)
        occurrences = [places for places in map(words.places, terms) if places]
        if self.replace == "all":
            return any(perturbed == str(words.without(set(places))) for places in occurrences)
        cuts = (words.cuts(places) for places in occurrences)
        return any(perturbed in Edits(baseline, [(*cut, "") for cut in one]) for one in cuts)


class TFC2(Perturbation):
    """Adds K occurrences of a query term to the baseline and K+1 to the perturbed side, at one length.

    The baseline is the text with K occurrences more, the perturbed side has K+1. A ranker that satisfies the axiom
    gains by each occurrence, and less by each further one. A pair shows, and the sign claims, the gain alone; whether
    it diminishes is seen by sweeping ``k``, with ``k_max`` at one length: ``Sweep(TFC2, k=range(5), k_max=4)``.

    Args:
        k: how many occurrences both sides get.
        k_max: where ``k`` is swept, the greatest K: both sides are filled up with ``k_max - k`` filler words, so that
            all K are compared at one length.
        term: the term; None draws one of the query's terms at random.
        position: as in :class:`TFC1`.
        filler: the filler word.
        seed: of the random choices.

    Does not apply to a query without words, and as :class:`TFC1`'s positions do not.

    Raises:
        ValueError: an unknown position, a negative ``k``, or ``k_max`` less than ``k``.
    """

    alignment = "fill"
    sign = "+"
    own_baseline = True
    statement = "A further occurrence of a query term is worth something, and less than the one before it."
    change = "K occurrences and a filler → K+1 occurrences"
    source = f"{FANG_2004}; van Marken and Petcu, 2025"

    def __init__(
        self,
        k: int = 1,
        k_max: int | None = None,
        term: str | None = None,
        position: str | int = "end",
        filler: str = "a",
        seed: int = 0,
    ):
        self.k, self.term, self.filler, self.seed = check_count("k", k, least=0), term, filler, seed
        self.k_max = None if k_max is None else check_count("k_max", k_max, least=k)
        self.position = check_position(position)

    def _added(self) -> TFC1:
        return TFC1(self.term, self.position, self.seed)

    def __call__(self, text: str, query: str) -> tuple[str, str] | None:
        one = self._added()
        term = one._term(text, query)
        place = None if term is None else one._place(text, query, term)
        if term is None or place is None:
            return None
        fillers = [self.filler] * ((self.k_max or self.k) - self.k)
        baseline, perturbed = [term] * self.k + fillers, [term] * (self.k + 1) + fillers
        return (insert(text, " ".join(baseline), place) if baseline else text), insert(text, " ".join(perturbed), place)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        counts = Words(baseline).counts()
        return any(
            len(term) == 1 and self._added()._is_term(Counter(term), baseline, query) and counts[term[0]] >= self.k
            for term in map(lowercase_words, {inserted for _, inserted in insertions(baseline, perturbed)})
        )


class TFC3(Perturbation):
    """Of two equally rare query terms, a second occurrence of the one gives way to the other, which the text lacks.

    Args:
        idf: where document frequencies come from (see :meth:`pyterrier_mechir.perturb.Idf.of`).
        tolerance: how much the idf of the two terms may differ, as a share of the greater.
        seed: of the choice of the terms and the place.
        analyse: for a mapping or documents, text to terms; lower-cased words by default. ``idf`` keeps it, so that the
            attribute is None.

    Does not apply unless the text has one query term twice and lacks another that is as rare.
    """

    alignment = "swap"
    sign = "+"
    statement = "Of two equally rare query terms, having both beats having one of them twice."
    change = "repeated query term → missing query term of equal idf"
    source = "Fang, Tao and Zhai, TOIS 2011"
    analyse: Analysis | None = None

    def __init__(self, idf: Any, tolerance: float = BAND, seed: int = 0, analyse: Analysis | None = None):
        if not tolerance >= 0:
            raise ValueError(f"tolerance is {tolerance}; give at least 0.")
        self.idf, self.tolerance, self.seed = Idf.of(idf, analyse), tolerance, seed
        self.analyse: Analysis | None = None

    def __call__(self, text: str, query: str) -> str | None:
        words, written = Words(text), distinct_terms(query)
        choices = self._choices(words, written)
        if not choices:
            return None
        rng = self._random(self.seed, text, query)
        repeated, missing = rng.choice(choices)
        return str(words.replaced({rng.choice(words.places(repeated)): written[missing]}))

    def _choices(self, words: Words, written: dict[str, str]) -> list[tuple[str, str]]:
        counts, idf = words.counts(), self.idf.of_terms(written)
        return [
            (repeated, missing)
            for repeated in idf
            for missing in idf
            if counts[repeated] > 1 and not counts[missing] and same_band(idf[repeated], idf[missing], self.tolerance)
        ]

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        exchanged = exchange(baseline, perturbed)
        return exchanged is not None and exchanged in self._choices(Words(baseline), distinct_terms(query))


def exchange(baseline: str, perturbed: str) -> tuple[str, str] | None:
    """The one word that gave way to another between two texts.

    Args:
        baseline: the text before the exchange.
        perturbed: the text after it.

    Returns:
        The lower-cased word that gave way and the one in its place; None where the texts differ by anything else.
    """
    before, after = Words(baseline), Words(perturbed)
    if before.gaps != after.gaps:
        return None
    changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    if len(changed) != 1 or changed[0][0].lower() == changed[0][1].lower():
        return None
    return changed[0][0].lower(), changed[0][1].lower()
