"""The minimal pairs in the rows of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.stages.base.checks import check_rows
from pyterrier_mechir.stages.base.unit_rows import RowUnits, units_of
from pyterrier_mechir.text.alignment import ALIGNMENTS
from pyterrier_mechir.text.encoding import unique

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair
    from pyterrier_mechir.text.fillers import Filler


@dataclass(frozen=True)
class PairRows:
    """The minimal pairs of a frame, row by row.

    Args:
        side: what varies: ``document`` or ``query``.
        contexts: what both sides share: the query, or the document.
        baselines: the baseline texts.
        perturbed: the perturbed texts, None where there is none.
        alignments: their alignments.
        units: their units, of which the strongest are patched; None where positions do not depend on units.
    """

    side: str
    contexts: list[str]
    baselines: list[str]
    perturbed: list[str | None]
    alignments: list[str]
    units: list[RowUnits] | None = None

    @classmethod
    def of(cls, frame: pd.DataFrame, text_field: str, n_units: int = 0) -> PairRows:
        """Read the pairs of a frame that has ``text_perturbed`` or ``query_perturbed``.

        Args:
            frame: the frame.
            text_field: column of the document text.
            n_units: how many of the strongest units of a row are patched.

        Raises:
            ValueError: it has both, or a text that is not a string, or a (qid, docno) that comes twice; or units that
                are those of another text.
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
        baselines = frame[baseline].where(frame[baseline].notna(), frame[field]).tolist()
        return cls(
            side,
            frame[context].tolist(),
            baselines,
            [text if isinstance(text, str) else None for text in frame[f"{field}_perturbed"]],
            [one_of("alignment", value, ALIGNMENTS) if isinstance(value, str) else "fill" for value in declared],
            units_of(frame, field, baselines, n_units) if n_units else None,
        )

    @classmethod
    def unedited(cls, frame: pd.DataFrame, text_field: str) -> PairRows:
        """The texts of a frame that has no perturbed side, each beside itself, so that nothing is edited.

        Raises:
            ValueError: a text that is not a string, or a (qid, docno) that comes twice.
        """
        check_rows(frame, ["query", text_field])
        texts = frame[text_field].tolist()
        return cls("document", frame["query"].tolist(), texts, list(texts), ["fill"] * len(frame))

    def key(self, row: int) -> tuple[Any, ...]:
        """What decides the scores of a row that has a perturbed text."""
        texts = self.contexts[row], self.baselines[row], str(self.perturbed[row]), self.alignments[row]
        return texts if self.units is None else (*texts, self.units[row].key())

    def aligned(self, ranker: Ranker, rows: Sequence[int], filler: Filler | Sequence[Filler] = "a") -> AlignedRows:
        """The distinct pairs of some rows, encoded so that their sides correspond.

        Args:
            ranker: facing the side that varies.
            rows: rows that have a perturbed text.
            filler: as in :class:`~pyterrier_mechir.PatchScorer`.

        Raises:
            ValueError: a ``free`` perturbation, or an unusable filler.
        """
        keys, which = unique([self.key(row) for row in rows])
        contexts, baselines, perturbed, alignments, *_ = zip(*keys, strict=True) if keys else [()] * 4
        located = self.units is not None
        made = ranker.align(contexts, baselines, perturbed, alignments=alignments, filler=filler, located=located)
        if self.units is not None:
            of_keys = dict(zip(which, (self.units[row] for row in rows), strict=True))
            made = [
                None if pair is None else replace(pair, slots=of_keys[number % len(keys)].slots(pair.spans))
                for number, pair in enumerate(made)
            ]
        return AlignedRows(dict(zip(rows, which, strict=True)), unique(contexts)[0], made, len(keys))

    def changed(self, ranker: Ranker, filler: Filler | Sequence[Filler]) -> list[AlignedPair]:
        """The pairs whose sides differ and can be aligned; with several fillers, all of one before those of the next.

        Args:
            ranker: facing the side that varies.
            filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        """
        rows = [row for row, text in enumerate(self.perturbed) if text is not None and text != self.baselines[row]]
        aligned = self.aligned(ranker, rows, filler)
        n = aligned.n
        of_fillers = (aligned.pairs[start : start + n] for start in range(0, len(aligned.pairs), max(n, 1)))
        found = (of_filler[aligned.places[row]] for of_filler in of_fillers for row in rows)
        return [pair for pair in found if pair is not None]


@dataclass(frozen=True)
class AlignedRows:
    """Distinct pairs, encoded, and the rows that have them.

    Args:
        places: for each row, which of the ``n`` distinct pairs it has.
        contexts: the distinct queries, or documents where queries vary, that ``pair.query`` indexes.
        pairs: the ``n`` pairs, for each filler in turn; None for one whose edit does not fit.
        n: how many distinct pairs there are.
    """

    places: dict[int, int]
    contexts: list[str]
    pairs: list[AlignedPair | None]
    n: int
