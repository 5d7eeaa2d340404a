"""Sparse autoencoders: activations as sums of features, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pyterrier_mechir.models.modes import as_alone, over_same_memory

_KINDS = ("standard", "topk", "jumprelu")

_ACTIVATIONS = ("relu", "tanh-relu")


class Autoencoder(Protocol):
    """Anything that tells what features an activation has, and what activation they make.

    Both act on the last axis, position by position: ``encode`` from ``[..., d]`` to ``[..., n_features]``, ``decode``
    back. Autoencoders of SAELens are such.
    """

    def encode(self, x: Tensor) -> Tensor:
        """The features of activations."""

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The activations that features make."""


class SparseAutoencoder:
    """A sparse autoencoder as SAELens saves it, for inference.

    With x the activation less ``b_dec`` (where ``apply_b_dec_to_input`` says so), the features are ReLU(x W_enc +
    b_enc) (``standard``), of these only where x W_enc + b_enc is above a threshold (``jumprelu``, as which batch top-k
    is saved too), or the k largest (``topk``, whose pre-activations may be scaled by the norms of the decoder). The
    activation that features f make is f W_dec + b_dec.

    Args:
        weights: ``W_enc`` ``[d, n_features]``, ``b_enc``, ``W_dec`` ``[n_features, d]``, ``b_dec`` and, for jumprelu,
            ``threshold`` ``[n_features]``.
        kind: ``standard``, ``topk`` or ``jumprelu``.
        k: how many features a top-k autoencoder keeps.
        centres_input: whether ``b_dec`` is taken off the input.
        activation: ``relu``, or ``tanh-relu``: the hyperbolic tangent of what is written ReLU above.
        rescales: whether a top-k autoencoder multiplies each feature by the norm of its row of ``W_dec`` before the k
            largest are taken, and divides by that norm again in ``decode``.

    Raises:
        ValueError: an unknown kind or activation, or weights that are missing or not known.
    """

    @as_alone()
    def __init__(
        self,
        weights: Mapping[str, Tensor],
        kind: str = "standard",
        *,
        k: int | None = None,
        centres_input: bool = True,
        activation: str = "relu",
        rescales: bool = False,
    ):
        if kind not in _KINDS:
            raise ValueError(f"an autoencoder of architecture {kind!r} is not known here; {', '.join(_KINDS)} are.")
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"an autoencoder of activation {activation!r} is not known here; {', '.join(_ACTIVATIONS)} are."
            )
        needed = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else [])]
        if missing := [name for name in needed if name not in weights]:
            raise ValueError(f"the autoencoder has no weights {', '.join(missing)}.")
        if unknown := sorted(set(weights).difference(needed, ["threshold"])):
            raise ValueError(f"the autoencoder has weights {', '.join(unknown)}, which are not known here.")
        if kind == "topk" and not k:
            raise ValueError("a top-k autoencoder needs k, the number of features that it keeps.")
        self.weights = {name: over_same_memory(weights[name].detach()) for name in needed}
        self.kind = kind
        self.k = k
        self.centres_input = centres_input
        self.activation = activation
        self.rescales = rescales and kind == "topk"

    @classmethod
    def load(cls, directory: str | Path, dtype: torch.dtype = torch.float32) -> SparseAutoencoder:
        """Read ``cfg.json`` and ``sae_weights.safetensors``, as any version of SAELens writes them.

        Args:
            directory: where they are.
            dtype: of the weights.

        Raises:
            ValueError: the files are not there, or say something that is not supported; the message names it.
        """
        from pyterrier_mechir.models.autoencoder_files import read_autoencoder

        weights, options = read_autoencoder(directory)
        return cls({name: value.to(dtype) for name, value in weights.items()}, **options)

    @property
    def n_features(self) -> int:
        """How many features it has."""
        return int(self.weights["W_dec"].shape[0])

    def encode(self, x: Tensor) -> Tensor:
        """The features of activations: ``[..., d]`` to ``[..., n_features]``."""
        weights = self._on(x)
        x = x - weights["b_dec"] if self.centres_input else x
        before = x @ weights["W_enc"] + weights["b_enc"]
        if self.kind == "jumprelu":
            return self._activated(before) * (before > weights["threshold"])
        if self.kind == "topk":
            before = before * weights["W_dec"].norm(dim=-1) if self.rescales else before
            top = before.topk(min(self.k or 0, before.shape[-1]), dim=-1)
            return torch.zeros_like(before).scatter(-1, top.indices, self._activated(top.values))
        return self._activated(before)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The activations that features make: ``[..., n_features]`` to ``[..., d]``."""
        weights = self._on(feature_acts)
        if self.rescales:
            feature_acts = feature_acts / weights["W_dec"].norm(dim=-1)
        return feature_acts @ weights["W_dec"] + weights["b_dec"]

    def _activated(self, before: Tensor) -> Tensor:
        positive = before.relu()
        return positive.tanh() if self.activation == "tanh-relu" else positive

    def _on(self, like: Tensor) -> dict[str, Tensor]:
        """The weights on the device of a tensor, where they stay."""
        if self.weights["W_dec"].device != like.device:
            self.weights = {name: value.to(like.device) for name, value in self.weights.items()}
        return self.weights

    def __repr__(self) -> str:
        return f"SparseAutoencoder({self.kind!r}, d={self.weights['W_dec'].shape[1]}, n_features={self.n_features})"


def n_features(autoencoder: Any, width: int, device: torch.device) -> int:
    """The number of features of an autoencoder, found out by encoding and decoding an activation of zeros.

    Args:
        autoencoder: what should be an :class:`Autoencoder`.
        width: how many features the activation has that it is to encode.
        device: where it runs.

    Raises:
        TypeError: it has no ``encode`` and ``decode``.
        ValueError: it does not take activations of that width, or does not give them back.
    """
    if not all(callable(getattr(autoencoder, name, None)) for name in ("encode", "decode")):
        raise TypeError(f"an autoencoder should have encode and decode, which a {type(autoencoder).__name__} has not.")
    with torch.no_grad():
        try:
            found = autoencoder.encode(torch.zeros(1, 1, width, device=device))
            back = autoencoder.decode(found)
        except RuntimeError as error:
            raise ValueError(f"{autoencoder!r} does not take activations of width {width}: {error}") from error
    if back.shape[-1] != width:
        raise ValueError(f"{autoencoder!r} gives activations of width {back.shape[-1]}, not {width}.")
    return int(found.shape[-1])
