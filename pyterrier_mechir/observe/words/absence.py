"""What a text is without some of its units: five ways of being absent.

What "without" means is a choice that every explanation by leaving out makes, and has to tell:

- ``delete``: the units are taken out of the text, with the space before them, and the rest is tokenised again. The
  text is shorter, and what comes after stands elsewhere.
- ``attention``: no position attends to theirs, and what pools over positions leaves them out. Length and positions
  stay.
- a token: ``"mask"``, ``"pad"`` or a word that is one token stands at each of their positions.
- ``random``: random words that are about as rare, of as many tokens, stand there, several times over
  (:class:`~pyterrier_mechir.perturb.RandomFiller`); what is computed is the mean over the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pyterrier_mechir.text.alignment import FILL, Alignment
from pyterrier_mechir.text.fillers import Filler, Fillers, RandomFiller

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import Encoded

KEPT_LENGTH = "mask, attention, random, pad or a word that is one token"

Absence = Filler
"""``delete``, ``attention``, ``random``, ``mask``, ``pad``, a word of one token, or a RandomFiller."""


class Absent:
    """Makes the sequences of texts without some of their units.

    Args:
        ranker: the ranker, facing the side that the texts are of.
        absence: one of the ways above.
        seed: of the draws of ``random``.

    Attributes:
        n_draws: how many sequences stand for one text: more than one where what is absent is drawn at random.

    Raises:
        ValueError: the tokenizer has no such token, or the model numbers its positions by what is no padding.
        TypeError: something else.
    """

    def __init__(self, ranker: Ranker, absence: Absence, seed: int = 0):
        if not isinstance(absence, (str, RandomFiller)):
            raise TypeError(f"absence is {absence!r}; give 'delete', {KEPT_LENGTH}, or a RandomFiller.")
        self.name = absence
        self._ranker, self._sequences = ranker, ranker.sequences
        if absence in ("delete", "attention"):
            self.n_draws = 1
            return
        tokenizer = ranker.vocabulary.tokenizer
        if absence in ("mask", "pad") and getattr(tokenizer, f"{absence}_token_id") is None:
            raise ValueError(
                f"absence={absence!r}: the tokenizer of {ranker!r} has no {absence} token; give 'delete', 'attention', "
                "'random' or a word that is one token."
            )
        if absence == "pad" and _numbers_what_is_no_padding(ranker):
            raise ValueError(
                f"absence='pad': {type(ranker.model).__name__} numbers positions by the tokens that are no padding, so "
                "that all words after would move; give another."
            )
        filler = RandomFiller(seed=seed) if absence == "random" else absence
        self._fillers = Fillers(filler, ranker.vocabulary)
        self.n_draws = len(self._fillers)

    def sequences(self, readings: Sequence[Reading], kept: Sequence[np.ndarray]) -> list[Encoded | None]:
        """The sequences of some texts with some of their units.

        Args:
            readings: the texts.
            kept: for each, which of the units that are read stay, bool ``[v, r]``.

        Returns:
            For each text in turn, for each draw, a sequence for each of its ``v`` variants; None for one in which the
            model would have nothing to read.
        """
        if self.name == "delete":
            return self._shortened(readings, kept)
        made: list[Encoded | None] = []
        for reading, of_reading in zip(readings, kept, strict=True):
            made += self._replaced(reading, of_reading)
        return made

    def _shortened(self, readings: Sequence[Reading], kept: Sequence[np.ndarray]) -> list[Encoded | None]:
        contexts = [one.context for one, rows in zip(readings, kept, strict=True) for _ in range(len(rows))]
        texts = [one.visible.kept(row) for one, rows in zip(readings, kept, strict=True) for row in rows.tolist()]
        adds = self._sequences.template.n_special or self._sequences.prefixes.get(self._ranker.varies)
        at = [place for place, text in enumerate(texts) if adds or text.strip()]
        made: list[Encoded | None] = [None] * len(texts)
        found = self._sequences.plain([contexts[place] for place in at], [texts[place] for place in at])
        for place, sequence in zip(at, found, strict=True):
            made[place] = sequence
        return made

    def _replaced(self, reading: Reading, kept: np.ndarray) -> list[Encoded | None]:
        sequence, at = reading.located.sequence, reading.at
        is_absent = np.zeros((len(kept), len(at)), dtype=bool)
        is_absent[:, at >= 0] = ~kept[:, at[at >= 0]]
        if self.name == "attention":
            ids = np.where(is_absent, self._sequences.masked_ids(len(at)), sequence.ids)
            masks = np.where(is_absent, 0, sequence.mask)
            rows = zip(ids, masks, strict=True)
            return [replace(sequence, ids=row, mask=mask) if mask.any() else None for row, mask in rows]
        of_draws = self._drawn(reading)
        return [replace(sequence, ids=row) for drawn in of_draws for row in np.where(is_absent, drawn, sequence.ids)]

    def _drawn(self, reading: Reading) -> list[np.ndarray]:
        """For each draw, what stands at the position of each unit where it is absent, ``[S]``."""
        sequence, at = reading.located.sequence, reading.at
        ids, nothing, words = np.where(at >= 0, FILL, sequence.ids), np.full(len(at), -1), reading.located.words
        apart = words.max(initial=0) + 1 + np.arange(len(at))
        pieces = np.where((at >= 0) & (words < 0), apart, words)
        aligned = Alignment(ids, sequence.ids, nothing, pieces, at >= 0, reading.located.spans)
        query = reading.text if self._ranker.varies == "query" else reading.context
        return self._fillers.ids(aligned, query, reading.text)


def _numbers_what_is_no_padding(ranker: Ranker) -> bool:
    """Whether positions are numbered by the tokens that are no padding, as those of RoBERTa and its kin are."""
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in ranker.model.named_modules()
    )
