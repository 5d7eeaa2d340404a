"""Each document's score with each component of a ranker switched off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.interventions.edited import SIDES
from pyterrier_mechir.interventions.edits import Ablate
from pyterrier_mechir.interventions.means import Means
from pyterrier_mechir.interventions.vectors import place_of
from pyterrier_mechir.models.sites import Sites, select_sites
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.frames import METADATA, as_cells
from pyterrier_mechir.stages.base.text_stage import TextStage
from pyterrier_mechir.stages.results_writer import Storing

if TYPE_CHECKING:
    from pyterrier_mechir.patching.cost import Cost


class AblationScorer(TextStage, Storing):
    """Re-ranks, and gives each document's score with each site of the ranker ablated by itself.

    An ablated head gives the same whatever it reads: nothing (``zero``), what it gives on the average (``mean``), or
    what it gives for another text (``resample``; Michel et al., 2019, and SIGIR's own uses of it ablate by zero). All
    sites are ablated in one sweep: a text is run once up to a layer, and from there once for each site of the layer.
    What that does to rankings, :class:`~pyterrier_mechir.RankingEffects` tells.

    Expected input columns: ``qid, query, docno, text``. Adds ``score`` and ``rank`` (the ranker's own), and
    ``ablated_scores``: float32 ``[layer, head]`` for heads and their q, k and v, ``[layer, neuron]``, ``[layer]`` for
    any other component, or ``[entry]`` with sets in ``heads``: the score with that site ablated, as
    ``ranker.edited([Ablate(site, ...)])`` gives it; NaN where ``heads`` or ``layers`` leave a site out.

    ``attrs["mechir"]["scorer"]`` says what was ablated how, and ``reference``: whose means or texts were taken.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        component: what is ablated: ``head``, ``attn_out``, ``mlp_out`` or any other that ``ranker.sites()`` lists but
            patterns, or a list of these.
        by: ``mean``, ``zero`` or ``resample``.
        reference: what means and other texts are taken from: a frame with ``query`` and ``text``, texts, or, for means,
            what :func:`~pyterrier_mechir.head_means` gives. None takes the documents of the frame itself, so that a
            score depends on the frame that it comes in.
        side: of rankers that encode queries and documents apart, what is ablated: ``both`` alike, as in an edit that is
            saved, ``query`` or ``document``.
        heads: only these (layer, head), names of sites, or lists of these, which are ablated together.
        layers: only these layers.
        per: ``"position class"`` takes a mean for each class of positions.
        seed: of the draw of ``resample``.
        text_field: column of the document text.
        batch_size: documents in a batch; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown option, a site that the ranker does not have or that cannot be ablated, or one side of a
            ranker that reads both together.
    """

    schematic: ClassVar = {"label": "AblationScorer"}

    added: ClassVar = ("score", "rank", "ablated_scores")

    def __init__(
        self,
        ranker: Ranker,
        component: str | Sequence[str] = "head",
        by: str = "mean",
        reference: Any = None,
        side: str = "both",
        *,
        heads: Sequence[Any] | None = None,
        layers: Sequence[int] | None = None,
        per: str | None = None,
        seed: int = 0,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        super().__init__(ranker, text_field=text_field, batch_size=batch_size, verbose=verbose)
        self.component = component
        self.by = by
        self.reference = reference
        self.side = one_of("side", side, SIDES)
        self.heads = heads
        self.layers = layers
        self.per = per
        self.seed = seed
        self._ablation = Ablate("", by, reference, per, seed)
        if self.side != "both" and self.ranker.reads_query:
            raise ValueError(f"{self.ranker!r} reads query and document together; leave out side={side!r}.")
        for site in {(site.component, site.layer): site for one in self.sites.patched for site in one.members}.values():
            key, _ = place_of(self.ranker, site.name)
            self.ranker.anatomy.port(*key)

    @property
    def sites(self) -> Sites:
        """The sites that are ablated, and the shape of the arrays."""
        return select_sites(self.component, self.ranker.anatomy, self.heads, self.layers)

    @property
    def whole_frame(self) -> str:
        if self.by == "zero" or self.reference is not None:
            return ""
        return (
            f"by={self.by!r} takes its reference of the whole frame, so it cannot be written in parts; give "
            "reference=, a frame or texts"
        )

    def about(self, *, fingerprint: bool = False) -> dict[str, Any]:
        """What decides the results: ``ranker`` and ``scorer``, as those of :class:`~pyterrier_mechir.PatchScorer`."""
        reference = self._ablation.told().get("reference", "the documents of the frame")
        scorer = {
            "stage": "AblationScorer",
            "component": self.component if isinstance(self.component, str) else list(self.component),
            "by": self.by,
            "reference": "none" if self.by == "zero" else reference,
            "side": self.side,
            "heads": None if self.heads is None else repr(self.heads),
            "layers": None if self.layers is None else list(self.layers),
            "per": self.per,
            "seed": self.seed,
            "text_field": self.text_field,
        }
        return {"ranker": self.ranker.about(fingerprint=fingerprint), "scorer": scorer}

    def estimate(self, frame: pd.DataFrame, *, seconds: float = 10.0) -> Cost:
        """What scoring a frame will cost on this device, before it is paid.

        Some of its documents are scored to find out.

        Args:
            frame: what the stage would be given.
            seconds: about how long the probe may take.

        Returns:
            Forward passes, tokens, seconds and memory (:class:`~pyterrier_mechir.patching.cost.Cost`); printed, one
            line.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, or a (qid, docno) that comes twice.
        """
        from pyterrier_mechir.interventions.ablation import estimated

        made = self.prepared(frame)
        return estimated(
            self.ranker, made["query"].tolist(), made[self.text_field].tolist(), self.sites.patched, self.side, seconds
        )

    def _scored(self, queries: list[str], texts: list[str]) -> dict[str, Any]:
        from pyterrier_mechir.interventions.ablation import ablated_scores, keys_of
        from pyterrier_mechir.interventions.references import given_for

        sites = self.sites
        found = np.full((len(texts), len(sites.sites)), np.nan, np.float32)
        scores = np.empty(0, np.float32)
        if texts:
            own = pd.DataFrame({"query": queries, "text": texts})
            reference = own if self.reference is None else self.reference
            keys = keys_of(self.ranker, sites.patched)
            given = given_for(self.ranker, keys, self.by, reference, self.per, self.seed)
            with pt.tqdm(total=len(texts), desc=repr(self.ranker), unit="doc", disable=not shown(self.verbose)) as bar:
                scores, swept = ablated_scores(
                    self.ranker, queries, texts, sites.patched, given, self.side, self.batch_size, bar.update
                )
            found[:, list(sites.swept)] = swept
        return {"score": scores, "ablated_scores": as_cells(row.reshape(sites.shape) for row in found)}

    def _metadata(self, inp: pd.DataFrame) -> dict[str, Any]:
        said = {**self.about(), "sites": [site.name for site in self.sites.sites]}
        return {METADATA: inp.attrs.get(METADATA, {}) | said}

    def _key(self) -> tuple[Any, ...]:
        given = self.reference if isinstance(self.reference, Means) else self._ablation
        return (self.ranker, self.component, self.side, repr(self.heads), repr(self.layers), self.text_field, given)
