"""How near the exact head sweep is to the operations that it cannot avoid.

``python benchmarks/floor.py`` sweeps the heads of all-MiniLM-L6-v2 and of a model of the size of BERT-base over
passages of the lab collection, a query term appended to each, and prints for each precision

- seconds per pair;
- *floor*: the floating-point operations that an exact sweep of these pairs cannot avoid, at the highest rate at which
  this machine multiplies matrices of the model's shapes, measured before and after the sweep;
- *ratio*: the time over the floor.

What cannot be avoided: both sides once; for each head its own part of the output projection, the MLP of its layer, and
all layers after it; where the score reads the first token alone, the last layer's keys and values at all positions, and
the rest of it at one. Norms, activations, softmax and additions are not counted, nor is padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from peers.material import MODELS, passages_of_lab, save_model
from torch import nn
from transformers import AutoModel, AutoTokenizer

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.products import packed_products
from pyterrier_mechir.models.sites import Site, SiteSet, select_sites
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import AlignedPair

ROWS = (1024, 2048, 4096)
"""Rows of the matrices by which the rate is measured; the best counts."""


class Work(NamedTuple):
    """A ranker, its pairs, their query inputs and the sites."""

    ranker: Ranker
    pairs: Sequence[AlignedPair]
    inputs: Batch
    sites: Sequence[Site | SiteSet]


def rankers(name: str, dtypes: Sequence[str], device: str) -> Iterator[BiEncoder]:
    """A model of a size in several precisions."""
    with TemporaryDirectory() as directory:
        save_model(name, Path(directory))
        model = AutoModel.from_pretrained(directory, add_pooling_layer=False)
        loaded = model, AutoTokenizer.from_pretrained(directory)
        for dtype in dtypes:
            yield BiEncoder(loaded, pooling=MODELS[name].pooling, similarity="dot", dtype=dtype, device=device)


def work_of(ranker: BiEncoder, n: int) -> Work:
    """Heads of a ranker, and pairs of the lab collection."""
    passages = passages_of_lab(n)
    queries, texts = passages["query"].tolist(), passages["text"].tolist()
    perturbed = [TFC1()(text, query) or text for text, query in zip(texts, queries, strict=True)]
    pairs = [pair for pair in ranker.align(queries, texts, perturbed, alignments=["fill"] * n) if pair is not None]
    sites = select_sites("head", ranker.anatomy).sites
    return Work(ranker, pairs, ranker.query_inputs(list(dict.fromkeys(queries))), sites)


def operations(work: Work) -> float:
    """Floating-point operations that an exact head sweep cannot avoid."""
    ranker, lengths = work.ranker, np.array([len(pair.classes) for pair in work.pairs], dtype=np.float64)
    anatomy, last = ranker.anatomy, ranker.n_layers - 1
    sizes = [sum(m.weight.numel() for m in anatomy.linear_maps(number)) for number in range(anatomy.n_layers)]
    width, hidden = anatomy.width("z"), int(ranker.model.config.hidden_size)
    projections = 4 * hidden * width

    def layer(number: int) -> np.ndarray:
        if number == last and ranker.reads_first_token:
            return 2 * (2 * hidden * width * lengths + sizes[number] - 2 * hidden * width) + 4 * width * lengths
        return 2 * sizes[number] * lengths + 4 * width * lengths**2

    def after_head(number: int) -> np.ndarray:
        positions = np.ones_like(lengths) if number == last and ranker.reads_first_token else lengths
        own = sizes[number] - projections + hidden * width / ranker.n_heads
        return 2 * own * positions + sum((layer(later) for later in range(number + 1, last + 1)), 0 * lengths)

    sides = 2 * sum((layer(number) for number in range(last + 1)), 0 * lengths)
    patches = sum((after_head(site.layer) for site in work.sites if isinstance(site, Site)), 0 * lengths)
    return float((sides + patches).sum())


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The least time of several runs, after one that is not counted."""
    function()
    took = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    return min(took)


def rate(ranker: Ranker, rows: Sequence[int] = ROWS) -> float:
    """Operations a second of this machine, on matrix products of the model's own shapes and precision."""
    anatomy = ranker.anatomy
    largest = max(anatomy.linear_maps(0), key=lambda m: m.weight.numel())
    found = []
    precision = largest.weight.dtype
    with torch.no_grad(), packed_products(anatomy):
        for n in rows:
            value = torch.randn(n, largest.in_features, device=ranker.device, dtype=precision)
            weight, operations = largest.weight, 2 * n * largest.weight.numel()
            plain = seconds(lambda value=value, weight=weight: nn.functional.linear(value, weight), ranker.device, 10)
            packed = seconds(lambda value=value: largest(value), ranker.device, 10)
            found += [operations / plain, operations / packed]
    return max(found)


def report(name: str, work: Work, repeats: int) -> None:
    """Print a row: time, rate and floor of a sweep."""
    before = rate(work.ranker)
    took = seconds(lambda: sweep(work.ranker, work.pairs, work.inputs, Plan(work.sites)), work.ranker.device, repeats)
    fastest, needed = max(before, rate(work.ranker)), operations(work)
    floor, n = needed / fastest, len(work.pairs)
    print(
        f"{name:12}{work.ranker.dtype:10}{took / n:9.4f} s{n / took:9.2f} pairs/s{floor / n:9.4f} s"
        f"{took / floor:7.2f}{needed / took / 1e9:10.0f}{fastest / 1e9:10.0f} GFLOP/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs=2, default=[32, 8], help="of MiniLM-L6 and of BERT-base")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-tokens", type=int, help="tokens in a forward pass; without it the ranker's own")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    n_pairs = dict(zip(MODELS, options.pairs, strict=True))
    print(f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':22}{'per pair':>11}{'':>17}{'floor':>11}{'ratio':>7}{'reached':>10}{'of':>10}")
    for name in options.models:
        for ranker in rankers(name, options.dtypes, options.device):
            ranker.batch_tokens = options.batch_tokens or ranker.batch_tokens
            report(name, work_of(ranker, n_pairs[name]), options.repeats)


if __name__ == "__main__":
    main()
