"""Cross-encoders: one model reads query and document together and gives a logit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.rankers.interactive import Interactive

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.text.sequences import Sequences

SCORES = ("margin", "logit")


class CrossEncoder(Interactive):
    """A cross-encoder such as monoELECTRA, monoBERT or the MiniLM rerankers.

    Its scores are logits. What sentence-transformers makes of them by the activation function that a checkpoint names
    (a sigmoid, usually) ranks alike; a function that does not is an error. The prompt that ``default_prompt_name``
    names is put before queries.

    Args:
        model: a Hugging Face id or directory of a sequence classification checkpoint with one label or two, a loaded
            ``(model, tokenizer)``, or a ``CrossEncoder`` of sentence-transformers.
        relevant_label: of two labels, the one that means relevant.
        score: with two labels, ``margin`` (the relevant label's logit minus the other's) or ``logit`` (the relevant
            label's alone). With one label the score is its logit.
        max_length: longest sequence of query and document, in tokens with special ones; None takes the checkpoint's
            own. The longer of the two is cut first.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: an unknown score or label, a checkpoint that cannot be loaded, or an unsupported architecture.
    """

    reads_query = True

    libraries = ("sentence_transformers",)

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | Any,
        *,
        relevant_label: int = 1,
        score: str = "margin",
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        from pyterrier_mechir.rankers.modules import read_modules

        self.score_type = one_of("score", score, SCORES)
        model, modules = read_modules(model, "CrossEncoder")
        self._query_prefix = modules.query_prefix or ""
        super().__init__(
            model,
            max_length=max_length,
            declared_length=modules.max_length,
            device=device,
            dtype=dtype,
            auto_class="AutoModelForSequenceClassification",
            subfolder=modules.subfolder,
            lowercase=modules.lowercase,
        )
        if self.anatomy.architecture.is_decoder:
            raise ValueError(f"{self!r} is a decoder, which reads a prompt; use GenerativeReranker.")
        n_labels = self.model.config.num_labels
        if n_labels not in (1, 2):
            raise ValueError(
                f"{self!r} has {n_labels} labels; a cross-encoder has one, or two of which one is relevant."
            )
        if relevant_label not in (0, 1):
            raise ValueError(f"relevant_label={relevant_label!r}: with two labels it is 0 or 1.")
        self.relevant_label = relevant_label
        config = self.model.config
        self.reads_first_token = getattr(config, "classifier_pooling", "cls") == "cls" and not config.is_encoder_decoder

    def _settings(self) -> dict[str, Any]:
        of_prompt = {"query_prefix": self._query_prefix} if self._query_prefix else {}
        return {"score": self.score_type, "relevant_label": self.relevant_label, **of_prompt}

    @property
    def sequences(self) -> Sequences:
        return replace(super().sequences, prefixes={"query": self._query_prefix})

    def encode(self, batch: Batch) -> torch.Tensor:
        logits = self.twin(**batch, **self._switches).logits.float()
        if logits.shape[-1] == 1:
            return logits[:, 0]
        relevant = logits[:, self.relevant_label]
        return relevant if self.score_type == "logit" else relevant - logits[:, 1 - self.relevant_label]
