"""What all recipes share: the paper, the ranker that it used, and the result with its figures beside the published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.markup import LITERAL_CLASSES, interval, number
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.load import load_ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.results.frames import METADATA

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TASB = "sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco", "265 MB"
"""The checkpoint of most papers, and the size of its files."""


class Paper(NamedTuple):
    """Where an experiment was published, and with which ranker.

    Args:
        source: authors, venue and number; for what was not published, what it is.
        checkpoint: the Hugging Face id of its ranker; None where there is none.
        size: of the checkpoint's files, such as ``265 MB``.
    """

    source: str
    checkpoint: str | None = None
    size: str = ""

    def ranker(self, given: Any) -> Ranker:
        """The ranker that is given, or the paper's own.

        Raises:
            ValueError: none is given, and the paper's cannot be loaded.
            TypeError: what is given is no ranker.
        """
        if given is not None:
            return document_ranker(given)
        if self.checkpoint is None:
            raise ValueError("this experiment has no ranker of its own; give one, such as known_circuit().ranker.")
        try:
            return load_ranker(self.checkpoint, verbose=False)
        except ValueError as error:
            raise ValueError(
                f"the ranker of {self.source}, {self.checkpoint}, cannot be loaded ({str(error).rstrip('.')}); "
                f"download it ({self.size}) by hf download {self.checkpoint}, or give another ranker."
            ) from error

    def remarks(self, ranker: Ranker) -> tuple[str, ...]:
        """What is to be known where the ranker is not the paper's, in a sentence."""
        if self.checkpoint is None or Path(ranker.name).name == Path(self.checkpoint).name:
            return ()
        return (
            f"The published figures are of {self.checkpoint}; these are of {ranker!r}, so that heads of the same "
            "number have nothing in common, and sizes may differ.",
        )


class Figure(NamedTuple):
    """A figure of an experiment.

    Args:
        figure: what it is.
        published: its published value, or the published statement; None where there is none.
        ours: its value here; None where it cannot be had.
        ci_low: lower end of the interval of ``ours``, by a bootstrap of queries.
        ci_high: its upper end.
    """

    figure: str
    published: Any = None
    ours: Any = None
    ci_low: float = np.nan
    ci_high: float = np.nan


@dataclass(frozen=True, eq=False, repr=False)
class RecipeResult:
    """What a recipe found.

    It prints its table and its findings, shows itself in a notebook, and gives its frames by name: ``result["heads"]``.

    Args:
        recipe: the name of the recipe.
        paper: where the experiment was published.
        ranker: what identifies the ranker (its ``about()``).
        figures: the figures, the published beside ours.
        frames: all that was computed, by name.
        findings: what was found, a sentence each; what was not found is said too.
        notes: what is to be known beside.
        drawn: draws the main figure on the axes given as ``ax``.
    """

    recipe: str
    paper: Paper
    ranker: Mapping[str, Any]
    figures: Sequence[Figure]
    frames: Mapping[str, pd.DataFrame]
    findings: Sequence[str]
    notes: Sequence[str]
    drawn: Callable[..., Axes]

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The frame of a name.

        Raises:
            KeyError: there is none.
        """
        if name not in self.frames:
            raise KeyError(f"no frame {name!r}; there are {', '.join(self.frames)}.")
        return self.frames[name]

    @property
    def attrs(self) -> dict[Any, Any]:
        """What made the result, as the attrs of a frame: ``recipe``, ``paper``, ``ranker``, ``findings``, ``notes``."""
        told = {"recipe": self.recipe, "paper": self.paper.source, "ranker": dict(self.ranker)}
        return {METADATA: {**told, "findings": list(self.findings), "notes": list(self.notes)}}

    def table(self) -> pd.DataFrame:
        """A row per figure: ``figure, published, ours, ci_low, ci_high``; the attrs say what made them."""
        table = pd.DataFrame(self.figures, columns=list(Figure._fields))
        table = table.astype({"published": object, "ours": object})
        table.attrs = self.attrs
        return table

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the main figure.

        Args:
            ax: axes to draw on; a new figure by default.

        Returns:
            The matplotlib axes.
        """
        return self.drawn(ax=ax)

    def save(self, directory: str | Path) -> list[Path]:
        """Write the table and each frame (CSV), the figure (PNG) and the notebook view (HTML) to a directory.

        Returns:
            The files.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = []
        for name, frame in {"table": self.table(), **self.frames}.items():
            files.append(directory / f"{name}.csv")
            frame.to_csv(files[-1], index=False)
        from matplotlib import pyplot as plt

        drawn = self.plot().get_figure(root=True)
        assert drawn is not None
        drawn.savefig(directory / f"{self.recipe}.png", dpi=150)
        plt.close(drawn)
        page = directory / f"{self.recipe}.html"
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><title>{self.recipe}</title>{self._repr_html_()}', "utf-8"
        )
        return [*files, directory / f"{self.recipe}.png", page]

    def markdown(self) -> str:
        """The findings, the table in Markdown, and the notes."""
        head = ["figure", "published", "ours", "interval"]
        lines = [" | ".join(row) for row in (head, ["---"] * len(head), *self._rows())]
        table = "\n".join(f"| {line} |" for line in lines)
        return "\n\n".join([" ".join(self.findings), table, *self.notes])

    def _rows(self) -> list[list[str]]:
        return [
            [one.figure, _written(one.published), _written(one.ours), interval(one.ci_low, one.ci_high)]
            for one in self.figures
        ]

    def __repr__(self) -> str:
        of_ranker = f"{self.ranker['ranker']}({self.ranker['name']!r})"
        return f"<RecipeResult {self.recipe} of {of_ranker}: {', '.join(self.frames)}>"

    def __str__(self) -> str:
        rows = [["figure", "published", "ours", "interval"], *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = f"{self.recipe}: {self.paper.source}; {self.ranker['ranker']}({self.ranker['name']!r})"
        return "\n".join([head, "", *lines, "", *self.findings, *self.notes])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{name}</th>' for name in ("figure", "published", "ours", "interval"))
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self._rows())
        said = "".join(f"<p>{escape(text)}</p>" for text in self.findings)
        notes = "".join(f"<p><small>{escape(text)}</small></p>" for text in self.notes)
        frames = escape(", ".join(self.frames))
        return (
            f'<div class="mechir {LITERAL_CLASSES}"><p><strong>{self.recipe}</strong>, {escape(self.paper.source)}; '
            f"{escape(str(self.ranker['ranker']))} {escape(str(self.ranker['name']))}</p>{said}"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"
            f"<p><small>Frames: {frames}.</small></p></div>"
        )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
