"""The table of the perturbations, generated from themselves."""

from __future__ import annotations

from dataclasses import dataclass

from pyterrier_mechir.perturb.axioms.coverage import AND, ANTI_REG, LB1, LB2, REG
from pyterrier_mechir.perturb.axioms.discrimination import MTDC, TDC
from pyterrier_mechir.perturb.axioms.frequency import TFC1, TFC2, TFC3
from pyterrier_mechir.perturb.axioms.length import LNC1, LNC2, TFLNC
from pyterrier_mechir.perturb.axioms.proximity import PROX1, PROX2, PROX3, PROX4, PROX5, QPHRA
from pyterrier_mechir.perturb.axioms.semantics import DIV, STMC1, STMC2, STMC3, Synonym
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.control import Identity, RandomTerm
from pyterrier_mechir.perturb.probes.order import (
    AddSentence,
    DeleteSentence,
    PrependQuery,
    ReverseSentences,
    ReverseWords,
    ShuffleSentences,
    ShuffleWords,
    SwapEntities,
)
from pyterrier_mechir.perturb.probes.terms import AddTerm, RemoveTerm
from pyterrier_mechir.perturb.probes.wording import (
    CaseFold,
    Lemmatize,
    Negate,
    RemovePunctuation,
    RemoveStopWords,
    SwapNumbers,
    Typos,
)

_QUERY = "ocean tides"
_TEXT = "The moon pulls the ocean, and the tides rise."
_IDF = {"ocean": 3.0, "tides": 4.1, "spring": 3.0, "neap": 5.2}
_SIMILAR = {"tides": ["currents"], "ocean": ["sea"], "neap": ["ebb"]}


@dataclass(frozen=True)
class Entry:
    """A perturbation with an example.

    Args:
        perturbation: the perturbation, with the settings of the example.
        query: the query of the example.
        text: the text of the example.
    """

    perturbation: Perturbation
    query: str = _QUERY
    text: str = _TEXT

    @property
    def label(self) -> str:
        """The name, with the settings that make another perturbation of it."""
        told = {
            "TFC1-R": 'TFC1(replace="all")',
            "TFC1.random_term": "RandomTerm(TFC1(), idf)",
            "TDC": f'TDC(idf, reading="{getattr(self.perturbation, "reading", "")}")',
            "LB2": f'LB2("{getattr(self.perturbation, "occurrence", "")}")',
        }
        return told.get(self.perturbation.name, self.perturbation.name)


CATALOGUE = [
    Entry(TFC1()),
    Entry(TFC1(replace="all")),
    Entry(TFC2()),
    Entry(TFC3(_IDF), "spring ocean", "The ocean pulls the ocean."),
    Entry(TDC(_IDF)),
    Entry(TDC(_IDF, reading="swap"), text="The ocean, all ocean and few tides."),
    Entry(MTDC(_IDF), text="The ocean, all ocean and few tides."),
    Entry(LB1(), "neap tides"),
    Entry(LB2("first"), "neap tides"),
    Entry(LB2("further"), "neap tides"),
    Entry(AND(), text="Tides of the ocean, tides of rivers."),
    Entry(REG(), "neap tides", "Tides rise, tides fall."),
    Entry(ANTI_REG(), "neap tides", "Tides rise, tides fall."),
    Entry(LNC1()),
    Entry(LNC2(), text="Tides rise."),
    Entry(TFLNC()),
    Entry(PROX1()),
    Entry(PROX2()),
    Entry(PROX3()),
    Entry(PROX4()),
    Entry(PROX5(), text="Tides of the ocean are tides of all seas."),
    Entry(QPHRA(), '"high tides"', "High in spring, the tides rise."),
    Entry(STMC1(_SIMILAR)),
    Entry(STMC2(_SIMILAR)),
    Entry(STMC3(_SIMILAR), "neap tides"),
    Entry(DIV(_SIMILAR)),
    Entry(Synonym(_SIMILAR)),
    Entry(AddTerm("rivers")),
    Entry(RemoveTerm()),
    Entry(CaseFold()),
    Entry(RemovePunctuation()),
    Entry(RemoveStopWords()),
    Entry(Lemmatize()),
    Entry(Typos()),
    Entry(SwapNumbers(), text="Two tides in 24 hours."),
    Entry(Negate(), text="The tides are high."),
    Entry(SwapEntities(), text="From Dover to Calais, the tides rise."),
    Entry(ShuffleWords()),
    Entry(ReverseWords()),
    Entry(ShuffleSentences(), text="Tides rise. Tides fall."),
    Entry(ReverseSentences(), text="Tides rise. Tides fall."),
    Entry(DeleteSentence(), text="Tides rise. Tides fall."),
    Entry(AddSentence("Walls are high.")),
    Entry(PrependQuery()),
    Entry(RandomTerm(TFC1(), _IDF)),
    Entry(Identity()),
]
"""Every perturbation of the package, with an example to which it applies."""

_SIGNS = {"+": "+", "-": "-", "+0": "+ or 0", "-0": "- or 0", "0": "0", None: "none"}


def by_name() -> dict[str, type[Perturbation]]:
    """The classes by their names, but for :class:`RandomTerm`, which is made of another perturbation."""
    classes = (type(entry.perturbation) for entry in CATALOGUE)
    return {of.__name__: of for of in classes if of is not RandomTerm}


def markdown() -> str:
    """The table of the perturbations, in Markdown."""
    header = ["name", "statement", "pair", "alignment", "expected sign", "source", "query", "baseline", "perturbed"]
    rows = [header, ["---"] * len(header), *map(_row, CATALOGUE)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(entry: Entry) -> list[str]:
    made = entry.perturbation
    pair = made.pair(entry.text, entry.query)
    if pair is None:
        raise ValueError(f"{made!r} does not apply to its own example, {entry.text!r} for the query {entry.query!r}.")
    return [
        f"`{entry.label}`",
        made.statement,
        made.change,
        f"`{made.alignment}`",
        _SIGNS[made.sign],
        made.source,
        entry.query,
        pair.baseline,
        pair.perturbed,
    ]
