"""The Python blocks of the pages, and a small world in which they run: few short documents, tiny models, no network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])

N_TOPICS, LETTERS = 6, 160
"""How many topics of the lab collection there are for the pages, and how many letters of each passage."""

NEEDS = ("a download", "a GPU", "Ray", "an account")
"""What a block may need that is not here; its first line then says so: ``# Needs a GPU``."""

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A Python block of a page.

    Args:
        page: the page.
        line: where its code begins.
        code: its code; of a session, what is typed in.
    """

    page: Path
    line: int
    code: str

    @property
    def needs(self) -> str | None:
        """What it needs that is not here."""
        first = self.code.partition("\n")[0]
        return next((need for need in NEEDS if first.startswith(f"# Needs {need}")), None)

    def compiled(self) -> Any:
        """Its code, whose lines are those of the page."""
        return compile("\n" * (self.line - 1) + self.code, str(self.page), "exec")


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        code = match[1]
        if code.startswith(">>> "):
            code = "".join(f"{line[4:]}\n" for line in code.splitlines() if line.startswith((">>> ", "... ")))
        found.append(Block(page, text.count("\n", 0, match.start(1)) + 1, code))
    return found
