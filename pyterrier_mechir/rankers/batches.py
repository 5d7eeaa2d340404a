"""Batches of sequences that are alike in length: the one loop over them, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pyterrier_mechir.models.batching import STEP, by_length
from pyterrier_mechir.models.opened import Batch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.text.encoding import AlignedPair, Encoded
    from pyterrier_mechir.text.sequences import Sequences


class Reader(Protocol):
    """What makes batches of sequences: a :class:`~pyterrier_mechir.rankers.base.Ranker`."""

    batch_tokens: int
    """Most tokens in a batch."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def sequences(self) -> Sequences:
        """How texts become the sequences that it reads."""

    def collate(self, sequences: Sequence[Encoded], query_inputs: Batch, queries: Sequence[int]) -> Batch:
        """A batch of sequences, each with its row of the query inputs."""


class SharedBatch(NamedTuple):
    """A batch of the distinct sequences of some (query, text) rows, and the rows that it scores.

    Args:
        batch: the sequences, without query inputs.
        rows: the ``R`` rows, as places in the queries and texts that were given.
        places: for each of these rows, which sequence of the batch it reads.
        inputs: ``[R, ...]``: the inputs of each row's sequence, and its query inputs.
    """

    batch: Batch
    rows: list[int]
    places: list[int]
    inputs: Batch


class PairBatch(NamedTuple):
    """A batch of both sides of some pairs.

    Args:
        which: the place of each of the ``n`` pairs in the list that was given.
        pairs: the ``n`` pairs.
        batch: ``[2n, ...]``: the inputs of all their baselines, then of all their perturbed sides, with query inputs.
    """

    which: np.ndarray
    pairs: list[AlignedPair]
    batch: Batch


def batches_of_sequences(
    ranker: Reader, sequences: Sequence[Encoded], batch_size: int | None = None, show_as: str | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of sequences that are alike in length, the longest first.

    Libraries for matrices compile, and keep, a product for each number of rows that they meet, so that memory would
    grow with every length and size of a batch. Batches are therefore of few shapes: lengths are filled up to multiples
    of :data:`~pyterrier_mechir.models.batching.STEP`, as far as the ranker takes such lengths.

    Args:
        ranker: what reads them.
        sequences: the sequences.
        batch_size: sequences in a batch; None takes as many as the ranker's ``batch_tokens`` allow.
        show_as: what a progress bar over sequences is called; None shows none.

    Yields:
        Which sequences are in the batch, and the batch, without query inputs.
    """
    import pyterrier as pt

    lengths = np.array([len(sequence.ids) for sequence in sequences], dtype=np.int64)
    pad = pad_of(ranker.tokenizer)
    widths = np.maximum(lengths, np.minimum(-(-lengths // STEP) * STEP, ranker.sequences.max_length))
    with pt.tqdm(total=len(lengths), desc=show_as, unit="doc", disable=show_as is None) as bar:
        for index in by_length(widths, ranker.batch_tokens, batch_size, STEP):
            longest, *others = (sequences[i] for i in index)
            yield index, ranker.collate([longest.filled(int(widths[index[0]]), pad), *others], {}, [])
            bar.update(len(index))


def batches_of_pairs(
    ranker: Reader,
    pairs: Sequence[AlignedPair],
    query_inputs: Batch | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
) -> Iterator[PairBatch]:
    """Batches of both sides of pairs that are alike in length, the longest first.

    Args:
        ranker: what reads them.
        pairs: the aligned pairs.
        query_inputs: a row per query, which ``pair.query`` indexes; None where nothing is compared with queries.
        batch_tokens: most tokens of one side of the pairs in a batch; None takes half of the ranker's.
        batch_size: pairs in a batch, in place of that.
    """
    lengths = np.array([len(pair.classes) for pair in pairs], dtype=np.int64)
    for index in by_length(lengths, ranker.batch_tokens // 2 if batch_tokens is None else batch_tokens, batch_size):
        group = [pairs[i] for i in index]
        sequences = [pair.baseline for pair in group] + [pair.perturbed for pair in group]
        yield PairBatch(index, group, ranker.collate(sequences, query_inputs or {}, [pair.query for pair in group] * 2))


def rows_of(which: Sequence[int], n: int) -> list[list[int]]:
    """For each of ``n`` items, the rows that have it, given the item of each row."""
    rows: list[list[int]] = [[] for _ in range(n)]
    for row, item in enumerate(which):
        rows[item].append(row)
    return rows


def padded(sequences: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Batch:
    """Sequences in tensors, filled up to the longest of them.

    Returns:
        ``input_ids``, ``attention_mask`` and, where the tokenizer has them, ``token_type_ids``, ``[B, S]``.
    """
    import torch

    pad, width = pad_of(tokenizer), max(len(s.ids) for s in sequences)
    ids, types, mask = (np.full((len(sequences), width), fill, dtype=np.int64) for fill in (pad, 0, 0))
    for row, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[row, :n], types[row, :n], mask[row, :n] = sequence.ids, sequence.types, sequence.mask
    arrays = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in tokenizer.model_input_names:
        arrays["token_type_ids"] = types
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands at positions that are filled up."""
    return tokenizer.pad_token_id or 0


def last_attended(mask: torch.Tensor) -> torch.Tensor:
    """The last position of each sequence that is attended to, ``[B]``, given the attention mask ``[B, S]``."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)
