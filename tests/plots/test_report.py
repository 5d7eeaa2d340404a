"""The report: what it says of every kind of frame, and that it is one safe, readable file."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, RR, nDCG
from pages import parse
from small_models import QUERIES, TEXTS

from pyterrier_mechir import (
    AggregateHeads,
    PairScorer,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    RankShift,
    ScoreShift,
)
from pyterrier_mechir.models.components import PER_HEAD
from pyterrier_mechir.perturb import Typos, perturbation
from pyterrier_mechir.plots.colours import STEPS, contrast, level, scale
from pyterrier_mechir.plots.markup import interval, number, p_value, signed
from pyterrier_mechir.plots.report import _template, write_report
from pyterrier_mechir.plots.report.effects import effect_maps
from pyterrier_mechir.plots.report.examples import readable

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def _made(n_queries=6, n_documents=4, layers=3, heads=5, seed=0):
    """A frame as PatchScorer gives it, in which head L1H2 carries much and L2H0 works against it."""
    rng = np.random.default_rng(seed)
    means = np.zeros((layers, heads))
    means[1, 2], means[2, 0] = 0.5, -0.3
    rows = []
    for place in range(n_queries * n_documents):
        q, d = divmod(place, n_documents)
        text = TEXTS[d % len(TEXTS)]
        effect = means + rng.normal(0, 0.05, means.shape)
        delta = rng.uniform(0.5, 1.5)
        rows.append(
            {
                **{"qid": f"q{q}", "query": f"{QUERIES[q % len(QUERIES)]} {q}", "docno": f"d{d}", "text": text},
                **{"text_perturbed": f"{text} tides", "score": float(n_documents - d), "score_baseline": 1.0},
                **{"score_perturbed": 1.0 + delta, "patch_scores": (1.0 + effect * delta).astype(np.float32)},
                "patch_effect": effect.astype(np.float32),
            }
        )
    frame = pt.model.add_ranks(pd.DataFrame(rows))
    sites = [f"L{layer}H{head}" for layer in range(layers) for head in range(heads)]
    frame.attrs["mechir"] = {
        "ranker": {"ranker": "BiEncoder", "name": "some/model", "revision": None},
        "scorer": {"stage": "PatchScorer", "component": "head", "text_field": "text"},
        "perturbation": "TFC1(n=1)",
        "direction": "denoise",
        "sites": sites,
    }
    return frame


def _of_tokens(frame, layers=3, heads=5, seed=1):
    """The same with effects of single positions: the last token carries what its head does."""
    rng = np.random.default_rng(seed)
    tokens = [["[CLS]", *text.lower().split(), "[SEP]"] for text in frame["text_perturbed"]]
    arrays = [rng.normal(0, 0.02, (layers, heads, len(of_row))) for of_row in tokens]
    for array, whole in zip(arrays, frame["patch_effect"], strict=True):
        array[..., -2] = whole
    arrays = pd.Series([array.astype(np.float32) for array in arrays], index=frame.index)
    out = frame.assign(
        patch_effect=arrays,
        patch_scores=arrays,
        tokens=pd.Series(tokens, index=frame.index),
        tokens_baseline=pd.Series([[*of_row[:-2], "a", "[SEP]"] for of_row in tokens], index=frame.index),
        token_classes=pd.Series(
            [["CLS", *["OTHER"] * (len(of_row) - 3), "EDIT", "SEP"] for of_row in tokens], index=frame.index
        ),
    )
    out.attrs = frame.attrs
    return out


def _page(frame, tmp_path, **options):
    return parse(write_report(frame, tmp_path / "report.html", **options).read_text("utf-8"))


def _section(page, name):
    return page.one("section", id=name)


def _said(node):
    return " ".join(node.text.split())


def _grid(page, heading):
    """The cells of a map by (row, column)."""
    (of_map,) = [found for found in page.all("div", "map") if found.one("h3").text == heading]
    table = of_map.one("table", "grid")
    corner, *columns = [cell.text for cell in table.one("thead").all("th", scope="col")]
    cells = {}
    for row in table.one("tbody").all("tr"):
        name = row.one("th", scope="row").text
        for column, cell in zip(columns, row.all("td"), strict=True):
            cells[name, column] = cell
    return corner, cells


def _assert_cell(cell, row):
    assert float(cell["data-effect"]) == pytest.approx(row["score"], rel=1e-5)
    assert cell["data-details"] == (
        f"{row['docno']}: effect {signed(row['score'], 4)}, interval {interval(row['ci_low'], row['ci_high'])}, "
        f"adjusted p {p_value(row['p_adjusted'])}, {row['n_pairs']} pairs"
    )
    is_significant = row["p_adjusted"] < 0.05
    assert len(cell.all("sup")) == is_significant
    shown = cell.text.removesuffix("*").replace("\N{MINUS SIGN}", "-")
    assert float(shown) == pytest.approx(row["score"], abs=0.00501)


def test_dollar_signs_on_the_page_are_left_alone_by_mathjax(tmp_path):
    page = write_report(_made(), tmp_path / "report.html", title="from $5_000 to $10").read_text("utf-8")
    assert '<html lang="en" class="tex2jax_ignore mathjax_ignore">' in page
    assert '<body class="tex2jax_ignore mathjax_ignore">' in page


def test_the_cells_of_the_head_map_hold_the_aggregated_effects(tmp_path):
    frame = _made(n_queries=12)
    corner, cells = _grid(_page(frame, tmp_path), "Attention heads")
    heads = AggregateHeads(by=None)(frame)
    assert corner == "layer"
    assert set(cells) == {(f"L{layer}", f"H{head}") for layer in range(3) for head in range(5)}
    limit = heads["score"].abs().max()
    for _, row in heads.iterrows():
        cell = cells[f"L{row['layer']}", f"H{row['head']}"]
        _assert_cell(cell, row)
        assert cell["class"] == f"s{level(row['score'], limit)}"
    assert cells["L1", "H2"].all("sup") and cells["L2", "H0"].all("sup")
    assert cells["L1", "H2"].text == ".51*"


def test_the_strongest_components_stand_first_with_their_intervals(tmp_path):
    frame = _made(layers=12, heads=12)
    section = _section(_page(frame, tmp_path), "strongest")
    heads = AggregateHeads(by=None)(frame)
    heads = heads.reindex(heads["score"].abs().sort_values(ascending=False, kind="stable").index)
    rows = section.one("tbody").all("tr")
    assert "The 30 of 144 components" in _said(section)
    assert [row.one("th").text for row in rows] == heads["docno"].head(30).tolist()
    for row, (_, of_frame) in zip(rows, heads.iterrows(), strict=False):
        assert float(row.all("td")[1]["data-sort"]) == pytest.approx(of_frame["score"])
        assert row.one("td", "interval").text == interval(of_frame["ci_low"], of_frame["ci_high"])
        assert len(row.all("circle")) == 1
        first, last = (float(row.all("line")[1][end]) for end in ("x1", "x2"))
        assert first <= float(row.one("circle")["cx"]) <= last


def test_the_facts_count_the_pairs_and_name_the_strongest(tmp_path):
    frame = _made()
    frame.loc[[0, 5], ["score_baseline", "score_perturbed"]] = np.nan
    page = _page(frame, tmp_path)
    facts = {of.one("dt").text: of.one("dd").text for of in page.one("dl", "facts").children}
    delta = (frame["score_perturbed"] - frame["score_baseline"]).mean()
    assert facts["pairs"] == "24" and facts["queries"] == "6" and facts["pairs without scores"] == "2"
    assert facts["mean change of the score"] == signed(delta)
    assert facts["strongest component"].startswith("L1H2 +0.")
    assert page.one("title").text == page.one("h1").text == "Activation patching of model under TFC1"


@perturbation
def only_tides(text: str) -> str | None:
    return f"{text} tides" if "bread" not in text else None


@pytest.fixture(scope="module")
def retrieved():
    rows = [(f"q{q}", QUERIES[q], f"d{d}", TEXTS[d]) for q in range(3) for d in (0, 1, 4, 6)]
    return PerturbDocs(only_tides)(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


KINDS = {
    "heads": ({"component": "head"}, ["Attention heads"]),
    "some heads": ({"component": "q", "heads": [(0, 1), (2, 3)]}, ["Queries of attention heads"]),
    "layers": ({"component": "mlp_out"}, ["Components of whole layers"]),
    "block": ({"component": "block", "direction": "both"}, ["Components of whole layers"]),
    "list": ({"component": ["head", "v", "attn_out"]}, ["Attention heads", "Values of attention heads"]),
    "class": ({"component": "block", "positions": "class"}, ["Components by token class"]),
    "positions": ({"component": "mlp_out", "positions": [1, -2]}, ["Components by position"]),
    "noise": ({"component": "head", "direction": "noise"}, ["Attention heads"]),
    "embed": ({"component": "embed"}, ["Components of whole layers"]),
}
OF_HEADS = ["Attention heads", *(f"{what} of attention heads" for what in ("Queries", "Keys", "Values"))]
OF_HEADS.append("Attention patterns of heads")
HEADINGS = [*OF_HEADS, *(f"{heading} (cross-attention)" for heading in OF_HEADS)]
SUFFIXES = {"Queries of attention heads": ".q", "Values of attention heads": ".v"}


@pytest.mark.parametrize(("options", "headings"), KINDS.values(), ids=KINDS)
def test_every_kind_of_frame_has_its_maps(bi_encoder, retrieved, tmp_path, options, headings):
    frame = PatchScorer(bi_encoder, **options)(retrieved)
    page = _page(frame, tmp_path)
    found = [node.text for node in _section(page, "maps").all("h3")]
    assert found[: len(headings)] == headings
    places = {}
    for heading in found:
        corner, cells = _grid(page, heading)
        for (row, column), cell in cells.items():
            if "data-effect" in cell.attributes:
                names = {"layer": f"{row}{column}{SUFFIXES.get(heading, '')}", "component": f"{column}.{row}"}
                name = f"{row}@{column}" if " by " in heading else names[corner]
                places["embed" if name == "L0.embed" else name] = cell
    heads = AggregateHeads(by=None)(frame)
    assert set(places) == set(heads["docno"])
    for _, row in heads[heads["score"].notna()].iterrows():
        _assert_cell(places[row["docno"]], row)
    assert ("Both directions were swept" in _said(page)) == (options.get("direction") == "both")


def test_a_cell_that_was_not_patched_is_empty_and_says_so(bi_encoder, retrieved, tmp_path):
    frame = PatchScorer(bi_encoder, heads=[(0, 1), (2, 3)])(retrieved)
    _, cells = _grid(_page(frame, tmp_path), "Attention heads")
    assert {place for place, cell in cells.items() if cell.text} == {("L0", "H1"), ("L2", "H3")}
    assert cells["L0", "H3"]["data-details"] == "not patched"


def test_sets_of_sites_and_neurons_are_listed_without_a_map(bi_encoder, retrieved, tmp_path):
    frame = PatchScorer(bi_encoder, heads=[[(1, 2), "L1.mlp_out"], [(0, 0), (0, 1)]])(retrieved)
    page = _page(frame, tmp_path)
    assert not page.all("table", "grid")
    assert "Sets of sites have no map" in _said(_section(page, "maps"))
    named = {row.one("th").text for row in _section(page, "strongest").one("tbody").all("tr")}
    assert named == {"L1H2+L1.mlp_out", "L0H0+L0H1"}
    page = _page(PatchScorer(bi_encoder, "neuron", layers=[0])(retrieved), tmp_path)
    assert not page.all("table", "grid")
    assert "Single neurons have no map" in _said(_section(page, "maps"))
    assert "The 30 of 48" in _said(_section(page, "strongest"))


@pytest.mark.parametrize(("component", "heading"), list(zip(PER_HEAD, HEADINGS, strict=False)))
def test_every_component_that_heads_have_has_a_map(component, heading):
    heads = AggregateHeads(by=None, n_boot=0)(_made()).assign(component=component)
    (found,), notes = effect_maps(heads)
    assert found.heading == heading and not notes
    assert [name for name, _ in found.rows] == ["L0", "L1", "L2"]
    assert found.columns == [f"H{head}" for head in range(5)]


def test_features_have_no_map():
    heads = AggregateHeads(by=None, n_boot=0)(_made()).assign(component="resid_post.feature")
    assert effect_maps(heads) == ([], ["Single features have no map; the strongest are listed below."])


def test_a_map_of_too_many_cells_is_left_out(tmp_path):
    page = _page(_made(n_queries=2, n_documents=1, layers=35, heads=35), tmp_path)
    assert not page.all("table", "grid")
    assert "Attention heads has 1,225 cells" in _said(_section(page, "maps"))


def test_scores_without_patching_have_no_effects(cross_encoder, retrieved, tmp_path):
    frame = PairScorer(cross_encoder)(retrieved)
    page = _page(frame, tmp_path)
    assert "Nothing was patched" in _said(_section(page, "maps"))
    assert not page.all("section", id="strongest") and not page.all("table", "grid")
    assert "#strongest" not in [link["href"] for link in page.one("nav").all("a")]
    assert len(_section(page, "pairs").one("tbody").all("tr")) == 12
    assert "pairs without scores3" in _said(page.one("dl", "facts"))


def test_a_perturbation_that_never_applies_is_reported_as_that(bi_encoder, retrieved, tmp_path):
    frame = retrieved.assign(text_perturbed=None)
    page = _page(PatchScorer(bi_encoder)(frame), tmp_path)
    assert "applies to none of the pairs" in _said(_section(page, "maps"))
    assert "There are none to show." in _said(_section(page, "examples"))
    page = _page(PatchScorer(bi_encoder, "mlp_out", positions="each")(frame), tmp_path)
    assert "There are none to show." in _said(_section(page, "examples"))


def test_a_pair_whose_score_hardly_changes_says_that_its_effects_are_missing(bi_encoder, retrieved, tmp_path):
    frame = PatchScorer(bi_encoder, "mlp_out", positions="each")(retrieved)
    frame.at[0, "patch_effect"] = np.full_like(frame.at[0, "patch_effect"], np.nan)
    page = _page(frame, tmp_path, examples=frame)
    first, second = _section(page, "examples").all("article")[:2]
    assert "The score hardly changes, so effects are missing." in _said(first)
    assert not first.all("div", "legend") and second.all("div", "legend")
    assert "hardly" not in _said(second)
    data = json.loads(page.one("script", type="application/json").text)
    assert {value for row in data["pairs"][0]["effects"] for value in row} == {None}


def test_one_query_has_no_p_values_and_the_report_says_so(tmp_path):
    page = _page(_made(n_queries=1), tmp_path)
    assert "There are no p-values" in _said(_section(page, "maps"))
    assert not page.all("sup")
    assert page.all("td", "s20") or page.all("td", "s40")


def test_effectiveness_is_that_of_the_stored_ranking(tmp_path):
    frame = _made()
    qrels = pd.DataFrame({"qid": ["q0", "q0", "q1", "q9"], "docno": ["d1", "d3", "d0", "d0"], "label": [2, 1, 1, 1]})
    section = _section(_page(frame, tmp_path, qrels=qrels), "effectiveness")
    expected = pt.Evaluate(frame, qrels[qrels["qid"] != "q9"], [nDCG @ 10, RR, AP, ScoreShift, RankShift])
    found = {row.one("th").text: row.all("td")[0].text for row in section.one("tbody").all("tr")}
    assert found == {
        **{str(measure): number(expected[str(measure)]) for measure in (nDCG @ 10, RR, AP)},
        **{str(measure): signed(expected[str(measure)]) for measure in (ScoreShift, RankShift)},
    }
    assert 0 < expected["nDCG@10"] < 1
    assert "2 of 6 queries that are judged" in _said(section)


def test_without_judgments_only_the_shifts_are_shown(tmp_path):
    frame = _made()
    section = _section(_page(frame, tmp_path), "effectiveness")
    found = {row.one("th").text: row.all("td")[0].text for row in section.one("tbody").all("tr")}
    assert list(found) == ["ScoreShift", "RankShift"]
    delta = frame["score_perturbed"] - frame["score_baseline"]
    assert found["ScoreShift"] == signed(delta.groupby(frame["qid"]).mean().mean())
    assert "No judgments were given" in _said(section)
    others = pd.DataFrame({"qid": ["x"], "docno": ["d0"], "label": [1]})
    section = _section(_page(frame, tmp_path, qrels=others), "effectiveness")
    assert "none of these queries" in _said(section) and not section.all("table")


def test_an_experiment_is_shown_as_it_is(tmp_path):
    experiment = pd.DataFrame({"name": ["BM25", "TAS-B"], "nDCG@10": [0.51234, 0.7], "n": [3, 4]})
    section = _section(_page(_made(), tmp_path, experiment=experiment), "effectiveness")
    assert [cell.text for cell in section.one("thead").all("th")] == ["name", "nDCG@10", "n"]
    cells = [[cell.text for cell in row.children] for row in section.one("tbody").all("tr")]
    assert cells == [["BM25", "0.5123", "3"], ["TAS-B", "0.7000", "4"]]


def test_what_was_run_shows_the_frame_and_whatever_is_given(tmp_path):
    about = {
        "ranker": {"name": "some/model", "weights": "abc123", "settings": {"pooling": "cls", "prefix": ""}},
        "versions": [{"torch": "2.13"}, {"torch": "2.14"}],
        "fillers": ["a", "mask"],
        "note": None,
        "by_me": True,
    }
    section = _section(_page(_made(), tmp_path, about=about), "run")
    terms = [
        (term.text, _said(definition)) for term, definition in zip(section.all("dt"), section.all("dd"), strict=True)
    ]
    assert ("weights", "abc123") in terms and ("pooling", "cls") in terms
    assert ("perturbation", "TFC1(n=1)") in terms and ("component", "head") in terms
    assert ("fillers", "a, mask") in terms and ("by me", "True") in terms
    assert ("1 of 2", "torch 2.13") in terms and ("2 of 2", "torch 2.14") in terms
    assert {"note", "prefix", "revision", "sites"}.isdisjoint(term for term, _ in terms)
    assert [heading.text for heading in section.all("h3")] == ["ranker", "scorer", "versions"]


def test_the_tokens_have_the_colours_of_the_strongest_site(tmp_path):
    frame = _made()
    examples = _of_tokens(frame.iloc[[0, 6, 11]])
    page = _page(frame, tmp_path, examples=examples)
    data = json.loads(page.one("script", type="application/json").text)
    shown = _section(page, "examples").all("article")
    assert len(shown) == 3 and len(data["pairs"]) == 3
    assert data["sites"][data["chosen"]] == "L1H2"
    options = _section(page, "examples").one("select").all("option")
    assert [option.text for option in options] == data["sites"] == frame.attrs["mechir"]["sites"]
    assert [option.text for option in options if "selected" in option.attributes] == ["L1H2"]
    for article, pair, (_, row) in zip(shown, data["pairs"], examples.iterrows(), strict=True):
        assert article.one("h3").text == row["query"]
        flat = row["patch_effect"].reshape(15, -1)
        np.testing.assert_allclose(pair["effects"], flat, atol=5.1e-5)
        assert pair["limit"] == pytest.approx(np.abs(flat).max(), abs=1e-4)
        tokens = article.one("ol").all("li")
        assert [token.text for token in tokens] == row["tokens"]
        steps = [f"s{level(value, np.abs(flat).max())}" for value in flat[7]]
        assert [token["class"].split()[0] for token in tokens] == steps
        (edit,) = article.all("li", "edit")
        assert edit.text == "tides" and edit["data-before"] == "a" and edit["data-class"] == "EDIT"
        assert _said(article.one("p", "values")).startswith(f"Strongest: tides {signed(flat[7, -2])}")
        assert signed(row["score_perturbed"] - row["score_baseline"]) in _said(article.one("p", "scores"))


def test_a_frame_of_single_positions_serves_itself(bi_encoder, retrieved, tmp_path):
    frame = PatchScorer(bi_encoder, "resid_pre", positions="each")(retrieved)
    page = _page(frame, tmp_path)
    assert "Effects of single positions belong to one text each" in _said(_section(page, "maps"))
    articles = _section(page, "examples").all("article")
    assert len(articles) == 9
    data = json.loads(page.one("script", type="application/json").text)
    assert data["sites"] == ["L0.resid_pre", "L1.resid_pre", "L2.resid_pre"] and data["layers"] == [0, 1, 2]
    changes = [float(a.one("p", "scores").all("b")[2].text.replace("\N{MINUS SIGN}", "-")) for a in articles]
    assert changes == sorted(changes, reverse=True)
    edits = [token for article in articles for token in article.all("li", "edit")]
    assert {token.text for token in edits} == {"tides"}


def test_pairs_without_effects_of_tokens_show_what_was_edited(bi_encoder, retrieved, tmp_path):
    frame = PatchScorer(bi_encoder, "mlp_out")(retrieved)
    section = _section(_page(frame, tmp_path), "examples")
    articles = section.all("article")
    assert len(articles) == 9 and not section.all("ol")
    assert "9 of 12 pairs, from the greatest rise of the score to the greatest fall." in _said(section)
    for article in articles:
        assert article.one("ins").text == "tides"
        assert article.one("p", "text").text.removesuffix(" tides") in TEXTS
    queries = PerturbQueries(Typos())(retrieved[["qid", "query", "docno", "text"]])
    frame = PairScorer(bi_encoder)(queries)
    for article in _section(_page(frame, tmp_path), "examples").all("article"):
        text = article.one("p", "text")
        row = frame[frame["query"] == article.one("h3").text].iloc[0]
        assert text.all("ins") and text.all("del")
        removed = {node.text for node in text.all("del")}
        kept = "".join(
            part if isinstance(part, str) else part.text for part in text.parts if part not in text.all("del")
        )
        assert kept.split() == row["query_perturbed"].split()
        assert all(word.strip() in row["query"] for word in removed)


def test_examples_beyond_the_bounds_are_left_out_and_counted(tmp_path):
    frame = _made(n_queries=10)
    examples = _of_tokens(frame)
    page = _page(frame, tmp_path, examples=examples)
    assert len(_section(page, "examples").all("article")) == 12
    assert "12 of 40 pairs." in _said(_section(page, "examples"))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (
            ["[CLS]", "the", "tect", "##onic", "plate", ",", "(", "moved", ")", ".", "[SEP]"],
            "tectonic plate, ( moved).",
        ),
        (["<s>", "The", "Ġtide", "s", "ĠcafÃ©", "</s>"], "The tides café"),
        (["<s>", "▁The", "▁tide", "s", "</s>"], "The tides"),
    ],
)
def test_tokens_of_each_convention_are_read_as_words(tokens, text):
    classes = ["CLS", *["OTHER"] * (len(tokens) - 2), "SEP"]
    made = readable(tokens, classes)
    assert "".join(("" if joined else " ") + token for token, joined in made[1:-1]).strip().endswith(text)
    assert [made[0], made[-1]] == [(tokens[0], False), (tokens[-1], False)]


HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"quoted\" & <b>bold</b> <!-- {{ 7 * 7 }}"


def test_texts_cannot_inject(tmp_path):
    frame = _made(n_queries=2, n_documents=2)
    attrs = frame.attrs
    frame = frame.assign(
        text=HOSTILE, text_perturbed=f"{HOSTILE} tides", query=HOSTILE, docno=[f"{HOSTILE}{i}" for i in range(4)]
    )
    frame.attrs = attrs
    hostile = {HOSTILE: {HOSTILE: HOSTILE}}
    experiment = pd.DataFrame({HOSTILE: [HOSTILE]})
    for examples in (None, _of_tokens(frame)):
        page = _page(frame, tmp_path, about=hostile, experiment=experiment, examples=examples, title=HOSTILE)
        assert [script.attributes.get("type") for script in page.all("script")] == ["application/json", None]
        assert not page.all("img")
        assert {node.text for node in page.all("b")}.isdisjoint({"bold"})
        assert page.one("title").text == page.one("h1").text == HOSTILE
        assert all(article.one("h3").text == HOSTILE for article in page.all("article"))
        assert "49" not in page.one("h1").text
        island = page.one("script", type="application/json").text
        assert "<" not in island and json.loads(island)
    words = [token.text for token in page.all("article")[0].all("li")]
    assert words == ["[CLS]", *f"{HOSTILE} tides".lower().split(), "[SEP]"]


def test_the_data_island_escapes_what_could_end_it():
    made = _template().environment.from_string("{{ data | tojson }}").render(data={"a": HOSTILE})
    assert "<" not in made and json.loads(made) == {"a": HOSTILE}


def test_every_colour_of_the_scale_has_readable_text():
    shades = scale()
    assert len(shades) == 2 * STEPS + 1
    assert all(contrast(shade.text, shade.background) >= 4.5 for shade in shades)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert shades[STEPS].background == "#f7f7f7"
    assert [level(value, 2.0) for value in (-5, -2, 0, 0.04, 0.06, 2, 9)] == [0, 0, 20, 20, 21, 40, 40]
    assert level(float("nan"), 1.0) is None and level(1.0, 0.0) == STEPS


def test_the_page_has_the_scale_and_readable_text_colours(tmp_path):
    page = _page(_made(), tmp_path)
    style = page.one("style").text
    for step, shade in enumerate(scale()):
        assert f".s{step}{{background:{shade.background};color:{shade.text}}}" in style
    colours = dict(re.findall(r"--(\w+): (#\w{6});", style))
    for text in ("ink", "quiet", "link"):
        assert all(contrast(colours[text], ground) >= 4.5 for ground in ("#ffffff", colours["wash"]))


def test_the_page_loads_nothing_and_is_well_formed(tmp_path):
    page = _page(_made(), tmp_path, examples=_of_tokens(_made().head(2)))
    assert not [node for node in page.walk() if "src" in node.attributes]
    links = {node["href"] for node in page.walk() if "href" in node.attributes}
    assert {link for link in links if not link.startswith("#")} == {
        *("data:,", "https://arxiv.org/abs/2501.10165", "https://arxiv.org/abs/2405.02503")
    }
    assert not re.search(r"@import|url\(|https?:", page.one("style").text)
    assert not re.search(r"fetch|XMLHttp|import\(|https?:", page.all("script")[1].text)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")
    assert page.one("html")["lang"] == "en" and page.one("main") and page.one("nav") and page.one("header")
    ids = [node["id"] for node in page.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= set(ids)
    assert {node["aria-labelledby"] for node in page.walk() if "aria-labelledby" in node.attributes} <= set(ids)
    levels = [int(node.tag[1]) for node in page.walk() if re.fullmatch("h[1-6]", node.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_all_pairs_are_listed_up_to_1000(tmp_path):
    frame = _made(202, 5, 3, 3)
    page = _page(frame, tmp_path)
    rows = _section(page, "pairs").one("tbody").all("tr")
    assert len(rows) == 1000 and "The first 1,000 of 1,010 pairs." in _said(_section(page, "pairs"))
    first = frame.iloc[0]
    cells = [cell.text for cell in rows[0].children]
    assert cells[:2] == [f"{first['qid']}: {first['query']}", first["docno"]]
    assert cells[3:7] == [
        *(number(first[name]) for name in ("score", "score_baseline", "score_perturbed")),
        signed(first["score_perturbed"] - first["score_baseline"]),
    ]


def test_a_thousand_pairs_of_144_heads_stay_below_5_megabytes(tmp_path):
    frame = _made(100, 10, 12, 12)
    long = frame.head(12)
    long = long.assign(text_perturbed=[" ".join([text] * 12) for text in long["text_perturbed"]])
    long.attrs = frame.attrs
    path = write_report(frame, tmp_path / "report.html", examples=_of_tokens(long, 12, 12))
    assert path.stat().st_size < 5_000_000
    page = parse(path.read_text("utf-8"))
    assert len(page.one("table", "grid").all("td")) == 144
    assert "strongest are kept" in _said(_section(page, "examples"))
    data = json.loads(page.one("script", type="application/json").text)
    assert len(data["pairs"]) >= 1 and "L1H2" in data["sites"]
    values = sum(len(row) for pair in data["pairs"] for row in pair["effects"])
    assert 100_000 < values <= 250_000


def test_a_frame_that_cannot_be_reported_is_an_error(tmp_path):
    frame = _made()
    with pytest.raises(ValueError, match="holds no pairs"):
        write_report(frame.head(0), tmp_path / "report.html")
    with pytest.raises(pt.validate.InputValidationError, match="score_baseline"):
        write_report(frame.drop(columns="score_baseline"), tmp_path / "report.html")
    layers = frame.assign(patch_effect=[np.ones(3)] * 24, patch_scores=[np.ones(3)] * 24)
    layers.attrs = {}
    with pytest.raises(ValueError, match="does not say which components"):
        write_report(layers, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()


TOO_FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return Array.from(document.querySelectorAll("body *")).filter((element) =>
    Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.textContent.trim())
    && element.tagName !== "SCRIPT")
    .filter((element) => {
      const pair = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((a, b) => a - b);
      return (pair[1] + 0.05) / (pair[0] + 0.05) < 4.5;
    }).map((element) => element.outerHTML.slice(0, 100));
}"""


def test_the_report_works_in_a_browser_without_a_network(browser, tmp_path):
    frame = _made(n_queries=12)
    path = write_report(frame, tmp_path / "report.html", examples=_of_tokens(frame.iloc[[0, 9]]))
    address, requests, said = path.as_uri(), [], []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)

    cell = page.locator('.grid td[data-site="L1H2"]')
    values = page.locator(".map .values")
    cell.hover()
    assert values.inner_text() == cell.get_attribute("data-details")
    assert "L1H2: effect +0.5" in values.inner_text() and "48 pairs" in values.inner_text()

    assert page.locator('.grid td[tabindex="0"]').count() == 1
    page.locator("#maps").evaluate("section => section.querySelector('td[tabindex=\"0\"]').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "End", "ArrowUp", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.dataset.site") == "L0H4"
    assert values.inner_text().startswith("L0H4: effect")
    assert page.locator('.grid td[tabindex="0"]').get_attribute("data-site") == "L0H4"

    token = page.locator(".tokens").first.locator(".edit")
    shades = [token.evaluate("token => getComputedStyle(token).backgroundColor")]
    page.keyboard.press("Enter")
    assert page.locator("#site").input_value() == "L0H4"
    assert page.locator('.grid td[aria-selected="true"]').get_attribute("data-site") == "L0H4"
    page.locator('.grid td[data-site="L2H0"]').click()
    shades.append(token.evaluate("token => getComputedStyle(token).backgroundColor"))
    page.locator("#site").select_option("L0H1")
    shades.append(token.evaluate("token => getComputedStyle(token).backgroundColor"))
    assert len(set(shades)) == 3
    token.hover()
    assert "(EDIT, \u201ca\u201d before): effect of L0H1" in page.locator(".example .values").first.inner_text()
    page.locator("#valued").check()
    assert re.search(r"\.\d\d", token.evaluate("token => getComputedStyle(token, '::after').content"))

    def effects():
        return page.locator("#strongest tbody td:nth-child(3)").evaluate_all("cells => cells.map(c => +c.dataset.sort)")

    heading = page.locator("#strongest thead th", has_text="effect")
    for direction in ("descending", "ascending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        assert effects() == sorted(effects(), reverse=direction == "descending")
    page.locator("#filter").fill("q11")
    assert page.locator("#found").inner_text() == "4 pairs"
    page.locator("#filter").fill("D3")
    assert page.locator("#found").inner_text() == "12 pairs"
    assert page.locator("#all-pairs tbody tr:visible").count() == 12
    page.locator("#filter").fill("")

    assert page.evaluate(TOO_FAINT) == []
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture = tmp_path / "report.png"
    page.screenshot(path=picture, full_page=True)
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[1] == 375 and pixels.shape[0] > 2000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100
    assert requests == [address] and said == []

    layers = _of_tokens(frame.iloc[[0, 9]])
    layers["patch_effect"] = [array[:, 2] for array in layers["patch_effect"]]
    layers["patch_scores"] = layers["patch_effect"]
    layers.attrs["mechir"] = {"sites": [f"L{layer}.resid_pre" for layer in range(3)]}
    write_report(frame, path, examples=layers)
    page.goto(address)
    page.locator('.grid td[data-site="L2H0"]').click()
    assert page.locator("#site").input_value() == "L2.resid_pre"
    assert values.inner_text().endswith("no effects of L2H0; they now show those of L2.resid_pre.")
    assert said == []
