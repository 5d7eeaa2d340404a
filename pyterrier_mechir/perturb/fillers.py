"""Filler tokens: what stands in a baseline where the perturbed side has an insertion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.perturb.base import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACES = "Ġ▁"
_CONTINUED = "##"


class Vocabulary:
    """What alignment needs of a tokenizer's vocabulary.

    Args:
        tokenizer: a fast tokenizer.

    Attributes:
        spellings: the text of each token id, without the marks of a preceding space and of a continued word.
        words: ids of whole alphabetic words of three letters or more, from which random fillers are drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        spellings = [token.removeprefix(_CONTINUED).lstrip(_SPACES) or token for token in tokens]
        self.spellings = np.array(spellings, dtype=object)
        marked = [token.startswith(tuple(_SPACES)) for token in tokens]
        starts_word = marked if any(marked) else [not token.startswith(_CONTINUED) for token in tokens]
        self.words = np.array(
            [i for i, word in enumerate(spellings) if starts_word[i] and len(word) > 2 and word.isalpha()],
            dtype=np.int64,
        )

    def fillers(self, filler: str, n: int, query: str, text: str, seed: int = 0) -> np.ndarray:
        """Filler ids for ``n`` positions.

        Args:
            filler: ``"mask"`` or ``"pad"`` (that special token), ``"random"`` (words of the vocabulary, the same
                for the same query, text and seed), or any text that is a single token.
            n: how many.
            query: the query of the pair.
            text: the baseline text of the pair.
            seed: of ``"random"``.

        Raises:
            ValueError: the tokenizer has no such special token, or the text is not a single token.
        """
        if filler == "random":
            return np.asarray(np.random.default_rng(seeded(seed, query, text)).choice(self.words, size=n))
        return np.full(n, self._token(filler), dtype=np.int64)

    def _token(self, filler: str) -> int:
        if filler in ("mask", "pad"):
            special = getattr(self._tokenizer, f"{filler}_token_id")
            if special is None:
                raise ValueError(f"filler {filler!r}: this tokenizer has no {filler} token; choose a word instead.")
            return int(special)
        ids = self._tokenizer(f" {filler}", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"filler {filler!r} is {len(ids)} tokens in this tokenizer; choose a single-token word.")
        return int(ids[0])
