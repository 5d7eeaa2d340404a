"""What takes the place of an activation that is ablated: means of reference texts, and activations of other texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyterrier_mechir.interventions.means import POSITION_CLASSES, Means, texts_of
from pyterrier_mechir.models.edits import Rows
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.recording import Key, record
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker

_MOST_TEXTS = 64
"""Texts of which activations are kept whole, to be drawn from."""


def head_means(ranker: Any, reference: pd.DataFrame | Sequence[str], *, per: str | None = None) -> Means:
    """The mean output z of the attention heads over reference texts: what ``Ablate(by="mean")`` puts in their place.

    Means are over the positions that are attended to, of each distinct text (of rankers that read query and document
    together, of each pair) once. A bi-encoder's are those of its documents, for queries too, so that an edit of both
    sides is one constant, which weights can hold.

    Args:
        ranker: a ranker.
        reference: a frame with ``query`` and ``text``, or, for rankers that encode texts apart, a list of texts.
        per: ``"position class"`` takes a mean for each of :data:`POSITION_CLASSES`; None takes one.

    Returns:
        The means, by ``(layer, "z")``, float32 ``[D]`` with the heads side by side, or ``[class, D]``.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: a reference without texts, or texts alone for a ranker that reads the query with them.
    """
    made = document_ranker(ranker)
    return means(made, reference, [(layer, "z") for layer in range(made.n_layers)], per)


@as_alone()
@torch.no_grad()
def means(ranker: Ranker, reference: Any, keys: Sequence[Key], per: str | None = None) -> Means:
    """The means of some activations; the arguments are as in :func:`head_means`."""
    queries, texts = texts_of(ranker, reference)
    n_classes = 1 if per is None else len(POSITION_CLASSES)
    special = torch.tensor(sorted(ranker.tokenizer.all_special_ids), device=ranker.device)
    sums = {key: torch.zeros((n_classes, ranker.anatomy.width(key[1])), dtype=torch.float64) for key in keys}
    counts = {key: torch.zeros((n_classes, 1), dtype=torch.float64) for key in keys}
    encoding = ranker.opened.encoding
    for shared in ranker.parts(queries, texts):
        run = record(encoding, shared.batch, list(keys))
        for key in keys:
            value = run[key].double().cpu()
            weights = _weights(shared.batch, special, value.shape[1], per is not None).cpu()
            sums[key] += torch.einsum("bsc,bsd->cd", weights, value)
            counts[key] += weights.sum((0, 1))[:, None]
    found = {key: (sums[key] / counts[key].clamp_min(1)).float().numpy() for key in keys}
    return Means(
        {key: value if per else value[0] for key, value in found.items()}, len(set(zip(queries, texts, strict=True)))
    )


def _weights(batch: Mapping[str, Tensor], special: Tensor, length: int, by_class: bool) -> Tensor:
    """Which positions of an activation count, and for which class, ``[B, S, class]``."""
    mask = batch["attention_mask"]
    if length != mask.shape[1]:  # a decoder's own positions
        n_classes = len(POSITION_CLASSES) if by_class else 1
        return torch.nn.functional.one_hot(mask.new_zeros((len(mask), length)), n_classes).double()
    if not by_class:
        return mask.double().unsqueeze(-1)
    classes = position_classes(batch["input_ids"], special)
    return torch.nn.functional.one_hot(classes, len(POSITION_CLASSES)).double() * mask.double().unsqueeze(-1)


def position_classes(ids: Tensor, special: Tensor) -> Tensor:
    """The class of each position, as a place in :data:`POSITION_CLASSES`, ``[B, S]``."""
    is_special = torch.isin(ids, special)
    classes = 2 + (is_special.cumsum(1) > 1).long()
    classes[is_special] = 1
    classes[:, 0] = 0
    return classes


@dataclass(frozen=True)
class ByClass:
    """Gives each position the mean of its class, for an edit.

    Args:
        table: float32 ``[class, columns]``.
        special: ids of special tokens.
    """

    table: Tensor
    special: Tensor

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        assert rows.ids is not None
        classes = position_classes(rows.ids, self.special.to(rows.ids.device))[:, : value.shape[1]]
        return self.table.to(value)[classes]


@dataclass(frozen=True)
class Drawn:
    """Gives each text the activation of another text, for an edit.

    Args:
        table: of the other texts, ``[text, S, columns]``.
        sizes: how long each is.
        known: their numbers, by :func:`_hashed`.
        factors: what these are made with.
    """

    table: Tensor
    sizes: Tensor
    known: Tensor
    factors: Tensor

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        assert rows.ids is not None
        mask = torch.ones_like(rows.ids) if rows.mask is None else rows.mask
        own = _hashed(rows.ids, mask, self.factors).cpu()
        which = own % len(self.known)
        which = torch.where(self.known[which] == own, (which + 1) % len(self.known), which)
        places = torch.arange(value.shape[1])[None] % self.sizes[which][:, None]
        return self.table[which[:, None], places].to(value)


@as_alone()
@torch.no_grad()
def drawn(ranker: Ranker, reference: Any, key: Key, columns: slice, seed: int) -> Drawn:
    """What gives each text the activation of another text of a reference, always the same.

    Position p takes the other text's position p, and begins again where that ends.

    Args:
        ranker: the ranker.
        reference: as in :func:`head_means`; of many texts, 64 are kept.
        key: the (layer, activation).
        columns: which of its features.
        seed: of the draw, which depends on it and on the text's tokens only.
    """
    queries, texts = texts_of(ranker, reference)
    pairs = sorted(set(zip(queries, texts, strict=True)))
    rng = np.random.default_rng(seed)
    chosen = [pairs[i] for i in sorted(rng.permutation(len(pairs))[:_MOST_TEXTS])]
    if len(chosen) < 2:
        raise ValueError("resample takes another text's activation, and the reference has only one text; give more.")
    factors = torch.from_numpy(rng.integers(1, 2**40, ranker.max_length + 1024))
    values, hashes = [], []
    for shared in ranker.parts([query for query, _ in chosen], [text for _, text in chosen]):
        run = record(ranker.opened.encoding, shared.batch, [key])[key]
        hashes.append(_hashed(shared.batch["input_ids"], shared.batch["attention_mask"], factors))
        lengths = shared.batch["attention_mask"].sum(1).tolist()
        values += [value[:length, columns].cpu() for value, length in zip(run, lengths, strict=True)]
    table = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    return Drawn(table, torch.tensor([len(value) for value in values]), torch.cat(hashes).cpu(), factors)


def _hashed(ids: Tensor, mask: Tensor, factors: Tensor) -> Tensor:
    """A number of each row of token ids, whatever its padding, ``[B]``."""
    weights = factors[: ids.shape[1]].to(ids.device)
    return ((ids + 1) * mask * weights).sum(1).remainder(2**31 - 1)
