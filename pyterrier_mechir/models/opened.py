"""A model opened up: its parts, and one way to run it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Batch = dict[str, Tensor]
"""The inputs of a ranker's forward; every tensor has the runs on its first axis."""

Forward = Callable[[Batch], Tensor]
"""Runs the model; what it returns has the runs on its first axis."""
