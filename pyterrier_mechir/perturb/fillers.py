"""Filler tokens: what stands in one side of a pair where the other has an insertion."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.perturb.alignment import FILL, Alignment, words_of
from pyterrier_mechir.perturb.base import seeded
from pyterrier_mechir.perturb.idf import BAND, Analysis, Idf
from pyterrier_mechir.perturb.insertion import check_count
from pyterrier_mechir.perturb.words import lowercase_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACES = "Ġ▁"
_CONTINUED = "##"

_FEWEST = 25
"""Words on either side of a replaced word that its band has at least."""


class Vocabulary:
    """What alignment needs of a tokenizer's vocabulary.

    Args:
        tokenizer: a fast tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        spellings: the text of each token id, without the marks of a preceding space and of a continued word.
        words: ids of whole alphabetic words of three letters or more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        spellings = [token.removeprefix(_CONTINUED).lstrip(_SPACES) or token for token in tokens]
        self.spellings = np.array(spellings, dtype=object)
        marked = [token.startswith(tuple(_SPACES)) for token in tokens]
        starts_word = marked if any(marked) else [not token.startswith(_CONTINUED) for token in tokens]
        self.words = np.array(
            [i for i, word in enumerate(spellings) if starts_word[i] and len(word) > 2 and word.isalpha()],
            dtype=np.int64,
        )

    def token(self, filler: str) -> int:
        """The id of ``mask``, ``pad`` or a text that is a single token.

        Raises:
            ValueError: the tokenizer has no such special token, or the text is not a single token.
        """
        if filler in ("mask", "pad"):
            special = getattr(self.tokenizer, f"{filler}_token_id")
            if special is None:
                raise ValueError(f"filler {filler!r}: this tokenizer has no {filler} token; choose a word instead.")
            return int(special)
        ids = self.pieces([filler])[0]
        if len(ids) != 1:
            raise ValueError(f"filler {filler!r} is {len(ids)} tokens in this tokenizer; choose a single-token word.")
        return ids[0]

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The token ids of words in the middle of a text."""
        if not words:
            return []
        encoded: Any = self.tokenizer([f" {word}" for word in words], add_special_tokens=False)
        return list(encoded["input_ids"])


@dataclass(frozen=True)
class RandomFiller:
    """Random words as fillers, each as rare as the word it stands against and of as many pieces.

    Args:
        idf: where the words come from and how rare they are: anything that
            :meth:`~pyterrier_mechir.perturb.idf.Idf.of` takes but stems. None draws from the tokenizer's own
            vocabulary, whose order says which words are rarer; there, a word of several pieces is set against as many
            whole words.
        draws: how many times fillers are drawn; the scores of the draws are averaged.
        seed: of the draws, which depend on nothing else but the row's query and baseline.
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


class Fillers:
    """The fillers of a tokenizer, made ready once for many pairs.

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
        self._draws: list[tuple[int, None] | tuple[int, _Lexicon]] = []
        for one in fillers:
            if not isinstance(one, (str, RandomFiller)):
                raise TypeError(
                    f"filler {one!r}: give a word, 'mask', 'pad', 'random', a RandomFiller or a list of these."
                )
            if isinstance(one, str) and one != "random":
                self._draws.append((vocabulary.token(one), None))
                continue
            made = one if isinstance(one, RandomFiller) else RandomFiller()
            lexicon = _Lexicon(made, vocabulary)
            self._draws += [(draw, lexicon) for draw in range(made.draws)]

    def __len__(self) -> int:
        return len(self._draws)

    def ids(self, aligned: Alignment, query: str, text: str) -> list[np.ndarray]:
        """Filler ids for each position of an alignment: an array for each filler, or draw of one.

        Args:
            aligned: the alignment; only ids at its fillers count.
            query: the query of the pair.
            text: the baseline text of the pair.
        """
        return [
            np.full(len(aligned), number, dtype=np.int64)
            if lexicon is None
            else lexicon.drawn(aligned, query, text, number)
            for number, lexicon in self._draws
        ]


class _Lexicon:
    """Words to draw from, by their number of pieces, commonest first."""

    def __init__(self, filler: RandomFiller, vocabulary: Vocabulary):
        self._filler, self._vocabulary = filler, vocabulary
        self._words: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        rarity: dict[int, list[float]] = defaultdict(list)
        if filler.idf is None:
            self._words[1] = [(vocabulary.spellings[i].lower(), [int(i)]) for i in vocabulary.words]
            rarity[1] = vocabulary.words.tolist()
        else:
            words, values = filler.idf.lexicon
            for word, ids, value in zip(words, vocabulary.pieces(words), values, strict=True):
                self._words[len(ids)].append((word, ids))
                rarity[len(ids)].append(value)
        if not any(self._words.values()):
            raise ValueError(f"{filler!r} has no words of three letters to draw from; choose another filler.")
        self._rarity = {n: np.array(values) for n, values in rarity.items()}

    def drawn(self, aligned: Alignment, query: str, text: str, draw: int) -> np.ndarray:
        """Ids for each position of an alignment, 0 where there is nothing to fill."""
        rng = random.Random(seeded(self._filler.seed + draw, query, text))
        out = np.zeros(len(aligned), dtype=np.int64)
        sides = (
            (aligned.baseline, aligned.perturbed, aligned.perturbed_words),
            (aligned.perturbed, aligned.baseline, aligned.baseline_words),
        )
        asked = set(lowercase_words(query))
        for lacking, having, numbers in sides:
            for word, span in words_of(having, numbers, self._vocabulary.spellings):
                missing = span[lacking[span] == FILL]
                if len(missing):
                    rarity = float(having[span].max()) if self._filler.idf is None else self._filler.idf(word)
                    out[missing] = self._pieces(len(missing), rarity, asked | {word.lower()}, rng)
        return out

    def _pieces(self, n: int, rarity: float | None, exclude: set[str], rng: random.Random) -> list[int]:
        """``n`` pieces: of one word where there is a word of so many, else of several."""
        pieces: list[int] = []
        while len(pieces) < n:
            sizes = range(n - len(pieces), 0, -1)
            words = (self._near(size, rarity, exclude, rng) for size in sizes if self._words.get(size))
            found = next((ids for ids in words if ids), None)
            pieces += [self._any_token(exclude, rng)] if found is None else found
        return pieces

    def _near(self, size: int, rarity: float | None, exclude: set[str], rng: random.Random) -> list[int] | None:
        """A word of a size, about as rare; the rarest for one that is unknown. None where all are excluded."""
        words, values = self._words[size], self._rarity[size]
        rarity = values[-1] if rarity is None else rarity
        middle = int(np.searchsorted(values, rarity))
        low, high = np.searchsorted(values, [rarity * (1 - BAND), rarity / (1 - BAND)])
        band = range(max(0, min(int(low), middle - _FEWEST)), min(len(words), max(int(high), middle + _FEWEST)))
        return _draw([words[i] for i in rng.choices(band, k=10)], exclude) or _draw(
            rng.sample(words[band.start : band.stop], len(band)), exclude
        )

    def _any_token(self, exclude: set[str], rng: random.Random) -> int:
        words, spellings = self._vocabulary.words, self._vocabulary.spellings
        others = [token for token in words if spellings[token].lower() not in exclude]
        return int(rng.choice(others or list(words) or [0]))


def _draw(words: list[tuple[str, list[int]]], exclude: set[str]) -> list[int] | None:
    """The first of some words that is not excluded."""
    return next((ids for word, ids in words if word not in exclude), None)
