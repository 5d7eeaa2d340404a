"""Patching the strongest words of each row: the tokens, slots and columns, and what other stages make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import widened

from pyterrier_mechir import (
    AggregateHeads,
    Attribution,
    BiEncoder,
    ColBERT,
    CrossEncoder,
    ExplainScore,
    GenerativeReranker,
    MonoT5,
    PatchFeatures,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    Splade,
    explode_effects,
    plot_classes,
)
from pyterrier_mechir.perturb import ReverseWords, perturbation
from pyterrier_mechir.text.units import word_spans

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = {"tides": -3.0, "high": 2.0, "day": 1.0}
"""Of some words; all others have 0.1."""


@perturbation
def one_more(text: str) -> str | None:
    return f"tides {text} moon" if "bread" not in text else None


@perturbation
def without_two(text: str) -> str | None:
    return text.replace("two high", "high")


@perturbation(own_baseline=True)
def both_sides(text: str) -> tuple[str, str] | None:
    return f"a warm house: {text}", f"a heat pump: {text}"


def explained(frame: pd.DataFrame, field: str = "text", scores=None) -> pd.DataFrame:
    """What ExplainScore would add, of words of given scores."""
    scores = SCORES if scores is None else scores
    spans = [word_spans(text) for text in frame[field]]
    units = [[t[i:j] for i, j in at] for t, at in zip(frame[field], spans, strict=True)]
    values = [np.array([scores.get(word, 0.1) for word in words], np.float32) for words in units]
    return frame.assign(units=units, unit_spans=spans, unit_scores=values)


def rows(*numbers: int) -> pd.DataFrame:
    made = [("q", QUERIES[0], f"d{i}", TEXTS[i]) for i in numbers]
    return pd.DataFrame(made, columns=["qid", "query", "docno", "text"])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return PerturbDocs(one_more)(explained(rows(0, 1, 4, 6)))


def decoder(template: str) -> GenerativeReranker:
    return GenerativeReranker(build_decoder("qwen2", "AutoModelForCausalLM"), template=template, yes=5, no=7)


FAMILIES = {
    "bi-encoder bert": lambda: BiEncoder(build("bert", False)),
    "bi-encoder prefix": lambda: BiEncoder(build("roberta", False), doc_prefix="passage: "),
    "bi-encoder modernbert": lambda: BiEncoder(build("modernbert", False), pooling="mean"),
    "cross-encoder": lambda: CrossEncoder(build("xlm-roberta", True)),
    "splade": lambda: Splade(masked_lm("bert")),
    "colbert": lambda: ColBERT(
        build("distilbert", False),
        projection=torch.randn(8, 32, generator=torch.Generator().manual_seed(0)),
        query_marker="",
        doc_marker="",
    ),
    "monot5": lambda: MonoT5(build_t5()),
    "generative": lambda: decoder("Query: {query} Document: {document} Relevant:"),
    "generative, document first": lambda: decoder("Document: {document}\n\nQuery: {query}\nyes or no:"),
}


@pytest.mark.parametrize("change", [one_more, without_two, ReverseWords()], ids=["put in", "taken out", "moved"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_slots_of_words_are_their_tokens(family, change):
    """Each word is one token of the baseline, and neither the query nor a prompt has it."""
    ranker, text = FAMILIES[family](), "The moon pulls the ocean, so coasts see two high tides day by day"
    made = explained(rows(0).assign(text=text, query=QUERIES[2]), scores={"tides": -3.0, "high": 2.0, "two": 1.0})
    frame = PerturbDocs(change)(made)
    options = {"component": ["attn_out", "resid_pre"], "direction": "both"}
    out = PatchScorer(ranker, positions="top_units", **options)(frame)
    assert out["slot_units"].iloc[0] == ["tides", "high", "two"]
    spelt = [token.lstrip("Ġ▁").lower() for token in out["tokens_baseline"].iloc[0]]
    assert [spelt.count(word) for word in ("tides", "high", "two")] == [1, 1, 1]
    chosen = PatchScorer(ranker, positions=[spelt.index(word) for word in ("tides", "high", "two")], **options)(frame)
    for column in ("patch_scores", "patch_effect", "patch_effect_noise"):
        one, other = out[column].iloc[0], chosen[column].iloc[0]
        assert np.isfinite(one).all() and one.shape == (2 * ranker.n_layers, 3)
        np.testing.assert_allclose(one, other, rtol=widened(1e-5), atol=widened(1e-5))
    assert np.ptp(out["patch_scores"].iloc[0]) > 1e-6


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_pieces_of_a_word_are_patched_together(direction):
    """Where they are the whole edit, the first stream at the word carries all of the difference."""
    ranker = CrossEncoder(build("bert", True))

    @perturbation(alignment="swap")
    def expands(text: str) -> str:
        return text.replace("bulges", "expands")

    frame = PerturbDocs(expands)(explained(rows(0), scores={"bulges": 5.0, "moon": 4.0}))
    out = PatchScorer(ranker, "resid_pre", positions=("top_units", 2), direction=direction)(frame)
    classes = np.array(out["token_classes"].iloc[0])
    assert (classes == "EDIT").sum() == 2 and out["slot_units"].iloc[0] == ["bulges", "moon"]
    np.testing.assert_allclose(out["patch_effect"].iloc[0][0], [1, 0], atol=widened(1e-4))


def test_rows_with_fewer_words_are_missing_in_the_slots_beyond(ranker, frame):
    out = PatchScorer(ranker, positions="top_units")(frame).set_index("docno")
    assert {array.shape for array in out["patch_effect"]} == {(ranker.n_layers, ranker.n_heads, 3)}
    assert out.loc["d4", "slot_units"] == ["tides"]
    assert np.isfinite(out.loc["d4", "patch_scores"][..., 0]).all()
    assert np.isnan(out.loc["d4", "patch_scores"][..., 1:]).all()
    assert out.loc["d0", "slot_units"] == ["tides", "high", "day"]
    assert np.isnan(out.loc["d6", "patch_scores"]).all() and len(out.loc["d6", "slot_units"]) == 3


def test_words_that_are_not_read_are_left_out(ranker):
    made = explained(rows(0))
    scores = made["unit_scores"].iloc[0].copy()
    scores[made["units"].iloc[0].index("tides")] = np.nan
    out = PatchScorer(ranker, positions="top_units")(PerturbDocs(one_more)(made.assign(unit_scores=[scores])))
    assert out["slot_units"].iloc[0] == ["high", "day", "The"]


def test_a_word_that_is_masked_on_one_side_has_no_effect_of_its_own(ranker):
    frame = PerturbDocs(without_two)(explained(rows(0), scores={"two": 1.0, "high": 2.0}))
    out = PatchScorer(ranker, "attn_out", positions=("top_units", 3))(frame.assign(alignment="mask"))
    missing = np.isnan(out["patch_scores"].iloc[0]).all(axis=0)
    assert out["slot_units"].iloc[0] == ["high", "two", "two"]
    assert missing.tolist() == [False, False, True]


def test_rows_of_the_same_texts_keep_their_own_words(ranker):
    one, other = (PerturbDocs(one_more)(explained(rows(0), scores={word: 9.0})) for word in ("moon", "ocean"))
    scorer = PatchScorer(ranker, "mlp_out", positions=("top_units", 1))
    together = scorer(pd.concat([one, other.assign(docno="other")], ignore_index=True))
    assert together["slot_units"].tolist() == [["moon"], ["ocean"]]
    for row, alone in enumerate((one, other)):
        np.testing.assert_allclose(
            together["patch_scores"].iloc[row], scorer(alone)["patch_scores"].iloc[0], rtol=widened(1e-5)
        )
    assert not np.allclose(*together["patch_scores"])


def test_several_fillers_are_averaged_at_each_word(ranker, frame):
    both, a, mask = (
        PatchScorer(ranker, "mlp_out", positions="top_units", filler=filler)(frame)
        for filler in (["a", "mask"], "a", "mask")
    )
    for found, one, other in zip(both["patch_scores"], a["patch_scores"], mask["patch_scores"], strict=True):
        np.testing.assert_allclose(found, (one + other) / 2, rtol=widened(1e-4), atol=widened(1e-5))


def test_the_words_of_a_query_are_patched_where_queries_vary(ranker):
    @perturbation
    def today(text: str) -> str:
        return f"{text} today"

    made = explained(rows(0, 1), "query", {"two": 3.0, "tides": 2.0})
    out = PatchScorer(ranker, "attn_out", positions=("top_units", 2))(PerturbQueries(today)(made))
    assert out["slot_units"].tolist() == [["two", "tides"]] * 2
    at = [out["tokens_baseline"].iloc[0].index(word) for word in ("two", "tides")]
    chosen = PatchScorer(ranker, "attn_out", positions=at)(PerturbQueries(today)(made))
    np.testing.assert_allclose(out["patch_scores"].iloc[0], chosen["patch_scores"].iloc[0], rtol=widened(1e-5))


@pytest.mark.parametrize("field", ["text", "text_baseline"])
def test_a_perturbation_with_a_baseline_of_its_own_has_the_words_of_that(ranker, field):
    made = PerturbDocs(both_sides)(explained(rows(1)))
    made = explained(made, field, {"night": 3.0, "calls": 2.0, "own": 1.0})
    out = PatchScorer(ranker, "attn_out", positions=("top_units", 2))(made)
    assert out["slot_units"].iloc[0] == ["night", "calls"]
    (pair,) = ranker.align(
        made["query"], made["text_baseline"], made["text_perturbed"], alignments=["fill"], located=True
    )
    begin = made["text_baseline"].iloc[0].index("calls")
    at = np.flatnonzero((pair.spans[:, 0] < begin + 5) & (pair.spans[:, 1] > begin))
    each = PatchScorer(ranker, "attn_out", positions="each")(made)["patch_scores"].iloc[0]
    assert len(at) == 1
    np.testing.assert_allclose(out["patch_scores"].iloc[0][:, 1], each[:, at[0]], rtol=widened(1e-5))


def test_what_is_explained_has_to_be_what_varies(ranker, frame):
    scorer = PatchScorer(ranker, positions="top_units")
    with pytest.raises(pt.validate.InputValidationError, match=r"put ExplainScore\(ranker\) before"):
        scorer(PerturbDocs(one_more)(rows(0)))
    with pytest.raises(ValueError, match=r"qid 'q', docno 'd0' .* in its text, .* text_field='text'"):
        scorer(PerturbDocs(one_more)(explained(rows(0), "query")))
    with pytest.raises(ValueError, match=r"in its query, .* of='query'"):
        scorer(PerturbQueries(one_more)(explained(rows(0))))
    with pytest.raises(ValueError, match=r"docno 'd1' are not those of one text"):
        scorer(frame.assign(unit_scores=[frame["unit_scores"].iloc[0]] * 4))
    with pytest.raises(ValueError, match=r"docno 'd0' are not those of one text"):
        scorer(frame.assign(units=None))


@pytest.mark.parametrize(
    "positions", [("top_units", 0), ("top_units", -1), ("top_units", 1.5), ("top_units",)], ids=str
)
def test_an_odd_number_of_words_is_refused(ranker, positions):
    with pytest.raises(ValueError, match="top_units"):
        PatchScorer(ranker, positions=positions)


def test_the_decoder_of_monot5_has_no_words():
    with pytest.raises(ValueError, match="the decoder has one position"):
        PatchScorer(MonoT5(build_t5(), stack="decoder"), positions="top_units")


def test_the_aggregate_names_site_and_place(ranker, frame):
    out = PatchScorer(ranker, ["attn_out", "mlp_out"], positions="top_units")(frame)
    assert out.attrs["mechir"]["slots"] == ["unit1", "unit2", "unit3"]
    assert out.attrs["mechir"]["scorer"]["positions"] == "top_units"
    heads = AggregateHeads(by=None)(out).set_index("docno")
    assert heads.loc["L1.mlp_out@unit2", ["component", "layer", "slot", "n_pairs", "n_skipped"]].tolist() == [
        *("mlp_out", 1, "unit2", 2, 2)
    ]
    moved = np.stack(out["patch_scores"])[:2, ranker.n_layers + 1, 1] - out["score_baseline"][:2]
    delta = out["score_perturbed"][:2] - out["score_baseline"][:2]
    assert heads.loc["L1.mlp_out@unit2", "score"] == pytest.approx(moved.mean() / delta.mean(), rel=widened(1e-4))


def test_the_long_form_names_the_word(ranker, frame):
    found = explode_effects(PatchScorer(ranker, "attn_out", positions="top_units")(frame))
    one = found[(found["docno"] == "d0") & (found["layer"] == 1)]
    assert one["token_class"].tolist() == ["unit1", "unit2", "unit3"]
    assert one["token_baseline"].tolist() == ["tides", "high", "day"]
    assert one[["position", "token"]].isna().all(axis=None)
    assert (found["docno"] == "d4").sum() == ranker.n_layers


def test_the_map_has_the_words_from_the_strongest(ranker, frame):
    ax = plot_classes(PatchScorer(ranker, "resid_pre", positions=("top_units", 11))(frame))
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"unit{n}" for n in range(1, 12)]
    assert ax.get_xlabel() == "word, from the strongest"


@pytest.mark.parametrize("method", [Attribution(), "ig"], ids=["attribution", "ig"])
def test_estimates_are_of_the_same_slots(ranker, frame, method):
    exact = PatchScorer(ranker, "attn_out", positions="top_units")(frame)
    found = PatchScorer(ranker, "attn_out", positions="top_units", method=method)(frame)
    assert found["slot_units"].tolist() == exact["slot_units"].tolist()
    for one, other in zip(found["patch_scores"], exact["patch_scores"], strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


def test_an_empty_frame_has_the_columns_of_a_full_one(ranker, frame):
    scorer = PatchScorer(ranker, "attn_out", positions="top_units")
    full, empty = scorer(frame), scorer(frame.head(0))
    assert list(empty.columns) == list(full.columns)
    assert pt.inspect.transformer_outputs(scorer, list(frame.columns)) == list(full.columns)
    assert len(explode_effects(empty)) == 0


def test_stored_results_are_those_of_the_words_that_were_asked_for(ranker, frame, tmp_path):
    scorer = PatchScorer(ranker, "attn_out", positions=("top_units", 2))
    stored = scorer.store(tmp_path / "results")
    direct, first = scorer(frame), stored(frame)
    again = stored(frame)
    other = stored(PerturbDocs(one_more)(explained(rows(0).assign(docno="e"), scores={"ocean": 1.0, "moon": 2.0})))
    assert other["slot_units"].iloc[0] == ["moon", "ocean"]
    for found in (first, again):
        assert found["slot_units"].map(list).tolist() == direct["slot_units"].tolist()
        for one, wanted in zip(found["patch_scores"], direct["patch_scores"], strict=True):
            np.testing.assert_array_equal(one, wanted)
    with pytest.raises(ValueError, match="other texts"):
        stored(PerturbDocs(one_more)(explained(rows(0), scores={"ocean": 1.0})))


def test_a_cost_can_be_told_before(ranker, frame, capsys):
    three, one = (
        PatchScorer(ranker, positions=p).estimate(frame, seconds=0.1) for p in ("top_units", ("top_units", 1))
    )
    assert three.tokens > one.tokens


def test_features_are_patched_at_words(frame):
    ranker = BiEncoder(build("bert", False))

    class Coder:
        def encode(self, x):
            return x

        def decode(self, f):
            return f

    out = PatchFeatures(ranker, Coder(), "L1.resid_post", features=[0, 3], positions=("top_units", 2))(frame)
    assert {array.shape for array in out["patch_scores"]} == {(2, 2)}
    assert out["slot_units"].iloc[0] == ["tides", "high"]


def test_the_pipeline_of_the_page_runs(ranker):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "positions.md").read_text(encoding="utf-8")
    (block,) = (part.split("```")[0] for part in page.split("```python\n")[1:])
    bm25 = pt.Transformer.from_df(rows(0, 4).assign(score=0.0, rank=0))
    names = {"ranker": ranker, "bm25": bm25, "topics": rows(0)[["qid", "query"]]}
    exec(block, names)
    words = names["words"](names["topics"]).set_index("docno")
    for row in names["pairs"].itertuples():
        units, scores = words.loc[row.docno, ["units", "unit_scores"]]
        order = sorted(range(len(units)), key=lambda unit: -abs(scores[unit]))
        assert row.slot_units == [units[unit] for unit in order[:3]]
        assert np.isfinite(row.patch_scores[..., : len(row.slot_units)]).all()


def test_the_words_of_a_query_are_explained_and_patched():
    ranker = BiEncoder(build("bert", False))

    @perturbation
    def today(text: str) -> str:
        return f"{text} today"

    pipeline = ExplainScore(ranker, of="query") >> PerturbQueries(today) >> PatchScorer(ranker, positions="top_units")
    out = pipeline(rows(0, 1))
    assert all(set(words) <= set(QUERIES[0].split()) and len(words) == 3 for words in out["slot_units"])
    assert np.isfinite(np.stack(out["patch_scores"])).all()
