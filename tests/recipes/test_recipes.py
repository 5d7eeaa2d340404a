"""Each recipe finds what it is about, on a ranker whose circuit is known; and says what it did not find."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from lab_documents import lab_documents
from small_models import build

from pyterrier_mechir import AggregateHeads, BiEncoder, PatchScorer, PerturbDocs, known_circuit, recipes
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.recipes.catalogue import RECIPES
from pyterrier_mechir.recipes.stable_pairs import _split_half

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

FEW = {
    "chen24_tfc1": {"n_heads": 2},
    "vanmarken25_tfc2": {"ks": (0, 1, 3), "n_heads": 1},
    "savolainen25_lnc1": {"n_heads": 2, "select": 8, "others": ("the",)},
    "mechir25": {"per_grade": 4},
    "lu25_pathway": {"n_scoring": 2, "n_matching": 2},
    "perlman_feature_attention": {},
    "polyakov25": {},
    "head_ablation": {"shares": (0.5, 0.75), "n_random": 1},
    "faithful_words": {"methods": ("occlusion", "gradient")},
}
"""Options by which each recipe is quick."""

HAVE_HEADS = ("chen24_tfc1", "vanmarken25_tfc2", "savolainen25_lnc1")


@cache
def heads_of(role):
    truth = known_circuit().heads
    return set(truth.loc[truth["role"] == role, "docno"])


@cache
def ranker():
    return known_circuit().ranker


@cache
def done(name):
    return getattr(recipes, name)(ranker(), documents_of(name), **FEW[name])


def documents_of(name):
    few, graded = name == "faithful_words", name in ("mechir25", "head_ablation", "perlman_feature_attention")
    return lab_documents(6 if few else 16, (0, 1, 2, 3) if graded else (0, 3))


def of_figure(result, beginning):
    table = result.table()
    rows = table[table["figure"].str.startswith(beginning)]
    assert len(rows) == 1, table["figure"].tolist()
    return rows.iloc[0]


@pytest.mark.parametrize("name", FEW)
def test_each_recipe_tells_what_it_did(name):
    result = done(name)
    assert result.recipe == name
    assert len(result.table()) == len(result.figures) and result.findings
    assert all(isinstance(frame, pd.DataFrame) and len(frame) for frame in result.frames.values())
    assert all(text.endswith(".") and "\n" not in text for text in (*result.findings, *result.notes))
    if result.paper.checkpoint is not None:
        assert any(result.paper.checkpoint in note for note in result.notes)


def test_all_recipes_are_listed_and_tried():
    named = set(recipes.__all__) - {"RecipeResult"}
    assert named == {one.name for one in RECIPES} == set(FEW)


@pytest.mark.parametrize("name", FEW)
def test_input_is_left_as_it_was(name):
    before = documents_of(name).copy()
    done(name)
    pd.testing.assert_frame_equal(before, documents_of(name))


def test_term_frequency_is_found_in_the_matching_head():
    result = done("chen24_tfc1")
    held_out = result["held_out"]
    assert {held_out["docno"][0]} == heads_of("matching")
    assert held_out["ci_low"][0] > 0.9 and held_out["p_adjusted"][0] < 0.05
    assert result.findings[1].startswith("On queries that they were not chosen on") and "L1H2" in result.findings[1]
    own, control = (of_figure(result, f"mean change {of}") for of in ("of the score", "by a random word"))
    assert own["ci_low"] > 0 and abs(control["ours"]) < 0.05 * own["ours"]
    paired = of_figure(result, "the term's less the random word's")
    assert paired["ours"] == pytest.approx(own["ours"] - control["ours"], abs=1e-5) and paired["ci_low"] > 0


def test_a_published_difference_that_is_not_found_is_said():
    result = done("chen24_tfc1")
    by_ranks = result["heads_by_ranks"].query("docno == 'L1H2'").set_index("qid")["score"]
    assert f"{by_ranks['first']:.3f} at the top" in result.findings[-1] and "is not found" in result.findings[-1]


def test_the_matching_head_acts_at_the_query_term_and_looks_from_it_to_what_was_injected():
    result = done("chen24_tfc1")
    classes = result["head_classes"]
    (matching,) = heads_of("matching")
    of_head = classes[classes["docno"].str.startswith(f"{matching}@")].set_index("slot")["score"]
    assert of_head.idxmax() == "Q+" and of_head["Q+"] > 0.9


def test_term_frequency_is_that_of_the_public_stages():
    documents = lab_documents(6)
    terms = documents.assign(term=documents["query"].str.split().str[-1])
    result = recipes.chen24_tfc1(ranker(), terms, n_heads=1)
    pairs = pd.concat([PerturbDocs(TFC1(term))(rows.reset_index()) for term, rows in terms.groupby("term")])
    expected = AggregateHeads(by=None, n_boot=0)(PatchScorer(ranker())(pairs.reset_index(drop=True)))
    heads = result["heads"]
    heads = heads[heads["estimator"] == "ratio_of_means"].set_index("docno")["score"]
    assert np.allclose(heads, expected.set_index("docno")["score"].loc[heads.index], atol=1e-5)


@pytest.mark.parametrize("inject", ["prepend", "replace"])
def test_the_other_diagnostic_sets_move_scores_by_the_matching_head(inject):
    result = recipes.chen24_tfc1(ranker(), lab_documents(12, (0, 1, 2, 3)), inject=inject, n_heads=1)
    sign = -1 if inject == "replace" else 1
    assert sign * of_figure(result, "mean change of the score")["ours"] > 0
    assert {result["held_out"]["docno"][0]} == heads_of("matching")


def test_chosen_queries_are_those_of_the_greatest_relative_change():
    result = recipes.chen24_tfc1(ranker(), lab_documents(16), select=6, n_heads=1)
    everything = done("chen24_tfc1")["pairs"]
    relative = (everything["score_perturbed"] - everything["score_baseline"]) / everything["score_baseline"].abs()
    expected = relative.groupby(everything["qid"]).mean().nlargest(6).index
    assert set(result["pairs"]["qid"]) == set(expected)


def test_each_further_occurrence_is_worth_less():
    result = done("vanmarken25_tfc2")
    gains = result["gains"]["gain"]
    assert (np.diff(gains) < 0).all() and gains.iloc[-1] < 0.5 * gains.iloc[0]
    assert "falls" in result.findings[0] and {result["held_out"]["docno"][0]} == heads_of("matching")
    pairs = result["pairs"][result["pairs"]["k"] == 0]
    for how, occurs in (("with", True), ("without", False)):
        expected = pairs.loc[pairs["occurs"] == occurs, "gain"].mean()
        assert of_figure(result, f"gain by appended occurrence 1, texts {how} ")["ours"] == pytest.approx(expected)


def test_length_says_what_it_chose_and_what_the_others_do():
    result = done("savolainen25_lnc1")
    assert result["pairs"]["qid"].nunique() == 8
    chosen, others = (of_figure(result, f"mean change {of}")["ours"] for of in ("of the score", "in the other"))
    assert chosen < others
    lengths = result["pairs"]["text_perturbed"].str.split().str.len() / result["pairs"]["text"].str.split().str.len()
    assert (lengths > 1).all()
    assert "by 'guantanamo'" in result.findings[0] and of_figure(result, "mean change by the")["ours"] < 0


def test_texts_that_do_not_fit_at_twice_their_length_are_left_out_and_counted():
    documents = lab_documents(12).assign(text=lambda frame: frame["text"].str.slice(0, 100))
    documents.loc[[0, 3], "text"] = " ".join(["tides rise"] * 150)
    result = recipes.savolainen25_lnc1(ranker(), documents, n_heads=1, others=())
    assert "2 of 24 texts do not fit at twice their length and are left out." in result.notes
    left = {*documents["docno"]} - {*documents["docno"][[0, 3]]}
    assert set(result["pairs"]["docno"]) == left
    plain = ranker().score(result["pairs"]["query"].tolist(), result["pairs"]["text"].tolist())
    assert np.allclose(result["pairs"]["score_baseline"], plain, atol=0.05)  # the last [SEP] stands further back
    with pytest.raises(ValueError, match=r"no text fits .* at twice its length"):
        recipes.savolainen25_lnc1(ranker(), documents.assign(text=documents["text"][0]), others=())


def test_grades_keep_the_pairs_of_the_greatest_change():
    result = done("mechir25")
    pairs = result["pairs"]
    assert pairs.groupby("label").size().tolist() == [4] * 4
    assert {result["held_out"]["docno"][0]} == heads_of("matching")
    whole = recipes.mechir25(ranker(), documents_of("mechir25"), per_grade=16)["pairs"]
    for grade, rows in whole.groupby("label"):
        kept = pairs.loc[pairs["label"] == grade, "score_delta"]
        assert np.allclose(sorted(kept), sorted(rows["score_delta"].nlargest(4)))
    assert of_figure(result, "mean change of the score, all")["ours"] == pytest.approx(whole["score_delta"].mean())
    assert (
        result.findings[0].startswith("In the 16 pairs that were kept for their change")
        and "in all 64 by" in (result.findings[0])
    )


def test_tdc_as_it_is_defined_puts_the_rarest_term_in_the_place_of_the_commonest():
    documents = documents_of("mechir25")
    idf = {"common": 1.0, "rare": 5.0}
    text = "A common thing is common."
    few = documents.assign(query="rare common", text=[f"{text} Number {n}." for n in range(len(documents))])
    result = recipes.mechir25(ranker(), few, axiom="TDC", reading="defined", per_grade=3, idf=idf)
    assert result["pairs"]["text_perturbed"].str.contains("rare").all()
    assert (result["pairs"]["alignment"] == "swap").all()


def test_the_pathway_goes_from_the_matching_head_to_the_gathering_heads():
    result = done("lu25_pathway")
    assert set(result["scoring"]["docno"]) == heads_of("gathering")
    first = result["matching"].iloc[0]
    assert {first["docno"]} == heads_of("matching") and first["ci_low"] > 0.9 and first["p_adjusted"] < 0.05
    assert set(result["to_scoring"]["part"]) == {"q", "k", "v"}
    told = {of: of_figure(result, f"regression on {of}") for of in ("matching attention and", "random other heads")}
    assert told["matching attention and"]["ci_low"] > 0
    assert told["random other heads"]["ours"] < told["matching attention and"]["ours"]
    assert result.findings[2].startswith("The first direction of the embeddings is not shown to tell idf")
    assert "random other heads" in result.findings[3]


def test_a_ranker_that_reads_no_query_has_no_regression_and_says_so():
    result = recipes.lu25_pathway(
        BiEncoder(build("distilbert", classifier=False)), lab_documents(4), n_scoring=1, n_matching=1
    )
    assert "fitted" not in result.frames and "no attention" in result.notes[-1]


def test_heads_that_can_be_spared_are_those_that_do_nothing():
    result = done("head_ablation")
    order = result["heads"]["docno"].tolist()
    assert set(order[-3:]) == heads_of("matching") | heads_of("gathering")
    assert order[-1] in heads_of("matching")
    least = result["curve"][result["curve"]["order"] == "least"]
    assert least["change"].abs().max() < 0.02
    assert result.findings[0].startswith(
        "9 of 12 heads, chosen with their number on half of the queries, can be spared"
    )
    of_nine = result["curve"].query("n_heads == 9").set_index("order")["change"]
    assert of_nine["least less random"] == pytest.approx(of_nine["least"] - of_nine["random"])
    assert f"{of_nine['random']:.3f}".replace("-", chr(0x2212)) in result.findings[0]
    assert "noise" in " ".join(result.findings) or "significantly" in " ".join(result.findings)


def test_attention_along_features_tells_no_more_than_it_can():
    result = done("perlman_feature_attention")
    assert list(result["features"]["feature"]) == ["lexical_match", "rarity", "interaction"] * 2
    assert {result["heads"].loc[result["heads"]["loss"].abs().idxmax(), "docno"]} == heads_of("matching")
    heads = result["heads"].set_index("docno")["lexical_match"]
    decoy, matching = (heads[[*heads_of(role)]].item() for role in ("decoy", "matching"))
    assert decoy == pytest.approx(matching, rel=1e-2)
    assert result.findings[0].startswith("No feature's attention")


def test_the_robust_scale_keeps_effects_of_small_changes_small():
    result = done("polyakov25")
    scales = result["normalisations"].set_index("normalisation")["correlation"]
    assert scales["robust"] > 0.9 and scales["absolute"] < scales["robust"]
    pairs = result["pairs"]
    expected = pairs["spread difference"] / np.sqrt(1 + pairs["delta"] ** 2)
    assert np.allclose(pairs["spread robust"], expected)
    assert pairs["stability"].between(-1, 1).all()
    halves = result["normalisations"].set_index("normalisation")["split_half"]
    less = of_figure(result, "agreement of halves, robust less absolute")
    assert less["ours"] == pytest.approx(halves["robust"] - halves["absolute"])
    assert less["ci_low"] < less["ours"] < less["ci_high"]
    shown = less["ci_low"] > 0 or less["ci_high"] < 0
    assert ("is not shown to change" in result.findings[1]) == (not shown)


def test_a_query_that_is_drawn_twice_is_in_one_half():
    rng = np.random.default_rng(0)
    queries, effects = np.repeat(np.arange(6), 2), rng.normal(size=(12, 8))
    counts = np.array([[1.0] * 6, [2.0] * 6, [3.0, 0, 0, 0, 0, 0]])
    once, twice, alone = _split_half(effects, queries, counts, seed=0)
    assert twice == pytest.approx(once) and np.isnan(alone)


def test_words_are_measured_against_the_terms_of_the_query():
    result = done("faithful_words")
    deletion = result["faithfulness"].set_index("method")["deletion"]
    assert deletion["occlusion"] < deletion["gradient"] and deletion["occlusion"] < deletion["random order"]
    assert set(result.frames) == {"faithfulness", "occlusion", "gradient"}
    assert result["faithfulness"].attrs["mechir"]["faithfulness"]["ci"] == pytest.approx(0.975)
    assert not result.table()["published"].notna().any() and "97.5%" in result.notes[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chen24_tfc1", {"inject": "both"}, "unknown inject 'both'"),
        ("chen24_tfc1", {"band": 0}, "band is 0"),
        ("chen24_tfc1", {"select": 50}, "50 queries are to be chosen of 12"),
        ("chen24_tfc1", {"band": 9}, "give documents of 4 at least"),
        ("vanmarken25_tfc2", {"ks": (1,)}, "give two numbers at least"),
        ("savolainen25_lnc1", {"word": "two words"}, "give one word"),
        ("mechir25", {"per_grade": 50}, "50 are to be kept"),
        ("mechir25", {"reading": "other"}, "unknown reading"),
        ("lu25_pathway", {"idf": {"tides": 1.0}}, "idf has [01] words"),
        ("polyakov25", {"fillers": ("a", "a")}, "two different ones"),
        ("head_ablation", {"shares": (2,)}, "shares of the heads"),
        ("head_ablation", {"by": "resample"}, "unknown by"),
        ("head_ablation", {"margin": -1}, "margin is -1"),
        ("head_ablation", {"measure": "nDCC@10"}, "'nDCC@10' names no measure of ir_measures"),
        ("faithful_words", {"methods": ()}, "methods is empty"),
        ("polyakov25", {"fillers": "ab"}, "two different ones"),
        ("savolainen25_lnc1", {"others": ("one two",)}, "give one word"),
        *((name, {"n_heads": 0}, "number of heads to choose is 0") for name in HAVE_HEADS),
        *(("lu25_pathway", {name: -1}, f"{name} is -1; give at least 1") for name in ("n_scoring", "n_matching")),
        ("mechir25", {"num_queries": 0}, "num_queries is 0"),
    ],
)
def test_unusable_options_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(recipes, name)(ranker(), lab_documents(12), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mechir25", "perlman_feature_attention", "head_ablation"])
def test_documents_that_lack_a_column_or_a_grade_are_one_sentence(name):
    recipe, documents = getattr(recipes, name), lab_documents(12)
    with pytest.raises(ValueError, match=r"^the documents have no column label \(the grade of each document, 0 where"):
        recipe(ranker(), documents.drop(columns="label"))
    with pytest.raises(ValueError, match=r"label is of type .*pd.to_numeric"):
        recipe(ranker(), documents.astype({"label": str}))
    with pytest.raises(ValueError, match="no document is judged"):
        recipe(ranker(), documents.assign(label=np.nan))


@pytest.mark.parametrize("name", FEW)
def test_documents_of_another_kind_are_one_sentence(name):
    with pytest.raises(
        ValueError, match="the documents have no column text; this recipe needs qid, query, docno, text"
    ):
        getattr(recipes, name)(ranker(), lab_documents(12).drop(columns="text"))
    with pytest.raises(TypeError, match="data is a list; give a frame"):
        getattr(recipes, name)(ranker(), [{"qid": "1"}])


def test_grades_with_fractions_and_documents_of_which_none_is_relevant_are_one_sentence():
    with pytest.raises(ValueError, match="label has fractions"):
        recipes.mechir25(ranker(), lab_documents(12).assign(label=0.5), per_grade=2)
    with pytest.raises(
        ValueError, match=r"nDCG@5 is 0 for each of 12 queries in the best of orders.*some of which are relevant"
    ):
        recipes.head_ablation(ranker(), lab_documents(12).assign(label=0), n_random=0)


@pytest.mark.parametrize("name", FEW)
def test_too_few_queries_are_one_sentence(name):
    with pytest.raises(ValueError, match=r"4 at least|needs [46]|give more"):
        getattr(recipes, name)(ranker(), lab_documents(2), **{k: v for k, v in FEW[name].items() if k != "select"})


def test_a_paper_without_its_checkpoint_says_what_to_download():
    with pytest.raises(ValueError, match=r"download it \(265 MB\) by hf download sebastian-hofstaetter"):
        recipes.chen24_tfc1(None, lab_documents(12))
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*tas_b.*\); download"):
        recipes.chen24_tfc1(None, lab_documents(12))
    with pytest.raises(ValueError, match="no ranker of its own"):
        recipes.head_ablation(None, lab_documents(12))
