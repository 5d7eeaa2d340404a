"""ExplainScore as a stage: its columns, the next document, storing, errors, and that layers matter to every method."""

from __future__ import annotations

import io
import pickle
import unittest
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from many_rankers import ranker
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, CrossEncoder, ExplainScore, MonoT5, PatchResults, Splade, run_sweep
from pyterrier_mechir.perturb import RandomFiller

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = pd.DataFrame(
    [
        (f"q{q}", QUERIES[q], f"d{d}", TEXTS[d], 7.0, 0, "kept")
        for q, d in [(0, 0), (1, 1), (0, 4), (1, 3), (0, 3), (2, 1)]
    ],
    columns=["qid", "query", "docno", "text", "score", "rank", "other"],
)
"""Documents of three queries, out of order, one of them the only one of its query."""

ALWAYS = ["units", "unit_spans", "unit_scores", "unit_rest", "score_empty", "sum_error"]

WAYS = [
    {},
    {"method": "gradient", "of": "query"},
    {"method": "ig", "steps": 20, "unit": "sentence"},
    {"method": "lime", "samples": 20, "absence": "random"},
    {"method": "terms"},
    {"method": "terms", "interactions": True, "unit": "token"},
]


def assert_frames_equal(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Two frames are the same, bit for bit, whatever their cells hold."""
    assert list(one.columns) == list(other.columns)
    for name in one.columns:
        for left, right in zip(one[name], other[name], strict=True):
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype, name
                assert left.shape == right.shape, name
                assert left.tobytes() == right.tobytes(), name
            else:
                assert left == right or (left != left and right != right), name


# The frame


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_output_is_the_plain_re_ranking_with_the_columns_that_are_promised(options):
    found, before = ranker("splade max"), FRAME.copy(deep=True)
    out = ExplainScore(found, **options)(FRAME)
    plain = found.scorer()(FRAME)
    more = {"lime": ["unit_errors", "fit_r2"], "terms": ["terms", "term_scores", "term_units"]}
    added = [*ALWAYS, *more.get(options.get("method"), [])]
    added += ["query_units", "interactions"] if "interactions" in options else []
    assert list(out.columns) == ["qid", "query", "docno", "text", "other", "score", *added, "rank"]
    pd.testing.assert_frame_equal(out.drop(columns=added)[plain.columns], plain, rtol=1e-5)
    assert out.index.tolist() == plain.index.tolist()
    pd.testing.assert_frame_equal(FRAME, before)
    side = "query" if options.get("of") == "query" else "text"
    for row in out.itertuples():
        spans, text = row.unit_spans, getattr(row, side)
        assert spans.dtype == np.int64
        assert row.unit_scores.dtype == np.float32
        assert spans.shape == (len(row.units), 2)
        assert len(row.unit_scores) == len(row.units) > 0
        assert row.units == [text[begin:end] for begin, end in spans.tolist()]
    assert all(out[name].dtype == np.float64 for name in ("unit_rest", "score_empty", "sum_error"))


def test_another_column_of_text_is_explained_where_it_is_named():
    frame = FRAME.rename(columns={"text": "body"})
    out = ExplainScore(ranker("cross bert"), text_field="body")(frame).sort_index()
    wanted = ExplainScore(ranker("cross bert"))(FRAME).sort_index()
    assert out["units"].tolist() == wanted["units"].tolist()
    assert_near(np.concatenate(out["unit_scores"].tolist()), np.concatenate(wanted["unit_scores"].tolist()))
    with pytest.raises(pt.validate.InputValidationError, match="body"):
        ExplainScore(ranker("cross bert"), text_field="body")(FRAME)


def test_what_an_earlier_explanation_added_is_left_out_and_other_columns_are_not():
    found = ranker("splade max")
    first = ExplainScore(found, "lime", samples=20, against="next")(FRAME)
    second = ExplainScore(found)(first)
    assert not set(second.columns) & {"unit_errors", "fit_r2", "against", "margin"}
    assert second.attrs["mechir"]["scorer"]["method"] == "occlusion"
    kept = ExplainScore(found)(FRAME.assign(against="x", margin=1.0))
    assert (kept["against"] == "x").all()
    assert (kept["margin"] == 1.0).all()


@pytest.mark.parametrize("options", [*WAYS, {"against": "next"}], ids=str)
def test_an_empty_frame_keeps_its_columns(options):
    stage = ExplainScore(ranker("splade max"), **options)
    empty = stage(FRAME.head(0))
    assert len(empty) == 0
    assert set(empty.columns) == set(stage(FRAME).columns)
    assert empty.attrs == stage(FRAME).attrs


@pytest.mark.parametrize("options", [*WAYS, {"against": "next"}], ids=str)
def test_the_stage_passes_the_checks_of_pyterrier(options, monkeypatch):
    monkeypatch.setenv("PT_TEST_TRANSFORMER_REPORTS", "0")
    stage = ExplainScore(ranker("splade max"), **options)
    case = pt.testing.transformer_test_class(lambda: stage)
    result = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    assert result.wasSuccessful(), result.failures + result.errors
    columns = ["qid", "query", "docno", "text"]
    assert pt.inspect.transformer_outputs(stage, columns) == list(stage(FRAME[columns]).columns)
    assert ["qid", "docno", "query", "text"] in [
        sorted(one, key=["qid", "docno", "query", "text"].index) for one in pt.inspect.transformer_inputs(stage)
    ]


def test_the_attributes_say_how_scores_were_explained():
    found = ranker("cross bert")
    said = ExplainScore(found, "lime", "token", "query", samples=9, absence="mask", seed=4)(FRAME).attrs["mechir"]
    assert said["ranker"] == found.about()
    assert said["scorer"] == {
        "stage": "ExplainScore",
        "method": "lime",
        "unit": "token",
        "of": "query",
        "against": None,
        "absence": "mask",
        "all_occurrences": False,
        "interactions": False,
        "text_field": "text",
        "samples": 9,
        "kernel_width": 25.0,
        "seed": 4,
    }
    told = {way: ExplainScore(found, way).about()["scorer"] for way in ("occlusion", "gradient", "ig")}
    assert [told[way]["absence"] for way in told] == ["delete", None, "mask"]
    assert [told[way].get("steps") for way in told] == [None, None, 50]
    assert "seed" not in told["occlusion"]
    drawn = ExplainScore(found, absence=RandomFiller(draws=2, seed=8)).about()["scorer"]
    assert drawn["absence"] == "RandomFiller(draws=2, seed=8)"
    assert ExplainScore(found, absence="random", seed=3).about()["scorer"]["seed"] == 3
    without_mask = ranker("generative qwen2")
    assert ExplainScore(without_mask, "ig").about()["scorer"]["absence"] == "random"


@pytest.mark.parametrize("kind", ["cross bert", "generative qwen2"])
def test_the_seed_decides_which_random_words_are_drawn(kind):
    one, same, other = (
        ExplainScore(ranker(kind), absence=absence, seed=seed)(FRAME).sort_index()["unit_scores"]
        for absence, seed in (("random", 1), (RandomFiller(seed=1), 7), ("random", 2))
    )
    for first, second, third in zip(one, same, other, strict=True):
        assert_near(first, second)
        assert np.abs(first - third).max() > 1e-3


@pytest.mark.bits
def test_equal_stages_are_equal_and_pickled():
    found = ranker("cross bert")
    assert ExplainScore(found) == ExplainScore(found, "occlusion", absence="delete")
    assert hash(ExplainScore(found)) == hash(ExplainScore(found, absence="delete"))
    others = [{"method": "lime"}, {"unit": "token"}, {"of": "query"}, {"against": "next"}, {"absence": "mask"}]
    others += [{"all_occurrences": True}, {"seed": 1}, {"batch_size": 2}, {"steps": 9}, {"samples": 9}]
    assert len({ExplainScore(found), *(ExplainScore(found, **one) for one in others)}) == 1 + len(others)
    stage = ExplainScore(found, "ig", of="query", steps=9)
    assert (
        repr(stage) == "ExplainScore(CrossEncoder('BertForSequenceClassification'), method='ig', of='query', steps=9)"
    )
    loaded = pickle.loads(pickle.dumps(ExplainScore(found)))
    assert_frames_equal(loaded(FRAME), ExplainScore(found)(FRAME))


def test_an_experiment_measures_the_rankers_own_order():
    found = ranker("cross bert")
    topics = FRAME[["qid", "query"]].drop_duplicates("qid")
    qrels = pd.DataFrame({"qid": ["q0", "q1"], "docno": ["d4", "d3"], "label": [1, 1]})
    retrieve = pt.Transformer.from_df(FRAME)
    table = pt.Experiment(
        [retrieve >> found.scorer(), retrieve >> ExplainScore(found)], topics, qrels, ["recip_rank"], names=["a", "b"]
    )
    assert table["recip_rank"].nunique() == 1


# The next document


def _ordered(found) -> pd.DataFrame:
    """The frame with the ranker's scores, and for each row which comes next for its query."""
    scores = found.score(FRAME["query"].tolist(), FRAME["text"].tolist())
    frame, next_of = FRAME.assign(score=scores), {}
    for _, of_query in frame.sort_values("score", ascending=False).groupby("qid"):
        rows = of_query.index.tolist()
        next_of |= dict(zip(rows, [*rows[1:], None], strict=True))
    return frame.assign(next=[next_of[row] for row in frame.index])


@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "colbert"])
@pytest.mark.parametrize("method", ["occlusion", "gradient", "ig"])
def test_a_margin_is_told_by_the_words_of_the_document_as_its_score_is(kind, method):
    wanted = _ordered(ranker(kind))
    options = {"absence": "mask"} if method != "gradient" else {}
    out = ExplainScore(ranker(kind), method, against="next", **options)(FRAME).sort_index()
    plain = ExplainScore(ranker(kind), method, **options)(FRAME).sort_index()
    assert list(out.columns) == [*plain.columns[:-1], "against", "margin", "rank"]
    following = wanted["next"]
    docnos, scores = (FRAME["docno"].to_dict(), wanted["score"].to_dict())
    assert out["against"].tolist() == [None if pd.isna(row) else docnos[row] for row in following]
    assert_near(out["margin"], [scores[own] - scores.get(row, np.nan) for own, row in following.items()])
    for one, other in zip(out["unit_scores"], plain["unit_scores"], strict=True):
        assert_near(one, other, least=1 + out["score"].abs().max())
    assert out["against"].isna().sum() == 3
    assert (out["margin"].dropna() >= 0).all()


@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "splade max"])
@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
@pytest.mark.parametrize("method", ["occlusion", "ig"])
def test_a_word_of_the_query_carries_the_difference_of_both_documents(kind, method):
    options = {"method": method, "of": "query", "absence": "mask"}
    wanted = _ordered(ranker(kind))["next"]
    out = ExplainScore(ranker(kind), against="next", **options)(FRAME).sort_index()
    plain = ExplainScore(ranker(kind), **options)(FRAME).sort_index()
    for row, following in wanted.items():
        is_last = pd.isna(following)
        for name in ("unit_scores", "score_empty", *(["unit_rest", "sum_error"] if method == "ig" else [])):
            if is_last:
                assert np.isnan(out[name][row]).all()
            else:
                assert_near(
                    out[name][row], plain[name][row] - plain[name][following], 1e-5, 1 + abs(plain["score"][row])
                )
        assert out["units"][row] == plain["units"][row]
        assert len(out["unit_scores"][row]) == len(out["units"][row])
    if method == "ig":
        sums = np.array([scores.sum() for scores in out["unit_scores"]])
        whole = sums + out["unit_rest"] + out["score_empty"] + out["sum_error"]
        assert_near(whole.dropna(), out["margin"].dropna(), 1e-5, out["score"].abs().max())


def test_with_lime_a_word_carries_whether_its_document_stays_above_the_next():
    found = ranker("cross bert")
    wanted = _ordered(found)
    out = ExplainScore(found, "lime", against="next", absence="mask", samples=100)(FRAME).sort_index()
    plain = ExplainScore(found, "lime", absence="mask", samples=100)(FRAME).sort_index()
    assert_near(out["score_empty"], plain["score_empty"])
    for row, following in wanted["next"].items():
        if pd.isna(following):
            assert np.isnan(out["unit_scores"][row]).all()
            assert np.isnan(out["unit_errors"][row]).all()
            assert np.isnan(out["fit_r2"][row])
            continue
        query, text = FRAME["query"][row], FRAME["text"][row]
        labels = _labels(found, query, text, wanted["score"][following], 100)
        assert_near(out["unit_scores"][row], labels, 1e-4)
    assert len(out["unit_scores"][0]) == len(out["units"][0])


def _labels(found, query: str, text: str, threshold: float, samples: int) -> np.ndarray:
    """The fit of whether texts with some words masked score above a number."""
    from pyterrier_mechir.observe.words.absence import Absent
    from pyterrier_mechir.observe.words.explained import Asked
    from pyterrier_mechir.observe.words.left_out import _fitted, _subsets
    from pyterrier_mechir.observe.words.readings import readings

    reading = readings(found, [query], [text], "word")
    z = _subsets(reading[0], np.arange(len(reading[0].read)), Asked("lime", samples=samples))
    scores = found.score_sequences(Absent(found, "mask").sequences(reading, [z]), [0] * len(z), {})
    labels = (scores > threshold).astype(np.float64)
    return _fitted(z, labels, 25.0).weights


def test_equal_scores_are_ranked_as_pyterrier_does_and_have_no_margin():
    frame = FRAME.iloc[[0, 2]].assign(text=TEXTS[0])
    out = ExplainScore(ranker("cross bert"), against="next")(frame).sort_values("rank")
    assert out["against"].tolist() == [out["docno"].iloc[1], None]
    assert out["margin"].iloc[0] == 0


# Storing


@pytest.mark.bits
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_what_is_stored_comes_back_bit_for_bit_and_is_not_computed_again(options, tmp_path, monkeypatch):
    stage = ExplainScore(ranker("splade max"), batch_size=4, **options)
    direct = stage(FRAME)
    stored = stage.store(tmp_path / "all", shard_size=100)(FRAME)
    assert_frames_equal(stored, direct)
    assert stored.attrs == direct.attrs | {"mechir": stored.attrs["mechir"]}
    read = PatchResults(tmp_path / "all").frame()
    assert_frames_equal(
        read[direct.columns.drop("rank")].sort_values(["qid", "docno"]),
        direct.drop(columns="rank").sort_values(["qid", "docno"]),
    )
    assert PatchResults(tmp_path / "all").about["scorer"] == stage.about()["scorer"]
    monkeypatch.setattr(ExplainScore, "transform", lambda self, frame: pytest.fail("computed again"))
    assert_frames_equal(stage.store(tmp_path / "all")(FRAME), direct)


def test_a_run_goes_on_where_it_was_and_a_sweep_gives_the_same(tmp_path, monkeypatch):
    stage, seen = ExplainScore(ranker("cross bert"), "lime", samples=20), []
    transform = ExplainScore.transform
    monkeypatch.setattr(
        ExplainScore, "transform", lambda self, frame: (seen.extend(frame["docno"]), transform(self, frame))[1]
    )
    stage.store(tmp_path / "run", shard_size=2)(FRAME.head(4))
    assert len(seen) == 4
    out = stage.store(tmp_path / "run", shard_size=2)(FRAME)
    assert len(seen) == len(FRAME)
    swept = run_sweep(stage, FRAME, tmp_path / "sweep", shard_size=4, verbose=False).frame()
    order = ["qid", "docno"]
    for one, other in zip(*(frame.sort_values(order)["unit_scores"] for frame in (out, swept)), strict=True):
        assert_near(one, other)
    with pytest.raises(ValueError, match="against='next' compares each document with the next of its query"):
        ExplainScore(ranker("cross bert"), against="next").store(tmp_path / "next")


@pytest.mark.bits
def test_pairs_of_words_and_their_terms_are_stored(tmp_path):
    stage = ExplainScore(ranker("bi cls dot"), "ig", interactions=True, steps=3)
    direct = stage(FRAME.head(2))
    assert_frames_equal(stage.store(tmp_path / "pairs")(FRAME.head(2)), direct)
    read = PatchResults(tmp_path / "pairs").frame()
    assert_frames_equal(
        read[["docno", "interactions", "interaction_terms"]].sort_values("docno"),
        direct[["docno", "interactions", "interaction_terms"]].sort_values("docno"),
    )


# Errors


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cross bert", {"method": "terms"}, r"takes a score apart that is a sum over tokens, of a Splade or ColBERT; "),
        ("cross bert", {"method": "ig", "absence": "delete"}, r"absence='delete' leaves no embeddings to go from"),
        ("cross bert", {"method": "ig", "absence": "attention"}, r"absence='attention' leaves no embeddings"),
        ("cross bert", {"method": "shap"}, r"unknown method 'shap'; choose one of 'occlusion', 'gradient'"),
        ("cross bert", {"unit": "letter"}, r"unknown unit 'letter'; choose one of 'word', 'token', 'sentence'\."),
        ("cross bert", {"of": "both"}, r"unknown of 'both'; choose one of 'document', 'query'\."),
        ("cross bert", {"against": "last"}, r"unknown against 'last'; choose one of 'next'\."),
        ("cross bert", {"interactions": True}, r"interactions=True goes with of='document' and method='ig' or 'terms'"),
        ("cross bert", {"interactions": True, "method": "ig"}, r"only for a BiEncoder of similarity dot or cosine"),
        ("bi euclidean", {"interactions": True, "method": "ig"}, r"only for a BiEncoder of similarity dot or cosine"),
        ("colbert", {"interactions": True, "method": "ig"}, r"only for a BiEncoder of similarity dot or cosine"),
        ("bi cls dot", {"interactions": True, "method": "ig", "of": "query"}, r"goes with of='document'"),
        ("cross bert", {"all_occurrences": True, "method": "ig"}, r"leaves words out together, which method='ig'"),
        ("cross bert", {"method": "gradient", "absence": "mask"}, r"method=.gradient. leaves no words out"),
        ("mono t5", {"absence": "mask"}, r"absence='mask': the tokenizer of .* has no mask token; give 'delete'"),
        ("generative qwen2", {"method": "ig", "absence": "mask"}, r"has no mask token; give 'delete'"),
        ("cross bert", {"absence": "neap tides"}, r"'neap tides' is 2 tokens in this tokenizer"),
        ("cross bert", {"method": "ig", "steps": 0}, r"steps is 0; give at least 1\."),
        ("cross bert", {"method": "lime", "samples": 0}, r"samples is 0; give at least 1\."),
        ("cross bert", {"method": "lime", "kernel_width": 0}, r"kernel_width is 0; give a number above 0\."),
        ("cross bert", {"batch_size": 0}, r"batch_size is 0; give at least 1"),
        ("cross bert", {"method": "lime", "against": "next", "of": "query"}, r"so it goes with of='document'; give "),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_a_sentence(kind, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ExplainScore(ranker(kind), **options)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_what_is_of_the_wrong_kind_is_refused_in_a_sentence():
    for absence in (0, ["mask", "pad"], np.zeros(3), {"a": 1}):
        with pytest.raises(TypeError, match=r"absence is .*; give 'delete', .*, or a RandomFiller\."):
            ExplainScore(ranker("cross bert"), absence=absence)
    with pytest.raises(TypeError, match="should be a ranker"):
        ExplainScore("tasb")
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        ExplainScore(ranker("cross bert"))(FRAME.drop(columns="text"))
    with pytest.raises(ValueError, match="more than once"):
        ExplainScore(ranker("cross bert"))(pd.concat([FRAME, FRAME]))
    with pytest.raises(ValueError, match="column 'text' is missing"):
        ExplainScore(ranker("cross bert"))(FRAME.assign(text=None))


def test_sums_that_miss_are_warned_of_and_told():
    frame = FRAME.head(2)
    with pytest.warns(
        UserWarning, match=r"the words of \d of 2 texts miss .* more than 5% \(sum_error\); give more steps than 1"
    ):
        ExplainScore(ranker("cross bert"), "ig", steps=1)(frame)


# What explanations depend on

LAYERED = {
    "bi": lambda: BiEncoder(build("bert", False), pooling="mean"),
    "cross": lambda: CrossEncoder(build("roberta", True)),
    "mono": lambda: MonoT5(build_t5()),
    "splade": lambda: Splade(masked_lm("bert")),
    "decoder": lambda: BiEncoder(build_decoder("qwen3", ends=True), pooling="last"),
}


@torch.no_grad()
def _rerolled(found, layer: int):
    """The ranker with the weights of one layer drawn anew."""
    torch.manual_seed(5)
    block = found.anatomy.out_proj(layer)
    for parameter in block.parameters():
        parameter.copy_(parameter.std() * torch.randn_like(parameter))
    return found


@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
@pytest.mark.parametrize("method", ["occlusion", "gradient", "ig", "lime", "terms"])
@pytest.mark.parametrize("kind", LAYERED)
def test_every_layer_that_is_drawn_anew_changes_what_words_carry(kind, method):
    if method == "terms" and kind != "splade":
        return
    options = {"lime": {"samples": 20}, "ig": {"steps": 5, "absence": "the"}}.get(method, {})
    frame = FRAME.head(2)
    before = ExplainScore(LAYERED[kind](), method, **options)(frame).sort_index()["unit_scores"]
    for layer in (0, 1):
        after = ExplainScore(_rerolled(LAYERED[kind](), layer), method, **options)(frame).sort_index()["unit_scores"]
        for one, other in zip(before, after, strict=True):
            changed = np.abs(one - other)
            assert np.mean(changed > 1e-3 * np.abs(one).max()) > 0.5
            assert changed.max() > 0.02 * np.abs(one).max()


def test_the_code_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "words.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    found = ranker("cross bert")
    rows = pd.DataFrame([(QUERIES[0], f"d{n}", TEXTS[n]) for n in (0, 1, 3)], columns=["query", "docno", "text"])
    rows = rows.assign(qid="1", score=0.0, rank=0)
    names = {"ranker": found, "bm25": pt.Transformer.from_df(rows), "topics": rows[["qid", "query"]].head(1)}
    for block in blocks:
        exec(block, names)
    order, table = names["order"], names["table"]
    assert order.scores == tuple(sorted(names["words"]["score"], reverse=True)[:2])
    assert table["method"].tolist()[:2] == ["occlusion", "gradient"]
