"""Class and feature attention are those counted out, one entry at a time, of what eager attention returns."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import inputs_of
from small_models import ARCHITECTURES, QUERIES, TEXTS, build
from tolerance import widened

from pyterrier_mechir import AttentionPatterns, BiEncoder, CrossEncoder, PatchScorer, PerturbDocs, PerturbQueries
from pyterrier_mechir.observe import attention_summary
from pyterrier_mechir.perturb import TFC1, Typos
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

FEATURES = ("lexical_match", "rarity", "interaction")

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("bi", "cross")
WITH_PATTERN = [name for name in ARCHITECTURES if name != "mpnet"]
FRAME = pd.DataFrame(
    [(f"q{q}", QUERIES[q], f"d{d}", TEXTS[d]) for q, d in [(0, 0), (0, 4), (1, 1), (2, 2), (5, 5), (4, 0), (6, 6)]],
    columns=["qid", "query", "docno", "text"],
)
"""Texts of 4 to 80 tokens; one text has two queries."""


def make(architecture: str, kind: str, **options) -> Ranker:
    loaded = build(architecture, kind == "cross")
    return CrossEncoder(loaded, **options) if kind == "cross" else BiEncoder(loaded, pooling="mean", **options)


def eager_attention(ranker: Ranker, side) -> np.ndarray:
    """``[layer, head, S, S]`` of one sequence, by a copy of the model that attends eagerly."""
    slow, tokenizer = build(ranker.model.config.model_type, ranker.reads_query)
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        out = slow(**inputs_of(side, tokenizer), output_attentions=True)
    return torch.cat(out.attentions).double().numpy()


def class_means(attention: np.ndarray, classes: np.ndarray, attended: np.ndarray) -> np.ndarray:
    out = np.full((*attention.shape[:2], len(TOKEN_CLASSES), len(TOKEN_CLASSES)), np.nan)
    for source in range(len(TOKEN_CLASSES)):
        rows = [i for i in range(len(classes)) if classes[i] == source and attended[i]]
        for target in range(len(TOKEN_CLASSES)):
            columns = [j for j in range(len(classes)) if classes[j] == target and attended[j]]
            masses = [sum((attention[:, :, i, j] for j in columns), np.zeros(attention.shape[:2])) for i in rows]
            if masses:
                out[:, :, source, target] = sum(masses) / len(masses)
    return out


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=widened(1e-5), atol=widened(1e-6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", WITH_PATTERN)
def test_a_text_as_it_stands(architecture, kind):
    ranker = make(architecture, kind)
    out = AttentionPatterns(ranker, batch_size=4)(FRAME)
    assert out["attention"].iloc[0].shape == (3, 4, 8, 8)
    scored = ranker.scorer()(FRAME)
    np.testing.assert_allclose(out["score"], scored["score"], rtol=widened(1e-5), atol=widened(1e-5))
    np.testing.assert_array_equal(out["rank"], scored["rank"])
    for row in range(len(FRAME)):
        query, text = FRAME["query"][row], FRAME["text"][row]
        encoded = ranker.tokenizer(*((query, text) if kind == "cross" else (text,)))
        pair = ranker.align([query], [text], [text], alignments=["fill"])[0]
        assert pair.perturbed.ids.tolist() == encoded["input_ids"]
        expected = class_means(eager_attention(ranker, pair.perturbed), pair.classes, pair.perturbed.mask)
        assert_same(out["attention"].iloc[row], expected)


@pytest.mark.parametrize("alignment", ["fill", "mask"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_the_perturbed_side_of_a_pair(architecture, kind, alignment):
    """A text that is cut short: of alignment ``mask``, what was cut off is masked and counts nowhere."""
    ranker = make(architecture, kind)
    texts = ["bats night", "night", TEXTS[1], None]
    frame = FRAME.iloc[[2, 3, 6, 0]].reset_index(drop=True).assign(text_perturbed=texts, alignment=alignment)
    frame["text"] = ["bats find night", "heat pump night", TEXTS[1] + " night", TEXTS[0]]
    out = AttentionPatterns(ranker, features="rarity", idf={"night": 9.0, "the": 1.0})(frame)
    np.testing.assert_allclose(out["score"], ranker.scorer()(frame)["score"], rtol=widened(1e-5), atol=widened(1e-5))
    assert np.isnan(out["feature_attention"].iloc[3]).all() and out["feature_attention"].iloc[3].shape == (3, 4, 1)
    assert np.isnan(out["attention"].iloc[3]).all() and out["attention"].iloc[3].shape == (3, 4, 8, 8)
    aligned = ranker.align(frame["query"][:3], frame["text"][:3], texts[:3], alignments=[alignment] * 3)
    for row, pair in enumerate(aligned):
        attention = eager_attention(ranker, pair.perturbed)
        assert_same(out["attention"].iloc[row], class_means(attention, pair.classes, pair.perturbed.mask))
        if architecture == "bert" and row < 2:
            tokens = ranker.tokenizer.convert_ids_to_tokens(pair.perturbed.ids)
            attended = np.flatnonzero(pair.perturbed.mask)
            mass = {j: attention[:, :, attended, j].sum(-1) for j in attended[1:]}
            rare = sum(of_j for j, of_j in mass.items() if tokens[j] in ("night", "bats", "heat", "pump", "house"))
            assert_same(out["feature_attention"].iloc[row][..., 0], rare / sum(mass.values()))
        edit = out["attention"].iloc[row][..., TOKEN_CLASSES.index("EDIT"), :]
        assert np.isnan(edit).all() == (alignment == "mask")


@pytest.mark.parametrize("kind", KINDS)
def test_the_perturbed_side_of_a_query(kind):
    ranker = make("bert", kind)
    frame = PerturbQueries(Typos())(FRAME.iloc[[0, 3, 4]])
    assert frame["query_perturbed"].notna().all()
    out = AttentionPatterns(ranker)(frame)
    facing = ranker.facing("query")
    columns = [frame[name].tolist() for name in ("text", "query", "query_perturbed", "alignment")]
    pairs = facing.align(*columns[:3], alignments=columns[3])
    for row, pair in enumerate(pairs):
        expected = class_means(eager_attention(ranker, pair.perturbed), pair.classes, pair.perturbed.mask)
        assert_same(out["attention"].iloc[row], expected)


def test_classes_counted_by_hand():
    """[CLS] bats night [SEP] night owls ... : the classes written out, for a cross-encoder."""
    ranker = make("bert", "cross")
    frame = FRAME.iloc[[2]].assign(text="night and day")
    encoded = ranker.tokenizer("bats night", "night and day", return_tensors="pt")
    tokens = ranker.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert " ".join(tokens) == "[CLS] bats night [SEP] night and day [SEP]"
    found = AttentionPatterns(ranker, ["L2H1"])(frame)["attention"].iloc[0]
    assert found.shape == (1, 8, 8)
    slow, _ = build("bert", True)
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        a = slow(**encoded, output_attentions=True).attentions[2][0, 1].numpy()
    at = {name: found[0, TOKEN_CLASSES.index(name)] for name in TOKEN_CLASSES}
    to = {name: TOKEN_CLASSES.index(name) for name in TOKEN_CLASSES}
    assert at["CLS"][to["Q-"]] == pytest.approx(a[0, 1] + a[0, 2], rel=widened(1e-5))
    assert at["CLS"][to["D-"]] == pytest.approx(a[0, 4], rel=widened(1e-5))
    assert at["Q-"][to["D-"]] == pytest.approx((a[1, 4] + a[2, 4]) / 2, rel=widened(1e-5))
    assert at["OTHER"][to["SEP"]] == pytest.approx((a[5, 3] + a[5, 7] + a[6, 3] + a[6, 7]) / 2, rel=widened(1e-5))
    for name in ("Q+", "EDIT", "D+"):
        assert np.isnan(at[name]).all()
        assert at["CLS"][to[name]] == 0


@pytest.mark.parametrize("query", ["bats night", "bats"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_counted_by_hand(kind, query):
    """Words in pieces, punctuation, capitals and an unknown word; the words of each position written out."""
    ranker = make("bert", kind)
    text = "Bats find insects, and insects find bats \u4e00 \u4e00."
    pieces = ranker.tokenizer.convert_ids_to_tokens(ranker.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert " ".join(pieces) == "bats find inse ##cts , and inse ##cts find bats [UNK] [UNK] ."
    document = ["bats", "find", *["insects"] * 2, "-", "and", *["insects"] * 2, "find", "bats", "-", "-", "-"]
    number = [0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]
    special = [("-", -1, -1)]
    of_document = [(word, i, 1) for word, i in zip(document, number, strict=True)]
    of_query = [(word, 100 + i, 0) for i, word in enumerate(query.split())]
    positions = special + (of_query + special if kind == "cross" else []) + of_document + special
    pair = ranker.align([query], [text], [text], alignments=["fill"])[0]
    assert len(positions) == len(pair.perturbed.ids)
    a = eager_attention(ranker, pair.perturbed)
    n = len(positions)
    everything = [(i, j) for i in range(n) for j in range(1, n)]
    linked = {
        "lexical_match": lambda p, q: p[0] == q[0] != "-" and p[1] != q[1],
        "rarity": lambda p, q: q[0] in ("insects", "night"),
        "interaction": lambda p, q: {p[2], q[2]} == {0, 1},
    }
    features = [name for name in linked if kind == "cross" or name != "interaction"]
    idf = {"bats": 1.0, "find": 2.0, "insects": 3.0, "and": 0.5}
    stage = AttentionPatterns(ranker, features=features, idf=idf, rare_above=2.0)
    out = stage(FRAME[:1].assign(query=query, text=text))
    found = out["feature_attention"].iloc[0]
    assert found.shape == (3, 4, len(features))
    total = sum(a[:, :, i, j] for i, j in everything)
    for column, name in enumerate(features):
        mass = sum(a[:, :, i, j] for i, j in everything if linked[name](positions[i], positions[j]))
        assert_same(found[..., column], mass / total)
    assert out.attrs["mechir"]["features"] == features


@pytest.mark.parametrize("architecture", WITH_PATTERN)
def test_every_tokenizer_has_words_to_match(architecture):
    """Two texts of the same words, one of which repeats; a first word has other pieces than a later one in BPE."""
    ranker = make(architecture, "bi")
    frame = FRAME[:2].assign(text=["night bats night", "night bats tides"], docno=["a", "b"])
    out = AttentionPatterns(ranker, features="lexical_match")(frame)
    assert (out["feature_attention"].iloc[0] > 0).all()
    assert (out["feature_attention"].iloc[1] == 0).all()


def test_words_that_the_collection_lacks_are_rare_but_for_function_words():
    ranker = make("bert", "bi")
    frame = FRAME[:3].assign(text=["bats", "the", "find"], docno=list("abc"))
    out = AttentionPatterns(ranker, features="rarity", idf={"find": 4.6})(frame)
    rare = [bool((values > 0).all()) for values in out["feature_attention"]]
    assert rare == [True, False, False]


@given(st.lists(st.sampled_from(["bats", "night", "the", "tides", "."]), max_size=12), st.sampled_from(KINDS))
@settings(max_examples=15, deadline=None)
def test_attention_is_all_somewhere(words, kind):
    frame = pd.DataFrame([("1", "bats night", "d", " ".join(words))], columns=["qid", "query", "docno", "text"])
    ranker = RANKERS.setdefault(kind, make("distilbert", kind))
    out = AttentionPatterns(ranker, features=("lexical_match", "rarity"), idf={"bats": 9.0, "night": 0.1})(frame)
    sums = out["attention"].iloc[0].sum(-1)
    np.testing.assert_allclose(sums[~np.isnan(sums)], 1, rtol=widened(1e-5))
    assert np.isnan(sums).any(axis=(0, 1)).tolist() == np.isnan(sums).all(axis=(0, 1)).tolist()
    shares = out["feature_attention"].iloc[0]
    assert ((shares >= 0) & (shares <= 1 + 1e-6)).all()
    if kind == "bi":
        repeats = max([words.count(word) for word in words if word != "."], default=0) > 1
        assert (shares[..., 0] > 0).all() == (shares[..., 0] > 0).any() == repeats


RANKERS: dict[str, Ranker] = {}


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_results_do_not_depend_on_the_batch_nor_on_which_heads_are_read(ranker, batch_size):
    everything = AttentionPatterns(ranker, features="lexical_match")(FRAME)
    heads = [(2, 1), "L0H3", "L2H0.pattern"]
    some = AttentionPatterns(ranker, heads, features="lexical_match", batch_size=batch_size)(FRAME)
    assert some.attrs["mechir"]["heads"] == ["L2H1", "L0H3", "L2H0"]
    assert everything.attrs["mechir"]["heads"][:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
    assert everything.attrs["mechir"]["classes"] == list(TOKEN_CLASSES)
    for row in range(len(FRAME)):
        for column in ("attention", "feature_attention"):
            found, of_all = some[column].iloc[row], everything[column].iloc[row]
            np.testing.assert_allclose(found, of_all[[2, 0, 2], [1, 3, 0]], rtol=widened(1e-4), atol=widened(1e-6))


@pytest.mark.parametrize(("kind", "distinct"), [("bi", 2), ("cross", 3)])
def test_each_sequence_is_computed_once(kind, distinct, monkeypatch):
    ranker = make("bert", kind)
    frame = FRAME.iloc[[0, 5, 2, 0]].assign(docno=list("abcd"))
    rows = []
    encode, inputs = ranker.encode, ranker.query_inputs(frame["query"].unique().tolist())
    monkeypatch.setattr(ranker, "encode", lambda batch: rows.append(len(batch["input_ids"])) or encode(batch))
    monkeypatch.setattr(ranker, "query_inputs", lambda queries: inputs)
    monkeypatch.setattr(ranker, "score", None)
    out = AttentionPatterns(ranker)(frame)
    assert sum(rows) == distinct
    np.testing.assert_array_equal(out["attention"].iloc[0], out["attention"].iloc[3])
    assert not np.array_equal(out["attention"].iloc[0], out["attention"].iloc[1], equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_cut_as_in_scoring_and_not_warned_of(kind):
    ranker = make("bert", kind, max_length=24)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*longer than")
        out = AttentionPatterns(ranker)(FRAME)
    np.testing.assert_allclose(out["score"], ranker.scorer()(FRAME)["score"], rtol=widened(1e-5), atol=widened(1e-5))


def test_it_adds_to_what_patching_says(ranker):
    pipeline = PerturbDocs(TFC1()) >> PatchScorer(ranker) >> AttentionPatterns(ranker, [(0, 0)])
    out = pipeline(FRAME[:2])
    assert {"patch_effect", "attention", "score", "rank"} <= set(out.columns)
    assert {"sites", "direction", "heads", "classes"} <= set(out.attrs["mechir"])


def test_an_empty_frame_has_the_columns(ranker):
    before = FRAME.copy()
    stage = AttentionPatterns(ranker, features="lexical_match")
    assert list(stage(FRAME[:0]).columns) == list(stage(FRAME).columns)
    pd.testing.assert_frame_equal(FRAME, before)
    perturbed = PerturbDocs(TFC1())(FRAME)
    assert list(stage(perturbed[:0]).columns) == list(stage(perturbed).columns)
    columns = pt.inspect.transformer_outputs(stage, ["qid", "query", "docno", "text"])
    assert set(columns) == set(stage(FRAME).columns)


def test_equal_settings_make_equal_stages(ranker):
    one, other = (AttentionPatterns(ranker, heads, features="lexical_match") for heads in ([(0, 1)], [(0, 1)]))
    assert one == other and hash(one) == hash(other) and one != AttentionPatterns(ranker)
    rare = AttentionPatterns(ranker, ["L0H1"], features="rarity", idf=TEXTS)
    assert pt.inspect.transformer_apply_attributes(rare) == rare
    assert pt.inspect.subtransformers(rare) == {}
    assert repr(one).endswith("heads=[(0, 1)], features=('lexical_match',))")


def test_the_stage_names_the_features_that_are_computed():
    assert tuple(attention_summary.ATTENTION_FEATURES) == FEATURES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [(9, 0)]}, r"no head \(9, 0\)"),
        ({"heads": ["L1.mlp_out"]}, "is no attention head"),
        ({"heads": ["L0H1.q"]}, "is no attention head"),
        ({"heads": ["L0H1+L1H1"]}, "is no attention head"),
        ({"heads": [3]}, "3 is no attention head"),
        ({"heads": []}, "reads nothing"),
        ({"features": ["matching"]}, "unknown feature 'matching'"),
        ({"features": "rarity"}, "needs idf="),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_unusable_options_are_errors(ranker, options, message):
    with pytest.raises(ValueError, match=message):
        AttentionPatterns(ranker, **options)


def test_what_a_ranker_cannot_give_is_an_error(bi_encoder):
    with pytest.raises(ValueError, match="needs query and document in one sequence"):
        AttentionPatterns(bi_encoder, features="interaction")
    with pytest.raises(ValueError, match="mpnet computes its attention outside"):
        AttentionPatterns(make("mpnet", "bi"))
    with pytest.raises(TypeError, match="should be a ranker"):
        AttentionPatterns("tasb")


def test_unusable_input_is_an_error(ranker):
    stage = AttentionPatterns(ranker)
    with pytest.raises(pt.validate.InputValidationError):
        stage(FRAME.drop(columns="text"))
    with pytest.raises(ValueError, match="more than once"):
        stage(pd.concat([FRAME, FRAME]))
    with pytest.raises(ValueError, match="free"):
        stage(FRAME.assign(text_perturbed="tides", alignment="free"))
