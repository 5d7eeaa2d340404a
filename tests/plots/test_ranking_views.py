"""Ranking effects as a figure, in a notebook and in the report."""

from __future__ import annotations

import matplotlib
import pandas as pd
import pytest
from ir_measures import AP, nDCG
from judged import collection, told
from matplotlib import pyplot as plt
from pages import parse
from test_report import _made

from pyterrier_mechir import AggregateHeads, plot_heads
from pyterrier_mechir.notebook import frame_html
from pyterrier_mechir.plots.markup import interval, number, p_value, signed
from pyterrier_mechir.plots.report import write_report
from pyterrier_mechir.results.ranking_effects import ranking_effects
from pyterrier_mechir.results.ranking_verdicts import verdicts

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    frame, qrels = collection(n_queries=30, n_docs=20, planted=2.0)
    return ranking_effects(frame, qrels, [nDCG @ 10, AP], held_out=[f"q{q}" for q in range(15)])


@pytest.fixture(scope="module")
def noise() -> pd.DataFrame:
    return ranking_effects(*collection(n_queries=30, shape=(3, 8), noise=0.3))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def colour_label(axes) -> str:
    return next(other for other in axes.figure.axes if other is not axes).get_ylabel()


def test_a_head_map_is_in_units_of_the_measure(found):
    one = found[found["measure"] == "AP"]
    axes = plot_heads(one)
    drawn = axes.images[0].get_array().data
    for row in one.itertuples():
        assert drawn[row.layer, row.head] == pytest.approx(row.score)
    assert axes.images[0].get_clim()[1] == pytest.approx(one["score"].abs().max())
    assert colour_label(axes) == "change of AP without the head"
    assert colour_label(plot_heads(one, label="loss")) == "loss"
    assert "marked corner: adjusted p < 0.05" in [text.get_text() for text in axes.texts]


def test_a_head_map_of_several_measures_asks_for_one(found):
    with pytest.raises(ValueError, match=r"2 values of 'measure'.*frame\[frame\['measure'\] == 'nDCG@10'\]"):
        plot_heads(found)


def test_small_changes_are_written_with_three_decimals(noise):
    texts = {text.get_text() for text in plot_heads(noise.assign(score=noise["score"] / 20), alpha=None).texts}
    assert any(len(text.lstrip("-")) == 4 for text in texts)
    assert colour_label(plot_heads(AggregateHeads(by=None)(_made()))) == "patching effect"


def test_a_notebook_says_what_the_changes_amount_to(found):
    page = parse(frame_html(found))
    said = [paragraph.text for paragraph in page.all("p")]
    assert said[:2] == verdicts(found) and said[2] == "* adjusted p below 0.05"
    header = [cell.text for cell in page.one("thead").all("th")]
    assert header == ["measure", "rank", "component", "without it", "change", "", "interval", "adjusted p"]
    rows = [[cell.text for cell in row.children] for row in page.one("tbody").all("tr")]
    assert len(rows) == 16
    for shown, row in zip(rows, found.itertuples(), strict=True):
        star = " *" if row.p_adjusted < 0.05 else ""
        assert shown[:5] == [row.measure, str(row.rank), row.docno, number(row.value), signed(row.score)]
        assert shown[6:] == [interval(row.ci_low, row.ci_high), p_value(row.p_adjusted) + star]


def test_a_notebook_says_when_the_map_is_noise_and_shows_the_greatest_changes(noise):
    page = parse(frame_html(noise))
    assert "The map is noise: none of 24 components changes it significantly" in page.text
    assert "would have been found 8 times in 10" in page.text
    assert "The 20 greatest of 24 changes" in page.text
    shown = {row.children[2].text for row in page.one("tbody").all("tr")}
    assert shown == set(noise.loc[noise["score"].abs().nlargest(20).index, "docno"])


def test_a_notebook_shows_a_frame_whose_attrs_are_lost(found):
    bare = found.copy()
    bare.attrs = {}
    page = parse(frame_html(bare))
    assert len(page.one("tbody").all("tr")) == 16 and "Spearman" not in page.text


def test_the_report_has_what_the_ranking_can_spare(found, tmp_path):
    page = parse(write_report(_made(), tmp_path / "it.html", ranking_effects=found).read_text("utf-8"))
    section = page.one("section", id="spared")
    assert [heading.text for heading in section.all("h3")] == ["nDCG@10", "AP"]
    assert "What the ranking can spare" in page.one("nav").text
    for text in verdicts(found):
        assert text in section.text
    changes, held_out, *_ = section.all("table")
    first = [cell.text.strip() for cell in changes.one("tbody").all("tr")[0].children]
    row = found.iloc[0]
    assert first[:3] == [row["docno"], number(row["value"]), signed(row["score"])]
    assert first[3] == interval(row["ci_low"], row["ci_high"]) and first[4] == f"{p_value(row['p_adjusted'])} *"
    assert len(changes.one("tbody").all("tr")) == 8
    chosen = told(found)["held_out"][0]
    shown = [cell.text for cell in held_out.one("tbody").all("tr")[0].children]
    assert shown[:3] == [chosen["docno"], signed(chosen["score_selection"]), signed(chosen["score"])]


def test_a_report_without_ranking_effects_has_no_such_section(tmp_path, noise):
    page = write_report(_made(), tmp_path / "it.html").read_text("utf-8")
    assert "What the ranking can spare" not in page
    with pytest.raises(KeyError, match="measure"):
        write_report(_made(), tmp_path / "it.html", ranking_effects=noise.drop(columns="measure"))
