"""Training data: queries made from passages, documents that differ in a query term, and BM25 to score them."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from random import Random
from typing import NamedTuple

import torch
from pyterrier_pisa import tokenize
from torch import Tensor
from transformers import BertTokenizerFast

from pyterrier_mechir.text.words import STOPWORDS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
LONGEST = 256

ROWS = 4
"""Rows of a group: a passage and its edit, a rival and its edit, all of one query. Rows 2i and 2i + 1 are mates."""

_RARE = 1.8
"""The least IDF of a term that queries ask for: at most one passage in six has it."""


@cache
def stem(word: str) -> str:
    """A word as PISA's BM25 sees it."""
    return next(iter(tokenize(word, "porter2")), word) if word.isalnum() else word


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(passages: Sequence[Sequence[str]], size: int = 6000) -> dict[str, int]:
    """Every word of the collection, and pieces for words that it does not have.

    The trainers of the library ``tokenizers`` differ from run to run, so that the pieces are counted here: the most
    frequent beginnings and endings of words, as many of each as there is room for.
    """
    words = sorted(set(chain.from_iterable(passages)))
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    starts = Counter(word[:n] for word in words for n in range(3, 7) if len(word) > n)
    ends = Counter(f"##{word[-n:]}" for word in words for n in range(2, 6) if len(word) > n + 2)
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    for one in chain.from_iterable(zip(starts.most_common(), ends.most_common(), strict=False)):
        if len(pieces) < size:
            pieces.setdefault(one[0])
    return {piece: number for number, piece in enumerate(pieces)}


class Batch(NamedTuple):
    """Groups as a model reads them, and what BM25 says of each row, ``[rows]``."""

    inputs: dict[str, Tensor]
    targets: Tensor


class Groups:
    """Draws groups of rows from a collection.

    Args:
        texts: the passages.
        seed: of everything that is drawn.
        per_query: whether BM25 is divided by what the query's terms are worth, so that long queries count no more.
    """

    def __init__(self, texts: Iterable[str], seed: int, per_query: bool):
        self._random, self._per_query = Random(seed), per_query
        self.passages = [_words(text) for text in texts]
        self.vocabulary = vocabulary(self.passages)
        self.tokenizer = BertTokenizerFast(vocab=self.vocabulary, do_lower_case=True, model_max_length=LONGEST)
        self._mean_length = sum(map(len, self.passages)) / len(self.passages)
        self._holders: dict[str, set[int]] = defaultdict(set)
        forms: dict[str, set[str]] = defaultdict(set)
        for number, passage in enumerate(self.passages):
            for word in filter(str.isalnum, passage):
                self._holders[stem(word)].add(number)
                forms[stem(word)].add(word)
        self._forms = {term: sorted(words) for term, words in forms.items()}
        self.idf = {term: self._idf(len(holders)) for term, holders in self._holders.items()}
        self.idf |= {stem(word): 0.0 for word in STOPWORDS if stem(word) in self.idf}
        self._terms = sorted(term for term in self.idf if self._is_content(term))
        self._content = [word for term in self._terms for word in self._forms[term]]
        self._function = sorted(word for words in forms.values() for word in words if self.idf[stem(word)] == 0)

    def _idf(self, n_holders: int) -> float:
        return max(0.0, math.log((len(self.passages) - n_holders + 0.5) / (n_holders + 0.5)))

    def _is_content(self, term: str) -> bool:
        return self.idf.get(term, 0.0) > _RARE and len(term) > 2

    def bm25(self, query: Iterable[str], document: Sequence[str], k1: float = 0.9, b: float = 0.4) -> float:
        """What the model is to learn: BM25 of the collection, in a unit of its own."""
        asked, counts = sorted({stem(word) for word in query}), Counter(map(stem, document))
        k = k1 * (1 - b + b * len(document) / self._mean_length)
        idf = {term: self.idf.get(term, 0.0) for term in asked}
        score = sum(idf[term] * counts[term] * (1 + k1) / (counts[term] + k) for term in asked)
        return 3 * score / (max(1.0, sum(idf.values())) if self._per_query else 12)

    def _query(self, passage: Sequence[str]) -> tuple[list[str], list[str]]:
        """Content words, one to five of a passage with a quarter exchanged, and the query: these and function words."""
        draw = self._random
        here = sorted({word for word in passage if self._is_content(stem(word))})
        chosen = draw.sample(here, min(len(here), draw.choice((1, 2, 2, 3, 3, 4, 5))))
        terms = sorted({draw.choice(self._terms) if draw.random() < 0.25 else stem(word) for word in chosen})
        content = [draw.choice(self._forms[term]) for term in terms] or ["a"]
        function = draw.sample(self._function, draw.randint(1, 5)) if draw.random() < 0.4 else []
        return content, draw.sample(content + function, len(content) + len(function))

    def _crop(self, passage: Sequence[str], length: int, near: set[str]) -> list[str]:
        """A part of a passage, about one of some terms if it has any."""
        at = [place for place, word in enumerate(passage) if stem(word) in near]
        spare = max(0, len(passage) - length)
        start = self._random.choice(at) - self._random.randrange(length) if at else self._random.randint(0, spare)
        start = min(max(0, start), spare)
        return list(passage[start : start + length])

    def _other(self, terms: set[str]) -> str:
        """A content word that the query does not ask for."""
        return next(word for word in iter(lambda: self._random.choice(self._content), None) if stem(word) not in terms)

    def _mates(self, document: list[str], content: Sequence[str], terms: set[str]) -> tuple[list[str], list[str]]:
        """Two documents of as many words: a query term is taken out, appended, or put in place of other words."""
        draw, edited, kind = self._random, list(document), self._random.random()
        places = [place for place, word in enumerate(document) if stem(word) in terms and self.idf[stem(word)] > 0]
        if places and kind < 0.5:
            chosen = draw.choice(places)
            every = draw.random() < 0.6
            for place in places:
                if place == chosen or (every and stem(document[place]) == stem(document[chosen])):
                    edited[place] = self._other(terms)
            return document, edited
        added = draw.choice(content)
        if kind < 0.75:
            return [*document, self._other(terms) if draw.random() < 0.5 else "a"], [*document, added]
        free = [place for place in range(len(document)) if place not in places]
        for place in draw.sample(free, min(len(free), draw.choice((1, 1, 2)))):
            edited[place] = added
        return document, edited

    def _group(self, length: int) -> Iterator[tuple[list[str], list[str]]]:
        """Rows (query, document)."""
        draw = self._random
        own = draw.randrange(len(self.passages))
        passage = self._crop(self.passages[own], length, set())
        content, query = self._query(passage)
        asked, terms = {stem(word) for word in content}, {stem(word) for word in query}
        rivals = sorted(set().union(*(self._holders[term] for term in asked if term in self._holders)) - {own})
        rival = draw.choice(rivals) if rivals and draw.random() < 0.75 else draw.randrange(len(self.passages))
        for document in (passage, self._crop(self.passages[rival], length, asked)):
            for side in self._mates(document, content, terms):
                yield query, side

    def batch(self, n_tokens: int) -> Batch:
        """Groups of documents of about one length, of about as many tokens in all."""
        length = self._random.choice((30, 45, 60, 60, 100, 130))
        n_groups = max(3, n_tokens // int(ROWS * (1.2 * length + 8)))
        rows = [row for _ in range(n_groups) for row in self._group(length)]
        queries = [[CLS, *self._ids(query), SEP] for query, _ in rows]
        documents = [[*self._ids(document), SEP] for _, document in rows]
        shape = len(rows), max(len(query) + len(document) for query, document in zip(queries, documents, strict=True))
        ids, types, mask = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        for row, (query, document) in enumerate(zip(queries, documents, strict=True)):
            end = len(query) + len(document)
            ids[row, :end], mask[row, :end] = torch.tensor(query + document), 1
            types[row, len(query) : end] = 1
        targets = torch.tensor([self.bm25(query, document) for query, document in rows])
        return Batch({"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, targets)

    def _ids(self, words: Sequence[str]) -> list[int]:
        return [self.vocabulary[word] for word in words]
