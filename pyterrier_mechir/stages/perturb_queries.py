"""Perturbing the queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.results.frames import check_columns
from pyterrier_mechir.stages.base.checks import check_strings
from pyterrier_mechir.stages.base.perturb_stage import PerturbStage, perturbed

if TYPE_CHECKING:
    from pyterrier_mechir.rankers.base import Ranker


class PerturbQueries(PerturbStage):
    """Adds the perturbed form of every query.

    Expected input columns: ``qid, query``, of topics or of results. Adds ``query_perturbed`` (missing where the
    perturbation does not apply), ``perturbation``, and ``query_baseline``, ``alignment``, ``expected_sign`` as
    :class:`~pyterrier_mechir.PerturbDocs` does. The query itself stays as it is, so that what is retrieved does too:
    ``pt.rewrite`` or ``pt.apply.query`` put the perturbed one in its place where that is wanted.

    ``PatchScorer`` then patches the query's encoder of a bi-encoder, the document's vector being the same, or the whole
    of a cross-encoder, the document's tokens being the same.

    Args:
        perturbation: a :class:`~pyterrier_mechir.perturb.Perturbation`, or a function of (text) or (text, query), which
            gets the query as both. ``Typos``, ``RemoveStopWords``, ``ShuffleWords``, ``Synonym``, ``AddTerm(noise)``
            and ``RemoveTerm`` are made for queries too.
        control: as in :class:`~pyterrier_mechir.PerturbDocs`.
        idf: as in :class:`~pyterrier_mechir.PerturbDocs`.
        ranker: as in :class:`~pyterrier_mechir.PerturbDocs`.

    Raises:
        TypeError: ``perturbation`` is neither.
        ValueError: an unknown control, or none possible; or a perturbation that cannot apply to queries.
    """

    schematic: ClassVar = {"label": "PerturbQueries"}

    def __init__(
        self,
        perturbation: Perturbation,
        *,
        control: str | None = None,
        idf: Any = None,
        ranker: Ranker | None = None,
    ):
        super().__init__(perturbation, control, idf, ranker)
        for member in self.perturbation.members:
            if not member.fits_queries:
                raise ValueError(
                    f"{member!r} repeats words of a document that are not in the query, which a query has none of; "
                    "give noise=: a word, several, or an Idf to draw from."
                )

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Perturb each row's query.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query that is not a string.
            TypeError: the perturbation gave something that is not a text.
        """
        check_columns(inp, ["qid", "query"], self)
        check_strings(inp, ["query"])
        return perturbed(inp, "query", self._applied)
