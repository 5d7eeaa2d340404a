"""Bi-encoders: the score is the similarity of a query's and a document's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.opened import Pooled
from pyterrier_mechir.rankers.base import REDUCED
from pyterrier_mechir.rankers.batches import last_attended
from pyterrier_mechir.rankers.dual_encoder import DualEncoder, inputs_of_model
from pyterrier_mechir.rankers.lengths import n_positions
from pyterrier_mechir.rankers.settings import DISTANCES, POOLINGS, SIMILARITIES

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.rankers.settings import Modules


class BiEncoder(DualEncoder):
    """A bi-encoder such as TAS-B, ANCE, MiniLM or GTR.

    What is patched is the encoder of the document, or of the query where queries are perturbed.

    A sentence-transformers checkpoint, or a loaded ``SentenceTransformer``, scores as its ``encode_query``,
    ``encode_document`` and ``similarity_pairwise`` do: its pooling, the maps and norms after it (sentence-T5, GTR,
    ANCE), ``truncate_dim``, similarity, prompts and lengths are followed, and what else it declares is an error that
    names it. ``default_prompt_name`` is not read, as these two do not read it. Of a ``Router``, one of a route for
    queries and one for documents is followed, where these differ in nothing but weights and lengths: the two encoders
    then each encode their side, and an edit or a patch is of the side that it is asked of.

    Args:
        model: a Hugging Face id, a directory, a loaded ``(model, tokenizer)``, or a ``SentenceTransformer``.
        pooling: ``cls``, ``mean`` (over attended tokens) or ``last`` (attended token). None reads a
            sentence-transformers checkpoint's own, else ``cls``.
        similarity: ``dot`` (of vectors that are not normalised), ``cosine``, ``euclidean`` or ``manhattan`` (the
            distance, negated). None reads a sentence-transformers checkpoint's own, which is ``cosine`` where it names
            none; else ``dot``.
        query_prefix: put before every query (an instruction, ``"query: "``). None reads the checkpoint's own prompts,
            ``query`` and ``document``.
        doc_prefix: put before every document.
        max_query_length: longest query, in tokens with special ones; None takes ``max_length``.
        max_length: longest document, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: an unknown pooling or similarity, a checkpoint that cannot be loaded, or an unsupported
            architecture.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | Any,
        *,
        pooling: str | None = None,
        similarity: str | None = None,
        query_prefix: str | None = None,
        doc_prefix: str | None = None,
        max_query_length: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        from pyterrier_mechir.rankers.modules import read_modules

        model, modules = read_modules(model, "BiEncoder")
        self.pooling = one_of("pooling", pooling or modules.pooling or "cls", POOLINGS)
        self.similarity = one_of("similarity", similarity or modules.similarity or "dot", SIMILARITIES)
        steps = modules.projection
        if steps and steps[-1].kind == "Normalize" and self.similarity not in DISTANCES:
            steps, self.similarity = steps[:-1], similarity or "cosine"
        self.projection = steps or None
        super().__init__(
            model,
            modules,
            query_prefix=query_prefix,
            doc_prefix=doc_prefix,
            max_query_length=max_query_length,
            max_length=max_length,
            device=device,
            dtype=dtype,
            auto_class="AutoModel",
        )
        if modules.query_model is not None:
            self._take_queries(modules, model, device, dtype)
        self.reads_first_token = self.pooling == "cls"
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} has a decoder, which a bi-encoder lacks; load its encoder alone, such as "
                "a T5EncoderModel."
            )
        if not modules.pools_prefix and (self.query_prefix or self.doc_prefix):
            raise ValueError(
                f"{self!r} leaves its prompt out of the pooling, which BiEncoder does not do; give query_prefix='' and "
                "doc_prefix='' to score without prompts."
            )

    def _take_queries(self, modules: Modules, model: Any, device: str | None, dtype: str) -> None:
        """Encode queries by a model of their own, of the same architecture and tokenizer.

        Raises:
            ValueError: it is of another architecture or size, or has another tokenizer.
        """
        import torch

        from pyterrier_mechir.models.checkpoints import how_it_reads, load_checkpoint, lowercased

        given = modules.query_model
        if isinstance(given, str):
            import transformers

            loaded: Any = "auto" if dtype in REDUCED else getattr(torch, dtype)
            given = load_checkpoint(str(model), transformers.AutoModel, given, loaded)
        of_queries = BiEncoder(given, pooling=self.pooling, similarity=self.similarity, device=device, dtype=dtype)
        tokenizer = lowercased(given[1]) if modules.lowercase else given[1]
        of_sides = [
            (type(one.model), one.anatomy.shape, n_positions(one.model), how_it_reads(tokens))
            for one, tokens in ((self, self.tokenizer), (of_queries, tokenizer))
        ]
        if of_sides[0] != of_sides[1]:
            raise ValueError(
                f"{self!r} encodes queries by another architecture, or by other tokens, than documents; give BiEncoder "
                "the (model, tokenizer) of one of the two."
            )
        self._query_model, self._query_twins = of_queries.model, of_queries._twins

    def _weights(self) -> dict[str, torch.Tensor]:
        weights = super()._weights() | self._projected()
        if self._query_model is self.model:
            return weights
        of_queries = self._query_model.state_dict()
        return weights | {f"query_model.{name}": weight for name, weight in of_queries.items()}

    def _projected(self) -> dict[str, torch.Tensor]:
        """The weights of the projection."""
        steps = enumerate(self.projection or ())
        return {f"projection.{i}.{name}": weight for i, step in steps for name, weight in step.weights().items()}

    def _key(self) -> tuple[Any, ...]:
        of_loaded = self._projected() if isinstance(self._checkpoint, int) else {}
        queries = (id(self._query_model),) if isinstance(self._checkpoint, int) else ()
        return (*super()._key(), *queries, *(weight.data_ptr() for weight in of_loaded.values()))

    def _settings(self) -> dict[str, Any]:
        names = ("pooling", "similarity", "query_prefix", "doc_prefix", "max_query_length")
        projection = {"projection": ", ".join(map(str, self.projection))} if self.projection else {}
        return {name: getattr(self, name) for name in names} | projection

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        import torch

        if self.similarity in DISTANCES:
            order = 2 if self.similarity == "euclidean" else 1
            return -torch.linalg.vector_norm(encoded - batch["query_vector"], order, dim=-1)
        return (encoded * batch["query_vector"]).sum(-1)

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        import torch

        vectors = torch.empty((len(queries), 0), device=self.device)
        for index, _, encoded in self._other_side().encoded(queries):
            if not vectors.shape[1]:
                vectors = encoded.new_empty((len(queries), encoded.shape[1]))
            vectors[index] = encoded
        return {"query_vector": vectors}

    def encode(self, batch: Batch) -> torch.Tensor:
        """Vectors ``[B, d]``, in float32."""
        states = self.twin(**inputs_of_model(batch), **self._switches).last_hidden_state.float()
        weights = self.pooling_weights(batch["attention_mask"])
        if self.pooling == "mean":
            vectors = (states * weights.unsqueeze(-1)).sum(1)
        else:
            vectors = states[range(len(states)), weights.argmax(1)]
        return self._finished(vectors)

    def _finished(self, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors of texts, given those that are pooled, ``[..., d]``."""
        for step in self.projection or ():
            vectors = step(vectors)
        if self.similarity == "cosine":
            vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return vectors

    @property
    def _of_pooled(self) -> Pooled | None:
        if not self._is_plain:
            return None
        return Pooled(
            lambda batch: self.pooling_weights(batch["attention_mask"]),
            lambda vectors, batch: self.compare(self._finished(vectors), batch),
        )

    def pooling_weights(self, mask: torch.Tensor) -> torch.Tensor:
        """What each position weighs in the pooled vector, float32 ``[B, S]``.

        Args:
            mask: the attention mask, ``[B, S]``.
        """
        import torch

        if self.pooling == "mean":
            return mask.float() / mask.sum(1, keepdim=True).clamp_min(1)
        first = torch.zeros_like(mask[:, 0])
        at = first if self.pooling == "cls" else last_attended(mask)
        return torch.nn.functional.one_hot(at, mask.shape[1]).float()
