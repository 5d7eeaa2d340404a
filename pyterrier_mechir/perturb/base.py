"""What a perturbation is: a function from a text, and perhaps its query, to the perturbed text."""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, overload

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.alignment import ALIGNMENTS


def seeded(seed: int, *texts: str) -> int:
    """A seed that depends on the texts alone: the same in every process, order and batch."""
    digest = hashlib.blake2b("\x1f".join([str(seed), *texts]).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


class Perturbation(ABC):
    """A minimal pair: how a text is changed.

    Subclasses implement :meth:`__call__` and keep their settings as attributes of the same names as their constructor's
    parameters; equality, hash and repr follow from these.

    Attributes:
        name: what the ``perturbation`` column says.
        alignment: how the two sides correspond, one of ``fill``, ``mask``, ``swap``, ``permute``, ``free``
            (see :data:`pyterrier_mechir.perturb.alignment.ALIGNMENTS`).
    """

    alignment: str = "fill"

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def __call__(self, text: str, query: str) -> str | None:
        """The perturbed text, or None where the perturbation does not apply."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        one_of("alignment", cls.alignment, ALIGNMENTS)

    def _settings(self) -> dict[str, Any]:
        parameters = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in parameters if name != "self" and hasattr(self, name)}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        given = (f"{k}={v!r}" for k, v in self._settings().items() if v != parameters[k].default)
        return f"{type(self).__name__}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Perturbation):
            return NotImplemented
        return type(self) is type(other) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash((type(self), *self._settings().values()))

    def _random(self, seed: int, text: str, query: str) -> random.Random:
        return random.Random(seeded(seed, query, text))


class Identity(Perturbation):
    """Leaves every text as it is: the control whose effects are all missing."""

    def __call__(self, text: str, query: str) -> str:
        return text


class FunctionPerturbation(Perturbation):
    """A plain function as a perturbation; made by :func:`perturbation`.

    Args:
        function: of (text) or (text, query); returns the perturbed text, or None where it does not apply.
        alignment: see :class:`Perturbation`.

    Raises:
        ValueError: an unknown alignment, or a function of another number of arguments.
    """

    def __init__(self, function: Callable[..., str | None], alignment: str = "fill"):
        update_wrapper(self, function)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        positional = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if len(positional) not in (1, 2):
            raise ValueError(f"{self.name} should take (text) or (text, query), not {len(positional)} arguments.")
        self.function = function
        self.alignment = one_of("alignment", alignment, ALIGNMENTS)
        self._takes_query = len(positional) == 2

    @property
    def name(self) -> str:
        return self.__name__

    def __reduce__(self) -> Any:
        """A decorated function is pickled as what its module calls it; any other with its function."""
        in_module = getattr(sys.modules.get(self.__module__), self.__name__, None)
        return self.__name__ if in_module is self else (FunctionPerturbation, (self.function, self.alignment))

    def __call__(self, text: str, query: str = "") -> str | None:
        return self.function(text, query) if self._takes_query else self.function(text)

    def __repr__(self) -> str:
        return self.name


@overload
def perturbation(function: Callable[..., str | None]) -> FunctionPerturbation: ...


@overload
def perturbation(*, alignment: str = ...) -> Callable[[Callable[..., str | None]], FunctionPerturbation]: ...


def perturbation(function: Callable[..., str | None] | None = None, *, alignment: str = "fill") -> Any:
    """Make a perturbation of a plain function of (text) or (text, query).

    Used bare, ``@perturbation``, or with the alignment, ``@perturbation(alignment="permute")``. The function returns
    the perturbed text, or None where it does not apply.

    Example::

        @perturbation
        def shout(text, query):
            return text + " " + query.upper()
    """
    if function is None:
        return lambda function: FunctionPerturbation(function, alignment)
    return FunctionPerturbation(function, alignment)
