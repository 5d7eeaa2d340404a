"""What a table of ranking effects amounts to, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir.results.frames import METADATA, strongest_first

RANKING_EFFECTS = "ranking_effects"
"""Key, in the mapping of :data:`~pyterrier_mechir.results.frames.METADATA`, of what is said beside the table."""

POWER = 0.8
"""How often a change of the size that is called detectable would be found."""

_MOST_NAMED = 5
_ADJUSTED = {"holm": "after Holm", "bh": "after Benjamini and Hochberg"}


def level_of(frame: pd.DataFrame) -> float:
    """The level of the tests of a table, 0.05 where its attrs are lost."""
    return float(frame.attrs.get(METADATA, {}).get(RANKING_EFFECTS, {}).get("alpha", 0.05))


def verdicts(frame: pd.DataFrame) -> list[str]:
    """What a table of ranking effects amounts to, a paragraph for each of its measures.

    It says plainly when the map is noise: when no component is called significant, and random halves of the queries
    agree on the order of the components no better than chance does, by less than two standard deviations of Spearman's
    correlation of unrelated rankings.

    Args:
        frame: of :class:`~pyterrier_mechir.RankingEffects`; without its attrs there is nothing to say.
    """
    told = frame.attrs.get(METADATA, {}).get(RANKING_EFFECTS)
    if told is None:
        return []
    there = set(frame["measure"])
    return [
        _verdict(frame[frame["measure"] == of["measure"]], told, of)
        for of in told["measures"]
        if of["measure"] in there
    ]


def _verdict(rows: pd.DataFrame, told: dict[str, Any], of: dict[str, Any]) -> str:
    n, n_components, name = told["n_queries"], told["n_components"], of["measure"]
    parts = [f"{name} over {n} queries is {of['value']:.3f}{_between(of)}."]
    halves, limit = of["split_half"], 2 / np.sqrt(max(n_components - 1, 1))
    agree = f"the maps of random halves of the queries agree by a Spearman correlation of {halves:+.2f}"
    is_stable = bool(halves >= limit)
    level = f"{_ADJUSTED[told['adjust']]}, at {told['alpha']:g}"
    known = np.isfinite(halves)
    if not told["n_boot"]:
        parts.append(f"Nothing was tested, as n_boot is 0{f'; {agree}' if known else ''}.")
    elif of["n_significant"]:
        count, found = of["n_significant"], rows[rows["p_adjusted"] < told["alpha"]]
        named = strongest_first(found).head(_MOST_NAMED)
        shown = [f"{row.docno} {row.score:+.3f}" for row in named.itertuples()]
        shown += [f"{count - len(shown)} more"] if count > len(shown) else []
        verb = "changes" if count == 1 else "change"
        parts.append(
            f"{count} of {n_components} components {verb} it significantly ({level}): {', '.join(shown)}"
            + (f"; {agree}" + ("." if is_stable else ", so that the order of the others is noise.") if known else ".")
        )
    elif not of["least_p"] < told["alpha"]:
        parts.append(
            f"With {n} queries and {told['n_flips']:,} flips of signs no single one of {n_components} components can "
            "have a p-value small enough to be called significant, so that the map by itself says nothing."
        )
    elif is_stable:
        parts.append(
            f"None of {n_components} components changes it significantly ({level}), but {agree}: the map is no mere "
            "noise, yet too faint to name a component."
        )
    else:
        parts.append(
            f"The map is noise: none of {n_components} components changes it significantly ({level})"
            + (f", and {agree}." if known else ".")
        )
    if np.isfinite(of["detectable"]):
        parts.append(f"A change of {of['detectable']:.3f} would have been found {POWER * 10:g} times in 10.")
    parts += [
        f"With shuffled judgments, a component was called significant for {row['n_seeds_significant']} of "
        f"{row['n_seeds']} seeds."
        for row in told.get("control", ())
        if row["measure"] == name
    ]
    parts += [
        f"{row['docno']}, chosen on {row['n_selection']} queries by its {row['score_selection']:+.3f}, gives "
        f"{row['score']:+.3f}{_between(row, '+')} on the {row['n_queries']} that were held out."
        for row in [row for row in told.get("held_out", ()) if row["measure"] == name][:1]
    ]
    if told["n_dropped"]:
        parts.append(f"{told['n_dropped']} queries without judgments are left out.")
    return " ".join(parts)


def _between(of: dict[str, Any], sign: str = "") -> str:
    low, high = of["ci_low"], of["ci_high"]
    return f" ({low:{sign}.3f} to {high:{sign}.3f})" if np.isfinite(low) and np.isfinite(high) else ""
