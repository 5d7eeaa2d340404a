"""Attention summed up over token classes and features while a model runs, so that no pattern is kept.

Shapes: ``N`` pairs, ``R`` of them in a batch, ``H`` heads of a layer, ``S`` positions, ``C`` token classes, ``F``
features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.attention import OnPattern, on_pattern
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.rankers.batches import batches_of_sequences
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.words import lowercase_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.text.encoding import AlignedPair


class Labels(NamedTuple):
    """What each position is of the perturbed sides of a batch, ``[R, S]``, padded with -1.

    Args:
        classes: its token class.
        segments: its segment: 0 for the query and 1 for the document of a cross-encoder, -1 for special tokens.
        words: the word it is a piece of, the same number for every occurrence; -1 without a word.
        occurrences: the number of that occurrence.
        rare: 1 where the word is rare, else 0.
        attended: 1, or 0 where nothing attends to the position.
    """

    classes: Tensor
    segments: Tensor
    words: Tensor
    occurrences: Tensor
    rare: Tensor
    attended: Tensor

    @classmethod
    def padded(cls, labels: Sequence[np.ndarray], length: int, device: torch.device) -> Labels:
        """The labels of a batch of some length, from those of each pair, one after the other, ``[label, S]``."""
        values = np.full((len(labels), len(cls._fields), length), -1, dtype=np.int64)
        for row, one in enumerate(labels):
            values[row, :, : one.shape[1]] = one
        return cls(*torch.from_numpy(values).to(device).unbind(1))


def _lexical_match(at: Labels) -> Tensor:
    same = at.words[:, :, None] == at.words[:, None]
    return same & (at.words >= 0)[:, :, None] & (at.occurrences[:, :, None] != at.occurrences[:, None])


def _rarity(at: Labels) -> Tensor:
    return (at.rare == 1)[:, None].expand(-1, at.rare.shape[1], -1)


def _interaction(at: Labels) -> Tensor:
    of_text = at.segments >= 0
    return (at.segments[:, :, None] != at.segments[:, None]) & of_text[:, :, None] & of_text[:, None]


ATTENTION_FEATURES: dict[str, Callable[[Labels], Tensor]] = {
    "lexical_match": _lexical_match,
    "rarity": _rarity,
    "interaction": _interaction,
}
"""Which (from, to) positions each feature has, ``[R, S, S]``.

- ``lexical_match``: two occurrences of the same word.
- ``rarity``: from anywhere to a rare word.
- ``interaction``: from the query to the document, or the reverse.
"""


@dataclass(frozen=True)
class AttentionSummary:
    """The attention of some heads in ``N`` sequences.

    Args:
        scores: score of each, ``[N]``.
        classes: mean attention from the positions of a class to all positions of a class, ``[N, head, C, C]``.
        features: normalised feature attention, ``[N, head, F]``.
    """

    scores: np.ndarray
    classes: np.ndarray
    features: np.ndarray


@as_alone()
def summarise_attention(
    ranker: Ranker,
    pairs: Sequence[AlignedPair],
    labels: Sequence[np.ndarray],
    query_inputs: Batch,
    heads: Sequence[tuple[int, int]],
    features: Sequence[str] = (),
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> AttentionSummary:
    """Read the attention of the perturbed sides of pairs, each distinct sequence computed once.

    Args:
        ranker: the model.
        pairs: the pairs.
        labels: what their positions are: for each pair ``[label, S]``, in the order of :class:`Labels`.
        query_inputs: as in :func:`~pyterrier_mechir.patching.sweep.sweep`.
        heads: the (layer, head) asked for, in the order of the results.
        features: names from :data:`ATTENTION_FEATURES`.
        batch_size: sequences in a forward pass; None batches by length.
        progress: called with the number of pairs done, as they are done.

    Raises:
        ValueError: the architecture does not let its attention weights be read.
    """
    of_sequence: dict[tuple[bytes, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        side = pair.perturbed
        of_sequence.setdefault((side.ids.tobytes(), side.types.tobytes(), side.mask.tobytes()), []).append(number)
    readers = list(of_sequence.values())
    distinct = [pairs[numbers[0]].perturbed for numbers in readers]
    summary = AttentionSummary(
        np.empty(len(pairs), np.float32),
        np.empty((len(pairs), len(heads), len(TOKEN_CLASSES), len(TOKEN_CLASSES)), np.float32),
        np.empty((len(pairs), len(heads), len(features)), np.float32),
    )
    opened = ranker.opened
    for index, batch in batches_of_sequences(ranker, distinct, batch_size):
        numbers = np.array([number for i in index for number in readers[i]])
        rows = np.array([row for row, i in enumerate(index) for _ in readers[i]])
        at = Labels.padded([labels[number] for number in numbers], batch["attention_mask"].shape[1], ranker.device)
        reader = _Reader(summary, numbers, rows, at, features)
        with torch.no_grad(), ExitStack() as stack:
            for layer in dict.fromkeys(layer for layer, _ in heads):
                columns = [column for column, (of_layer, _) in enumerate(heads) if of_layer == layer]
                asked = reader.of_heads(columns, [heads[column][1] for column in columns])
                stack.enter_context(on_pattern(opened.anatomy.port(layer, "pattern").module, asked))
            encoded = opened.encode(batch)
            inputs = {name: value[rows] for name, value in batch.items()}
            inputs |= {name: value[[pairs[number].query for number in numbers]] for name, value in query_inputs.items()}
            summary.scores[numbers] = ranker.compare(encoded[rows], inputs).cpu().numpy()
        if progress is not None:
            progress(len(numbers))
    return summary


class _Reader:
    """Sums up the attention weights of a batch of sequences, layer by layer, as they pass.

    Args:
        summary: where the results go.
        numbers: the places of the batch's ``R`` pairs in the results, ``[R]``.
        rows: for each of these pairs, the sequence of the batch that is its own, ``[R]``; equal sequences are run once.
        at: the labels of the positions of each pair, ``[R, S]``.
        features: the features asked for.
    """

    def __init__(
        self, summary: AttentionSummary, numbers: np.ndarray, rows: np.ndarray, at: Labels, features: Sequence[str]
    ):
        self.summary, self.numbers, self.rows = summary, numbers, rows
        attended = at.attended == 1
        every = torch.arange(len(TOKEN_CLASSES), device=attended.device)[:, None]
        self.to_class = ((at.classes[:, None] == every) & attended[:, None]).float()
        self.from_class = self.to_class / self.to_class.sum(dim=2, keepdim=True)
        beyond_sink = attended[:, :, None] & attended[:, None]
        beyond_sink[:, :, 0] = False
        masks = [ATTENTION_FEATURES[feature](at) & beyond_sink for feature in features]
        self.position_masks = torch.stack([*masks, beyond_sink], dim=1).float()

    def of_heads(self, columns: list[int], heads: list[int]) -> OnPattern:
        """What reads the pattern of a layer: the heads asked for, and where their results go."""

        def read(pattern: Tensor) -> None:
            for begin in range(0, len(self.rows), len(pattern)):
                chunk = slice(begin, begin + len(pattern))
                weights = pattern[self.rows[chunk, None], heads].float()
                into = np.ix_(self.numbers[chunk], np.array(columns))
                classes = self.from_class[chunk, None] @ (weights @ self.to_class[chunk, None].mT)
                self.summary.classes[into] = classes.cpu().numpy()
                if self.position_masks.shape[1] > 1:
                    mass = weights.flatten(2) @ self.position_masks[chunk].flatten(2).mT
                    self.summary.features[into] = (mass[..., :-1] / mass[..., -1:]).cpu().numpy()

        return read


def labels_of(
    pairs: Sequence[AlignedPair], tokenizer: PreTrainedTokenizerBase, is_rare: Callable[[str], bool]
) -> list[np.ndarray]:
    """What the positions of the perturbed side of each pair are: ``[label, S]``, in the order of :class:`Labels`.

    Args:
        pairs: the pairs.
        tokenizer: what made them.
        is_rare: whether a word, lower-cased, is rare.
    """
    words = _Words(tokenizer)
    found = [words.of(pair) for pair in pairs]
    rare = np.array([is_rare(word) for word in words.known], dtype=bool)
    return [
        np.stack(
            [
                *(pair.classes, pair.segments, numbers, occurrences),
                (numbers >= 0) & rare[numbers] if len(rare) else np.zeros_like(numbers),
                pair.perturbed.mask,
            ]
        )
        for pair, (numbers, occurrences) in zip(pairs, found, strict=True)
    ]


class _Words:
    """The words of sequences, numbered as they are found.

    Args:
        tokenizer: what made the sequences.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._numbers: dict[tuple[int, ...], int] = {}
        self.known: dict[str, int] = {}

    def of(self, pair: AlignedPair) -> tuple[np.ndarray, np.ndarray]:
        """For each position of the perturbed side, the number of its word and of its occurrence; -1 without a word."""
        numbers, occurrences = np.full_like(pair.words, -1), np.full_like(pair.words, -1)
        at = np.flatnonzero(pair.words >= 0)
        starts = np.flatnonzero((np.diff(pair.words[at]) != 0) | (np.diff(pair.segments[at]) != 0)) + 1
        bounds = [0, *starts.tolist(), len(at)]
        ids = pair.perturbed.ids[at].tolist()
        of_occurrences = [self._number(tuple(ids[begin:end])) for begin, end in pairwise(bounds)]
        numbers[at] = np.repeat(of_occurrences, np.diff(bounds))
        occurrences[at] = np.repeat(np.arange(len(of_occurrences)), np.diff(bounds))
        return numbers, occurrences

    def _number(self, ids: tuple[int, ...]) -> int:
        if ids not in self._numbers:
            is_known = self._tokenizer.unk_token_id not in ids
            written: Any = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) if is_known else ""
            word = " ".join(lowercase_words(written))
            self._numbers[ids] = self.known.setdefault(word, len(self.known)) if word else -1
        return self._numbers[ids]
