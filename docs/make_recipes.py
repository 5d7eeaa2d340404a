"""Runs each recipe on the known circuit and writes its page and its figure: ``python docs/make_recipes.py [NAME ...]``.

It needs Linux (for PISA), and about a minute of one core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt

from pyterrier_mechir import known_circuit
from pyterrier_mechir.recipes.catalogue import Recipe, by_name

FOLDER = Path(__file__).parent / "recipes"


def page(recipe: Recipe, found: str) -> str:
    """The page of a recipe, in Markdown, with what a run of it found."""
    return f"""# {recipe.name}

{recipe.does}

```python
from pyterrier_mechir import known_circuit, recipes

result = recipes.{recipe.name}(known_circuit().ranker)
result.plot()
```

On the known circuit, with the default options, on the lab collection:

![The figure that the lines above draw](pictures/{recipe.name}.png)

{found}

```{{generated}} documented pyterrier_mechir.recipes {recipe.name}
```
"""


def make(names: Sequence[str], dpi: int = 100) -> None:
    """Run recipes and write their pages."""
    for name in names:
        recipe = by_name()[name]
        result = recipe.run(known_circuit().ranker)
        (FOLDER / f"{name}.md").write_text(page(recipe, result.markdown()), encoding="utf-8")
        plt.close("all")
        picture = FOLDER / "pictures" / f"{name}.png"
        picture.parent.mkdir(exist_ok=True)
        result.plot().get_figure(root=True).savefig(picture, dpi=dpi, bbox_inches="tight", metadata={"Software": None})
        print(name, f"{picture.stat().st_size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    matplotlib.use("Agg")
    make(sys.argv[1:] or list(by_name()))
