"""Controls: the same edit with a term that does not matter."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from pyterrier_mechir.perturb.base import OfPairs, Pair, Perturbation, as_perturbation, corresponds
from pyterrier_mechir.perturb.idf import Idf
from pyterrier_mechir.perturb.words import STOPWORDS, Words, changes, lowercase_words

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class RandomTerm(OfPairs):
    """The edit of another perturbation, with random terms: what of an effect is not about the query's terms.

    Every word that the perturbation puts into the text, function words left aside, becomes a random word of the
    collection, about as rare, that neither the query nor the text has. The edit stays where it is. The expected sign is
    kept, so that the agreement of the control with it can be set against that of the perturbation.

    Args:
        perturbation: the perturbation.
        idf: where the words come from, and how rare they are (see :meth:`pyterrier_mechir.perturb.idf.Idf.of`): a
            dataset or an iterable of documents; the stems of an index are no words.
        seed: of the choice of the words.

    Does not apply where the perturbation does not, or puts no word in.

    Raises:
        ValueError: a perturbation of alignment ``permute``, which puts no word in, or frequencies of stems.
    """

    statement = "The edit of another perturbation with random words: what is not about the query's terms."
    change = "words put in → random words as rare"
    source = "control"

    def __init__(self, perturbation: Perturbation, idf: Any, seed: int = 0):
        self.perturbation, self.seed = as_perturbation(perturbation), seed
        self.idf = Idf.of(idf)
        for member in self.perturbation.members:
            if member.alignment == "permute":
                raise ValueError(f"{member!r} puts no word in, so that none can be a random one.")
        self.idf.check_words()
        self.alignment = self.perturbation.alignment
        self.sign = self.perturbation.sign
        self.own_baseline = self.perturbation.own_baseline

    @property
    def name(self) -> str:
        return f"{self.perturbation.name}.random_term"

    @property
    def members(self) -> tuple[Perturbation, ...]:
        inner = self.perturbation.members
        return (self,) if inner == (self.perturbation,) else tuple(self._of(member) for member in inner)

    def _of(self, member: Perturbation) -> RandomTerm:
        return self if member == self.perturbation else RandomTerm(member, self.idf, self.seed)

    def pair(self, text: str, query: str) -> Pair | None:
        pair = self.perturbation.pair(text, query)
        if pair is None:
            return None
        before, after = Words(pair.baseline), Words(pair.perturbed)
        taken = {*before.keys, *lowercase_words(query)}
        rng = self._random(self.seed, text, f"{query}\x1frandom term")
        instead: dict[str, str] = {}
        put_in = _put_in(before, after)
        for place in put_in:
            term = after.keys[place]
            if term not in instead:
                word = self.idf.near(term, rng, exclude=taken)
                if word is None:
                    return None
                instead[term] = word
                taken.add(word)
        places = {place: instead[after.keys[place]] for place in put_in}
        return Pair(pair.baseline, str(after.replaced(places)), self._of(pair.by)) if places else None

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether words were put in of which none is in the query, in a pair whose sides correspond."""
        added = {word for word in changes(baseline, perturbed)[0] if word not in STOPWORDS}
        return bool(added) and added.isdisjoint(lowercase_words(query)) and corresponds("free", baseline, perturbed)

    def bind(self, ranker: Ranker) -> RandomTerm:
        return RandomTerm(self.perturbation.bind(ranker), self.idf, self.seed)


def _put_in(before: Words, after: Words) -> list[int]:
    """The places of the words, function words left aside, that one text has and another lacks."""
    shorter = min(len(before), len(after))
    head = next((i for i in range(shorter) if before.keys[i] != after.keys[i]), shorter)
    left = shorter - head
    tail = next((i for i in range(left) if before.keys[-1 - i] != after.keys[-1 - i]), left)
    one, other = before.keys[head : len(before) - tail], after.keys[head : len(after) - tail]
    opcodes = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    places = (head + i for tag, _, _, begin, end in opcodes if tag in ("insert", "replace") for i in range(begin, end))
    more = after.counts() - before.counts()
    return [place for place in places if after.keys[place] in more and after.keys[place] not in STOPWORDS]
