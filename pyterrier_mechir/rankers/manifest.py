"""The manifest of a checkpoint that an edited ranker was saved as: what it was made of, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MANIFEST = "mechir_edits.json"
"""The file that tells it, beside the weights."""


def read_manifest(name: str) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None where it has none.

    Args:
        name: the id or directory.

    Raises:
        ValueError: there is a file of that name that is no manifest.
    """
    from pyterrier_mechir.models.checkpoints import read_json

    try:
        found = read_json(name, MANIFEST)
    except ValueError:
        found = ()
    if found is None:
        return None
    parts = {"ranker": str, "options": dict, "edits": list}
    if not isinstance(found, dict) or not all(isinstance(found.get(part), kind) for part, kind in parts.items()):
        raise ValueError(f"the {MANIFEST} of {name!r} is none that save_pretrained writes; delete it, or save again.")
    return found


def told_edits(edits: Sequence[Mapping[str, Any]]) -> str:
    """Edits of a manifest in a line: ``Scale L3H4 (factor 0.5), Ablate L5.mlp_out of queries (by zero)``."""
    of_side = {"query": " of queries", "document": " of documents"}
    lines = []
    for told in edits[:3]:
        rest = [(name, value) for name, value in told.items() if name not in ("edit", "site", "side")]
        options = ", ".join(f"{name} {value}" for name, value in rest)
        lines.append(f"{told.get('edit')} {told.get('site')}{of_side.get(told.get('side', ''), '')} ({options})")
    more = [f"{len(edits) - 3} more"] if len(edits) > 3 else []
    return ", ".join([*lines, *more]) or "none"
