"""Texts as a ranker reads them: their units, and the positions of its sequence that each is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.text.units import Removable, sentence_spans, token_spans, units_at, word_spans

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.sequences import Located


@dataclass(frozen=True)
class Reading:
    """A text beside its context, in units.

    Args:
        context: its query, or its document where a query is explained.
        text: the text.
        spans: where its units begin and end, in characters, int64 ``[n, 2]``.
        located: the sequence that the ranker reads, with the characters of each token.
        threshold: the score that ``lime`` asks whether the text is above; NaN for none.
    """

    context: str
    text: str
    spans: np.ndarray
    located: Located
    threshold: float = float("nan")

    @cached_property
    def names(self) -> list[str]:
        """The units as they stand in the text."""
        return [self.text[begin:end] for begin, end in self.spans.tolist()]

    @cached_property
    def read(self) -> np.ndarray:
        """The numbers of the units that are read, in whole or in part, int64 ``[r]``; the others are cut off."""
        begin, end = self.located.seen
        return np.flatnonzero((self.spans[:, 1] > begin) & (self.spans[:, 0] < end))

    @cached_property
    def at(self) -> np.ndarray:
        """Which unit that is read, as its place in :attr:`read`, each position of the sequence is of; -1 for none."""
        return units_at(self.spans[self.read], self.located.spans)

    @cached_property
    def visible(self) -> Removable:
        """The text as far as it is read, from which its units can be taken out."""
        begin, end = self.located.seen
        return Removable(self.text[begin:end], self.spans[self.read].clip(begin, end) - begin)

    def summed(self, of_positions: np.ndarray) -> tuple[np.ndarray, float]:
        """Numbers at positions, summed over those of each unit that is read, and over those of none.

        Args:
            of_positions: ``[S]``, or more than the sequence has positions.

        Returns:
            float64 ``[r]``, and the rest.
        """
        sums = np.bincount(self.at + 1, of_positions[: len(self.at)], minlength=len(self.read) + 1)
        return sums[1:], float(sums[0])

    def scattered(self, of_read: np.ndarray) -> np.ndarray:
        """Numbers of the units that are read as those of all units, float32 ``[n]``: NaN for what is cut off."""
        found = np.full(len(self.spans), np.nan, dtype=np.float32)
        found[self.read] = of_read
        return found


def readings(
    ranker: Ranker,
    contexts: Sequence[str],
    texts: Sequence[str],
    unit: str,
    thresholds: Sequence[float] | None = None,
) -> list[Reading]:
    """Texts as a ranker reads them.

    Args:
        ranker: the ranker, facing the side that the texts are of.
        contexts: the other side of each text.
        texts: the texts.
        unit: one of :data:`~pyterrier_mechir.text.units.UNITS`.
        thresholds: of the texts; None for none.
    """
    thresholds = [float("nan")] * len(texts) if thresholds is None else thresholds
    made = []
    rows = zip(contexts, texts, ranker.sequences.located(contexts, texts), thresholds, strict=True)
    for context, text, located, threshold in rows:
        if unit == "token":
            spans = token_spans(text, located.of_text)
        else:
            spans = word_spans(text) if unit == "word" else sentence_spans(text)
        made.append(Reading(context, text, spans, located, threshold))
    return made
