"""Example pairs of the report: their texts, with the effect of each token, or with what was edited."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pyterrier_mechir.plots.colours import level
from pyterrier_mechir.plots.markup import greatest, signed
from pyterrier_mechir.results.effects import change
from pyterrier_mechir.results.frames import has_token_effects, labelled_sites, perturbed_side
from pyterrier_mechir.text.differences import differences
from pyterrier_mechir.text.vocabulary import BYTES, CONTINUED, SPACES

_MOST_PAIRS = 12

_MOST_TOKENS = 12_000

_MOST_VALUES = 250_000

_LONGEST_RUN = 700
"""Characters of unedited text that are shown without a gap."""

_MOST_NAMED = 3

_CLOSING = frozenset(".,;:!?)]}%")

_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])|\s+$")


class Token(NamedTuple):
    """A token of the perturbed side, as the report shows it.

    Args:
        text: what it spells.
        is_joined: whether it follows the token before it without a space.
        token_class: its token class.
        baseline: the text of the baseline's token at its position, None where both are the same.
        shade: the step of the colour scale for its effect (see :func:`~pyterrier_mechir.plots.colours.level`).
    """

    text: str
    is_joined: bool
    token_class: str
    baseline: str | None
    shade: int | None


class Example(NamedTuple):
    """A pair: a row of its frame, and its tokens; or, without their effects, its text as (text, edit) runs."""

    row: Any
    tokens: list[Token]
    limit: float
    strongest: str
    runs: list[tuple[str, str]]


class Examples(NamedTuple):
    """The pairs that are shown.

    Args:
        pairs: the pairs.
        side: what varies: ``document`` or ``query``.
        sites: the names of the sites whose effects are kept, with their layers; none without effects of tokens.
        chosen: the number of the one that is shown first.
        effects: of each pair, ``[site, token]``.
        notes: sentences about what is left out.
    """

    pairs: list[Example]
    side: str
    sites: list[tuple[str, int | None]]
    chosen: int
    effects: list[np.ndarray]
    notes: list[str]


def _spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Some pairs, from the one whose score rises most to the one whose score falls most, at even distances."""
    known = frame[frame["score_perturbed"].notna() & frame["score_baseline"].notna()]
    delta = change(known["score_baseline"], known["score_perturbed"])
    ordered = known.iloc[np.argsort(-delta.to_numpy(), kind="stable")]
    places = np.linspace(0, len(ordered) - 1, min(_MOST_PAIRS, len(ordered))).round().astype(int)
    return ordered.iloc[places]


def make_examples(frame: pd.DataFrame, text_field: str, *, spread: bool) -> Examples:
    """Examples of some pairs.

    Args:
        frame: the pairs; those without a perturbed side are left out.
        text_field: column of the document text.
        spread: choose them over all changes of the score; else they are the first, in the order of the frame.
    """
    side = perturbed_side(frame, text_field) or "document"
    shown = _spread(frame) if spread else frame[frame["score_perturbed"].notna()]
    if not has_token_effects(frame):
        shown = shown.head(_MOST_PAIRS)
        field = "query" if side == "query" else text_field
        pairs = [Example(row, [], 0.0, "", list(_runs(row, field))) for _, row in shown.iterrows()]
        return Examples(pairs, side, [], 0, [], _left_out(len(pairs), len(frame), spread))
    n_tokens = np.array([len(tokens) for tokens in shown["tokens"]], dtype=int)
    shown, n_tokens = shown.iloc[np.flatnonzero(n_tokens)], n_tokens[n_tokens > 0].cumsum()
    shown = shown.iloc[: max(1, min(_MOST_PAIRS, int((n_tokens <= _MOST_TOKENS).sum())))]
    notes = _left_out(len(shown), len(frame), spread)
    if not len(shown):
        return Examples([], side, [], 0, [], notes)
    return _with_effects(shown, frame.attrs, side, notes)


def _left_out(n: int, total: int, spread: bool) -> list[str]:
    how = ", from the greatest rise of the score to the greatest fall" if spread else ""
    return [] if n in (0, total) else [f"{n} of {total:,} pairs{how}."]


def _with_effects(shown: pd.DataFrame, attrs: dict[Any, Any], side: str, notes: list[str]) -> Examples:
    shown = shown.copy()
    shown.attrs = attrs
    arrays = [np.asarray(array, dtype=np.float64) for array in shown["patch_effect"]]
    sites, _ = labelled_sites(shown, arrays[0].shape)
    effects = [array.reshape(len(sites), -1) for array in arrays]
    strength = np.array([_mean_greatest([of_pair[site] for of_pair in effects]) for site in range(len(sites))])
    kept = np.flatnonzero(np.isfinite(strength))
    room = max(1, _MOST_VALUES // sum(map(len, shown["tokens"])))
    if len(kept) > room:
        notes = [*notes, f"Of {len(kept)} sites, the effects of the {room} strongest are kept."]
        kept = np.sort(kept[np.argsort(-strength[kept], kind="stable")[:room]])
    if not len(kept):
        return Examples([], side, [], 0, [], [*notes, "No site has an effect on the tokens of these pairs."])
    chosen = int(strength[kept].argmax())
    effects = [of_pair[kept].round(4) for of_pair in effects]
    pairs = [_example(row, of_pair, chosen) for (_, row), of_pair in zip(shown.iterrows(), effects, strict=True)]
    return Examples(pairs, side, [(sites[i].name, sites[i].layer) for i in kept], chosen, effects, notes)


def _mean_greatest(effects: Sequence[np.ndarray]) -> float:
    """The mean over pairs of a site's greatest absolute effect, missing where it was not patched."""
    known = [greatest(of_pair) for of_pair in effects if np.isfinite(of_pair).any()]
    return float(np.mean(known)) if known else float("nan")


def _example(row: pd.Series, effects: np.ndarray, chosen: int) -> Example:
    limit = greatest(effects)
    texts, before = (readable(row[name], row["token_classes"]) for name in ("tokens", "tokens_baseline"))
    tokens = [
        Token(text, is_joined, token_class, None if text == other else other, level(value, limit))
        for (text, is_joined), (other, _), token_class, value in zip(
            texts, before, row["token_classes"], effects[chosen], strict=True
        )
    ]
    order = [i for i in np.argsort(-np.abs(effects[chosen]), kind="stable") if np.isfinite(effects[chosen][i])]
    strongest = ", ".join(f"{texts[i][0]} {signed(effects[chosen][i])}" for i in order[:_MOST_NAMED])
    return Example(row, tokens, limit, strongest, [])


def readable(tokens: Sequence[str], classes: Sequence[str]) -> list[tuple[str, bool]]:
    """Each token as readable text, and whether it continues what is before it without a space."""
    marked = next((mark for mark in SPACES if any(token.startswith(mark) for token in tokens)), None)
    made = []
    after_special = True
    for token, token_class in zip(tokens, classes, strict=True):
        is_special = token_class in ("CLS", "SEP")
        if is_special:
            text, is_joined = token, False
        elif marked is None:
            text = token.removeprefix(CONTINUED)
            is_joined = text != token or token in _CLOSING
        else:
            text = _decoded(token) if marked == BYTES else token
            text, is_joined = text.lstrip(f"{marked} "), not token.startswith(marked)
        made.append((text or token, is_joined and not after_special))
        after_special = is_special
    return made


@cache
def _byte_decoder() -> Any:
    from tokenizers.decoders import ByteLevel

    return ByteLevel()


def _decoded(token: str) -> str:
    return str(_byte_decoder().decode([token]))


def _runs(row: pd.Series, field: str) -> Iterator[tuple[str, str]]:
    """The text of a pair as runs that are ``same``, ``added`` or ``removed``."""
    baseline, perturbed = row.get(f"{field}_baseline"), row.get(f"{field}_perturbed")
    baseline = baseline if isinstance(baseline, str) else row.get(field)
    if not (isinstance(baseline, str) and isinstance(perturbed, str)):
        return
    before, after = _PIECE.findall(baseline), _PIECE.findall(perturbed)
    keys = [[piece.strip() for piece in side] for side in (before, after)]
    for same, (i, j), (k, m) in differences(*keys):
        if same:
            yield _shortened("".join(after[k:m])), "same"
            continue
        if j > i:
            yield _shortened("".join(before[i:j])), "removed"
        if m > k:
            added = "".join(after[k:m])
            text = added.lstrip()
            yield added[: len(added) - len(text)], "same"
            yield _shortened(text), "added"


def _shortened(text: str) -> str:
    half = _LONGEST_RUN // 2
    return text if len(text) <= _LONGEST_RUN else f"{text[:half]} \N{HORIZONTAL ELLIPSIS} {text[-half:]}"
