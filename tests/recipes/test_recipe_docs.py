"""The pages of the recipes say what they are."""

from pathlib import Path

import pytest

from pyterrier_mechir import recipes
from pyterrier_mechir.recipes.catalogue import RECIPES, markdown

FOLDER = Path(__file__).parents[2] / "docs" / "recipes"


def test_the_first_page_has_the_table_and_what_comes_back():
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert markdown() in page
    assert "{generated} documented pyterrier_mechir.recipes RecipeResult" in page


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: one.name)
def test_each_has_a_page_with_a_run_and_its_figure(recipe):
    page = (FOLDER / f"{recipe.name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {recipe.name}\n\n{recipe.does}\n")
    assert "| figure | published | ours | interval |" in page
    assert f"{{generated}} documented pyterrier_mechir.recipes {recipe.name}" in page
    assert (FOLDER / "pictures" / f"{recipe.name}.png").is_file()


def test_no_page_is_left_of_a_recipe_that_is_gone():
    assert {page.stem for page in FOLDER.glob("*.md")} == {"index", *recipes.__all__} - {"RecipeResult"}
