"""Which words are similar to a term: a mapping, WordNet, or the neighbours in a ranker's embedding table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.text.words import lemma, words

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


N_SIMILAR = 10
"""How many similar words of a term are looked at."""


class Similar(ABC):
    """Similar words of a term; :meth:`of` makes one of whatever the user has."""

    known: bool = True
    """Whether there is anything to look words up in."""

    @abstractmethod
    def __call__(self, term: str) -> Sequence[str]:
        """Words similar to a term, the most similar first."""

    @abstractmethod
    def _key(self) -> Any:
        """What two equal ones share."""

    def best(self, term: str, exclude: Collection[str] = ()) -> str | None:
        """The most similar word that is not another form of the term nor among some lower-cased words."""
        return next((word for word in self(term) if self._differs(term, word) and word.lower() not in exclude), None)

    def related(self, term: str, word: str) -> bool:
        """Whether a word is one of those similar to a term."""
        return word.lower() in {similar.lower() for similar in self(term) if self._differs(term, similar)}

    @staticmethod
    def _differs(term: str, word: str) -> bool:
        one, other = sorted((term.lower(), word.lower()), key=len)
        return words(word) == [word] and not other.startswith(one) and lemma(one) != lemma(other)

    def __eq__(self, other: object) -> bool:
        if other is None:
            return not self.known
        return self._key() == other._key() if isinstance(other, Similar) else NotImplemented

    def __hash__(self) -> int:
        return hash(type(self))

    @staticmethod
    def of(source: Any, wanted_by: str = "STMC1") -> Similar:
        """Read similar words from a source.

        Args:
            source: a mapping of lower-cased terms to a similar word or several, the most similar first; a function of
                a term; a ranker, whose embedding table's neighbours are taken; a ``Similar``; or None, which is to be
                bound to a ranker.
            wanted_by: the name of the perturbation, for the error that looking a word up in None is.

        Raises:
            TypeError: the source is none of these.
        """
        from pyterrier_mechir.rankers.base import Ranker

        if isinstance(source, Similar):
            return source
        if source is None:
            return _Unknown(wanted_by)
        if isinstance(source, Ranker):
            return Neighbours(source)
        if isinstance(source, Mapping):
            return _Given(source)
        if callable(source):
            return _Function(source)
        raise TypeError(f"similar should be a mapping, a function, a ranker or WordNet(), not {type(source).__name__}.")


class _Unknown(Similar):
    known = False

    def __init__(self, wanted_by: str):
        self.wanted_by = wanted_by

    def __call__(self, term: str) -> Sequence[str]:
        raise ValueError(
            f"{self.wanted_by}() has no similar words: write {self.wanted_by}(similar=ranker) for the neighbours in "
            "a ranker's embedding table, or give a mapping of terms to words, or WordNet()."
        )

    def _key(self) -> Any:
        return None

    def __repr__(self) -> str:
        return "None"


class _Given(Similar):
    def __init__(self, words: Mapping[str, str | Sequence[str]]):
        self._words = words

    def __call__(self, term: str) -> Sequence[str]:
        words = self._words.get(term.lower(), ())
        return [words] if isinstance(words, str) else words

    def _key(self) -> Any:
        return self._words

    def __repr__(self) -> str:
        return f"{{{len(self._words)} terms}}"


class _Function(Similar):
    def __init__(self, function: Callable[[str], str | Sequence[str]]):
        self._function = function

    def __call__(self, term: str) -> Sequence[str]:
        found = self._function(term)
        return [found] if isinstance(found, str) else found

    def _key(self) -> Any:
        return self._function

    def __repr__(self) -> str:
        return getattr(self._function, "__name__", repr(self._function))


class Neighbours(Similar):
    """The nearest whole words of a term in a ranker's input embedding table, by cosine.

    A term of several pieces is the mean of its pieces.

    Args:
        ranker: the ranker.
    """

    def __init__(self, ranker: Ranker):
        self.ranker = ranker
        self._look_up = lru_cache(maxsize=100_000)(self._nearest)

    def __call__(self, term: str) -> Sequence[str]:
        return self._look_up(term.lower())

    def _nearest(self, term: str) -> Sequence[str]:
        ids = self.ranker.tokenizer(f" {term}", add_special_tokens=False)["input_ids"]
        if not ids or self.ranker.tokenizer.unk_token_id in ids:
            return []
        table, vocabulary = self._table
        vector = self._embeddings[ids].mean(axis=0)
        order = np.argsort(-(table @ vector), kind="stable")[: N_SIMILAR + 20]
        found = dict.fromkeys(vocabulary[place] for place in order)
        return [word for word in found if self._differs(term, word)][:N_SIMILAR]

    @cached_property
    def _embeddings(self) -> np.ndarray:
        weight: Any = self.ranker.model.get_input_embeddings().weight
        return np.asarray(weight.detach().float().cpu().numpy())

    @cached_property
    def _table(self) -> tuple[np.ndarray, list[str]]:
        vocabulary = self.ranker.vocabulary
        vectors = self._embeddings[vocabulary.words]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, 1e-12), [vocabulary.spellings[i].lower() for i in vocabulary.words]

    def _key(self) -> Any:
        return self.ranker

    def __repr__(self) -> str:
        return repr(self.ranker)

    def __reduce__(self) -> Any:
        return Neighbours, (self.ranker,)


class WordNet(Similar):
    """Synonyms, then hypernyms and hyponyms, of a term in WordNet.

    Needs the ``wordnet`` extra (the ``wn`` library) and a lexicon, which ``python -m wn download oewn:2024`` fetches
    once.

    Args:
        lexicon: the lexicon, as ``wn`` calls it.

    Raises:
        ImportError: ``wn`` is not installed.
        ValueError: the lexicon is not on this machine.
    """

    def __init__(self, lexicon: str = "oewn:2024"):
        try:
            import wn
            from wn.morphy import Morphy
        except ImportError as error:
            raise ImportError('WordNet needs the wn library: pip install "pyterrier-mechir[wordnet]".') from error
        self.lexicon = lexicon
        try:
            self._wordnet = wn.Wordnet(lexicon, lemmatizer=Morphy())
        except wn.Error as error:
            raise ValueError(f"WordNet {lexicon!r} is not here: python -m wn download {lexicon}") from error
        self._look_up = lru_cache(maxsize=100_000)(self._related_words)

    def __call__(self, term: str) -> Sequence[str]:
        return self._look_up(term.lower())

    def _related_words(self, term: str) -> Sequence[str]:
        synsets = self._wordnet.synsets(term)
        related = [*synsets, *(other for synset in synsets for other in (*synset.hypernyms(), *synset.hyponyms()))]
        found = dict.fromkeys(lemma for synset in related for lemma in synset.lemmas())
        return [word for word in found if self._differs(term, word)][:N_SIMILAR]

    def _key(self) -> Any:
        return self.lexicon

    def __repr__(self) -> str:
        return f"WordNet({self.lexicon!r})"

    def __reduce__(self) -> Any:
        return WordNet, (self.lexicon,)
