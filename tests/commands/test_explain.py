"""``pyterrier-mechir explain``: ranks, words in colour or with numbers, a page, and errors in a sentence."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
from pages import parse
from small_models import QUERIES, TEXTS, build

from pyterrier_mechir import BiEncoder, ExplainScore
from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.commands.coloured_text import coloured_text, colours_of, legend
from pyterrier_mechir.plots.colours import level, scale
from pyterrier_mechir.plots.explained import Explained
from pyterrier_mechir.plots.markup import number, signed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("checkpoint")
    for part in build("bert", classifier=False):
        part.save_pretrained(path)
    return str(path)


@pytest.fixture
def command(checkpoint) -> list[str]:
    return ["explain", QUERIES[0], "--ranker", checkpoint, "--family", "BiEncoder", "--setting", "pooling=cls"]


def of(text: str, spans, scores) -> Explained:
    spans = np.array(spans, dtype=np.int64).reshape(-1, 2)
    units = [text[a:b] for a, b in spans]
    return Explained("d", 0, 1.0, text, units, spans, np.array(scores, dtype=np.float64), pd.Series({}))


def test_texts_are_ranked_and_their_strongest_words_have_numbers(command, checkpoint, capsys):
    assert main([*command, "--text", TEXTS[0], "--text", TEXTS[1]]) == 0
    printed = capsys.readouterr().out
    frame = pd.DataFrame({"qid": "1", "query": QUERIES[0], "docno": ["text 1", "text 2"], "text": TEXTS[:2]})
    expected = ExplainScore(BiEncoder(checkpoint, pooling="cls"))(frame).sort_values("rank")
    lines = printed.splitlines()
    assert "occlusion of each word of the document; absence: delete." in lines[0] and lines[1] == f"query: {QUERIES[0]}"
    best = []
    for _, row in expected.iterrows():
        at = lines.index(f"rank {row['rank']}, {row['docno']}, score {number(row['score'])}")
        assert re.sub(r"\[[^]]+\]", "", lines[at + 1]) == row["text"]
        order = np.argsort(-np.abs(row["unit_scores"]), kind="stable")
        assert lines[at + 1].count("[") == min(5, len(order))
        for unit in order[:5]:
            assert f"{row['units'][unit]}[{signed(row['unit_scores'][unit])}]" in lines[at + 1]
        best += [(abs(s), s, row["docno"], u) for s, u in zip(row["unit_scores"], row["units"], strict=True)]
    table = [line.split() for line in lines[lines.index("The strongest:") + 2 :]]
    assert len(table) == 10
    _, score, docno, unit = max(best)
    assert table[0] == [signed(score), *docno.split(), unit]
    assert "\x1b" not in printed


def test_texts_come_from_a_file_too_and_a_page_is_written(command, tmp_path, capsys):
    source, page = tmp_path / "texts.txt", tmp_path / "page.html"
    source.write_text(f"{TEXTS[2]}\n\n  \n{TEXTS[3]}\n", encoding="utf-8")
    options = ["--text", TEXTS[0], "--file", str(source), "--unit", "sentence", "--of", "query", "--absence", "mask"]
    assert main([*command, *options, "--out", str(page)]) == 0
    assert f"Wrote {page}." in capsys.readouterr().out
    section = parse(page.read_text("utf-8")).one("section", id="words")
    assert sorted(heading.text for heading in section.all("h4")) == ["text 1", "text 2", "text 3"]
    assert all(article.one("div", "mechir-text").text == QUERIES[0] for article in section.all("article"))


def test_without_a_ranker_a_cross_encoder_is_that_of_the_package(capsys):
    assert main(["explain", "high tides", "--text", "The moon pulls.", "--type", "cross"]) == 0
    assert capsys.readouterr().out.startswith("CrossEncoder known-circuit-query: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no text to explain"),
        (["--text", "a", "--method", "shap"], "unknown method 'shap'"),
        (["--text", "a", "--unit", "page"], "unknown unit 'page'"),
        (["--text", "a", "--method", "ig", "--absence", "delete"], "leaves no embeddings"),
        (["--text", "a", "--absence", "two words of it"], "two words of it"),
        (["--text", "a", "--type", "bi"], "with --ranker, give --family"),
        (["--text", "a", "--setting", "pooling"], "'pooling' is no option of a ranker"),
        (["--file", "no-such-file"], "cannot read 'no-such-file': No such file"),
        (["--text", "a", "--out", "no/such/page.html"], "cannot write 'no/such/page.html': No such file"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, message, command, capsys):
    assert main([*command, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyterrier-mechir: ") and message in said and said.count("\n") == 1


def test_options_of_a_checkpoint_need_one(capsys):
    assert main(["explain", "a", "--text", "a", "--family", "BiEncoder"]) == 2
    assert "name it with --ranker" in capsys.readouterr().err


def test_a_file_that_is_no_text_is_one_sentence(command, tmp_path, capsys):
    (tmp_path / "it.txt").write_bytes(b"\xff\xfe\x00")
    assert main([*command, "--file", str(tmp_path / "it.txt")]) == 2
    assert "is no text in UTF-8" in capsys.readouterr().err


# Colours


def test_small_scores_are_written_with_more_decimals():
    assert coloured_text(of("x", [(0, 1)], [0.00012]), 0.00012, "none") == "x[+0.00012]"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({}, "256"),
        ({"COLORTERM": "truecolor"}, "truecolor"),
        ({"COLORTERM": "truecolor", "NO_COLOR": "1"}, "none"),
        ({"TERM": "dumb"}, "none"),
    ],
)
def test_a_terminal_has_the_colours_that_it_says(environment, colours, monkeypatch):
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colours_of(Terminal()) == colours
    assert colours_of(io.StringIO()) == "none"


def test_each_unit_has_its_colour_and_those_that_push_up_a_line():
    document = of("up, so down cut", [(0, 2), (4, 6), (7, 11), (12, 15)], [1.0, 0.0, -1.0, np.nan])
    up, down = scale()[-1], scale()[0]

    def rgb(colour):
        return ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))

    assert coloured_text(document, 1.0, "truecolor") == (
        f"\x1b[48;2;{rgb(up.background)};38;2;{rgb(up.text)};4mup\x1b[0m, so "
        f"\x1b[48;2;{rgb(down.background)};38;2;{rgb(down.text)}mdown\x1b[0m \x1b[2;9mcut\x1b[0m"
    )
    assert "struck through" in legend(1.0, "256", lacks=True) and "struck" not in legend(1.0, "256", lacks=False)


def test_the_nearest_of_256_colours_is_taken():
    shown = coloured_text(of("x", [(0, 1)], [0.5]), 1.0, "256")
    red, green, blue = (int(scale()[level(0.5, 1.0)].background[i : i + 2], 16) for i in (1, 3, 5))
    number_of = int(re.match(r"\x1b\[48;5;(\d+);", shown)[1]) - 16
    steps = (0, 95, 135, 175, 215, 255)
    nearest = [min(range(6), key=lambda step: abs(steps[step] - channel)) for channel in (red, green, blue)]
    assert [number_of // 36, number_of // 6 % 6, number_of % 6] == nearest


@pytest.mark.parametrize("colours", ["none", "256"])
def test_what_a_terminal_might_obey_is_not_passed_on(colours):
    shown = coloured_text(of("a\x1b[2J\x07 \x9b31m b\n\tc \ud800", [(0, 1)], [0.0]), 1.0, colours)
    assert "\x1b" not in shown and "\x07" not in shown and "\x9b" not in shown
    assert "\n\tc" in shown
    shown.encode("utf-8")
