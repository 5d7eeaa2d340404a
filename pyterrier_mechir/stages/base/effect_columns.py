"""The columns that patching adds to a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.models.sites import Sites
from pyterrier_mechir.results.effects import normalised
from pyterrier_mechir.results.frames import as_cells
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.positions import ALL, Positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.patching.outcome import SweepResult
    from pyterrier_mechir.text.encoding import AlignedPair

_TOKENS = ["tokens", "tokens_baseline", "token_classes"]

SLOT_UNITS = "slot_units"
"""The column of the words of each slot, where the strongest words are patched."""

ADDED = [
    *("score", "rank", "score_baseline", "score_perturbed", "patch_scores", "patch_effect", "patch_effect_noise"),
    *(*_TOKENS, SLOT_UNITS),
]
"""Columns that a scorer of pairs may add, in their order."""


class EffectColumns:
    """The columns that a sweep adds to the ``n`` rows of a frame, while they are filled.

    All scores are missing and all tokens empty at first. Call :meth:`set_scores` for the rows whose two sides are
    scored but not patched, and :meth:`set_sweep` and then, where positions are patched apart, :meth:`set_tokens` for
    those that are patched, in any order of rows and each row once; then :meth:`columns`, once. Rows that nothing was
    set for (the perturbation did not apply, or the sides could not be aligned) stay missing.

    The columns, a cell for each row: ``score_baseline`` and ``score_perturbed`` (float32); where the scorer has sites,
    ``patch_scores`` and ``patch_effect``, float32 arrays of the shape of the sites (``[layer, head]``, ``[layer]`` or
    ``[site]``), to which positions or token classes that are patched apart add a last axis, and
    ``patch_effect_noise`` of direction ``both``; and, where these are patched apart, ``tokens``, ``tokens_baseline``
    and ``token_classes``, lists of strings.

    Args:
        n: rows of the frame.
        sites: the sites of the arrays, of which only the swept ones get values.
        slots: the positions or token classes that are patched apart, if any.
        direction: ``denoise``, ``noise`` or ``both``; of both, ``patch_scores`` and ``patch_effect`` hold the first.
    """

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
        """Give rows the scores of both sides, ``[row]`` each."""
        self.baseline[rows], self.perturbed[rows] = baseline, perturbed

    def set_sweep(self, rows: list[int], pairs: list[int], result: SweepResult) -> None:
        """Give rows the scores and patched scores of pairs.

        Args:
            rows: rows of the frame.
            pairs: for each of them, the number of its pair in the result; rows with the same texts share one.
            result: of a sweep of the sites that are swept.
        """
        self.set_scores(rows, result.baseline[pairs], result.perturbed[pairs])
        swept = list(self.sites.swept)
        for way, values in self.patched.items():
            found = getattr(result, way)
            for row, pair in zip(rows, pairs, strict=True):
                values[row] = self._missing(found[pair].shape[-1])
                values[row][swept] = found[pair]

    def set_tokens(self, pairs: dict[int, AlignedPair], tokenizer: PreTrainedTokenizerBase) -> None:
        """Give rows the tokens of both sides and the token classes of their pairs.

        Args:
            pairs: the aligned pair of each row.
            tokenizer: of the ranker.
        """
        for row, pair in pairs.items():
            sides = (pair.perturbed, pair.baseline)
            perturbed, baseline = (list(map(str, tokenizer.convert_ids_to_tokens(side.ids.tolist()))) for side in sides)
            of_row = dict(zip(_TOKENS, (perturbed, baseline, [TOKEN_CLASSES[c] for c in pair.classes]), strict=True))
            for name, values in of_row.items():
                self.tokens[name][row] = values

    def columns(self, min_delta: float) -> dict[str, Any]:
        """The columns by their names.

        Args:
            min_delta: pairs whose scores differ by less have patched scores, but no effects.
        """
        columns: dict[str, Any] = {"score_baseline": self.baseline, "score_perturbed": self.perturbed}
        if not self.sites.sites:
            return columns
        effects = {
            way: normalised(way, of_way, self.baseline, self.perturbed, min_delta)
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
