"""Collections for the commands."""

from __future__ import annotations

from typing import Any

import pyterrier as pt

from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.retrieval import quiet


def collection(name: str, *parts: str) -> list[Any]:
    """A dataset of PyTerrier, and some of its parts.

    Args:
        name: of the dataset.
        parts: ``topics``, ``qrels``.

    Raises:
        CommandError: there is no such dataset, or it cannot be read.
    """
    try:
        with quiet():
            dataset = pt.get_dataset(name)
            return [dataset, *(getattr(dataset, f"get_{part}")() for part in parts)]
    except Exception as error:
        reason = next((str(argument) for argument in error.args if argument), type(error).__name__)
        raise CommandError(f"cannot read the dataset {name!r}: {reason}") from error
