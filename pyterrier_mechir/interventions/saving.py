"""Saving an edited ranker: a checkpoint that others load without this package, checked before it is there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyterrier_mechir._version import installed
from pyterrier_mechir.interventions.baking import baked
from pyterrier_mechir.interventions.card import check_effects, model_card
from pyterrier_mechir.interventions.checkpoint import write, written_family
from pyterrier_mechir.models.precision import precision_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.manifest import MANIFEST
from pyterrier_mechir.results.frames import check_columns

_PACKAGES = ("pyterrier-mechir", "torch", "transformers", "sentence-transformers")

_ROUNDING = 1e-4
"""How far the scores of the files may be off those of the ranker, in float32, as a share of them or of 1."""

_QUERIES = ("why are there two high tides each day", "iron bridge", "how does yeast make bread dough rise")

_TEXTS = (
    "The moon pulls the ocean into two bulges, so most coasts see two high tides each day.",
    "tides",
    "An iron bridge expands on a warm day and shrinks at night, so that engineers leave gaps between its parts; else "
    "it would bend when the sun heats the deck, and crack when the night cools it again, year after year.",
    "Yeast eats sugar and breathes out gas, which makes the dough rise before the bread is baked.",
)


def save_pretrained(
    ranker: Ranker, directory: str | Path, effects: pd.DataFrame | None = None, sample: pd.DataFrame | None = None
) -> Path:
    """Write a ranker; see :meth:`~pyterrier_mechir.rankers.interactive.Interactive.save_pretrained`."""
    written_family(ranker)
    target, ranker = Path(directory), ranker.facing("document")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ValueError(f"{str(target)!r} exists and is not empty; give a directory that does not exist.")
    if effects is not None:
        check_effects(effects)
    queries, texts = _pairs(sample)
    models = {side: baked(ranker, side, tower) for side, tower in ranker.towers().items()}
    with _moved_at_last(target) as made:
        options = write(ranker, models, made)
        del models
        manifest = _manifest(ranker, options) | {"measured": _measured(ranker, made, options, queries, texts)}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (made / "README.md").write_text(model_card(ranker, manifest, effects), encoding="utf-8")
    return target


def _pairs(sample: pd.DataFrame | None) -> tuple[list[str], list[str]]:
    if sample is None:
        pairs = [(query, text) for query in _QUERIES for text in _TEXTS]
        return [query for query, _ in pairs], [text for _, text in pairs]
    check_columns(sample, ("query", "text"))
    if not len(sample):
        raise ValueError("the sample has no pairs; give some with query and text, or None.")
    return sample["query"].tolist(), sample["text"].tolist()


@contextmanager
def _moved_at_last(target: Path) -> Iterator[Path]:
    """A directory beside another, which becomes that one if all goes well, and else is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield made
        made.chmod(target.stat().st_mode if target.is_dir() else _usual_mode())
        if target.is_dir():
            target.rmdir()  # Windows replaces no directory, even an empty one
        os.replace(made, target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o777 & ~mask


def _manifest(ranker: Ranker, options: Mapping[str, Any]) -> dict[str, Any]:
    about = ranker.about(fingerprint=True)
    return {
        "base": ranker.name,
        "revision": about["revision"],
        "base_weights": about["weights"],
        "ranker": written_family(ranker).__name__,
        "options": dict(options),
        "settings": ranker._settings(),
        "edits": [{"side": side, **edit.told()} for side, edit in ranker.edits],
        **({"edits_before": list(ranker.baked_edits)} if ranker.baked_edits else {}),
        "versions": installed(*_PACKAGES),
    }


def _measured(
    ranker: Ranker, made: Path, options: Mapping[str, Any], queries: list[str], texts: list[str]
) -> dict[str, Any]:
    """How far the scores of the files are off, at most, for some pairs.

    Raises:
        ValueError: too far to be rounded off.
    """
    precision = precision_of(ranker.model)
    dtype = "float64" if precision == torch.float64 else "float32"
    device = str(ranker.device)
    loaded = written_family(ranker)(str(made), device=device, dtype=dtype, **options)
    wanted, found = ranker.score(queries, texts), loaded.score(queries, texts)
    off = np.abs(found.astype(np.float64) - wanted)
    shares = off / np.maximum(1, np.abs(wanted))
    at = int(shares.argmax())
    if shares[at] > max(_ROUNDING, 8 * torch.finfo(precision).eps):
        raise ValueError(
            f"nothing was saved: the files score a pair {found[at]:.6g} that {ranker!r} scores {wanted[at]:.6g}, as "
            "the model has something that its files cannot hold, such as a hook in one of its modules or a setting "
            "that was changed after it was loaded; take it out, and edit the ranker that is left."
        )
    return {"n_pairs": len(wanted), "greatest_difference": float(off.max()), "as_share": float(shares[at])}
