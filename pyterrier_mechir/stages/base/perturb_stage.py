"""What the stages that perturb texts have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import NO_SIGN, Perturbation, as_perturbation
from pyterrier_mechir.perturb.control import RandomTerm
from pyterrier_mechir.results.frames import METADATA, PERTURBATION
from pyterrier_mechir.stages.base.keyed import Keyed
from pyterrier_mechir.text.idf import Idf

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


CONTROLS = ("random_term",)


class PerturbStage(Keyed, pt.Transformer):
    """A stage that adds the minimal pairs of a column of texts."""

    def __init__(self, perturbation: Perturbation, control: str | None, idf: Any, ranker: Ranker | None):
        self.ranker = ranker
        self.perturbation = as_perturbation(perturbation)
        self.control = None if control is None else one_of("control", control, CONTROLS)
        self.idf = None if idf is None else Idf.of(idf)
        if control is None and idf is not None:
            raise ValueError(f"idf is of use for a control only; give control={CONTROLS[0]!r}, or leave idf out.")
        self._applied = self._controlled()

    def _controlled(self) -> Perturbation:
        """The perturbation, or its control, with what it needs of the ranker."""
        if self.control is None:
            return self.perturbation if self.ranker is None else self.perturbation.bind(self.ranker)
        idf = getattr(self.perturbation, "idf", None) if self.idf is None else self.idf
        if idf is None:
            raise ValueError(
                f"control={self.control!r} draws words of the same rarity; give idf=, a dataset or an iterable of "
                "documents."
            )
        control = RandomTerm(self.perturbation, idf)
        return control if self.ranker is None else control.bind(self.ranker)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Let a rank cutoff pass to the left: ranks are untouched and rows correspond one to one."""
        return pt.RankCutoff(k) >> self


def perturbed(frame: pd.DataFrame, field: str, perturbation: Perturbation) -> pd.DataFrame:
    """A frame with the minimal pairs that a perturbation makes of a column of texts, each distinct one once.

    Args:
        frame: with ``query`` and the column.
        field: the column, ``query`` or that of the document text.
        perturbation: bound to the ranker, if it needs one.

    Returns:
        The frame with ``<field>_perturbed``, ``perturbation``, ``alignment`` and ``expected_sign``, and with
        ``<field>_baseline`` where the perturbation makes both sides.
    """
    made: dict[tuple[str, str], Any] = {}
    rows = list(zip(frame[field], frame["query"], strict=True))
    for row in rows:
        if row not in made:
            made[row] = perturbation.pair(*row)
    pairs = [made[row] for row in rows]
    of_rows = [pair.by if pair else perturbation for pair in pairs]
    added = {
        f"{field}_perturbed": [pair and pair.perturbed for pair in pairs],
        "perturbation": [made.name for made in of_rows],
    }
    if any(member.own_baseline for member in perturbation.members):
        added[f"{field}_baseline"] = [pair and pair.baseline for pair in pairs]
    added["alignment"] = [made.alignment for made in of_rows]
    added["expected_sign"] = [made.sign or NO_SIGN for made in of_rows]
    frame = frame.drop(columns=f"{field}_baseline", errors="ignore")
    out = frame.assign(**{name: _of_texts(values, frame.index) for name, values in added.items()})
    out.attrs = frame.attrs | {METADATA: {PERTURBATION: perturbation.described()}}
    return out


def _of_texts(values: list[str | None], index: pd.Index) -> pd.Series:
    """A column of texts; of objects where one has a lone surrogate, which the type that pandas has for texts lacks."""
    try:
        return pd.Series(values, index=index, dtype="str")
    except UnicodeEncodeError:
        return pd.Series([np.nan if value is None else value for value in values], index=index, dtype=object)
