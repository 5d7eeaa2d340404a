"""Patching by feature of a sparse autoencoder, as a pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir.models.sites import activation_of, parse_site
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.stages.base.keyed import Keyed
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.fillers import Filler

if TYPE_CHECKING:
    from pyterrier_mechir.models.autoencoder import Autoencoder


class PatchFeatures(Keyed, pt.Transformer):
    """Patches single features of a sparse autoencoder, and says how far the score moves.

    At the autoencoder's site, the activation of the run being patched moves by what the feature's change makes:
    x + decode(f with the other run's value of the feature) - decode(f), where f = encode(x). What the autoencoder does
    not explain stays as it is, so that a feature that does not change has no effect.

    Expected input columns and what is added are those of :class:`~pyterrier_mechir.PatchScorer`; the arrays are
    ``[feature]``, in the order of ``frame.attrs["mechir"]["sites"]``, whose names are like ``L5.resid_post.F12``, so
    that :class:`~pyterrier_mechir.AggregateHeads` ranks features as it ranks heads.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        autoencoder: anything with ``encode`` and ``decode``, such as
            :meth:`SparseAutoencoder.load <pyterrier_mechir.SparseAutoencoder.load>` or an autoencoder of SAELens.
        site: where it belongs: ``attn_out``, ``mlp_out``, ``resid_pre``, ``resid_mid`` or ``resid_post`` of a layer.
        features: their numbers; None takes the ``k`` that differ most between the sides, over all pairs of the frame,
            so that which they are depends on the frame.
        k: how many, where ``features`` does not say which.
        positions: as in :class:`~pyterrier_mechir.PatchScorer`, like all that follow.
        direction: ``denoise``, ``noise`` or ``both``.
        perturbation: applied where the input has no perturbed text.
        filler: what stands against insertions.
        min_delta: least abs(s_p - s_b) for which a normalised effect is given.
        text_field: column of the document text.
        batch_size: documents that are patched together.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker, or the autoencoder has no ``encode`` and ``decode``.
        ValueError: an unknown site, feature or option, or an autoencoder of another width.
    """

    schematic: ClassVar = {"label": "PatchFeatures"}

    def __init__(
        self,
        ranker: Ranker,
        autoencoder: Autoencoder,
        site: str,
        *,
        features: Sequence[int] | None = None,
        k: int = 20,
        positions: str | Sequence[int | str] = "all",
        direction: str = "denoise",
        perturbation: Perturbation | None = None,
        filler: Filler | Sequence[Filler] = "a",
        min_delta: float = 1e-3,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        self.ranker = document_ranker(ranker)
        self.autoencoder = autoencoder
        self.site = site
        self.features = None if features is None else [int(feature) for feature in features]
        self.k = k
        self.positions = positions
        self.direction = direction
        self.perturbation = perturbation
        self.filler = filler
        self.min_delta = min_delta
        self.text_field = text_field
        self.batch_size = batch_size
        self.verbose = verbose
        if k < 1:
            raise ValueError(f"k is {k}; patch at least one feature.")
        self._attached = self.ranker.attach(autoencoder, site)
        self._scorer([0] if self.features is None else self.features)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a ranker is interpreted, not run as a stage."""
        return {}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Patch.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: as for :class:`~pyterrier_mechir.PatchScorer`.
        """
        made = self._scorer([0]).perturbed(inp)
        features = self._most_changed(made) if self.features is None else self.features
        return self._scorer(features).transform(made)

    def _scorer(self, features: Sequence[int]) -> PatchScorer:
        names = ("positions", "direction", "perturbation", "filler", "min_delta", "text_field", "batch_size", "verbose")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        sites = [f"{self.site}.F{feature}" for feature in features]
        return PatchScorer(self._attached, f"{self.site.partition('.')[2]}.feature", heads=sites, **options)

    def _most_changed(self, frame: pd.DataFrame) -> list[int]:
        """The features that differ most between the sides of a frame's pairs, the most changed first."""
        from pyterrier_mechir.observe.differences import feature_changes

        pairs = PairRows.of(frame, self.text_field)
        ranker = self._attached.facing(pairs.side)
        site = parse_site(f"{self.site}.F0").members[0]
        aligned = pairs.changed(ranker, self.filler)
        changes = feature_changes(ranker, aligned, activation_of(site, ranker.n_layers))
        return np.argsort(-changes, kind="stable")[: self.k].tolist()
