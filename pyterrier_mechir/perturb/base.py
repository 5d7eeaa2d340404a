"""What a perturbation is: a function from a text, and perhaps its query, to a minimal pair.

A minimal pair is a baseline text and a perturbed text that differ by one change. :class:`Perturbation` is the base of
all; :func:`perturbation` makes one of a plain function; :class:`Chain` puts one after another.
"""

from __future__ import annotations

import inspect
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, NamedTuple, TypeVar

from pyterrier_mechir._options import one_of
from pyterrier_mechir.perturb.correspond import corresponds, joint_alignment
from pyterrier_mechir.text.alignment import ALIGNMENTS
from pyterrier_mechir.text.similar import Embedder
from pyterrier_mechir.text.words import seeded

SIGNS = ("+", "-", "+0", "-0", "0")
"""What an axiom expects of s_p - s_b: more than 0, less, not less, not more, or no change."""

NO_SIGN = "none"
"""What the ``expected_sign`` column says where nothing is expected."""

Self = TypeVar("Self", bound="Perturbation")


class Pair(NamedTuple):
    """A minimal pair of texts.

    Args:
        baseline: the text that is compared with: the text given, or another that the perturbation made of it.
        perturbed: the text with the change.
        by: the perturbation that made the pair; of a composition, the one that was used.
    """

    baseline: str
    perturbed: str
    by: Perturbation


class Perturbation(ABC):
    """How a minimal pair is made of a text: what is changed, how its sides correspond, and what that should do.

    Subclasses implement ``__call__`` and keep their settings as attributes of the same names as their constructor's
    parameters; equality, hash and repr follow from these. ``a | b`` applies one after the other.

    Attributes:
        name: what the ``perturbation`` column says.
        alignment: how the two sides correspond, one of ``fill``, ``mask``, ``swap``, ``permute``, ``free``
            (see :data:`pyterrier_mechir.text.alignment.ALIGNMENTS`).
        sign: what is expected of s_p - s_b (see :data:`~pyterrier_mechir.perturb.base.SIGNS`); None where
            nothing is claimed.
        own_baseline: whether the baseline is another text than the one given, so that ``__call__`` gives both.
        fits_queries: whether it can apply to a query as the text, which has no words beside the query's.
        statement: the axiom, or what the perturbation does to a text, in one sentence.
        change: what is exchanged for what.
        source: where it comes from.
    """

    alignment: str = "fill"
    sign: str | None = None
    own_baseline: bool = False
    fits_queries: bool = True
    statement: str = ""
    change: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def __call__(self, text: str, query: str) -> str | tuple[str, str] | None:
        """Perturb a text.

        Args:
            text: the text: a document, or a query where queries are perturbed.
            query: the query that the text stands beside.

        Returns:
            The perturbed text, or with ``own_baseline`` the baseline and the perturbed text; None where the
            perturbation does not apply, such as a query term's where the text has none.
        """

    def pair(self, text: str, query: str) -> Pair | None:
        """The minimal pair that ``__call__`` makes of a text, or None where the perturbation does not apply.

        Raises:
            TypeError: the perturbation gave something that is not a text.
        """
        made = self(text, query)
        if made is None:
            return None
        sides = made if self.own_baseline and isinstance(made, tuple) else (text, made)
        wrong = [type(side).__name__ for side in sides if not isinstance(side, str)]
        if wrong or len(sides) != 2:
            expected = "(baseline, perturbed)" if self.own_baseline else "the perturbed text"
            raise TypeError(
                f"the perturbation {self.name!r} gave {f'a {wrong[0]}' if wrong else f'{len(sides)} texts'}; it should "
                f"give {expected}, or None where it does not apply."
            )
        baseline, perturbed = sides
        return Pair(baseline, perturbed, self)  # type: ignore[arg-type]

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether a pair is what the perturbation claims to make, whoever made it.

        Its sides have to correspond as the alignment says, and the premises of the axiom to be given.
        """
        return corresponds(self.alignment, baseline, perturbed) and self._claim(baseline, perturbed, query)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        """The premises of the axiom, for sides that correspond."""
        return True

    @property
    def members(self) -> tuple[Perturbation, ...]:
        """The perturbations that may be the ``by`` of a pair: itself, or those of a composition."""
        return (self,)

    def bind(self: Self, ranker: Embedder) -> Self:
        """The perturbation with what it takes from the ranker that will be interpreted.

        That is the ranker's embedding table, to find similar words in, or its tokenizer, to count pieces of words.

        Args:
            ranker: the ranker, or another :class:`~pyterrier_mechir.text.similar.Embedder`.

        Returns:
            The perturbation itself where it takes nothing, or was given it already; else another with the ranker in it.
        """
        return self

    def with_settings(self: Self, **settings: Any) -> Self:
        """A perturbation like this one with some settings, by the names of its constructor's parameters, changed."""
        return type(self)(**{**self._settings(), **settings})

    def __or__(self, other: object) -> Chain:
        return Chain(self, as_perturbation(other))

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        one_of("alignment", cls.alignment, ALIGNMENTS)
        if cls.sign is not None:
            one_of("sign", cls.sign, SIGNS)

    def _settings(self) -> dict[str, Any]:
        parameters = inspect.signature(type(self).__init__).parameters
        names = [
            name for name, p in parameters.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        for name in names:
            if not hasattr(self, name):
                raise AttributeError(
                    f"{type(self).__name__} does not keep its setting {name!r}; set self.{name} in its constructor, so "
                    "that equal perturbations compare equal and its settings can be swept."
                )
        return {name: getattr(self, name) for name in names}

    def described(self) -> str:
        """All settings, those that have their defaults included: ``TFC1(position='end', n=1, ..., seed=0)``."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{self.name}({settings})"

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        given = (f"{k}={v!r}" for k, v in self._settings().items() if v != parameters[k].default)
        return f"{type(self).__name__}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Perturbation):
            return NotImplemented
        return type(self) is type(other) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash((type(self), *map(_hashable, self._settings().values())))

    def _random(self, seed: int, text: str, query: str) -> random.Random:
        """A generator for the random choices of a row, which depend on seed, text and query alone."""
        return random.Random(seeded(seed, query, text))


def _hashable(value: Any) -> Any:
    """A setting as something that has a hash, equal for equal settings."""
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_hashable, value))
    try:
        hash(value)
    except TypeError:
        return type(value).__name__
    return value


class OfPairs(Perturbation):
    """A perturbation that makes its pairs of those of other perturbations, by overriding pair in place of __call__.

    :class:`Chain` takes the baseline of its first perturbation and the perturbed side of its second,
    :class:`~pyterrier_mechir.perturb.OneOf` a pair of one of several, and
    :class:`~pyterrier_mechir.perturb.RandomTerm` a pair with other words in it. Each needs the whole pairs of the
    others, both sides and which perturbation made them, and so implements :meth:`pair`; ``__call__`` follows.
    """

    @abstractmethod
    def pair(self, text: str, query: str) -> Pair | None:
        """The minimal pair made of a text, or None where the perturbation does not apply."""

    def __call__(self, text: str, query: str) -> str | tuple[str, str] | None:
        pair = self.pair(text, query)
        if pair is None:
            return None
        return pair[:2] if self.own_baseline else pair.perturbed


_CLAIMS = ("alignment", "sign", "own_baseline", "check")
"""What is claimed of a function's pairs, told apart from the function's own settings."""


class FunctionPerturbation(Perturbation):
    """A plain function as a perturbation; made by :func:`perturbation`.

    Args:
        function: of (text) or (text, query), perhaps with further keyword settings; returns the perturbed text (with
            ``own_baseline``, the baseline and the perturbed text), or None where it does not apply.
        alignment: see :class:`Perturbation`.
        sign: see :class:`Perturbation`.
        own_baseline: see :class:`Perturbation`.
        check: a function of (baseline, perturbed, query) that says whether a pair is what the function claims, beyond
            its alignment; None claims nothing more.
        settings: values of the function's keyword settings.

    Raises:
        ValueError: an unknown alignment or sign, a function of another number of arguments, or a setting that it does
            not have.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        alignment: str = "fill",
        sign: str | None = None,
        own_baseline: bool = False,
        check: Callable[[str, str, str], bool] | None = None,
        settings: dict[str, Any] | None = None,
    ):
        update_wrapper(self, function)
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        parameters = inspect.signature(function).parameters
        positional = [
            p
            for p in parameters.values()
            if (p.default is p.empty or p.name == "query") and p.kind is not p.VAR_KEYWORD
        ]
        if len(positional) not in (1, 2):
            raise ValueError(f"{self.name} should take (text) or (text, query), not {len(positional)} arguments.")
        self.function = function
        self.alignment = one_of("alignment", alignment, ALIGNMENTS)
        self.sign = None if sign is None else one_of("sign", sign, SIGNS)
        self.own_baseline = own_baseline
        self.check = check
        own = set(parameters) - {p.name for p in positional}
        self.settings = dict(settings or {})
        for name in self.settings:
            one_of(f"setting of {self.name}", name, sorted(own))
        self.statement = (inspect.getdoc(function) or "").partition("\n")[0]
        self._takes_query = len(positional) == 2
        self._origin: FunctionPerturbation | None = None

    @property
    def name(self) -> str:
        return self.__name__

    def with_settings(self, **settings: Any) -> FunctionPerturbation:
        changed = self._settings() | {name: value for name, value in settings.items() if name in _CLAIMS}
        changed["settings"] = self.settings | {k: value for k, value in settings.items() if k not in _CLAIMS}
        made = FunctionPerturbation(**changed)
        made._origin = self._origin or self
        return made

    def __reduce__(self) -> Any:
        """A decorated function is pickled as what its module calls it; any other with its function."""
        in_module = getattr(sys.modules.get(self.__module__), self.__name__, None)
        if in_module is self:
            return self.__name__
        settings = self._settings()
        if in_module is self._origin and self._origin is not None:
            claims = {k: settings[k] for k in _CLAIMS if settings[k] != getattr(self._origin, k)}
            return _replaced, (self._origin, {**claims, **self.settings})
        return FunctionPerturbation, tuple(settings.values())

    def __call__(self, text: str, query: str = "") -> Any:
        return (
            self.function(text, query, **self.settings) if self._takes_query else self.function(text, **self.settings)
        )

    def described(self) -> str:
        return repr(self)

    def _claim(self, baseline: str, perturbed: str, query: str) -> bool:
        return self.check is None or bool(self.check(baseline, perturbed, query))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.name}({settings})" if settings else self.name


def _replaced(origin: FunctionPerturbation, settings: dict[str, Any]) -> FunctionPerturbation:
    """A decorated function with other settings, as it is unpickled."""
    return origin.with_settings(**settings)


def perturbation(
    function: Callable[..., Any] | None = None,
    *,
    alignment: str = "fill",
    sign: str | None = None,
    own_baseline: bool = False,
    check: Callable[[str, str, str], bool] | None = None,
) -> Any:
    """Make a perturbation of a plain function of (text) or (text, query).

    Used bare, ``@perturbation``, or with what it claims, ``@perturbation(alignment="permute", sign="-")``. The function
    returns the perturbed text, or None where it does not apply. Its further parameters, which have defaults, are
    settings that :class:`~pyterrier_mechir.Sweep` can sweep.

    Args:
        function: the function.
        alignment: how the sides correspond.
        sign: what is expected of s_p - s_b, one of :data:`~pyterrier_mechir.perturb.base.SIGNS`; None claims nothing.
        own_baseline: whether the function returns (baseline, perturbed).
        check: a function of (baseline, perturbed, query) that says whether a pair is what the function claims, beyond
            its alignment; None claims nothing more.

    Returns:
        The perturbation; used with claims, ``@perturbation(...)``, what makes one of the function below it.

    Example::

        @perturbation
        def shout(text, query, times=1):
            return text + " " + " ".join([query.upper()] * times)
    """
    claims: dict[str, Any] = {"alignment": alignment, "sign": sign, "own_baseline": own_baseline, "check": check}
    if function is None:
        return lambda function: FunctionPerturbation(function, **claims)
    return FunctionPerturbation(function, **claims)


def as_perturbation(value: object) -> Perturbation:
    """A perturbation as it is, or made of a plain function.

    Raises:
        TypeError: the value is neither.
    """
    if isinstance(value, Perturbation):
        return value
    if isinstance(value, type) and issubclass(value, Perturbation):
        raise TypeError(f"{value.__name__} is a class; give an instance of it: {value.__name__}(...).")
    if callable(value):
        return perturbation(value)
    raise TypeError(f"perturbation should be a Perturbation or a function of (text) or (text, query), not {value!r}.")


class Chain(OfPairs):
    """One perturbation after the other, written ``first | second``: both changes are on the perturbed side.

    Does not apply where either does not.

    Args:
        first: applied to the text.
        second: applied to what the first made of it.

    Raises:
        ValueError: the second has a baseline of its own, which can only be one of the text itself.
    """

    def __init__(self, first: Perturbation, second: Perturbation):
        self.first, self.second = as_perturbation(first), as_perturbation(second)
        if self.second.own_baseline:
            raise ValueError(f"{self.second!r} has a baseline of its own, so it can only come first in a chain.")
        self.own_baseline = self.first.own_baseline
        self.alignment = joint_alignment(m.alignment for p in (self.first, self.second) for m in p.members)
        self.sign = self.first.sign if self.first.sign == self.second.sign else None

    @property
    def name(self) -> str:
        return f"{self.first.name}|{self.second.name}"

    def pair(self, text: str, query: str) -> Pair | None:
        one = self.first.pair(text, query)
        two = None if one is None else self.second.pair(one.perturbed, query)
        return None if one is None or two is None else Pair(one.baseline, two.perturbed, self)

    def holds(self, baseline: str, perturbed: str, query: str) -> bool:
        """Whether the chain makes the pair of the baseline; with its own baseline, whether the sides correspond."""
        if self.own_baseline:
            alignments = {member.alignment for one in (self.first, self.second) for member in one.members}
            return corresponds(alignments.pop() if len(alignments) == 1 else "free", baseline, perturbed)
        return self(baseline, query) == perturbed

    def bind(self, ranker: Embedder) -> Chain:
        """The chain of both perturbations, each bound (see :meth:`Perturbation.bind`)."""
        return Chain(self.first.bind(ranker), self.second.bind(ranker))

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.second!r}"
