"""Scores of texts with some of their units left out: the one sweep that leaving out, sampling and checking use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.text.encoding import unique

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.absence import Absent
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker

_AT_ONCE = 16
"""How many times the tokens of a forward pass are made at once, so that these can be put together by length."""


@dataclass(frozen=True)
class _Part:
    """Some variants of one text."""

    number: int
    begin: int
    end: int
    tokens: int
    is_last: bool


def values(
    ranker: Ranker,
    readings: Sequence[Reading],
    kept: Sequence[np.ndarray],
    absent: Absent,
    *,
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Scores of texts with some of their units.

    The variants of many texts are put into batches by length, equal ones once; no more are held at a time than fill
    some batches.

    Args:
        ranker: the ranker, facing the side that the texts are of.
        readings: the texts.
        kept: for each, which of the units that are read stay, bool ``[v, r]``, at least one variant.
        absent: what stands in the place of those that do not.
        batch_size: sequences in a forward pass; None batches by length.

    Yields:
        For each text in its turn, float64 ``[v]``, the mean over draws; NaN where nothing is left that could be read.
    """
    found: list[np.ndarray] = []
    for parts in _in_parts(readings, kept, absent.n_draws, _AT_ONCE * ranker.batch_tokens):
        texts = [readings[part.number] for part in parts]
        sequences = absent.sequences(texts, [kept[part.number][part.begin : part.end] for part in parts])
        contexts, which = unique([text.context for text in texts])
        sizes = [(part.end - part.begin) * absent.n_draws for part in parts]
        rows = np.repeat(which, sizes).tolist()
        at = [place for place, sequence in enumerate(sequences) if sequence is not None]
        scores = np.full(len(sequences), np.nan)
        scores[at] = ranker.score_sequences(
            [sequence for sequence in sequences if sequence is not None],
            [rows[place] for place in at],
            ranker.query_inputs(contexts),
            batch_size=batch_size,
        )
        for part, of_part in zip(parts, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
            found.append(of_part.reshape(absent.n_draws, -1).mean(0))
            if part.is_last:
                yield np.concatenate(found)
                found = []


def _in_parts(
    readings: Sequence[Reading], kept: Sequence[np.ndarray], n_draws: int, budget: int
) -> Iterator[list[_Part]]:
    """Texts, and of those with many variants parts, in groups of at most so many tokens."""
    group: list[_Part] = []
    for number, (reading, rows) in enumerate(zip(readings, kept, strict=True)):
        length = max(1, len(reading.located.sequence.ids)) * n_draws
        size = max(1, budget // length)
        for begin in range(0, len(rows), size):
            end = min(begin + size, len(rows))
            part = _Part(number, begin, end, length * (end - begin), end == len(rows))
            if group and sum(one.tokens for one in group) + part.tokens > budget:
                yield group
                group = []
            group.append(part)
    if group:
        yield group
