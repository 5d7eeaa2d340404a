"""Rankers of other libraries: the model that they hold, as a ranker that can be interpreted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from inspect import getattr_static
from typing import Any

from pyterrier_mechir.rankers.base import Ranker


def as_ranker(thing: Any) -> Ranker:
    """A ranker, whatever holds its model.

    Args:
        thing: a :class:`~pyterrier_mechir.rankers.base.Ranker`; a ``SentenceTransformer``, ``SparseEncoder``,
            ``MultiVectorEncoder`` or ``CrossEncoder`` of sentence-transformers; a bi-encoder or ``ElectraScorer`` of
            pyterrier_dr, or the stage that one of its bi-encoders makes; ``MonoT5ReRanker`` of pyterrier_t5. The model
            is shared, not copied. Its scores are the ranker's own before any squashing: a logit for a probability, and
            monoT5's difference of logits for its log-probability, which rank alike.

    Raises:
        TypeError: it holds no model that can be patched; the message says what would.
    """
    if isinstance(thing, Ranker):
        return thing
    for base in type(thing).__mro__:
        unwrap = _KNOWN.get((_package(base), base.__name__))
        if unwrap is not None:
            return unwrap(thing)
    what = f"BiEncoder({thing!r})" if isinstance(thing, str) else "BiEncoder('id or directory')"
    raise TypeError(
        f"ranker should be a ranker such as {what}, a model of sentence-transformers, or a neural stage of "
        f"pyterrier_dr or pyterrier_t5, not a {type(thing).__name__}."
    )


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _named(ranker: Ranker, name: Any) -> Ranker:
    if isinstance(name, str) and name:
        ranker.name = name
    return ranker


def _bi_encoder(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    return _named(BiEncoder(model), _path(model))


def _splade(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.splade import Splade

    return _named(Splade(model), _path(model))


def _colbert(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.colbert import ColBERT

    return _named(ColBERT(model), _path(model))


def _cross_encoder(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
    from pyterrier_mechir.rankers.generative import GenerativeReranker
    from pyterrier_mechir.rankers.templates import read_prompt

    loaded, prompt = read_prompt(model)
    if prompt is None:
        return _named(CrossEncoder(model), _path(model))
    return _named(GenerativeReranker(loaded, add_special_tokens=False, **prompt.options), _path(model))


def _path(model: Any) -> Any:
    """The checkpoint that a model of sentence-transformers was loaded from."""
    return getattr(getattr(model[0], "auto_model", None), "name_or_path", None)


def _hgf_bi_encoder(stage: Any) -> Ranker:
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    _check_methods(stage, "HgfBiEncoder", "encode_queries", "encode_queries_torch", "encode_docs")
    _check_dot(stage)
    made = BiEncoder((stage.model, stage.tokenizer), pooling="cls", similarity="dot")
    return _named(made, getattr(stage, "model_name", None))


def _sbert_bi_encoder(stage: Any) -> Ranker:
    """As pyterrier_dr encodes both sides: by ``encode``, which reads the default prompt and no lengths of sides."""
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    model = stage.model
    _check_dot(stage)
    for name in ("query_length", "document_length"):
        if getattr(model[0], name, None) is not None:
            raise ValueError(
                f"{stage!r} encodes by encode(), which leaves out the {name} that its model declares; set it to None, "
                "or give the SentenceTransformer itself."
            )
    first = "" if model.default_prompt_name is None else model.prompts[model.default_prompt_name]
    query, document = (_call_of_encode(stage, name) for name in ("encode_queries", "encode_docs"))
    if query.get("normalize_embeddings") != document.get("normalize_embeddings"):
        raise ValueError(f"{stage!r} normalises the vectors of one side alone, which BiEncoder does not do.")
    is_normalised = query.get("normalize_embeddings") or (
        model.truncate_dim is None and type(model[len(model) - 1]).__name__ == "Normalize"
    )
    made = BiEncoder(
        model,
        similarity="cosine" if is_normalised else "dot",
        query_prefix=first + (query.get("prompt") or ""),
        doc_prefix=first + (document.get("prompt") or ""),
    )
    return _named(made, stage.model_name)


def _call_of_encode(stage: Any, name: str) -> dict[str, Any]:
    """With which options a method of an SBertBiEncoder calls ``encode``."""
    found = getattr_static(type(stage), name)
    if isinstance(found, partialmethod) and found.func.__name__ == "_sbert_encode":
        unknown = found.keywords.keys() - {"prompt", "normalize_embeddings"}
        if not found.args and not unknown:
            return found.keywords
    _check_methods(stage, "SBertBiEncoder", name)
    return {}


def _check_methods(stage: Any, base: str, *names: str) -> None:
    """Check that a stage encodes as a class of pyterrier_dr does.

    Raises:
        ValueError: it has methods of its own.
    """
    known = next(one for one in type(stage).__mro__ if (_package(one), one.__name__) == ("pyterrier_dr", base))
    for name in names:
        if name in vars(stage) or getattr_static(type(stage), name) is not getattr_static(known, name):
            raise ValueError(
                f"{type(stage).__name__} has {name} of its own, which is not known here; give a BiEncoder of its "
                "model, with the pooling and the prefixes that it has."
            )


def _check_dot(stage: Any) -> None:
    found = getattr(stage.sim_fn, "value", stage.sim_fn)
    if found != "dot":
        raise ValueError(f"{stage!r} compares by {found}, by which pyterrier_dr scores no texts; give a BiEncoder.")


def _encoder_of(stage: Any) -> Ranker:
    """A stage that a bi-encoder of pyterrier_dr made: query_encoder(), doc_encoder(), text_scorer() or itself."""
    if hasattr(stage, "sim_fn"):
        _check_dot(stage)
    return as_ranker(stage.bi_encoder_model)


def _electra(stage: Any) -> Ranker:
    from pyterrier_mechir.rankers.cross_encoder import CrossEncoder

    made = CrossEncoder((stage.model, stage.tokeniser), score="logit", relevant_label=1)
    return _named(made, stage.model_name)


def _mono_t5(stage: Any) -> Ranker:
    from pyterrier_mechir.rankers.mono_t5 import MonoT5

    return _named(MonoT5((stage.model, stage.tokenizer)), stage.model_name)


_KNOWN: dict[tuple[str, str], Callable[[Any], Ranker]] = {
    ("sentence_transformers", "CrossEncoder"): _cross_encoder,
    ("sentence_transformers", "SentenceTransformer"): _bi_encoder,
    ("sentence_transformers", "SparseEncoder"): _splade,
    ("sentence_transformers", "MultiVectorEncoder"): _colbert,
    ("pylate", "ColBERT"): _colbert,
    ("pyterrier_dr", "HgfBiEncoder"): _hgf_bi_encoder,
    ("pyterrier_dr", "SBertBiEncoder"): _sbert_bi_encoder,
    ("pyterrier_dr", "BiQueryEncoder"): _encoder_of,
    ("pyterrier_dr", "BiDocEncoder"): _encoder_of,
    ("pyterrier_dr", "BiScorer"): _encoder_of,
    ("pyterrier_dr", "ElectraScorer"): _electra,
    ("pyterrier_t5", "MonoT5ReRanker"): _mono_t5,
}
"""What is known, by the package and the name of a class."""


def document_ranker(ranker: Any) -> Ranker:
    """Anything that :func:`as_ranker` takes, as a ranker whose pairs vary on the document.

    Raises:
        TypeError: it holds no ranker.
    """
    return as_ranker(ranker).facing("document")
