"""Perturbing the retrieved documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.stages.base.checks import check_results, check_rows
from pyterrier_mechir.stages.base.perturb_stage import PerturbStage, perturbed

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class PerturbDocs(PerturbStage):
    """Adds the perturbed text of every retrieved document.

    Expected input columns: ``qid, query, docno, text``. Adds

    - ``text_perturbed`` (that is ``<text_field>_perturbed``): missing where the perturbation does not apply;
    - ``perturbation``: its name;
    - ``text_baseline``, for perturbations whose baseline is not the text itself;
    - ``alignment``: how the two sides correspond, one of
      :data:`~pyterrier_mechir.text.alignment.ALIGNMENTS`;
    - ``expected_sign``: what is expected of s_p - s_b, one of :data:`~pyterrier_mechir.perturb.base.SIGNS`, or
      ``none``.

    Rows, their order and their ranks stay as they are, and a row's perturbation depends on nothing but its query and
    text.

    Args:
        perturbation: a :class:`~pyterrier_mechir.perturb.Perturbation`, or a function of (text) or (text, query).
        text_field: column of the document text.
        control: ``"random_term"`` runs the same edit with random words, as rare as those that the perturbation puts in
            (see :class:`~pyterrier_mechir.perturb.RandomTerm`), so that an effect can be reported over its control.
        idf: for a control, where its words come from: a dataset, an iterable of documents, or anything else that
            :meth:`~pyterrier_mechir.perturb.Idf.of` takes but stems; None takes the perturbation's own.
        ranker: the ranker that will be interpreted, for what depends on it: similar words from its embedding table
            where the perturbation was given none, and random words of as many of its word pieces.

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
        ranker: Ranker | None = None,
    ):
        super().__init__(perturbation, control, idf, ranker)
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
        return perturbed(inp, self.text_field, self._applied)
