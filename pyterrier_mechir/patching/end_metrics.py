"""Metrics at the end of a model: a part of its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pyterrier_mechir.patching.recording import Batch
    from pyterrier_mechir.patching.sites import Sites
    from pyterrier_mechir.rankers.base import Ranker
    from pyterrier_mechir.rankers.colbert import ColBERT
    from pyterrier_mechir.rankers.encoding import AlignedPair
    from pyterrier_mechir.rankers.splade import Splade


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
    ) -> tuple[Ranker, list[AlignedPair], Batch]:
        """A ranker whose score is the metric, as :meth:`~pyterrier_mechir.AttentionTo.observed` says."""
        return ranker, [replace(pair, query=0) for pair in pairs], self._splade(ranker).term_inputs(self.term)

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
    ) -> tuple[Ranker, list[AlignedPair], Batch]:
        """A ranker whose score is the metric, as :meth:`~pyterrier_mechir.AttentionTo.observed` says."""
        return (ranker, *self._colbert(ranker).of_query_token(self.token, pairs, contexts))

    def _colbert(self, ranker: Ranker) -> ColBERT:
        from pyterrier_mechir.rankers.colbert import ColBERT

        if not isinstance(ranker, ColBERT):
            raise ValueError(f"{ranker!r} does not score token by token; QueryTokenScore takes a ColBERT.")
        return ranker
