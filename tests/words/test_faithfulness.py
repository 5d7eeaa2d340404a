"""Explanations are held against random orders, rare words and the words of the query, by taking words out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from many_rankers import ranker
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import ExplainScore, faithfulness, plot_faithfulness
from pyterrier_mechir.observe.words.curves import Curves, area, counts, few, variants
from pyterrier_mechir.observe.words.orders import by_scores

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [(q, t) for q in (0, 1, 2) for t in (0, 1, 3)]
FRAME = pd.DataFrame(
    [(str(q), QUERIES[q], f"d{t}", TEXTS[t]) for q, t in ROWS], columns=["qid", "query", "docno", "text"]
)


def explained(kind: str, method: str = "occlusion", **options) -> pd.DataFrame:
    return ExplainScore(ranker(kind), method, **options)(FRAME)


def test_points_of_curves_go_from_no_words_to_all():
    assert counts(5, 10).tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5]
    assert counts(20, 4).tolist() == [0, 5, 10, 15, 20]
    assert few(20).tolist() == [1, 1, 2, 4, 10]
    assert few(0).tolist() == [0] * 5
    kept = variants(np.array([2, 0, 1]), 3)
    assert kept[:4].tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert kept[len(kept) // 2 :][:4].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]]


def test_an_additive_score_gives_the_areas_that_are_computed_by_hand():
    weights = np.array([4.0, -1.0, 2.0, 0.0])
    order = by_scores(weights)
    assert order.tolist() == [0, 2, 3, 1]
    found = Curves.of(variants(order, 4) @ weights + 10, 4)
    assert found.deletion.tolist() == [5, 1, -1, -1, 0]
    assert found.insertion.tolist() == [0, 4, 6, 6, 5]
    assert found.whole == 5
    assert area(found.deletion) == (5 / 2 + 1 - 1 - 1 + 0) / 4
    assert found.comprehensiveness == np.mean([4, 4, 4, 4, 6])
    assert found.sufficiency == np.mean([1, 1, 1, 1, -1])


def test_missing_scores_come_last_and_equal_ones_as_they_stand():
    assert by_scores(np.array([np.nan, 1.0, 1.0, 3.0])).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "splade max"])
def test_measures_are_those_of_texts_shortened_by_hand(kind):
    frame = explained(kind, absence="mask")
    out = faithfulness(frame, ranker(kind), absence="delete", steps=4, n_random=2)
    assert out["method"].tolist() == ["occlusion", "random order", "IDF order", "query terms first"]
    total, whole, comprehensive, lost = 0.0, 0.0, [], []
    for row in frame.itertuples():
        order = np.argsort(-row.unit_scores, kind="stable")
        n = len(order)

        def score(gone, row=row):
            return float(ranker(kind).score([row.query], [without(row.text, row.unit_spans[list(gone)])])[0])

        empty = score(order)
        curve = [score(order[: round(n * step / 4)]) for step in range(5)]
        total += float(area(np.array(curve) - empty))
        whole += row.score - empty
        shares = [max(1, int(np.ceil(n * share - 1e-9))) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
        comprehensive.append(np.mean([row.score - score(order[:count]) for count in shares]))
        rivals = frame[(frame["qid"] == row.qid) & (frame["docno"] != row.docno)]["score"].to_numpy()
        ranks = np.array([(rivals > one).sum() for one in curve], dtype=float)
        lost.append(area(ranks - ranks[0]))
    first = out.iloc[0]
    assert whole > 0 or kind != "splade max"
    if whole > 0:
        assert first["deletion"] == pytest.approx(total / whole, rel=1e-3, abs=1e-4)
    assert first["comprehensiveness"] == pytest.approx(np.mean(comprehensive), rel=1e-3, abs=1e-5)
    assert first["ranks_lost"] == pytest.approx(np.mean(lost), abs=0.05)
    assert (out["n_queries"] == 3).all() and (out["n_texts"] == 9).all()


def without(text: str, spans) -> str:
    for begin, end in sorted(spans.tolist(), reverse=True):
        before = text[:begin].rstrip()
        text = before + text[end:] if before else text[end:].lstrip()
    return text


def test_several_methods_are_rows_of_one_frame_beside_the_same_orders():
    kind = "bi mean cosine"
    frames = {"one": explained(kind), "other": explained(kind, "gradient")}
    both = faithfulness(frames, ranker(kind), steps=4, n_random=2).set_index("method")
    alone = faithfulness(frames["one"], ranker(kind), steps=4, n_random=2).set_index("method")
    assert both.index.tolist() == ["one", "other", "random order", "IDF order", "query terms first"]
    assert_near(both.loc["one", "comprehensiveness"], alone.loc["occlusion", "comprehensiveness"])
    assert_near(both.loc["random order", "deletion"], alone.loc["random order", "deletion"])
    assert both.loc["random order", "deletion_over_random"] == 0
    assert both.loc["query terms first", "deletion_over_query_terms"] == 0
    assert_near(
        both.loc["one", "deletion_over_random"], both.loc["one", "deletion"] - both.loc["random order", "deletion"]
    )


def test_the_absence_is_another_than_that_of_any_explanation():
    kind = "bi mean cosine"
    told = {}
    for name, frames in {
        "deleted": explained(kind),
        "masked": explained(kind, "ig", steps=2),
        "both": {"a": explained(kind), "b": explained(kind, absence="mask")},
    }.items():
        told[name] = faithfulness(frames, ranker(kind), steps=2, n_random=0).attrs["mechir"]["faithfulness"]["absence"]
    assert told == {"deleted": "mask", "masked": "delete", "both": "attention"}


def test_the_words_of_a_query_are_measured_too():
    frame = explained("bi mean cosine", of="query")
    out = faithfulness(frame, ranker("bi mean cosine"), steps=3, n_random=1)
    assert np.isfinite(out["comprehensiveness"]).all() and "ranks_lost" not in out.columns


def test_random_orders_are_the_same_whatever_the_order_of_rows():
    kind = "cross bert"
    frame = explained(kind)
    shuffled = frame.sample(frac=1, random_state=0)
    shuffled.attrs = frame.attrs
    one, other = (faithfulness(each, ranker(kind), steps=3, n_random=3) for each in (frame, shuffled))
    numbers = ["deletion", "insertion", "comprehensiveness", "sufficiency", "ranks_lost"]
    assert_near(one[numbers].to_numpy(), other[numbers].to_numpy())


def test_curves_are_drawn_and_begin_at_the_whole_score():
    kind = "bi mean cosine"
    out = faithfulness(explained(kind), ranker(kind), steps=5, n_random=1)
    axes = plot_faithfulness(out)
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()[1:]}
    assert list(lines) == out["method"].tolist()
    for curve, end in ((out["deletion_curve"], (1, 0)), (out["insertion_curve"], (0, 1))):
        assert all(np.allclose(of_method[[0, -1]], end, atol=1e-5) for of_method in curve)
    np.testing.assert_array_equal(lines["occlusion"], out["deletion_curve"].iloc[0])
    with pytest.raises(ValueError, match="unknown curve"):
        plot_faithfulness(out, curve="both")


def test_what_cannot_be_compared_is_refused():
    kind = "bi mean cosine"
    frame, other = explained(kind), explained("colbert")
    with pytest.raises(ValueError, match="other rows"):
        faithfulness({"a": frame, "b": frame.head(3)}, ranker(kind))
    with pytest.raises(ValueError, match="explain other sides, units"):
        faithfulness({"a": frame, "b": explained(kind, of="query")}, ranker(kind))
    with pytest.raises(ValueError, match="name of an order"):
        faithfulness({"random order": frame}, ranker(kind))
    tokens = explained(kind, unit="token")
    tokens.attrs = other.attrs
    with pytest.raises(ValueError, match="are not those that"):
        faithfulness(tokens, ranker(kind))
    with pytest.raises(ValueError, match="at least one frame"):
        faithfulness({}, ranker(kind))
    with pytest.raises(Exception, match="unit_scores"):
        faithfulness(frame.drop(columns="unit_scores"), ranker(kind))


def test_each_of_many_curves_has_a_colour_or_a_marker_of_its_own():
    methods = [f"method {number}" for number in range(12)]
    axes = plot_faithfulness(pd.DataFrame({"method": methods, "deletion_curve": [[1.0, 0.5, 0.0]] * 12}))
    curves = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_label() in methods}
    assert len(curves) == 12
    axes.figure.canvas.draw()
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
