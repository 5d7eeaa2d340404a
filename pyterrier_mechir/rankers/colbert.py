"""ColBERT: every token of the query takes its best match among the tokens of the document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mechir.models.modes import as_alone, over_same_memory
from pyterrier_mechir.rankers.dual_encoder import DualEncoder, in_one, inputs_of_model
from pyterrier_mechir.rankers.lengths import check_length
from pyterrier_mechir.text.alignment import words_of
from pyterrier_mechir.text.encoding import AlignedPair, Padding, Template

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch


class ColBERT(DualEncoder):
    """A late-interaction ranker such as ColBERTv2, answerai-colbert or GTE-ModernColBERT.

    The state of each token is projected to a short vector of length 1. The score is the sum, over the tokens of the
    query, of the greatest cosine with a token of the document. Queries are filled up with [MASK] tokens, which count as
    others do. What is patched is the encoder of the document, or of the query where queries are perturbed.

    A perturbed query and its baseline have as many tokens, and so as many masks: these are positions of the sequence
    like any other (of token class ``SEP``), patched with all others. Where one side of a pair has attention-masked
    positions in the place of an insertion (alignment ``mask``), these take no part in the score.

    Args:
        model: a Hugging Face id or directory of a checkpoint of colbert-ir, of PyLate, or of a sentence-transformers
            ``MultiVectorEncoder``, or that, loaded: these are read with all their settings, and what is not computed
            is an error that names it; or a loaded ``(model, tokenizer)``.
        projection: the weight of the linear map of token states, ``[dim, hidden]``, without a bias: of a loaded model,
            which does not have it. None takes the checkpoint's own.
        query_length: how many tokens queries have, with special ones and masks. None takes the checkpoint's own, else
            32.
        query_marker: the token after the first of every query; ``""`` for none. None takes the checkpoint's own, else
            ``[unused0]``.
        doc_marker: the same of documents; else ``[unused1]``.
        mask_punctuation: whether punctuation of documents is left out of the score. None takes the checkpoint's own,
            which may name other tokens, else True.
        expand_queries: whether queries are filled up with masks. None takes the checkpoint's own, else True.
        attend_to_masks: whether the tokens of a query attend to these masks. None takes the checkpoint's own, else
            False, as in ColBERTv2.
        max_length: longest document, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: a checkpoint that cannot be loaded, a projection that is missing or does not fit, a marker that is
            no token of the vocabulary, or an unsupported architecture.
    """

    _read_apart = ("linear.weight",)

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | Any,
        *,
        projection: torch.Tensor | None = None,
        query_length: int | None = None,
        query_marker: str | None = None,
        doc_marker: str | None = None,
        mask_punctuation: bool | None = None,
        expand_queries: bool | None = None,
        attend_to_masks: bool | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        import torch

        from pyterrier_mechir.rankers.colbert_files import PUNCTUATION, read_colbert

        model, files = read_colbert(model)
        super().__init__(
            model,
            files.modules,
            query_prefix=None,
            doc_prefix=None,
            max_query_length=query_length,
            max_length=max_length,
            device=device,
            dtype=dtype,
            auto_class="AutoModel",
        )
        self.reads_first_token, self._encodes_positions = False, True
        self.projection = self._placed(files.projection if projection is None else projection)
        self.query_marker, self.doc_marker = files.query_marker, files.doc_marker
        if files.splits_prefix:
            self.query_marker, self.query_prefix = self._split(self.query_prefix)
            self.doc_marker, self.doc_prefix = self._split(self.doc_prefix)
        self.query_marker = self.query_marker if query_marker is None else query_marker
        self.doc_marker = self.doc_marker if doc_marker is None else doc_marker
        self.attend_to_masks = files.attends if attend_to_masks is None else attend_to_masks
        self.expand_queries = files.query_length is not None if expand_queries is None else expand_queries
        self.skipped = {None: files.skipped, True: PUNCTUATION, False: ()}[mask_punctuation]
        self.mask_punctuation = {PUNCTUATION: True, (): False}.get(self.skipped, self.skipped)
        known = self.tokenizer.get_vocab()
        self._skipped_ids = torch.tensor([known[token] for token in self.skipped if token in known], device=self.device)
        self._template, self._query_template = map(self._marked, (self.doc_marker, self.query_marker))
        for name, length, template in (
            ("max_length", self.max_length, self._template),
            ("query_length", self.max_query_length, self._query_template),
        ):
            check_length(name, length, template, self.model, type(self).__name__)
        if self.expand_queries:
            length = query_length or files.query_length or self.max_query_length
            self._query_template = self._query_template.padded(self._masks(length))

    def _placed(self, projection: torch.Tensor | None) -> torch.Tensor:
        hidden = self.model.config.hidden_size
        if projection is None or projection.ndim != 2 or projection.shape[1] != hidden:
            raise ValueError(
                f"give a loaded model its projection=weight, of shape [dim, {hidden}]; this is "
                f"{None if projection is None else list(projection.shape)}."
            )
        return over_same_memory(projection.detach()).to(self.device, self.model.dtype)

    def _split(self, prefix: str) -> tuple[str, str]:
        """A marker, a token that was added to the vocabulary, and the rest of a text that comes before texts."""
        added = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        marker = next((token for token in added if prefix.startswith(token)), "")
        return marker, prefix.removeprefix(marker)

    def _marked(self, marker: str) -> Template:
        known, template = self.tokenizer.get_vocab(), self._made_template()
        if not marker:
            return template
        if not len(template.around[0]):
            raise ValueError(
                f"markers come after the first special token, which the tokenizer of {self!r} does not put."
            )
        if marker not in known and marker.strip() not in known:
            raise ValueError(
                f"the marker {marker!r} is no token of the vocabulary; name one by query_marker= and doc_marker=, or "
                "give '' for none."
            )
        return template.with_marker(known[marker if marker in known else marker.strip()])

    def _masks(self, length: int) -> Padding:
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise ValueError(f"{self!r} has a tokenizer without a mask token; give expand_queries=False.")
        return Padding(mask, length, self.attend_to_masks)

    @property
    def dim(self) -> int:
        """The length of a token's vector."""
        return int(self.projection.shape[0])

    def _settings(self) -> dict[str, Any]:
        names = ("query_marker", "doc_marker", "query_prefix", "doc_prefix", "max_query_length")
        of_late = ("mask_punctuation", "expand_queries", "attend_to_masks", "dim")
        return {name: getattr(self, name) for name in (*names, *of_late)}

    def _key(self) -> tuple[Any, ...]:
        of_loaded = (self.projection.data_ptr(),) if isinstance(self._checkpoint, int) else ()
        return (*super()._key(), *of_loaded)

    def _weights(self) -> dict[str, torch.Tensor]:
        return super()._weights() | {"projection": self.projection}

    def encode(self, batch: Batch) -> torch.Tensor:
        """The vectors of all tokens, of length 1, ``[B, S, dim]``, in float32."""
        import torch

        states = self.twin(**inputs_of_model(batch), **self._switches).last_hidden_state
        vectors = torch.nn.functional.linear(states, self.projection).float()
        return torch.nn.functional.normalize(vectors, dim=-1)

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        import torch

        cosines = torch.einsum("bsd,btd->bst", encoded, batch["query_vectors"])
        counted, weights = self.counted(batch), batch["query_weights"]
        if self.varies == "document":
            best = cosines.masked_fill(~counted.unsqueeze(2), float("-inf")).amax(1)
            return (best * weights).sum(1)
        best = cosines.masked_fill((weights == 0).unsqueeze(1), float("-inf")).amax(2)
        if "own_weights" in batch:
            best = best * batch["own_weights"][:, : best.shape[1]]
        return (best * counted).sum(1)

    def matches(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What each token of a document adds to the score for each vector of the query, ``[B, S, T]``.

        A vector's cosine with the token that matches it best, the first of several, else 0: all of them add up to the
        score. The ranker faces documents, and the batch has query inputs.

        Args:
            encoded: what :meth:`encode` made of ``B`` documents.
            batch: their inputs, with those of their queries.
        """
        import torch

        cosines = torch.einsum("bsd,btd->bst", encoded, batch["query_vectors"])
        best, at = cosines.masked_fill(~self.counted(batch).unsqueeze(2), float("-inf")).max(1)
        return torch.zeros_like(cosines).scatter_(1, at.unsqueeze(1), (best * batch["query_weights"]).unsqueeze(1))

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        import torch

        other, vectors = self._other_side(), [self.projection] * len(queries)
        for index, batch, encoded in other.encoded(queries):
            for number, of_text, counted in zip(index, encoded, other.counted(batch), strict=True):
                vectors[number] = of_text[counted]
        weights = [torch.ones(len(of_text), device=self.device) for of_text in vectors]
        return {"query_vectors": in_one(vectors), "query_weights": in_one(weights)}

    def counted(self, batch: Batch) -> torch.Tensor:
        """Which positions take part in MaxSim, bool ``[B, S]``."""
        import torch

        ids, attended, masks = batch["input_ids"], batch["attention_mask"].bool(), self._template.padding
        if self.varies == "document":
            return attended & ~torch.isin(ids, self._skipped_ids)
        if masks is None:
            return attended
        return attended | ((ids == masks.token) & (torch.arange(ids.shape[1], device=ids.device) < masks.length))

    @as_alone()
    def of_query_token(
        self, token: str | int, pairs: Sequence[AlignedPair], contexts: Sequence[str]
    ) -> tuple[list[AlignedPair], Batch]:
        """Pairs and query inputs with which ``compare`` gives what one token of the query adds to the score.

        Args:
            token: as in :class:`~pyterrier_mechir.QueryTokenScore`.
            pairs: the aligned pairs.
            contexts: the distinct queries, or documents where queries vary.
        """
        inputs = self.query_inputs(contexts)
        if self.varies == "document":
            fill = ["fill"] * len(contexts)
            queries = self._other_side().align([""] * len(contexts), contexts, contexts, alignments=fill)
            width = inputs["query_weights"].shape[1]
            return list(pairs), inputs | {"query_weights": self._weights_at(token, queries, width)}
        numbered = [replace(pair, query=row) for row, pair in enumerate(pairs)]
        of_pairs = {name: value[[pair.query for pair in pairs]] for name, value in inputs.items()}
        width = max((len(pair.words) for pair in pairs), default=0)
        return numbered, of_pairs | {"own_weights": self._weights_at(token, pairs, width)}

    def _weights_at(self, token: str | int, queries: Sequence[AlignedPair | None], width: int) -> torch.Tensor:
        """``[N, width]``: 1 at the positions of a query that have the token, else 0; NaN for a query without it."""
        import torch

        weights = np.zeros((len(queries), width), dtype=np.float32)
        for row, query in zip(weights, queries, strict=True):
            assert query is not None, "a text beside itself has no edit that could be lost"
            places = self._places(token, query)
            row[places if len(places) else slice(None)] = 1 if len(places) else np.nan
        return torch.from_numpy(weights).to(self.device)

    def _places(self, token: str | int, query: AlignedPair) -> np.ndarray:
        """The positions at which a query has a token: a position, a special token or a word."""
        n, spellings = len(query.words), self.vocabulary.spellings
        if isinstance(token, int):
            return np.array([token % n] if -n <= token < n else [], dtype=np.int64)
        names = np.array(self.tokenizer.convert_ids_to_tokens(query.perturbed.ids.tolist()), dtype=object)
        is_special = (query.segments < 0) & (names == token)
        if is_special.any():
            return np.flatnonzero(is_special)
        word = "".join(spellings[self.vocabulary.pieces([token])[0]])
        found = [at for spelling, at in words_of(query.perturbed.ids, query.words, spellings) if spelling == word]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])
