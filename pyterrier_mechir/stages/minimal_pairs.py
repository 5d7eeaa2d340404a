"""The minimal pairs of a frame, and the columns that scoring them adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.patching.positions import ALL, Positions
from pyterrier_mechir.patching.sites import Sites
from pyterrier_mechir.perturb.alignment import ALIGNMENTS
from pyterrier_mechir.rankers.encoding import TOKEN_CLASSES
from pyterrier_mechir.stages.inputs import as_cells, check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.patching.sweep import SweepResult
    from pyterrier_mechir.perturb.fillers import Filler
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.encoding import AlignedPair

_TOKENS = ["tokens", "tokens_baseline", "token_classes"]
ADDED = [
    *("score", "rank", "score_baseline", "score_perturbed", "patch_scores", "patch_effect", "patch_effect_noise"),
    *_TOKENS,
]


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


class PairColumns:
    """The columns under construction, missing wherever nothing was set."""

    def __init__(self, n: int, sites: Sites, slots: Positions, direction: str):
        self.sites, self.slots, self.direction = sites, slots, direction
        self.baseline, self.perturbed = (np.full(n, np.nan, np.float32) for _ in range(2))
        ways = ("denoise", "noise") if direction == "both" else (direction,)
        self.patched = {way: [self._missing(len(slots.labels or "")) for _ in range(n)] for way in ways}
        self.tokens: dict[str, list[list[str]]] = {name: [[] for _ in range(n)] for name in _TOKENS}

    def _missing(self, n_slots: int) -> np.ndarray:
        shape = (len(self.sites.sites),) if self.slots == ALL else (len(self.sites.sites), n_slots)
        return np.full(shape, np.nan, np.float32)

    def set_scores(self, rows: list[int], baseline: np.ndarray, perturbed: np.ndarray) -> None:
        self.baseline[rows], self.perturbed[rows] = baseline, perturbed

    def set_sweep(self, rows: list[int], pairs: list[int], result: SweepResult) -> None:
        """Give rows the results of pairs."""
        self.set_scores(rows, result.baseline[pairs], result.perturbed[pairs])
        swept = list(self.sites.swept)
        for way, values in self.patched.items():
            found = getattr(result, way)
            for row, pair in zip(rows, pairs, strict=True):
                values[row] = self._missing(found[pair].shape[-1])
                values[row][swept] = found[pair]

    def set_tokens(self, pairs: dict[int, AlignedPair], tokenizer: PreTrainedTokenizerBase) -> None:
        """Give rows the tokens and token classes of their pairs."""
        for row, pair in pairs.items():
            sides = (pair.perturbed, pair.baseline)
            perturbed, baseline = (list(map(str, tokenizer.convert_ids_to_tokens(side.ids.tolist()))) for side in sides)
            of_row = dict(zip(_TOKENS, (perturbed, baseline, [TOKEN_CLASSES[c] for c in pair.classes]), strict=True))
            for name, values in of_row.items():
                self.tokens[name][row] = values

    def columns(self, min_delta: float) -> dict[str, Any]:
        columns: dict[str, Any] = {"score_baseline": self.baseline, "score_perturbed": self.perturbed}
        if not self.sites.sites:
            return columns
        delta = self.perturbed - self.baseline
        delta[~(np.abs(delta) >= min_delta) | (delta == 0)] = np.nan
        effects = {
            way: [
                (values - base if way == "denoise" else perturbed - values) / change
                for values, base, perturbed, change in zip(of_way, self.baseline, self.perturbed, delta, strict=True)
            ]
            for way, of_way in self.patched.items()
        }
        first = next(iter(effects))
        columns |= {"patch_scores": self._cells(self.patched[first]), "patch_effect": self._cells(effects[first])}
        if self.direction == "both":
            columns["patch_effect_noise"] = self._cells(effects["noise"])
        if self.slots != ALL:
            columns |= {name: as_cells(values) for name, values in self.tokens.items()}
        return columns

    def _cells(self, values: list[np.ndarray]) -> Any:
        return as_cells([value.reshape(*self.sites.shape, *value.shape[1:]) for value in values])
