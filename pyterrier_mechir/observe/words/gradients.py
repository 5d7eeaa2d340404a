"""Explanations by gradients of the score at the word embeddings.

**Gradient times input** (Shrikumar et al., 2016): a token carries E_t . ds/dE_t, with E_t its row of the embedding
table, before positions and norms are added.

**Integrated gradients** (Sundararajan, Taly and Yan, ICML 2017): a token carries (E_t - E'_t) . mean over the way from
E' to E of ds/dE_t, where E' are the embeddings of the text with all of its units absent. What tokens carry adds up to
s(E) - s(E') but for the error of the sum over the path, which is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.batching import by_length
from pyterrier_mechir.models.gradients import SHARE, differentiable, gradients, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.observe.words.absence import Absent
from pyterrier_mechir.observe.words.explained import Asked, Explained
from pyterrier_mechir.text.encoding import Encoded, unique

if TYPE_CHECKING:
    from pyterrier_mechir.observe.words.readings import Reading
    from pyterrier_mechir.rankers.base import Ranker

EMBED: Key = (0, "embed")


def gradient_times_input(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations by gradient times input; args are those of :func:`~.left_out.occlusion`."""
    opened = ranker.opened
    for index, batch in batches(ranker, readings, asked.batch_size):
        with differentiable(opened):
            run = record_graph(opened, batch, [EMBED])
            carried = (run[EMBED] * gradients(run, [EMBED])[EMBED]).detach().sum(-1).double().cpu().numpy()
        for number, of_positions in zip(index, carried, strict=True):
            reading = readings[number]
            sums, rest = reading.summed(of_positions)
            yield Explained(reading, reading.scattered(sums), rest=rest)


def integrated_gradients(ranker: Ranker, readings: Sequence[Reading], asked: Asked) -> Iterator[Explained]:
    """Explanations by integrated gradients; args are those of :func:`~.left_out.occlusion`."""
    without, opened = empty_sequences(ranker, readings, asked.absent(ranker)), ranker.opened
    for index, batch in batches(ranker, readings, asked.batch_size):
        with torch.no_grad():
            whole = record(opened, batch, [EMBED])
        with differentiable(opened):
            draws = [_on_the_way(ranker, opened, batch, whole, [one[n] for n in index], asked.steps) for one in without]
        carried, empty = (torch.stack(parts).mean(0).cpu().numpy() for parts in zip(*draws, strict=True))
        for row, number in enumerate(index):
            reading = readings[number]
            sums, rest = reading.summed(carried[row])
            missed = float(whole.scores[row]) - float(empty[row]) - float(sums.sum()) - rest
            yield Explained(reading, reading.scattered(sums), rest, float(empty[row]), missed)


def batches(ranker: Ranker, readings: Sequence[Reading], batch_size: int | None) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of the sequences of texts, small enough for gradients, with their query inputs."""
    contexts, which = unique([reading.context for reading in readings])
    inputs = ranker.query_inputs(contexts)
    sequences = [reading.located.sequence for reading in readings]
    lengths = np.array([len(sequence.ids) for sequence in sequences], dtype=np.int64)
    for index in by_length(lengths, max(1, ranker.batch_tokens // SHARE), batch_size):
        yield index, ranker.collate([sequences[n] for n in index], inputs, [which[n] for n in index])


def empty_sequences(ranker: Ranker, readings: Sequence[Reading], absent: Absent) -> list[list[Encoded]]:
    """For each draw, the sequence of each text with all of its units absent, of the same length."""
    made = absent.sequences(readings, [np.zeros((1, len(reading.read)), dtype=bool) for reading in readings])
    sequences = [sequence for sequence in made if sequence is not None]
    return [sequences[draw :: absent.n_draws] for draw in range(absent.n_draws)]


def on_path(begin: Tensor, end: Tensor, steps: int, at_once: int) -> Iterator[Tensor]:
    """Points of the way between embeddings, the middles of ``steps`` equal parts: ``[c, B, S, D]``, ``c`` at a time."""
    shares = (torch.arange(steps, device=end.device, dtype=end.dtype) + 0.5) / steps
    for some in shares.split(max(1, at_once)):
        yield torch.lerp(begin, end, some.reshape(-1, 1, 1, 1))


def _on_the_way(
    ranker: Ranker, opened: Opened, batch: Batch, whole: Recording, without: Sequence[Encoded], steps: int
) -> tuple[Tensor, Tensor]:
    """What each position carries, float64 ``[B, S]``, and the scores of the texts without units, ``[B]``."""
    padded = ranker.collate(without, {}, [])
    with torch.no_grad():
        empty = record(opened, batch | padded, [EMBED])
    end, begin = whole[EMBED], empty[EMBED]
    slopes = torch.zeros_like(end, dtype=torch.float64)
    at_once = max(1, ranker.batch_tokens // SHARE // end[..., 0].numel())
    for points in on_path(begin, end, steps, at_once):
        n = len(points)
        several = {name: value.repeat(n, *[1] * (value.ndim - 1)) for name, value in batch.items()}
        run = record_graph(opened, several, [EMBED], points.flatten(0, 1))
        slopes += gradients(run, [EMBED])[EMBED].unflatten(0, (n, -1)).double().sum(0) / steps
    return ((end - begin).double() * slopes).sum(-1), empty.scores
