"""Any checkpoint as a ranker: which class it needs, told by its own files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyterrier_mechir.rankers.bi_encoder import BiEncoder
from pyterrier_mechir.rankers.colbert import ColBERT
from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
from pyterrier_mechir.rankers.generative import GenerativeReranker
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.rankers.manifest import MANIFEST, read_manifest, told_edits
from pyterrier_mechir.rankers.mono_t5 import MonoT5
from pyterrier_mechir.rankers.splade import Splade
from pyterrier_mechir.rankers.templates import is_declared, is_known

FAMILIES: tuple[type[Interactive], ...] = (BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade)


def family_of(ranker: object) -> type[Interactive] | None:
    """Which of the families a ranker is of, if of one; a class of the user's own is of the one that it derives from."""
    return next((family for family in FAMILIES if isinstance(ranker, family)), None)


class Choice(NamedTuple):
    """Which class a checkpoint needs, what tells so, and the options that its family has."""

    of_class: type[Interactive]
    reason: str
    options: Mapping[str, Any] = {}

    @property
    def ranker(self) -> str:
        """The name of the class."""
        return self.of_class.__name__


def load_ranker(name: str | Path, *, verbose: bool = True, **options: Any) -> Interactive:
    """A ranker of whatever class a checkpoint needs, with the options that its files say.

    A directory that an edited ranker was saved to (:meth:`~pyterrier_mechir.BiEncoder.save_pretrained`) gives a ranker
    of the same class and settings; the line that is printed, and ``about()`` as ``baked_edits``, tell the edits that
    its weights hold.

    Args:
        name: a Hugging Face id, or a directory.
        verbose: print which class was chosen, and why.
        **options: for the class, such as ``max_length``, ``device`` or ``dtype``; they go before what the files say.

    Returns:
        A :class:`~pyterrier_mechir.BiEncoder`, :class:`~pyterrier_mechir.CrossEncoder`,
        :class:`~pyterrier_mechir.MonoT5`, :class:`~pyterrier_mechir.GenerativeReranker`,
        :class:`~pyterrier_mechir.Splade` or :class:`~pyterrier_mechir.ColBERT`.

    Raises:
        TypeError: what is given is no name.
        ValueError: the checkpoint cannot be found or read, its files do not tell, or they do not tell the prompt of a
            generative reranker and its name is of no family whose prompt is known (Qwen3-Reranker, RankLLaMA).
    """
    from pyterrier_mechir.models.checkpoints import check_directory

    if not isinstance(name, (str, Path)):
        raise TypeError(
            f"load_ranker reads the files of a checkpoint, and is given a {type(name).__name__}; give an id or a "
            "directory, or make a ranker of the class that a loaded (model, tokenizer) needs, such as BiEncoder."
        )
    check_directory(str(name))
    manifest = read_manifest(str(name))
    choice = choose(str(name)) if manifest is None else _as_saved(str(name), manifest)
    given = {**choice.options, **options}
    if choice.of_class is GenerativeReranker and given.get("template") is None:
        _check_prompt(str(name))
    made = choice.of_class(name, **given)
    if manifest is not None:
        made.baked_edits = (*manifest.get("edits_before", ()), *manifest["edits"])
    if verbose:
        settings = ", ".join(f"{key}={value!r}" for key, value in made._settings().items() if value not in (None, ""))
        print(f"{made.short_name}: {choice.ranker}({settings}), because {choice.reason}.", file=sys.stderr)
    return made


def _as_saved(name: str, manifest: Mapping[str, Any]) -> Choice:
    """The class and the options that a manifest tells.

    Raises:
        ValueError: it tells a class that there is not.
    """
    of_class = next((family for family in FAMILIES if family.__name__ == manifest["ranker"]), None)
    if of_class is None:
        raise ValueError(
            f"the {MANIFEST} of {name!r} tells of a {manifest['ranker']}, which is no ranker; use one of "
            f"{', '.join(family.__name__ for family in FAMILIES)}."
        )
    reason = f"its {MANIFEST} says so; edits of {manifest.get('base')} in its weights: {told_edits(manifest['edits'])}"
    return Choice(of_class, reason, manifest["options"])


def _check_prompt(name: str) -> None:
    """Check that the prompt of a generative reranker is known.

    Raises:
        ValueError: the files declare none, and it is by its name of no family whose prompt is known.
    """
    if not is_known(name) and not is_declared(name):
        raise ValueError(
            f"the files of {name!r} do not say with which prompt it ranks; pass template=, the prompt that it was "
            "trained with, with {query} and {document} in it (and yes= and no= of a language model)."
        )


def choose(name: str) -> Choice:
    """Which class a checkpoint needs.

    Raises:
        ValueError: it cannot be found or read, or its files do not tell.
    """
    from pyterrier_mechir.models.checkpoints import check_model, find_file, read_json

    modules = read_json(name, "modules.json") or []
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if find_file(name, "artifact.metadata") is not None:
        return Choice(ColBERT, "it has an artifact.metadata of ColBERT")
    if "SpladePooling" in kinds:
        return Choice(Splade, "modules.json has a SpladePooling")
    if any(module["type"].startswith("pylate.") for module in modules) or _is_multi_vector(kinds):
        return Choice(ColBERT, "modules.json has a projection of single tokens")
    if kinds == ["Router"] and "Pooling" in _kinds_of_routes(name, modules[0]["path"]):
        return Choice(BiEncoder, "modules.json has a Router of encoders of queries and documents")
    if "Pooling" in kinds:
        return Choice(BiEncoder, "modules.json has a Pooling")
    others = [kind for kind in kinds if kind not in ("Transformer", "LogitScore")]
    if others:
        raise ValueError(
            f"{name!r} has a sentence-transformers module {others[0]!r}, which no ranker computes; give the class of a "
            "ranker the (model, tokenizer) of its encoder."
        )
    folder = next((module["path"] for module in modules), "")
    config = read_json(name, f"{folder}/config.json".lstrip("/"))
    if config is None:
        check_model(name, folder)
        raise ValueError(
            f"cannot load {name!r}: give the id of a Hugging Face checkpoint, or a directory that holds one; there is "
            "no config.json."
        )
    return _by_architecture(name, config)


_OTHER_ANSWERS = ("mt5-3b-mmarco", "mt5-13b-mmarco")
"""Rankers whose answer for what is not relevant is no word."""


def _t5_answers(name: str, kind: str) -> dict[str, str]:
    """The words with which the family of a T5 answers, where they are not monoT5's.

    Raises:
        ValueError: they are not known.
    """
    if any(other in name.lower() for other in _OTHER_ANSWERS):
        raise ValueError(f"{name!r} answers by another word than its kin do; pass true= and false=, as in MonoT5.")
    if "ptt5" in name.lower():
        return {"true": "sim", "false": "não"}
    return {"true": "yes", "false": "no"} if kind == "mt5" else {}


def _kinds_of_routes(name: str, folder: str) -> set[str]:
    from pyterrier_mechir.models.checkpoints import read_json

    routed = read_json(name, f"{folder}/router_config.json".lstrip("/")) or {}
    return {kind.rsplit(".", 1)[-1] for kind in routed.get("types", {}).values()}


def _is_multi_vector(kinds: list[str]) -> bool:
    return "Dense" in kinds and "Pooling" not in kinds


def _by_architecture(name: str, config: dict[str, Any]) -> Choice:
    from pyterrier_mechir.models.architectures import ARCHITECTURES

    architecture = next(iter(config.get("architectures") or []), "")
    kind = config.get("model_type", "")
    reason = f"config.json names {architecture}"
    if architecture == "HF_ColBERT":
        return Choice(ColBERT, reason)
    if architecture.endswith("ForSequenceClassification"):
        is_decoder = kind in ARCHITECTURES and ARCHITECTURES[kind].is_decoder
        return Choice(GenerativeReranker if is_decoder else CrossEncoder, reason)
    if architecture.endswith("ForConditionalGeneration"):
        return Choice(MonoT5, reason, _t5_answers(name, kind))
    if architecture.endswith("ForCausalLM"):
        return Choice(GenerativeReranker, reason)
    if architecture.endswith("ForMaskedLM"):
        return Choice(Splade, f"{reason}, whose head weighs terms if it was trained to")
    if architecture.endswith("Model"):
        return Choice(BiEncoder, f"{reason}, which has no head; nothing says how it pools")
    raise ValueError(
        f"the files of {name!r} do not tell what kind of ranker it is (architecture {architecture or 'unknown'}); use "
        f"one of {', '.join(family.__name__ for family in FAMILIES)}."
    )
