"""Every term of a score is what is missing from the score, with frozen norms, where its writer writes nothing."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import unittest
from contextlib import ExitStack
from functools import cache

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PATHS, Inputs, pool
from small_models import ARCHITECTURES, QUERIES, TEXTS, build
from test_score_lens import FRAME, assert_same, inputs_and_reference, make, stacked
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder, PatchScorer, ScoreAttribution
from pyterrier_mechir.models import anatomy

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    *((architecture, kind) for architecture in ARCHITECTURES for kind in ("cls dot", "mean cosine")),
    *(("bert", kind) for kind in ("last dot", "cls cosine", "mean dot")),
    ("modernbert", "last dot"),
]

SPLIT = [
    *((*case, "head") for case in CASES),
    *((architecture, "cls dot", "component") for architecture in ("bert", "distilbert", "modernbert")),
    *((architecture, "mean cosine", "component") for architecture in ("electra", "modernbert", "mpnet")),
]

SOME = FRAME.iloc[[0, 1, 3, 6]]
"""Three documents of very different lengths, one of them for two queries."""

Writer = tuple[str, int, int | None]


class FrozenRun:
    """A model of which everything that is written to the residual stream and the scale of every norm stays as it was.

    Plain hooks on a double precision copy of the Hugging Face model, one text at a time.
    """

    def __init__(self, model: torch.nn.Module, inputs: Inputs, query: torch.Tensor, pooling: str, similarity: str):
        self.model, self.inputs, self.query, self.pooling = model, inputs, query, pooling
        self.n_layers, self.n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
        self.values: dict[tuple[str, int], torch.Tensor] = {}
        self.sigma: dict[torch.nn.Module, torch.Tensor] = {}
        with ExitStack() as stack:
            for place in self.places():
                stack.enter_context(self.hook(*place, lambda v, place=place: self.values.__setitem__(place, v.clone())))
            for norm in self.norms():
                stack.enter_context(norm.register_forward_hook(self.keep_sigma))
            (vector,) = self.vectors()
        self.norm = vector.norm() if similarity == "cosine" else 1.0

    def places(self) -> list[tuple[str, int]]:
        return [("embed", 0), *((kind, i) for i in range(self.n_layers) for kind in ("z", "attn_out", "mlp_out"))]

    def norms(self) -> list[torch.nn.Module]:
        return [m for m in self.model.modules() if isinstance(m, (torch.nn.LayerNorm, torch.nn.RMSNorm))]

    def keep_sigma(self, norm, args, output) -> None:
        (x,) = args
        moment = x.var(-1, unbiased=False, keepdim=True)
        if isinstance(norm, torch.nn.RMSNorm):
            moment = (x * x).mean(-1, keepdim=True)
        self.sigma[norm] = torch.sqrt(moment + norm.eps)

    def frozen(self, norm, args, output) -> torch.Tensor:
        (x,) = args
        centred = x if isinstance(norm, torch.nn.RMSNorm) else x - x.mean(-1, keepdim=True)
        normed = centred / self.sigma[norm] * norm.weight
        return normed if getattr(norm, "bias", None) is None else normed + norm.bias

    def hook(self, kind: str, layer: int, function):
        paths = PATHS[self.model.config.model_type]
        at = paths.layer.format(layer)
        if kind == "embed":
            module = self.model.get_submodule(at)
        else:
            module = self.model.get_submodule(
                f"{at}.{paths.mlp_projection if kind == 'mlp_out' else paths.attention_projection}"
            )
        if kind in ("embed", "z"):
            return module.register_forward_pre_hook(
                lambda m, args: None if (new := function(args[0])) is None else (new, *args[1:])
            )
        return module.register_forward_hook(lambda m, args, output: function(output))

    @torch.no_grad()
    def vectors(self, copies: int = 1) -> torch.Tensor:
        inputs = {name: value.expand(copies, -1) for name, value in self.inputs.items()}
        return pool(self.model(**inputs).last_hidden_state, inputs["attention_mask"], self.pooling)

    def scores(self, silent: list[list[Writer]], by: str) -> list[float]:
        """The score of each copy of the run, in which some writers write nothing."""
        kinds = {"embed", "mlp_out", "z" if by == "head" else "attn_out"}
        written = {key: value.repeat(len(silent), 1, 1) for key, value in self.values.items() if key[0] in kinds}
        for copy_, writers in enumerate(silent):
            for kind, layer, head in writers:
                size = written[kind, layer].shape[-1] // self.n_heads
                part = slice(None) if head is None else slice(head * size, (head + 1) * size)
                written[kind, layer][copy_, :, part] = 0
        with ExitStack() as stack:
            for norm in self.norms():
                stack.enter_context(norm.register_forward_hook(self.frozen))
            for key, new in written.items():
                stack.enter_context(self.hook(*key, lambda value, new=new: new))
            return (self.vectors(len(silent)) @ self.query / self.norm).tolist()

    def terms(self, by: str) -> dict[str, float]:
        """What is missing from the score without each writer, and what is left of it without any."""
        writers: dict[str, Writer] = {"embed": ("embed", 0, None)}
        for layer in range(self.n_layers):
            if by == "head":
                writers |= {f"L{layer}H{head}": ("z", layer, head) for head in range(self.n_heads)}
            else:
                writers[f"L{layer}.attn_out"] = ("attn_out", layer, None)
            writers[f"L{layer}.mlp_out"] = ("mlp_out", layer, None)
        every = list(writers.values())
        whole, bias, *without = self.scores([[], every, *([writer] for writer in every)], by)
        terms = {name: whole - score for name, score in zip(writers, without, strict=True)}
        return terms | {"bias": bias}


@torch.no_grad()
def frozen_run(ranker: BiEncoder, query: str, text: str) -> FrozenRun:
    model = copy.deepcopy(ranker.model).double()
    encoded = dict(ranker.tokenizer(query, return_tensors="pt"))
    vector = pool(model(**encoded).last_hidden_state, encoded["attention_mask"], ranker.pooling)[0]
    vector = vector / vector.norm() if ranker.similarity == "cosine" else vector
    inputs = dict(ranker.tokenizer(text, return_tensors="pt"))
    return FrozenRun(model, inputs, vector, ranker.pooling, ranker.similarity)


@cache
def expected(architecture: str, kind: str, by: str) -> list[dict[str, float]]:
    ranker = make(architecture, kind)
    return [frozen_run(ranker, q, t).terms(by) for q, t in zip(SOME["query"], SOME["text"], strict=True)]


def assert_same_terms(found: np.ndarray, wanted: np.ndarray) -> None:
    """Terms are as exact as float32 is for the greatest term of their score, since all pass the same norms."""
    assert found.shape == wanted.shape
    greatest = np.maximum(1, np.abs(wanted).max(axis=1, keepdims=True))
    assert (np.abs(found - wanted) / greatest).max() <= widened(1e-5)


@pytest.mark.parametrize(("architecture", "kind", "by"), SPLIT)
def test_every_term_is_what_its_writer_adds(architecture, kind, by):
    ranker = make(architecture, kind)
    wanted = expected(architecture, kind, by)
    for batch_size in (len(SOME), None):
        out = ScoreAttribution(ranker, by=by, batch_size=batch_size)(SOME)
        assert out.attrs["mechir"]["terms"] == list(wanted[0])
        assert_same_terms(stacked(out, "score_terms"), np.array([list(terms.values()) for terms in wanted]))


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_the_terms_sum_to_the_score(architecture, kind):
    ranker = make(architecture, kind)
    scores = []
    for query, text in zip(FRAME["query"], FRAME["text"], strict=True):
        inputs, reference = inputs_and_reference(ranker, query, text)
        scores.append(reference.score(inputs))
    for by in ("head", "component"):
        out = ScoreAttribution(ranker, by=by)(FRAME)
        assert_same(stacked(out, "score_terms").sum(1), np.array(scores))
        assert_same(out["score"].to_numpy(), np.array(scores))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(QUERIES), st.sampled_from(TEXTS)), min_size=1, max_size=6),
    case=st.sampled_from(CASES),
    batch_size=st.sampled_from([None, 1, 3]),
)
def test_the_terms_sum_to_the_score_whatever_is_scored_together(rows, case, batch_size):
    frame = pd.DataFrame(rows, columns=["query", "text"]).assign(qid="q")
    frame["docno"] = frame.index.astype(str)
    out = ScoreAttribution(make(*case), batch_size=batch_size)(frame)
    assert_same(stacked(out, "score_terms").sum(1), out["score"].to_numpy())


def last_layer_by_hand(model, inputs: Inputs, query: torch.Tensor) -> dict[str, float]:
    """The terms of the last layer of BERT with CLS pooling, written out."""
    layer = model.encoder.layer[-1]
    seen = {}
    keep = {
        "z": layer.attention.output.dense,
        "before_mid": layer.attention.output.LayerNorm,
        "before_out": layer.output.LayerNorm,
    }
    hooks = [m.register_forward_pre_hook(lambda m, a, n=n: seen.__setitem__(n, a[0][0, 0])) for n, m in keep.items()]
    hooks.append(layer.output.dense.register_forward_hook(lambda m, a, out: seen.__setitem__("mlp_out", out[0, 0])))
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()

    def through(norm, before, written):
        sigma = (before.var(unbiased=False) + norm.eps).sqrt()
        return (written - written.mean()) / sigma * norm.weight

    mid, out = layer.attention.output.LayerNorm, layer.output.LayerNorm
    terms = {"L2.mlp_out": query @ through(out, seen["before_out"], seen["mlp_out"])}
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        written = layer.attention.output.dense.weight[:, part] @ seen["z"][part]
        after_mid = through(mid, seen["before_mid"], written)
        terms[f"L2H{head}"] = query @ through(out, seen["before_out"], after_mid)
    return {name: term.item() for name, term in terms.items()}


def test_the_last_layer_by_hand():
    ranker = make("bert", "cls dot")
    out = ScoreAttribution(ranker)(FRAME)
    names = out.attrs["mechir"]["terms"]
    for query, text, terms in zip(FRAME["query"], FRAME["text"], out["score_terms"], strict=True):
        vector = ranker.query_inputs([query])["query_vector"][0]
        wanted = last_layer_by_hand(ranker.model, dict(ranker.tokenizer(text, return_tensors="pt")), vector)
        assert_same(terms[[names.index(name) for name in wanted]], np.array(list(wanted.values())))


def test_heads_and_attention_biases_are_the_attention_outputs():
    ranker = make("distilbert", "mean cosine")
    frames = {by: ScoreAttribution(ranker, by=by)(FRAME) for by in ("head", "component")}
    tables = {
        by: pd.DataFrame(stacked(frame, "score_terms"), columns=frame.attrs["mechir"]["terms"])
        for by, frame in frames.items()
    }
    heads = tables["head"].filter(regex=r"H\d").sum(axis=1) + tables["head"]["bias"]
    attention = tables["component"].filter(like="attn_out").sum(axis=1) + tables["component"]["bias"]
    np.testing.assert_allclose(heads, attention, atol=widened(1e-5))
    same = ["embed", *(f"L{layer}.mlp_out" for layer in range(3))]
    np.testing.assert_allclose(tables["head"][same], tables["component"][same], atol=widened(1e-6))


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine"])
def test_an_rms_norm_takes_no_mean_away(kind):
    model, tokenizer = build("modernbert", classifier=False)
    model.final_norm = torch.nn.RMSNorm(32, eps=1e-5)
    torch.nn.init.normal_(model.final_norm.weight, 1, 0.1)
    pooling, similarity = kind.split()
    ranker = BiEncoder((model, tokenizer), pooling=pooling, similarity=similarity)
    out = ScoreAttribution(ranker)(FRAME.head(4))
    runs = [frozen_run(ranker, q, t).terms("head") for q, t in zip(FRAME["query"][:4], FRAME["text"][:4], strict=True)]
    assert_same(stacked(out, "score_terms"), np.array([list(run.values()) for run in runs]))


@pytest.mark.parametrize(("precision", "atol"), [("float64", 1e-4), ("bfloat16", 0.5)])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_weights_may_be_of_any_precision(architecture, precision, atol):
    model, tokenizer = build(architecture, classifier=False)
    whole = ScoreAttribution(BiEncoder((model, tokenizer), pooling="mean", similarity="dot"))(FRAME)
    ranker = BiEncoder((model.to(getattr(torch, precision)), tokenizer), pooling="mean", similarity="dot")
    out = ScoreAttribution(ranker)(FRAME)
    assert all(terms.dtype == np.float32 for terms in out["score_terms"])
    np.testing.assert_allclose(stacked(out, "score_terms").sum(1), out["score"], atol=atol)
    np.testing.assert_allclose(stacked(out, "score_terms"), stacked(whole, "score_terms"), atol=atol)


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine"])
def test_a_document_of_many_queries_is_run_once_and_attributed_in_parts(kind, monkeypatch):
    ranker = make("bert", kind)
    frame = pd.DataFrame({"query": QUERIES * 3, "text": TEXTS[:1] * 21, "docno": "d"})
    frame["qid"] = frame.index.astype(str)
    whole = stacked(ScoreAttribution(ranker)(frame), "score_terms")
    rows = []
    hook = ranker.anatomy.out_proj(0).register_forward_hook(lambda module, args, output: rows.append(args[0].shape))
    monkeypatch.setattr(ranker, "batch_tokens", 60)
    parts = stacked(ScoreAttribution(ranker)(frame), "score_terms")
    hook.remove()
    assert [n for n, length, _ in rows if length == rows[-1][1]] == [1]
    np.testing.assert_allclose(parts, whole, atol=widened(1e-5))
    np.testing.assert_allclose(parts[:7], parts[7:14], atol=widened(1e-5))


@pytest.mark.bits
def test_the_output_is_the_plain_re_ranking_with_terms(bi_encoder):
    before = FRAME.copy(deep=True)
    out = ScoreAttribution(bi_encoder)(FRAME)
    plain = bi_encoder.scorer()(FRAME)
    assert list(out.columns) == ["qid", "query", "docno", "text", "score", "score_terms", "rank"]
    pd.testing.assert_frame_equal(out.drop(columns="score_terms"), plain[list(out.columns.drop("score_terms"))])
    assert all(terms.dtype == np.float32 for terms in out["score_terms"])
    pd.testing.assert_frame_equal(FRAME, before)
    assert FRAME.attrs == {}
    empty = ScoreAttribution(bi_encoder)(FRAME.head(0))
    assert list(empty.columns) == list(out.columns)
    assert empty.attrs == out.attrs


def test_what_a_stage_before_said_of_its_arrays_stays(bi_encoder):
    patched = PatchScorer(bi_encoder, layers=[1])(FRAME.head(3))
    out = ScoreAttribution(bi_encoder, by="component")(patched)
    assert out.attrs["mechir"].items() > patched.attrs["mechir"].items()


def test_the_stage_passes_the_checks_of_pyterrier(bi_encoder, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    stage = ScoreAttribution(bi_encoder, by="component")
    case = pt.testing.transformer_test_class(lambda: stage)
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), result.failures + result.errors
    assert pt.inspect.subtransformers(stage) == {}
    assert pt.inspect.transformer_apply_attributes(stage, by="head") == ScoreAttribution(bi_encoder)


@pytest.mark.bits
def test_equal_stages_are_equal_and_pickled(bi_encoder):
    stage = ScoreAttribution(bi_encoder)
    assert stage == ScoreAttribution(bi_encoder) != ScoreAttribution(bi_encoder, by="component")
    assert hash(stage) == hash(ScoreAttribution(bi_encoder))
    assert repr(ScoreAttribution(bi_encoder, by="component")) == (
        "ScoreAttribution(BiEncoder('BertModel'), by='component')"
    )
    loaded = pickle.loads(pickle.dumps(stage))
    np.testing.assert_array_equal(stacked(loaded(FRAME), "score_terms"), stacked(stage(FRAME), "score_terms"))


# What has no such sum


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cross_encoder_is_refused_at_once_and_told_why(architecture):
    ranker = CrossEncoder(build(architecture, classifier=True))
    with pytest.raises(ValueError, match=r"nonlinearity.*ScoreLens or PatchScorer"):
        ScoreAttribution(ranker)


def test_unknown_options_are_an_error_at_once(bi_encoder):
    with pytest.raises(ValueError, match="unknown by 'neuron'; choose one of 'head', 'component'"):
        ScoreAttribution(bi_encoder, by="neuron")
    with pytest.raises(TypeError, match="should be a ranker"):
        ScoreAttribution("tasb")


@pytest.mark.parametrize("absent", [{"out_norm": ""}, {"mid_norm": ""}, {"mid_norm": "", "out_norm": ""}], ids=str)
def test_a_row_that_does_not_say_where_norms_are_is_refused(absent, monkeypatch):
    row = dataclasses.replace(anatomy.ARCHITECTURES["bert"], **absent)
    monkeypatch.setitem(anatomy.ARCHITECTURES, "bert", row)
    with pytest.raises(ValueError, match=r"'bert'.*which norms.*ScoreLens or PatchScorer"):
        ScoreAttribution(BiEncoder(build("bert", classifier=False)))


def test_a_row_that_says_it_wrongly_is_found_out_by_the_sum(monkeypatch):
    row = dataclasses.replace(anatomy.ARCHITECTURES["bert"], mid_norm="output.LayerNorm")
    monkeypatch.setitem(anatomy.ARCHITECTURES, "bert", row)
    stage = ScoreAttribution(BiEncoder(build("bert", classifier=False)))
    with pytest.raises(ValueError, match=r"sum to .*'bert' in ARCHITECTURES"):
        stage(FRAME)


def test_a_norm_of_an_unknown_kind_is_refused():
    model, tokenizer = build("modernbert", classifier=False)
    model.final_norm = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"Identity.*ScoreLens or PatchScorer"):
        ScoreAttribution(BiEncoder((model, tokenizer)))
