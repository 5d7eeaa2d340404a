"""Any checkpoint: the class and the options are told by its own files."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers as tf
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.base.modules import Transformer as Encoder
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, build_decoder, build_t5, config, tokenizer

from pyterrier_mechir import BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade, load_ranker
from pyterrier_mechir.rankers.generative import QWEN3_RERANKER
from pyterrier_mechir.rankers.load import choose
from pyterrier_mechir.rankers.unwrap import as_ranker

pytestmark = pytest.mark.usefixtures("one_thread")


def saved(directory, loaded):
    for part in loaded:
        part.save_pretrained(directory)
    return directory


def decoder(auto_class, **changes):
    torch.manual_seed(0)
    made = tokenizer("modernbert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 400, "pad_token_id": made.pad_token_id}
    return auto_class.from_config(tf.Qwen3Config(vocab_size=len(made), **sizes, **changes)), made


@pytest.mark.bits
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_classification_head_on_an_encoder_is_a_cross_encoder(architecture, tmp_path):
    path = saved(tmp_path, build(architecture, True))
    ranker = load_ranker(path)
    assert ranker == CrossEncoder(path)
    np.testing.assert_array_equal(ranker.score(QUERIES, TEXTS), CrossEncoder(path).score(QUERIES, TEXTS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_encoder_without_a_head_is_a_bi_encoder(architecture, tmp_path):
    path = saved(tmp_path, build(architecture, False))
    assert load_ranker(path) == BiEncoder(path)


def test_modules_tell_pooling_and_similarity(tmp_path):
    modules = [Encoder(str(saved(tmp_path / "a", build("bert", False)))), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "b"), create_model_card=False)
    ranker = load_ranker(tmp_path / "b")
    assert isinstance(ranker, BiEncoder) and (ranker.pooling, ranker.similarity) == ("mean", "cosine")


def test_a_masked_language_model_is_splade(tmp_path):
    torch.manual_seed(0)
    path = saved(tmp_path, (tf.BertForMaskedLM(config("bert")), tokenizer("bert")))
    assert load_ranker(path) == Splade(path)


def test_an_encoder_decoder_is_mono_t5(tmp_path):
    path = saved(tmp_path, build_t5())
    assert load_ranker(path, stack="decoder") == MonoT5(path, stack="decoder")


@pytest.mark.parametrize("auto_class", [tf.AutoModelForCausalLM, tf.AutoModelForSequenceClassification])
def test_a_decoder_with_a_head_is_a_generative_reranker(auto_class, tmp_path):
    path = saved(tmp_path, decoder(auto_class, **({} if auto_class is tf.AutoModelForCausalLM else {"num_labels": 1})))
    template = "{query} moon {document} tides"
    ranker = load_ranker(path, template=template, **({"yes": "d", "no": "x"}))
    assert isinstance(ranker, GenerativeReranker)


def test_the_metadata_of_colbert_make_one(tmp_path):
    model, made = build("bert", False)
    weights = {f"bert.{name}": weight.contiguous() for name, weight in model.state_dict().items()}
    from safetensors.torch import save_file

    saved(tmp_path, (model, made))
    save_file(weights | {"linear.weight": torch.randn(8, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "artifact.metadata").write_text(json.dumps({"query_token_id": "[CLS]", "doc_token_id": "[SEP]"}))
    assert choose(str(tmp_path)).ranker == "ColBERT"
    assert isinstance(load_ranker(tmp_path), ColBERT)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"], "ColBERT"),
        (["sentence_transformers.models.Transformer", "x.Dense"], "ColBERT"),
        (["x.MLMTransformer", "x.SpladePooling"], "Splade"),
        (["x.Transformer", "x.Pooling", "x.Dense", "x.Normalize"], "BiEncoder"),
    ],
)
def test_modules_tell_the_class(kinds, expected, tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": kind, "path": ""} for kind in kinds]))
    assert choose(str(tmp_path)).ranker == expected


def test_it_says_what_it_chose_unless_told_not_to(tmp_path, capsys):
    path = saved(tmp_path, build("bert", True))
    load_ranker(path)
    assert f"{path.name}: CrossEncoder(" in capsys.readouterr().err
    load_ranker(path, verbose=False)
    assert not [line for line in capsys.readouterr().err.splitlines() if "CrossEncoder" in line]


def test_options_go_before_what_the_files_say(tmp_path):
    path = saved(tmp_path, build("bert", False))
    assert load_ranker(path, pooling="mean", max_length=20) == BiEncoder(path, pooling="mean", max_length=20)


def test_what_is_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json"):
        load_ranker(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForQuestionAsking"]})
    )
    with pytest.raises(ValueError, match="do not tell what kind of ranker"):
        load_ranker(tmp_path)


# Prompts

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatting(directory, chat=CHAT, prompts=None, options=None):
    """A CrossEncoder of sentence-transformers with a LogitScore."""
    from sentence_transformers import CrossEncoder as Reranker
    from sentence_transformers.cross_encoder.modules import LogitScore

    model, made = build_decoder("qwen2", "AutoModelForCausalLM")
    made = copy.deepcopy(made)
    made.chat_template = chat
    encoder = Encoder(
        str(saved(directory / "lm", (model, made))), transformer_task="text-generation", processing_kwargs=options or {}
    )
    name = {"default_prompt_name": "web"} if prompts else {}
    return Reranker(modules=[encoder, LogitScore(5, 9)], device="cpu", prompts=prompts, **name)


@pytest.mark.parametrize("prompts", [None, {"web": "Find day, night"}])
@pytest.mark.parametrize("options", [None, {"chat_template": {"add_generation_prompt": True}}])
def test_a_cross_encoder_of_a_language_model_is_scored_by_its_chat_template_and_answers(prompts, options, tmp_path):
    whole = chatting(tmp_path, prompts=prompts, options=options)
    wanted = whole.predict(list(zip(QUERIES, TEXTS, strict=True)), activation_fn=torch.nn.Identity())
    whole.save_pretrained(str(tmp_path / "whole"))
    for ranker in (as_ranker(whole), load_ranker(tmp_path / "whole"), GenerativeReranker(tmp_path / "whole")):
        np.testing.assert_allclose(ranker.score(QUERIES, TEXTS), wanted, rtol=1e-4, atol=1e-4)
        assert (ranker.yes, ranker.no, ranker.instruction) == (5, 9, (prompts or {}).get("web", ""))


def test_a_chat_template_that_changes_texts_is_refused(tmp_path):
    whole = chatting(tmp_path, CHAT.replace("m.content", "m.content | upper"))
    with pytest.raises(ValueError, match="no chat template in which a query and a document stand once each"):
        as_ranker(whole)


@pytest.mark.parametrize("head", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma"])
def test_a_decoder_of_no_known_family_is_given_no_familys_prompt(architecture, head, tmp_path):
    path = saved(tmp_path / "some-decoder", build_decoder(architecture, head))
    with pytest.raises(ValueError, match="do not say with which prompt it ranks; pass template="):
        load_ranker(path)
    assert load_ranker(path, template="{query} day {document} night", yes=5, no=7).template.startswith("{query}")


def test_a_family_is_known_by_its_name(tmp_path):
    path = saved(tmp_path / "Qwen3-Reranker-0.6B", build_decoder("qwen3", "AutoModelForCausalLM"))
    assert load_ranker(path).template == QWEN3_RERANKER
    path = saved(tmp_path / "rankllama-v1", build_decoder("llama", "AutoModelForSequenceClassification"))
    assert load_ranker(path).template.startswith("query: {query} document: {document}")


def test_mt5_answers_yes_or_no_and_what_is_not_known_is_asked_for(tmp_path):
    ranker = load_ranker(saved(tmp_path / "mt5-base-mmarco-v2", build_t5("mt5")))
    assert (ranker.true, ranker.false) == ("yes", "no")
    with pytest.raises(ValueError, match="pass true= and false="):
        choose(str(saved(tmp_path / "mt5-13b-mmarco-100k", build_t5("mt5"))))
