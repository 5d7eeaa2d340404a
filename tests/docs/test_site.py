"""What the site says is there is there: names, columns, links, commands; and what the build makes of the code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from pages_code import DOCS, PAGES, ROOT

import pyterrier_mechir
from pyterrier_mechir import perturb
from pyterrier_mechir.models.architectures import ARCHITECTURES
from pyterrier_mechir.models.components import TABLE

pytest.importorskip("sphinx")
sys.path.insert(0, str(DOCS))

import generated
import pictures

REFERENCE = DOCS / "reference"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def text_of(file: Path) -> str:
    """The Markdown of a page, or of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and MyST make them."""
    heads = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head).lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{target}#{anchor}"


HOSTS = {"arxiv.org", "doi.org", "github.com", "pytorch.org", "semver.org", "www.contributor-covenant.org"}
"""Where links go that leave the repository; documentations of libraries stand on hosts of many."""


def test_links_that_leave_go_where_things_stay():
    for page in [*PAGES, *NOTEBOOKS]:
        hosts = set(re.findall(r"\]\(https?://([^/)]+)", text_of(page)))
        assert {host for host in hosts - HOSTS if not host.endswith((".github.io", ".readthedocs.io"))} == set(), page


def test_files_that_are_named_in_texts_are_there():
    for page in [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "pyterrier_mechir").rglob("*.py")]:
        for named in re.findall(r"\bdocs/[\w/]+\.md\b", page.read_text(encoding="utf-8")):
            assert (ROOT / named).exists(), f"{page}: {named}"


def test_every_public_name_stands_in_the_reference():
    calls = [
        line.split()[1:]
        for page in REFERENCE.glob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("```{generated} names_of")
    ]
    folders = [folder for name, *folders in calls if name == "names_of" for folder in folders]
    assert sorted(folders) == sorted(generated.homes())
    assert {name for names in generated.homes().values() for name in names} == set(pyterrier_mechir.__all__)
    assert ["names_of_perturb"] in calls
    written = generated.names_of_perturb()
    assert all(f":: pyterrier_mechir.perturb.{name}\n" in written for name in perturb.__all__)


def test_every_column_that_a_stage_gives_is_explained():
    page = (REFERENCE / "columns.md").read_text(encoding="utf-8")
    explained = {
        name for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    rows = generated.stages().splitlines()[2:]
    given = {name for row in rows for cell in row.split("|")[2:4] for name in re.findall(r"`(\w+)`", cell)}
    assert len(given) > 30
    assert given - explained == set()


def test_tables_are_those_of_the_code():
    assert all(f"| `{name}` |" in generated.sites() for name in TABLE)
    assert all(f"`{name}`" in generated.architectures() for name in ARCHITECTURES)
    assert all(f"`{name}`" in generated.measures() for name in ("ScoreShift", "RankShift", "AxiomAgreement"))
    commands = generated.commands()
    assert all(f"## {name}\n" in commands for name in ("demo", "run", "report", "verify", "explain", "perturbations"))
    assert "| `--perturbation` |" in commands
    assert sum(map(len, generated.sentences().values())) > 300


def test_the_messages_that_people_meet_first_are_those_of_the_code():
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    quoted = [
        text for cell in re.findall(r'^\| (".*?) \|', page, re.MULTILINE) for text in re.findall(r'"(.*?)"', cell)
    ]
    package = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "pyterrier_mechir").rglob("*.py"))
    joined = re.sub(r'"\s*f?"', "", package)
    assert len(quoted) > 10
    assert [text for text in quoted if text not in joined] == []


def test_an_included_file_has_the_links_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    (tmp_path / "FILE.md").write_text(
        "# Title\n\n[a](docs/gotchas.md#limits) [b](https://arxiv.org) [c](SECURITY.md) [d](#here)"
    )
    told = generated.included("FILE.md", tmp_path / "docs" / "contributing" / "index.md")
    assert told == "[a](../gotchas.md#limits) [b](https://arxiv.org) {download}`c <../../SECURITY.md>` [d](#here)"
    assert "not in this copy" in generated.included("NONE.md", tmp_path / "docs" / "page.md")


def test_pages_are_many_and_none_is_a_stub():
    pages = [page for page in PAGES if page.is_relative_to(DOCS)]
    assert len(pages) >= 35
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    whole = {page: text for page, text in texts.items() if "{generated}" not in text and "{toctree}" not in text}
    assert [page for page, text in whole.items() if len(text.split()) < 120] == []


def test_the_readme_is_short_and_has_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 150
    commands = re.findall(r"^```shell\n(.*?)\n```", readme, re.DOTALL | re.MULTILINE)
    job, tests = commands
    assert job == 'pip install torch==2.13.0 ".[lab]" && pyterrier-mechir demo'
    assert tests == 'pip install torch==2.13.0 ".[test]" && pytest'
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("draw", pictures.PICTURES, ids=lambda draw: draw.__name__)
def test_the_picture_of_a_concept_is_current_and_on_its_page(draw):
    assert pictures.is_current(draw), "run python docs/pictures.py"
    page = (DOCS / "concepts" / f"{draw.__name__}.md").read_text(encoding="utf-8")
    assert f"(pictures/{draw.__name__}.png)" in page
    assert 10_000 < (pictures.FOLDER / f"{draw.__name__}.png").stat().st_size < 150_000


def test_pictures_are_drawn_where_they_are_not_current(tmp_path, one_thread):
    drawn = [pictures.patching, pictures.alignment]
    for draw in drawn:
        assert not pictures.is_current(draw, tmp_path)
        pictures.save(draw, tmp_path)
        assert pictures.is_current(draw, tmp_path)
    assert pictures.digest(drawn[0]) != pictures.digest(drawn[1])
