"""What a word carries by being left out is the score less that of a text without it, whatever "without" means."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from many_rankers import KINDS, ROWS, Plain, columns, ranker
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import ExplainScore
from pyterrier_mechir.observe.words.absence import Absent
from pyterrier_mechir.observe.words.readings import readings
from pyterrier_mechir.perturb import RandomFiller

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES_OF_ROWS, TEXTS_OF_ROWS = columns()
FRAME = pd.DataFrame(
    {
        "qid": [str(n) for n in range(len(ROWS))],
        "query": QUERIES_OF_ROWS,
        "docno": [f"d{n}" for n in range(len(ROWS))],
        "text": TEXTS_OF_ROWS,
    }
)

PLAIN = (
    *("bi mean cosine", "bi last dot", "bi llama", "cross bert", "cross roberta", "mono t5", "mono t5 decoder"),
    *("generative qwen2", "splade max", "splade sum", "colbert"),
)
"""Rankers that the plain model is compared with."""


def explained(kind: str, frame: pd.DataFrame = FRAME, **options) -> pd.DataFrame:
    """Explanations in the order of the frame."""
    return ExplainScore(ranker(kind), **options)(frame).sort_index()


def words_of(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\w+", text)]


def shortened(text: str, cuts: list[tuple[int, int]]) -> str:
    """A text without some stretches and without the space before each."""
    for begin, end in reversed(cuts):
        before = text[:begin].rstrip()
        text = before + text[end:] if before else text[end:].lstrip()
    return text


def lost(kind: str, of: str, cuts_of, row: int) -> list[float]:
    """What the score of a row loses, by the ranker itself, for each of some lists of stretches."""
    query, text = ROWS[row]
    wanted = []
    for cuts in cuts_of:
        rest = shortened(text if of == "document" else query, cuts)
        pair = (query, rest) if of == "document" else (rest, text)
        try:
            scores = ranker(kind).score([query, pair[0]], [text, pair[1]])
        except ValueError as error:  # a tokenizer that adds no tokens leaves nothing to read
            assert "nothing to read" in str(error)
            scores = [0.0, np.nan]
        wanted.append(float(scores[0]) - float(scores[1]))
    return wanted


@pytest.mark.parametrize("of", ["document", "query"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_word_carries_what_the_score_of_the_text_shortened_by_hand_lacks(kind, of):
    out = explained(kind, of=of)
    scores = ranker(kind).score(QUERIES_OF_ROWS, TEXTS_OF_ROWS)
    assert_near(out["score"], scores)
    for row, made in enumerate(out.itertuples()):
        text = ROWS[row][of == "document"]
        spans = words_of(text)
        assert made.unit_spans.tolist() == [list(span) for span in spans]
        assert made.units == [text[begin:end] for begin, end in spans]
        assert_near(made.unit_scores, lost(kind, of, [[span] for span in spans], row), least=1 + abs(scores[row]))
        (without_all,) = lost(kind, of, [spans], row)
        assert_near(made.score - made.score_empty, without_all, least=1 + abs(scores[row]))
    assert np.nanmax(np.abs(np.concatenate(out["unit_scores"].tolist()))) > 1e-3
    assert out[["unit_rest", "sum_error"]].isna().all(axis=None)


@pytest.mark.parametrize("kind", ["bi cls dot", "cross roberta", "mono t5", "colbert"])
def test_all_occurrences_of_a_word_are_left_out_together(kind):
    out = explained(kind, all_occurrences=True)
    differs = 0
    for row, made in enumerate(out.itertuples()):
        text = ROWS[row][1]
        words = [text[begin:end].lower() for begin, end in words_of(text)]
        cuts = [[span for span, other in zip(words_of(text), words, strict=True) if other == word] for word in words]
        assert_near(made.unit_scores, lost(kind, "document", cuts, row), least=1 + abs(made.score))
        differs += len(set(words)) < len(words)
    assert differs == 1


@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
@pytest.mark.parametrize("method", ["occlusion", "lime", "gradient", "ig"])
@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "generative qwen2", "splade max", "colbert"])
def test_neither_batches_nor_order_nor_other_rows_change_an_explanation(kind, method):
    options = {"method": method, **({"samples": 30} if method == "lime" else {})}
    if method == "ig":
        options |= {"steps": 5, "absence": "tides" if kind.startswith("generative") else "mask"}
    out = explained(kind, **options)
    names = [*("unit_scores", "score_empty"), *(["unit_errors"] if method == "lime" else [])]
    singles = pd.concat([explained(kind, FRAME.iloc[[row]], batch_size=1, **options) for row in range(len(FRAME))])
    again = pd.concat([FRAME.iloc[::-1], FRAME.assign(docno="again " + FRAME["docno"])], ignore_index=True)
    twice = explained(kind, again, batch_size=3, **options).iloc[len(FRAME) :]
    for name in names:
        of_frames = [np.hstack(frame[name].tolist()) for frame in (out, singles, twice)]
        for other in of_frames[1:]:
            assert_near(other, of_frames[0], 2e-5, np.abs(out["score"]).max())


@pytest.mark.parametrize("fixture", ["bi_encoder", "cross_encoder"])
def test_equal_texts_are_run_once(fixture, request):
    found, rows = request.getfixturevalue(fixture), []
    hook = found.anatomy.out_proj(0).register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    ExplainScore(found)(FRAME)
    n_rows = sum(rows)
    rows.clear()
    ExplainScore(found)(pd.concat([FRAME, FRAME.assign(docno="again " + FRAME["docno"])]))
    hook.remove()
    assert sum(rows) == n_rows
    texts = {(query, shortened(text, cuts)) for query, text in ROWS for cuts in _cuts(text)}
    if fixture == "bi_encoder":
        n_queries, texts = len(set(QUERIES_OF_ROWS)), {text for _, text in texts}
        assert n_rows == 2 * n_queries + len(set(TEXTS_OF_ROWS)) + len(texts)
    else:
        assert n_rows == len(ROWS) + len(texts)


def _cuts(text: str) -> list[list[tuple[int, int]]]:
    spans = words_of(text)
    return [[], spans, *([span] for span in spans)]


# Other absences


@pytest.mark.parametrize("kind", PLAIN)
def test_a_hidden_word_takes_no_part_in_attention_or_pooling(kind):
    _assert_as_plain(kind, "attention", lambda plain, places: plain.hidden(places))


@pytest.mark.parametrize("kind", PLAIN)
def test_a_word_stands_at_the_positions_of_what_is_left_out(kind):
    (token,) = ranker(kind).vocabulary.pieces(["the"])[0]
    _assert_as_plain(kind, "the", lambda plain, places: plain.with_token(places, token))


@pytest.mark.parametrize("absence", ["mask", "pad"])
@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "splade max", "colbert"])
def test_a_special_token_stands_at_the_positions_of_what_is_left_out(kind, absence):
    token = getattr(ranker(kind).tokenizer, f"{absence}_token_id")
    _assert_as_plain(kind, absence, lambda plain, places: plain.with_token(places, token))


@torch.no_grad()
def _assert_as_plain(kind, absence, changed):
    out, n_compared = explained(kind, absence=absence), 0
    for (query, text), made in zip(ROWS, out.itertuples(), strict=True):
        plain = Plain(ranker(kind), query, text)
        if max(end for _, end in plain.spans) < len(text):
            continue  # the tokenizer leaves marks out, so that the library's offsets are too small
        n_compared += 1
        score = float(plain.score(plain.inputs))
        assert_near(made.score, score, least=1 + abs(score))
        of_words = [plain.places(*span) for span in words_of(text)]
        assert all(of_words)
        wanted = [score - float(plain.score(changed(plain, places))) for places in of_words]
        assert_near(made.unit_scores, wanted, 2e-5, max(1, abs(score)))
        empty = float(plain.score(changed(plain, [at for places in of_words for at in places])))
        assert_near(made.score_empty, empty, 2e-5, max(1, abs(score)))
    assert n_compared == len(ROWS) or (kind == "bi llama" and n_compared == len(ROWS) - 2)
    assert np.abs(np.concatenate(out["unit_scores"].tolist())).max() > 1e-3


@pytest.mark.parametrize("kind", ["cross roberta", "bi prefixed", "cross xlm-roberta"])
def test_padding_is_refused_where_positions_are_numbered_by_it(kind):
    with pytest.raises(ValueError, match=r"absence='pad': \w+ numbers positions .* give another\."):
        ExplainScore(ranker(kind), absence="pad")


@pytest.mark.parametrize("kind", ["bi cls dot", "cross roberta", "mono t5"])
def test_random_words_are_of_the_vocabulary_and_what_they_score_is_averaged(kind):
    found, filler = ranker(kind).facing("document"), RandomFiller(draws=4, seed=3)
    if kind == "mono t5":
        found = found.on("encoder")
    made, drawn = readings(found, QUERIES_OF_ROWS, TEXTS_OF_ROWS, "word"), Absent(found, filler)
    out = explained(kind, absence=filler)
    assert drawn.n_draws == 4
    for reading, row in zip(made, out.itertuples(), strict=True):
        each = ~np.eye(len(reading.read), dtype=bool)
        sequences = drawn.sequences([reading], [each])
        assert len(sequences) == 4 * len(each)
        of_draws = np.stack([one.ids for one in sequences]).reshape(4, len(each), -1)
        is_other = of_draws != reading.located.sequence.ids
        for unit in range(len(each)):
            assert not is_other[:, unit, reading.at != unit].any()
            new = of_draws[:, unit, reading.at == unit]
            assert np.isin(new, found.vocabulary.words).all()
            spelled = {found.vocabulary.spellings[token].lower() for token in new.ravel()}
            assert spelled.isdisjoint(re.findall(r"\w+", reading.context.lower()))
        plain = Plain(ranker(kind), reading.context, reading.text)
        with torch.no_grad():
            scores = [
                float(plain.score(plain.inputs | {"input_ids": torch.tensor([s.ids.tolist()])})) for s in sequences
            ]
        wanted = row.score - np.reshape(scores, (4, -1)).mean(0)
        assert_near(row.unit_scores, wanted, 2e-5, max(1, abs(row.score)))
    assert len({one.ids.tobytes() for one in sequences}) > len(each)
    for one, again in zip(out["unit_scores"], explained(kind, absence=filler)["unit_scores"], strict=True):
        assert_near(one, again)
    other = explained(kind, absence=RandomFiller(draws=4, seed=4))
    assert not np.allclose(other["unit_scores"][0], out["unit_scores"][0])


# Units


@pytest.mark.parametrize("kind", ["bi cls dot", "cross roberta"])
def test_sentences_and_tokens_are_left_out_as_words_are(kind):
    frame = pd.DataFrame({"qid": ["1"], "query": [QUERIES[5]], "docno": ["d"], "text": [TEXTS[5]]})
    text, query = TEXTS[5], QUERIES[5]
    end = text.index(" Engineers")
    out = explained(kind, frame, unit="sentence").loc[0]
    assert out["unit_spans"].tolist() == [[0, end], [end + 1, len(text)]]
    scores = ranker(kind).score([query] * 3, [text, text[end + 1 :], text[:end]])
    assert_near(out["unit_scores"], scores[0] - scores[1:], least=1 + abs(scores[0]))

    tokens = explained(kind, frame, unit="token", absence="mask").loc[0]
    plain = Plain(ranker(kind), query, text)
    spans = [[b + len(text[b:e]) - len(text[b:e].lstrip()), e] for b, e in plain.spans if b < e]
    assert tokens["unit_spans"].tolist() == spans
    with torch.no_grad():
        mask = ranker(kind).tokenizer.mask_token_id
        ids = [plain.with_token(plain.places(*span), mask) for span in spans]
        wanted = float(plain.score(plain.inputs)) - np.array([float(plain.score(one)) for one in ids])
    assert_near(tokens["unit_scores"], wanted, 2e-5, max(1, abs(scores[0])))
