"""Questions that people ask are answered by a page: a script does each task with what stands on that page alone."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from pages_code import DOCS

TASKS = sorted((Path(__file__).parent / "tasks").glob("*.py"))
QUESTIONS = DOCS / "contributing" / "questions.md"


class Question(NamedTuple):
    """A row of the page of questions: its number, the links to where it was asked, and the page that answers it."""

    number: str
    sources: list[str]
    page: Path


def questions() -> list[Question]:
    rows = re.findall(
        r"^\| (\d\d) \| [^|]+\? \| ([^|]+) \| \[[^]]+\]\(([^)]+)\) \|$",
        QUESTIONS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [
        Question(number, re.findall(r"\((https://github\.com/[^)]+)\)", sources), QUESTIONS.parent / page)
        for number, sources, page in rows
    ]


def imported(task: Path) -> set[str]:
    """The names that a script imports from the package."""
    nodes = ast.walk(ast.parse(task.read_text(encoding="utf-8")))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in froms if (node.module or "").startswith("pyterrier_mechir") for alias in node.names}


def test_there_are_twelve_with_a_source_a_page_and_a_script():
    asked = questions()
    assert [question.number for question in asked] == [f"{number:02}" for number in range(1, 13)]
    assert [task.name[:2] for task in TASKS] == [question.number for question in asked]
    assert all(question.sources and question.page.resolve().is_file() for question in asked)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.stem)
def test_the_page_has_every_name_that_the_task_takes(task):
    (question,) = (question for question in questions() if question.number == task.name[:2])
    page = question.page.read_text(encoding="utf-8")
    assert {name for name in imported(task) if name not in page} == set()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.stem)
def test_the_task_is_done(task, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(task.read_text(encoding="utf-8"), str(task), "exec"), dict(names))
