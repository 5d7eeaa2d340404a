"""What a verification finds: a row per check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import pandas as pd

OK, WARN, FAIL, SKIPPED = STATUSES = ("ok", "warn", "fail", "skipped")


@dataclass(frozen=True)
class Check:
    """What one check found.

    Args:
        name: of the check.
        status: ``ok``, ``warn`` (it works, and something should be known), ``fail``, or ``skipped``.
        found: what was found, in a sentence.
        meaning: what the check asks, in a sentence.
        advice: what to do; empty where there is nothing to do.
        figure: what was measured, in the unit that ``found`` says; None where nothing was.
        tolerance: the greatest figure that is ``ok``; None where there is none.
        seconds: how long it took.
    """

    name: str
    status: str
    found: str
    meaning: str
    advice: str = ""
    figure: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """Three lines, or two: status, name and figure; what was found; what to do."""
        limit = "" if self.tolerance is None else f" (at most {self.tolerance:.0e})"
        measured = "" if self.figure is None else f"{self.figure:.1e}{limit}"
        lines = [f"{self.status.upper():<8}{self.name:<18}{measured}".rstrip(), f"        {self.meaning} {self.found}"]
        return "\n".join([*lines, *([f"        To do: {self.advice}"] if self.advice else [])])


@dataclass(frozen=True)
class Verification:
    """What all checks of a ranker found.

    Args:
        ranker: what identifies the ranker (its ``about()``).
        checks: what each found.
        versions: of Python, the system, and the packages that take part.
    """

    ranker: Mapping[str, Any]
    checks: tuple[Check, ...]
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != FAIL for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of a name.

        Raises:
            KeyError: there is none.
        """
        found = next((check for check in self.checks if check.name == name), None)
        if found is None:
            raise KeyError(f"no check {name!r}; there are {', '.join(check.name for check in self.checks)}.")
        return found

    @property
    def summary(self) -> str:
        """How many checks found what, in a sentence."""
        counts = {status: sum(check.status == status for check in self.checks) for status in STATUSES}
        told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        seconds = sum(check.seconds for check in self.checks)
        failed = [check.name for check in self.checks if check.status == FAIL]
        end = f"; failed: {', '.join(failed)}." if failed else "."
        return f"{self.ranker['ranker']}({self.ranker['name']!r}): {told} in {seconds:.0f} s{end}"

    def frame(self) -> pd.DataFrame:
        """A row per check: ``name, status, figure, tolerance, found, meaning, advice, seconds``."""
        rows = pd.DataFrame([asdict(check) for check in self.checks])
        return rows[["name", "status", "figure", "tolerance", "found", "meaning", "advice", "seconds"]]

    def to_json(self) -> str:
        """All of it as a JSON object: ``passed``, ``ranker``, ``versions`` and ``checks``, a list of objects."""
        checks = [
            {key: value if not _is_infinite(value) else str(value) for key, value in asdict(check).items()}
            for check in self.checks
        ]
        whole = {"passed": self.passed, "ranker": self.ranker, "versions": self.versions, "checks": checks}
        return json.dumps(whole, indent=1, default=str)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), "", self.summary])

    def _repr_html_(self) -> str:
        colours = {OK: "#1b7837", WARN: "#b35806", FAIL: "#b2182b", SKIPPED: "#666"}
        rows = [
            f'<tr><td><strong style="color:{colours[check.status]}">{check.status}</strong></td>'
            f"<td>{escape(check.name)}</td><td>{'' if check.figure is None else f'{check.figure:.1e}'}</td>"
            f"<td>{'' if check.tolerance is None else f'{check.tolerance:.0e}'}</td>"
            f'<td style="text-align:left">{escape(check.meaning)} {escape(check.found)}'
            f"{f'<br><em>{escape(check.advice)}</em>' if check.advice else ''}</td></tr>"
            for check in self.checks
        ]
        head = "".join(f"<th>{name}</th>" for name in ("", "check", "figure", "at most", "what was found"))
        body = "".join(rows)
        return (
            f'<div class="tex2jax_ignore mathjax_ignore"><p>{escape(self.summary)}</p>'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
