"""SPLADE: the score is the dot product of two sparse vectors over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.ports import overridden
from pyterrier_mechir.rankers.dual_encoder import DualEncoder, in_one, inputs_of_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pyterrier_mechir.models.edits import Edit
    from pyterrier_mechir.models.opened import Batch

POOLINGS = ("max", "sum")
ACTIVATIONS = ("relu", "log1p_relu")

_ELEMENTS = 2**25
"""Logits that are held at once."""


class Splade(DualEncoder):
    """A learned sparse retriever such as SPLADE++, SPLADE-v3 or the OpenSearch sparse encoders.

    Each term of the vocabulary weighs log(1 + relu(logit)) of the masked language model's head, at the position where
    that is greatest; the score of a document is the dot product of its vector with the query's. What is patched is the
    encoder of the document, or of the query where queries are perturbed.

    The vocabulary is as wide as all layers together, so a patched run computes only the terms that the other side's
    vector has; :class:`~pyterrier_mechir.TermWeight` measures what a patch does to a single one.

    Args:
        model: a Hugging Face id or directory of a masked language model, a loaded ``(model, tokenizer)``, or a
            ``SparseEncoder`` of sentence-transformers. That, or its directory, is read with its settings; what is not
            computed (``max_active_dims``, another similarity) is an error that names it.
        query_model: the encoder of queries, given in the same ways; None takes ``model`` for both. It has the same
            vocabulary.
        pooling: over the positions of a text, ``max``, or ``sum``, as in the first SPLADE. None reads a
            sentence-transformers checkpoint's own, else ``max``.
        activation: ``relu`` (log(1 + relu(x))), or ``log1p_relu`` (its log(1 + x) once more). None reads a
            sentence-transformers checkpoint's own, else ``relu``.
        query_prefix: put before every query. None reads the checkpoint's own prompts.
        doc_prefix: put before every document.
        max_query_length: longest query, in tokens with special ones; None takes ``max_length``.
        max_length: longest document, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: an unknown pooling or activation, a checkpoint that cannot be loaded, a model without a head over
            the vocabulary, two models of different vocabularies, or an unsupported architecture.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | Any,
        *,
        query_model: str | Path | tuple[Any, Any] | None = None,
        pooling: str | None = None,
        activation: str | None = None,
        query_prefix: str | None = None,
        doc_prefix: str | None = None,
        max_query_length: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        from pyterrier_mechir.rankers.modules import read_modules

        model, modules = read_modules(model, "Splade")
        self.pooling = one_of("pooling", pooling or modules.pooling or "max", POOLINGS)
        self.activation = one_of("activation", activation or modules.activation or "relu", ACTIVATIONS)
        super().__init__(
            model,
            modules,
            query_prefix=query_prefix,
            doc_prefix=doc_prefix,
            max_query_length=max_query_length,
            max_length=max_length,
            device=device,
            dtype=dtype,
            auto_class="AutoModelForMaskedLM",
        )
        self.reads_first_token = False
        self._projects = self._encodes_positions = self._is_projected()
        self._query_encoder: Splade | None = None
        if query_model is not None:
            of_queries = Splade(
                query_model,
                pooling=pooling,
                activation=activation,
                query_prefix=query_prefix,
                max_query_length=max_query_length,
                device=device,
                dtype=dtype,
            )
            self._pair_with(of_queries.facing("query"))

    def _pair_with(self, of_queries: Splade) -> None:
        if of_queries.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(f"{self!r} and {of_queries!r} have different vocabularies.")
        for one, other in ((self, of_queries), (of_queries, self)):
            one.query_prefix, one.max_query_length = other.doc_prefix, other.max_length
        self._query_encoder, of_queries._query_encoder = of_queries, self

    def _settings(self) -> dict[str, Any]:
        names = ("pooling", "activation", "query_prefix", "doc_prefix", "max_query_length")
        of_queries = {} if self._query_encoder is None else {"query_model": self._query_encoder.name}
        return {name: getattr(self, name) for name in names} | of_queries

    def _key(self) -> tuple[Any, ...]:
        queries = () if self._query_encoder is None else (self._query_encoder._checkpoint,)
        return (*super()._key(), *queries)

    @property
    def models(self) -> list[PreTrainedModel]:
        return [self.twin] if self._query_encoder is None else [self.twin, self._query_encoder.twin]

    def _weights(self) -> dict[str, torch.Tensor]:
        if self._query_encoder is None:
            return super()._weights()
        of_queries = self._query_encoder.model.state_dict()
        return super()._weights() | {f"query_model.{name}": weight for name, weight in of_queries.items()}

    def under(self, edits: Sequence[Edit], side: str = "both") -> Splade:
        made = super().under(edits, side)
        if self._query_encoder is not None:
            made._query_encoder = super(Splade, self._query_encoder).under(edits, side)
            made._query_encoder._query_encoder = made
        return made

    def _other_side(self) -> Splade:
        if self._query_encoder is None:
            return super()._other_side()
        other = copy(self._query_encoder)
        other._query_encoder, other.keeps_graph = self, self.keeps_graph
        return other

    def encode(self, batch: Batch) -> torch.Tensor:
        """What the vocabulary projection reads at each position, ``[B, S, d]``, in float32.

        Models of which it is not certain that this projection gives their logits have the logits themselves here.
        """
        with overridden([] if self._decoder is None else [(self._decoder, lambda states: states)]):
            return self.twin(**inputs_of_model(batch)).logits.float()

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        terms, places = batch["query_terms"].unique(return_inverse=True)
        weights = self._vectors(encoded, batch["attention_mask"], terms).gather(1, places)
        return (weights * batch["query_weights"]).sum(1)

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        sparse = dict(self._other_side()._sparse(queries))
        terms, weights = ([sparse[i][which] for i in range(len(queries))] for which in (0, 1))
        return {"query_terms": in_one(terms), "query_weights": in_one(weights)}

    @as_alone()
    def term_inputs(self, term: str) -> Batch:
        """The query inputs with which ``compare`` gives the weight of one term.

        Args:
            term: a word that is one token, or a token of the vocabulary.

        Raises:
            ValueError: it is neither.
        """
        import torch

        terms = torch.tensor([[self._term(term)]], device=self.device)
        return {"query_terms": terms, "query_weights": torch.ones_like(terms, dtype=torch.float32)}

    def _term(self, term: str) -> int:
        (pieces,) = self.vocabulary.pieces([term])
        if len(pieces) == 1 and pieces[0] != self.tokenizer.unk_token_id:
            return pieces[0]
        known = self.tokenizer.get_vocab()
        if term not in known:
            tokens = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(pieces)))
            raise ValueError(f"{term!r} is not a single token of the vocabulary of {self!r}, but {tokens or 'none'}.")
        return int(known[term])

    @as_alone()
    def expand(self, texts: Sequence[str], k: int | None = None) -> pd.DataFrame:
        """What documents are expanded to, or queries, with ``ranker.facing("query").expand(queries)``.

        Args:
            texts: the texts.
            k: only the terms of greatest weight of each; None for all terms with weight.

        Returns:
            A row per text and term, by falling weight: ``text`` (its place in ``texts``), ``term`` (a token of the
            vocabulary, or ``[30530]`` where the model has a weight for an id that no token has) and ``weight``.
        """
        rows = []
        for number, (terms, weights) in sorted(self._sparse(texts), key=lambda of_text: of_text[0]):
            order = weights.argsort(descending=True, stable=True)[:k]
            tokens = self.named_terms(terms[order].tolist())
            rows += [(number, *row) for row in zip(tokens, weights[order].tolist(), strict=True)]
        frame = pd.DataFrame(rows, columns=["text", "term", "weight"])
        return frame.astype({"text": "int64", "term": "str", "weight": "float32"})

    def named_terms(self, ids: Sequence[int]) -> list[str]:
        """The tokens of some ids of terms, as :meth:`expand` writes them."""
        tokens: Any = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [f"[{number}]" if token is None else token for number, token in zip(ids, tokens, strict=True)]

    def _sparse(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        """The number of each text of the side that varies, and the terms of its vector with their weights."""
        for index, batch, encoded in self.encoded(texts):
            for number, vector in zip(index.tolist(), self._vectors(encoded, batch["attention_mask"]), strict=True):
                terms = vector.nonzero()[:, 0]
                yield number, (terms, vector[terms])

    def _vectors(self, encoded: torch.Tensor, mask: torch.Tensor, terms: torch.Tensor | None = None) -> torch.Tensor:
        """Weights ``[B, T]`` of some terms, or of the whole vocabulary, in texts whose positions ``mask`` tells."""
        import torch

        n_terms = self.model.config.vocab_size if terms is None else len(terms)
        at_once = max(1, _ELEMENTS // max(1, encoded.shape[1] * n_terms))
        parts = zip(encoded.split(at_once), mask.bool().unsqueeze(-1).split(at_once), strict=True)
        return torch.cat([self._pooled(self._logits(states, terms), is_there) for states, is_there in parts])

    def at_positions(self, encoded: torch.Tensor, mask: torch.Tensor, terms: torch.Tensor) -> torch.Tensor:
        """What each position adds to the weights of some terms, ``[B, T, S]``: a weight is the sum over positions.

        With ``max`` pooling all of it is at the position of the greatest logit, the first of several.

        Args:
            encoded: what :meth:`encode` made of ``B`` texts.
            mask: their attention mask, ``[B, S]``.
            terms: ``[T]`` ids of terms.
        """
        import torch

        logits, is_there = self._logits(encoded, terms), mask.bool().unsqueeze(-1)
        if self.pooling == "sum":
            return (self._saturated(logits) * is_there).transpose(1, 2)
        greatest, at = logits.masked_fill(~is_there, float("-inf")).max(1)
        added = torch.zeros_like(logits).scatter_(1, at.unsqueeze(1), self._saturated(greatest).unsqueeze(1))
        return added.transpose(1, 2)

    def _logits(self, encoded: torch.Tensor, terms: torch.Tensor | None) -> torch.Tensor:
        import torch

        whole, at = self._decoder, slice(None) if terms is None else terms
        if whole is None:
            return encoded[..., at]
        bias = None if whole.bias is None else whole.bias[at]
        return torch.nn.functional.linear(encoded.to(whole.weight.dtype), whole.weight[at], bias).float()

    def _pooled(self, logits: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
        """Saturated logits ``[B, T]``, pooled over positions; the greatest logit saturates to the greatest weight."""
        if self.pooling == "max":
            return self._saturated(logits.masked_fill(~is_there, float("-inf")).amax(1))
        return (self._saturated(logits) * is_there).sum(1)

    def _saturated(self, logits: torch.Tensor) -> torch.Tensor:
        weights = logits.relu().log1p()
        return weights if self.activation == "relu" else weights.log1p()

    @property
    def _decoder(self) -> torch.nn.Linear | None:
        """The linear map whose output is the logits; None where they are something else."""
        return self.twin.get_output_embeddings() if self._projects else None

    def _is_projected(self) -> bool:
        """Whether the logits are the output of a linear map.

        Raises:
            ValueError: the model gives no logits over the vocabulary.
        """
        import torch

        probe = {"input_ids": torch.tensor([[0, 1]], device=self.device)}
        model = self.twin
        decoder = model.get_output_embeddings()
        with torch.no_grad():
            logits = getattr(model(**probe), "logits", None)
            if logits is None or logits.ndim != 3 or logits.shape[-1] < len(self.vocabulary.spellings):
                raise ValueError(
                    f"{type(self.model).__name__} gives no logits over the vocabulary; load it as a masked language "
                    "model, with AutoModelForMaskedLM."
                )
            if not isinstance(decoder, torch.nn.Linear):
                return False
            with overridden([(decoder, lambda states: states)]):
                states = model(**probe).logits
            is_whole = states.shape[-1] == decoder.in_features and torch.allclose(decoder(states), logits)
        return bool(is_whole)
