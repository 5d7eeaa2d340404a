"""This package: all sites of all pairs asked for, exactly or by attribution."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from protocol import Answer, Ask, Pairs, lacking, serve
from transformers import AutoTokenizer, BertModel

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.models.sites import Site, select_sites
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.plan import Plan, method_of
from pyterrier_mechir.text.encoding import EDIT, OTHER, AlignedPair, Encoded
from pyterrier_mechir.text.positions import Positions


def encoded(ids: np.ndarray, n: int) -> Encoded:
    """The first ``n`` tokens of a row."""
    return Encoded(ids[:n], np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.int64))


def aligned(pairs: Pairs, row: int, query: int) -> AlignedPair:
    """A pair as the package has it."""
    n = int(pairs.lengths[row])
    unknown = np.zeros(n, dtype=np.int64)
    sides = (encoded(side[row], n) for side in (pairs.baseline, pairs.perturbed))
    classes = np.where(pairs.baseline[row, :n] == pairs.perturbed[row, :n], OTHER, EDIT)
    return AlignedPair(*sides, classes, query, unknown, unknown, np.zeros((n, 2), dtype=np.int64))


def load(pairs: Pairs) -> Callable[[Ask], Answer]:
    model = BertModel.from_pretrained(pairs.directory, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(pairs.directory)
    ranker = BiEncoder((model, tokenizer), pooling=pairs.pooling, similarity="dot", device="cpu")

    def run(ask: Ask) -> Answer:
        made = [aligned(pairs, row, number) for number, row in enumerate(ask.rows)]
        queries = [encoded(pairs.queries[row], int(pairs.query_lengths[row])) for row in ask.rows]
        sites = select_sites(ask.task, ranker.anatomy).sites
        positions = Positions.of("all" if ask.task == "head" else "each")
        sweep = sweeper(method_of(ask.method, ranker.anatomy))
        begin = time.perf_counter()
        vectors = {"query_vector": ranker.encode(ranker.collate(queries, {}, []))}
        patched: Any = sweep(ranker, made, vectors, Plan(sites, positions=positions)).denoise
        seconds = time.perf_counter() - begin
        number = {site: n for n, site in enumerate(sites)}
        if ask.task == "head":
            return Answer(patched[:, [number[Site(*site)] for site in ask.sites]], seconds)
        scores = np.full((len(made), len(ask.sites)), np.nan)
        for row, column in np.argwhere(~lacking(pairs, ask.task, np.array(ask.rows), ask.sites)):
            component, layer, position = ask.sites[column]
            scores[row, column] = patched[row][number[Site(component, layer)], position]
        return Answer(scores, seconds)

    return run


if __name__ == "__main__":
    serve(load, "pyterrier-mechir")
