"""The code of every page runs, block after block, after the lines of the page on names."""

from __future__ import annotations

import re
import warnings

import pytest
from matplotlib import pyplot as plt
from pages_code import LETTERS, N_TOPICS, NEEDS, PAGES, ROOT, blocks


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_the_page_runs(page, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = dict(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(page):
            if block.needs:
                block.compiled()
            else:
                exec(block.compiled(), here)
    plt.close("all")


def test_blocks_that_do_not_run_are_few_and_say_what_they_need():
    left_out = [block for page in PAGES for block in blocks(page) if block.needs]
    assert {block.needs for block in left_out} == set(NEEDS)
    assert len(left_out) <= 0.15 * sum(len(blocks(page)) for page in PAGES)


def test_a_block_that_needs_something_says_it_in_a_word_that_is_known():
    for page in PAGES:
        for block in blocks(page):
            for line in re.findall(r"^# Needs .*", block.code, re.MULTILINE):
                assert block.code.startswith(line) and block.needs, f"{page}: {line}"


def test_code_blocks_are_of_known_languages():
    known = {"python", "shell", "bash", "toml", "text", "", "{toctree}", "{generated}"}
    for page in PAGES:
        opened = re.findall(r"^```(\S*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(opened[::2]) <= known, page
        assert not any(opened[1::2]), f"{page}: a block is not closed"


def test_the_lab_is_as_small_as_the_tests_have_it(names):
    assert len(names["topics"]) == N_TOPICS
    assert names["frame"]["text"].str.len().max() <= LETTERS
