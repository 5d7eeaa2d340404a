"""Means, correlations and choices of recipes, against references of their own."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.recipes.data import greatest, most_moved, perturbed, retrieved, with_terms
from pyterrier_mechir.recipes.estimates import correlation, correlation_of_maps, found, halves, held_out_heads, mean_of


def test_means_are_over_pairs_and_their_intervals_over_queries():
    rng = np.random.default_rng(0)
    queries = np.repeat(np.arange(40), 5)
    values = rng.normal(size=40)[queries] + 1
    estimate = mean_of(values, queries)
    assert estimate.value == pytest.approx(values.mean())
    reach = 1.96 * values[::5].std(ddof=1) / np.sqrt(40)
    assert estimate.ci_high - estimate.value == pytest.approx(reach, rel=0.2)
    assert np.isnan(mean_of([1.0, 2.0], ["q", "q"]).ci_low) and np.isnan(mean_of([np.nan], ["q"]).value)


@pytest.mark.parametrize("ranks", [True, False])
def test_correlations_are_those_of_scipy_and_their_intervals_cover_what_is_there(ranks):
    rng = np.random.default_rng(1)
    queries = np.repeat(np.arange(60), 3)
    one = rng.normal(size=180)
    other = one + rng.normal(size=180)
    one[0] = np.nan
    estimate = correlation(one, other, queries, ranks=ranks)
    expected = spearmanr(one[1:], other[1:])[0] if ranks else np.corrcoef(one[1:], other[1:])[0, 1]
    assert estimate.value == pytest.approx(expected)
    assert estimate.ci_low < 0.7 < estimate.ci_high and estimate.ci_low > 0.4
    assert np.isnan(correlation(np.ones(180), other, queries).value)


def test_maps_that_agree_have_a_small_p_and_unrelated_ones_have_not():
    rng = np.random.default_rng(2)
    given = rng.normal(size=30)
    measured = given + rng.normal(scale=0.3, size=(20, 30))
    value, low, high, p_value = correlation_of_maps(given, measured)
    assert low <= value <= 1 and high > 0.9 and p_value < 0.01
    assert correlation_of_maps(-given, measured)[0] == pytest.approx(-value)
    assert correlation_of_maps(rng.normal(size=30), measured)[3] > 0.05
    absolute = correlation_of_maps(np.abs(given), -measured, absolute=True)
    assert absolute[0] == pytest.approx(spearmanr(np.abs(given), np.abs(measured.mean(axis=0)))[0])


def planted(n_queries=12, carried=0.8):
    """Pairs of which one head of six carries most of the change."""
    rng = np.random.default_rng(3)
    patched = rng.normal(scale=0.01, size=(n_queries * 2, 2, 3)).astype(np.float32)
    patched[:, 1, 2] += carried
    columns = {
        "qid": np.repeat([f"q{n}" for n in range(n_queries)], 2),
        "docno": [f"d{n}" for n in range(n_queries * 2)],
    }
    frame = pd.DataFrame({**columns, "score_baseline": 0.0, "score_perturbed": 1.0, "patch_scores": list(patched)})
    frame["patch_effect"] = frame["patch_scores"]
    names = [f"L{layer}H{head}" for layer in range(2) for head in range(3)]
    frame.attrs["mechir"] = {"sites": names, "direction": "denoise"}
    return frame


def test_heads_are_tested_on_queries_that_did_not_choose_them():
    frame = planted()
    first, others = halves(frame)
    assert set(first["qid"]).isdisjoint(others["qid"]) and len(first) + len(others) == len(frame)
    tested = held_out_heads(frame, 2)
    assert tested["docno"][0] == "L1H2"
    assert tested["score"][0] == pytest.approx(np.mean([array[1, 2] for array in others["patch_scores"]]), abs=1e-5)
    assert tested["n_pairs"].eq(len(others)).all() and tested["p_adjusted"][0] == pytest.approx(2 / 2**6 * 2, rel=1e-6)
    assert "L1H2" in found(tested.assign(p_adjusted=0.01), "carry it")
    assert found(tested.assign(p_adjusted=0.5), "carry it").startswith("None of the 2 heads")
    assert found(tested.assign(p_adjusted=0.01, ci_low=-1.0, ci_high=1.0), "carry it").startswith("None")
    assert found(tested.assign(p_adjusted=0.01, score=0.009), "carry it").startswith("None")
    with pytest.raises(ValueError, match="3 queries have pairs"):
        held_out_heads(planted(3), 2)


def test_queries_that_are_too_few_to_show_anything_are_said_to_be():
    few = held_out_heads(planted(8), 2)
    assert few["n_queries"].eq(4).all() and few["p_value"].min() == pytest.approx(2 / 2**4)
    assert found(few, "carry it").startswith("Heads were chosen on half of the queries; the 4 others are too few")
    assert "no p-value is below 0.12. Give documents of 12" in found(few, "carry it")


def frame_of(queries, texts):
    qids = [f"q{n}" for n in range(len(queries))]
    return pd.DataFrame({"qid": qids, "query": queries, "docno": [f"d{n}" for n in range(len(texts))], "text": texts})


def test_each_query_has_one_term_whatever_its_documents():
    frame = frame_of(["high tides", "high tides", "the"], ["Tides rise.", "Rivers run.", "The."])
    terms = with_terms(frame)
    assert terms["term"].nunique() == 2 and terms["term"][0] == terms["term"][1]
    assert with_terms(frame.assign(term="tides"))["occurs"].tolist() == [True, False, False]
    made = perturbed(with_terms(frame.assign(term="tides")), lambda term: TFC1(term))
    assert made["text_perturbed"].str.endswith(" tides").all()
    with pytest.raises(ValueError, match="applies to none"):
        perturbed(with_terms(frame.assign(term="moon")), lambda term: TFC1(term, replace="all"))


def test_choices_are_those_of_the_papers():
    frame = pd.DataFrame({"qid": list("aabbcc"), "score_baseline": [-2.0, 2, 4, 4, 1, 1]})
    frame["score_perturbed"] = frame["score_baseline"] + [1, 1, 1, 1, 0, 0]
    assert most_moved(frame, 2) == ["a", "b"] and most_moved(frame, 1, sign=-1) == ["c"]
    with pytest.raises(ValueError, match="5 queries are to be chosen of 3"):
        most_moved(frame, 5)
    graded = pd.DataFrame({"label": [0, 0, 1, 1, 1], "delta": [1.0, 2, 3, 5, 4]})
    assert greatest(graded, "delta", 2)["delta"].tolist() == [2, 1, 5, 4]
    with pytest.raises(ValueError, match="label 0 has 2 pairs"):
        greatest(graded, "delta", 3)


def test_a_frame_is_taken_as_it_is_and_checked():
    frame = frame_of(["a", "b"], ["x", "y"])
    pd.testing.assert_frame_equal(retrieved(frame, num_queries=1, num_results=1).frame, frame)
    with pytest.raises(Exception, match="text"):
        retrieved(frame.drop(columns="text"), num_queries=1, num_results=1)
    with pytest.raises(ValueError, match="needs 4 at least"):
        retrieved(frame, num_queries=1, num_results=1, least=4)
