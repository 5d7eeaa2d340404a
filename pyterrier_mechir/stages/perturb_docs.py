"""Perturbing the retrieved documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.base import NO_SIGN, Perturbation, as_perturbation
from pyterrier_mechir.perturb.control import RandomTerm
from pyterrier_mechir.perturb.idf import Idf
from pyterrier_mechir.results.pairs import METADATA, PERTURBATION
from pyterrier_mechir.stages.inputs import Keyed, check_results, check_rows

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

    def _perturbed(self, inp: pd.DataFrame, field: str) -> pd.DataFrame:
        made: dict[tuple[str, str], Any] = {}
        rows = list(zip(inp[field], inp["query"], strict=True))
        for row in rows:
            if row not in made:
                made[row] = self._applied.pair(*row)
        pairs = [made[row] for row in rows]
        of_rows = [pair.by if pair else self._applied for pair in pairs]
        added = {
            f"{field}_perturbed": [pair and pair.perturbed for pair in pairs],
            "perturbation": [made.name for made in of_rows],
        }
        if any(member.own_baseline for member in self._applied.members):
            added[f"{field}_baseline"] = [pair and pair.baseline for pair in pairs]
        added["alignment"] = [made.alignment for made in of_rows]
        added["expected_sign"] = [made.sign or NO_SIGN for made in of_rows]
        inp = inp.drop(columns=f"{field}_baseline", errors="ignore")
        out = inp.assign(**{name: pd.Series(values, index=inp.index, dtype="str") for name, values in added.items()})
        out.attrs = inp.attrs | {METADATA: {PERTURBATION: self._applied.described()}}
        return out

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Let a rank cutoff pass to the left: ranks are untouched and rows correspond one to one."""
        return pt.RankCutoff(k) >> self


class PerturbDocs(PerturbStage):
    """Adds the perturbed text of every retrieved document.

    Expected input columns: ``qid, query, docno, text``. Adds

    - ``text_perturbed`` (that is ``<text_field>_perturbed``): missing where the perturbation does not apply;
    - ``perturbation``: its name;
    - ``text_baseline``, for perturbations whose baseline is not the text itself;
    - ``alignment``: how the two sides correspond, one of
      :data:`~pyterrier_mechir.perturb.alignment.ALIGNMENTS`;
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
            :meth:`~pyterrier_mechir.perturb.idf.Idf.of` takes but stems; None takes the perturbation's own.
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
        return self._perturbed(inp, self.text_field)
