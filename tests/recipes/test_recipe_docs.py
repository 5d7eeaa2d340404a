"""The page of the recipes says what they are."""

from pathlib import Path

from pyterrier_mechir.recipes.catalogue import RECIPES, markdown

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_and_a_run_of_each():
    assert markdown() in PAGE
    for one in RECIPES:
        _, _, after = PAGE.partition(f"### {one.name}\n\n{one.does}\n")
        assert "| figure | published | ours | interval |" in after.partition("###")[0], one.name
