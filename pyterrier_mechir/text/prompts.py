"""Prompts: texts with a query and a document in them, which are tokenised as their whole.

The tokens of a text depend on what stands beside it: some tokenizers join a mark to the line breaks after it, a bracket
to the word after it, or one space to the next. So the whole prompt is tokenised, and where the query and the document
are in it the characters tell that each token is made of. A token that is of a text and of the prompt's own words or
line breaks beside it counts as one of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.text.encoding import SPECIAL, Parts, Sides, Template
from pyterrier_mechir.text.tokens import Tokens, encodings, offsets, word_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELD = re.compile(r"(\{query\}|\{document\})")

_PROBES = ("a", "tide", "7", "«", "_")
"""Texts with which it is read off the tokenizer what a prompt's own tokens are where a text joins none of them."""


_SHARED = (
    "the tokens of a query and its document cannot be told apart in this prompt, as one depends on the other; put a "
    "word or a line break between {query} and {document} in the template, and a space or a line break around each."
)


@dataclass(frozen=True)
class Prompt(Template):
    """A prompt, as a template.

    Args:
        literals: the text before, between and after query and document, in the order that the prompt has them.
        special: whether the tokenizer adds its special tokens around the prompt.
    """

    literals: tuple[str, str, str] = ("", "", "")
    special: bool = True

    @classmethod
    def parse(cls, tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> Prompt:
        """The template of a text with ``{query}`` and ``{document}`` in it.

        Args:
            tokenizer: a fast tokenizer.
            text: the prompt.
            special: whether the tokenizer adds its special tokens around it.

        Raises:
            ValueError: ``{query}`` or ``{document}`` is not there exactly once, or a word of the prompt and one of
                theirs are one.
        """
        before, *split = _FIELD.split(text)
        if sorted(split[::2]) != ["{document}", "{query}"]:
            raise ValueError(f"the template {text!r} should have {{query}} and {{document}} once each.")
        order = (0, 1) if split[0] == "{query}" else (1, 0)
        nothing = np.empty(0, dtype=np.int64)
        made = cls((nothing,) * 3, (), order, (0, 0), literals=(before, split[1], split[3]), special=special)
        if not split[1] or made._joins_words(tokenizer):
            raise ValueError(
                f"the template {text!r} joins words of its own to the query or the document, or these to each other; "
                "put spaces, line breaks or special tokens around {query} and {document}."
            )
        probes = made.parts(tokenizer, [_PROBES, _PROBES])
        around = tuple(max(stretches, key=len) for stretches in zip(*(one.around for one in probes), strict=True))
        return replace(made, around=around)

    def _joins_words(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a word that is put into the prompt becomes one token with a letter or a digit of the prompt."""
        for word in _PROBES[:2]:
            whole = self._whole(word, word)
            (encoding,) = encodings(tokenizer, [whole], self.special)
            for begin, end in self._spans(word, word):
                of_text = [(start, stop) for start, stop in encoding.offsets if start < end and stop > begin]
                beside = "".join(whole[start:begin] + whole[end:stop] for start, stop in of_text)
                if any(map(str.isalnum, beside)):
                    return True
        return False

    def _whole(self, query: str, document: str) -> str:
        first, second = (query, document) if self.order == (0, 1) else (document, query)
        before, between, after = self.literals
        return f"{before}{first}{between}{second}{after}"

    def _spans(self, query: str, document: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the text at each place of the prompt begins and ends."""
        first, second = (query, document) if self.order == (0, 1) else (document, query)
        begin = len(self.literals[0])
        end = begin + len(first)
        again = end + len(self.literals[1])
        return (begin, end), (again, again + len(second))

    def _encodings(self, tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]]) -> Sequence[Any]:
        return encodings(tokenizer, [self._whole(*texts) for texts in zip(*columns, strict=True)], self.special)

    def plain(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[Sequence[str]],
        max_length: int,
        cut: Callable[[Parts], Parts],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for encoding, *texts in zip(self._encodings(tokenizer, columns), *columns, strict=True):
            if len(encoding) > max_length:
                yield self.build(cut(self._parts(tokenizer, encoding, *texts)))
            else:
                ids = np.array(encoding.ids, dtype=np.int64)
                yield ids, np.zeros_like(ids), np.full_like(ids, SPECIAL)

    def parts(
        self, tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], located: bool = False
    ) -> list[Parts]:
        made = zip(self._encodings(tokenizer, columns), columns[0], columns[1], strict=True)
        return [self._parts(tokenizer, one, query, document, located=located) for one, query, document in made]

    def _parts(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoding: Any,
        query: str,
        document: str,
        upto: int | None = None,
        located: bool = False,
    ) -> Parts:
        """A tokenised prompt, or what of it is up to some place, in parts; spaces right before a text go with it."""
        bounds, joined = self._bounds(tokenizer, encoding, query, document, upto)
        ids, words = np.array(encoding.ids, dtype=np.int64), word_numbers(encoding)
        around = tuple(ids[bounds[n] : bounds[n + 1]] for n in (0, 2, 4))
        of_places = [Tokens(ids[bounds[n] : bounds[n + 1]], words[bounds[n] : bounds[n + 1]]) for n in (1, 3)]
        if located:
            spans = offsets(tokenizer, self._whole(query, document)[:upto], encoding, self.special)
            of_places = [
                replace(tokens, spans=spans[bounds[n] : bounds[n + 1]].clip(begin, end) - begin)
                for n, tokens, (begin, end) in zip((1, 3), of_places, self._spans(query, document), strict=True)
            ]
        return Parts(
            around,
            tuple(of_places[place] for place in self.order),
            tuple(joined[place] for place in self.order),
        )

    def _bounds(
        self, tokenizer: PreTrainedTokenizerBase, encoding: Any, query: str, document: str, upto: int | None = None
    ) -> tuple[list[int], list[bool]]:
        """Where each part of a tokenised prompt begins and ends, and of each text whether its last token goes on."""
        ids = np.array(encoding.ids, dtype=np.int64)
        at = [number for number, owner in enumerate(encoding.sequence_ids) if owner is not None]
        first, last = (at[0], at[-1] + 1) if at else (len(ids), len(ids))
        starts, ends = np.array(encoding.offsets[first:last], dtype=np.int64).reshape(-1, 2).T
        bounds, places = [0], list[int]()
        joined: list[bool] = []
        for literal, (begin, end) in zip(self.literals[:2], self._spans(query, document), strict=True):
            begin -= len(literal) - len(literal.rstrip(" "))
            low = first + int((ends <= begin).sum())
            high = max(low, first + int((starts < end).sum()))
            bounds, places = [*bounds, low, high], [*places, begin, end]
            joined.append(high > low and int(ends[high - first - 1]) > end)
        whole = self._whole(query, document)[:upto]
        if len(ends) and ends[-1] < len(whole.rstrip()):
            bounds, joined = [0, *self._counted(tokenizer, ids, whole, places)], [False, False]
        if bounds[3] < bounds[2]:
            raise ValueError(_SHARED)
        return [*bounds, len(ids)], joined

    def _counted(self, tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, whole: str, ends: list[int]) -> list[int]:
        """How many tokens there are up to some places of a prompt, of which the tokenizer leaves characters out.

        Offsets are too small after such a character, so the prompt is tokenised up to each place.
        """
        counts = []
        for encoding in encodings(tokenizer, [whole[:end] for end in ends], self.special):
            n = 1 + max((at for at, owner in enumerate(encoding.sequence_ids) if owner is not None), default=-1)
            if encoding.ids[:n] != ids[:n].tolist():
                raise ValueError(_SHARED)
            counts.append(n)
        return counts

    def sides(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[Sequence[str]],
        perturbed: Sequence[str],
        varied: int,
        located: bool = False,
    ) -> Iterator[Sides]:
        """The two sides of minimal pairs, so tokenised that what follows them does not make them differ.

        In a prompt with two line breaks after the document, the baseline "Tides rise." and the perturbed text "Tides
        rise. Tides fall" may have the tokens::

            Tides | rise | .⏎⏎
            Tides | rise | . | Tides | fall | ⏎⏎

        Although both have the same first sentence, the token of its full stop is another on each side. So the baseline
        takes the tokens that it has where nothing follows it, and the sides differ by the added sentence alone::

            Tides | rise | . | ⏎⏎
            Tides | rise | . | Tides | fall | ⏎⏎

        This is done where the prompt's own text is joined to the shorter side alone. Otherwise both sides keep the
        tokens that they have in the prompt, and those of the prompt that differ correspond to each other.
        """
        others = [perturbed if n == varied else texts for n, texts in enumerate(columns)]
        made = zip(self.parts(tokenizer, columns, located), self.parts(tokenizer, others, located), strict=True)
        for pair, *texts in zip(made, zip(*columns, strict=True), zip(*others, strict=True), strict=True):
            yield self._sides(tokenizer, pair, texts, varied, located)

    def _sides(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pair: tuple[Parts, Parts],
        texts: Sequence[tuple[str, str]],
        varied: int,
        located: bool,
    ) -> Sides:
        place, fixed = self.order.index(varied), 1 - varied
        after = [side.around[place + 1] for side in pair]
        tokens = [side.segments[varied] for side in pair]
        shorter = int(len(tokens[1]) < len(tokens[0]))
        if pair[shorter].joined[varied] and not pair[1 - shorter].joined[varied]:
            tokens[shorter] = self._unjoined(tokenizer, *texts[shorter], place, located)
            after[shorter] = after[1 - shorter]
        before = [side.around[place] for side in pair]
        n_first = _shared(*before)
        n_after = _shared(*(ids[::-1] for ids in after))
        for n, side in enumerate(tokens):
            left, right = before[n][n_first:], after[n][: len(after[n]) - n_after]
            tokens[n] = _wordless(left) + side + _wordless(right)
        n_last = min(max(len(ids) - n_after for ids in after), *map(len, tokens))
        far = 2 - 2 * place
        same = (pair[0].around[far], pair[0].segments[fixed].ids), (pair[1].around[far], pair[1].segments[fixed].ids)
        if not all(np.array_equal(one, other) for one, other in zip(*same, strict=True)):
            raise ValueError(_SHARED)
        around = list(pair[1].around)
        around[place], around[place + 1] = before[1][:n_first], after[1][len(after[1]) - n_after :]
        return Sides(tuple(around), pair[1].segments[fixed], tokens[0], tokens[1], n_last)

    def _unjoined(
        self, tokenizer: PreTrainedTokenizerBase, query: str, document: str, place: int, located: bool
    ) -> Tokens:
        """The tokens of the text at a place of the prompt, where nothing follows it."""
        whole, (_, end) = self._whole(query, document), self._spans(query, document)[place]
        (encoding,) = encodings(tokenizer, [whole[:end]], self.special)
        return self._parts(tokenizer, encoding, query, document, end, located).segments[self.order[place]]


def _wordless(ids: np.ndarray) -> Tokens:
    """Tokens of no word."""
    return Tokens(ids, np.full(len(ids), -1))


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences have in common at their beginning."""
    n = min(len(one), len(other))
    same = one[:n] == other[:n]
    return n if same.all() else int(np.argmin(same))
