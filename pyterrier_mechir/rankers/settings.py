"""What the files of a bi-encoder may say of how it pools and compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

POOLINGS = ("cls", "mean", "last")

SIMILARITIES = ("dot", "cosine")


@dataclass(frozen=True)
class Modules:
    """The options of a ranker that a sentence-transformers checkpoint fixes by its modules; None for all others."""

    subfolder: str = ""
    pooling: str | None = None
    similarity: str | None = None
    query_prefix: str | None = None
    doc_prefix: str | None = None
    max_length: int | None = None
    max_query_length: int | None = None
    lowercase: bool = False
    activation: str | None = None
    projection: nn.Sequential | None = None
