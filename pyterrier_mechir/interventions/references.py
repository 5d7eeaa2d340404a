"""What takes the place of an ablated activation: zeros, means of reference texts, or activations of other texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyterrier_mechir.interventions.means import POSITION_CLASSES, Means, texts_of
from pyterrier_mechir.models.edits import Affine, Placed, Rows
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
        per: ``"position class"`` takes a mean for each of
            :data:`~pyterrier_mechir.interventions.means.POSITION_CLASSES`; None takes one.

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
    """The class of each position, as a place in ``POSITION_CLASSES``, ``[B, S]``."""
    is_special = torch.isin(ids, special)
    classes = 2 + (is_special.cumsum(1) > 1).long()
    classes[is_special] = 1
    classes[:, 0] = 0
    return classes


@dataclass(frozen=True)
class ByClass:
    """Gives each position the mean of its class, for an edit.

    Args:
        table: float32 ``[class, D]``.
        special: ids of special tokens.
    """

    table: Tensor
    special: Tensor

    def __call__(self, value: Tensor, rows: Rows) -> Tensor:
        assert rows.ids is not None
        classes = position_classes(rows.ids, self.special.to(rows.ids.device))[:, : value.shape[1]]
        return self.table.to(value)[classes]

    def at(self, columns: slice) -> ByClass:
        """The same of some of the features."""
        return replace(self, table=self.table[:, columns])


@dataclass(frozen=True)
class Drawn:
    """Gives each text the activation of another text, for an edit.

    Args:
        table: of the other texts, ``[text, S, D]``.
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

    def at(self, columns: slice) -> Drawn:
        """The same of some of the features."""
        return replace(self, table=self.table[..., columns])


@as_alone()
@torch.no_grad()
def drawn(ranker: Ranker, reference: Any, key: Key, seed: int) -> Drawn:
    """What gives each text the activation of another text of a reference, always the same.

    Position p takes the other text's position p, and begins again where that ends.

    Args:
        ranker: the ranker.
        reference: as in :func:`head_means`; of many texts, 64 are kept.
        key: the (layer, activation).
        seed: of the draw, which depends on it and on the text's tokens only.

    Raises:
        ValueError: the reference has one text only, or the texts of the model cannot be told apart.
    """
    if ranker.anatomy.cross_attends:
        raise ValueError(
            "a decoder that reads an encoder does not tell texts apart by its own tokens, so that nothing can be drawn "
            "for them; ablate by zero or mean, or edit ranker.on('encoder')."
        )
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
        values += [value[:length].cpu() for value, length in zip(run, lengths, strict=True)]
    table = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    return Drawn(table, torch.tensor([len(value) for value in values]), torch.cat(hashes).cpu(), factors)


def _hashed(ids: Tensor, mask: Tensor, factors: Tensor) -> Tensor:
    """A number of each row of token ids, whatever its padding, ``[B]``."""
    weights = factors[: ids.shape[1]].to(ids.device)
    return ((ids + 1) * mask * weights).sum(1).remainder(2**31 - 1)


Given = Mapping[Key, "Tensor | ByClass | Drawn"]
"""What takes the place of each activation as a whole: ``[D]`` for every position, or what gives it for the rows of a
batch."""


def given_for(
    ranker: Ranker, keys: Sequence[Key], by: str, reference: Any = None, per: str | None = None, seed: int = 0
) -> Given:
    """What takes the place of some activations that are ablated.

    Args:
        ranker: the ranker.
        keys: the (layer, activation) of each.
        by: as in :class:`~pyterrier_mechir.Ablate`, and so are the others.
        reference: a frame, texts, or means.
        per: whether positions have means by their classes.
        seed: of what is drawn.

    Raises:
        ValueError: a reference that has no texts or too few, or means that lack an activation; or texts that cannot be
            told apart.
    """
    if by == "zero":
        return {key: torch.zeros(ranker.anatomy.width(key[1]), device=ranker.device) for key in keys}
    if by == "resample":
        return {key: drawn(ranker, reference, key, seed) for key in keys}
    known = known_means(ranker, reference, keys, per)
    tables = {key: torch.from_numpy(known[key]).to(ranker.device) for key in keys}
    special = torch.tensor(ranker.tokenizer.all_special_ids)
    return {key: ByClass(table, special) if table.ndim == 2 else table for key, table in tables.items()}


def known_means(ranker: Ranker, reference: Any, keys: Sequence[Key], per: str | None = None) -> Means:
    """The means that are given, or those of the texts that are given.

    Raises:
        ValueError: the means lack an activation; or as :func:`head_means`.
    """
    if not isinstance(reference, Means):
        return means(ranker, reference, keys, per)
    lacking = next((key for key in keys if key not in reference), None)
    if lacking is not None:
        raise ValueError(
            f"the means that are given have no {lacking[1]} of layer {lacking[0]}; give a frame or texts instead."
        )
    return reference


def placed_at(key: Key, columns: slice, value: Tensor | ByClass | Drawn, decoder: bool) -> Affine | Placed:
    """What takes the place of some features of an activation, as an edit of the model."""
    if isinstance(value, Tensor):
        return Affine(key, columns, 0.0, value[columns], decoder)
    return Placed(key, columns, value.at(columns), decoder)
