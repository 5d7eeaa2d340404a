"""Generative rerankers: a decoder reads a prompt with the query and the document, and its last position answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyterrier_mechir.rankers.batches import last_attended
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.rankers.templates import QWEN3_RERANKER, RANKLLAMA, read_prompt
from pyterrier_mechir.text.encoding import Template
from pyterrier_mechir.text.prompts import Prompt
from pyterrier_mechir.text.vocabulary import single_token, token_ids

if TYPE_CHECKING:
    import torch

    from pyterrier_mechir.models.opened import Batch

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

_HEAD = "ForSequenceClassification"


class GenerativeReranker(Interactive):
    """A decoder as a reranker, such as Qwen3-Reranker or RankLLaMA.

    Of a language model, the score is the logit of one answer minus that of another at the last position of a prompt,
    and ranks as the probability of the first does. A checkpoint with a classification head (its config names a
    ``*ForSequenceClassification``) gives its logit at the last position. Query and document are the segments of a
    pair; the tokens of the prompt around them are special ones, of the classes ``CLS`` (the first) and ``SEP``.

    Args:
        model: a Hugging Face id, a directory, or a loaded ``(model, tokenizer)``.
        template: the prompt, with ``{query}`` and ``{document}`` in it once each, and ``{instruction}`` if it takes
            one; the tokenizer adds its special tokens. A text that is too long is cut within query and document, the
            longer first, so that the rest stays. None takes the chat template of a sentence-transformers
            ``CrossEncoder`` with its answers, prompt and length; else the prompt of Qwen3-Reranker for a language
            model, and RankLLaMA's with an end token for a classification head.
        instruction: what the query asks for; None takes that of Qwen3-Reranker for web search, or the checkpoint's own.
        yes: the answer that means relevant, one token. It is taken as it follows the prompt: with a space before it,
            unless the prompt ends in white space or a special token. A number is the id of a token.
        no: the answer that means not relevant, likewise. None takes the logit of ``yes`` alone.
        add_special_tokens: whether the tokenizer puts its special tokens around the template; False where the template
            has them all, as chat templates do. None takes what the checkpoint declares, else True.
        max_length: longest prompt, in tokens with special ones; None takes the checkpoint's own.
        device: None takes CUDA, then MPS, then the CPU.
        dtype: ``"float32"`` by default; ``"bfloat16"`` and ``"float16"`` are those of the layers' products.

    Raises:
        ValueError: a prompt that cannot be tokenised by segments or takes no instruction, an answer that is not one
            token, or a checkpoint that cannot be loaded, is no decoder, has no language-model head or more than one
            label.
    """

    reads_query = True
    reads_first_token = False

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        template: str | None = None,
        instruction: str | None = None,
        yes: str | int = "yes",
        no: str | int | None = "no",
        add_special_tokens: bool | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ):
        self._classifies = _architecture(model).endswith(_HEAD)
        declared = read_prompt(model)[1] if template is None else None
        if declared is not None:
            template = declared.template
            yes, no = (declared.yes, declared.no) if (yes, no) == ("yes", "no") else (yes, no)
            instruction = declared.instruction if instruction is None else instruction
        self.template, self.instruction = template or "", instruction
        self.add_special_tokens = declared is None if add_special_tokens is None else add_special_tokens
        auto_class = f"AutoModel{_HEAD}" if self._classifies else "AutoModelForCausalLM"
        super().__init__(
            model,
            max_length=max_length,
            declared_length=None if declared is None else declared.max_length,
            device=device,
            dtype=dtype,
            auto_class=auto_class,
        )
        self._check()
        self.yes, self.no = yes, no
        self._answers: list[int] = []
        if not self._classifies:
            given = {"yes": yes} if no is None else {"yes": yes, "no": no}
            self._answers = [self._answer(*one) for one in given.items()]

    def _check(self) -> None:
        if not self.anatomy.architecture.is_decoder:
            raise ValueError(f"{self!r} is no decoder; a GenerativeReranker is one. Encoders make a CrossEncoder.")
        if self._classifies and self.model.config.num_labels != 1:
            raise ValueError(f"{self!r} has {self.model.config.num_labels} labels; a reranker's head has one.")
        if not self._classifies and self.model.get_output_embeddings() is None:
            raise ValueError(f"{self!r} has no language-model head, nor one that classifies; load it with its head.")

    def _made_template(self) -> Template:
        if not self.template:
            self.template = self._with_end(RANKLLAMA) if self._classifies else QWEN3_RERANKER
        takes = "{instruction}" in self.template
        if self.instruction is not None and not takes:
            raise ValueError("the template has no {instruction} in it; put it where the instruction goes.")
        self.instruction = self.instruction or (INSTRUCTION if takes else "")
        self._prompt = self.template.replace("{instruction}", self.instruction)
        return Prompt.parse(self.vocabulary.tokenizer, self._prompt, self.add_special_tokens)

    def _with_end(self, text: str) -> str:
        """A prompt that ends in the end token, which some tokenizers add themselves."""
        end, last = self.tokenizer.eos_token_id, Template.of(self.vocabulary.tokenizer, pair=False).around[-1][-1:]
        return text if end is None or end in last else f"{text}{self.tokenizer.eos_token}"

    def _answer(self, option: str, answer: str | int) -> int:
        """The id of an answer that is one token after the prompt."""
        if isinstance(answer, int):
            return answer
        prompt = self._prompt.replace("{query}", "a").replace("{document}", "a")
        is_open = (
            prompt[-1:].isspace()
            or token_ids(self.vocabulary.tokenizer, prompt)[-1] in self.tokenizer.added_tokens_decoder
        )
        texts = (answer, f" {answer}") if is_open else (f" {answer}", answer)
        for text in texts[:1] if prompt.endswith(" ") else texts:
            token = single_token(self.vocabulary.tokenizer, text, after=prompt) if answer.strip() else None
            if token is not None:
                return token
        raise ValueError(
            f"{option}={answer!r} is not one token after the template; choose an answer that is, or end the template "
            "where the answer begins, without a space."
        )

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("template", "instruction", "yes", "no", "add_special_tokens")}

    @property
    def _position_read(self) -> Callable[[Batch], torch.Tensor] | None:
        return (lambda batch: last_attended(batch["attention_mask"])) if self._is_plain else None

    def encode(self, batch: Batch) -> torch.Tensor:
        import torch

        from pyterrier_mechir.models.ports import overridden

        rows, last = range(len(batch["input_ids"])), last_attended(batch["attention_mask"])
        model = self.twin
        if self._classifies:
            states = model.base_model(**batch, **self._switches).last_hidden_state
            return model.score(states[rows, last]).float()[:, 0]
        head = model.get_output_embeddings()

        def answers(states: torch.Tensor) -> torch.Tensor:
            """The logits of the answers alone, at the last position alone."""
            bias = None if head.bias is None else head.bias[self._answers].float()
            return torch.nn.functional.linear(states[rows, last].float(), head.weight[self._answers].float(), bias)

        with overridden([(head, answers)]):
            logits = model(**batch, **self._switches).logits
        return logits[:, 0] - logits[:, 1] if self.no is not None else logits[:, 0]


def _architecture(model: str | Path | tuple[Any, Any]) -> str:
    """The class of a model, or that which a checkpoint's config names; empty where it names none."""
    from pyterrier_mechir.models.checkpoints import read_json

    if isinstance(model, tuple):
        return type(model[0]).__name__
    config = read_json(str(model), "config.json") or {}
    return str((config.get("architectures") or [""])[0])
