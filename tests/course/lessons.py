"""The course, as the tests read it: its notebooks, exercises, solutions and self-checks."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

COURSE = Path(__file__).parents[2] / "examples" / "course"
LESSONS = sorted(COURSE.glob("*.ipynb"))

_FIRST_LINE = "# Exercise "


def exercise_of(source: str) -> str | None:
    """The number of the exercise that a cell asks, such as ``1.2``, if any."""
    return source.splitlines()[0].removeprefix(_FIRST_LINE) if source.startswith(_FIRST_LINE) else None


def solution_of(number: str) -> str:
    """A cell that solves an exercise."""
    return (COURSE / "solutions" / f"{number.replace('.', '_')}.py").read_text(encoding="utf-8")


def names(source: str, of: type[ast.expr_context]) -> set[str]:
    """The names that a cell sets (``ast.Store``) or reads (``ast.Load``)."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, of)}
    if of is ast.Store:
        found |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return found


def check_of(source: str) -> str:
    """The self-check that a cell ends with."""
    last: Any = ast.parse(source).body[-1]
    assert ast.unparse(last).startswith("checks.")
    return str(last.value.func.attr)
