"""How frames and rankers look in a notebook, as IPython's own formatter shows them."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from pages import parse
from small_models import QUERIES, TEXTS

from pyterrier_mechir import Ablate, AggregateHeads, PatchResults, PatchScorer, PerturbDocs, PerturbQueries, Scale
from pyterrier_mechir.notebook import load_ipython_extension, ranker_html, register
from pyterrier_mechir.perturb import TFC1, Typos
from pyterrier_mechir.plots.colours import level, scale
from pyterrier_mechir.plots.markup import heat_map, interval, number, p_value, signed

pytestmark = pytest.mark.usefixtures("one_thread")


class Shell:
    def __init__(self):
        self.display_formatter = DisplayFormatter()


@pytest.fixture(params=[register, load_ipython_extension])
def html(request):
    shell = Shell()
    request.param(shell)
    return lambda thing: shell.display_formatter.format(thing)[0].get("text/html")


@pytest.fixture(scope="module")
def documents():
    rows = [(f"q{q}", QUERIES[q], f"d{d}", TEXTS[d]) for q in range(4) for d in range(4)]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])


@pytest.fixture(scope="module")
def pairs(documents):
    return PerturbDocs(TFC1())(documents)


@pytest.fixture(scope="module")
def heads(bi_encoder, pairs):
    return PatchScorer(bi_encoder)(pairs)


def _as_pandas(frame):
    """What pandas shows, with dollar signs left alone in what a stage made."""
    with pd.option_context("display.html.use_mathjax", "mechir" not in frame.attrs):
        shown = frame._repr_html_()
    if "mechir" in frame.attrs and "mathjax_ignore" not in shown:  # pandas 2
        shown = shown.replace("tex2jax_ignore", "tex2jax_ignore mathjax_ignore")
    return shown


def _rows(page):
    return [[cell.text for cell in row.children] for row in page.one("tbody").all("tr")]


def _largest(names, effects):
    flat = np.asarray(effects, dtype=np.float64).ravel()
    place = int(np.nanargmax(np.abs(flat)))
    return f"{names[place]} {signed(flat[place])}"


HEADS = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]


def test_a_frame_of_patched_pairs_shows_scores_and_effects(html, heads):
    page = parse(html(heads))
    header = [cell.text for cell in page.one("thead").all("th")]
    assert header == ["qid", "docno", "rank", "score", "before", "after", "change", "effects", "text", "edit"]
    rows = _rows(page)
    assert len(rows) == 10 and "10 of 16 pairs." in page.text
    assert "Other columns: perturbation, alignment, expected_sign." in page.text
    for shown, (_, row) in zip(rows, heads.iterrows(), strict=False):
        assert shown[:3] == [row["qid"], row["docno"], str(row["rank"])]
        assert shown[3:6] == [number(row[name]) for name in ("score", "score_baseline", "score_perturbed")]
        assert shown[6] == signed(row["score_perturbed"] - row["score_baseline"])
        assert shown[7] == _largest(HEADS, row["patch_effect"])


def test_the_summary_names_the_components_of_greatest_pooled_effect(html, heads):
    pooled = AggregateHeads(by=None, n_boot=0)(heads)
    pooled = pooled.reindex(pooled["score"].abs().sort_values(ascending=False).index).head(3)
    strongest = ", ".join(
        f"{name} {signed(score)}" for name, score in zip(pooled["docno"], pooled["score"], strict=True)
    )
    summary = parse(html(heads)).all("p")[0].text
    assert summary == f"16 pairs of 4 queries; head; denoise; strongest {strongest}"


def test_long_texts_are_cut_and_whole_in_their_titles(html, heads):
    rows = parse(html(heads)).one("tbody").all("tr")
    text, edit = rows[0].all("td")[-2:]
    assert text["title"] == TEXTS[0] and text.text == TEXTS[0][:40] + "\N{HORIZONTAL ELLIPSIS}"
    perturbed = heads["text_perturbed"].iloc[0]
    assert edit["title"] == perturbed and perturbed.endswith(edit.text.strip("\N{HORIZONTAL ELLIPSIS}"))
    assert perturbed.removeprefix(TEXTS[0]) in edit.text
    assert rows[0].all("td")[0]["title"] == QUERIES[0]


def test_a_heat_map_has_a_square_for_each_effect():
    effects = np.array([[0.5, -0.5, 0.0], [np.nan, 0.25, 0.5]])
    svg = parse(heat_map(effects, label='<"1">')).one("svg")
    assert svg["viewbox"] == "0 0 3 2" and svg["aria-label"] == '<"1">'
    squares = {path["fill"]: path["d"] for path in svg.all("path")}
    colours = [scale()[level(value, 0.5)].background for value in (0.5, -0.5, 0.0, 0.25)]
    assert squares == {
        colours[0]: "M0 0h1v1h-1zM2 1h1v1h-1z",
        colours[1]: "M1 0h1v1h-1z",
        colours[2]: "M2 0h1v1h-1z",
        colours[3]: "M1 1h1v1h-1z",
    }


KINDS = {
    "layers": ({"component": "mlp_out"}, (1, 3)),
    "list": ({"component": ["attn_out", "mlp_out"]}, (1, 6)),
    "class": ({"component": "mlp_out", "positions": "class"}, (3, 8)),
    "class of heads": ({"positions": "class"}, (3, 4)),
    "each": ({"component": "resid_pre", "positions": "each"}, None),
    "each of heads": ({"positions": "each"}, (3, 4)),
    "set": ({"heads": [[(0, 1), "L1.mlp_out"], "L2H3"]}, (1, 2)),
}


@pytest.mark.parametrize(("options", "shape"), KINDS.values(), ids=KINDS)
def test_effects_of_any_shape_are_drawn_and_the_largest_named(bi_encoder, pairs, html, options, shape):
    from pyterrier_mechir import explode_effects

    frame = PatchScorer(bi_encoder, **options)(pairs.head(2))
    long = explode_effects(frame)
    page = parse(html(frame))
    for row, (_, pair) in zip(page.one("tbody").all("tr"), frame.iterrows(), strict=True):
        own = long[long["docno"] == pair["docno"]]
        largest = own.loc[own["patch_effect"].abs().idxmax()]
        assert row.one("small").text.startswith(largest["site"])
        assert row.one("small").text.endswith(signed(largest["patch_effect"]))
        at = largest["token"] if options.get("positions") == "each" else largest["token_class"]
        assert pd.isna(at) or row.one("small").text.split()[-2].endswith(at)
        rows, columns = shape or (3, len(pair["tokens"]))
        assert row.one("svg")["viewbox"] == f"0 0 {columns} {rows}"
    assert ("strongest" in page.text) == (options.get("positions") != "each")


def test_too_many_effects_are_not_drawn(bi_encoder, pairs, html):
    frame = PatchScorer(bi_encoder)(pairs.head(1))
    frame["patch_effect"] = frame["patch_scores"] = [np.linspace(-1, 2, 3600).reshape(60, 60)]
    frame.attrs = {}
    page = parse(html(frame))
    assert not page.all("svg") and page.one("small").text == "L59H59 +2.000"


def test_a_pair_without_effects_says_so(bi_encoder, documents, html):
    frame = PatchScorer(bi_encoder)(documents.head(3).assign(text_perturbed=[None, f"{TEXTS[1]} night", None]))
    rows = _rows(parse(html(frame)))
    assert [row[7] == "missing" for row in rows] == [True, False, True]
    assert rows[0][4:7] == ["\N{EN DASH}"] * 3


def test_the_edit_of_a_query_is_shown(bi_encoder, documents, html):
    frame = PatchScorer(bi_encoder)(PerturbQueries(Typos())(documents.head(2)))
    for row, query in zip(parse(html(frame)).one("tbody").all("tr"), frame["query_perturbed"], strict=True):
        assert row.all("td")[-1].attributes.get("title", row.all("td")[-1].text) == query


def test_an_aggregate_shows_intervals_and_marks_significance(bi_encoder, pairs, html):
    frame = AggregateHeads(by=None)(PatchScorer(bi_encoder, ["head", "q"])(pairs))
    frame.loc[[1, 3], "p_adjusted"] = [0.01, 0.0001]
    page = parse(html(frame))
    assert "20 of 24 rows" in page.text and "* adjusted p below 0.05" in page.text
    rows = page.one("tbody").all("tr")
    assert len(rows) == 20
    for row, (_, of_frame) in zip(rows, frame.iterrows(), strict=False):
        star = " *" if of_frame["p_adjusted"] < 0.05 else ""
        assert [cell.text for cell in row.all("td") if not cell.all("svg")] == [
            *(str(of_frame["rank"]), of_frame["docno"], signed(of_frame["score"])),
            interval(of_frame["ci_low"], of_frame["ci_high"]),
            p_value(of_frame["p_adjusted"]) + star,
            *(str(of_frame["n_pairs"]), str(of_frame["n_skipped"])),
        ]
        first, last = (float(row.all("line")[1][end]) for end in ("x1", "x2"))
        assert first <= float(row.one("circle")["cx"]) <= last
    assert rows[3].all("td")[5].text == "< 0.001 *"


def test_an_aggregate_of_several_queries_names_them(heads, html):
    frame = AggregateHeads()(heads)
    page = parse(html(frame))
    assert page.one("thead").all("th")[0].text == "qid"
    assert [row[0] for row in _rows(page)] == frame["qid"].head(20).tolist()
    assert "20 of 48 rows" in page.text and "*" not in page.text


def test_other_frames_look_as_pandas_shows_them(html, heads, documents):
    others = [documents, documents.head(0), heads[["qid", "docno", "score"]], pd.DataFrame({("a", "b"): [1]})]
    others += [AggregateHeads()(heads)[["docno", "score"]], pd.DataFrame(), pd.DataFrame({0: [1.5]})]
    for frame in others:
        assert html(frame) == _as_pandas(frame)
    assert html(3) is None


def test_empty_results_look_as_pandas_shows_them(html, bi_encoder, pairs):
    empty = PatchScorer(bi_encoder)(pairs.head(0))
    for frame in (empty, AggregateHeads()(empty)):
        assert html(frame) == _as_pandas(frame)


def test_what_pandas_does_not_show_as_html_stays_text(html, heads):
    with pd.option_context("display.notebook_repr_html", False):
        assert html(heads) is None and html(heads[["qid"]]) is None


def test_a_frame_that_lost_its_attrs_is_shown_as_far_as_it_tells(html, heads, bi_encoder, pairs):
    frame = heads.copy()
    frame.attrs = {}
    page = parse(html(frame))
    assert page.all("p")[0].text.startswith("16 pairs of 4 queries; strongest L")
    assert _rows(page)[0][7] == _largest(HEADS, frame["patch_effect"].iloc[0])
    layers = PatchScorer(bi_encoder, "mlp_out")(pairs)
    layers.attrs = {}
    assert html(layers) == _as_pandas(layers)


def test_a_damaged_frame_never_fails(html, heads):
    for name, values in {"patch_effect": None, "score_perturbed": "x", "qid": [[]] * len(heads)}.items():
        frame = heads.assign(**{name: values})
        assert html(frame) == _as_pandas(frame)


def test_texts_are_escaped(html, heads):
    hostile = "<script>alert('1')</script> \"quoted\" & more"
    names = dict.fromkeys(["qid", "docno", "query", "text", "text_perturbed"], hostile)
    frame = heads.head(1).assign(**names, **{hostile: 1})
    aggregated = AggregateHeads()(heads).assign(docno=hostile)
    for shown in (html(frame), html(aggregated)):
        page = parse(shown)
        assert not page.all("script") and hostile in page.text
    assert f"Other columns: perturbation, alignment, expected_sign, {hostile}." in parse(html(frame)).text


def test_the_html_of_a_ranker_says_what_it_is(ranker):
    ranker.name = "<some>/model"
    page = parse(ranker_html(ranker))
    rows = {row.one("th").text: row.one("td").text for row in page.one("tbody").all("tr")}
    assert rows["name"] == "<some>/model" and rows["ranker"] == type(ranker).__name__
    assert rows["architecture"] == type(ranker.model).__name__
    assert rows["layers x heads"] == "3 x 4" and rows["device"] == "cpu" and rows["dtype"] == "float32"
    assert rows["parameters"] == f"{sum(p.numel() for p in ranker.model.parameters()):,}"
    assert rows["max length"] == str(ranker.max_length)
    shown = {name.replace("_", " "): str(value) for name, value in ranker._settings().items() if value}
    assert shown.items() <= rows.items()
    assert "revision" not in rows


def test_importing_the_module_is_cheap():
    code = (
        "import sys; import pyterrier_mechir.notebook; heavy = {'pandas', 'IPython', 'numpy', 'torch', 'jinja2'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_dollar_signs_of_what_stages_made_are_left_alone_by_mathjax(html, documents, bi_encoder):
    costly = documents.assign(text=[f"from $5_000 to $10: {text}" for text in documents["text"]])
    pairs = PerturbDocs(TFC1())(costly)
    heads = PatchScorer(bi_encoder)(pairs)
    for shown in (html(pairs), html(heads), html(AggregateHeads(n_boot=0)(heads)), ranker_html(bi_encoder)):
        assert "tex2jax_ignore" in shown and "mathjax_ignore" in shown
    assert "mathjax_ignore" not in html(costly)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Scale("L1H2", 0.5), {"edit": "Scale", "site": "L1H2", "factor": "0.5"}),
        (Ablate("L1.mlp_out"), {"site": "L1.mlp_out", "by": "zero"}),
        (TFC1(), {"statement": TFC1().statement, "alignment": "fill", "sign": "+"}),
    ],
    ids=repr,
)
def test_an_edit_and_a_perturbation_are_tables_of_what_they_are(value, told, html):
    page = parse(html(value))
    assert page.one("strong").text == repr(value)
    assert told.items() <= dict(_rows(page)).items()


def test_stored_results_are_a_table_of_what_they_hold(bi_encoder, pairs, html, tmp_path):
    PatchScorer(bi_encoder).store(tmp_path / "results")(pairs.head(3))
    results = PatchResults(tmp_path / "results")
    assert dict(_rows(parse(html(results))))["pairs"] == "3"
