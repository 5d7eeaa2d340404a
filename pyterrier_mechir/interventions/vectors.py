"""Vectors that are added to activations, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyterrier_mechir.models.components import CODED_COMPONENTS
from pyterrier_mechir.models.sites import Site, activation_of, check_site, parse_site
from pyterrier_mechir.rankers.base import Ranker


class Vectors(Mapping[str, np.ndarray]):
    """Names of sites and what is added there; equal where the numbers are, and short to print."""

    def __init__(self, vectors: Mapping[str, Any]):
        self._vectors = {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._vectors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def _key(self) -> tuple[tuple[str, bytes], ...]:
        return tuple((name, vector.tobytes()) for name, vector in self._vectors.items())

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Vectors) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name!r}: {list(vector.shape)}' for name, vector in self.items())}}}"


Place = tuple[tuple[int, str], slice]
"""The (layer, activation) that a site is in, and which columns of the activation are the site's."""


def place_of(ranker: Ranker, name: str) -> Place:
    """Where a site is edited.

    Args:
        ranker: the model.
        name: of the site: a stream, an output of a layer or a head, such as ``"L5.resid_post"``.

    Returns:
        The (layer, activation) that the site is in, and which columns of the activation are the site's.

    Raises:
        ValueError: the model has no such site, or it is none whose activation is as wide for every text.
    """
    site, anatomy = parse_site(name), ranker.anatomy
    if not isinstance(site, Site) or "pattern" in site.component or site.component in CODED_COMPONENTS:
        raise ValueError(
            f"{name!r} is no site to edit; name a stream, an output, a head or a neuron, such as 'L5.resid_post'."
        )
    key = activation_of(site, ranker.n_layers)
    groups = anatomy.groups(key[1])
    check_site(site, anatomy)
    width = anatomy.width(key[1])
    size = width // groups
    return key, slice(0, width) if site.number is None else slice(site.number * size, (site.number + 1) * size)
