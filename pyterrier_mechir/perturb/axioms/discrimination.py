"""Term discrimination: rare query terms weigh more than common ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.axioms.frequency import FANG_2004, exchange
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.insertion import Insertion
from pyterrier_mechir.text.idf import Analysis, Idf
from pyterrier_mechir.text.words import Words, changes, distinct_terms


class TDC(Insertion):
    """Favours the query's most discriminative term, the one that is rarest in the collection.

    Two readings. ``append`` is the perturbation published under this name (Parry et al., ECIR 2025): the query term of
    highest idf once more, against a filler. ``swap`` is the axiom itself: an occurrence of the commonest query term
    gives way to the rarest query term, so that the number of query term occurrences stays. The commoner term occurs
    more often than the rarest, so that the text has no fewer different query terms afterwards. Terms go through the
    tokeniser and stemmer of the index that counted them, so an inflected word has its own frequency and not none.

    Args:
        idf: where document frequencies come from: a built ``PisaIndex``, a dataset, a mapping of terms to idf, or an
            iterable of documents (see :meth:`pyterrier_mechir.perturb.Idf.of`).
        position: as in :class:`~pyterrier_mechir.perturb.TFC1`; of ``append`` only.
        seed: of a random position, and of the occurrence that is swapped.
        analyse: for a mapping or documents, text to terms; lower-cased words by default. ``idf`` keeps it, so that the
            attribute is None.
        reading: ``append`` or ``swap``.
        n: how many occurrences are appended.

    Does not apply to a query of whose terms the collection has none; with ``swap``, where no commoner query term
    occurs more often than the rarest.

    Raises:
        TypeError: ``idf`` is of another kind.
        ValueError: an unknown option, or an index that is not built.
    """

    sign = "+"
    statement = "A further occurrence of the rarest query term raises the score (as published under this name)."
    change = "filler → rarest query term"
    source = "Parry, Chen, Eickhoff and MacAvaney, ECIR 2025"
    analyse: Analysis | None = None

    def __init__(
        self,
        idf: Any,
        position: str | int = "end",
        seed: int = 0,
        analyse: Analysis | None = None,
        *,
        reading: str = "append",
        n: int = 1,
    ):
        super().__init__(position, n, seed)
        self.idf = Idf.of(idf, analyse)
        self.analyse: Analysis | None = None
        self.reading = one_of("reading", reading, ("append", "swap"))
        if reading == "swap":
            self.alignment = "swap"
            self.statement = "With as many query term occurrences, the text with more of the rarer term scores higher."
            self.change = "commonest query term → rarest query term"
            self.source = FANG_2004

    def _rarest(self, query: str) -> str | None:
        """The query term of highest idf, as written; None where the collection has none of them."""
        written = distinct_terms(query)
        idf = self.idf.of_terms(written)
        return written[max(idf, key=lambda term: idf[term])] if idf else None

    def _term(self, text: str, query: str) -> str | None:
        return self._rarest(query)

    def _is_term(self, words: Counter[str], baseline: str, query: str) -> bool:
        rarest = self._rarest(query)
        return rarest is not None and words == Counter([rarest.lower()])

    def __call__(self, text: str, query: str) -> str | None:
        if self.reading == "append":
            return super().__call__(text, query)
        words, rarest = Words(text), self._rarest(query)
        common = self._commonest(words, query)
        if rarest is None or common is None:
            return None
        place = self._random(self.seed, text, query).choice(words.places(common))
        return str(words.replaced({place: rarest}))

    def _commonest(self, words: Words, query: str) -> str | None:
        """The query term of lowest idf that is commoner than the rarest and occurs more often in the text."""
        idf, rarest = self.idf.of_terms(distinct_terms(query)), self._rarest(query)
        if rarest is None:
            return None
        counts, least = words.counts(), rarest.lower()
        others = [term for term in sorted(idf) if idf[term] < idf[least] and counts[term] > counts[least]]
        return min(others, key=lambda term: idf[term], default=None)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        if self.reading == "append":
            return super()._claim(baseline, perturbed, query)
        exchanged, rarest = exchange(baseline, perturbed), self._rarest(query)
        return (
            exchanged is not None
            and rarest is not None
            and exchanged == (self._commonest(Words(baseline), query), rarest.lower())
        )


class MTDC(Perturbation):
    """A common query term and a rarer one change places: the rarer gets the count of the commoner.

    Args:
        idf: where document frequencies come from (see :meth:`pyterrier_mechir.perturb.Idf.of`).
        analyse: for a mapping or documents, text to terms; lower-cased words by default. ``idf`` keeps it, so that the
            attribute is None.

    Does not apply unless the text has some query term more often than a rarer query term. Of several such pairs of
    terms, the one whose idf differs most changes places.
    """

    alignment = "swap"
    sign = "+"
    statement = "With as many query term occurrences, the text where the rarer term has the higher count scores higher."
    change = "occurrences of a common query term ↔ those of a rarer one"
    source = "Shi et al., 2005, as listed by ir_axioms (Bondarenko et al., SIGIR 2022)"
    analyse: Analysis | None = None

    def __init__(self, idf: Any, analyse: Analysis | None = None):
        self.idf = Idf.of(idf, analyse)
        self.analyse: Analysis | None = None

    def __call__(self, text: str, query: str) -> str | None:
        words, written = Words(text), distinct_terms(query)
        counts, idf = words.counts(), self.idf.of_terms(written)
        gaps = {
            (common, rare): idf[rare] - idf[common]
            for common in idf
            for rare in idf
            if idf[rare] > idf[common] and counts[common] > counts[rare]
        }
        if not gaps:
            return None
        common, rare = max(gaps, key=lambda pair: gaps[pair])
        exchanged = dict.fromkeys(words.places(common), written[rare])
        return str(words.replaced(exchanged | dict.fromkeys(words.places(rare), written[common])))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        added, removed = changes(baseline, perturbed)
        if len(added) != 1 or len(removed) != 1:
            return False
        (rare,), (common,) = added, removed
        before, after = Words(baseline), Words(perturbed)
        idf = self.idf.of_terms(distinct_terms(query))
        exchanged = {rare: common, common: rare}
        return (
            {rare, common} <= idf.keys()
            and idf[rare] > idf[common]
            and before.counts()[common] > before.counts()[rare]
            and after.keys == [exchanged.get(key, key) for key in before.keys]
        )
