"""Warnings of the parts of a run, told once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyterrier_mechir.checks import warn

_COUNT = re.compile(r"(\d+) (?:of \d+ )?")
_NUMBER = re.compile(r"\d+")


class Notes:
    """What the parts of a run warn of, with the counts of the same warning summed."""

    def __init__(self) -> None:
        self._counted: dict[str, int] = {}
        self._others: dict[str, tuple[str, int]] = {}

    def add(self, message: str) -> None:
        """Add a warning."""
        if counted := _COUNT.match(message):
            text = message[counted.end() :]
            self._counted[text] = self._counted.get(text, 0) + int(counted[1])
        else:
            first, n = self._others.get(_NUMBER.sub("#", message), (message, 0))
            self._others[_NUMBER.sub("#", message)] = first, n + 1

    @property
    def messages(self) -> list[str]:
        """The warnings, one of each kind."""
        counted = [f"{n} {text}" for text, n in self._counted.items()]
        others = [text if n == 1 else f"{text} ({n} parts of the run say so.)" for text, n in self._others.values()]
        return counted + others

    def tell(self) -> None:
        """Warn of all."""
        for message in self.messages:
            warn(message)


@contextmanager
def heard(add: Any) -> Iterator[None]:
    """Give the text of each warning that is meant for the user to a function instead of showing it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def hear(message: Warning | str, category: type[Warning], *where: Any, **how: Any) -> None:
            if category is UserWarning:
                add(str(message))
            else:
                show(message, category, *where, **how)

        warnings.showwarning = hear
        yield
