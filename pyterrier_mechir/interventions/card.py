"""The draft of a model card for a checkpoint with edits in its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_mechir.models.checkpoints import attending
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.manifest import MANIFEST
from pyterrier_mechir.results.frames import check_columns

_COLUMNS = ("docno", "measure", "value", "score", "ci_low", "ci_high", "p_adjusted")

_MOST = 50
"""Rows of a table."""

_LIBRARIES = {"BiEncoder": "SentenceTransformer", "Splade": "SparseEncoder", "ColBERT": "MultiVectorEncoder"}


def check_effects(effects: pd.DataFrame) -> None:
    """Check that a frame tells effects.

    Raises:
        pt.validate.InputValidationError: a column is missing.
    """
    check_columns(effects, _COLUMNS)


def model_card(ranker: Ranker, manifest: Mapping[str, Any], effects: pd.DataFrame | None) -> str:
    """The card, in Markdown, with what the Hub reads at its top.

    Args:
        ranker: the ranker that was saved.
        manifest: of its checkpoint.
        effects: what its edits do to the ranking.
    """
    family, base = manifest["ranker"], manifest["base"]
    library = "sentence-transformers" if family in _LIBRARIES else "transformers"
    is_on_hub = isinstance(ranker._checkpoint, str) and not Path(base).exists()
    top = ["---", f"library_name: {library}", *([f"base_model: {base}"] if is_on_hub else []), "---"]
    edits = [*manifest.get("edits_before", []), *manifest["edits"]]
    told = [
        f"{base}, a {family}, with edits of its activations written into its weights by pyterrier_mechir. No training "
        "took place."
        if edits
        else f"A copy of {base}, a {family}, with its settings. No training took place.",
        f"Digest of the weights before the edits: `{manifest['base_weights']}`.",
    ]
    measured = manifest["measured"]
    checked = (
        f"When it was saved, the scores of {measured['n_pairs']} pairs by these files were off those of the edited "
        f"ranker by {measured['greatest_difference']:.2g} at most. All this is in `{MANIFEST}` too."
    )
    parts = ["\n".join(top), f"# {ranker.short_name}{', edited' if edits else ''}", *told]
    if edits:
        parts += ["## Edits", _table([_row(edit) for edit in edits])]
    if effects is not None:
        parts += ["## Effects on the ranking", *_effects(effects, [str(edit["site"]) for edit in edits])]
    parts += ["## Use", _use(ranker, family), checked]
    return "\n\n".join(parts) + "\n"


def _row(edit: Mapping[str, Any]) -> dict[str, str]:
    known = ("edit", "site", "side")
    rest = ", ".join(f"{name} = {value}" for name, value in edit.items() if name not in known)
    return {"edit": edit["edit"], "site": edit["site"], "side": edit["side"], "options": rest}


def _effects(effects: pd.DataFrame, sites: list[str]) -> list[str]:
    """The rows of the edited sites, or all where no row is of one of these."""
    of_sites = effects[effects["docno"].astype(str).isin(sites)]
    shown = of_sites if len(of_sites) else effects
    rows = [
        {
            "site": str(row.docno),
            "measure": str(row.measure),
            "value": f"{row.value:.4f}",
            "change": f"{row.score:+.4f}",
            "interval": f"[{row.ci_low:+.4f}, {row.ci_high:+.4f}]",
            "adjusted p": f"{row.p_adjusted:.3g}",
        }
        for row in shown.head(_MOST).itertuples()
    ]
    left = [f"{len(shown) - _MOST} more rows are left out."] if len(shown) > _MOST else []
    what = (
        "What each site changes when it alone is ablated, with an interval over queries. Those of one site do not add "
        "up to that of all edits together, and a site that was chosen for its effect shows a smaller one on other "
        "queries."
    )
    return [what, _table(rows), *left]


def _table(rows: list[dict[str, str]]) -> str:
    names = list(rows[0]) if rows else []
    lines = [names, ["---"] * len(names), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _use(ranker: Ranker, family: str) -> str:
    lines = ["from pyterrier_mechir import load_ranker", "", 'ranker = load_ranker("DIRECTORY")']
    needed = attending(ranker.model.config)
    if family in _LIBRARIES:
        kind = _LIBRARIES[family]
        package, made, options = "sentence_transformers", kind, f", model_kwargs={json.dumps(needed)}" if needed else ""
    else:
        kind = type(ranker.model).__name__
        options = "".join(f", {name}={json.dumps(value)}" for name, value in needed.items())
        package, made = "transformers", f"{kind}.from_pretrained"
    loaded = [f"from {package} import {kind}", "", f'model = {made}("DIRECTORY"{options})', ""]
    return "\n".join(["```python", *loaded, *lines, "```"])
