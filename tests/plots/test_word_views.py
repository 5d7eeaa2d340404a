"""The words behind a score, as HTML, as a figure, in a notebook and in the report: each says its own score."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection, PolyCollection
from pages import parse
from test_report import HOSTILE, TOO_FAINT, _made, _of_tokens, browser  # noqa: F401

from pyterrier_mechir import ExplainScore, PatchResults, PatchScorer, PerturbDocs, plot_words
from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.notebook import frame_html
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.plots.colours import STEPS, level, scale
from pyterrier_mechir.plots.explained import is_explained, queries, segments
from pyterrier_mechir.plots.markup import number, signed
from pyterrier_mechir.plots.report import write_report
from pyterrier_mechir.plots.word_markup import BEYOND, Passage, coloured, side_by_side, style

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("closed_figures", "one_thread")

TEXTS = (
    "The moon pulls the ocean into two bulges; so most coasts see two high tides each day.",
    "Prices rose from $5_000 to $10 <b>& more</b>\n in \U0001f600 spring tides.",
    "البحر يرتفع مرتين كل يوم tides",
)


@pytest.fixture
def closed_figures():
    yield
    pyplot.close("all")


def spans_of(text: str) -> np.ndarray:
    return np.array([word.span() for word in re.finditer(r"\w+", text)], dtype=np.int64).reshape(-1, 2)


def explained(n_queries: int = 2, n_documents: int = 3, of: str = "document", texts=TEXTS, **said) -> pd.DataFrame:
    """A frame as ExplainScore gives it; of each first document, the last three words are beyond what is read."""
    made = np.random.default_rng(0)
    rows = []
    for q in range(n_queries):
        for d in range(n_documents):
            text, query = texts[d % len(texts)], f"why are there two high tides {q}"
            shown = query if of == "query" else text
            spans = spans_of(shown)
            scores = made.normal(0, 0.4, len(spans)).astype(np.float32)
            if d == 0:
                scores[-3:] = np.nan
            rows.append(
                {
                    **{"qid": f"q{q}", "query": query, "docno": f"d{d}", "text": text, "score": 3.0 - d, "rank": d},
                    **{"units": [shown[a:b] for a, b in spans], "unit_spans": spans, "unit_scores": scores},
                    **{"unit_rest": 0.1, "score_empty": 0.2, "sum_error": 0.003 * d},
                    **{"against": f"d{d + 1}" if d < n_documents - 1 else None, "margin": 1.0},
                }
            )
    frame = pd.DataFrame(rows)
    scorer = {"stage": "ExplainScore", "method": "ig", "unit": "word", "of": of, "against": "next", "absence": "mask"}
    scorer |= {"text_field": "text"} | said
    frame.attrs["mechir"] = {"ranker": {"ranker": "BiEncoder", "name": "some/model"}, "scorer": scorer}
    return frame


def shown_units(node) -> list[tuple[str, str, str]]:
    """The units within a node: text, classes and title."""
    return [(unit.text, unit["class"], unit["title"]) for unit in node.all("span", "u")]


# Markup


def test_each_unit_has_the_colour_the_line_and_the_number_of_its_score():
    html = coloured("up and down, not read", [(0, 2), (3, 6), (7, 11), (17, 21)], [0.5, 0.001, -1.0, np.nan])
    assert shown_units(parse(html)) == [
        ("up", f"u s{level(0.5, 1.0)} up", "+0.500"),
        ("and", f"u s{STEPS}", "+0.001"),
        ("down", "u s0 down", "\N{MINUS SIGN}1.000"),
        ("read", "u beyond", BEYOND),
    ]
    assert shown_units(parse(coloured("up", [(0, 2)], [0.5], limit=1.0)))[0][1] == f"u s{level(0.5, 1.0)} up"


@pytest.mark.parametrize("text", [*TEXTS, HOSTILE, "", "\n \t", "a\u0301 e\u0301 \ud800", "$x$ $$y$$"])
def test_a_coloured_text_is_the_text_and_nothing_of_it_is_markup(text):
    spans = spans_of(text)
    page = parse(coloured(text, spans, np.linspace(-1, 1, len(spans))))
    assert page.text == text
    assert {node.tag for node in page.walk()} <= {"div", "span"}
    assert [unit.text for unit in page.all("span", "u")] == [text[a:b] for a, b in spans]
    assert "mathjax_ignore" in page.one("div")["class"] and page.one("div")["dir"] == "auto"


def test_units_come_in_the_order_of_the_text_whatever_that_of_the_spans():
    assert list(segments("ab cd e", [(6, 7), (0, 2)])) == [("ab", 1), (" cd ", -1), ("e", 0)]
    assert list(segments("ab", np.empty((0, 2), np.int64))) == [("ab", -1)]


@pytest.mark.parametrize("spans", [[(0, 3), (2, 4)], [(0, 99)], [(3, 2)], [(-1, 2)]])
def test_spans_that_do_not_fit_the_text_are_an_error(spans):
    with pytest.raises(ValueError, match="give the text that was explained"):
        coloured("four words", spans, [1.0] * len(spans))


def test_spans_without_a_score_are_an_error():
    with pytest.raises(ValueError, match="2 spans and 1 scores"):
        coloured("four words", [(0, 4), (5, 10)], [1.0])


def test_only_the_strongest_units_are_tab_stops():
    text = " ".join(f"w{i}" for i in range(50))
    page = parse(coloured(text, spans_of(text), np.arange(50) / 50))
    assert [unit.text for unit in page.all("span", "u", tabindex="0")] == [f"w{i}" for i in range(40, 50)]
    assert not parse(coloured("a b", spans_of("a b"), [0.0, np.nan])).all("span", tabindex="0")


def test_texts_beside_each_other_are_on_one_scale():
    whole = Passage("b", "z", [(0, 1)], [-1.0])
    page = parse(side_by_side([Passage("1. <a>", "x y", [(0, 1), (2, 3)], [0.5, np.nan]), whole]))
    assert [unit[1] for unit in shown_units(page)] == [f"u s{level(0.5, 1.0)} up", "u beyond", "u s0 down"]
    assert [node.text for node in page.all("strong")] == ["1. <a>", "b"]
    legend = page.one("div", "mechir-legend").text
    assert "\N{MINUS SIGN}1.00" in legend and "+1.00" in legend and BEYOND in legend
    assert BEYOND not in parse(side_by_side([whole])).one("div", "mechir-legend").text


def test_small_scores_are_written_with_more_decimals():
    assert shown_units(parse(coloured("x", [(0, 1)], [0.00012])))[0][2] == "+0.00012"


def test_the_style_has_every_colour_of_the_scale():
    for step, shade in enumerate(scale()):
        assert (f".s{step}{{background:{shade.background};color:{shade.text}}}" in style()) == (step != STEPS)


# Frames


def test_the_explained_text_is_found_without_attrs_too():
    for of in ("document", "query"):
        frame = explained(1, of=of)
        expected = [document.text for document in queries(frame, "x")[0].documents]
        frame.attrs = {}
        assert [document.text for document in queries(frame, "x")[0].documents] == expected
        assert expected[0] == (frame["query"] if of == "query" else frame["text"])[0]
    (query,) = queries(explained(1, text_field="body").rename(columns={"text": "body"}), "x")
    assert query.documents[0].text == TEXTS[0]


def test_what_a_later_stage_made_is_not_taken_for_explained_scores():
    frame = explained(1)
    assert is_explained(frame)
    patched = frame.assign(score_perturbed=1.0)
    patched.attrs = {"mechir": {"scorer": {"stage": "PatchScorer"}}}
    assert not is_explained(patched) and not is_explained(frame.drop(columns="unit_spans"))
    patched.attrs = {}
    assert not is_explained(patched)
    with pytest.raises(ValueError, match="plot_words shows frames of ExplainScore"):
        plot_words(frame.drop(columns="units"))
    with pytest.raises(ValueError, match="'d0' has 17 units, 17 spans and 2 scores"):
        plot_words(frame.head(1).assign(unit_scores=[np.ones(2)]))


def test_the_last_document_has_no_words_where_it_is_held_against_none():
    frame = explained(1, of="query")
    frame.at[2, "unit_scores"] = np.full(7, np.nan, np.float32)
    last = queries(frame, "x")[0].documents[2]
    assert last.text == frame["query"][2] and not last.units and not last.is_cut and not last.margin
    assert BEYOND in frame_html(frame) and not shown_units(parse(frame_html(frame)).all("td", "text")[2])
    assert "up to the margin within" in frame_html(frame)


# Notebook


def test_views_of_a_fit_say_how_sure_it_is():
    frame = explained(n_queries=1, method="lime").assign(sum_error=np.nan, fit_r2=[0.9, 0.5, 0.8])
    frame["unit_errors"] = [np.full(len(scores), 0.01 * (d + 1)) for d, scores in enumerate(frame["unit_scores"])]
    frame["unit_errors"].iloc[0][-3:] = np.nan
    said = parse(frame_html(frame)).all("p")[-1].text
    median = np.nanmedian(np.concatenate(list(frame["unit_errors"])))
    assert said == (
        f"Standard errors of units are up to 0.03, {median:.2g} at the median; on texts that it was not fitted to, the "
        "fit has an R2 of 0.80 at the median and 0.50 at the least."
    )
    without = parse(frame_html(frame.assign(fit_r2=np.nan))).all("p")[-1].text
    assert without == f"Standard errors of units are up to 0.03, {median:.2g} at the median."


def test_a_notebook_shows_the_ranking_with_coloured_words():
    frame = explained().sample(frac=1, random_state=1)
    page = parse(frame_html(frame))
    said = [paragraph.text for paragraph in page.all("p")]
    assert said[0] == (
        "6 documents of 2 queries; integrated gradients of each word of the document; absence: mask; against: next"
    )
    assert said[-1] == "Units, rest and the score without units add up to the score within 0.006."
    for table, group in zip(page.all("table"), frame["qid"].unique(), strict=True):
        rows = frame[frame["qid"] == group].sort_values("rank")
        assert f"({group})" in page.text
        limit = np.nanmax(np.abs(np.concatenate(list(rows["unit_scores"]))))
        for shown, (_, row) in zip(table.one("tbody").all("tr"), rows.iterrows(), strict=True):
            cells = [cell.text for cell in shown.all("td")]
            margin = f"+1.000 over {row['against']}" if isinstance(row["against"], str) else ""
            assert cells == [str(row["rank"]), row["docno"], number(row["score"]), margin, row["text"]]
            titles = [BEYOND if np.isnan(s) else signed(s) for s in row["unit_scores"]]
            assert [(unit, title) for unit, _, title in shown_units(shown)] == list(
                zip(row["units"], titles, strict=True)
            )
            first = shown_units(shown)[0][1].split()
            assert first[1] == f"s{level(float(row['unit_scores'][0]), float(limit))}"


def test_a_notebook_counts_the_documents_that_it_leaves_out():
    page = parse(frame_html(explained(3, 5)))
    assert len(page.all("td", "text")) == 10 and "10 of 15 documents." in page.text and "(q2)" not in page.text
    long = explained(1, 2, texts=["word " * 4000])
    assert len(parse(frame_html(long)).all("td", "text")) == 1


def test_a_notebook_shows_queries_and_documents_without_units():
    of_query = parse(frame_html(explained(1, of="query")))
    assert [cell.text for cell in of_query.all("td", "text")] == ["why are there two high tides 0"] * 3
    empty = explained(1, 1, texts=[""])
    assert parse(frame_html(empty)).one("td", "text").text == ""
    nothing = explained(1).head(0)
    assert "<table" in frame_html(nothing) and "mechir-words" not in frame_html(nothing)


def test_texts_of_explained_frames_are_escaped_in_notebooks():
    frame = explained(1, 1, texts=[HOSTILE], method=HOSTILE).assign(docno=HOSTILE, query=HOSTILE, qid=HOSTILE)
    page = parse(frame_html(frame))
    assert not page.all("script") and not page.all("img") and not page.all("b")
    assert page.text.count(HOSTILE) == 5


# Report


def words_section(page):
    return page.one("section", id="words")


def test_the_report_has_the_words_beside_the_pairs(tmp_path):
    frame = explained()
    page = parse(write_report(_made(), tmp_path / "it.html", words=frame).read_text("utf-8"))
    assert page.one("section", id="pairs") and page.one("section", id="maps")
    section = words_section(page)
    assert [heading.text for heading in section.all("h3")] == list(frame["query"].unique())
    assert [heading.text for heading in section.all("h4")] == frame["docno"].tolist()
    for article, (_, row) in zip(section.all("article"), frame.iterrows(), strict=True):
        assert article.one("div", "mechir-text").text == row["text"]
        assert f"score {number(row['score'])}" in article.text
        assert (f"margin +1.000 over {row['against']}" in article.text) == isinstance(row["against"], str)
        best = int(np.nanargmax(np.abs(row["unit_scores"])))
        assert row["units"][best] in article.text.partition("Strongest: ")[2].split(",")[0]
    assert "Integrated gradients of each word of the document; absence: mask; against: next." in section.text
    assert "Axiomatic Attribution" in page.one("section", id="citing").text


def test_a_report_of_explained_scores_alone_has_no_pairs(tmp_path):
    qrels = pd.DataFrame({"qid": ["q0", "q1"], "docno": ["d0", "d1"], "label": 1})
    page = parse(write_report(explained(), tmp_path / "it.html", qrels=qrels).read_text("utf-8"))
    assert page.one("h1").text == "Words behind the scores of model"
    ids = {section["id"] for section in page.all("section")}
    assert ids == {"run", "effectiveness", "words", "reading", "citing"}
    assert {link["href"] for link in page.one("nav").all("a")} == {f"#{name}" for name in ids}
    rows = page.one("table", "measures").one("tbody").all("tr")
    assert [[cell.text for cell in row.children][:2] for row in rows[1:]] == [["RR", "0.750"], ["AP", "0.750"]]
    without = parse(write_report(explained(), tmp_path / "it.html").read_text("utf-8"))
    assert "No judgments were given" in without.text and not without.all("table", "measures")


def test_a_report_counts_the_documents_and_queries_that_it_leaves_out(tmp_path):
    page = parse(write_report(explained(22, 8), tmp_path / "it.html").read_text("utf-8"))
    assert len(words_section(page).all("article")) == 120
    assert "The first 20 of 22 queries." in page.text and "the first 6 of 8 documents" in page.text


def test_words_cannot_inject_into_the_report(tmp_path):
    frame = explained(1, 1, texts=[HOSTILE], unit=HOSTILE).assign(docno=HOSTILE, query=HOSTILE, against=HOSTILE)
    frame["text"] = pd.Series([f"{HOSTILE} \ud800"], dtype=object)
    page = parse(write_report(frame, tmp_path / "it.html", title=HOSTILE).read_text("utf-8"))
    assert [script.attributes.get("type") for script in page.all("script")] == ["application/json", None]
    assert not page.all("img") and words_section(page).one("h4").text == HOSTILE
    assert words_section(page).one("article").one("div", "mechir-text").text == f"{HOSTILE} ?"


def test_what_cannot_be_reported_as_words_is_one_sentence(tmp_path):
    path = tmp_path / "it.html"
    with pytest.raises(ValueError, match="holds no documents"):
        write_report(explained().head(0), path)
    with pytest.raises(ValueError, match="examples are of pairs"):
        write_report(explained(), path, examples=_of_tokens(_made()))
    with pytest.raises(ValueError, match="words= shows frames of ExplainScore"):
        write_report(_made(), path, words=_made())
    with pytest.raises(ValueError, match="give the text that was explained"):
        write_report(explained().assign(text="short"), path)
    assert not path.exists()


def test_a_report_of_no_explained_documents_has_no_words(tmp_path):
    page = parse(write_report(_made(), tmp_path / "it.html", words=explained().head(0)).read_text("utf-8"))
    assert not page.all("section", id="words")


# Figure


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_figure_has_each_word_on_the_colour_of_its_score():
    frame = explained(1)
    axes = plot_words(frame)
    figure = axes.figure
    figure.draw_without_rendering()
    boxes = next(one for one in axes.collections if isinstance(one, PolyCollection))
    scores = np.concatenate(list(frame["unit_scores"]))
    np.testing.assert_allclose(boxes.get_array(), scores[np.isfinite(scores)])
    assert boxes.norm.vmax == pytest.approx(np.nanmax(np.abs(scores))) and boxes.norm(0.0) == 0.5
    shown = "".join(texts_of(axes))
    for row in frame.itertuples():
        assert re.sub(r"\s", "", row.text) in shown
        assert any(text.startswith(f"{row.rank}. {row.docno}, score {number(row.score)}") for text in texts_of(axes))
    assert axes.get_title() == frame["query"][0]


def test_each_box_of_a_figure_is_as_wide_as_its_word():
    text = "iiii WWWW the wide and the narrow"
    frame = explained(1, 1, texts=[text]).assign(unit_scores=[np.linspace(-1, 1, 7)])
    axes = plot_words(frame)
    axes.figure.draw_without_rendering()
    boxes = next(one for one in axes.collections if isinstance(one, PolyCollection))
    corners = [boxes.get_transform().transform(path.vertices) for path in boxes.get_paths()]
    words = [one for one in axes.texts if one.get_text() in text.split()]
    assert len(corners) == len(words) == 7
    for box, word in zip(corners, words, strict=True):
        drawn = word.get_window_extent()
        assert (box[:, 0].min(), box[:, 0].max()) == pytest.approx((drawn.x0, drawn.x1), abs=1.0)
        assert box[:, 1].min() < drawn.y0 and box[:, 1].max() > drawn.y1 - 1


def test_the_sign_of_a_word_is_a_line_and_what_is_not_read_is_struck_through():
    scores = np.array([0.5, 0.001, -1.0, np.nan], np.float32)
    axes = plot_words(explained(1, 1, texts=["one two three four"]).assign(unit_scores=[scores]))
    solid, dotted, struck = (one for one in axes.collections if isinstance(one, LineCollection))
    assert [len(one.get_segments()) for one in (solid, dotted, struck)] == [1, 1, 1]
    assert solid.get_linestyle() != dotted.get_linestyle()
    begins = {one.get_text(): one.get_position()[0] for one in axes.texts}
    assert [one.get_segments()[0][0][0] for one in (solid, dotted, struck)] == pytest.approx(
        [begins["one"], begins["three"], begins["four"]]
    )
    assert next(one for one in axes.texts if one.get_text() == "four").get_fontstyle() == "italic"
    assert any("grey: beyond what the ranker reads" in text for text in texts_of(axes))


def test_lines_break_at_spaces_within_the_figure_and_the_strongest_are_kept():
    text = " ".join(f"word{i}" for i in range(400)) + " " + "x" * 400
    spans = spans_of(text)
    scores = np.full(len(spans), 0.01)
    scores[300] = -2.0
    frame = explained(1, 1, texts=[text]).assign(unit_scores=[scores])
    axes = plot_words(frame, lines=3)
    axes.figure.draw_without_rendering()
    box, words = axes.get_window_extent(), [one for one in axes.texts if one.get_text().startswith("word")]
    assert "word300" in texts_of(axes) and len({one.get_position()[1] for one in words}) == 3
    assert texts_of(axes).count("\N{HORIZONTAL ELLIPSIS}") == 2
    assert all(box.x0 - 1 <= one.get_window_extent().x0 and one.get_window_extent().x1 <= box.x1 + 1 for one in words)
    whole = plot_words(frame, lines=100)
    whole.figure.draw_without_rendering()
    note, _, *drawn = whole.texts
    assert "solid line" in note.get_text()
    assert "".join(one.get_text() for one in drawn) == text.replace(" ", "")
    assert all(one.get_window_extent().x1 <= whole.get_window_extent().x1 + 1 for one in drawn)
    assert min(one.get_window_extent().y0 for one in drawn) >= whole.get_window_extent().y0 - 1


def test_units_of_several_words_and_parts_of_words_are_drawn():
    sentences = explained(1, 1, texts=["One here. Two there."])
    sentences = sentences.assign(unit_spans=[np.array([(0, 9), (10, 20)])], units=[["One here.", "Two there."]])
    axes = plot_words(sentences.assign(unit_scores=[np.array([1.0, -1.0])]))
    boxes = next(one for one in axes.collections if isinstance(one, PolyCollection))
    assert boxes.get_array().tolist() == [1, 1, 1, -1, -1, -1]
    tokens = explained(1, 1, texts=["tsunami"]).assign(unit_spans=[np.array([(0, 3), (3, 7)])], units=[["tsu", "nami"]])
    axes = plot_words(tokens.assign(unit_scores=[np.array([1.0, 0.5])]))
    first, second = (one for one in axes.texts if one.get_text() in ("tsu", "nami"))
    axes.figure.draw_without_rendering()
    assert second.get_window_extent().x0 == pytest.approx(first.get_window_extent().x1, abs=2)


def test_one_query_is_drawn_and_no_more_than_n_documents():
    axes = plot_words(explained(1), n=2)
    assert not any(text.startswith("2. d2") for text in texts_of(axes))
    with pytest.raises(ValueError, match=r"2 queries, of which plot_words draws one: .*frame\['qid'\] == 'q0'"):
        plot_words(explained())
    with pytest.raises(ValueError, match="holds no documents to draw"):
        plot_words(explained().head(0))


# A browser


def test_words_say_their_scores_in_a_browser(browser, tmp_path):  # noqa: F811
    frame = explained()
    path = write_report(frame, tmp_path / "it.html")
    said = []
    page = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    block = page.locator(".words").first
    panel = block.locator(".values")
    resting = panel.inner_text()
    units = block.locator("article").first.locator(".u")
    row = frame.iloc[0]

    def told(place):
        score = row["unit_scores"][place]
        return f"\u201c\u2068{row['units'][place]}\u2069\u201d: {BEYOND if np.isnan(score) else signed(score)}"

    units.nth(3).hover()
    assert panel.inner_text() == told(3)
    page.locator("h1").hover()
    assert panel.inner_text() == resting
    units.first.focus()
    assert panel.inner_text() == told(0)
    assert units.first.evaluate("unit => getComputedStyle(unit, '::after').content") == "none"
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("End", len(row["units"]) - 1), ("ArrowLeft", 15)):
        page.keyboard.press(key)
        assert panel.inner_text() == told(place)
    assert block.locator("article").first.locator('.u[tabindex="0"]').count() == 1

    assert page.evaluate(TOO_FAINT) == []
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    lines = [units.nth(i).evaluate("unit => getComputedStyle(unit).textDecorationStyle") for i in range(17)]
    limit = np.nanmax(np.abs(np.concatenate(list(frame["unit_scores"].iloc[:3]))))
    for line, score in zip(lines[:-3], row["unit_scores"][:-3], strict=True):
        assert abs(score) < 0.1 * limit or line == ("solid" if score > 0 else "dotted")
    assert not panel.is_visible() and said == []


def test_a_word_of_a_notebook_shows_its_score_where_it_has_the_focus(browser, tmp_path):  # noqa: F811
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{frame_html(explained(1))}", encoding="utf-8")
    page = browser.new_context(offline=True).new_page()
    page.goto(path.as_uri())
    page.keyboard.press("Tab")
    focused = "document.activeElement"
    content = page.evaluate(f"getComputedStyle({focused}, '::after').content")
    assert page.evaluate(f"{focused}.classList.contains('u')")
    assert content == f'"{page.evaluate(f"{focused}.title")}"' and re.fullmatch(
        r'"[+\N{MINUS SIGN}]\d\.\d{3}"', content
    )


# Stored


@pytest.fixture
def documents() -> pd.DataFrame:
    rows = [(f"q{q}", f"why are there two high tides {q}", f"d{d}", TEXTS[d]) for q in range(2) for d in range(3)]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])


def test_stored_results_of_explain_score_are_a_page_and_a_part_of_one(bi_encoder, documents, tmp_path, capsys):
    ExplainScore(bi_encoder).store(tmp_path / "words")(documents)
    assert main(["report", str(tmp_path / "words"), "--title", "A title"]) == 0
    alone = parse((tmp_path / "words" / "report.html").read_text("utf-8"))
    assert len(words_section(alone).all("article")) == 6 and not alone.all("section", id="pairs")
    assert alone.one("h1").text == "A title" and "occlusion" in alone.one("section", id="run").text

    (PerturbDocs(TFC1()) >> PatchScorer(bi_encoder).store(tmp_path / "pairs"))(documents)
    words = PatchResults(tmp_path / "words")
    for given in (words, words.frame()):
        page = parse(PatchResults(tmp_path / "pairs").report(tmp_path / "it.html", words=given).read_text("utf-8"))
        assert len(words_section(page).all("article")) == 6 and page.all("section", id="pairs")


@pytest.mark.parametrize(
    "options", [{}, {"of": "query", "against": "next"}, {"method": "ig", "steps": 20, "unit": "token"}]
)
def test_what_explain_score_gives_is_drawn_and_shown(bi_encoder, documents, options):
    frame = ExplainScore(bi_encoder, **options)(documents)
    page = parse(frame_html(frame))
    shown = frame.sort_values(["qid", "rank"])
    column = "query" if options.get("of") == "query" else "text"
    assert [cell.text for cell in page.all("td", "text")] == shown[column].tolist()
    known = [unit for row in shown.itertuples() if isinstance(getattr(row, "against", ""), str) for unit in row.units]
    assert [unit.text for unit in page.all("span", "u")] == known
    assert plot_words(frame[frame["qid"] == "q1"]).get_title() == documents["query"][5]
