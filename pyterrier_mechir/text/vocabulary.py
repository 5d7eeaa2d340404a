"""The tokens of a tokenizer as words and pieces of words.

Tokenizers mark in the spelling of a token whether a space stands before it or whether it continues a word. This module
reads these marks, so that tokens can be compared by the words that they spell, words can be drawn by their number of
tokens, and a text can be checked to be a single token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.text.idf import Idf, Lexicon
from pyterrier_mechir.text.tokens import Tokens, encodings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""The mark of a preceding space in vocabularies of bytes, whose tokens spell each byte by a letter of its own."""

SPACES = f"{BYTES}\N{LOWER ONE EIGHTH BLOCK}"
"""Marks that stand at the start of a token for a space before it: of bytes, and of SentencePiece."""

CONTINUED = "##"
"""What a token begins with that continues a word, in vocabularies that do not mark spaces."""

BREAKS = ("<0x0A>", "<0x0D>")
"""Tokens that stand for a line break by its byte."""


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text as it stands, without special tokens."""
    (encoding,) = encodings(tokenizer, [text])
    return list(encoding.ids)


def single_token(tokenizer: PreTrainedTokenizerBase, text: str, after: str = "") -> int | None:
    """The id of the one token that a text is.

    A ranker that scores by the logits of answers such as "yes" and "no" has to know that each is one token.

    Args:
        tokenizer: the tokenizer.
        text: the text, taken as it stands: with a space before it, it may be another token.
        after: what stands before it, whose tokens the text must leave as they are.

    Returns:
        The id, or None where the text is no token, more than one, an unknown one, or joined to what stands before it.
    """
    before, whole = token_ids(tokenizer, after) if after else [], token_ids(tokenizer, after + text)
    is_one = len(whole) == len(before) + 1 and whole[:-1] == before and whole[-1] != tokenizer.unk_token_id
    return whole[-1] if is_one else None


class Vocabulary:
    """The tokens of a tokenizer, read once: what each spells, and which of them are words or marks.

    Args:
        tokenizer: a fast tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        spellings: the text of each token id, without the marks of a preceding space and of a continued word, an object
            array ``[vocabulary]``. Joined, those of the pieces of a word spell the word. Ids that no token has, as
            where tokens were taken out, have none.
        words: ids of the tokens that are whole alphabetic words of three letters or more, ascending.
        is_mark: for each token id, whether it has no letter and no digit, or is special or a line break, bool
            ``[vocabulary]``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        tokens = [""] * (1 + max(tokenizer.get_vocab().values(), default=-1))
        for token, number in tokenizer.get_vocab().items():
            tokens[number] = token
        spellings = [token.removeprefix(CONTINUED).lstrip(SPACES) for token in tokens]
        self.spellings = np.array(spellings, dtype=object)
        marked = [token.startswith(tuple(SPACES)) for token in tokens]
        starts_word = marked if any(marked) else [not token.startswith(CONTINUED) for token in tokens]
        self.words = np.array(
            [i for i, word in enumerate(spellings) if starts_word[i] and len(word) > 2 and word.isalpha()],
            dtype=np.int64,
        )
        special = {*tokenizer.all_special_ids, *(i for i, token in enumerate(tokens) if token in BREAKS)}
        self.is_mark = np.array([i in special or not any(map(str.isalnum, w)) for i, w in enumerate(spellings)])
        self._is_spaced = np.array(marked)
        self._is_space = np.array([not word for word in spellings])
        self._lexicons: dict[Idf, dict[int, Lexicon]] = {}

    def split_marks(self, tokens: Tokens) -> Tokens:
        """The same tokens with their words told apart at spaces and marks.

        Some tokenizers number a mark as part of the word beside it, and some give all words of a text one number; then
        an edit of one word would look like an edit of all.
        """
        if not len(tokens):
            return tokens
        marks, spaces = self.is_mark[tokens.ids], self._is_space[tokens.ids]
        marks = np.where(spaces, np.append(marks[1:], False), marks)
        begins = np.ones(len(tokens), dtype=bool)
        begins[1:] = tokens.starts()[1:-1] | (marks[1:] != marks[:-1]) | self._is_spaced[tokens.ids[1:]]
        return Tokens(tokens.ids, np.where(tokens.words < 0, -1, np.cumsum(begins) - 1), tokens.spans)

    def lexicons(self, idf: Idf | None = None) -> dict[int, Lexicon]:
        """Words that can be drawn as fillers, sorted by their number of pieces, so that a filler can match a word's.

        Args:
            idf: where the words come from, and how rare they are; None takes the whole words of the vocabulary, which
                are one piece each, and whose order says how rare they are, as tokenizers list common words first.

        Returns:
            From a number of pieces to the words of so many, by their rarity. Those of an ``idf`` are kept for the next
            call.
        """
        if idf is None:
            words = self.spellings[self.words]
            return {1: Lexicon([word.lower() for word in words], self.words.tolist())}
        if idf not in self._lexicons:
            of_size: dict[int, tuple[list[str], list[float]]] = defaultdict(lambda: ([], []))
            lexicon = idf.lexicon
            for word, ids, rarity in zip(lexicon.words, self.pieces(lexicon.words), lexicon.rarity, strict=True):
                of_size[len(ids)][0].append(word)
                of_size[len(ids)][1].append(rarity)
            self._lexicons[idf] = {size: Lexicon(*columns) for size, columns in of_size.items()}
        return self._lexicons[idf]

    def size(self, word: str) -> int:
        """The number of pieces (tokens) of a word in the middle of a text."""
        return len(self.pieces([word])[0])

    def token(self, filler: str) -> int:
        """The id of a filler that is one token: ``mask`` or ``pad`` (that special token), or a text of a single token.

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
        """The token ids of each of some words, as they are in the middle of a text, after a space."""
        return [list(encoding.ids) for encoding in encodings(self.tokenizer, [f" {word}" for word in words])]
