"""Perturbing the retrieved documents."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import Perturbation, as_perturbation
from pyterrier_mechir.perturb.control import RandomTerm
from pyterrier_mechir.perturb.idf import Idf
from pyterrier_mechir.stages.inputs import Keyed, check_results, check_rows

CONTROLS = ("random_term",)


class PerturbStage(Keyed, pt.Transformer):
    """A stage that adds the minimal pairs of a column of texts."""

    def __init__(self, perturbation: Perturbation, control: str | None, idf: Any):
        self.perturbation = as_perturbation(perturbation)
        self.control = None if control is None else one_of("control", control, CONTROLS)
        self.idf = None if idf is None else Idf.of(idf)
        if control is None and idf is not None:
            raise ValueError(f"idf is of use for a control only; give control={CONTROLS[0]!r}, or leave idf out.")
        self._applied = self._controlled()

    def _controlled(self) -> Perturbation:
        """The perturbation, or its control."""
        if self.control is None:
            return self.perturbation
        idf = getattr(self.perturbation, "idf", None) if self.idf is None else self.idf
        if idf is None:
            raise ValueError(
                f"control={self.control!r} draws words of the same rarity; give idf=, a dataset or an iterable of "
                "documents."
            )
        return RandomTerm(self.perturbation, idf)

    def _perturbed(self, inp: pd.DataFrame, field: str) -> pd.DataFrame:
        made: dict[tuple[str, str], Any] = {}
        rows = list(zip(inp[field], inp["query"], strict=True))
        for row in rows:
            if row not in made:
                made[row] = self._applied.pair(*row)
        pairs = [made[row] for row in rows]
        members = self._applied.members
        added = {
            f"{field}_perturbed": [pair and pair.perturbed for pair in pairs],
            "perturbation": [pair.by.name if pair else self._applied.name for pair in pairs],
        }
        if any(member.own_baseline for member in members):
            added[f"{field}_baseline"] = [pair and pair.baseline for pair in pairs]
        if any(member.alignment != "fill" for member in members):
            added["alignment"] = [(pair.by if pair else self._applied).alignment for pair in pairs]
        if any(member.sign != "+" for member in members):
            added["expected_sign"] = [(pair.by if pair else self._applied).sign for pair in pairs]
        inp = inp.drop(columns=[f"{field}_baseline", "alignment", "expected_sign"], errors="ignore")
        return inp.assign(**{name: pd.Series(values, index=inp.index, dtype="str") for name, values in added.items()})

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Let a rank cutoff pass to the left: ranks are untouched and rows correspond one to one."""
        return pt.RankCutoff(k) >> self


class PerturbDocs(PerturbStage):
    """Adds the perturbed text of every retrieved document.

    Expected input columns: ``qid, query, docno, text``. Adds

    - ``text_perturbed`` (that is ``<text_field>_perturbed``): missing where the perturbation does not apply;
    - ``perturbation``: its name;
    - ``text_baseline``, for perturbations whose baseline is not the text itself;
    - ``alignment``, unless it is ``fill``: how the two sides correspond;
    - ``expected_sign``, unless it is ``+``: what is expected of s_p - s_b, one of
      :data:`~pyterrier_mechir.perturb.base.SIGNS`, missing where nothing is claimed.

    Rows, their order and their ranks stay as they are, and a row's perturbation depends on nothing but its query and
    text.

    Args:
        perturbation: a :class:`~pyterrier_mechir.perturb.Perturbation`, or a function of (text) or (text, query).
        text_field: column of the document text.
        control: ``"random_term"`` runs the same edit with random words, as rare as those that the perturbation puts in
            (see :class:`~pyterrier_mechir.perturb.RandomTerm`), so that an effect can be reported over its control.
        idf: for a control, where its words come from: a dataset, an iterable of documents, or anything else that
            :meth:`~pyterrier_mechir.perturb.idf.Idf.of` takes but stems; None takes the perturbation's own.

    Raises:
        TypeError: ``perturbation`` is neither.
        ValueError: an unknown control, or none possible.
    """

    schematic: ClassVar = {"label": "PerturbDocs"}

    def __init__(
        self,
        perturbation: Perturbation,
        *,
        text_field: str = "text",
        control: str | None = None,
        idf: Any = None,
    ):
        super().__init__(perturbation, control, idf)
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Perturb each row's text.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
            TypeError: the perturbation gave something that is not a text.
        """
        check_results(self, inp, self.text_field)
        check_rows(inp, ["query", self.text_field])
        return self._perturbed(inp, self.text_field)
