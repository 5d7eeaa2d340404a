"""The table of the recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc, signature

from pyterrier_mechir import recipes
from pyterrier_mechir.recipes.base import RecipeResult


@dataclass(frozen=True)
class Recipe:
    """A recipe and what it takes.

    Args:
        run: the function.
        needs: what its documents need beside ``qid, query, docno, text``.
        ranker: the ranker of the paper, with the size of its checkpoint.
        seconds: of one core, for the lab collection, with the known circuit and with all-MiniLM-L6-v2.
    """

    run: Callable[..., RecipeResult]
    needs: str
    ranker: str
    seconds: tuple[int, int]

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def does(self) -> str:
        """What it does, in a sentence."""
        return cleandoc(self.run.__doc__ or "").partition("\n")[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Its options, without the ranker and the data."""
        return tuple(name for name in signature(self.run).parameters if name not in ("ranker", "data"))


_TASB = "TAS-B, 265 MB"

RECIPES = [
    Recipe(recipes.chen24_tfc1, "nothing; a column term is taken", _TASB, (6, 81)),
    Recipe(recipes.vanmarken25_tfc2, "nothing; a column term is taken", _TASB, (5, 108)),
    Recipe(recipes.savolainen25_lnc1, "nothing", _TASB, (3, 100)),
    Recipe(recipes.mechir25, "label", "TAS-B, 265 MB, or monoELECTRA, 438 MB", (2, 100)),
    Recipe(recipes.lu25_pathway, "nothing; columns term and first_stage are taken", "MiniLM-L-12, 133 MB", (4, 100)),
    Recipe(recipes.perlman_feature_attention, "label", "RankLLaMA, 13.5 GB", (1, 100)),
    Recipe(recipes.polyakov25, "nothing; a column term is taken", _TASB, (3, 100)),
    Recipe(recipes.head_ablation, "label", "any", (3, 100)),
    Recipe(recipes.faithful_words, "nothing", "any", (15, 100)),
]


def by_name() -> dict[str, Recipe]:
    """The recipes by their names."""
    return {one.name: one for one in RECIPES}


def markdown() -> str:
    """The table in Markdown: what each does, what it needs and what it costs."""
    head = ("recipe", "what it does", "documents need", "ranker of the paper", "seconds of a core, by ranker")
    rows = [
        (f"`{one.name}`", one.does, one.needs, one.ranker, f"known circuit {one.seconds[0]}, MiniLM {one.seconds[1]}")
        for one in RECIPES
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))
