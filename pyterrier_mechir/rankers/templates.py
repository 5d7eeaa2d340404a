"""The prompts that checkpoints of generative rerankers declare, or that their families have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyterrier_mechir.models.checkpoints import read_json
from pyterrier_mechir.rankers.declared import Declared, declared

QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""The prompt of Qwen3-Reranker."""

RANKLLAMA = "query: {query} document: {document}"
"""The input of RankLLaMA (Ma et al., 2024), which an end token follows."""

_FAMILIES = ("qwen3-reranker", "rankllama")
"""The families whose prompts are the defaults, as their names have it."""

_OF_ANSWERS = "LogitScore"
"""The module of sentence-transformers that compares the logits of two answers."""

_SYSTEM = "{instruction}"

_PROBES = ("tide", "A tide?\n{{ 1 }} <b> 'high'.")
"""Texts that a chat template should leave as they are."""


@dataclass(frozen=True)
class DeclaredPrompt:
    """The prompt and the answers that a sentence-transformers CrossEncoder of a language model declares.

    Args:
        template: its chat template, with ``{query}`` and ``{document}`` in it, and ``{instruction}`` where it has a
            prompt.
        instruction: that prompt; None where it has none.
        yes: the id of the token that means relevant.
        no: the id of the other; None where the logit of ``yes`` alone is the score.
        max_length: longest sequence; None where it is not declared.
    """

    template: str
    instruction: str | None
    yes: int
    no: int | None
    max_length: int | None

    @property
    def options(self) -> dict[str, Any]:
        """The same as options of a :class:`~pyterrier_mechir.GenerativeReranker`."""
        return dict(vars(self))


def is_known(name: str) -> bool:
    """Whether a checkpoint is by its name of a family whose prompt the package has."""
    return any(family in name.lower() for family in _FAMILIES)


def is_declared(name: str) -> bool:
    """Whether the files of a checkpoint say with which prompt it ranks, as a CrossEncoder of a language model does."""
    return any(module["type"].endswith(_OF_ANSWERS) for module in read_json(name, "modules.json") or [])


def read_prompt(model: Any) -> tuple[Any, DeclaredPrompt | None]:
    """What a CrossEncoder of a language model declares.

    Args:
        model: what a ranker is given: an id or directory, a loaded model of sentence-transformers, or anything else.

    Returns:
        What the ranker is to load, or the loaded ``(model, tokenizer)``; and the prompt, None where it is no
        CrossEncoder of a language model.

    Raises:
        ValueError: it declares what is not computed here.
    """
    found = declared(model, "GenerativeReranker")
    kinds = [] if found is None else [part.kind for part in found.parts]
    if found is None or _OF_ANSWERS not in kinds:
        return model, None
    encoder, score = (found.parts[place].settings for place in (0, -1))
    if kinds != ["Transformer", _OF_ANSWERS] or score.take("module_input_name") not in (None, "causal_logits"):
        raise ValueError(
            f"{found.settings.where} has the sentence-transformers modules {', '.join(kinds)}; GenerativeReranker "
            "computes a Transformer and a LogitScore of its logits."
        )
    prompt = (found.settings.take("prompts") or {}).get(found.settings.take("default_prompt_name"))
    calls = encoder.take("processing_kwargs") or {}
    template = _rendered(_tokenizer(found), prompt is not None, calls.get("chat_template", {}))
    if template is None:
        raise ValueError(
            f"{found.settings.where} has no chat template in which a query and a document stand once each as they are; "
            "give GenerativeReranker a template= with {query} and {document} in it, and yes= and no=."
        )
    longest = [encoder.take("max_seq_length"), *(of["max_length"] for of in calls.values() if "max_length" in of)][-1]
    answers = score.take("true_token_id"), score.take("false_token_id")
    return found.model, DeclaredPrompt(template, prompt, *answers, longest)


def _tokenizer(found: Declared) -> Any:
    from transformers import AutoTokenizer

    if isinstance(found.model, tuple):
        return found.model[1]
    return AutoTokenizer.from_pretrained(found.model, subfolder=found.parts[0].subfolder, trust_remote_code=False)


def _rendered(tokenizer: Any, has_prompt: bool, options: Mapping[str, Any]) -> str | None:
    """A tokenizer's chat template as a template; None where it has none, or one that does more than to put texts in."""
    chat = {key: value for key, value in options.items() if key != "restore_suffix"}

    def render(query: str, document: str, system: str) -> str:
        said = [("system", system)] * has_prompt + [("query", query), ("document", document)]
        messages = [{"role": role, "content": content} for role, content in said]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **chat))

    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        template = render("{query}", "{document}", _SYSTEM)
        filled = [(render(probe, probe, probe), probe) for probe in _PROBES]
    except Exception:
        return None
    if template.count("{query}") != 1 or template.count("{document}") != 1:
        return None
    names = ("{query}", "{document}", _SYSTEM)
    for whole, probe in filled:
        expected = template
        for name in names:
            expected = expected.replace(name, probe)
        if expected != whole:
            return None
    return template
