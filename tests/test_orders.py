"""Why one document stands above another: shares of the margin, and words that turn the order round."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from many_rankers import ranker
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import ExplainScore, explain_order

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("bi mean cosine", "cross bert", "mono t5", "generative llama", "splade max", "colbert")


def ordered(kind: str, query: str, texts: tuple[str, str]) -> tuple[str, str]:
    """Two texts, the one that scores higher first."""
    one, other = ranker(kind).score([query] * 2, list(texts))
    return texts if one > other else texts[::-1]


def pairs(kind: str, n: int) -> list[tuple[str, str, str]]:
    """Queries with texts of unequal scores, the higher first."""
    found = []
    for query in QUERIES:
        for texts in combinations(TEXTS, 2):
            scores = ranker(kind).score([query] * 2, list(texts))
            if len(texts[0].split()) < 25 > len(texts[1].split()) and scores[0] != scores[1]:
                found.append((query, *ordered(kind, query, texts)))
    return found[:: max(1, len(found) // n)][:n]


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_both_documents_and_of_the_query_tell_the_margin(kind):
    query = QUERIES[0]
    above, below = ordered(kind, query, (TEXTS[0], TEXTS[1]))
    found = explain_order(ranker(kind), query, above, below, limit=0)
    scores = ranker(kind).score([query] * 2, [above, below])
    assert_near(np.array(found.scores), scores)
    assert_near(np.array([found.margin]), scores[:1] - scores[1:])
    frame = pd.DataFrame({"qid": ["q", "q"], "query": [query] * 2, "docno": ["above", "below"], "text": [above, below]})
    of_documents = ExplainScore(ranker(kind))(frame).set_index("docno")
    of_query = ExplainScore(ranker(kind), of="query")(frame).set_index("docno")
    assert_near(found.above["score"], of_documents.loc["above", "unit_scores"])
    assert_near(found.below["score"], -of_documents.loc["below", "unit_scores"])
    assert_near(found.of_query["score"], of_query.loc["above", "unit_scores"] - of_query.loc["below", "unit_scores"])
    for rows, text in ((found.above, above), (found.below, below), (found.of_query, query)):
        assert [text[row.begin : row.end] for row in rows.itertuples()] == rows["unit"].tolist()
    assert found.turning is None and found.without is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_that_are_found_do_turn_the_order_round_and_none_of_them_is_needless(kind):
    turned = 0
    for query, above, below in pairs(kind, 9):
        found = explain_order(ranker(kind), query, above, below, limit=6, candidates=12)
        if found.turning is None:
            continue
        turned += 1
        scores = ranker(kind).score([query] * 2, list(found.without))
        assert scores[0] < scores[1]
        assert_near(np.array(found.scores_without), scores)
        texts = {"above": above, "below": below}
        for left in range(len(found.turning)):
            rest = found.turning.drop(index=left)
            shorter = {
                side: without(text, rest[rest["side"] == side][["begin", "end"]].to_numpy().tolist())
                for side, text in texts.items()
            }
            margin = np.subtract(*ranker(kind).score([query] * 2, [shorter["above"], shorter["below"]]))
            assert not len(rest) or margin >= 0
    assert turned >= 3


def without(text: str, spans: list[tuple[int, int]]) -> str:
    for begin, end in sorted(spans, reverse=True):
        before = text[:begin].rstrip()
        text = before + text[end:] if before else text[end:].lstrip()
    return text


def test_no_set_within_the_limit_is_said():
    query = QUERIES[0]
    above, below = ordered("cross bert", query, (TEXTS[5], TEXTS[1]))
    found = explain_order(ranker("cross bert"), query, above, below, limit=1, candidates=1)
    if found.turning is not None:  # one word may do; then the reverse of this test is the one above
        assert len(found.turning) == 1
        return
    assert "No set of at most 1 of the words that were tried turns the order round." in repr(found)
    assert found.scores_without is None and found.without is None


def test_an_explanation_prints_and_shows_itself_with_its_texts_escaped():
    query = "tides <each> day"
    above, below = ordered("bi mean cosine", query, ("High <b>tides</b> $each day.", "Bats & moths at night."))
    found = explain_order(ranker("bi mean cosine"), query, above, below)
    assert f"a margin of {found.margin:+.3f}" in repr(found) and found.turned in repr(found)
    html = found._repr_html_()
    assert "pushes the margin up" in html and "<b>" not in html
    assert re.sub(r"<[^>]+>", "", html).count("&lt;") == 2 + 1
    titles = re.findall(r'title="(.?\d+\.\d+)"', html)
    assert len(titles) == sum(len(rows) for rows in (found.above, found.below, found.of_query))


def test_rows_of_a_frame_are_taken_for_texts():
    query = QUERIES[0]
    above, below = ordered("colbert", query, (TEXTS[0], TEXTS[1]))
    rows = [{"qid": "1", "query": query, "docno": name, "text": text} for name, text in (("a", above), ("b", below))]
    by_rows = explain_order(ranker("colbert"), None, pd.Series(rows[0]), rows[1])
    by_texts = explain_order(ranker("colbert"), query, above, below)
    assert by_rows.scores == by_texts.scores and by_rows.above.equals(by_texts.above)


@pytest.mark.parametrize(
    ("query", "above", "below", "message"),
    [
        ("tides", "High tides.", "High tides.", "the two texts are equal"),
        ("tides", {"text": "a", "query": "bats"}, "b", "different queries"),
        (None, {"text": "a", "qid": "1", "query": "x"}, {"text": "b", "qid": "2", "query": "x"}, "different queries"),
        (None, "High tides.", "Bats.", "there is no query"),
    ],
)
def test_what_is_no_order_of_one_query_is_refused(query, above, below, message):
    with pytest.raises(ValueError, match=message):
        explain_order(ranker("cross bert"), query, above, below)


def test_a_document_that_does_not_stand_above_is_refused():
    above, below = ordered("cross bert", QUERIES[0], (TEXTS[0], TEXTS[1]))
    with pytest.raises(ValueError, match="exchange them"):
        explain_order(ranker("cross bert"), QUERIES[0], below, above)
    with pytest.raises(TypeError, match="give a text, or a row"):
        explain_order(ranker("cross bert"), QUERIES[0], 7, below)
