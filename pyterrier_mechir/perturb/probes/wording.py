"""Robustness probes of the wording: case, marks, function words, inflections, misspellings, numbers, negation."""

from __future__ import annotations

import re
from itertools import count
from random import Random

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_count
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.correspond import same_gaps
from pyterrier_mechir.perturb.outcomes import Edits, OfOutcomes
from pyterrier_mechir.text.words import STOPWORDS, Words, distinct_terms, lemma, marks

ABNIRML = "ABNIRML: MacAvaney et al., TACL 2022"

CHECKLIST = "CheckList: Ribeiro et al., ACL 2020"


class CaseFold(Perturbation):
    """All letters become lower-case. Does not apply to a text that is lower-case already."""

    alignment = "swap"
    sign = "0"
    statement = "Case does not change the score."
    change = "text → lower-cased text"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        folded = str(Words(text).lowered())
        return folded if folded != text else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return perturbed == str(Words(baseline).lowered())


class RemovePunctuation(Perturbation):
    """Takes out all marks between words; inner hyphens and apostrophes stay. Does not apply to a text without marks."""

    alignment = "fill"
    sign = "0"
    statement = "Punctuation does not change the score."
    change = "punctuation → filler"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        return str(Words(text).unmarked()) if marks(text) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return list(Words(baseline)) == list(Words(perturbed)) and not marks(perturbed)


class RemoveStopWords(Perturbation):
    """Takes out all function words. Does not apply to a text that has none, or nothing else."""

    alignment = "fill"
    sign = "0"
    statement = "Function words do not change the score."
    change = "function words → filler"
    source = ABNIRML

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        places = words.places(STOPWORDS)
        return str(words.without(set(places))) if 0 < len(places) < len(words) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return Words(perturbed).keys == [key for key in Words(baseline).keys if key not in STOPWORDS]


class Lemmatize(Perturbation):
    """Every word becomes its lemma, as the simplemma library gives it, in its own case.

    Does not apply to a text whose words are all lemmas already.

    Args:
        language: code of the language.
    """

    alignment = "swap"
    sign = "0"
    statement = "Inflection does not change the score."
    change = "words → their lemmas"
    source = ABNIRML

    def __init__(self, language: str = "en"):
        self.language = language

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        lemmas = words.replaced({place: lemma(word, self.language) for place, word in enumerate(words)})
        return str(lemmas) if list(lemmas) != list(words) else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return list(Words(perturbed)) == [lemma(word, self.language) for word in Words(baseline)]


_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

_NEXT_TO = {
    key: "".join(
        _ROWS[row + up][column + right]
        for up, right in ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
        if 0 <= row + up < len(_ROWS) and 0 <= column + right < len(_ROWS[row + up])
    )
    for row, keys in enumerate(_ROWS)
    for column, key in enumerate(keys)
}
"""The neighbours of each letter on a QWERTY keyboard, whose rows are shifted."""

KINDS = ("keyboard", "swap", "drop")
"""The kinds of misspellings (see :class:`Typos`)."""


class Typos(Perturbation):
    """Misspellings of words of four letters or more, away from their first letter.

    Args:
        n: how many words are misspelt.
        kind: ``keyboard`` (a letter becomes its neighbour on a QWERTY keyboard), ``swap`` (two letters change places),
            ``drop`` (a letter is left out), or None, which draws one of these for each word.
        terms: ``"query"`` misspells occurrences of query terms only, ``"any"`` any content word.
        seed: of the random choices.

    Does not apply where the text has fewer than ``n`` such words.

    Raises:
        ValueError: an unknown option, or ``n`` less than 1.
    """

    alignment = "swap"
    sign = "-0"
    statement = "Misspelt words do not raise the score."
    change = "word → misspelt word"
    source = f"{ABNIRML}; Penha, Câmara and Hauff, ECIR 2022"

    def __init__(self, n: int = 1, kind: str | None = None, terms: str = "any", seed: int = 0):
        self.n, self.seed = check_count("n", n), seed
        self.kind = None if kind is None else one_of("kind", kind, KINDS)
        self.terms = one_of("terms", terms, ("any", "query"))

    def _places(self, words: Words, query: str) -> list[int]:
        asked = distinct_terms(query) if self.terms == "query" else None
        return [
            place
            for place, key in enumerate(words.keys)
            if _MISSPELLABLE.fullmatch(key) and key not in STOPWORDS and (asked is None or key in asked)
        ]

    def __call__(self, text: str, query: str) -> str | None:
        words = Words(text)
        places = self._places(words, query)
        if len(places) < self.n:
            return None
        rng = self._random(self.seed, text, query)
        chosen = rng.sample(places, self.n)
        return str(words.replaced({place: self._misspelt(words[place], rng) for place in chosen}))

    def _misspelt(self, word: str, rng: Random) -> str:
        kind = self.kind or rng.choice(KINDS)
        return rng.choice(_misspellings(word, kind) or _misspellings(word, "drop"))

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        before, after = Words(baseline), Words(perturbed)
        changed = [place for place in range(len(before)) if before[place] != after[place]]
        kinds = [self.kind] if self.kind else KINDS
        return (
            len(changed) == self.n
            and set(changed) <= set(self._places(before, query))
            and same_gaps(baseline, perturbed)
            and all(
                any(after[i] in (_misspellings(before[i], kind) or _misspellings(before[i], "drop")) for kind in kinds)
                for i in changed
            )
        )


_MISSPELLABLE = re.compile(r"[a-z]{4,}")


def _misspellings(word: str, kind: str) -> Edits:
    """All misspellings of a kind, away from the first letter."""
    places = range(1, len(word))
    if kind == "drop":
        return Edits(word, [(i, i + 1, "") for i in places])
    if kind == "swap":
        apart = (i for i in places[:-1] if word[i].lower() != word[i + 1].lower())
        return Edits(word, [(i, i + 2, word[i + 1] + word[i]) for i in apart])
    neighbours = [(i, letter) for i in places for letter in _NEXT_TO[word[i].lower()]]
    return Edits(word, [(i, i + 1, letter.upper() if word[i].isupper() else letter) for i, letter in neighbours])


class SwapNumbers(Perturbation):
    """Every number becomes another of as many digits, wherever it occurs. Does not apply to a text without numbers.

    Args:
        seed: of the new numbers.
    """

    alignment = "swap"
    statement = "Numbers become others."
    change = "number → other number"
    source = CHECKLIST

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __call__(self, text: str, query: str) -> str | None:
        rng = self._random(self.seed, text, query)
        numbers = dict.fromkeys(_NUMBER.findall(text))
        taken, new = set(numbers), {}
        for number in numbers:
            new[number] = _other_number(number, taken, rng)
            taken.add(new[number])
        return _NUMBER.sub(lambda found: new[found.group()], text) if numbers else None

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        before, after = (_NUMBER.findall(side) for side in (baseline, perturbed))
        same_rest = _NUMBER.sub("0", baseline) == _NUMBER.sub("0", perturbed)
        exchanged = set(zip(before, after, strict=True)) if same_rest else set()
        return (
            same_rest and len(exchanged) == len(set(before)) and all(a != b and len(a) == len(b) for a, b in exchanged)
        )


_NUMBER = re.compile(r"\d+")

_TRIES = 20
"""How often a number is drawn that no other number of the text is, before one that only differs is taken."""


def _other_number(number: str, taken: set[str], rng: Random) -> str:
    """A number of as many digits, another than those taken where there is one."""
    new = number
    for tried in count():
        first = rng.choice("0123456789" if len(number) == 1 or number.startswith("0") else "123456789")
        new = first + "".join(rng.choices("0123456789", k=len(number) - 1))
        if new != number and (new not in taken or tried >= _TRIES):
            break
    return new


_PERHAPS_NOUNS = frozenset({"can", "will", "may", "might", "must"})

_AUXILIARIES = _PERHAPS_NOUNS.union(
    {"is", "are", "was", "were", "am", "do", "does", "did", "has", "have", "had", "could", "would", "shall", "should"}
)

_DETERMINERS = frozenset({"a", "an", "the", "this", "that", "my", "your", "his", "her", "its", "our", "their"})


class Negate(OfOutcomes):
    """A statement becomes its opposite: a ``not`` goes where there is one, else one comes after an auxiliary verb.

    What looks like an auxiliary verb is none after an article or another determiner ("the can", "a will") and as the
    name of a month ("in May"); the ``not`` of "not only" and "not just" does not negate. Other readings are not told
    apart, and contractions ("can't") are left alone.

    Args:
        seed: of the choice of the verb or of the ``not``.

    Does not apply to a text with neither.
    """

    alignment = "fill"
    statement = "A statement becomes its opposite."
    change = "filler → not, or the reverse"
    source = CHECKLIST

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _outcomes(self, text: str) -> Edits:
        words = Words(text)
        negations = [place for place in words.places("not") if _next_key(words, place) not in ("only", "just")]
        if negations:
            return Edits(text, [(*cut, "") for cut in words.cuts(negations)])
        verbs = [place for place in words.places(_AUXILIARIES) if not _is_noun(words, place)]
        spans = words.spans()
        ends = (spans[place][1] for place in verbs if _next_key(words, place) != "not")
        return Edits(text, [(end, end, " not") for end in ends])


def _next_key(words: Words, place: int) -> str | None:
    """The key of the next word, where nothing but space is in between."""
    joined = place + 1 < len(words) and words.gaps[place + 1].isspace()
    return words.keys[place + 1] if joined else None


def _is_noun(words: Words, place: int) -> bool:
    """Whether an auxiliary is a noun: right after a determiner, or capitalised within a sentence."""
    before = words.gaps[place]
    after_determiner = place > 0 and words.keys[place - 1] in _DETERMINERS and before.isspace()
    is_name = words[place].istitle() and place > 0 and not any(mark in before for mark in ".!?\n")
    return words.keys[place] in _PERHAPS_NOUNS and (after_determiner or is_name)
