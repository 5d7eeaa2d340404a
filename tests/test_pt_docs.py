"""The pages for PyTerrier's own documentation: whole, true to the package, and with pipelines that run."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import matplotlib
import pyterrier as pt
import pytest

matplotlib.use("Agg")

import pyterrier_mechir

PAGES = Path(pyterrier_mechir.__file__).parent / "pt_docs"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.rst"))}
NAMED = re.findall(r"^\.\. (?:autoclass|autofunction|py:data|related):: (\S+)", "\n".join(TEXTS.values()), re.MULTILINE)


def _blocks(text: str, directive: str) -> list[str]:
    """What directives of a name hold, without their options."""
    found = []
    for block in re.findall(rf"^\.\. {directive}.*\n((?:(?: {{4}}.*)?\n)+)", text, re.MULTILINE):
        lines = [line for line in dedent(block).split("\n") if not re.match(r":\w+:", line)]
        found.append("\n".join(lines).strip())
    return found


def test_the_index_lists_every_page():
    listed = re.findall(r"<([\w-]+)>$", TEXTS["index"], re.MULTILINE)
    assert sorted(listed) == sorted(TEXTS.keys() - {"index"})


@pytest.mark.parametrize("name", sorted({*NAMED}))
def test_what_a_page_documents_is_public(name):
    module, _, last = name.rpartition(".")
    assert last in import_module(module).__all__


def test_every_stage_has_its_place():
    values = {name: getattr(pyterrier_mechir, name) for name in pyterrier_mechir.__all__}
    stages = {name for name, value in values.items() if inspect.isclass(value) and issubclass(value, pt.Transformer)}
    assert {f"pyterrier_mechir.{name}" for name in stages} <= {*NAMED}


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if ".. schematic::" in text])
def test_schematics_are_drawn_without_retrieval(page, monkeypatch):
    monkeypatch.setattr("pyterrier.documentation._cached_objects_inv", {})
    for code in _blocks(TEXTS[page], "schematic::"):
        *body, last = code.split("\n")
        names = {"pt": pt}
        exec("\n".join(body), names)
        drawn = pt.schematic.draw(eval(last, names), input_columns=["qid", "query", "docno", "text"])
        assert "class=" in drawn


@pytest.mark.usefixtures("one_thread")
def test_the_pipeline_of_the_overview_runs():
    (code,) = _blocks(TEXTS["overview"], "code-block::")
    names = {}
    exec(code.replace(".head(8)", ".head(1)"), names)
    assert names["heads"]["docno"][0] == "L1H2"
