"""Rankers of other libraries: the models that they hold, scored as they score them."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.base.modules import Transformer as Encoder
from sentence_transformers.sentence_transformer.modules import Pooling
from small_models import QUERIES, TEXTS, build, build_t5
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder, MonoT5, PatchScorer, Splade
from pyterrier_mechir.rankers.unwrap import as_ranker

pytestmark = pytest.mark.usefixtures("one_thread")


def saved(directory, architecture="bert", classifier=False, **changes):
    model, tokenizer = build(architecture, classifier, **changes)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def retrieved():
    rows = [("q", QUERIES[0], f"d{i}", text, 1.0) for i, text in enumerate(TEXTS)]
    return pt.model.add_ranks(pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]))


def scores(thing):
    frame = retrieved()
    return as_ranker(thing).score(frame["query"].tolist(), frame["text"].tolist())


@pytest.mark.parametrize(
    ("pooling", "more", "options"),
    [
        ("mean", [Normalize()], {}),
        ("cls", [], {"similarity_fn_name": "dot"}),
        ("mean", [], {"prompts": {"query": "why ", "document": "the moon "}}),
    ],
    ids=["mean normalised", "cls dot", "prompts"],
)
def test_a_sentence_transformer_is_a_bi_encoder(pooling, more, options, tmp_path):
    model = SentenceTransformer(
        modules=[Encoder(saved(tmp_path)), Pooling(32, pooling), *more], device="cpu", **options
    )
    expected = model.similarity(model.encode_query(QUERIES[:1]), model.encode_document(TEXTS))[0]
    np.testing.assert_allclose(scores(model), expected, rtol=widened(1e-5), atol=widened(1e-5))
    ranker = as_ranker(model)
    assert isinstance(ranker, BiEncoder) and ranker.model is model[0].auto_model
    assert ranker == BiEncoder(model)


def test_a_cross_encoder_of_sentence_transformers_is_one(tmp_path):
    model = SentenceCrossEncoder(saved(tmp_path, "roberta", True), device="cpu", max_length=30)
    expected = model.predict([(QUERIES[0], text) for text in TEXTS], activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(scores(model), expected, rtol=widened(1e-5), atol=widened(1e-5))
    assert isinstance(as_ranker(model), CrossEncoder) and as_ranker(model).max_length == 30


def test_a_sparse_encoder_is_splade(tmp_path):
    sparse = pytest.importorskip("sentence_transformers.sparse_encoder")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    torch.manual_seed(0)
    import transformers as tf
    from small_models import config, tokenizer

    tf.BertForMaskedLM(config("bert")).save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    encoder = getattr(modules, "MLMTransformer", None)
    first = encoder(str(tmp_path)) if encoder else Encoder(str(tmp_path), transformer_task="fill-mask")
    model = sparse.SparseEncoder(modules=[first, modules.SpladePooling("max")], device="cpu")
    expected = model.similarity(model.encode_query(QUERIES[:1]), model.encode_document(TEXTS)).to_dense()[0]
    assert isinstance(as_ranker(model), Splade)
    np.testing.assert_allclose(scores(model), expected, rtol=widened(1e-4), atol=widened(1e-5))


@pytest.mark.bits
def test_stages_take_what_holds_a_model(tmp_path):
    model = SentenceTransformer(modules=[Encoder(saved(tmp_path)), Pooling(32, "mean")], device="cpu")
    stage = PatchScorer(model)
    assert stage == PatchScorer(model) == PatchScorer(as_ranker(model)) and not stage.subtransformers()
    pd.testing.assert_frame_equal(stage(retrieved()), PatchScorer(BiEncoder(model))(retrieved()))


@pytest.mark.parametrize("thing", ["some/checkpoint", 3, pt.Transformer.identity()], ids=["id", "number", "stage"])
def test_what_holds_no_model_is_an_error_that_says_what_would(thing):
    with pytest.raises(TypeError, match="ranker should be a ranker such as"):
        PatchScorer(thing)


# PyTerrier plugins


def test_a_bi_encoder_of_pyterrier_dr(tmp_path):
    dr = pytest.importorskip("pyterrier_dr")
    model = dr.HgfBiEncoder.from_pretrained(saved(tmp_path), device="cpu")
    expected = model.text_scorer()(retrieved()).set_index("docno")["score"]
    np.testing.assert_allclose(scores(model), expected[retrieved()["docno"]], rtol=widened(1e-4))
    ranker = as_ranker(model)
    assert (ranker.pooling, ranker.similarity, ranker.name) == ("cls", "dot", str(tmp_path))
    for stage in (model.text_scorer(), model.query_encoder(), model.doc_encoder()):
        assert as_ranker(stage) == ranker
    out = (pt.Transformer.from_df(retrieved()) >> PatchScorer(model))(retrieved()[["qid", "query"]].head(1))
    assert np.isfinite(np.stack(out["patch_scores"])).all()


@pytest.mark.parametrize("more", [[], [Normalize()]], ids=["plain", "normalised"])
def test_a_sentence_transformer_in_pyterrier_dr(more, tmp_path):
    dr = pytest.importorskip("pyterrier_dr")
    made = SentenceTransformer(modules=[Encoder(saved(tmp_path / "a")), Pooling(32, "mean"), *more], device="cpu")
    made.save(str(tmp_path / "b"), create_model_card=False)
    saved(tmp_path / "c")
    try:
        model = dr.SBertBiEncoder(str(tmp_path / "b"), device="cpu")
    except (OSError, ValueError) as error:
        pytest.skip(f"pyterrier_dr cannot load it: {error}")
    expected = model.text_scorer()(retrieved()).set_index("docno")["score"]
    np.testing.assert_allclose(scores(model), expected[retrieved()["docno"]], rtol=widened(1e-4))


def test_the_electra_of_pyterrier_dr(tmp_path):
    dr = pytest.importorskip("pyterrier_dr")
    model, tokenizer = build("electra", True, num_labels=2)
    stage = dr.ElectraScorer.__new__(dr.ElectraScorer)
    stage.model, stage.tokeniser, stage.model_name = model, tokenizer, "an/electra"
    stage.batch_size, stage.text_field, stage.verbose, stage.device = 4, "text", False, torch.device("cpu")
    expected = stage.transform(retrieved()).set_index("docno")["score"]
    np.testing.assert_allclose(scores(stage), expected[retrieved()["docno"]], rtol=widened(1e-4), atol=widened(1e-5))
    assert as_ranker(stage).short_name == "electra"


def test_the_mono_t5_of_pyterrier_t5():
    """One document at a time: in a batch, it leaves padding and an end token before the prompt's last word."""
    t5 = pytest.importorskip("pyterrier_t5")
    model, tokenizer = build_t5()
    stage = t5.MonoT5ReRanker.__new__(t5.MonoT5ReRanker)
    stage.model, stage.tokenizer, stage.model_name = model, tokenizer, "a/monot5"
    stage.batch_size, stage.text_field, stage.verbose, stage.device = 1, "text", False, torch.device("cpu")
    stage.REL, stage.NREL = (tokenizer.encode(word)[0] for word in ("true", "false"))
    if not hasattr(model.config, "n_positions"):
        model.config.n_positions = 512
    expected = stage.transform(retrieved()).set_index("docno")["score"][retrieved()["docno"]].to_numpy()
    margin = torch.from_numpy(scores(stage)).double()
    assert isinstance(as_ranker(stage), MonoT5)
    np.testing.assert_allclose(torch.nn.functional.logsigmoid(margin), expected, rtol=widened(1e-4), atol=widened(1e-5))
