"""What a recipe gives: its table, its views, its files."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from lab_documents import lab_documents
from matplotlib import pyplot

matplotlib.use("Agg")

from pyterrier_mechir import known_circuit, recipes
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.plots.markup import MISSING
from pyterrier_mechir.recipes.base import Figure, Paper, RecipeResult
from pyterrier_mechir.recipes.catalogue import RECIPES, markdown


@pytest.fixture
def result():
    figures = [Figure("mean <change>", 4.33, 0.5, 0.25, 0.75), Figure("heads", "L0H9", "L1H2"), Figure("none")]
    frames = {"heads": pd.DataFrame({"docno": ["L0H0"], "score": [1.0]})}
    paper = Paper("Someone, 2025", "some/checkpoint", "1 MB")
    draw = lambda ax=None: plot_heads(np.eye(2), ax=ax)  # noqa: E731
    ranker = {"ranker": "CrossEncoder", "name": "tiny & small"}
    return RecipeResult("a_recipe", paper, ranker, figures, frames, ["It costs $5."], ["A note."], draw)


def test_the_table_has_the_published_figures_beside_ours(result):
    table = result.table()
    assert list(table.columns) == ["figure", "published", "ours", "ci_low", "ci_high"]
    assert table["published"].tolist()[:2] == [4.33, "L0H9"] and table["ours"].tolist()[:2] == [0.5, "L1H2"]
    told = table.attrs["mechir"]
    assert told["recipe"] == "a_recipe" and told["notes"] == ["A note."] and told["ranker"]["name"] == "tiny & small"


def test_frames_are_had_by_name(result):
    assert len(result["heads"]) == 1
    with pytest.raises(KeyError, match="there are heads"):
        result["pairs"]


def test_it_prints_and_shows_itself(result):
    printed = str(result)
    assert "mean <change>" in printed and "4.330" in printed and "+0.250 to +0.750" in printed and "A note." in printed
    page = result._repr_html_()
    assert "mean &lt;change&gt;" in page and "tiny &amp; small" in page and "mathjax_ignore" in page
    assert "a_recipe" in repr(result) and len(repr(result)) < 120
    assert f"| heads | L0H9 | L1H2 | {MISSING} |" in result.markdown()


def test_it_is_written_to_a_directory(result, tmp_path):
    before = pyplot.get_fignums()
    files = result.save(tmp_path / "out")
    assert pyplot.get_fignums() == before
    assert sorted(file.name for file in files) == ["a_recipe.html", "a_recipe.png", "heads.csv", "table.csv"]
    assert pd.read_csv(tmp_path / "out" / "table.csv")["ours"][0] == "0.5"
    assert (tmp_path / "out" / "a_recipe.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_own_ranker_has_nothing_to_be_remarked():
    ranker = known_circuit().ranker
    assert Paper("someone", "an/other").remarks(ranker)[0].startswith("The published figures are of an/other")
    assert Paper("someone", f"an/{ranker.name}").remarks(ranker) == () == Paper("someone").remarks(ranker)
    with pytest.raises(TypeError):
        Paper("someone").ranker("a name")


def test_the_catalogue_says_what_each_does_in_a_sentence():
    assert all(one.does.endswith(".") and "data" not in one.options for one in RECIPES)
    assert all(f"`{one.name}`" in markdown() for one in RECIPES)
    assert "seed" in RECIPES[0].options and "ranker" not in RECIPES[0].options


def test_a_recipe_that_is_asked_to_shows_the_bars_of_its_stages(capsys):
    documents, ranker = lab_documents(6, (0,)), known_circuit().ranker
    for verbose in (False, True):
        recipes.faithful_words(ranker, documents, methods=["occlusion"], verbose=verbose)
        assert (repr(ranker) in capsys.readouterr().err) is verbose
