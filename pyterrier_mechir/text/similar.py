"""Which words are similar to a term: a mapping, WordNet, or the neighbours in a ranker's embedding table.

:meth:`Similar.of` takes whatever the user has and gives a function from a term to similar words. Nothing here knows a
ranker: what has a tokenizer and an embedding table is an :class:`Embedder`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pyterrier_mechir.text.words import lemma, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.text.vocabulary import Vocabulary


N_SIMILAR = 10
"""How many similar words of a term are looked at."""


@runtime_checkable
class Embedder(Protocol):
    """What embeds tokens: all that looking up similar words, or counting the pieces of a word, needs of a ranker.

    Every ranker of this package is one, and so is anything else with these three; ``isinstance`` says whether it is.

    Attributes:
        tokenizer: a fast tokenizer.
        vocabulary: the tokens of the tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary

    def embeddings(self) -> np.ndarray:
        """The input embedding table, float32 ``[vocabulary, d]``: a row for each token id."""
        ...


class Similar(ABC):
    """A function from a term to the words similar to it; :meth:`of` makes one of whatever the user has."""

    known: bool = True
    """Whether there is anything to look words up in; not so where None was given, before a ranker is known."""

    @abstractmethod
    def __call__(self, term: str) -> Sequence[str]:
        """Words similar to a term, the most similar first; none where the source has none."""

    @abstractmethod
    def _key(self) -> Any:
        """What equality and hash go by: the same for two sources that give the same words."""

    def best(self, term: str, exclude: Collection[str] = ()) -> str | None:
        """The most similar word to put in the place of a term.

        Args:
            term: the term.
            exclude: lower-cased words that are not wanted, such as those that the text has already.

        Returns:
            The word, or None where all similar words are unwanted, other forms of the term ("tide" of "tides"), or
            more than one word.
        """
        return next((word for word in self(term) if self._differs(term, word) and word.lower() not in exclude), None)

    def related(self, term: str, word: str) -> bool:
        """Whether a word is one of those similar to a term, other forms of the term left aside."""
        return word.lower() in {similar.lower() for similar in self(term) if self._differs(term, similar)}

    @staticmethod
    def _differs(term: str, word: str) -> bool:
        """Whether a word is a single one and no other form of a term."""
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
                a term that returns the same; a ranker, or another
                :class:`~pyterrier_mechir.text.similar.Embedder`, whose embedding table's neighbours
                are taken; a ``Similar``; or None, where a ranker takes its place later (see
                :meth:`~pyterrier_mechir.perturb.Perturbation.bind`).
            wanted_by: the name of the perturbation, for the error that looking a word up in None is.

        Raises:
            TypeError: the source is none of these.
        """
        if isinstance(source, Similar):
            return source
        if source is None:
            return _Unknown(wanted_by)
        if isinstance(source, Embedder):
            return Neighbours(source)
        if isinstance(source, Mapping):
            return _Given(source)
        if callable(source):
            return _Function(source)
        raise TypeError(f"similar should be a mapping, a function, a ranker or WordNet(), not {type(source).__name__}.")


class _Unknown(Similar):
    """No similar words yet: looking one up is an error that says what to give."""

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
    """Similar words from a mapping."""

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
    """Similar words from a function."""

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
    """The nearest words of a term in a ranker's input embedding table, by cosine.

    Neighbours are among the tokens that are whole words. A term of several tokens is the mean of their embeddings; one
    that the tokenizer does not know has no neighbours. The table is read when it is first needed.

    Args:
        ranker: the ranker, or another :class:`~pyterrier_mechir.text.similar.Embedder`.
    """

    def __init__(self, ranker: Embedder):
        self.ranker = ranker
        self._look_up = lru_cache(maxsize=100_000)(self._nearest)

    def __call__(self, term: str) -> Sequence[str]:
        return self._look_up(term.lower())

    def _nearest(self, term: str) -> Sequence[str]:
        (ids,) = self.ranker.vocabulary.pieces([term])
        if not ids or self.ranker.tokenizer.unk_token_id in ids:
            return []
        table, vocabulary = self._table
        vector = self._embeddings[ids].mean(axis=0)
        order = np.argsort(-(table @ vector), kind="stable")[: N_SIMILAR + 20]
        found = dict.fromkeys(vocabulary[place] for place in order)
        return [word for word in found if self._differs(term, word)][:N_SIMILAR]

    @cached_property
    def _embeddings(self) -> np.ndarray:
        return self.ranker.embeddings()

    @cached_property
    def _table(self) -> tuple[np.ndarray, list[str]]:
        """The embeddings of whole words, each of length 1, and these words."""
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
    """The synonyms of a term in WordNet, and then its hypernyms and hyponyms (more general and more special words).

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
