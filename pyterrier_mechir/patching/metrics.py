"""Metrics: what else than its score a patch may move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.components import ACTIVATIONS, BEFORE_ATTENTION, CODED
from pyterrier_mechir.models.sites import Sites
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch, Opened
    from pyterrier_mechir.models.sites import Site
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.colbert import ColBERT
    from pyterrier_mechir.rankers.splade import Splade
    from pyterrier_mechir.text.encoding import AlignedPair


class Metric(Protocol):
    """What ``PatchScorer(metric=...)`` measures; its ``repr`` has all settings, since results are stored with it."""

    at_end: ClassVar[bool]
    """Whether the metric is computed after the last layer, so that paths may end at the final stream."""

    def check(self, ranker: Ranker) -> None:
        """Check that the metric can be measured in a ranker.

        Raises:
            ValueError: it cannot, and the message says what the ranker lacks.
        """

    def upstream(self, sites: Sites) -> Sites:
        """Leave out the sites that cannot move the metric, since it is computed before them.

        Args:
            sites: the sites that are asked for.

        Returns:
            The same sites in the same shape, of which only those are swept that come before the metric.

        Raises:
            ValueError: no site does.
        """

    def observed(
        self, ranker: Ranker, pairs: Sequence[AlignedPair], contexts: Sequence[str]
    ) -> tuple[Opened, list[AlignedPair], Batch]:
        """What a sweep needs to measure this in place of the score.

        Args:
            ranker: the ranker, which stays as it is.
            pairs: the aligned pairs.
            contexts: the distinct queries, or documents where queries vary, that ``pair.query`` indexes.

        Returns:
            The model with the metric as its forward; the pairs, whose ``query`` may be numbered anew; and the query
            inputs that this forward reads, which the new ``pair.query`` indexes.
        """


@dataclass(frozen=True)
class AttentionTo:
    """The attention of one head, from the positions of a token class to those of another.

    The mean, over the positions of the one class, of the attention that goes to all positions of the other. As
    ``PatchScorer(metric=...)`` it says which components make a head look where it looks (Lu, Chen and Eickhoff, EMNLP
    2025).

    Args:
        head: (layer, head).
        of: the token class that attends, one of :data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`.
        to: the token class that is attended to.

    Raises:
        ValueError: an unknown token class.
    """

    head: tuple[int, int]
    of: str
    to: str

    at_end: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("token class", self.of, TOKEN_CLASSES)
        one_of("token class", self.to, TOKEN_CLASSES)

    def check(self, ranker: Ranker) -> None:
        """Check that a ranker has the head.

        Raises:
            ValueError: it does not, or its attention cannot be read.
        """
        layer, head = self.head
        anatomy = ranker.anatomy
        if layer not in range(anatomy.n_layers) or head not in range(anatomy.n_heads):
            raise ValueError(
                f"no head {self.head} to look at: the model has layers 0 to {anatomy.n_layers - 1} of heads 0 to "
                f"{anatomy.n_heads - 1}."
            )
        anatomy.port(layer, "pattern")

    def upstream(self, sites: Sites) -> Sites:
        """The sites, of which only those that the head's attention comes after, or sets with such a site, are swept.

        Raises:
            ValueError: none is.
        """
        return sites.only(
            self._comes_after,
            otherwise=f"no component to patch lies before the attention of head {self.head}; choose components of "
            "earlier layers, or a later head.",
        )

    def _comes_after(self, site: Site) -> bool:
        layer, _ = self.head
        activation = ACTIVATIONS[site.component].removesuffix(CODED)
        return site.layer < layer or (site.layer == layer and activation in BEFORE_ATTENTION)

    def observed(
        self, ranker: Ranker, pairs: Sequence[AlignedPair], contexts: Sequence[str]
    ) -> tuple[Opened, list[AlignedPair], Batch]:
        """What a sweep needs to measure this, as ``Metric.observed`` says.

        Each pair has a row of its own in the query inputs: the positions that attend, and those that are attended to.
        """
        import torch

        width = max((len(pair.classes) for pair in pairs), default=0)
        masks = {name: np.zeros((len(pairs), width), dtype=np.float32) for name in ("of", "to")}
        for row, pair in enumerate(pairs):
            for name, kind in (("of", self.of), ("to", self.to)):
                masks[name][row, : len(pair.classes)] = (pair.classes == TOKEN_CLASSES.index(kind)) & pair.is_open
        own = ranker.opened
        opened = replace(
            own.giving(partial(self._mass, own)), reads_first_token=False, reads_at=None, reads_within=True
        )
        inputs = {name: torch.from_numpy(mask).to(ranker.device) for name, mask in masks.items()}
        return opened, [replace(pair, query=row) for row, pair in enumerate(pairs)], inputs

    def _mass(self, opened: Opened, batch: Batch) -> torch.Tensor:
        """The mean attention ``[B]`` of runs; missing where a run has no position of either class."""
        from pyterrier_mechir.models.attention import on_pattern
        from pyterrier_mechir.models.ports import on_port
        from pyterrier_mechir.models.recording import ending_early

        layer, head = self.head
        length = batch["input_ids"].shape[1]
        of, to = (batch[name][:, :length] for name in ("of", "to"))
        read: list[torch.Tensor] = []

        def keep(weights: torch.Tensor) -> None:
            of_head = weights[:, head].float()
            mass = (of_head * of[:, :, None] * to[:, None, :]).sum((1, 2))
            is_there = (of.sum(1) > 0) & (to.sum(1) > 0)
            read.append((mass / of.sum(1).clamp_min(1)).masked_fill(~is_there, float("nan")))

        port = opened.anatomy.port
        with (
            ending_early() as end,
            on_pattern(port(layer, "pattern").module, keep),
            on_port(port(layer, "resid_post"), lambda stream: end()),
        ):
            opened.encode({name: value for name, value in batch.items() if name not in ("of", "to")})
        return read[0]


@dataclass(frozen=True)
class TermWeight:
    """The weight of one vocabulary term in the vector that a :class:`~pyterrier_mechir.Splade` makes of a text.

    As ``PatchScorer(splade, metric=TermWeight("tide"))`` it says which components make the model expand a document by a
    term (or a query, where queries are perturbed), whatever else they do to the score.

    Args:
        term: a word that is one token of the vocabulary, or a token as :meth:`~pyterrier_mechir.Splade.expand` gives
            it.
    """

    term: str

    at_end: ClassVar[bool] = True

    def check(self, ranker: Ranker) -> None:
        """Check that a ranker has a weight of the term.

        Raises:
            ValueError: it has no vector over the vocabulary, or the term is not a single token.
        """
        self._splade(ranker).term_inputs(self.term)

    def upstream(self, sites: Sites) -> Sites:
        """The sites: the vector comes after all of them."""
        return sites

    def observed(
        self, ranker: Ranker, pairs: Sequence[AlignedPair], contexts: Sequence[str]
    ) -> tuple[Opened, list[AlignedPair], Batch]:
        """What a sweep needs to measure this, as ``Metric.observed`` says."""
        return ranker.opened, [replace(pair, query=0) for pair in pairs], self._splade(ranker).term_inputs(self.term)

    def _splade(self, ranker: Ranker) -> Splade:
        from pyterrier_mechir.rankers.splade import Splade

        if not isinstance(ranker, Splade):
            raise ValueError(f"{ranker!r} gives texts no vector over the vocabulary; TermWeight takes a Splade.")
        return ranker


@dataclass(frozen=True)
class QueryTokenScore:
    """What one token of the query adds to the score of a :class:`~pyterrier_mechir.ColBERT`: its greatest cosine.

    As ``PatchScorer(colbert, metric=QueryTokenScore("tides"))`` it says which components make a document match a word
    of the query. Pairs whose query has no such token are missing.

    Args:
        token: a word of the query, all of whose pieces and occurrences are summed; or a special token, such as
            ``"[MASK]"`` for all masks together; or a position, counted from the first token (``[CLS]``, which is 0), or
            from the last where it is negative. Where queries are perturbed, a word of the perturbed query; on the other
            side, the positions are the same.
    """

    token: str | int

    at_end: ClassVar[bool] = True

    def check(self, ranker: Ranker) -> None:
        """Check that a ranker scores token by token.

        Raises:
            ValueError: it does not.
        """
        self._colbert(ranker)

    def upstream(self, sites: Sites) -> Sites:
        """The sites: MaxSim comes after all of them."""
        return sites

    def observed(
        self, ranker: Ranker, pairs: Sequence[AlignedPair], contexts: Sequence[str]
    ) -> tuple[Opened, list[AlignedPair], Batch]:
        """What a sweep needs to measure this, as ``Metric.observed`` says."""
        return (ranker.opened, *self._colbert(ranker).of_query_token(self.token, pairs, contexts))

    def _colbert(self, ranker: Ranker) -> ColBERT:
        from pyterrier_mechir.rankers.colbert import ColBERT

        if not isinstance(ranker, ColBERT):
            raise ValueError(f"{ranker!r} does not score token by token; QueryTokenScore takes a ColBERT.")
        return ranker
