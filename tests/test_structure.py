"""The house: short files, light imports, no circle, nothing that looks up but what says so."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyterrier_mechir"
FILES = sorted(PACKAGE.rglob("*.py"))

LONGEST = 410

UPWARD = {
    "pyterrier_mechir.rankers.interactive": {
        "interventions.baking",
        "interventions.edited",
        "interventions.saving",
        "lens.bridge",
        "stages.scorer",
        "notebook",
    },
    "pyterrier_mechir.results.stored.artifact": {"stages.base.stored_stage", "stages.results_writer", "plots.report"},
}
"""The imports that look upwards, by the module that has them."""


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, within functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return {name for name in found if name in MODULES}


def graph(without: dict[str, set[str]]) -> dict[str, set[str]]:
    """What each module imports, but for some imports; the package itself only names its modules."""
    edges = {name: imported(file) - {name} for name, file in MODULES.items() if name != "pyterrier_mechir"}
    for name, left_out in without.items():
        edges[name] -= {f"pyterrier_mechir.{one}" for one in left_out}
    return edges


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules that lie on a circle: what is left when those that import nothing are taken away, again and again."""
    left = {name: set(of) for name, of in edges.items()}
    while ends := [name for name, of in left.items() if not of & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_short(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_nothing_imports_in_a_circle_but_what_looks_upwards():
    assert circles(graph(UPWARD)) == []
    assert circles(graph({})) != []


def test_what_looks_upwards_is_imported_within_functions_or_for_type_checkers():
    for name, upward in UPWARD.items():
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        at_top = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert imported(MODULES[name]) >= {f"pyterrier_mechir.{one}" for one in upward}
        assert at_top.isdisjoint(f"pyterrier_mechir.{one}" for one in upward)


def test_nothing_within_the_package_imports_from_the_package_itself():
    package = "pyterrier_mechir"
    assert [name for name, of in graph({}).items() if package in of and name != package] == []


LIGHT = {
    "text": ("torch", "transformers", "pandas", "pyterrier"),
    "perturb": ("torch", "transformers", "pandas", "pyterrier"),
    "results": ("torch", "transformers", "matplotlib"),
    "models.components": ("torch", "transformers", "pandas"),
    "models.anatomy": ("torch", "transformers", "pandas"),
    "models.opened": ("torch", "transformers", "pandas"),
    "models.sites": ("torch", "transformers", "pandas"),
    "patching.plan": ("torch", "transformers", "pandas"),
    "rankers": ("transformer_lens", "matplotlib"),
    "rankers.bi_encoder": ("torch", "transformers"),
    "rankers.cross_encoder": ("torch", "transformers"),
    "stages": ("torch", "transformers", "matplotlib"),
    "plots": ("torch", "transformers", "matplotlib"),
    "recipes": ("matplotlib",),
}
"""What importing the modules of a folder, or a module, does not load."""

PROGRAM = """
import os, sys
from importlib import import_module
preloaded, *places = sys.argv[1:]
for name in preloaded.split():
    import_module(name)
for place in places:
    child = os.fork()
    if not child:
        for name in place.split():
            import_module(name)
        print(" ".join({name.partition(".")[0] for name in sys.modules}), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"cannot import {place}")
"""
"""Imports the modules of each place in a process of its own, forked from one with libraries that may be loaded."""


def within(place: str) -> list[str]:
    whole = f"pyterrier_mechir.{place}"
    return [name for name in MODULES if name == whole or name.startswith(f"{whole}.")]


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The libraries that importing the modules of each place loads."""
    if not hasattr(os, "fork"):
        pytest.skip("forks a process for each place")
    found = {}
    for may_load_pandas in (False, True):
        places = [place for place, heavy in LIGHT.items() if ("pandas" not in heavy) == may_load_pandas]
        preloaded = "numpy pandas pyarrow scipy.stats pyterrier" if may_load_pandas else "numpy"
        command = [sys.executable, "-c", PROGRAM, preloaded, *(" ".join(within(place)) for place in places)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = done.stdout.splitlines()
        found |= {place: set(line.split()) for place, line in zip(places, lines, strict=True)}
    return found


@pytest.mark.parametrize("place", LIGHT)
def test_importing_loads_no_more_than_it_needs(place, loaded):
    assert within(place) and "pyterrier_mechir" in loaded[place]
    assert loaded[place].isdisjoint(LIGHT[place])
