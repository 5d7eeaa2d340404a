"""Texts as the tokens that a tokenizer makes of them, and what each token is of the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NOWHERE = np.empty((0, 2), dtype=np.int64)
"""The spans of no tokens."""

_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Tokens:
    """A tokenised text without special tokens. Slices and sums are as those of a list.

    Args:
        ids: token ids, ``[n]``.
        words: for each token, the number of the word it is a piece of, ``[n]``; -1 for a token of no word.
        spans: for each token, the characters of the text that it is made of: begin and end, int64 ``[n, 2]``, the same
            number twice for none, as everywhere where nobody asked for them.
    """

    ids: np.ndarray
    words: np.ndarray
    spans: np.ndarray = field(default_factory=lambda: NOWHERE)

    def __post_init__(self) -> None:
        if len(self.spans) != len(self.ids):
            object.__setattr__(self, "spans", np.zeros((len(self.ids), 2), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice) -> Tokens:
        return Tokens(self.ids[index], self.words[index], self.spans[index])

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            np.append(self.ids, other.ids),
            np.append(self.words, other.words),
            np.append(self.spans, other.spans, axis=0),
        )

    def starts(self) -> np.ndarray:
        """Where words start: for each token, whether it is the first of its word, and True for the end, ``[n + 1]``.

        A token of no word counts as a word of its own.
        """
        edges = np.ones(len(self) + 1, dtype=bool)
        edges[1:-1] = (self.words[1:] != self.words[:-1]) | (self.words[1:] < 0)
        return edges


def encodings(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = False) -> Sequence[Any]:
    """What a fast tokenizer makes of texts: ids, offsets, word numbers of each.

    Lone surrogates, which are no characters and which no tokenizer takes, are read as U+FFFD, the replacement
    character.

    Args:
        tokenizer: the tokenizer.
        texts: the texts.
        special: whether it adds its special tokens.
    """
    if not texts:
        return []
    try:
        made: Any = tokenizer(list(texts), add_special_tokens=special, verbose=False)
    except TypeError:
        read = [_SURROGATES.sub("\ufffd", text) for text in texts]
        if read == list(texts):
            raise
        made = tokenizer(read, add_special_tokens=special, verbose=False)
    return list(made.encodings)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], located: bool = False) -> list[Tokens]:
    """Token ids and word numbers of texts, without special tokens, by a fast tokenizer.

    Args:
        tokenizer: the tokenizer.
        texts: the texts.
        located: whether to tell the spans.
    """
    return [
        Tokens(
            np.array(encoding.ids, dtype=np.int64),
            word_numbers(encoding),
            offsets(tokenizer, text, encoding) if located else NOWHERE,
        )
        for text, encoding in zip(texts, encodings(tokenizer, texts), strict=True)
    ]


def word_numbers(encoding: Any) -> np.ndarray:
    """For each token of an encoding, the number of the word it is a piece of; -1 for a token of no word."""
    numbers = encoding.word_ids
    return np.fromiter((-1 if w is None else w for w in numbers), dtype=np.int64, count=len(numbers))


def offsets(tokenizer: PreTrainedTokenizerBase, text: str, encoding: Any, special: bool = False) -> np.ndarray:
    """The characters that each token of an encoded text is made of: begin and end, int64 ``[n, 2]``.

    Where a tokenizer leaves characters out, which makes its offsets too small, the tokens of each run without spaces
    have the whole run.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        encoding: what :func:`encodings` made of it.
        special: whether the tokenizer added its special tokens, which are made of none.
    """
    found = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    of_text = [at for at, owner in enumerate(encoding.sequence_ids) if owner is not None]
    if not of_text or found[of_text[-1], 1] >= len(text.rstrip()):
        return found
    runs = [match.span() for match in re.finditer(r"\S+", text)]
    made = encodings(tokenizer, [text[:end] for _, end in runs], special)
    counts = [sum(owner is not None for owner in one.sequence_ids) for one in made]
    run = np.searchsorted(counts, np.arange(len(of_text)), side="right").clip(max=len(runs) - 1)
    found[of_text] = np.array(runs, dtype=np.int64)[run]
    return found
