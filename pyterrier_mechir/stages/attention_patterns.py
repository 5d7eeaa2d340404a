"""What attention heads look at, as a pipeline stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.checks import check_batch_size
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.progress import shown
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.unwrap import document_ranker
from pyterrier_mechir.results.frames import METADATA, as_cells, perturbed_side
from pyterrier_mechir.stages.base.checks import check_results
from pyterrier_mechir.stages.base.keyed import Keyed
from pyterrier_mechir.stages.base.rows import PairRows
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.idf import Idf
from pyterrier_mechir.text.words import STOPWORDS

if TYPE_CHECKING:
    from pyterrier_mechir.observe.attention_summary import AttentionSummary

RARE = math.log(100)
"""The idf of a term that one document in a hundred has."""


class AttentionPatterns(Keyed, pt.Transformer):
    """Reads what each attention head looks at, in each document: the mass that goes from token class to token class.

    Expected input columns: ``qid, query, docno, text``. With ``text_perturbed`` or ``query_perturbed`` (and,
    optionally, ``alignment`` and ``text_baseline`` or ``query_baseline``), the perturbed side's attention is read, on
    the pair aligned as for patching with filler ``a``, with the classes of its edit; without, that of the plain
    sequence, in which nothing is edited. For a bi-encoder the sequence is the document, or the query where queries are
    perturbed.

    Adds, one row per document:

    - ``score``, ``rank``: the ranker's own score of the text, so that the output is an ordinary re-ranking;
    - ``attention``: float32 array, ``[layer, head, from class, to class]``, or ``[head, from class, to class]`` with
      ``heads``. The classes are :data:`~pyterrier_mechir.text.encoding.TOKEN_CLASSES`, in that order. An entry is
      the attention that goes to all positions of one class, averaged over the positions of the other that it comes
      from: each row sums to one, and is NaN where the sequence has no position of that class;
    - ``feature_attention``, with ``features`` only: float32 array, ``[layer, head, feature]`` or ``[head, feature]``.
      Of all attention but that to the first position, where heads put what they do not use, it is the share that goes
      along the pairs of positions that the feature names: N_f = sum over (i, j) of P_f, j > 0, of a_ij / sum over
      i and j > 0 of a_ij (Perlman, Nijasure and Allan).

    Attention-masked positions count nowhere. A row without a perturbed text, in a frame that has such texts, has NaN
    throughout. ``frame.attrs["mechir"]`` holds the names of the ``heads``, ``classes`` and ``features`` in their order.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        heads: only these, as (layer, head) or names such as ``"L5H8"``, in this order; None reads all.
        features: any of ``lexical_match`` (the positions are of two occurrences of the same word), ``rarity`` (the
            position looked at is of a word of idf above ``rare_above``) and ``interaction`` (one position is of the
            query and the other of the document; for cross-encoders). Words are compared lower-cased; an unknown token
            is no word.
        idf: where the document frequencies that ``rarity`` needs come from, whatever
            :meth:`~pyterrier_mechir.perturb.Idf.of` takes. A word that the collection lacks is rare, unless it is
            a function word.
        rare_above: the idf above which a word is rare; by default that of a word that one document in a hundred has,
            ln 100 = 4.6, which no word of a collection of fewer than a hundred documents exceeds.
        text_field: column of the document text.
        batch_size: sequences that are read together; None batches by length.
        verbose: show a progress bar.

    Raises:
        TypeError: ``ranker`` is no ranker.
        ValueError: an unknown head or feature, a feature that lacks its ``idf`` or its query, or a ranker whose
            attention weights cannot be read.
    """

    schematic: ClassVar = {"label": "AttentionPatterns"}

    def __init__(
        self,
        ranker: Ranker,
        heads: Sequence[Any] | None = None,
        *,
        features: str | Sequence[str] = (),
        idf: Any = None,
        rare_above: float = RARE,
        text_field: str = "text",
        batch_size: int | None = None,
        verbose: bool = False,
    ):
        from pyterrier_mechir.observe.attention_summary import ATTENTION_FEATURES

        self.ranker = document_ranker(ranker)
        self.heads = heads
        self.features = (features,) if isinstance(features, str) else tuple(features)
        self.idf = None if idf is None else Idf.of(idf)
        self.rare_above = rare_above
        self.text_field = text_field
        self.batch_size = check_batch_size(batch_size)
        self.verbose = verbose
        self.ranker.anatomy.port(0, "pattern")
        for feature in self.features:
            one_of("feature", feature, ATTENTION_FEATURES)
        if "rarity" in self.features and self.idf is None:
            raise ValueError("the feature 'rarity' needs idf=: an index, a dataset, documents or a mapping.")
        if "interaction" in self.features and not ranker.reads_query:
            raise ValueError(f"the feature 'interaction' needs query and document in one sequence; {ranker!r} has one.")
        self._sites  # noqa: B018 - an unknown head is an error here, not in the middle of a run

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a ranker is interpreted, not run as a stage."""
        return {}

    @property
    def _sites(self) -> list[Site]:
        """The heads that are read, in the order of the arrays."""
        from pyterrier_mechir.observe.attention import head_sites

        return head_sites(self.ranker.anatomy, self.heads)

    @as_alone()
    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Read the attention and rank the documents.

        Raises:
            pt.validate.InputValidationError: a column is missing.
            ValueError: a query or text that is not a string, a (qid, docno) that comes twice, or a perturbation of
                alignment ``free``.

        Warns:
            UserWarning: perturbed documents longer than the ranker takes.
        """
        check_results(self, inp, self.text_field)
        is_plain = perturbed_side(inp, self.text_field) is None
        queries, texts = inp["query"].tolist(), inp[self.text_field].tolist()
        pairs = PairRows.unedited(inp, self.text_field) if is_plain else PairRows.of(inp, self.text_field)
        rows, summary = self._summary(pairs)
        sites = self._sites
        anatomy, n = self.ranker.anatomy, len(inp)
        shape = (anatomy.n_layers, anatomy.n_heads) if self.heads is None else (len(sites),)
        score = np.full(n, np.nan, np.float32)
        if is_plain:
            score[list(rows)] = summary.scores[list(rows.values())] if rows else ()
        else:
            score = self.ranker.score(queries, texts, batch_size=self.batch_size)
        added: dict[str, Any] = {"score": score, "attention": _column(summary.classes, rows, n, shape)}
        if self.features:
            added["feature_attention"] = _column(summary.features, rows, n, shape)
        out = inp.drop(columns=["score", "rank", "attention", "feature_attention"], errors="ignore").assign(**added)
        metadata = {"heads": [site.name for site in sites], "classes": list(TOKEN_CLASSES)}
        metadata |= {"features": list(self.features)} if self.features else {}
        out.attrs = inp.attrs | {METADATA: inp.attrs.get(METADATA, {}) | metadata}
        return pt.model.add_ranks(out)

    def _summary(self, pairs: PairRows) -> tuple[dict[int, int], AttentionSummary]:
        """The attention of distinct pairs, and which of them each row that has one is."""
        from pyterrier_mechir.observe.attention_summary import labels_of, summarise_attention

        ranker = self.ranker.facing(pairs.side)
        aligned = pairs.aligned(ranker, [row for row, text in enumerate(pairs.perturbed) if text is not None])
        encoded = {i: pair for i, pair in enumerate(aligned.pairs) if pair is not None}
        place = dict(zip(encoded, range(len(encoded)), strict=True))
        labels = labels_of(list(encoded.values()), self.ranker.tokenizer, self._is_rare)
        inputs = ranker.query_inputs(aligned.contexts)
        heads = [(site.layer, int(site.number or 0)) for site in self._sites]
        with pt.tqdm(total=len(encoded), desc=repr(self.ranker), unit="doc", disable=not shown(self.verbose)) as bar:
            summary = summarise_attention(
                ranker, list(encoded.values()), labels, inputs, heads, self.features, self.batch_size, bar.update
            )
        return {row: place[i] for row, i in aligned.places.items() if i in place}, summary

    def _is_rare(self, word: str) -> bool:
        if "rarity" not in self.features or self.idf is None:
            return False
        value = self.idf(word)
        if value is None:
            return word not in STOPWORDS and bool(self.idf.analyse(word))
        return value > self.rare_above


def _column(values: np.ndarray, rows: dict[int, int], n: int, shape: tuple[int, ...]) -> Any:
    """An array per row, NaN in rows that have none."""
    missing = np.full(values.shape[1:], np.nan, np.float32)
    cells = [values[rows[row]] if row in rows else missing for row in range(n)]
    return as_cells([cell.reshape(*shape, *cell.shape[1:]) for cell in cells])
