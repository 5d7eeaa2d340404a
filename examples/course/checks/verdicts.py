"""What a self-check is, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """What a check says.

    Args:
        state: ``right``, ``wrong``, or ``open`` where there is no answer yet.
        message: what the answer shows, or which mistake it looks like.
    """

    state: str
    message: str

    def _repr_markdown_(self) -> str:
        return {"right": "**Right.** ", "wrong": "**Not yet.** ", "open": ""}[self.state] + self.message


OPEN = Verdict("open", "Not answered yet: put your answer in the place of `...`.")


def right(message: str) -> Verdict:
    return Verdict("right", message)


def wrong(message: str) -> Verdict:
    return Verdict("wrong", message)


def exercise(expected: str) -> Callable[[Callable[..., Verdict]], Callable[..., Verdict]]:
    """Makes a check, of one or several answers, one that notices when there is none.

    Args:
        expected: what the answer should be, in words.
    """

    def checked(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
        @wraps(check)
        def verdict(*given: Any) -> Verdict:
            answers = [one for part in given for one in (part.values() if isinstance(part, Mapping) else [part])]
            if any(answer is ... for answer in answers):
                return OPEN
            try:
                return check(*given)
            except Unanswered:
                return OPEN
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                kind = type(given[0]).__name__
                return wrong(f"Expected is {expected}; this is of the type {kind}, and cannot be checked: {error}.")

        return verdict

    return checked


class Unanswered(Exception):
    """A function of the student gives ``...``."""


def answered(value: Any) -> Any:
    if value is ...:
        raise Unanswered
    return value


def number(value: Any) -> float:
    """A number, also from a series or an array that has only this one."""
    return float(value.item() if getattr(value, "size", None) == 1 and hasattr(value, "item") else value)


def same(one: Any, other: Any, tolerance: float = 1e-3) -> bool:
    """Whether two numbers are the same, or within a share of the second one."""
    first, second = number(one), number(other)
    return abs(first - second) <= tolerance * max(abs(second), 1e-9)


def looks_like(answer: Any, mistakes: Mapping[str, Any], otherwise: str) -> Verdict:
    """The mistake whose number an answer is."""
    found = [message for message, mistaken in mistakes.items() if same(answer, mistaken)]
    return wrong(found[0] if found else otherwise)


def choice(answer: Any, correct: str, because: Mapping[str, str]) -> Verdict:
    """The verdict on one letter of several, each of which has what is to be said of it."""
    letter = str(answer).strip().lower()
    if letter not in because:
        return wrong(f"Choose one of the letters {', '.join(because)}.")
    return right(because[letter]) if letter == correct else wrong(because[letter])
