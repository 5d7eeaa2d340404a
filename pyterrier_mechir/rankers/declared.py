"""What a model of sentence-transformers declares, in its files or as it is loaded: its modules and their settings.

Every setting is read by its name. What is left over when a ranker has read all that it knows is refused, so that no
setting is dropped in silence, be it of this version of sentence-transformers or of one to come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from pyterrier_mechir.models.checkpoints import read_json, read_tensors

_PACKAGES = ("sentence_transformers", "pylate")
"""Whose modules are known; a class of any other, be it of the same name, is custom code."""

_RANKERS = {
    "SentenceTransformer": "BiEncoder",
    "SparseEncoder": "Splade",
    "MultiVectorEncoder": "ColBERT",
    "ColBERT": "ColBERT",
    "CrossEncoder": "CrossEncoder",
}
"""Which ranker computes what each kind of model of sentence-transformers and PyLate does."""

TRANSFORMERS = ("Transformer", "MLMTransformer")

_FILES = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
"""Where the settings of a Transformer module are, by the age of the checkpoint."""

_OF_MODEL = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_active_dims")


@dataclass
class Settings:
    """Settings of a model or of one of its modules, each to be read by its name.

    Args:
        where: what they are of, for messages.
        ranker: the class that reads them, for messages.
        left: those that were not read yet.
    """

    where: str
    ranker: str
    left: dict[str, Any]

    def take(self, *names: str) -> Any:
        """The value of a setting, under the first of its names that has one; None where none has."""
        values = [self.left.pop(name, None) for name in names]
        return next((value for value in values if value is not None), None)

    def skip(self, *names: str) -> None:
        """Settings that do not change scores."""
        for name in names:
            self.left.pop(name, None)

    def only(self, name: str, *values: Any) -> None:
        """A setting that may have these values alone, or none."""
        found = self.take(name)
        if found is not None and found not in values:
            self.refuse(name, found)

    def part(self, *names: str) -> Settings:
        """Settings that stand together below one of some names."""
        return Settings(f"{self.where}, in {names[0]},", self.ranker, dict(self.take(*names) or {}))

    def end(self) -> None:
        """Refuse what was not read.

        Raises:
            ValueError: a setting is left over.
        """
        for name, value in self.left.items():
            if value not in (None, "", [], {}):
                self.refuse(name, value)

    def refuse(self, name: str, value: Any) -> NoReturn:
        """Say that a setting is not computed."""
        self.fail(f"declares {name}={repr(value)[:80]}")

    def fail(self, what: str, instead: str = "") -> NoReturn:
        """Say what is not computed, and what to do instead."""
        instead = instead or "to score without it, give the (model, tokenizer) of its encoder and the options you want"
        raise ValueError(f"{self.where} {what}, which {self.ranker} does not compute; {instead}.")


@dataclass(frozen=True)
class Part:
    """One module.

    Args:
        kind: its class.
        subfolder: where its files are; empty for a loaded one.
        settings: what it says of itself.
        weights: gives its tensors by name.
        module: itself, where it is loaded.
    """

    kind: str
    subfolder: str
    settings: Settings
    weights: Callable[[], dict[str, torch.Tensor]]
    module: Any = None


@dataclass(frozen=True)
class Declared:
    """What a model declares.

    Args:
        model: what to load, or the loaded ``(model, tokenizer)``.
        parts: its modules, in their order.
        settings: those of the model as a whole.
        of_queries: the same for queries, where a Router sends them and documents through modules of their own; what
            stands here is then of documents.
    """

    model: str | tuple[Any, Any]
    parts: list[Part]
    settings: Settings
    of_queries: Declared | None = None

    def check(self, kinds: tuple[str, ...]) -> None:
        """Check that the ranker computes all modules.

        Args:
            kinds: the modules that it computes.

        Raises:
            ValueError: there is another, or the model is of another kind.
        """
        ranker = self.settings.ranker
        kind = self.settings.take("model_type")
        better = _RANKERS.get(kind or "", ranker)
        instead = "" if better == ranker else f"use {better}"
        for part in self.parts:
            if part.kind not in kinds:
                self.settings.fail(f"has a sentence-transformers module {part.kind!r}", instead)
        if instead:
            self.settings.fail(f"is a {kind}", instead)
        self.settings.skip("__version__", "requirements")

    def end(self) -> None:
        """Refuse what was not read, of the model and of its modules."""
        for settings in (self.settings, *(part.settings for part in self.parts)):
            settings.end()
        if self.of_queries is not None:
            self.of_queries.end()


def declared(model: Any, ranker: str) -> Declared | None:
    """What a model declares; None for one that is no model of sentence-transformers.

    Args:
        model: the id or directory of a checkpoint, or anything that is loaded.
        ranker: the class that is to compute it, for messages.
    """
    if isinstance(model, (str, Path)):
        return _of_files(str(model), ranker)
    of_packages = [base for base in type(model).__mro__ if base.__module__.partition(".")[0] in _PACKAGES]
    return _of_model(model, ranker) if any(base.__name__ in _RANKERS for base in of_packages) else None


def _of_files(name: str, ranker: str) -> Declared | None:
    listed = read_json(name, "modules.json")
    if listed is None:
        return None

    def part(kind: str, path: str) -> Part:
        files = _FILES if kind in TRANSFORMERS else ("config.json",)
        found = (read_json(name, f"{path}/{file}".lstrip("/")) for file in files)
        settings = Settings(f"the {kind} of {name!r}", ranker, dict(next(filter(None, found), {})))
        return Part(kind, path, settings, partial(read_tensors, name, path))

    def declares(parts: list[Part], of_queries: Declared | None = None) -> Declared:
        of_model = read_json(name, "config_sentence_transformers.json") or {}
        return Declared(name, parts, Settings(repr(name), ranker, dict(of_model)), of_queries)

    kinds = [_kind(module["type"]) for module in listed]
    if kinds == ["Router"] and ranker == "BiEncoder":
        folder = listed[0]["path"]
        routed = read_json(name, f"{folder}/router_config.json".lstrip("/")) or {}
        types, structure = routed.get("types", {}), routed.get("structure", {})
        if _is_of_sides(structure, routed.get("parameters", {})):
            of_side = {
                side: [part(_kind(types[one]), f"{folder}/{one}".lstrip("/")) for one in structure[side]]
                for side in _SIDES
            }
            return declares(of_side["document"], declares(of_side["query"]))
    return declares([part(kind, module["path"]) for kind, module in zip(kinds, listed, strict=True)])


_SIDES = ("query", "document")


def _is_of_sides(routes: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether a Router has one route for queries and one for documents, and no other way to find them."""
    known = ("default_route", "allow_empty_key", "route_mappings")
    return (
        sorted(routes) == sorted(_SIDES) and not parameters.get("route_mappings") and not parameters.keys() - {*known}
    )


def _of_model(model: Any, ranker: str) -> Declared:
    """What would be written, were the model saved."""
    kind = next(base.__name__ for base in type(model).__mro__ if base.__name__ in _RANKERS)

    def declares(modules: Any, tokenizer: Any, of_queries: Declared | None = None) -> Declared:
        parts = []
        for module in modules:
            name = _kind(f"{type(module).__module__}.{type(module).__qualname__}")
            told = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
            settings = Settings(f"the {name} of the {kind}", ranker, dict(told))
            parts.append(Part(name, "", settings, module.state_dict, module))
        told = {name: getattr(model, name, None) for name in _OF_MODEL} | getattr(model, "_get_model_config", dict)()
        settings = Settings(f"the {kind}", ranker, told | {"model_type": kind})
        return Declared((getattr(modules[0], "auto_model", None), tokenizer), parts, settings, of_queries)

    router = model[0]
    name = _kind(f"{type(router).__module__}.{type(router).__qualname__}")
    if len(model) == 1 and name == "Router" and ranker == "BiEncoder":
        routes = router.sub_modules
        if _is_of_sides(routes, router.get_config_dict()):
            of_queries, of_documents = (declares(routes[side], routes[side][0].tokenizer) for side in _SIDES)
            return replace(of_documents, of_queries=of_queries)
    return declares(model, getattr(model, "tokenizer", None))


def _kind(path: str) -> str:
    """The name of a module's class; its whole path where that is custom code."""
    package, _, _ = path.partition(".")
    return path.rsplit(".", 1)[-1] if package in _PACKAGES else path


_OF_LOADING: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("model_kwargs", "model_args"): ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "device_map"),
    ("config_kwargs", "config_args"): ("trust_remote_code", "use_cache"),
    ("processor_kwargs", "tokenizer_args"): ("trust_remote_code", "use_fast", "padding_side"),
}
"""What a module may hand to transformers as it loads, by its names, and what of that does not change scores."""


@dataclass(frozen=True)
class Encoder:
    """What a Transformer module fixes; None for what it leaves to the checkpoint.

    Args:
        where: the subfolder of its files, and whether texts are lower-cased, by the names of
            :class:`~pyterrier_mechir.rankers.settings.Modules`.
        longest: longest text.
        longest_document: longest text that is encoded as a document.
        longest_query: longest text that is encoded as a query.
        expansion: how queries are filled up.
    """

    where: dict[str, Any]
    longest: int | None
    longest_document: int | None
    longest_query: int | None
    expansion: dict[str, Any] | None


def take_encoder(part: Part, task: str, output: str, name: str = "token_embeddings") -> Encoder:
    """Read the settings of a Transformer module.

    Args:
        part: the module.
        task: what its model has to be loaded for.
        output: what of the model's output is read.
        name: what the module calls that.

    Raises:
        ValueError: its texts become messages of a chat, or it is told something else that is not computed.
    """
    told = part.settings
    found = told.take("transformer_task") or ("fill-mask" if part.kind == "MLMTransformer" else "feature-extraction")
    if found != task:
        told.refuse("transformer_task", found)
    told.only("module_output_name", name)
    modalities = told.part("modality_config")
    modalities.only("text", {"method": "forward", "method_output_name": output})
    modalities.skip("image", "audio", "video")
    modalities.end()
    longest = _longest_of_calls(told.part("processing_kwargs"), pairs=task == "sequence-classification")
    of_sides = [told.take(f"{side}_length") for side in ("document", "query")]
    of_tokenizer = told.take("max_seq_length")
    for names, harmless in _OF_LOADING.items():
        handed = told.part(*names)
        handed.skip(*harmless)
        of_tokenizer = handed.take("model_max_length") or of_tokenizer
        handed.end()
    told.skip("unpad_inputs")
    where = {"subfolder": part.subfolder, "lowercase": bool(told.take("do_lower_case"))}
    of_document, of_query = of_sides
    return Encoder(
        where,
        longest=longest or of_tokenizer,
        longest_document=longest or of_document or of_tokenizer,
        longest_query=longest or of_query or of_tokenizer,
        expansion=told.take("query_expansion"),
    )


def _longest_of_calls(calls: Settings, pairs: bool) -> int | None:
    """The longest sequence that the tokenizer is told of in every call."""
    calls.skip("audio", "image", "video", "chat_template")
    of_text, common = calls.part("text"), calls.take("common")
    of_text.left |= common or {}
    calls.end()
    of_text.only("truncation", True, "longest_first", *(() if pairs else ("only_first",)))
    of_text.skip("padding", "pad_to_multiple_of", "return_tensors")
    longest: int | None = of_text.take("max_length")
    of_text.end()
    return longest
