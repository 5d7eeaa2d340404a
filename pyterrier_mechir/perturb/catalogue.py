"""The table of the perturbations, generated from themselves.

Every perturbation of the package (:mod:`pyterrier_mechir.perturb` lists them) has an example here. The documentation's
table is made of these, and the command line finds perturbations by their names.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyterrier_mechir.perturb as perturb
from pyterrier_mechir.perturb.base import NO_SIGN

_QUERY = "ocean tides"
_TEXT = "The moon pulls the ocean, and the tides rise."
_IDF = {"ocean": 3.0, "tides": 4.1, "spring": 3.0, "neap": 5.2}
_SIMILAR = {"tides": ["currents"], "ocean": ["sea"], "neap": ["ebb"]}


@dataclass(frozen=True)
class Entry:
    """A perturbation with an example to which it applies.

    Args:
        perturbation: the perturbation, with the settings of the example.
        query: the query of the example.
        text: the text of the example.
    """

    perturbation: perturb.Perturbation
    query: str = _QUERY
    text: str = _TEXT

    @property
    def label(self) -> str:
        """What the table calls it: its name, with the settings that make another perturbation of it."""
        told = {
            "TFC1-R": 'TFC1(replace="all")',
            "TFC1.random_term": "RandomTerm(TFC1(), idf)",
            "TDC": f'TDC(idf, reading="{getattr(self.perturbation, "reading", "")}")',
            "LB2": f'LB2("{getattr(self.perturbation, "occurrence", "")}")',
        }
        return told.get(self.perturbation.name, self.perturbation.name)


CATALOGUE = [
    Entry(perturb.TFC1()),
    Entry(perturb.TFC1(replace="all")),
    Entry(perturb.TFC2()),
    Entry(perturb.TFC3(_IDF), "spring ocean", "The ocean pulls the ocean."),
    Entry(perturb.TDC(_IDF)),
    Entry(perturb.TDC(_IDF, reading="swap"), text="The ocean, all ocean and few tides."),
    Entry(perturb.MTDC(_IDF), text="The ocean, all ocean and few tides."),
    Entry(perturb.LB1(), "neap tides"),
    Entry(perturb.LB2("first"), "neap tides"),
    Entry(perturb.LB2("further"), "neap tides"),
    Entry(perturb.AND(), text="Tides of the ocean, tides of rivers."),
    Entry(perturb.REG(), "neap tides", "Tides rise, tides fall."),
    Entry(perturb.ANTI_REG(), "neap tides", "Tides rise, tides fall."),
    Entry(perturb.LNC1()),
    Entry(perturb.LNC2(), text="Tides rise."),
    Entry(perturb.TFLNC()),
    Entry(perturb.PROX1()),
    Entry(perturb.PROX2()),
    Entry(perturb.PROX3()),
    Entry(perturb.PROX4()),
    Entry(perturb.PROX5(), text="Tides of the ocean are tides of all seas."),
    Entry(perturb.QPHRA(), '"high tides"', "High in spring, the tides rise."),
    Entry(perturb.STMC1(_SIMILAR)),
    Entry(perturb.STMC2(_SIMILAR)),
    Entry(perturb.STMC3(_SIMILAR), "neap tides"),
    Entry(perturb.DIV(_SIMILAR)),
    Entry(perturb.Synonym(_SIMILAR)),
    Entry(perturb.AddTerm("rivers")),
    Entry(perturb.RemoveTerm()),
    Entry(perturb.CaseFold()),
    Entry(perturb.RemovePunctuation()),
    Entry(perturb.RemoveStopWords()),
    Entry(perturb.Lemmatize()),
    Entry(perturb.Typos()),
    Entry(perturb.SwapNumbers(), text="Two tides in 24 hours."),
    Entry(perturb.Negate(), text="The tides are high."),
    Entry(perturb.SwapEntities(), text="From Dover to Calais, the tides rise."),
    Entry(perturb.ShuffleWords()),
    Entry(perturb.ReverseWords()),
    Entry(perturb.ShuffleSentences(), text="Tides rise. Tides fall."),
    Entry(perturb.ReverseSentences(), text="Tides rise. Tides fall."),
    Entry(perturb.DeleteSentence(), text="Tides rise. Tides fall."),
    Entry(perturb.AddSentence("Walls are high.")),
    Entry(perturb.PrependQuery()),
    Entry(perturb.RandomTerm(perturb.TFC1(), _IDF)),
    Entry(perturb.Identity()),
]
"""Every perturbation of the package, with an example to which it applies."""


def by_name() -> dict[str, type[perturb.Perturbation]]:
    """The classes of perturbations by their names, but for ``RandomTerm``, which is made of another perturbation."""
    classes = (type(entry.perturbation) for entry in CATALOGUE)
    return {of.__name__: of for of in classes if of is not perturb.RandomTerm}


def markdown() -> str:
    """The table of the perturbations, in Markdown: a row for each, with what it makes of its example."""
    header = ["name", "statement", "pair", "alignment", "expected sign", "source", "query", "baseline", "perturbed"]
    rows = [header, ["---"] * len(header), *map(_row, CATALOGUE)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(entry: Entry) -> list[str]:
    """The cells of an entry's row."""
    made = entry.perturbation
    pair = made.pair(entry.text, entry.query)
    if pair is None:
        raise ValueError(f"{made!r} does not apply to its own example, {entry.text!r} for the query {entry.query!r}.")
    return [
        f"`{entry.label}`",
        made.statement,
        made.change,
        f"`{made.alignment}`",
        made.sign or NO_SIGN,
        made.source,
        entry.query,
        pair.baseline,
        pair.perturbed,
    ]
