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
        seconds: of one core, for the lab collection, by ranker; ``MiniLM`` is all-MiniLM-L6-v2.
    """

    run: Callable[..., RecipeResult]
    needs: str
    ranker: str
    seconds: str

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def does(self) -> str:
        """What it does, in a sentence."""
        return cleandoc(self.run.__doc__ or "").partition("\n")[0]

    @property
    def options(self) -> tuple[str, ...]:
        """Its options, without the ranker, the data and whether bars are shown."""
        return tuple(name for name in signature(self.run).parameters if name not in ("ranker", "data", "verbose"))


_TASB = "TAS-B, 265 MB"

RECIPES = [
    Recipe(recipes.chen24_tfc1, "nothing more; a column term is taken", _TASB, "6 (known circuit), 81 (MiniLM)"),
    Recipe(recipes.vanmarken25_tfc2, "nothing more; a column term is taken", _TASB, "5 (known circuit), 91 (MiniLM)"),
    Recipe(recipes.savolainen25_lnc1, "nothing more", _TASB, "3 (known circuit), 96 (MiniLM)"),
    Recipe(recipes.mechir25, "label", "TAS-B, 265 MB, or monoELECTRA, 438 MB", "2 (known circuit), 51 (MiniLM)"),
    Recipe(
        recipes.lu25_pathway,
        "nothing more; columns term and first_stage are taken",
        "MiniLM-L-12, 133 MB",
        "4 (known circuit), 74 (MiniLM)",
    ),
    Recipe(recipes.perlman_feature_attention, "label", "RankLLaMA, 13.5 GB", "1 (known circuit), 85 (MiniLM)"),
    Recipe(recipes.polyakov25, "nothing more; a column term is taken", _TASB, "3 (known circuit), 70 (MiniLM)"),
    Recipe(recipes.head_ablation, "label", "any", "3 (known circuit), 107 (MiniLM)"),
    Recipe(recipes.faithful_words, "nothing more", "any", "11 (known circuit), 128 (MiniLM)"),
]


def by_name() -> dict[str, Recipe]:
    """The recipes by their names."""
    return {one.name: one for one in RECIPES}


def markdown() -> str:
    """The table in Markdown: what each does, what it needs and what it costs."""
    head = ("recipe", "what it does", "documents need", "ranker of the paper", "seconds of a core, by ranker")
    rows = [(f"`{one.name}`", one.does, one.needs, one.ranker, one.seconds) for one in RECIPES]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))
