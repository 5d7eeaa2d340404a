"""Effects of components over many documents: components as retrieved items."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.patching.sites import Site, SiteSet, parse_site
from pyterrier_mechir.stages.inputs import Keyed
from pyterrier_mechir.stages.patch_scorer import METADATA

_COLUMNS = [
    *("qid", "docno", "score", "rank", "component", "layer", "head", "n_pairs", "n_skipped", "mean_delta"),
    *("ci_low", "ci_high", "p_value", "p_adjusted"),
]
_NEEDED = ["score_baseline", "score_perturbed", "patch_scores", "patch_effect"]


@dataclass(frozen=True)
class _Pairs:
    """Pairs as arrays: normalised effects and moved scores ``[pair, site]``, and s_p - s_b ``[pair]``."""

    effects: np.ndarray
    moved: np.ndarray
    delta: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame, direction: str | None) -> _Pairs:
        effects, patched = (_stack(frame[column]) for column in ("patch_effect", "patch_scores"))
        baseline, perturbed = (frame[f"score_{side}"].to_numpy(np.float64) for side in ("baseline", "perturbed"))
        delta = perturbed - baseline
        denoised, noised = patched - baseline[:, None], perturbed[:, None] - patched
        direction = direction or _direction(effects * delta[:, None], denoised, noised)
        return cls(effects, noised if direction == "noise" else denoised, delta)

    def rows(self, index: Any) -> _Pairs:
        return _Pairs(self.effects[index], self.moved[index], self.delta[index])

    def at_sites(self, index: np.ndarray) -> _Pairs:
        return _Pairs(self.effects[:, index], self.moved[:, index], self.delta)


def _direction(moved: np.ndarray, denoised: np.ndarray, noised: np.ndarray) -> str:
    """The direction whose formula gives the effects of a frame that does not say which was swept."""
    errors = [np.nansum(np.abs(moved - candidate)) for candidate in (denoised, noised)]
    return "denoise" if errors[0] <= errors[1] else "noise"


def _stack(arrays: pd.Series) -> np.ndarray:
    return np.stack([np.asarray(array, dtype=np.float64).ravel() for array in arrays])


def _ratio_of_means(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    used = np.isfinite(pairs.moved)
    return _over(_mean(pairs.moved, used), _mean(pairs.delta[:, None], used)), used


def _difference(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    used = np.isfinite(pairs.moved)
    return _mean(pairs.moved, used), used


def _mean_of_ratios(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    used = np.isfinite(pairs.effects)
    return _mean(pairs.effects, used), used


def _median(pairs: _Pairs) -> tuple[np.ndarray, np.ndarray]:
    used = np.isfinite(pairs.effects)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(np.where(used, pairs.effects, np.nan), axis=0), used


def _mean(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The mean of each column over the rows that it uses."""
    return _over(np.where(used, values, 0).sum(axis=0), used.sum(axis=0).astype(np.float64))


def _over(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


ESTIMATORS: dict[str, Callable[[_Pairs], tuple[np.ndarray, np.ndarray]]] = {
    "ratio_of_means": _ratio_of_means,
    "mean_of_ratios": _mean_of_ratios,
    "median": _median,
    "difference": _difference,
}
"""Each estimator: a group of pairs to the effect of each site, and which pairs each site's used, ``[pair, site]``."""


class AggregateHeads(Keyed, pt.Transformer):
    """Estimates the effect of every component over documents, and ranks the components by it.

    Expected input columns: those of :class:`~pyterrier_mechir.PatchScorer`'s output, of which it needs ``qid,
    score_baseline, score_perturbed, patch_scores, patch_effect`` and the column named by ``by``.

    Output, one row per group and component: ``qid`` (the group), ``docno`` (the component's name, ``L5H8`` or
    ``L5.mlp_out``), ``score`` (its effect), ``rank``, ``component``, ``layer``, ``head`` (missing for a layer-wide
    component), ``slot`` (the token class or position, only where these are patched apart; ``docno`` is then
    ``L5H8@EDIT``), ``n_pairs`` (pairs that the estimate used), ``n_skipped`` (pairs whose effects are missing),
    ``mean_delta`` (mean of s_p - s_b over the pairs used, in score units), ``ci_low``, ``ci_high``, ``p_value`` and
    ``p_adjusted`` (missing so far).

    Args:
        by: the column whose values are the groups; ``"qid"`` gives one ranking of components per query, None pools all
            queries under qid ``"all"``.
        estimator: ``ratio_of_means`` = mean(moved score) / mean(s_p - s_b); ``mean_of_ratios``, the published one, is
            unstable where a denominator is near 0; ``median`` of the ratios; ``difference``, the mean moved score in
            score units. ``mean_of_ratios`` and ``median`` leave out pairs below the scorer's ``min_delta``; the other
            two do not. Of a scorer with ``direction="both"``, the denoise effects are aggregated.
        ci: coverage of the confidence intervals, which this version does not compute yet.
        n_boot: their resamples.
        seed: of the resampling.

    Raises:
        ValueError: an unknown estimator.
    """

    schematic: ClassVar = {"label": "AggregateHeads"}

    def __init__(
        self,
        *,
        by: str | None = "qid",
        estimator: str = "ratio_of_means",
        ci: float = 0.95,
        n_boot: int = 1000,
        seed: int = 0,
    ):
        self.by = by
        self.estimator = one_of("estimator", estimator, ESTIMATORS)
        self.ci = ci
        self.n_boot = n_boot
        self.seed = seed

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Aggregate.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: the arrays of the rows are not of one shape.
        """
        grouping = [] if self.by in (None, "qid") else [str(self.by)]
        pt.validate.columns(inp, includes=["qid", *_NEEDED, *grouping], context=self)
        if not len(inp):
            return _typed(pd.DataFrame(columns=_COLUMNS))
        if "tokens" in inp.columns and "slots" not in inp.attrs.get(METADATA, {}):
            raise ValueError(
                "effects of single positions belong to one text each and are not aggregated; explode_effects(frame) "
                "gives them one by one, and positions='class' gives effects that can be."
            )
        shapes = {np.shape(array) for array in inp["patch_effect"]}
        if len(shapes) > 1:
            raise ValueError(f"patch_effect has arrays of shapes {sorted(shapes)}; aggregate one scorer's at a time.")
        metadata = inp.attrs.get(METADATA, {})
        sites, slots = labelled_sites(inp, shapes.pop())
        of_site: list[str | None] = [None] if slots is None else list(slots)
        labels = [(site, slot) for site in sites for slot in of_site]
        pairs = _Pairs.of(inp, metadata.get("direction"))
        swept = np.isfinite(pairs.moved).any(axis=0)
        if swept.any():
            labels, pairs = [label for label, kept in zip(labels, swept, strict=True) if kept], pairs.at_sites(swept)
        if self.by is None:
            groups: dict[Any, Any] = {"all": slice(None)}
        else:
            groups = inp.reset_index(drop=True).groupby(self.by, sort=False).indices
        parts = [self._aggregate(str(name), pairs.rows(rows), labels) for name, rows in groups.items()]
        return _typed(
            pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS), slots is not None
        )

    def _aggregate(self, name: str, pairs: _Pairs, labels: list[tuple[Site | SiteSet, str | None]]) -> pd.DataFrame:
        effects, used = ESTIMATORS[self.estimator](pairs)
        out = pd.DataFrame(
            {
                "qid": name,
                "docno": [site.name if slot is None else f"{site.name}@{slot}" for site, slot in labels],
                "score": effects,
                "component": [site.component for site, _ in labels],
                "layer": [site.layer for site, _ in labels],
                "head": [site.head for site, _ in labels],
                "slot": [slot for _, slot in labels],
                "n_pairs": used.sum(axis=0),
                "n_skipped": (~used).sum(axis=0),
                "mean_delta": _mean(pairs.delta[:, None], used),
            }
        )
        out = out.sort_values("score", ascending=False, kind="stable", ignore_index=True)
        return out.assign(rank=np.arange(len(out)))


def labelled_sites(frame: pd.DataFrame, shape: tuple[int, ...]) -> tuple[list[Site | SiteSet], list[str] | None]:
    """The sites that arrays of a shape hold, and the names of the slots on their last axis, if they have one.

    As the frame's attrs say; without them, two axes are layers and heads.

    Raises:
        ValueError: the frame does not say, and the shape does not tell.
    """
    metadata = frame.attrs.get(METADATA, {})
    if "sites" in metadata:
        sites = [parse_site(name) for name in metadata["sites"]]
        slots = metadata.get("slots")
        if len(sites) == int(np.prod(shape if slots is None and "tokens" not in frame.columns else shape[:-1])):
            return sites, slots
    if len(shape) == 2 and "tokens" not in frame.columns:
        return [Site("head", layer, head) for layer in range(shape[0]) for head in range(shape[1])], None
    raise ValueError(
        f"the frame does not say which components its arrays of shape {shape} hold: its attrs[{METADATA!r}] are gone. "
        "Aggregate right after PatchScorer, and merge other columns in before it."
    )


def _typed(frame: pd.DataFrame, has_slots: bool = False) -> pd.DataFrame:
    kinds: dict[str, Any] = {
        "layer": "int64",
        "head": "Int64",
        "rank": "int64",
        "n_pairs": "int64",
        "n_skipped": "int64",
    }
    kinds |= dict.fromkeys(["qid", "docno", "component", "slot"], "str")
    columns = [*_COLUMNS[:7], "slot", *_COLUMNS[7:]] if has_slots else _COLUMNS
    if frame["layer"].isna().any():
        kinds["layer"] = "Int64"
    return frame.reindex(columns=columns).astype({c: kinds.get(c, "float64") for c in columns})
