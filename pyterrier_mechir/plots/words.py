"""Documents as lines of words, each on the colour of its score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.explained import Explained, queries, segments
from pyterrier_mechir.plots.markup import number
from pyterrier_mechir.plots.style import (
    DIVERGING,
    LITERAL,
    QUIET,
    SMALL,
    centred,
    colour_bar,
    finish,
    inches,
    ink,
    new_axes,
    note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 7.5
_ROUGH_WIDTH = 0.85 * 72 * _WIDTH
"""Points that words have in a line beside a colour bar, more or less, for the first guess of a figure's height."""

_SIZE = 9
_LINE = 15.0
"""Points from one line to the next."""

_GAP = 6.0
"""Points between two documents."""

_BELOW, _ABOVE = -3.5, 9.5
"""Where the box of a word ends, in points from the line that it stands on."""

_MARKED = 0.075
"""Share of the greatest score from which a word is underlined."""

_PIECE = re.compile(r"\s+|\S+")
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


class _Word(NamedTuple):
    """A piece of a line: its text, the number of its unit or -1, and where it begins and ends, in points."""

    text: str
    unit: int
    begin: float
    end: float


def plot_words(
    frame: pd.DataFrame,
    *,
    n: int = 5,
    lines: int = 6,
    ax: Axes | None = None,
    title: str | None = None,
    label: str = "score of the word",
) -> Axes:
    """Draw the documents of a query as lines of words, each on the colour of its score.

    Red words push the score up and are underlined, blue ones push it down and are underlined with dots. Words that the
    ranker does not read are grey. All documents are on one scale. Of a long document, the lines are shown whose words
    score most.

    Args:
        frame: of :class:`~pyterrier_mechir.ExplainScore`, of one query; or one row of it.
        n: how many documents to draw, the best ones.
        lines: of a document, at most; fewer where ``ax`` is not high enough.
        ax: axes to draw on; a new figure by default.
        title: of the axes; the query by default.
        label: of the colour bar.

    Returns:
        The matplotlib axes.

    Raises:
        ValueError: a frame of something else, of no documents or of several queries.
    """
    found = queries(frame, "plot_words")
    if len(found) != 1:
        raise ValueError(
            f"the frame has {len(found)} queries, of which plot_words draws one: choose it, as by "
            f"frame[frame['qid'] == {found[0].qid!r}]."
            if found
            else "the frame holds no documents to draw."
        )
    documents = found[0].documents[: max(n, 1)]
    scores = np.concatenate([document.scores for document in documents])
    axes = new_axes(ax, _WIDTH, 2.0)
    axes.set(xticks=[], yticks=[])
    finish(axes, found[0].query if title is None else title, "", "")
    axes.spines[:].set_visible(False)
    measure = _ruler(axes)
    if ax is None:
        _settle(axes)
        _set_height(axes, _height([_lines(document, _ROUGH_WIDTH, lines, measure) for document in documents]))
    boxes = _boxes(axes, scores)
    colour_bar(boxes, axes, label)
    beyond = "; grey: beyond what the ranker reads" if np.isnan(scores).any() else ""
    note(axes, f"solid line: pushes the score up; dotted: down{beyond}")
    _settle(axes)
    width, height = (72 * side for side in inches(axes))
    if ax is not None:
        lines = max(1, min(lines, int((height / len(documents) - _GAP) / _LINE) - 1))
    placed = [_lines(document, width, lines, measure) for document in documents]
    if ax is None:
        _set_height(axes, _height(placed))
    _write(axes, documents, placed, boxes)
    return axes


def _height(placed: Sequence[list[list[_Word]]]) -> float:
    """Points that documents take, with the line above each."""
    return sum(_LINE * (len(rows) + 1) + _GAP for rows in placed)


def _set_height(ax: Axes, points: float) -> None:
    """Make the axes of a figure of their own as high as their lines, by making the figure higher or lower."""
    figure: Any = ax.figure
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + points / 72 - inches(ax)[1])
    _settle(ax)


def _boxes(ax: Axes, scores: np.ndarray) -> Any:
    """A collection of boxes, without any yet, whose colours are those of scores; their corners are in points."""
    from matplotlib.collections import PolyCollection

    boxes = PolyCollection([], cmap=DIVERGING, norm=centred(scores), linewidths=0, zorder=1, transform=_points(ax))
    boxes.set_array(np.empty(0))
    ax.add_collection(boxes, autolim=False)
    return boxes


def _points(ax: Axes) -> Any:
    """Points to the right of the upper left corner of the axes, and above it."""
    from matplotlib.transforms import Affine2D, ScaledTranslation

    scale, corner = ax.figure.dpi_scale_trans, ScaledTranslation(0, 1, ax.transAxes)  # type: ignore[arg-type]
    return Affine2D().scale(1 / 72) + scale + corner


def _settle(ax: Axes) -> None:
    """Lay the figure out, so that the width of the axes is known."""
    ax.figure.get_figure(root=True).draw_without_rendering()


def _ruler(ax: Axes) -> Callable[[str], float]:
    """What measures how wide a text is drawn, in points."""
    from matplotlib.text import Text

    figure: Any = ax.figure.get_figure(root=True)
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else figure._get_renderer()
    probe = Text(0, 0, "", fontsize=_SIZE, **LITERAL)
    probe.set_figure(figure)
    known: dict[str, float] = {}

    def measure(text: str) -> float:
        if text not in known:
            probe.set_text(text)
            known[text] = probe.get_window_extent(renderer).width * 72 / figure.dpi
        return known[text]

    return measure


def _lines(document: Explained, width: float, most: int, measure: Callable[[str], float]) -> list[list[_Word]]:
    """The words of a document in lines of a width, of too many those whose words score most."""
    rows = list(_wrapped(document, width - measure(_ELLIPSIS), measure))
    if len(rows) <= most:
        return rows
    size = np.abs(np.nan_to_num(document.scores))
    of_rows = np.array([sum(size[unit] for unit in {word.unit for word in row} - {-1}) for row in rows])
    sums = np.convolve(of_rows, np.ones(most), "valid")
    first = int(sums.argmax())
    shown = rows[first : first + most]
    if first:
        shift = measure(_ELLIPSIS)
        moved = [word._replace(begin=word.begin + shift, end=word.end + shift) for word in shown[0]]
        shown[0] = [_Word(_ELLIPSIS, -1, 0.0, shift), *moved]
    if first + most < len(rows):
        end = shown[-1][-1].end
        shown[-1] = [*shown[-1], _Word(_ELLIPSIS, -1, end, end + measure(_ELLIPSIS))]
    return shown


def _wrapped(document: Explained, width: float, measure: Callable[[str], float]) -> Iterator[list[_Word]]:
    """Lines of a width: they break at spaces, and within what is wider than a line."""
    row: list[_Word] = []
    at = 0.0
    for chunk in _chunks(document):
        size = sum(measure(text) for text, _ in chunk)
        is_space = chunk[0][0].isspace()
        if row and at + size > width and not is_space:
            yield _stripped(row)
            row, at = [], 0.0
        if is_space and (not row or at + size > width):
            continue
        pieces = chunk if size <= width else [(letter, unit) for text, unit in chunk for letter in text]
        for text, unit in pieces:
            if row and at + measure(text) > width:
                yield _stripped(row)
                row, at = [], 0.0
            row.append(_Word(text, unit, at, at + measure(text)))
            at = row[-1].end
    if row:
        yield _stripped(row)


def _chunks(document: Explained) -> Iterator[list[tuple[str, int]]]:
    """What is not broken: spaces, and words between spaces, which may be of several units."""
    chunk: list[tuple[str, int]] = []
    for piece, unit in segments(document.text, document.spans):
        for part in _PIECE.findall(piece):
            if part.isspace():
                if chunk:
                    yield chunk
                yield [(" ", unit)]
                chunk = []
            else:
                chunk.append((part, unit))
    if chunk:
        yield chunk


def _stripped(row: list[_Word]) -> list[_Word]:
    return row[:-1] if len(row) > 1 and row[-1].text.isspace() else row


def _write(ax: Axes, documents: Sequence[Explained], placed: Sequence[list[list[_Word]]], boxes: Any) -> None:
    """Write the documents below each other, with the boxes and lines of their words."""
    style: dict[str, Any] = {"transform": _points(ax), "va": "baseline", **LITERAL}
    drawn: list[tuple[_Word, float, float]] = []
    at = 0.0
    for document, rows in zip(documents, placed, strict=True):
        at -= _LINE
        ax.text(0, at, _heading(document), fontsize=SMALL, color=QUIET, **style)
        for row in rows:
            at -= _LINE
            for word in row:
                score = float(document.scores[word.unit]) if word.unit >= 0 else 0.0
                drawn.append((word, score, at))
                if not word.text.isspace():
                    colour = "black" if word.unit < 0 else QUIET if np.isnan(score) else ink(boxes, score)
                    slant = "italic" if np.isnan(score) else "normal"
                    ax.text(word.begin, at, word.text, fontsize=_SIZE, color=colour, fontstyle=slant, **style)
        at -= _GAP
    _colour(ax, boxes, [one for one in drawn if one[0].unit >= 0])


def _colour(ax: Axes, boxes: Any, drawn: Sequence[tuple[_Word, float, float]]) -> None:
    """Draw the boxes of the words that have a score, and the lines that say its sign, or that there is none."""
    from matplotlib.collections import LineCollection

    known = [one for one in drawn if np.isfinite(one[1])]
    boxes.set_verts([_corners(word.begin, word.end, at + _BELOW, at + _ABOVE) for word, _, at in known])
    boxes.set_array(np.array([score for _, score, _ in known]))
    least = _MARKED * boxes.norm.vmax
    kinds: list[tuple[str, float, list[tuple[_Word, float, float]]]] = [
        ("solid", -1.5, [one for one in known if one[1] >= least]),
        ("dotted", -1.5, [one for one in known if one[1] <= -least]),
        ("solid", 3.0, [one for one in drawn if np.isnan(one[1])]),
    ]
    for line, height, words in kinds:
        where = [[(word.begin, at + height), (word.end, at + height)] for word, _, at in words]
        colours = ["0.5" if np.isnan(score) else ink(boxes, score) for _, score, _ in words]
        lines = LineCollection(where, colors=colours, linestyles=line, linewidths=0.9, transform=_points(ax))
        ax.add_collection(lines, autolim=False)


def _corners(left: float, right: float, bottom: float, top: float) -> list[tuple[float, float]]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _heading(document: Explained) -> str:
    rank = "" if document.rank is None else f"{document.rank}. "
    score = "" if np.isnan(document.score) else f", score {number(document.score)}"
    margin = f", {document.margin}" if document.margin else ""
    return f"{rank}{document.docno}{score}{margin}"
