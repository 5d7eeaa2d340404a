"""Perturbing the retrieved documents."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.perturb.base import Perturbation, perturbation
from pyterrier_mechir.stages.inputs import Keyed, check_results, check_rows


class PerturbDocs(Keyed, pt.Transformer):
    """Adds the perturbed text of every retrieved document.

    Expected input columns: ``qid, query, docno, text``. Adds ``text_perturbed`` (that is ``<text_field>_perturbed``;
    missing where the perturbation does not apply), ``perturbation`` (its name) and, unless it is ``fill``,
    ``alignment`` (how the two sides correspond). Rows, their order and their ranks stay as they are, and a row's
    perturbation depends on nothing but its query and text.

    Args:
        perturbation: a :class:`~pyterrier_mechir.perturb.Perturbation`, or a function of (text) or (text, query).
        text_field: column of the document text.

    Raises:
        TypeError: ``perturbation`` is neither.
    """

    schematic: ClassVar = {"label": "PerturbDocs"}

    def __init__(self, perturbation: Perturbation, *, text_field: str = "text"):
        self.perturbation = as_perturbation(perturbation)
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
        texts = [self._perturbed(text, query) for text, query in zip(inp[self.text_field], inp["query"], strict=True)]
        added: dict[str, Any] = {f"{self.text_field}_perturbed": texts, "perturbation": self.perturbation.name}
        if self.perturbation.alignment != "fill":
            added["alignment"] = self.perturbation.alignment
        return inp.assign(**{name: pd.Series(values, index=inp.index, dtype="str") for name, values in added.items()})

    def _perturbed(self, text: str, query: str) -> str | None:
        perturbed = self.perturbation(text, query)
        if perturbed is not None and not isinstance(perturbed, str):
            raise TypeError(
                f"the perturbation {self.perturbation.name!r} gave a {type(perturbed).__name__}; it should give the "
                "perturbed text, or None where it does not apply."
            )
        return perturbed

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Let a rank cutoff pass to the left: ranks are untouched and rows correspond one to one."""
        return pt.RankCutoff(k) >> self


def as_perturbation(value: object) -> Perturbation:
    """A perturbation as it is, or made of a plain function.

    Raises:
        TypeError: the value is neither.
    """
    if isinstance(value, Perturbation):
        return value
    if isinstance(value, type) and issubclass(value, Perturbation):
        raise TypeError(f"{value.__name__} is a class; give an instance of it: {value.__name__}(...).")
    if callable(value):
        return perturbation(value)
    raise TypeError(f"perturbation should be a Perturbation or a function of (text) or (text, query), not {value!r}.")
