"""Published experiments on the command line."""

import matplotlib
import pytest

matplotlib.use("Agg")
pytest.importorskip("pyterrier_pisa")

from lab_documents import lab_documents

from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.recipes.catalogue import RECIPES


def test_recipes_are_listed_with_what_they_need_and_cost(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(one.name in printed and one.ranker.split(",")[0] in printed for one in RECIPES)
    assert "Documents need label" in " ".join(printed.split())


def test_a_recipe_is_one_command_on_the_lab_collection(tmp_path, capfd):
    options = ["--option", "num_queries=6", "--option", "num_results=4", "--option", "n_heads=1"]
    assert main(["recipe", "chen24_tfc1", *options, "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "4 strongest" not in printed and "mean change of the score" in printed and "known-circuit-query" in printed
    assert (tmp_path / "chen24_tfc1.html").exists() and (tmp_path / "held_out.csv").exists()


def test_documents_of_a_file_take_the_place_of_a_dataset(tmp_path, capfd):
    file = tmp_path / "documents.tsv"
    lab_documents(6).to_csv(file, sep="\t", index=False)
    assert main(["recipe", "mechir25", "--data", str(file), "--option", "per_grade=2"]) == 0
    assert "mechir25" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "unknown recipe 'nothing'"),
        (["mechir25", "--option", "k=3"], "unknown option 'k'"),
        (["mechir25", "--option", "k"], "write it as num_queries=20"),
        (["chen24_tfc1", "--ranker", "paper"], "hf download"),
        (["chen24_tfc1", "--data", "file.txt"], "qid, query, docno and text"),
        (["chen24_tfc1", "--dataset", "mechir:none"], "cannot read the dataset"),
        (["chen24_tfc1", "--option", 'inject="both"'], "unknown inject"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(options, message, capfd):
    assert main(["recipe", *options]) == 2
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed
