"""What a model of sentence-transformers declares is followed, from its files and loaded, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from small_models import QUERIES, TEXTS, build, masked_lm
from tolerance import widened
from torch import nn

from pyterrier_mechir import (
    BiEncoder,
    ColBERT,
    CrossEncoder,
    PatchScorer,
    PerturbDocs,
    ScoreAttribution,
    ScoreLens,
    Splade,
    load_ranker,
)
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.unwrap import as_ranker

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}


def saved(directory: Path, loaded: Any) -> str:
    for part in loaded:
        part.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of encoders, by what is on them."""
    made = tmp_path_factory.mktemp("plain")
    return {
        "dense": saved(made / "dense", build("bert", False)),
        "roberta": saved(made / "roberta", build("roberta", False)),
        "cross": saved(made / "cross", build("bert", True)),
        "sparse": saved(made / "sparse", masked_lm("distilbert")),
    }


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [("q", query, f"d{i}", text) for i, (query, text) in enumerate(zip(QUERIES[:3], TEXTS, strict=False))]
    return pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])


def dense(path: str, *more: nn.Module, encoder: dict[str, Any] | None = None, pooling: str = "mean", **options: Any):
    torch.manual_seed(1)
    modules = [Transformer(path, **(encoder or {})), Pooling(32, pooling), *more]
    return SentenceTransformer(modules=modules, device="cpu", **options)


def sparse(path: str, **options: Any) -> SparseEncoder:
    modules = [Transformer(path, transformer_task="fill-mask"), SpladePooling("max")]
    return SparseEncoder(modules=modules, device="cpu", **options)


def late(path: str, *more: nn.Module, **encoder: Any) -> MultiVectorEncoder:
    torch.manual_seed(2)
    projection = Dense(32, 8, bias=False, activation_function=nn.Identity(), **PLACES)
    return MultiVectorEncoder(modules=[Transformer(path, **encoder), projection, *more], device="cpu")


def own_scores(model: Any) -> np.ndarray:
    queries, texts = model.encode_query(QUERIES), model.encode_document(TEXTS)
    found = model.similarity_pairwise(queries, texts)
    return (found.to_dense() if found.is_sparse else found).cpu().numpy()


def edit(file: Path, **changes: Any) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | changes))


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=widened(1e-4), atol=widened(1e-5))


def both(model: Any, directory: Path, of: type) -> list[Any]:
    """Ways to give a model: loaded, and its directory, of which the class is told or not."""
    model.save_pretrained(str(directory), create_model_card=False)
    return [lambda: as_ranker(model), lambda: load_ranker(directory, verbose=False), lambda: of(str(directory))]


def assert_followed(model: Any, directory: Path, of: type, wanted: np.ndarray | None = None) -> Any:
    wanted = own_scores(model) if wanted is None else wanted
    assert np.ptp(wanted) > 1e-3
    for way in both(model, directory, of)[:2]:
        ranker = way()
        assert isinstance(ranker, of)
        assert_same(ranker.score(QUERIES, TEXTS), wanted)
    return ranker


def assert_refused(model: Any, directory: Path, of: type, message: str) -> None:
    for way in both(model, directory, of):
        with pytest.raises(ValueError, match=message) as told:
            way()
        assert len(str(told.value)) < 500 and "\n" not in str(told.value)


# Dense vectors


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
@pytest.mark.parametrize("more", [[], [Normalize()]], ids=["plain", "normalised"])
def test_a_distance_is_a_similarity(plain, name, more, tmp_path):
    ranker = assert_followed(dense(plain["dense"], *more, similarity_fn_name=name), tmp_path, BiEncoder)
    assert ranker.similarity == name and len(ranker.projection or ()) == len(more)


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ([Dense(32, 32, activation_function=nn.Identity()), LayerNorm(32)], {"similarity_fn_name": "dot"}),
        ([Normalize(), Dense(32, 12, activation_function=nn.GELU()), Dropout(0.5)], {}),
        ([Dense(32, 12, activation_function=nn.LeakyReLU(), use_residual=True)], {"truncate_dim": 5}),
        ([Normalize()], {"truncate_dim": 7, "similarity_fn_name": "dot"}),
        ([], {"truncate_dim": 7, "similarity_fn_name": "manhattan"}),
    ],
    ids=["ANCE", "map of unit vectors", "residual cut", "unit vectors cut", "distance cut"],
)
def test_what_becomes_of_a_pooled_vector_is_followed(plain, more, options, tmp_path):
    model = dense(plain["dense"], *more, **options)
    with torch.no_grad():
        for step in list(model)[2:]:
            for weight in step.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    assert_followed(model, tmp_path, BiEncoder)


def test_vectors_that_are_normalised_twice_and_lengths_of_sides(plain, tmp_path):
    lengths = {"query_length": 5, "document_length": 9}
    for number, encoder in enumerate(({"document_length": 9}, {"query_length": 5}, lengths)):
        model = dense(plain["roberta"], Normalize(), encoder=encoder)
        assert_followed(model, tmp_path / str(number), BiEncoder)


@pytest.mark.parametrize(
    "calls",
    [{"text": {"max_length": 8}}, {"text": {"max_length": 8, "truncation": True}}, {"common": {"max_length": 8}}],
)
def test_the_length_that_every_call_of_the_tokenizer_has_goes_first(plain, calls, tmp_path):
    encoder = {"processing_kwargs": calls, "document_length": 30}
    ranker = assert_followed(dense(plain["dense"], encoder=encoder), tmp_path, BiEncoder)
    assert (ranker.max_length, ranker.max_query_length) == (8, 8)


def test_prompts_are_those_of_encode_query_and_encode_document(plain, tmp_path):
    prompts = {"query": "why ", "document": "the moon ", "sts": "bats "}
    assert_followed(dense(plain["dense"], prompts=prompts, default_prompt_name="sts"), tmp_path / "a", BiEncoder)
    assert_followed(dense(plain["dense"], prompts={"p": "bats "}, default_prompt_name="p"), tmp_path / "b", BiEncoder)


def test_a_pooling_without_the_prompt_is_refused_where_there_is_a_prompt(plain, tmp_path):
    for name, prompts in (("without", {}), ("with", {"document": "the moon "})):
        model = dense(plain["dense"], prompts=prompts)
        model[1].include_prompt = False
        if prompts:
            assert_refused(model, tmp_path / name, BiEncoder, "leaves its prompt out")
            bare = BiEncoder(str(tmp_path / name), doc_prefix="")
            assert_same(bare.score(QUERIES, TEXTS), own_scores(dense(plain["dense"])))
        else:
            assert_followed(model, tmp_path / name, BiEncoder)


def test_text_is_lowercased_but_for_special_tokens(plain, tmp_path):
    model = dense(plain["roberta"], Normalize(), encoder={"do_lower_case": True})
    texts = ["ΟΔΟΣ <s> Two TIDES", "A Heat PUMP</s>", *TEXTS[2:]]
    wanted = model.similarity_pairwise(model.encode_query(QUERIES), model.encode_document(texts)).numpy()
    dense(plain["roberta"], Normalize()).save_pretrained(str(tmp_path / "a"), create_model_card=False)
    edit(tmp_path / "a" / "sentence_bert_config.json", do_lower_case=True)
    model.save_pretrained(str(tmp_path / "b"), create_model_card=False)
    for given in (str(tmp_path / "a"), str(tmp_path / "b"), model):
        assert_same(BiEncoder(given).score(QUERIES, texts), wanted)


def test_where_a_checkpoint_names_no_similarity_it_is_that_of_the_library(plain, tmp_path):
    dense(plain["dense"]).save_pretrained(str(tmp_path), create_model_card=False)
    (tmp_path / "config_sentence_transformers.json").unlink()
    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert_same(BiEncoder(str(tmp_path)).score(QUERIES, TEXTS), own_scores(model))
    assert_same(BiEncoder(str(tmp_path), similarity="dot").score(QUERIES, TEXTS), dot_of(model))


def dot_of(model: SentenceTransformer) -> np.ndarray:
    return (model.encode_query(QUERIES) * model.encode_document(TEXTS)).sum(-1)


@pytest.mark.parametrize("name", ["euclidean", "manhattan"])
def test_patches_gradients_and_layers_know_the_distance(plain, name, frame):
    ranker = BiEncoder(dense(plain["dense"], similarity_fn_name=name, truncate_dim=9))
    perturbed = PerturbDocs(TFC1())(frame)
    exact = PatchScorer(ranker, "resid_pre", layers=[0], min_delta=0)(perturbed)
    np.testing.assert_allclose(np.stack(exact["patch_effect"].tolist())[:, 0], 1, atol=widened(1e-3))
    estimate = PatchScorer(ranker, "resid_post", layers=[2], min_delta=0, method="ig")(perturbed)
    np.testing.assert_allclose(np.stack(estimate["patch_effect"].tolist())[1:, 2], 1, atol=0.05)
    lens = ScoreLens(ranker)(frame)
    assert_same(np.stack(lens["layer_scores"].tolist())[:, -1], ranker.score(frame["query"], frame["text"]))
    with pytest.raises(ValueError, match="ScoreAttribution"):
        ScoreAttribution(ranker)
    with pytest.raises(ValueError, match=f"compares by {name} distance"):
        ScoreAttribution(BiEncoder(build("bert", False), similarity=name))


def test_the_distance_of_equal_vectors_has_a_gradient(plain):
    ranker = BiEncoder(build("bert", False), similarity="euclidean")
    vectors = torch.ones(2, 32, requires_grad=True)
    ranker.compare(vectors, {"query_vector": torch.ones(2, 32)}).sum().backward()
    assert vectors.grad is not None and torch.equal(vectors.grad, torch.zeros(2, 32))


def test_maps_of_a_loaded_model_are_followed_as_they_change(plain):
    model = dense(plain["dense"], Dense(32, 12), similarity_fn_name="dot")
    ranker, cut = BiEncoder(model), BiEncoder(model)
    assert ranker == cut
    model.truncate_dim = 4
    assert BiEncoder(model) != ranker
    model.truncate_dim = None
    model[2].linear.weight.data = torch.randn(12, 32)
    assert_same(ranker.score(QUERIES, TEXTS), own_scores(model))
    model[2].linear.weight.data.mul_(0.5)
    assert_same(ranker.score(QUERIES, TEXTS), own_scores(model))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config_sentence_transformers.json", {"temperature": 2}, "declares temperature=2, which BiEncoder"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "l1"}, "declares similarity_fn_name='l1'"),
        ("1_Pooling/config.json", {"weighting": "idf"}, "the Pooling of .* declares weighting='idf'"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "min", "length": 9}}, "query_expansion"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask'"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "add_special"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"truncation": False}}}, "truncation=False"),
        ("sentence_bert_config.json", {"processing_kwargs": {"word": {"max_length": 3}}}, "declares word="),
        ("sentence_bert_config.json", {"tokenizer_args": {"add_eos_token": True}}, "add_eos_token"),
        ("sentence_bert_config.json", {"model_args": {"is_causal": False}}, "is_causal"),
        ("sentence_bert_config.json", {"windows": 3}, "the Transformer of .* declares windows=3"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
            "in modality_config, declares message=",
        ),
    ],
)
def test_a_setting_that_is_not_known_is_refused_by_its_name(plain, file, changes, message, tmp_path):
    dense(plain["dense"]).save_pretrained(str(tmp_path), create_model_card=False)
    edit(tmp_path / file, **changes)
    with pytest.raises(ValueError, match=message):
        BiEncoder(str(tmp_path))


def test_settings_that_change_no_scores_are_taken(plain, tmp_path):
    model = dense(plain["dense"])
    model.save_pretrained(str(tmp_path), create_model_card=False)
    calls = {"text": {"padding": "max_length", "max_length": 12}, "chat_template": {"add_generation_prompt": True}}
    loading = {"model_args": {"torch_dtype": "float16"}, "tokenizer_args": {"model_max_length": 30}, "config_args": {}}
    edit(tmp_path / "sentence_bert_config.json", processing_kwargs=calls, unpad_inputs=False, **loading)
    edit(tmp_path / "config_sentence_transformers.json", requirements={}, future=None)
    ranker = BiEncoder(str(tmp_path))
    assert ranker.max_length == 12
    model[0].processing_kwargs = {"text": {"max_length": 12}}
    assert_same(ranker.score(QUERIES, TEXTS), own_scores(model))


def test_modules_of_custom_code_are_refused(plain, tmp_path):
    class Pooled(Pooling):
        pass

    Pooled.__name__ = "Pooling"
    model = SentenceTransformer(modules=[Transformer(plain["dense"]), Pooled(32, "mean")], device="cpu")
    with pytest.raises(ValueError, match=r"module 'test_declared.*Pooled"):
        BiEncoder(model)
    dense(plain["dense"]).save_pretrained(str(tmp_path), create_model_card=False)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"module 'custom_st\.Transformer'"):
        BiEncoder(str(tmp_path))


def test_modules_in_another_order_are_refused(plain, tmp_path):
    before = Dense(32, 32, **PLACES)
    model = SentenceTransformer(modules=[Transformer(plain["dense"]), before, Pooling(32, "mean")], device="cpu")
    model.save_pretrained(str(tmp_path), create_model_card=False)
    for given in (model, str(tmp_path)):
        with pytest.raises(ValueError, match="one Pooling module, next to its Transformer"):
            BiEncoder(given)


# Weights beside those of the encoder


@pytest.mark.parametrize(
    "extra", [{"embeddingHead.weight": (8, 32)}, {"bert.encoder.layer.0.attention.self.query.lora_A.weight": (2, 32)}]
)
@pytest.mark.parametrize("of", [BiEncoder, Splade, CrossEncoder])
def test_weights_that_no_class_of_transformers_has_a_place_for_are_named(extra, of, tmp_path):
    path = Path(saved(tmp_path, masked_lm("bert") if of is Splade else build("bert", of is CrossEncoder)))
    prefix = "" if of is not BiEncoder else "bert."
    weights = {f"{prefix}{name}": value for name, value in load_file(path / "model.safetensors").items()}
    stranger = {name: torch.randn(shape) for name, shape in extra.items()}
    save_file(weights | stranger, path / "model.safetensors", metadata={"format": "pt"})
    for way in (lambda: of(path), lambda: load_ranker(path, verbose=False)):
        with pytest.raises(ValueError, match=f"has no place for its weights {next(iter(extra))}"):
            way()


def test_heads_of_pretraining_may_be_left_out(tmp_path):
    for architecture in ("bert", "distilbert", "modernbert"):
        path = Path(saved(tmp_path / architecture, masked_lm(architecture)))
        if architecture == "bert":
            weights = load_file(path / "model.safetensors") | {"cls.seq_relationship.weight": torch.zeros(2, 32)}
            save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        assert_same(
            BiEncoder(path).score(QUERIES[:1], TEXTS[:1]), BiEncoder(base_of(path)).score(QUERIES[:1], TEXTS[:1])
        )


def base_of(path: Path) -> tuple[Any, Any]:
    import transformers as tf

    model = tf.AutoModelForMaskedLM.from_pretrained(path)
    return model.base_model, tf.AutoTokenizer.from_pretrained(path)


# Cross-encoders


def test_the_default_prompt_of_a_cross_encoder_stands_before_queries(plain, tmp_path):
    model = SentenceCrossEncoder(plain["cross"], device="cpu", prompts={"r": "why "}, default_prompt_name="r")
    pairs = list(zip(QUERIES, TEXTS, strict=True))
    wanted = model.predict(pairs, activation_fn=nn.Identity())
    ranker = assert_followed(model, tmp_path, CrossEncoder, wanted)
    assert ranker.about()["query_prefix"] == "why "
    assert not np.allclose(wanted, CrossEncoder(plain["cross"]).score(QUERIES, TEXTS), atol=1e-3)
    facing = ranker.facing("query")
    (pair,) = facing.align(TEXTS[:1], QUERIES[:1], [f"{QUERIES[0]} bats"], alignments=["fill"])
    inputs = facing.collate([pair.perturbed], facing.query_inputs(TEXTS[:1]), [0])
    with torch.no_grad():
        found = facing.forward(inputs).numpy()
    assert_same(found, model.predict([(f"{QUERIES[0]} bats", TEXTS[0])], activation_fn=nn.Identity()))


def test_prompts_without_a_default_change_no_cross_encoder(plain, tmp_path):
    model = SentenceCrossEncoder(plain["cross"], device="cpu", prompts={"r": "why "}, activation_fn=nn.Tanh())
    wanted = model.predict(list(zip(QUERIES, TEXTS, strict=True)), activation_fn=nn.Identity())
    assert_followed(model, tmp_path, CrossEncoder, wanted)


@pytest.mark.parametrize("function", [nn.ReLU(), abs], ids=["of torch", "own"])
def test_an_activation_that_ranks_otherwise_is_refused(plain, function, tmp_path):
    model = SentenceCrossEncoder(plain["cross"], device="cpu", activation_fn=function)
    with pytest.raises(ValueError, match="activation_fn"):
        as_ranker(model)


def test_an_activation_that_ranks_otherwise_is_refused_in_older_checkpoints_too(tmp_path):
    path = Path(saved(tmp_path, build("bert", True)))
    for function, fits in (("Sigmoid", True), ("ReLU", False)):
        edit(path / "config.json", sbert_ce_default_activation_function=f"torch.nn.modules.activation.{function}")
        if fits:
            CrossEncoder(path)
            continue
        with pytest.raises(ValueError, match=r"declares activation_fn='torch.nn.modules.activation.ReLU'"):
            CrossEncoder(path)


def test_the_length_of_calls_goes_to_cross_encoders_and_those_of_sides_do_not(plain, tmp_path):
    model = SentenceCrossEncoder(plain["cross"], device="cpu")
    model[0].processing_kwargs, model[0].document_length = {"text": {"max_length": 14}}, 5
    wanted = model.predict(list(zip(QUERIES, TEXTS, strict=True)), activation_fn=nn.Identity())
    assert assert_followed(model, tmp_path, CrossEncoder, wanted).max_length == 14


# Sparse encoders


def test_prompts_and_lengths_of_a_sparse_encoder_are_followed(plain, tmp_path):
    prompts = {"query": "why ", "document": "the moon ", "p": "bats "}
    model = sparse(plain["sparse"], prompts=prompts, default_prompt_name="p")
    model[0].document_length = 7
    assert_followed(model, tmp_path, Splade)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_active_dims": 4}, "declares max_active_dims=4, which Splade does not compute"),
        ({"similarity_fn_name": "cosine"}, "compares by cosine"),
        ({"similarity_fn_name": "euclidean"}, "compares by euclidean"),
    ],
)
def test_settings_of_a_sparse_encoder_that_are_not_computed_are_refused(plain, options, message, tmp_path):
    assert_refused(sparse(plain["sparse"], **options), tmp_path, Splade, message)


# Late interaction


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"query_length": 5},
        {"document_length": 9},
        {"query_length": 5, "processing_kwargs": {"text": {"max_length": 8}}},
        {"query_expansion": {"strategy": "min", "length": 8}, "query_length": 10},
    ],
    ids=["none", "query", "document", "calls", "expansion"],
)
def test_a_late_interaction_model_is_read_as_it_is_loaded(plain, encoder, tmp_path):
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    mask = [MultiVectorMask(skiplist_words=["day"])] if "query_expansion" in encoder else []
    assert_followed(late(plain["dense"], *mask, Normalize(**PLACES), **encoder), tmp_path, ColBERT)


def test_a_late_interaction_model_that_is_not_normalised_is_refused(plain, tmp_path):
    assert_refused(late(plain["dense"]), tmp_path / "a", ColBERT, "not through Dense and Normalize")
    model = late(plain["dense"], Normalize(**PLACES), query_expansion={"strategy": "fixed", "length": 8})
    assert_refused(model, tmp_path / "b", ColBERT, "no MultiVectorMask")


# Models of another kind


def test_a_router_of_two_encoders_is_followed_and_any_other_refused_by_name(plain, tmp_path):
    def route(pooling: str = "mean", **lengths: int) -> list[nn.Module]:
        return [Transformer(plain["dense"], **lengths), Pooling(32, pooling)]

    sides = route(query_length=6), route(document_length=12)
    with torch.no_grad():
        sides[0][0].auto_model.encoder.layer[1].output.dense.weight.mul_(0.5)
    router = Router.for_query_document(query_modules=sides[0], document_modules=sides[1])
    assert_followed(SentenceTransformer(modules=[router], device="cpu"), tmp_path / "two", BiEncoder)
    with_norm = SentenceTransformer(modules=[router, Normalize()], device="cpu")
    assert_refused(with_norm, tmp_path / "a", BiEncoder, "module 'Router'")
    router = Router.for_query_document(query_modules=route(), document_modules=route("cls"))
    apart = SentenceTransformer(modules=[router], device="cpu")
    assert_refused(apart, tmp_path / "c", BiEncoder, "pooled, projected or lower-cased differently")
    sides = [[Transformer(plain["sparse"], transformer_task="fill-mask"), SpladePooling("max")] for _ in range(2)]
    router = Router.for_query_document(query_modules=sides[0], document_modules=sides[1])
    assert_refused(SparseEncoder(modules=[router], device="cpu"), tmp_path / "b", Splade, "module 'Router'")


def test_a_model_of_another_kind_is_sent_to_its_class(plain, tmp_path):
    model = late(plain["dense"], Normalize(**PLACES))
    model.save_pretrained(str(tmp_path), create_model_card=False)
    for given in (model, str(tmp_path)):
        with pytest.raises(ValueError, match="use ColBERT"):
            BiEncoder(given)
    with pytest.raises(ValueError, match="use BiEncoder"):
        Splade(dense(plain["dense"]))
    with pytest.raises(ValueError, match="use Splade"):
        CrossEncoder(sparse(plain["sparse"]))


def test_a_loaded_model_of_pylate_is_to_be_saved(plain):
    made = type("ColBERT", (SentenceTransformer,), {"__module__": "pylate.models.colbert"})
    model = made(modules=[Transformer(plain["dense"]), Dense(32, 8, bias=False, **PLACES)], device="cpu")
    with pytest.raises(ValueError, match="save it, and give its directory"):
        as_ranker(model)
    with pytest.raises(ValueError, match="use ColBERT"):
        BiEncoder(model)


# Stages of pyterrier_dr


def stage_of(model: SentenceTransformer, kind: str = "SBertBiEncoder", **of_class: Any) -> Any:
    dr = pytest.importorskip("pyterrier_dr")
    made = type(kind, (getattr(dr, kind),), of_class)
    stage = made.__new__(made)
    stage.model, stage.model_name, stage.batch_size, stage.config = model, "a/model", 4, SimpleNamespace()
    stage.text_field, stage.verbose = "text", False
    return stage


@pytest.mark.parametrize("kind", ["SBertBiEncoder", "E5"])
@pytest.mark.parametrize(
    ("more", "options"),
    [
        ([], {}),
        ([Normalize()], {"prompts": {"p": "the moon "}, "default_prompt_name": "p"}),
        ([Normalize()], {"prompts": {"query": "why "}, "truncate_dim": 6}),
    ],
    ids=["plain", "default prompt", "cut"],
)
def test_a_stage_scores_as_it_encodes(plain, kind, more, options):
    model = dense(plain["dense"], *more, **options)
    stage = stage_of(model, kind)
    wanted = (stage.encode_queries(QUERIES) * stage.encode_docs(TEXTS)).sum(-1)
    for given in (stage, stage.text_scorer(), stage.query_encoder()):
        assert_same(as_ranker(given).score(QUERIES, TEXTS), wanted)


def test_a_stage_that_encodes_in_its_own_way_is_refused(plain):
    model = dense(plain["dense"])
    with pytest.raises(ValueError, match="has encode_docs of its own"):
        as_ranker(stage_of(model, encode_docs=lambda self, texts, batch_size=None: None))
    stage = stage_of(model)
    stage.config = SimpleNamespace(sim_fn="cos")
    with pytest.raises(ValueError, match="compares by cos"):
        as_ranker(stage)
    model[0].document_length = 7
    with pytest.raises(ValueError, match="document_length"):
        as_ranker(stage_of(model))
