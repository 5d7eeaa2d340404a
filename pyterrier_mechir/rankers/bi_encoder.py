"""Bi-encoders: the score is the similarity of a query's and a document's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.batches import last_attended
from pyterrier_mechir.rankers.dual_encoder import DualEncoder, inputs_of_model
from pyterrier_mechir.rankers.settings import POOLINGS, SIMILARITIES

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch


class BiEncoder(DualEncoder):
    """A bi-encoder such as TAS-B, ANCE, MiniLM or GTR.

    What is patched is the encoder of the document, or of the query where queries are perturbed. Pooled vectors are
    projected where a sentence-transformers checkpoint has Dense modules that do so (sentence-T5, GTR, LaBSE).

    Args:
        model: a Hugging Face id, a directory, a loaded ``(model, tokenizer)``, or a ``SentenceTransformer``.
        pooling: ``cls``, ``mean`` (over attended tokens) or ``last`` (attended token). None reads a
            sentence-transformers checkpoint's own, else ``cls``.
        similarity: ``dot`` or ``cosine``. None reads a sentence-transformers checkpoint's own, else ``dot``.
        query_prefix: put before every query (an instruction, ``"query: "``). None reads the checkpoint's own prompts.
        doc_prefix: put before every document.
        max_query_length: longest query, in tokens with special ones; None takes ``max_length``.
        max_length: longest document, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: an unknown pooling or similarity, a checkpoint that cannot be loaded, or an unsupported
            architecture.
    """

    library = "sentence_transformers"

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
        from pyterrier_mechir.rankers.modules import loaded_modules, read_modules
        from pyterrier_mechir.rankers.settings import Modules

        if isinstance(model, (str, Path)):
            modules = read_modules(str(model))
        elif isinstance(model, tuple):
            modules = Modules()
        else:
            model, modules = loaded_modules(model)
        self.pooling = one_of("pooling", pooling or modules.pooling or "cls", POOLINGS)
        self.similarity = one_of("similarity", similarity or modules.similarity or "dot", SIMILARITIES)
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
        self.reads_first_token = self.pooling == "cls"
        if self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} has a decoder, which a bi-encoder lacks; load its encoder alone, such as "
                "a T5EncoderModel."
            )
        self.projection = None if modules.projection is None else modules.projection.to(self.device)

    def _weights(self) -> dict[str, torch.Tensor]:
        of_projection = {} if self.projection is None else self.projection.state_dict(prefix="projection.")
        return super()._weights() | of_projection

    def _settings(self) -> dict[str, Any]:
        names = ("pooling", "similarity", "query_prefix", "doc_prefix", "max_query_length")
        return {name: getattr(self, name) for name in names}

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        return (encoded * batch["query_vector"]).sum(-1)

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        import torch

        size = self.model.config.hidden_size
        if self.projection is not None:
            size = len(self.projection[-2].weight)  # type: ignore[arg-type]
        vectors = torch.empty((len(queries), size), device=self.device)
        for index, _, encoded in self._other_side().encoded(queries):
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
        if self.projection is not None:
            vectors = self.projection(vectors)
        if self.similarity == "cosine":
            vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return vectors

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
