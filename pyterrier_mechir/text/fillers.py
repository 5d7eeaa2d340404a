"""Fillers: the tokens that stand in one side of a pair where the other side has an insertion.

A longer text may score higher for its length alone. So a baseline that lacks an inserted word gets as many other tokens
in its place: one that is always the same ("a", [MASK]), or random words that are as rare (:class:`RandomFiller`).
:class:`Fillers` makes what the user asks for ready for a tokenizer, and gives the token ids for each pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.checks import check_count
from pyterrier_mechir.text.alignment import FILL, Alignment, words_of
from pyterrier_mechir.text.idf import Analysis, Idf
from pyterrier_mechir.text.words import lowercase_words, seeded

if TYPE_CHECKING:
    from pyterrier_mechir.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class RandomFiller:
    """Random words as fillers, about as rare as the word that they stand against, and in all of as many tokens.

    Args:
        idf: where the words come from and how rare they are: anything that
            :meth:`~pyterrier_mechir.perturb.Idf.of` takes but stems. None draws whole words of the tokenizer's
            vocabulary, whose order stands for their rarity; a word that is not whole there counts as the rarest, and
            has as many words against it as it has pieces.
        draws: how many times fillers are drawn; the scores of the draws are averaged.
        seed: of the draws, which depend on nothing else but the row's query and baseline text.
        analyse: for a mapping or documents, text to terms; lower-cased words by default.

    Raises:
        ValueError: ``draws`` is less than 1, or the frequencies are of stems.
    """

    idf: Any = None
    draws: int = 3
    seed: int = 0
    analyse: Analysis | None = None

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        if self.idf is not None:
            analyse = None if isinstance(self.idf, Idf) else self.analyse
            object.__setattr__(self, "idf", Idf.of(self.idf, analyse))
            self.idf.check_words()

    def __repr__(self) -> str:
        of = "" if self.idf is None else f"{self.idf!r}, "
        return f"RandomFiller({of}draws={self.draws}, seed={self.seed})"


Filler = str | RandomFiller
"""What can be given as a filler: see :class:`Fillers`."""


class Fillers:
    """The fillers that the user asks for as token ids of one tokenizer, made ready once for many pairs.

    ``len`` is how many there are: one for each fixed token, and as many for a :class:`RandomFiller` as it has draws.

    Args:
        filler: ``"mask"`` or ``"pad"`` (that special token), ``"random"`` (that is ``RandomFiller()``), a
            :class:`RandomFiller`, any other text that is a single token, or a list of these.
        vocabulary: of the tokenizer.

    Raises:
        TypeError: a filler of another kind.
        ValueError: the tokenizer has no such special token, or a text is not a single token.
    """

    def __init__(self, filler: Filler | Sequence[Filler], vocabulary: Vocabulary):
        fillers = [filler] if isinstance(filler, (str, RandomFiller)) else list(filler)
        self._draws: list[tuple[int, None] | tuple[int, _Draws]] = []
        for one in fillers:
            if not isinstance(one, (str, RandomFiller)):
                raise TypeError(
                    f"filler {one!r}: give a word, 'mask', 'pad', 'random', a RandomFiller or a list of these."
                )
            if isinstance(one, str) and one != "random":
                self._draws.append((vocabulary.token(one), None))
                continue
            made = one if isinstance(one, RandomFiller) else RandomFiller()
            words = _Draws(made, vocabulary)
            self._draws += [(draw, words) for draw in range(made.draws)]

    def __len__(self) -> int:
        return len(self._draws)

    def ids(self, aligned: Alignment, query: str, text: str) -> list[np.ndarray]:
        """The filler ids of a pair.

        Args:
            aligned: the alignment of its sides.
            query: its query, which with its baseline text decides what is drawn.
            text: its baseline text.

        Returns:
            For each filler, or draw of one, an id for each position, ``[n]``; those at positions without
            :data:`~pyterrier_mechir.text.alignment.FILL` mean nothing.
        """
        return [
            np.full(len(aligned), number, dtype=np.int64)
            if words is None
            else words.drawn(aligned, query, text, number)
            for number, words in self._draws
        ]


class _Draws:
    """Draws random words, from a vocabulary or a collection, as token ids."""

    def __init__(self, filler: RandomFiller, vocabulary: Vocabulary):
        self._filler, self._vocabulary = filler, vocabulary
        self._lexicons = vocabulary.lexicons(filler.idf)
        if not any(map(len, self._lexicons.values())):
            raise ValueError(f"{filler!r} has no words of three letters to draw from; choose another filler.")
        self._sizes = sorted(self._lexicons, reverse=True)
        self._whole: dict[str, int] = {}
        for token in vocabulary.words.tolist() if filler.idf is None else ():
            self._whole.setdefault(vocabulary.spellings[token].lower(), token)

    def drawn(self, aligned: Alignment, query: str, text: str, draw: int) -> np.ndarray:
        """Ids for each position of an alignment, 0 where there is nothing to fill."""
        rng = random.Random(seeded(self._filler.seed, query, text, str(draw)))
        out = np.zeros(len(aligned), dtype=np.int64)
        sides = (
            (aligned.baseline, aligned.perturbed, aligned.perturbed_words),
            (aligned.perturbed, aligned.baseline, aligned.baseline_words),
        )
        asked = set(lowercase_words(query))
        for lacking, having, numbers in sides:
            if not (lacking == FILL).any():
                continue
            for word, span in words_of(having, numbers, self._vocabulary.spellings):
                missing = span[lacking[span] == FILL]
                if len(missing):
                    out[missing] = self._pieces(len(missing), self._rarity(word), asked | {word.lower()}, rng)
        return out

    def _rarity(self, word: str) -> float | None:
        """How rare a word is: its idf, or its place in the vocabulary; None for one that is unknown."""
        return self._whole.get(word.lower()) if self._filler.idf is None else self._filler.idf(word)

    def _pieces(self, n: int, rarity: float | None, exclude: set[str], rng: random.Random) -> list[int]:
        """``n`` token ids: of one word where there is a word of so many pieces, else of several."""
        pieces: list[int] = []
        while len(pieces) < n:
            sizes = (size for size in self._sizes if size <= n - len(pieces))
            words = (self._lexicons[size].near(rarity, rng, exclude) for size in sizes)
            found = next((word for word in words if word is not None), None)
            pieces += [self._any_token(exclude, rng)] if found is None else self._ids(found)
        return pieces

    def _ids(self, word: str) -> list[int]:
        """The pieces of a word that was drawn."""
        return [self._whole[word]] if self._filler.idf is None else self._vocabulary.pieces([word])[0]

    def _any_token(self, exclude: set[str], rng: random.Random) -> int:
        """A whole word of the vocabulary, whatever its rarity, where no word of a fitting size is left."""
        words, spellings = self._vocabulary.words, self._vocabulary.spellings
        others = [token for token in words if spellings[token].lower() not in exclude]
        return int(rng.choice(others or list(words) or [0]))
