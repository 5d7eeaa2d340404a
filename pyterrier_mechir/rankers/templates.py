"""The prompts that checkpoints of generative rerankers declare, or that their families have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


def read_prompt(name: str) -> DeclaredPrompt | None:
    """What the files of a checkpoint declare; None where it is no CrossEncoder of a language model.

    Raises:
        ValueError: they declare what is not computed here.
    """
    from transformers import AutoTokenizer

    from pyterrier_mechir.models.checkpoints import read_json

    modules = read_json(name, "modules.json") or []
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if "LogitScore" not in kinds:
        return None
    path = modules[0]["path"]
    settings = read_json(name, "config_sentence_transformers.json") or {}
    encoder = read_json(name, f"{path}/sentence_bert_config.json".lstrip("/")) or {}
    score = read_json(name, f"{modules[-1]['path']}/config.json".lstrip("/")) or {}
    prompts = settings.get("prompts") or {}
    return _read(
        repr(name),
        kinds,
        score,
        AutoTokenizer.from_pretrained(name, subfolder=path),
        prompts.get(settings.get("default_prompt_name")),
        encoder.get("processing_kwargs") or {},
        encoder.get("max_seq_length"),
    )


def loaded_prompt(model: Any) -> DeclaredPrompt | None:
    """The same of a loaded CrossEncoder."""
    kinds = [type(module).__name__ for module in model]
    if "LogitScore" not in kinds:
        return None
    return _read(
        f"this {type(model).__name__}",
        kinds,
        model[-1].get_config_dict(),
        model.tokenizer,
        (model.prompts or {}).get(model.default_prompt_name),
        getattr(model[0], "processing_kwargs", None) or {},
        model.max_length,
    )


def _read(
    name: str,
    kinds: list[str],
    score: Mapping[str, Any],
    tokenizer: Any,
    prompt: str | None,
    options: Mapping[str, Any],
    max_length: int | None,
) -> DeclaredPrompt:
    if kinds != ["Transformer", "LogitScore"] or score.get("module_input_name", "causal_logits") != "causal_logits":
        raise ValueError(
            f"{name} has the sentence-transformers modules {', '.join(kinds)}; GenerativeReranker computes a "
            "Transformer and a LogitScore of its logits."
        )
    chat = {key: value for key, value in options.get("chat_template", {}).items() if key != "restore_suffix"}
    limits = [options[kind]["max_length"] for kind in options if "max_length" in options[kind]]

    def rendered(query: str, document: str, system: str) -> str:
        said = [("system", system)] * (prompt is not None) + [("query", query), ("document", document)]
        messages = [{"role": role, "content": content} for role, content in said]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **chat))

    template = _rendered(rendered) if getattr(tokenizer, "chat_template", None) else None
    if template is None:
        raise ValueError(
            f"{name} has no chat template in which a query and a document stand once each as they are; give "
            "GenerativeReranker a template= with {query} and {document} in it, and yes= and no=."
        )
    longest = (limits or [max_length])[-1]
    return DeclaredPrompt(template, prompt, score["true_token_id"], score.get("false_token_id"), longest)


def _rendered(render: Callable[[str, str, str], str]) -> str | None:
    """A chat template as a template; None where it does more than to put texts in."""
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
