"""Activation patching as a pipeline stage."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.patching.sites import DIRECTIONS, Sites, select_sites
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.perturb.alignment import ALIGNMENTS
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.rankers.base import Ranker, unique
from pyterrier_mechir.stages.inputs import Keyed, check_batch_size, check_results, check_rows
from pyterrier_mechir.stages.perturb_docs import PerturbDocs, as_perturbation

if TYPE_CHECKING:
    from pyterrier_mechir.patching.sweep import SweepResult

METADATA = "mechir"
"""Key of ``frame.attrs`` under which a result says which sites its arrays hold, and the direction."""

_ADDED = ["score", "rank", "score_baseline", "score_perturbed", "patch_scores", "patch_effect", "patch_effect_noise"]


class PatchScorer(Keyed, pt.Transformer):
    """Patches each component of a ranker, for each document, and says how far the score moves.

    For a document's baseline x_b and its perturbed side x_p, of scores s_b and s_p, each site n is patched alone:

    - ``denoise`` (sufficiency; published practice): e = [s(x_b; n <- n(x_p)) - s_b] / (s_p - s_b),
    - ``noise`` (necessity): e = [s_p - s(x_p; n <- n(x_b))] / (s_p - s_b).

    e = 1 where the site alone carries the whole difference, 0 where it carries none. The patched scores are those that
    hooks on the unmodified model give. See Chen et al. (SIGIR 2024) and Parry et al. (ECIR 2025).

    Expected input columns: ``qid, query, docno, text``, and ``text_perturbed`` (without it ``perturbation`` is applied
    first) with, optionally, ``alignment`` and ``text_baseline``.

    Adds, one row per document:

    - ``score``, ``rank``: the ranker's own score of the text, so that the output is an ordinary re-ranking;
    - ``score_baseline``: score of the aligned baseline, with fillers;
    - ``score_perturbed``: score of the perturbed side;
    - ``patch_scores``: float32 array, the patched score of each site (of the noise direction for ``"noise"``);
    - ``patch_effect``: float32 array, the normalised effect e of each site, NaN where abs(s_p - s_b) < ``min_delta``;
    - ``patch_effect_noise``: the noise effect, for ``direction="both"`` only.

    The arrays are ``[layer, head]`` for heads, ``[layer]`` for another component, ``[site]`` for a list of components,
    with NaN where ``heads`` or ``layers`` leave a site out. A row without a perturbed text, or whose perturbed text is
    its text, has NaN throughout.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        component: ``head`` (z), ``attn_out``, ``mlp_out``, ``resid_pre``, or a list of these.
        positions: ``all``: a site is patched at every position at once.
        direction: ``denoise``, ``noise`` or ``both``.
        method: ``exact``.
        heads: only these (layer, head).
        layers: only these layers.
        perturbation: applied where the input has no ``text_perturbed``; :class:`~pyterrier_mechir.perturb.TFC1` by
            default.
        filler: what stands in the baseline where the perturbed side has an insertion: ``"a"`` (published practice),
            any single-token word, ``"mask"``, ``"pad"``, ``"random"`` (drawn per row), or a list of these, whose
            scores are averaged. Head maps depend on it, so report more than one.
        min_delta: least abs(s_p - s_b), in score units, for which a normalised effect is given.
        text_field: column of the document text.
        batch_size: documents that are patched together; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown option, or a layer or head that the ranker does not have.
    """

    schematic: ClassVar = {"label": "PatchScorer"}

    def __init__(
        self,
        ranker: Ranker,
        component: str | Sequence[str] = "head",
        *,
        positions: str = "all",
        direction: str = "denoise",
        method: str = "exact",
        heads: Sequence[tuple[int, int]] | None = None,
        layers: Sequence[int] | None = None,
        perturbation: Perturbation | None = None,
        filler: str | Sequence[str] = "a",
        min_delta: float = 1e-3,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        if not isinstance(ranker, Ranker):
            raise TypeError(f"ranker should be a ranker such as BiEncoder({ranker!r}), not a {type(ranker).__name__}.")
        self.ranker = ranker
        self.component = component
        self.positions = one_of("positions", positions, ("all",))
        self.direction = one_of("direction", direction, DIRECTIONS)
        self.method = one_of("method", method, ("exact",))
        self.heads = heads
        self.layers = layers
        self.perturbation = perturbation
        self.filler = filler
        self.min_delta = min_delta
        self.text_field = text_field
        self.batch_size = check_batch_size(batch_size)
        self.verbose = verbose
        if not filler:
            raise ValueError('no filler given; name one, such as "a".')
        self.sites  # noqa: B018 - an unknown layer or head is an error here, not in the middle of a run
        if perturbation is not None:
            as_perturbation(perturbation)

    @property
    def sites(self) -> Sites:
        """The sites that are patched, and the shape of the arrays."""
        return select_sites(self.component, self.ranker.n_layers, self.ranker.n_heads, self.heads, self.layers)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a ranker is interpreted, not run as a stage."""
        return {}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score, patch and rank.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.

        Warns:
            UserWarning: texts that the perturbation left as they were, and documents longer than the ranker takes.
        """
        check_results(self, inp, self.text_field)
        field, perturbed_field = self.text_field, f"{self.text_field}_perturbed"
        if perturbed_field not in inp.columns:
            inp = PerturbDocs(as_perturbation(self.perturbation or TFC1()), text_field=field).transform(inp)
        baseline_field = f"{field}_baseline" if f"{field}_baseline" in inp.columns else field
        check_rows(inp, ["query", field], optional={perturbed_field, baseline_field} - {field})

        queries = inp["query"].tolist()
        scores = self.ranker.score(queries, inp[field].tolist(), verbose=self.verbose)
        declared = inp["alignment"] if "alignment" in inp.columns else [None] * len(inp)
        patched = self._patch(
            queries,
            inp[baseline_field].where(inp[baseline_field].notna(), inp[field]).tolist(),
            [text if isinstance(text, str) else None for text in inp[perturbed_field]],
            [one_of("alignment", value, ALIGNMENTS) if isinstance(value, str) else "fill" for value in declared],
        )
        out = inp.drop(columns=_ADDED, errors="ignore").assign(score=scores, **patched)
        out.attrs = {**inp.attrs, METADATA: self._metadata()}
        return pt.model.add_ranks(out)

    def _metadata(self) -> dict[str, Any]:
        return {
            "sites": [[site.component, site.layer, site.head] for site in self.sites.sites],
            "direction": self.direction,
        }

    def _patch(
        self, queries: list[str], baselines: list[str], perturbed: list[str | None], alignments: list[str]
    ) -> dict[str, Any]:
        """The columns that patching adds."""
        changed = [i for i, text in enumerate(perturbed) if text is not None]
        same = [i for i in changed if perturbed[i] == baselines[i]]
        if same:
            warnings.warn(
                f"{len(same)} of {len(perturbed)} documents are the same after the perturbation; their effects are "
                "missing.",
                stacklevel=4,
            )
        rows = sorted(set(changed) - set(same))
        distinct, which = unique([(queries[i], baselines[i], perturbed[i], alignments[i]) for i in rows])
        results = _Columns(len(perturbed), self.sites, self.direction)
        if same:
            unchanged = self.ranker.score([queries[i] for i in same], [baselines[i] for i in same])
            results.set_scores(same, unchanged, unchanged)
        if distinct:
            encoded, swept = self._sweep(distinct)
            place = dict(zip(encoded, range(len(encoded)), strict=True))
            found = [(row, place[pair]) for row, pair in zip(rows, which, strict=True) if pair in place]
            results.set_sweep([row for row, _ in found], [pair for _, pair in found], swept)
        return results.columns(self.min_delta)

    def _sweep(self, keys: list[tuple[str, str, str | None, str]]) -> tuple[list[int], SweepResult]:
        """Sweep distinct pairs: which of them could be encoded, and their results, averaged over fillers."""
        from pyterrier_mechir.patching.sweep import sweep

        queries, baselines, perturbed, alignments = zip(*keys, strict=True)
        fillers = [self.filler] if isinstance(self.filler, str) else list(self.filler)
        aligned = self.ranker.align(queries, baselines, perturbed, alignments=alignments, filler=fillers)
        encoded = [i for i in range(len(keys)) if aligned[i] is not None]
        pairs = [pair for pair in aligned if pair is not None]
        inputs = self.ranker.query_inputs(unique(queries)[0])
        with pt.tqdm(total=len(pairs), desc=repr(self.ranker), unit="doc", disable=not self.verbose) as bar:
            swept = [self.sites.sites[i] for i in self.sites.swept]
            result = sweep(self.ranker, pairs, inputs, swept, self.direction, self.batch_size, progress=bar.update)
        return encoded, result.mean_over(len(fillers))


class _Columns:
    """The columns under construction, missing wherever nothing was set."""

    def __init__(self, n: int, sites: Sites, direction: str):
        self.sites = sites
        self.direction = direction
        self.baseline, self.perturbed = (np.full(n, np.nan, np.float32) for _ in range(2))
        ways = ("denoise", "noise") if direction == "both" else (direction,)
        self.patched = {way: np.full((n, len(sites.sites)), np.nan, np.float32) for way in ways}

    def set_scores(self, rows: list[int], baseline: np.ndarray, perturbed: np.ndarray) -> None:
        self.baseline[rows], self.perturbed[rows] = baseline, perturbed

    def set_sweep(self, rows: list[int], pairs: list[int], result: SweepResult) -> None:
        """Give rows the results of pairs."""
        self.set_scores(rows, result.baseline[pairs], result.perturbed[pairs])
        for way, values in self.patched.items():
            values[np.ix_(rows, self.sites.swept)] = getattr(result, way)[pairs]

    def columns(self, min_delta: float) -> dict[str, Any]:
        delta = self.perturbed - self.baseline
        delta[~(np.abs(delta) >= min_delta)] = np.nan
        effects = {
            way: (values - self.baseline[:, None] if way == "denoise" else self.perturbed[:, None] - values)
            / delta[:, None]
            for way, values in self.patched.items()
        }
        first = next(iter(effects))
        columns = {
            "score_baseline": self.baseline,
            "score_perturbed": self.perturbed,
            "patch_scores": self._cells(self.patched[first]),
            "patch_effect": self._cells(effects[first]),
        }
        if self.direction == "both":
            columns["patch_effect_noise"] = self._cells(effects["noise"])
        return columns

    def _cells(self, values: np.ndarray) -> Any:
        return pd.Series(list(values.reshape(len(values), *self.sites.shape)), dtype=object).to_numpy()
