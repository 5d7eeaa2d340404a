"""monoT5: an encoder reads query and document together, and the first word of a decoder is yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.rankers.base import UNLIMITED
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.text.encoding import Encoded, Template
from pyterrier_mechir.text.prompts import Prompt
from pyterrier_mechir.text.vocabulary import single_token

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch
    from pyterrier_mechir.text.positions import Positions

STACKS = ("encoder", "decoder")

_LONGEST = 512
"""Longest sequence of checkpoints that do not name one."""


class MonoT5(Interactive):
    """monoT5 (Nogueira, Jiang, Pradeep and Lin, 2020) and its kin: T5, flan-T5 or mT5 as a ranker.

    The encoder reads a prompt with the query and the document, and the score is the logit of one word minus that of
    another at the decoder's first position. It ranks as the published log-probability of the first word does.

    One of the two stacks is patched. In the encoder, sites have the positions of the prompt. The decoder has one
    position, in which it reads the text by cross-attention alone: all that the document does to the score passes
    through ``cross_head``, ``cross_attn_out`` and their like (see
    :data:`~pyterrier_mechir.models.components.COMPONENTS`), and only ``positions="all"`` makes sense there. The encoder
    then runs once for each text, not for each patch.

    Args:
        model: a Hugging Face id or directory of a T5 with its language-model head, or a loaded ``(model, tokenizer)``.
        stack: which stack is patched, ``encoder`` or ``decoder``; :meth:`on` gives the other.
        template: the prompt, with ``{query}`` and ``{document}`` in it once each; the tokenizer adds the end token. A
            text that is too long is cut within these two, the longer first, so that the rest stays.
        true: the word that means relevant, one token: ``true`` for castorini/monot5, ``yes`` for the mT5 rankers.
        false: the word that means not relevant.
        max_length: longest prompt, in tokens with special ones; None takes the checkpoint's own, or 512.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: an unknown stack, a prompt that cannot be tokenised by segments, a word that is not one token, or a
            checkpoint that cannot be loaded or has no decoder.
    """

    reads_query = True
    reads_first_token = False

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        stack: str = "encoder",
        template: str = "Query: {query} Document: {document} Relevant:",
        true: str = "true",
        false: str = "false",
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        self.stack = one_of("stack", stack, STACKS)
        self.template = template
        super().__init__(model, max_length=max_length, device=device, dtype=dtype, auto_class="AutoModelForSeq2SeqLM")
        if not hasattr(self.model, "lm_head") or not self.model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(self.model).__name__} is no encoder-decoder with a language-model head; load a "
                "T5ForConditionalGeneration."
            )
        self.anatomy = self._anatomy()
        self.true, self.false = true, false
        self._answers = [self._answer("true", true), self._answer("false", false)]

    def _anatomy(self) -> Anatomy:
        return Anatomy(self.model, decoder=self.stack == "decoder")

    def _made_template(self) -> Template:
        return Prompt.parse(self.vocabulary.tokenizer, self.template)

    def _longest(self) -> int:
        longest = super()._longest()
        return longest if longest < UNLIMITED else _LONGEST

    def _answer(self, option: str, word: str) -> int:
        """The id of a word that is one token."""
        token = single_token(self.vocabulary.tokenizer, word)
        if token is None:
            raise ValueError(f"{option}={word!r} is not one token of this tokenizer; choose a word that is.")
        return token

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stack", "template", "true", "false")}

    def on(self, stack: str) -> MonoT5:
        """This ranker, of the same weights, with one of its stacks patched; autoencoders stay with the other stack.

        Args:
            stack: ``encoder`` or ``decoder``.
        """
        if one_of("stack", stack, STACKS) == self.stack:
            return self
        other = copy(self)
        other.stack = stack
        other.anatomy = other._anatomy()
        return other

    def check_positions(self, positions: Positions, to_receivers: bool = False) -> None:
        if self.stack == "encoder":
            return
        if positions.kind != "all":
            raise ValueError("the decoder has one position; give positions='all', or patch ranker.on('encoder').")
        if to_receivers:
            raise ValueError(
                "paths to receivers are patched within an encoder, as they would need all of the decoder's "
                "cross-attention held; leave receivers out, or patch ranker.on('encoder')."
            )

    def collate(self, sequences: Sequence[Encoded], query_inputs: Batch, queries: Sequence[int]) -> Batch:
        """As for any ranker; where the decoder is patched, with ``context``: what the encoder makes, ``[B, S, d]``."""
        import torch

        batch = super().collate(sequences, query_inputs, queries)
        if self.stack == "decoder":
            with torch.no_grad():
                encoder: Any = self.twin.get_encoder()
                encoded = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            batch["context"] = encoded.last_hidden_state
        return batch

    def encode(self, batch: Batch) -> torch.Tensor:
        inputs: dict[str, Any] = {"attention_mask": batch["attention_mask"]}
        if "context" in batch:
            inputs["encoder_outputs"] = (batch["context"],)
        else:
            inputs["input_ids"] = batch["input_ids"]
        start = batch["input_ids"].new_full((len(batch["input_ids"]), 1), self.model.config.decoder_start_token_id)
        logits = self.twin(**inputs, decoder_input_ids=start, use_cache=False).logits[:, 0].float()
        true, false = self._answers
        return logits[:, true] - logits[:, false]

    def compare(self, encoded: torch.Tensor, batch: Batch) -> torch.Tensor:
        return encoded

    def query_inputs(self, queries: Sequence[str]) -> Batch:
        return {}

    def __repr__(self) -> str:
        if self.stack == "encoder":
            return super().__repr__()
        return f"MonoT5({self.short_name!r}, stack='decoder'{self._told_edits})"
