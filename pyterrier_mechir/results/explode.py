"""Effects in long form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.results.frames import METADATA, as_strings, check_columns, has_token_effects, labelled_sites

_COLUMNS = [
    *("qid", "docno", "component", "layer", "head", "site", "position", "token", "token_baseline", "token_class"),
    *("patch_score", "patch_effect"),
]


def explode_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """The effects of a frame as one row per pair, site and position.

    Args:
        frame: the output of :class:`~pyterrier_mechir.PatchScorer`.

    Returns:
        ``qid, docno, component, layer, head, site`` (its name, such as ``L5H8``), ``position`` (missing but for single
        positions), ``token``, ``token_baseline`` (of the perturbed side and of the baseline, at that position; the word
        itself, of the strongest words' effects, is the latter), ``token_class`` (``unit1``, ``unit2``, ... of the
        strongest words), ``patch_score``, ``patch_effect``. Pairs without effects and sites that were not swept are
        left out; how many pairs these are, if there are any, is in ``attrs["mechir"]["n_skipped"]``.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: the frame does not say which sites its arrays hold.
    """
    check_columns(frame, ["qid", "docno", "patch_scores", "patch_effect"])
    parts = [_row(frame, row) for row in range(len(frame))]
    made = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)
    kinds = dict.fromkeys(["layer", "head", "position"], "Int64") | dict.fromkeys(_COLUMNS[-2:], "float32")
    made = made.reindex(columns=_COLUMNS).astype(kinds)
    made = made.assign(**{name: as_strings(made[name]) for name in _COLUMNS if name not in kinds})
    n_skipped = sum(not len(part) for part in parts)
    made.attrs = {METADATA: {"n_skipped": n_skipped}} if n_skipped else {}
    return made


def _row(frame: pd.DataFrame, row: int) -> pd.DataFrame:
    scores, effects = (np.asarray(frame[name].iloc[row]) for name in ("patch_scores", "patch_effect"))
    sites, slots = labelled_sites(frame, scores.shape)
    scores, effects = scores.reshape(len(sites), -1), effects.reshape(len(sites), -1)
    n = scores.shape[1]
    of_slots = _slots(frame, row, slots, n)
    out: dict[str, Any] = {"qid": frame["qid"].iloc[row], "docno": frame["docno"].iloc[row]}
    for name, values in {
        "component": [site.component for site in sites],
        "layer": [site.layer for site in sites],
        "head": [site.number for site in sites],
        "site": [site.name for site in sites],
    }.items():
        out[name] = np.repeat(np.array(values, dtype=object), n)
    out |= {name: np.tile(np.array(values, dtype=object), len(sites)) for name, values in of_slots.items()}
    made = pd.DataFrame(out | {"patch_score": scores.ravel(), "patch_effect": effects.ravel()})
    return made[made["patch_score"].notna()]


def _slots(frame: pd.DataFrame, row: int, slots: list[str] | None, n: int) -> dict[str, list[Any]]:
    """Position, tokens and class of each slot of a row."""
    missing: list[Any] = [None] * n
    has_one = has_token_effects(frame) and n == 1
    if "tokens" not in frame.columns or (has_one and len(frame["tokens"].iloc[row]) != 1):
        return dict.fromkeys(["position", "token", "token_baseline", "token_class"], missing)
    tokens, baseline, classes = (frame[name].iloc[row] for name in ("tokens", "tokens_baseline", "token_classes"))
    if slots is not None and not slots[0].lstrip("-").isdigit():
        words = list(frame["slot_units"].iloc[row]) if "slot_units" in frame.columns else []
        words += missing[len(words) :]
        return {"position": missing, "token": missing, "token_baseline": words, "token_class": slots}
    places = list(range(n)) if slots is None else [int(slot) for slot in slots]
    at = [place + len(tokens) * (place < 0) for place in places]
    known = [place if 0 <= place < len(tokens) else None for place in at]
    columns = {"token": tokens, "token_baseline": baseline, "token_class": classes}
    return {"position": known} | {
        name: [None if place is None else values[place] for place in known] for name, values in columns.items()
    }
