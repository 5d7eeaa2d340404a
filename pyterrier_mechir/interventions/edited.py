"""A ranker whose model runs under edits: a ranker like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pyterrier_mechir._options import one_of
from pyterrier_mechir.interventions.edits import Edit, check_edits
from pyterrier_mechir.rankers.base import Ranker

SIDES = ("both", "query", "document")

Self = TypeVar("Self", bound=Ranker)


def edited(ranker: Self, edits: Edit | Sequence[Edit], side: str = "both", reference: Any = None) -> Self:
    """A ranker under edits; see :meth:`~pyterrier_mechir.rankers.interactive.Interactive.edited`."""
    if one_of("side", side, SIDES) != "both" and ranker.reads_query:
        raise ValueError(
            f"{ranker!r} reads query and document together, so that an edit is of both; leave out side={side!r}."
        )
    found = [edit.resolved(ranker, reference) for edit in check_edits(edits)]
    if not found:
        return ranker
    made = ranker.under([one for edit in found for one in edit.applied(ranker)], side)
    made.edits = (*ranker.edits, *((side, edit) for edit in found))
    return made
