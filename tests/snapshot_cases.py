"""Tables of what the snapshot holds: small rankers, perturbations, and patched runs, each by a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from small_models import ARCHITECTURES, DECODERS, QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm

import pyterrier_mechir as pm
from pyterrier_mechir import perturb

IDF = {"ocean": 3.0, "tides": 4.1, "spring": 3.0, "neap": 5.2, "bats": 4.0, "night": 2.0, "heat": 2.5, "day": 1.5}
SIMILAR = {"tides": ["currents"], "ocean": ["sea"], "neap": ["ebb"], "bats": ["insects"], "night": ["day"]}

PROMPT = "Query: {query} Document: {document} Relevant:"


def documents(*places: tuple[int, int]) -> pd.DataFrame:
    """Retrieved documents, each the number of its query and of its text."""
    rows = [(f"q{query}", QUERIES[query], f"d{text}", TEXTS[text]) for query, text in places]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])


FEW = documents((0, 0), (0, 4), (1, 1))
"""What most cases patch."""

MANY = documents(*((query, text) for query in (0, 1, 2, 3, 6) for text in (1, 3, 4)))
"""Of enough queries for statistics."""


# Rankers

loaded = cache(build)
loaded_t5 = cache(build_t5)
loaded_decoder = cache(build_decoder)
loaded_lm = cache(masked_lm)


def _colbert(architecture: str, **options: Any) -> Any:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    markers = {"query_marker": "", "doc_marker": ""}
    return pm.ColBERT(loaded(architecture, False), projection=weight, **markers, **options)


def _bi(architecture: str = "bert", **options: Any) -> Any:
    return pm.BiEncoder(loaded(architecture, False), **options)


def _cross(architecture: str = "bert", **options: Any) -> Any:
    return pm.CrossEncoder(loaded(architecture, True), **options)


def _mono(kind: str = "t5", stack: str = "encoder") -> Any:
    return pm.MonoT5(loaded_t5(kind), stack=stack)


def _generative(architecture: str, **options: Any) -> Any:
    answers = {"template": PROMPT, "yes": 5, "no": 7}
    return pm.GenerativeReranker(loaded_decoder(architecture, "AutoModelForCausalLM"), **(answers | options))


RANKERS: dict[str, Callable[[], Any]] = {
    "bi": _bi,
    "bi mean": partial(_bi, pooling="mean"),
    "bi last": partial(_bi, pooling="last"),
    "bi cosine": partial(_bi, pooling="mean", similarity="cosine"),
    "bi prefixed": partial(_bi, query_prefix="iron ", doc_prefix="warm ", max_query_length=6),
    "bi short": partial(_bi, max_length=12),
    **{f"bi {name}": partial(_bi, name) for name in ARCHITECTURES if name != "bert"},
    "bi t5": lambda: pm.BiEncoder(loaded_t5("t5", "T5EncoderModel"), pooling="mean"),
    "bi mt5": lambda: pm.BiEncoder(loaded_t5("mt5", "MT5EncoderModel"), pooling="mean"),
    **{f"bi {name}": lambda name=name: pm.BiEncoder(loaded_decoder(name), pooling="last") for name in DECODERS},
    "cross": _cross,
    **{f"cross {name}": partial(_cross, name) for name in ("distilbert", "electra", "modernbert", "mpnet")},
    "mono encoder": _mono,
    "mono decoder": partial(_mono, stack="decoder"),
    "mono flan": partial(_mono, "flan"),
    "mono mt5 decoder": partial(_mono, "mt5", "decoder"),
    **{f"generative {name}": partial(_generative, name) for name in ("qwen3", "llama", "mistral", "gemma2")},
    "generative one answer": partial(_generative, "llama", no=None),
    "splade": lambda: pm.Splade(loaded_lm("bert")),
    "splade sum": lambda: pm.Splade(loaded_lm("distilbert"), pooling="sum", activation="log1p_relu"),
    "colbert": partial(_colbert, "bert"),
    "colbert modernbert": partial(_colbert, "modernbert", attend_to_masks=True, query_length=12),
}
"""Every family; every architecture; every setting that scores depend on."""


@cache
def ranker(name: str) -> Any:
    """A ranker of the table, made once."""
    return RANKERS[name]()


# Perturbations


class Example(NamedTuple):
    """A perturbation with a query and a text to which it applies."""

    made: Any
    query: str = "ocean tides"
    text: str = "The moon pulls the ocean, and the tides rise."


_ALL_OCEAN = "The ocean, all ocean and few tides."
_TWICE = "Tides rise, tides fall."
_SENTENCES = "Tides rise. Tides fall. The moon pulls."

PERTURBATIONS = {
    "TFC1": Example(perturb.TFC1()),
    "TFC1 start": Example(perturb.TFC1(position="start", n=2)),
    "TFC1 random": Example(perturb.TFC1(position="random", seed=3)),
    "TFC1 replace": Example(perturb.TFC1(replace="all")),
    "TFC2": Example(perturb.TFC2()),
    "TFC3": Example(perturb.TFC3(IDF), "spring ocean", "The ocean pulls the ocean."),
    "TDC": Example(perturb.TDC(IDF)),
    "TDC swap": Example(perturb.TDC(IDF, reading="swap"), text=_ALL_OCEAN),
    "MTDC": Example(perturb.MTDC(IDF), text=_ALL_OCEAN),
    "LB1": Example(perturb.LB1(), "neap tides"),
    "LB2 first": Example(perturb.LB2("first"), "neap tides"),
    "LB2 further": Example(perturb.LB2("further"), "neap tides"),
    "AND": Example(perturb.AND(), text="Tides of the ocean, tides of rivers."),
    "REG": Example(perturb.REG(), "neap tides", _TWICE),
    "ANTI_REG": Example(perturb.ANTI_REG(), "neap tides", _TWICE),
    "LNC1": Example(perturb.LNC1()),
    "LNC2": Example(perturb.LNC2(), text="Tides rise."),
    "TFLNC": Example(perturb.TFLNC()),
    "PROX1": Example(perturb.PROX1()),
    "PROX2": Example(perturb.PROX2()),
    "PROX3": Example(perturb.PROX3()),
    "PROX4": Example(perturb.PROX4()),
    "PROX5": Example(perturb.PROX5(), text="Tides of the ocean are tides of all seas."),
    "QPHRA": Example(perturb.QPHRA(), '"high tides"', "High in spring, the tides rise."),
    "STMC1": Example(perturb.STMC1(SIMILAR)),
    "STMC2": Example(perturb.STMC2(SIMILAR)),
    "STMC3": Example(perturb.STMC3(SIMILAR), "neap tides"),
    "DIV": Example(perturb.DIV(SIMILAR)),
    "Synonym": Example(perturb.Synonym(SIMILAR)),
    "AddTerm": Example(perturb.AddTerm("rivers")),
    "RemoveTerm": Example(perturb.RemoveTerm()),
    "CaseFold": Example(perturb.CaseFold()),
    "RemovePunctuation": Example(perturb.RemovePunctuation()),
    "RemoveStopWords": Example(perturb.RemoveStopWords()),
    "Lemmatize": Example(perturb.Lemmatize()),
    "Typos": Example(perturb.Typos(n=2, seed=1)),
    "SwapNumbers": Example(perturb.SwapNumbers(), text="Two tides in 24 hours."),
    "Negate": Example(perturb.Negate(), text="The tides are high."),
    "SwapEntities": Example(perturb.SwapEntities(), text="From Dover to Calais, the tides rise."),
    "ShuffleWords": Example(perturb.ShuffleWords()),
    "ReverseWords": Example(perturb.ReverseWords()),
    "ShuffleSentences": Example(perturb.ShuffleSentences(), text=_SENTENCES),
    "ReverseSentences": Example(perturb.ReverseSentences(), text=_SENTENCES),
    "DeleteSentence": Example(perturb.DeleteSentence(), text=_SENTENCES),
    "AddSentence": Example(perturb.AddSentence("Walls are high.")),
    "PrependQuery": Example(perturb.PrependQuery()),
    "RandomTerm": Example(perturb.RandomTerm(perturb.TFC1(), IDF)),
    "Identity": Example(perturb.Identity()),
    "Chain": Example(perturb.TFC1(position="start") | perturb.Typos(n=1)),
    "OneOf": Example(perturb.OneOf([perturb.TFC1(), perturb.PROX1()])),
    "function": Example(perturb.perturbation(alignment="fill", sign="+")(lambda text, query: f"{text} {query}")),
}


# Patched runs


class Case(NamedTuple):
    """A run of PatchScorer.

    Args:
        ranker: a name of :data:`RANKERS`.
        component: what is patched.
        options: further options of the scorer.
        made: the perturbation.
        queries: whether it is the queries that are perturbed.
        frame: the documents.
    """

    ranker: str
    component: Any = "head"
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    made: Any = perturb.TFC1()
    queries: bool = False
    frame: pd.DataFrame = FEW


def of(ranker: str, component: Any = "head", **options: Any) -> Case:
    """A case of TFC1 on the documents."""
    return Case(ranker, component, options)


def by(made: Any, ranker: str = "cross", queries: bool = False, **options: Any) -> Case:
    """A case of some perturbation, of documents or of queries."""
    return Case(ranker, options=options, made=made, queries=queries)


_WHOLE = ("attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post", "embed")
_CROSS = ("cross_head", "cross_q", "cross_k", "cross_v", "cross_pattern", "cross_attn_out")
_NEURONS = [(0, 3), (1, 40), (2, 7)]
_SETS = [[(0, 1), (1, 2), "L2.mlp_out"], [(2, 3)], "L1.resid_pre"]
_LATE = ["L2H1.q", "L2H3.k"]

FAMILY_CASES = {f"head of {name}": of(name) for name in RANKERS}

COMPONENT_CASES = {
    **{f"{name} of cross": of("cross", name) for name in ("q", "k", "v", "pattern", *_WHOLE, "block")},
    **{f"{name} of bi": of("bi", name) for name in ("v", "pattern", "mlp_out")},
    **{f"{name} of mono decoder": of("mono decoder", name) for name in _CROSS},
    **{f"{name} of llama": of("bi llama", name) for name in ("k", "pattern")},
    **{f"{name} of gemma2": of("generative gemma2", name) for name in ("v", "attn_out")},
    **{f"{name} of modernbert": of("bi modernbert", name) for name in ("q", "resid_mid")},
    "neuron of cross": of("cross", "neuron", heads=_NEURONS),
    "neuron of mono flan": of("mono flan", "neuron", heads=_NEURONS),
    "components of bi": of("bi", ["head", "mlp_out", "embed"]),
    "sets of cross": of("cross", heads=_SETS),
    "sets of bi, both": of("bi", heads=_SETS, direction="both"),
    "some heads of cross": of("cross", heads=[(0, 1), (2, 3)]),
    "some layers of bi": of("bi", "mlp_out", layers=[0, 2]),
}

METHOD_CASES = {
    "attribution": of("bi", method="attribution"),
    "attribution, each component": of("cross", ["head", "q", "k", "v", "mlp_out", "resid_post"], method="attribution"),
    "attribution, classes": of("cross", method="attribution", positions="class"),
    "attribution of a decoder": of("generative qwen3", method="attribution", direction="both"),
    "qk fix": of("cross", ["q", "k"], method=pm.Attribution(qk_fix=True)),
    "grad drop": of("cross", ["head", "mlp_out"], method=pm.Attribution(grad_drop=True)),
    "qk fix, grad drop": of("bi", "q", method=pm.Attribution(qk_fix=True, grad_drop=True)),
    "ig": of("cross", method="ig"),
    "ig, few steps": of("bi", ["head", "mlp_out"], method=pm.IntegratedGradients(steps=3)),
    "ig over activations": of("bi", method=pm.IntegratedGradients(over="activations", steps=2)),
    "ig over activations, sets": of("cross", heads=_SETS, method=pm.IntegratedGradients(over="activations", steps=2)),
    "screen": of("cross", method="attribution", screen=3),
    "auto": of("cross", ["head", "q", "attn_out"], method="auto"),
}

PATH_CASES = {
    "paths to the final stream": of("cross", receivers="final"),
    "paths to heads": of("cross", receivers=_LATE),
    "paths to a value": of("bi distilbert", ["head", "mlp_out", "embed"], receivers="L2H0.v"),
    "paths, classes": of("bi", receivers=["L1H1.q", "L2H3.k"], positions="class"),
    "paths of a decoder": of("generative llama", receivers="L1H1.k"),
    "attention": of("cross", metric=pm.AttentionTo((2, 3), of="Q+", to="EDIT"), min_delta=0),
    "attention of paths": of("cross", metric=pm.AttentionTo((2, 1), of="Q+", to="EDIT"), receivers=_LATE),
    "attention, mlp": of("bi modernbert", "mlp_out", metric=pm.AttentionTo((2, 3), of="EDIT", to="OTHER")),
    "weight of a term": of("splade", metric=pm.TermWeight("night"), min_delta=0),
    "score of a query token": of("colbert", metric=pm.QueryTokenScore("tides")),
    "score of a position": of("colbert modernbert", "mlp_out", metric=pm.QueryTokenScore(-1)),
}

POSITION_CASES = {
    "each position": of("bi", "resid_pre", positions="each"),
    "each position of cross, noise": of("cross", "mlp_out", positions="each", direction="noise"),
    "each position, some heads": of("bi mean", heads=[(0, 1), (2, 2)], positions="each"),
    "classes": of("cross", positions="class"),
    "classes, both": of("bi mean", "mlp_out", positions="class", direction="both"),
    "chosen positions": of("cross", positions=[0, 2, -1]),
    "pattern rows": of("bi", "pattern", positions=[0, 1]),
    "noise": of("bi", direction="noise"),
    "both": of("cross", "mlp_out", direction="both"),
    "batches of one": of("cross", batch_size=1),
    "great min_delta": of("bi", min_delta=1e6),
}

FILLER_CASES = {
    **{f"filler {name}": of("bi", filler=name) for name in ("heat", "mask", "pad", "random")},
    "several fillers": of("cross", filler=["a", "mask"]),
    "random filler of a vocabulary": of("cross", "mlp_out", filler=perturb.RandomFiller(IDF, draws=2)),
}

ALIGNMENT_CASES = {
    **{f"{name} of cross": by(PERTURBATIONS[name].made) for name in ("TFC1 start", "TFC1 replace", "TFC2")},
    "LNC1 of cross": by(perturb.LNC1("heat")),
    "LNC2 of bi mean": by(perturb.LNC2(), "bi mean"),
    "TFLNC of colbert": by(perturb.TFLNC(), "colbert"),
    "LNC1 of llama": by(perturb.LNC1("heat"), "bi llama"),
    "AddSentence of splade": by(perturb.AddSentence("Walls are high."), "splade"),
    "TDC of bi": by(perturb.TDC(IDF), "bi"),
    "Typos of cross": by(perturb.Typos(n=2)),
    "CaseFold of roberta": by(perturb.CaseFold(), "bi roberta"),
    "Synonym of bi": by(perturb.Synonym(SIMILAR), "bi"),
    "ShuffleWords of bi": by(perturb.ShuffleWords(), "bi"),
    "ReverseWords of mono": by(perturb.ReverseWords(), "mono encoder"),
    "PROX1 of cross": by(perturb.PROX1()),
    "RemoveStopWords of modernbert": by(perturb.RemoveStopWords(), "bi modernbert", direction="both"),
    "OneOf of cross": by(PERTURBATIONS["OneOf"].made),
    "Chain of bi": by(PERTURBATIONS["Chain"].made, "bi"),
}

QUERY_CASES = {
    "queries of bi": by(perturb.Typos(terms="query"), "bi", queries=True),
    "queries of bi, classes": by(perturb.RemoveTerm(), "bi mean", queries=True, positions="class"),
    "queries of cross": by(perturb.TFC1(), "cross", queries=True),
    "queries of cross, swapped": by(perturb.Typos(), "cross", queries=True, direction="both"),
    "queries of mono decoder": by(perturb.ShuffleWords(), "mono decoder", queries=True),
    "queries of splade": by(perturb.RemoveTerm(), "splade", queries=True),
    "queries of colbert": by(perturb.AddTerm("heat"), "colbert", queries=True),
    "queries of generative": by(perturb.ReverseWords(), "generative mistral", queries=True),
}

CASES = {
    **FAMILY_CASES,
    **COMPONENT_CASES,
    **METHOD_CASES,
    **PATH_CASES,
    **POSITION_CASES,
    **FILLER_CASES,
    **ALIGNMENT_CASES,
    **QUERY_CASES,
}
"""All patched runs, by name."""


def patched(case: Case) -> pd.DataFrame:
    """The results of a case."""
    perturbed = (pm.PerturbQueries if case.queries else pm.PerturbDocs)(case.made)
    return pm.PatchScorer(ranker(case.ranker), case.component, **case.options).transform(
        perturbed.transform(case.frame)
    )
