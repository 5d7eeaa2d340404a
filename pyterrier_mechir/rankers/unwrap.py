"""Rankers of other libraries: the model that they hold, as a ranker that can be interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.lengths import within


def as_ranker(thing: Any) -> Ranker:
    """A ranker, whatever holds its model.

    Args:
        thing: a :class:`~pyterrier_mechir.rankers.base.Ranker`; a ``SentenceTransformer``, ``SparseEncoder`` or
            ``CrossEncoder`` of sentence-transformers; a bi-encoder or ``ElectraScorer`` of pyterrier_dr, or the stage
            that one of its bi-encoders makes; ``MonoT5ReRanker`` of pyterrier_t5. The model is shared, not copied. Its
            scores are the ranker's own before any squashing: a logit for a probability, and monoT5's difference of
            logits for its log-probability, which rank alike.

    Raises:
        TypeError: it holds no model that can be patched; the message says what would.
    """
    if isinstance(thing, Ranker):
        return thing
    for base in type(thing).__mro__:
        unwrap = _KNOWN.get((base.__module__.partition(".")[0], base.__name__))
        if unwrap is not None:
            return unwrap(thing)
    what = f"BiEncoder({thing!r})" if isinstance(thing, str) else "BiEncoder('id or directory')"
    raise TypeError(
        f"ranker should be a ranker such as {what}, a model of sentence-transformers, or a neural stage of "
        f"pyterrier_dr or pyterrier_t5, not a {type(thing).__name__}."
    )


def _named(ranker: Ranker, name: Any) -> Ranker:
    if isinstance(name, str) and name:
        ranker.name = name
    return ranker


def _sentence_transformer(model: Any, similarity: str | None = None) -> Ranker:
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    return _named(BiEncoder(model, similarity=similarity), model[0].auto_model.config.name_or_path)


def _sparse_encoder(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.splade import Splade

    pooling = model[1].get_config_dict()
    made = Splade(
        (model[0].auto_model, model.tokenizer),
        pooling=pooling.get("pooling_strategy"),
        activation=pooling.get("activation_function"),
        max_length=within(model[0].auto_model, model.max_seq_length),
        max_query_length=within(model[0].auto_model, model.max_seq_length),
    )
    return _named(made, model[0].auto_model.config.name_or_path)


def _cross_encoder(model: Any) -> Ranker:
    from pyterrier_mechir.rankers.cross_encoder import CrossEncoder
    from pyterrier_mechir.rankers.declared import loaded_declared
    from pyterrier_mechir.rankers.generative import GenerativeReranker

    declared = loaded_declared(model)
    if declared is not None:
        options = {name: getattr(declared, name) for name in ("template", "instruction", "yes", "no", "max_length")}
        loaded = (model[0].auto_model, model.tokenizer)
        reranker = GenerativeReranker(loaded, add_special_tokens=False, **options)
        return _named(reranker, loaded[0].config.name_or_path)
    made = CrossEncoder((model.model, model.tokenizer), max_length=within(model.model, model.max_length))
    return _named(made, model.model.config.name_or_path)


def _hgf_bi_encoder(stage: Any) -> Ranker:
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    made = BiEncoder((stage.model, stage.tokenizer), pooling="cls", similarity="dot")
    return _named(made, getattr(stage, "model_name", None))


def _sbert_bi_encoder(stage: Any) -> Ranker:
    """As pyterrier_dr compares the vectors of a SentenceTransformer: by their dot product, without prompts."""
    from pyterrier_mechir.rankers.bi_encoder import BiEncoder

    is_normalised = any(type(module).__name__ == "Normalize" for module in stage.model)
    similarity = "cosine" if is_normalised else "dot"
    return _named(BiEncoder(stage.model, similarity=similarity, query_prefix="", doc_prefix=""), stage.model_name)


def _encoder_of(stage: Any) -> Ranker:
    """A stage that a bi-encoder of pyterrier_dr made: query_encoder(), doc_encoder(), text_scorer() or itself."""
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
    ("sentence_transformers", "SentenceTransformer"): _sentence_transformer,
    ("sentence_transformers", "SparseEncoder"): _sparse_encoder,
    ("pyterrier_dr", "HgfBiEncoder"): _hgf_bi_encoder,
    ("pyterrier_dr", "SBertBiEncoder"): _sbert_bi_encoder,
    ("pyterrier_dr", "BiQueryEncoder"): _encoder_of,
    ("pyterrier_dr", "BiDocEncoder"): _encoder_of,
    ("pyterrier_dr", "BiScorer"): _encoder_of,
    ("pyterrier_dr", "ElectraScorer"): _electra,
    ("pyterrier_t5", "MonoT5ReRanker"): _mono_t5,
}
"""What is known, by the package and the name of a class."""


def check_ranker(ranker: Any) -> Ranker:
    """Anything that :func:`as_ranker` takes, as a ranker whose pairs vary on the document.

    Raises:
        TypeError: it holds no ranker.
    """
    return as_ranker(ranker).facing("document")
