"""What all workers share: the pairs that they read, what they are asked, how they answer.

A worker is a process that loads one library and one model, and then answers a line of JSON on its standard input with a
line of JSON on its standard output. This module is imported by every worker, also under MechIR's older libraries, and
needs nothing but torch and numpy.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

BLOCK = ("resid_pre", "attn_out", "mlp_out")
"""The components of the block sweep, each patched at each position."""

Inputs = dict[str, torch.Tensor]
"""Token ids and attention mask, ``[B, S]``."""


class Site(NamedTuple):
    """A head (``head``) at all positions, or a whole component of a layer at one position."""

    component: str
    layer: int
    number: int


class Ask(NamedTuple):
    """A sweep that a worker is asked for.

    Args:
        task: ``head`` or ``block``.
        rows: the pairs.
        sites: the sites whose scores are asked for. One site at a time, no other is patched, and the time is scaled
            from these to all.
        batch_size: pairs in a batch; 0 leaves it to the system.
        width: up to how many tokens documents are padded; 0 for the longest of the batch.
        method: ``exact`` or ``attribution``.
    """

    task: str
    rows: list[int]
    sites: list[Site]
    batch_size: int
    width: int
    method: str


class Answer(NamedTuple):
    """Patched scores ``[row, site]``, NaN where a pair lacks the position, and seconds for all sites of these rows."""

    scores: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Pairs:
    """A model and its aligned pairs, as every system reads them.

    Args:
        directory: of the checkpoint, with ``config.json``, and of the pairs.
        baseline: token ids of the baselines, ``[N, S]``, filled up with 0.
        perturbed: of the perturbed sides.
        lengths: tokens of both sides of a pair, ``[N]``.
        queries: token ids of the queries, ``[N, Q]``.
        query_lengths: their tokens.
        pooling: ``cls`` or ``mean``; scores are dot products.
    """

    directory: Path
    baseline: np.ndarray
    perturbed: np.ndarray
    lengths: np.ndarray
    queries: np.ndarray
    query_lengths: np.ndarray
    pooling: str

    @classmethod
    def read(cls, directory: Path) -> Pairs:
        with np.load(directory / "pairs.npz") as arrays:
            fields = {name: arrays[name] for name in arrays.files}
        return cls(directory, **fields | {"pooling": str(fields["pooling"])})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's."""
        return json.loads((self.directory / "config.json").read_text())

    @property
    def n_layers(self) -> int:
        return self.config["num_hidden_layers"]

    @property
    def n_heads(self) -> int:
        return self.config["num_attention_heads"]

    @property
    def d_head(self) -> int:
        return self.config["hidden_size"] // self.n_heads

    def n_sites(self, task: str, width: int) -> int:
        """All sites of a batch of documents padded to a width."""
        return self.n_layers * (self.n_heads if task == "head" else len(BLOCK) * width)

    def inputs(self, side: str, rows: Sequence[int] | np.ndarray, width: int = 0) -> Inputs:
        """A side of some pairs, or their queries, padded to a width or to the longest."""
        lengths = self.query_lengths if side == "queries" else self.lengths
        ids = getattr(self, side)[rows]
        width = width or int(lengths[rows].max())
        ids = np.pad(ids, ((0, 0), (0, max(0, width - ids.shape[1]))))[:, :width]
        mask = np.arange(width) < lengths[rows, None]
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def batches(self, ask: Ask) -> Iterator[list[int]]:
        """Where the pairs asked for are in ``ask.rows``, batch by batch, longest first so that little is padding."""
        order = np.argsort(-self.lengths[ask.rows], kind="stable")
        for begin in range(0, len(order), ask.batch_size):
            yield order[begin : begin + ask.batch_size].tolist()

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors of last hidden states."""
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(-1).float()
        return (states * weights).sum(1) / weights.sum(1)


class Encoder(Protocol):
    """A model of which one site at a time is patched, as each library does it."""

    def encode(self, inputs: Inputs) -> torch.Tensor:
        """Last hidden states."""

    def record(self, inputs: Inputs, components: Sequence[str]) -> Any:
        """The activations that patches take from the perturbed side."""

    def patched(self, inputs: Inputs, site: Site, recorded: Any) -> torch.Tensor:
        """Last hidden states with one site taken from what was recorded."""


def transplanted(own: torch.Tensor, other: torch.Tensor, site: Site, d_head: int) -> torch.Tensor:
    """An activation ``[B, S, d]`` with a head's part, or one position, taken from another."""
    here = (
        np.s_[..., site.number * d_head : (site.number + 1) * d_head]
        if site.component == "head"
        else np.s_[:, site.number]
    )
    made = own.clone()
    made[here] = other[here]
    return made


def lacking(pairs: Pairs, task: str, rows: np.ndarray, sites: Sequence[Site]) -> np.ndarray:
    """Which pairs do not have the position of which site, ``[row, site]``."""
    ends = np.array([site.number if task == "block" else -1 for site in sites])
    return ends >= pairs.lengths[rows, None]


def one_at_a_time(encoder: Encoder, pairs: Pairs, ask: Ask) -> Answer:
    """Patch sites one after the other; what they take together is scaled to all sites."""
    scores = np.full((len(ask.rows), len(ask.sites)), np.nan)
    seconds = 0.0
    for at in pairs.batches(ask):
        rows = np.array(ask.rows)[at]
        begin = time.perf_counter()
        query = pairs.pool(encoder.encode(asked := pairs.inputs("queries", rows)), asked["attention_mask"])
        baseline, perturbed = (pairs.inputs(side, rows, ask.width) for side in ("baseline", "perturbed"))
        mask, width = baseline["attention_mask"], baseline["input_ids"].shape[1]
        encoder.encode(baseline)
        recorded = encoder.record(perturbed, BLOCK if ask.task == "block" else ("head",))
        middle = time.perf_counter()
        sites = [(n, site) for n, site in enumerate(ask.sites) if ask.task == "head" or site.number < width]
        for number, site in sites:
            vectors = pairs.pool(encoder.patched(baseline, site, recorded), mask)
            scores[at, number] = (query * vectors).sum(-1).numpy()
        each = (time.perf_counter() - middle) / len(sites)
        seconds += middle - begin + each * pairs.n_sites(ask.task, width)
    scores[lacking(pairs, ask.task, np.array(ask.rows), ask.sites)] = np.nan
    return Answer(scores, seconds)


def serve(load: Callable[[Pairs], Callable[[Ask], Answer]], *packages: str) -> None:
    """Load a model, name the versions of packages, and answer until the input ends.

    Called as ``worker.py DIRECTORY THREADS``. What libraries print goes to standard error.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[2]))
    torch.set_grad_enabled(False)
    run = load(Pairs.read(Path(sys.argv[1])))
    print(json.dumps({name: version(name) for name in ("torch", "transformers", *packages)}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = run(Ask(**asked | {"sites": [Site(*site) for site in asked["sites"]]}))
        reply = {"scores": answer.scores.tolist(), "seconds": answer.seconds}
        print(json.dumps(reply), file=replies, flush=True)
