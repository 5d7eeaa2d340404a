"""What a command says of warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_warnings() -> Iterator[None]:
    """Show the warnings that are addressed to the user, one line each, and no others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if warning.category is UserWarning:
            print(f"Note: {warning.message}", flush=True)
