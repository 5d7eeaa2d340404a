"""The minimal pairs in the rows of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.stages.base.checks import check_rows
from pyterrier_mechir.text.alignment import ALIGNMENTS

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair
    from pyterrier_mechir.text.fillers import Filler


@dataclass(frozen=True)
class MinimalPairs:
    """The minimal pairs of a frame, row by row.

    Args:
        side: what varies: ``document`` or ``query``.
        contexts: what both sides share: the query, or the document.
        baselines: the baseline texts.
        perturbed: the perturbed texts, None where there is none.
        alignments: their alignments.
    """

    side: str
    contexts: list[str]
    baselines: list[str]
    perturbed: list[str | None]
    alignments: list[str]

    @classmethod
    def of(cls, frame: pd.DataFrame, text_field: str) -> MinimalPairs:
        """Read the pairs of a frame that has ``text_perturbed`` or ``query_perturbed``.

        Raises:
            ValueError: it has both, or a text that is not a string, or a (qid, docno) that comes twice.
        """
        sides = {"document": text_field, "query": "query"}
        found = [side for side, field in sides.items() if f"{field}_perturbed" in frame.columns]
        if len(found) > 1:
            raise ValueError(
                f"the frame has {text_field}_perturbed and query_perturbed; one side varies at a time, so drop one."
            )
        side = found[0]
        field, context = sides[side], sides["query" if side == "document" else "document"]
        baseline = f"{field}_baseline" if f"{field}_baseline" in frame.columns else field
        check_rows(frame, ["query", text_field], optional={f"{field}_perturbed", baseline} - {field})
        declared = frame["alignment"] if "alignment" in frame.columns else [None] * len(frame)
        return cls(
            side,
            frame[context].tolist(),
            frame[baseline].where(frame[baseline].notna(), frame[field]).tolist(),
            [text if isinstance(text, str) else None for text in frame[f"{field}_perturbed"]],
            [one_of("alignment", value, ALIGNMENTS) if isinstance(value, str) else "fill" for value in declared],
        )

    def key(self, row: int) -> tuple[str, str, str, str]:
        """What decides the scores of a row that has a perturbed text."""
        return self.contexts[row], self.baselines[row], str(self.perturbed[row]), self.alignments[row]

    def aligned(self, ranker: Ranker, filler: Filler | Sequence[Filler]) -> list[AlignedPair]:
        """The pairs whose sides differ and can be aligned; with several fillers, all of one before those of the next.

        Args:
            ranker: facing the side that varies.
            filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        """
        rows = [row for row, text in enumerate(self.perturbed) if text is not None and text != self.baselines[row]]
        contexts, baselines, alignments = (
            [column[row] for row in rows] for column in (self.contexts, self.baselines, self.alignments)
        )
        perturbed = [str(self.perturbed[row]) for row in rows]
        made = ranker.align(contexts, baselines, perturbed, alignments=alignments, filler=filler)
        return [pair for pair in made if pair is not None]
