"""Figures show the values of their frames at the right places, on the axes that they are given."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.collections import PolyCollection
from reference import inputs_of
from small_models import ARCHITECTURES, QUERIES, TEXTS, build
from test_word_views import explained
from tolerance import assert_near, assert_near_effects, widened

import pyterrier_mechir.plots
from pyterrier_mechir import AggregateHeads, BiEncoder, CrossEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.observe.attention import attention_of
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.plots.attention import plot_attention
from pyterrier_mechir.plots.circuit import plot_circuit
from pyterrier_mechir.plots.classes import plot_classes
from pyterrier_mechir.plots.comparison import _spread, plot_comparison
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.plots.layers import plot_layers
from pyterrier_mechir.plots.positions import plot_positions
from pyterrier_mechir.plots.style import QUALITATIVE, centred, effect_map, ink
from pyterrier_mechir.plots.words import plot_words
from pyterrier_mechir.results.compare import compare_heads
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("one_thread", "closed_figures")

DOCS = Path(__file__).parents[2] / "docs"

HEADS = pd.DataFrame(
    [
        (0, 0, 0.5, 0.001),
        (0, 1, -0.2, 0.05),
        (1, 0, 0.04, 0.049),
        (1, 2, 0.3, np.nan),
        (2, 1, -0.9, 0.2),
    ],
    columns=["layer", "head", "score", "p_adjusted"],
).assign(qid="all", docno=["L0H0", "L0H1", "L1H0", "L1H2", "L2H1"], component="head")

CURVE = pd.DataFrame({"k": [0, 1, 2], "faithfulness": [0, 0.8, 1], "completeness": [0, 0.5, 1]}).assign(
    faithfulness_random=[0, 0.4, 1], faithfulness_random_low=[0, 0.3, 1], faithfulness_random_high=[0, 0.6, 1]
)

COMPARED = pd.DataFrame(
    [
        ("L0H0", 0.1, 0.5, 0.01),
        ("L0H1", 0.3, 0.0, 0.2),
        ("L1H0", -0.2, -0.25, 0.03),
        ("L1H1", 0.2, 0.21, 0.9),
    ],
    columns=["docno", "score_first", "score_second", "p_adjusted"],
).assign(score=lambda frame: frame["score_second"] - frame["score_first"], qid="all")


@pytest.fixture
def closed_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    rows = [(f"q{i}", QUERIES[i], f"d{i}", TEXTS[i]) for i in (0, 1, 2, 6)]
    return PerturbDocs(TFC1())(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


@pytest.fixture(scope="module")
def blocks(cross_encoder, pairs) -> pd.DataFrame:
    return PatchScorer(cross_encoder, "block", positions="each")(pairs)


@pytest.fixture(scope="module")
def classes(bi_encoder, pairs) -> pd.DataFrame:
    return AggregateHeads(by=None)(PatchScorer(bi_encoder, positions="class")(pairs))


@pytest.fixture(scope="module")
def layers(bi_encoder, pairs) -> pd.DataFrame:
    return AggregateHeads(by=None)(PatchScorer(bi_encoder, ["attn_out", "mlp_out"])(pairs))


def drawn(axes) -> np.ndarray:
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def written(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def marked(axes) -> set[tuple[int, int]]:
    """The (row, column) of the cells that have a mark, each of which lies within its cell."""
    cells = set()
    for collection in axes.collections:
        if isinstance(collection, PolyCollection):
            for path in collection.get_paths():
                (column, row) = np.unique(np.round(path.vertices).astype(int), axis=0).T
                assert len(set(row)) == len(set(column)) == 1
                cells.add((int(row[0]), int(column[0])))
    return cells


# Style


def test_zero_is_white_in_the_middle_and_both_signs_are_as_strong():
    for values, limit, largest in [([[0.2, -0.7]], None, 0.7), ([[0.2, np.nan]], 3, 3), ([[0.0, np.nan]], None, 1)]:
        norm = centred(np.array(values), limit)
        assert (norm.vmin, norm.vmax, norm(0.0)) == (-largest, largest, 0.5)
    image = effect_map(pyplot.subplots()[1], np.array([[-1.0, 0.0, 1.0]]), centred(np.ones(1)))
    against, zero, along = (image.cmap(image.norm(value)) for value in (-1.0, 0.0, 1.0))
    assert along[0] > 2 * along[2] and against[2] > 2 * against[0]
    assert min(zero) > 0.95


def test_values_are_written_in_the_ink_that_contrasts_more():
    image = effect_map(pyplot.subplots()[1], np.linspace(-1, 1, 21)[None], centred(np.ones(1)))

    def contrast(one, other):
        lights = []
        for colour in (one, other):
            rgb = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
            lights.append(0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2] + 0.05)
        return max(lights) / min(lights)

    for value in np.linspace(-1, 1, 21):
        ground = image.cmap(image.norm(value))
        chosen = contrast(ground, matplotlib.colors.to_rgb(ink(image, value)))
        assert chosen > 4.4
        assert chosen == pytest.approx(max(contrast(ground, (0, 0, 0)), contrast(ground, (1, 1, 1))), abs=0.2)


def test_a_scale_that_effects_go_beyond_is_pointed():
    for limit, pointed in [(None, "neither"), (0.4, "both"), (0.6, "min")]:
        image = plot_heads(HEADS, limit=limit).images[0]
        assert image.colorbar.extend == pointed


# Every figure


def plots(request) -> dict:
    """A call of every function, but for ``ax``."""
    of = request.getfixturevalue
    return {
        "heads": lambda **ax: plot_heads(HEADS, **ax),
        "circuit": lambda **ax: plot_circuit(CURVE, **ax),
        "positions": lambda **ax: plot_positions(of("blocks"), component="mlp_out", **ax),
        "classes": lambda **ax: plot_classes(of("classes"), **ax),
        "layers": lambda **ax: plot_layers(of("layers"), **ax),
        "comparison": lambda **ax: plot_comparison(COMPARED, **ax),
        "words": lambda **ax: plot_words(explained(1), **ax),
        "attention": lambda **ax: plot_attention(of("bi_encoder"), QUERIES[0], TEXTS[0], (1, 2), **ax),
        "attention of": lambda **ax: plot_attention(of("bi_encoder"), QUERIES[0], TEXTS[0], (1, 2), of=1, **ax),
    }


ALL = ["heads", "circuit", "positions", "classes", "layers", "comparison", "words", "attention", "attention of"]


@pytest.mark.parametrize("name", ALL)
def test_the_axes_given_are_drawn_on_and_no_others(request, name):
    draw = plots(request)[name]
    figure, (left, right) = pyplot.subplots(1, 2)
    empty = len(left.get_children())
    assert draw(ax=right, title="A title") is right
    assert right.get_title() == "A title"
    assert len(left.get_children()) == empty and not left.has_data()
    assert right.has_data()
    assert pyplot.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", ALL)
def test_a_figure_of_its_own_shows_all_its_text(request, name):
    axes = plots(request)[name](title="A title")
    figure = axes.figure
    assert pyplot.get_fignums() == [figure.number]
    figure.draw_without_rendering()
    assert (axes.title.get_text(), len(figure.axes)) == ("A title", 2 if axes.images or name == "words" else 1)
    for one in figure.axes:
        box = one.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("name", ALL)
def test_no_text_but_the_numbers_of_a_scale_is_read_as_a_formula(request, name):
    axes = plots(request)[name](title="from $5_000 to $10_{")
    axes.figure.draw_without_rendering()
    named = [
        axes.title,
        axes.xaxis.label,
        axes.yaxis.label,
        *axes.texts,
        *(axes.get_legend() or Legendless).get_texts(),
    ]
    for one in axes.figure.axes[1:]:
        named += [one.xaxis.label, one.yaxis.label]
    assert not any(text.get_parse_math() for text in named if text.get_text().strip("-+.0123456789"))


class Legendless:
    """Stands for the legend of axes that have none."""

    get_texts = list


def test_names_from_a_frame_are_no_formulas():
    axes = plot_comparison(COMPARED.assign(docno=[f"$L_{i}$" for i in range(len(COMPARED))]), names=("$a$", "$b_$"))
    axes.figure.draw_without_rendering()
    assert not any(text.get_parse_math() for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label))


# Heads


@pytest.mark.parametrize("annotate", [True, False])
def test_heads_below_the_level_are_marked_and_no_others(annotate):
    axes = plot_heads(HEADS, annotate=annotate)
    assert marked(axes) == {(0, 0), (1, 0)}
    assert "marked corner: adjusted p < 0.05" in written(axes)
    assert (".50" in written(axes)) == annotate
    assert marked(plot_heads(HEADS, alpha=0.01)) == {(0, 0)}
    assert marked(plot_heads(HEADS, alpha=0.3)) == {(0, 0), (0, 1), (1, 0), (2, 1)}


def test_marks_are_in_the_ink_of_their_cell():
    axes = plot_heads(HEADS.assign(p_adjusted=0.0))
    (marks,) = axes.collections
    of_cell = {
        tuple(np.round(path.vertices[0][::-1]).astype(int)): colour[0]
        for path, colour in zip(marks.get_paths(), marks.get_facecolors(), strict=True)
    }
    assert of_cell[2, 1] == 1
    assert of_cell[1, 0] == 0


def test_marks_are_left_out_where_nothing_was_tested():
    one_query, several = HEADS.assign(p_adjusted=np.nan), pd.concat([HEADS, HEADS.assign(qid="other")])
    for frame, options in [(HEADS, {"alpha": None}), (one_query, {}), (several, {}), (HEADS.drop(columns="qid"), {})][
        :3
    ]:
        axes = plot_heads(frame, annotate=False, **options)
        assert not axes.collections and not axes.texts
    assert not plot_heads(HEADS.drop(columns="p_adjusted")).collections
    axes = plot_heads(HEADS, alpha=1e-4, annotate=False)
    assert not axes.collections
    assert written(axes) == ["no adjusted p < 0.0001"]


def test_the_marks_of_patched_documents_are_those_of_their_aggregate(bi_encoder):
    rows = [(f"{q}.{i}", QUERIES[q], f"d{q}", TEXTS[q]) for q in (0, 1, 2, 5, 6) for i in range(2)]
    frame = PerturbDocs(TFC1())(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))
    patched = PatchScorer(bi_encoder)(frame)
    heads = AggregateHeads(by=None)(patched)
    below = heads[heads["p_adjusted"] < 0.1]
    assert 0 < len(below) < len(heads)
    assert marked(plot_heads(patched, alpha=0.1)) == set(zip(below["layer"], below["head"], strict=True))


@pytest.mark.parametrize("column", ["component", "slot", "estimator"])
def test_several_effects_of_one_head_are_not_averaged(column):
    frame = pd.concat([HEADS.assign(**{column: "q"}), HEADS.assign(**{column: "k"})])
    with pytest.raises(ValueError, match=rf"2 values of '{column}', of which plot_heads draws one: .*== 'q'\]"):
        plot_heads(frame)
    assert drawn(plot_heads(frame[frame[column] == "k"]))[2, 1] == -0.9


# Positions


def test_each_component_is_a_map_of_layers_by_tokens(blocks):
    axes = plot_positions(blocks, "q1", "d1", title="A pair")
    assert [one.get_ylabel() for one in axes] == ["resid_pre\nlayer", "attn_out\nlayer", "mlp_out\nlayer"]
    pair = blocks[blocks["docno"] == "d1"].iloc[0]
    for number, one in enumerate(axes):
        effects = pair["patch_effect"][3 * number : 3 * number + 3]
        np.testing.assert_allclose(drawn(one), effects, rtol=1e-6)
        assert one.images[0].get_clim()[1] == pytest.approx(np.abs(effects).max())
        assert labels(one.yaxis) == ["0", "1", "2"]
    assert labels(axes[-1].xaxis) == pair["tokens"]
    assert [one.get_title() for one in axes] == ["A pair", "", ""]
    assert all(one.images[0].get_clim() == (-0.5, 0.5) for one in plot_positions(blocks, limit=0.5))


def test_edited_tokens_and_those_of_the_query_are_set_off(blocks):
    axes = plot_positions(blocks, component="resid_pre")
    kinds = blocks["token_classes"].iloc[0]
    assert {"EDIT", "Q+", "Q-", "D+", "D-", "OTHER"} <= set(kinds)
    for text, kind in zip(axes.get_xticklabels(), kinds, strict=True):
        is_query = kind in ("Q+", "Q-", "D+", "D-")
        assert (text.get_fontweight() == "bold") == (kind == "EDIT")
        assert (text.get_fontstyle() == "italic") == is_query
        assert (text.get_color() == QUALITATIVE[2]) == is_query
    assert written(axes) == ["bold: the edit; italic: query terms"]
    (frame,) = axes.patches
    edited = [place for place, kind in enumerate(kinds) if kind == "EDIT"]
    assert (frame.get_x(), frame.get_width()) == (edited[0] - 0.5, len(edited))
    assert (frame.get_y(), frame.get_height()) == (-0.5, 3)


def test_the_first_pair_with_effects_is_drawn_unless_one_is_named(blocks):
    untouched = blocks.iloc[[0]].assign(qid="none", patch_effect=[np.full_like(blocks["patch_effect"].iloc[0], np.nan)])
    frame = pd.concat([untouched, blocks])
    frame.attrs = blocks.attrs
    assert labels(plot_positions(frame, component="mlp_out").xaxis) == blocks["tokens"].iloc[0]
    assert labels(plot_positions(frame, docno="d6", component="mlp_out").xaxis) == blocks["tokens"].iloc[3]
    assert labels(plot_positions(frame, qid="q2", component="mlp_out").xaxis) == blocks["tokens"].iloc[2]
    with pytest.raises(ValueError, match="no pair of qid 'none' has effects"):
        plot_positions(frame, qid="none")
    with pytest.raises(ValueError, match="no pair of qid 'q1' and docno 'd2'"):
        plot_positions(frame, "q1", "d2")


def test_a_part_of_a_text_can_be_drawn(blocks, cross_encoder, pairs):
    effects, tokens = blocks["patch_effect"].iloc[0][3:6], blocks["tokens"].iloc[0]
    axes = plot_positions(blocks, component="attn_out", positions=range(5, 12))
    np.testing.assert_allclose(drawn(axes), effects[:, 5:12], rtol=1e-6)
    assert labels(axes.xaxis) == tokens[5:12]
    chosen = PatchScorer(cross_encoder, "attn_out", positions=[-2, 3])(pairs)
    axes = plot_positions(chosen)
    assert_near_effects(drawn(axes)[None], effects[None][..., [3, -2]], chosen.iloc[:1])
    assert labels(axes.xaxis) == [tokens[3], tokens[-2]]


def test_the_rows_of_heads_are_heads(cross_encoder, pairs):
    axes = plot_positions(PatchScorer(cross_encoder, positions="each", heads=[(2, 1), (0, 3)])(pairs))
    assert labels(axes.yaxis) == ["L0H3", "L2H1"]
    assert axes.get_ylabel() == "head"


def test_axes_are_as_many_as_components(blocks):
    figure, axes = pyplot.subplots(3, 1)
    assert list(plot_positions(blocks, ax=axes)) == list(axes)
    assert [len(one.images) for one in axes] == [1, 1, 1]
    assert pyplot.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="3 components to draw and 1 axes"):
        plot_positions(blocks, ax=axes[0])


def test_marks_of_spaces_are_left_out_and_signs_are_not_read_as_formulas():
    ranker = BiEncoder(build("roberta", classifier=False))
    frame = pd.DataFrame([("1", "tides", "d", "two tides $ x $", "two tides $ x $ tides")])
    frame.columns = ["qid", "query", "docno", "text", "text_perturbed"]
    out = PatchScorer(ranker, "resid_pre", positions="each")(frame)
    axes = plot_positions(out)
    assert labels(axes.xaxis) == [token.lstrip("Ġ") or token for token in out["tokens"].iloc[0]]
    assert any(token.startswith("Ġ") for token in out["tokens"].iloc[0])
    assert not any(text.get_parse_math() for text in axes.get_xticklabels())


def test_what_has_no_effects_of_single_positions_is_an_error(bi_encoder, pairs, blocks):
    for frame in (PatchScorer(bi_encoder)(pairs), HEADS):
        with pytest.raises(ValueError, match=r"positions='each'\); this one has no effects of single positions"):
            plot_positions(frame)
    with pytest.raises(ValueError, match="plot_classes draws those of token classes"):
        plot_positions(PatchScorer(bi_encoder, "mlp_out", positions="class")(pairs))
    with pytest.raises(ValueError, match=r"no effects of resid_post .* has those of resid_pre, attn_out, mlp_out"):
        plot_positions(blocks, component="resid_post")


# Token classes


def test_the_strongest_heads_come_first_and_classes_in_their_order(classes):
    axes = plot_classes(classes, top=5)
    found = explode(classes)
    present = [name for name in TOKEN_CLASSES if name in set(found["slot"])]
    assert labels(axes.xaxis) == present and 4 < len(present) < 8
    strength = found.groupby("site")["score"].apply(lambda scores: scores.abs().max()).sort_values(ascending=False)
    assert labels(axes.yaxis) == list(strength.index[:5])
    cells = found.set_index(["site", "slot"])["score"]
    for (row, column), value in np.ndenumerate(drawn(axes)):
        name = (labels(axes.yaxis)[row], present[column])
        assert value == cells[name] if name in cells.index else np.isnan(value)
    assert axes.get_xlabel() == "token class"
    assert len(labels(plot_classes(classes, top=100).yaxis)) == 12


def explode(aggregate) -> pd.DataFrame:
    return aggregate.assign(site=[name.split("@")[0] for name in aggregate["docno"]]).dropna(subset="score")


def test_classes_below_the_level_are_marked(classes):
    chosen = {("L1H0", "EDIT"), ("L2H3", "SEP")}
    rows = explode(classes)
    is_chosen = [pair in chosen for pair in zip(rows["site"], rows["slot"], strict=True)]
    axes = plot_classes(rows.assign(p_adjusted=np.where(is_chosen, 0.01, 0.3)), top=12)
    names = {(labels(axes.yaxis)[row], labels(axes.xaxis)[column]) for row, column in marked(axes)}
    assert names == chosen
    assert not marked(plot_classes(rows.assign(p_adjusted=0.01), alpha=None))


def test_the_rows_of_a_layer_wide_component_are_layers(bi_encoder, pairs):
    patched = PatchScorer(bi_encoder, "resid_pre", positions="class", layers=[0, 2])(pairs)
    out = AggregateHeads(by=None)(patched)
    axes = plot_classes(out)
    assert labels(axes.yaxis) == ["0", "2"] and axes.get_ylabel() == "resid_pre, layer"
    edit = labels(axes.xaxis).index("EDIT")
    np.testing.assert_allclose(drawn(axes)[0, edit], 1, rtol=widened(1e-3))
    expected = out.set_index("docno").loc["L2.resid_pre@EDIT", "score"]
    assert drawn(axes)[1, edit] == expected
    np.testing.assert_array_equal(drawn(plot_classes(patched)), drawn(axes))
    both = PatchScorer(bi_encoder, ["attn_out", "mlp_out"], positions="class")(pairs)
    assert set(labels(plot_classes(both).yaxis)) == {
        f"L{i}.{name}" for i in range(3) for name in ("attn_out", "mlp_out")
    }


def test_chosen_positions_are_columns(bi_encoder, pairs):
    axes = plot_classes(PatchScorer(bi_encoder, "mlp_out", positions=[3, -1])(pairs))
    assert set(labels(axes.xaxis)) == {"3", "-1"} and axes.get_xlabel() == "position"


def test_what_has_no_classes_is_an_error(classes, layers):
    with pytest.raises(ValueError, match="no column 'slot'"):
        plot_classes(layers)
    with pytest.raises(ValueError, match="frames of AggregateHeads or PatchScorer; this one has no docno, component"):
        plot_classes(CURVE)
    with pytest.raises(ValueError, match="2 values of 'qid', of which plot_classes draws one"):
        plot_classes(pd.concat([classes, classes.assign(qid="other")]))
    with pytest.raises(ValueError, match="no effects to draw"):
        plot_classes(classes.assign(score=np.nan))


# Layers


def test_each_component_is_a_line_with_its_intervals(layers):
    axes = plot_layers(layers, label="effect")
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["attn_out", "mlp_out"]
    assert len({line.get_marker() for line in lines.values()}) == 2
    for (name, line), bars in zip(lines.items(), axes.collections, strict=True):
        rows = layers[layers["component"] == name].sort_values("layer")
        np.testing.assert_array_equal(line.get_ydata(), rows["score"])
        np.testing.assert_allclose(np.round(line.get_xdata()), rows["layer"])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_array_equal(ends, rows[["ci_low", "ci_high"]])
        at = [segment[0, 0] for segment in bars.get_segments()]
        np.testing.assert_array_equal(at, line.get_xdata())
    assert axes.get_ylabel() == "effect" and "bars: confidence intervals" in written(axes)
    assert sorted(text.get_text() for text in axes.get_legend().get_texts()) == ["attn_out", "mlp_out"]


def test_heads_are_left_out_and_missing_intervals_are_not_drawn(bi_encoder, pairs):
    mixed = PatchScorer(bi_encoder, ["head", "mlp_out"])(pairs)
    axes = plot_layers(AggregateHeads(by=None, n_boot=0)(mixed))
    assert [line.get_label() for line in axes.lines if not line.get_label().startswith("_")] == ["mlp_out"]
    assert not axes.collections and not written(axes)
    assert len(plot_layers(mixed).collections) == 1


def test_what_has_no_layers_is_an_error(layers, classes):
    with pytest.raises(ValueError, match="no components of whole layers"):
        plot_layers(HEADS)
    with pytest.raises(ValueError, match="values of 'slot', of which plot_layers draws one"):
        plot_layers(classes)
    with pytest.raises(ValueError, match="2 values of 'qid'"):
        plot_layers(pd.concat([layers, layers.assign(qid="other")]))
    with pytest.raises(ValueError, match="this one has no component, layer, head and score"):
        plot_layers(CURVE)


# Two sides


def points(axes) -> dict[str, set[tuple[float, float]]]:
    return {scatter.get_label(): set(map(tuple, scatter.get_offsets().tolist())) for scatter in axes.collections}


def test_components_lie_at_their_two_effects():
    axes = plot_comparison(COMPARED, names=("filler a", "filler mask"))
    assert points(axes) == {
        "other components": {(0.3, 0.0), (0.2, 0.21)},
        "adjusted p < 0.05": {(0.1, 0.5), (-0.2, -0.25)},
    }
    plain, different = axes.collections
    assert not len(plain.get_facecolors()) and len(different.get_facecolors())
    assert len(plain.get_paths()[0].vertices) != len(different.get_paths()[0].vertices)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("effect, filler a", "effect, filler mask")
    assert axes.get_xlim() == axes.get_ylim() and axes.get_aspect() == 1
    (diagonal,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert (diagonal.get_slope(), diagonal.get_xy1()) == (1, (0, 0))


def test_the_most_different_components_are_named_beside_their_points():
    axes = plot_comparison(COMPARED, label=2)
    named = {text.get_text(): text for text in axes.texts if text.get_text().startswith("L")}
    assert set(named) == {"L0H0", "L0H1"}
    assert named["L0H0"].xy == (0.1, 0.5) and named["L0H0"].get_ha() == "right"
    assert named["L0H1"].xy == (0.3, 0.0) and named["L0H1"].get_ha() == "left"
    assert not [text for text in plot_comparison(COMPARED, label=0).texts if text.get_text().startswith("L")]


def test_names_of_neighbours_do_not_overlap():
    close = pd.DataFrame({"docno": [f"L0H{i}" for i in range(6)], "score_first": 0.0})
    close["score_second"] = close["score"] = 0.5 + 0.001 * np.arange(6)
    axes = plot_comparison(close)
    axes.figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text().startswith("L")]
    boxes = sorted((matplotlib.text.Text.get_window_extent(text) for text in texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


@given(st.lists(st.floats(-100, 100), max_size=12), st.floats(0.1, 20))
def test_spread_values_are_a_gap_apart_in_their_order_and_stay_where_they_can(values, gap):
    values = np.sort(np.array(values))
    spread = _spread(values, gap)
    assert (np.diff(spread) >= gap - 1e-6).all()
    np.testing.assert_allclose(spread.sum(), values.sum(), atol=1e-6)
    if (np.diff(values) >= gap).all():
        np.testing.assert_allclose(spread, values, atol=1e-9)


def test_two_runs_that_were_compared_are_drawn(bi_encoder, pairs):
    frame = compare_heads(PatchScorer(bi_encoder)(pairs), PatchScorer(bi_encoder, filler="mask")(pairs))
    axes = plot_comparison(frame)
    found = set().union(*points(axes).values())
    assert found == set(map(tuple, frame[["score_first", "score_second"]].to_numpy().tolist()))
    assert axes.get_legend() is not None
    untested = plot_comparison(frame.drop(columns="p_adjusted"))
    assert untested.get_legend() is None and len(untested.collections) == 1


def test_what_is_no_comparison_is_an_error():
    with pytest.raises(ValueError, match="frames of CompareHeads; this one has no score_first, score_second"):
        plot_comparison(HEADS)
    with pytest.raises(ValueError, match="no component with effects on both sides"):
        plot_comparison(COMPARED.assign(score_second=np.nan))
    with pytest.raises(ValueError, match="2 values of 'qid'"):
        plot_comparison(pd.concat([COMPARED, COMPARED.assign(qid="other")]))


# Attention


def eager(ranker, text: str, query: str) -> tuple[list[str], np.ndarray]:
    """Tokens and weights ``[layer, head, S, S]`` of the tokenizer's sequence, from a model that is eager."""
    model, tokenizer = build(ranker.model.config.model_type, ranker.reads_query)
    model.set_attn_implementation("eager")
    side = ranker.align([query], [text], [text], alignments=["fill"])[0].perturbed
    encoded = tokenizer(*((query, text) if ranker.reads_query else (text,)))["input_ids"]
    assert side.ids.tolist() == encoded
    with torch.no_grad():
        attentions = model(**inputs_of(side, tokenizer), output_attentions=True).attentions
    return tokenizer.convert_ids_to_tokens(encoded), torch.cat(attentions).numpy()


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["bi", "cross"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mpnet"])
def test_the_attention_of_a_text_is_that_of_the_model_attending_eagerly(architecture, kind):
    loaded = build(architecture, kind == "cross")
    ranker = CrossEncoder(loaded) if kind == "cross" else BiEncoder(loaded)
    found = attention_of(ranker, QUERIES[5], TEXTS[5], ["L2H1", (0, 3), (2, 0)])
    tokens, weights = eager(ranker, TEXTS[5], QUERIES[5])
    assert found.tokens == tokens
    np.testing.assert_array_equal(found.weights, weights[[2, 0, 2], [1, 3, 0]])
    assert found.weights.dtype == np.float32
    assert len(found.token_classes) == len(tokens) and found.token_classes[0] == "CLS"
    assert ("Q-" in found.token_classes) == (kind == "cross")
    assert "D-" in found.token_classes and "EDIT" not in found.token_classes


@pytest.mark.bits
def test_attention_is_drawn_from_rows_to_columns(cross_encoder):
    axes = plot_attention(cross_encoder, QUERIES[1], TEXTS[1], "L1H2")
    tokens, weights = eager(cross_encoder, TEXTS[1], QUERIES[1])
    np.testing.assert_array_equal(drawn(axes), weights[1, 2])
    np.testing.assert_allclose(drawn(axes).sum(axis=1), 1, rtol=widened(1e-5))
    assert labels(axes.xaxis) == labels(axes.yaxis) == tokens
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("to", "from")
    assert axes.images[0].get_clim() == (0, weights[1, 2].max())
    italic = [text.get_text() for text in axes.get_yticklabels() if text.get_fontstyle() == "italic"]
    assert italic[:2] == ["bats", "night"] and set(italic[2:]) == {"bats", "night"}
    assert axes.images[0].colorbar.ax.get_ylabel() == "attention of L1H2"


@pytest.mark.parametrize(
    ("of", "where"), [(3, "position 3"), (-1, "position"), ("[CLS]", "position 0"), ("two", "mean of 3")]
)
def test_where_one_token_looks_is_drawn_as_bars(cross_encoder, of, where):
    axes = plot_attention(cross_encoder, QUERIES[0], TEXTS[0], (2, 3), of=of)
    tokens, weights = eager(cross_encoder, TEXTS[0], QUERIES[0])
    rows = [of % len(tokens)] if isinstance(of, int) else [i for i, token in enumerate(tokens) if token == of]
    heights = [bar.get_height() for bar in axes.patches]
    assert_near(heights, weights[2, 3, rows].mean(axis=0), 1e-6)
    assert labels(axes.xaxis) == tokens
    assert where in axes.get_ylabel() and tokens[rows[0]] in axes.get_ylabel() and "L2H3" in axes.get_ylabel()


def test_attention_that_there_is_not_is_an_error(bi_encoder):
    draw = lambda head, **options: plot_attention(bi_encoder, QUERIES[0], TEXTS[0], head, **options)  # noqa: E731
    with pytest.raises(ValueError, match=r"no head \(7, 0\)"):
        draw("L7H0")
    with pytest.raises(ValueError, match="no attention head; name heads like 'L5H8'"):
        draw("L1.mlp_out")
    with pytest.raises(ValueError, match=r"no token 'volcano' in the sequence; its tokens are \[CLS\] the moon"):
        draw((1, 0), of="volcano")
    with pytest.raises(ValueError, match="no position 99: the sequence has positions 0 to"):
        draw((1, 0), of=99)
    with pytest.raises(TypeError, match="should be a ranker"):
        plot_attention("bert", QUERIES[0], TEXTS[0], (1, 0))
    with pytest.raises(ValueError, match="mpnet computes its attention outside"):
        plot_attention(BiEncoder(build("mpnet", classifier=False)), QUERIES[0], TEXTS[0], (1, 0))


# The gallery


def gallery():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("make_gallery")
    finally:
        sys.path.remove(str(DOCS))


def public_plots() -> set[str]:
    """Every function ``plot_...`` of the package."""
    names = set()
    for module in pkgutil.iter_modules(pyterrier_mechir.plots.__path__, "pyterrier_mechir.plots."):
        if module.name.rpartition(".")[2].startswith(("report", "notebook")):
            continue
        members = inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
        names |= {name for name, function in members if function.__module__ == module.name}
    return {name for name in names if name.startswith("plot_")}


def test_the_gallery_draws_every_public_figure_and_has_every_image():
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    parts = gallery().parts(page)
    assert len(public_plots()) >= 7
    drawing = "\n".join(code for (kind, code), (after, _) in pairwise(parts) if after == "image")
    called = set(re.findall(r"\b(plot_\w+)\(", drawing))
    assert called == public_plots()
    assert all(re.search(rf"^## .*`{name}`$", page, re.MULTILINE) for name in public_plots())
    images = [content for kind, content in parts if kind == "image"]
    assert sorted(images) == sorted(f"gallery/{path.name}" for path in (DOCS / "gallery").glob("*.png"))
    assert page.count("![") == len(images) and page.count("```python") == sum(kind == "code" for kind, _ in parts)
    assert all(5_000 < (DOCS / image).stat().st_size < 150_000 for image in images)


def test_images_are_made_by_the_code_before_them(tmp_path):
    page = tmp_path / "page.md"
    code = "from matplotlib import pyplot as plt\nnumber = 2\n"
    page.write_text(
        f"# A\n\n```python\n{code}```\n\n```python\nplt.plot([0, number])\n```\n\n![a line](images/line.png)\n"
    )
    gallery().make(page, dpi=40)
    assert pyplot.imread(tmp_path / "images" / "line.png").shape[:2] == (192, 256)
    assert not pyplot.get_fignums()
    page.write_text("```python\nnumber = 1\n```\n\n![nothing](images/line.png)\n")
    with pytest.raises(ValueError, match=r"before images/line.png draws no figure"):
        gallery().make(page)


def test_a_title_that_is_wider_than_its_figure_takes_more_lines():
    title = "known-circuit-query: effect of each head under TFC1 (denoise)"
    figure = plot_heads(np.eye(4), title=title).get_figure()
    figure.canvas.draw()
    drawn = figure.axes[0].title.get_window_extent()
    assert drawn.x0 >= 0 and drawn.x1 <= figure.bbox.width
    assert figure.axes[0].get_title() == title


def test_a_long_title_with_dollar_signs_is_drawn():
    title = "from $5_000 to $10_{ " * 8
    figure = plot_heads(np.eye(4), title=title).get_figure()
    figure.canvas.draw()
    assert figure.axes[0].get_title() == title
