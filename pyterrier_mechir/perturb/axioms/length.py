"""Length: what a text gains or loses by getting longer. The baseline has masked positions where the text grows."""

from __future__ import annotations

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.axioms.frequency import FANG_2004, TFC1
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.probes.terms import AddTerm
from pyterrier_mechir.text.words import Words


class LNC1(AddTerm):
    """Adds words that are not in the query, set against masked positions: the text grows without matching more.

    Args:
        noise: as in :class:`AddTerm`. The published words are one fixed word (Savolainen et al., SIGIR 2025); sentences
            of documents that were judged not relevant are another good choice.
        position: as in :class:`TFC1`.
        n: how many times, one after the other.
        seed: of the random choices.

    Does not apply where there is nothing to add that shares no word with the query.
    """

    alignment = "mask"
    sign = "-0"
    statement = "A further word that is not in the query does not raise the score."
    change = "masked positions → word outside the query"
    source = FANG_2004


class LNC2(Perturbation):
    """Repeats the text, set against masked positions: it grows and matches more, and its terms keep their shares.

    Args:
        k: how often the text stands there in all.

    Does not apply to a text without words.

    Raises:
        ValueError: ``k`` is less than 2.
    """

    alignment = "mask"
    sign = "+0"
    statement = "Repeating the whole text does not lower the score."
    change = "masked positions → copies of the text"
    source = FANG_2004

    def __init__(self, k: int = 2):
        self.k = check_count("k", k, least=2)

    def __call__(self, text: str, query: str) -> str | None:
        return " ".join([text] * self.k) if len(Words(text)) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return Words(perturbed).keys == Words(baseline).keys * self.k


class TFLNC(TFC1):
    """Adds an occurrence of a query term, set against masked positions: the text grows and matches more.

    The options are those of :class:`TFC1`, but for ``replace``.
    """

    alignment = "mask"
    statement = "Adding an occurrence of a query term raises the score, although the text gets longer."
    change = "masked positions → query term"
    source = FANG_2004

    def __init__(self, term: str | None = None, position: str | int = "end", seed: int = 0, *, n: int = 1):
        super().__init__(term, position, seed, n=n)
