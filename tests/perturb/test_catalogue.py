"""Every perturbation is in the table, with an example to which it applies."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from pyterrier_mechir import perturb
from pyterrier_mechir.perturb import Chain, Identity, OneOf, Perturbation
from pyterrier_mechir.perturb.base import FunctionPerturbation
from pyterrier_mechir.perturb.catalogue import CATALOGUE, markdown
from pyterrier_mechir.text.alignment import ALIGNMENTS

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "reference" / "perturbations.md"

each_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.label)


def table() -> list[list[str]]:
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in markdown().splitlines()]


def is_class(value: object) -> bool:
    """Whether a value is a class; Python 3.10's own functions say so of ``list[str]`` too."""
    return issubclass(type(value), type)


def defined() -> set[type[Perturbation]]:
    """The perturbations that the package's modules define for use."""
    names = [module.name for module in pkgutil.walk_packages(perturb.__path__, f"{perturb.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    found = {value for module in modules for value in vars(module).values() if is_class(value)}
    return {
        made
        for made in found
        if issubclass(made, Perturbation) and not inspect.isabstract(made) and not made.__name__.startswith("_")
    } - {FunctionPerturbation}


def test_every_perturbation_is_public_and_in_the_table():
    public = {value for name in perturb.__all__ if is_class(value := getattr(perturb, name))}
    perturbations = {made for made in public if issubclass(made, Perturbation)} - {Perturbation}
    assert perturbations == defined()
    assert {type(entry.perturbation) for entry in CATALOGUE} == perturbations - {Chain, OneOf}


@each_entry
def test_it_applies_to_its_example(entry):
    made = entry.perturbation
    pair = made.pair(entry.text, entry.query)
    assert pair is not None
    assert (pair.by, made.pair(entry.text, entry.query)) == (made, pair)
    assert made.holds(pair.baseline, pair.perturbed, entry.query)
    if made == Identity():
        assert pair.baseline == pair.perturbed == entry.text
        return
    assert pair.baseline != pair.perturbed
    assert not made.holds(pair.baseline, pair.baseline, entry.query)
    if not made.own_baseline:
        assert pair.baseline == entry.text


@each_entry
def test_every_setting_is_an_attribute(entry):
    made = entry.perturbation
    parameters = inspect.signature(type(made).__init__).parameters.values()
    named = [p.name for p in list(parameters)[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert [name for name in named if not hasattr(made, name)] == []
    assert made.with_settings(**{name: getattr(made, name) for name in named}) == made


@each_entry
def test_it_says_what_it_is(entry):
    made = entry.perturbation
    assert re.fullmatch(r"[A-Z][^\n|]+[.)]", made.statement)
    assert re.fullmatch(r"[^\n|]+[^.\n|]", made.change)
    assert re.fullmatch(r"[^\n|]+[^.\n|]", made.source)
    assert made.alignment in ALIGNMENTS
    assert inspect.getdoc(type(made)), made


def test_the_table_is_well_formed():
    header, rule, *rows = table()
    assert markdown().endswith(" |\n")
    assert {len(row) for row in (header, rule, *rows)} == {len(header)}
    assert {cell.strip() for cell in rule} == {"---"}
    assert len(set(header)) == len(header)
    assert len(rows) == len(CATALOGUE)
    for row, entry in zip(rows, CATALOGUE, strict=True):
        cells = dict(zip([name.strip() for name in header], [cell.strip() for cell in row], strict=True))
        pair = entry.perturbation.pair(entry.text, entry.query)
        assert cells["name"] == f"`{entry.label}`"
        assert cells["alignment"] == f"`{entry.perturbation.alignment}`"
        assert (cells["query"], cells["baseline"], cells["perturbed"]) == (entry.query, *pair[:2])
        assert {name for name, cell in cells.items() if not cell} <= (
            {"source"} if cells["name"] == "`Identity`" else set()
        )


def test_every_row_has_a_name_of_its_own():
    names = [row[0].strip() for row in table()[2:]]
    assert len(set(names)) == len(names)


def test_an_entry_that_does_not_apply_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(
        "pyterrier_mechir.perturb.catalogue.CATALOGUE", [type(CATALOGUE[0])(perturb.Negate(), "q", "Ice")]
    )
    with pytest.raises(ValueError, match=r"Negate\(\) does not apply to its own example, 'Ice' for the query 'q'"):
        markdown()


def test_the_documentation_has_the_table():
    assert markdown() in DOCUMENTATION.read_text(encoding="utf-8")
