"""Where the tokens of a sequence come from in its text, whatever stands around it and however it is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from any_text import texts
from hypothesis import HealthCheck, given, settings
from many_rankers import KINDS, ROWS, ranker
from small_models import QUERIES, TEXTS, build, build_decoder
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, CrossEncoder, ExplainScore, GenerativeReranker
from pyterrier_mechir.observe.words.readings import readings

pytestmark = pytest.mark.usefixtures("one_thread")

some = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

LANGUAGES = [
    "The moon's pull (at night) -- high tides, twice a day!",
    "Überfluss und Straße: die Tide, täglich.",
    "潮汐是海水的涨落。",
    "うみのカナ、データ",
    "น้ำขึ้นน้ำลง ทะเล",
    "يرتفع البحر، وينخفض.",
    "tide 🌊 wave 👩‍🚀!",
    "go\u0301 e\u0301te\u0301 tides",
    "high\ntides\r\n\teach day",
    "tides \ud800 high \udfff",
    "\u0000high\u200b tides\ufeff",
    "...",
    "",
    "tides",
]

SPACED = {"bi cls dot", "bi mean cosine", "cross bert", "splade max", "colbert"}


def located(kind: str, text: str, side: str = "document"):
    found = ranker(kind).facing(side)
    if kind.startswith("mono"):
        found = found.on("encoder")
    context = "high tides" if side == "document" else TEXTS[4]
    return found, readings(found, [context], [text], "word")[0]


@pytest.mark.parametrize("side", ["document", "query"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sequence_is_the_one_that_is_scored_and_its_spans_are_in_the_text(kind, side):
    for text in LANGUAGES:
        try:
            found, reading = located(kind, text, side)
        except ValueError as error:
            assert "nothing to read" in str(error) or "cannot be told apart" in str(error)
            continue
        made, at = reading.located, reading.at
        pair = [reading.context], [text]
        (plain,) = found.sequences.plain(*pair)
        assert plain.key() == made.sequence.key()
        assert made.spans.shape == (len(made.sequence.ids), 2)
        assert (made.spans >= 0).all()
        assert (made.spans <= len(text)).all()
        is_cut = side == "query" and kind in ("colbert attended", "colbert bare") and len(made.of_text) > 16
        assert is_cut or made.seen == (0, len(text))
        for unit, (begin, end) in enumerate(reading.spans.tolist()):
            for start, stop in made.spans[at == unit].tolist():
                assert start < end
                assert stop > begin


ARCHITECTURES = ["bert", "roberta", "xlm-roberta", "modernbert"]


def _found(style: str) -> BiEncoder:
    if style in ARCHITECTURES:
        return _FOUND.setdefault(style, BiEncoder(build(style, False, max_position_embeddings=4200), max_length=4096))
    return _FOUND.setdefault(style, BiEncoder(build_decoder(style), pooling="last"))


_FOUND: dict[str, BiEncoder] = {}


@pytest.mark.parametrize("style", ARCHITECTURES)
@given(text=texts())
@some
def test_the_tokens_of_a_word_cover_the_characters_that_have_tokens(style, text):
    found = _found(style)
    (reading,) = readings(found, [""], [text], "word")
    made = reading.located
    assert (made.sequence.ids == found.sequences.plain([], [text])[0].ids).all()
    owned = made.spans[made.spans[:, 0] < made.spans[:, 1]]
    assert (np.diff(owned[:, 0]) >= 0).all()
    covered = {at for begin, end in owned.tolist() for at in range(begin, end)}
    for unit, (begin, end) in enumerate(reading.spans.tolist()):
        of_unit = made.spans[reading.at == unit]
        own = {at for start, stop in of_unit.tolist() for at in range(start, stop)} & set(range(begin, end))
        missing = (set(range(begin, end)) & covered) - own
        others = made.spans[(reading.at != unit) & (reading.at >= 0)]
        shared = {at for start, stop in others.tolist() for at in range(start, stop)}
        assert missing <= shared, (text, text[begin:end])


@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_the_words_of_plain_text_have_all_their_letters(style):
    found = _found(style)
    for text in (*TEXTS, *QUERIES):
        (reading,) = readings(found, [""], [text], "word")
        for unit, (begin, end) in enumerate(reading.spans.tolist()):
            of_unit = reading.located.spans[reading.at == unit]
            assert text[of_unit.min() : of_unit.max()].strip(" ") == text[begin:end]


# What is too long


def _cut(kind: str, left: bool, max_length: int):
    made = build("bert", kind == "cross")
    tokenizer = type(made[1])(**{**made[1].init_kwargs, "tokenizer_object": made[1].backend_tokenizer})
    tokenizer.truncation_side = "left" if left else "right"
    given = (made[0], tokenizer)
    return CrossEncoder(given, max_length=max_length) if kind == "cross" else BiEncoder(given, max_length=max_length)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["bi", "cross"])
@pytest.mark.parametrize("method", ["occlusion", "gradient", "ig", "lime"])
def test_words_beyond_the_length_are_missing_and_the_others_are_of_the_part_that_is_read(method, kind, left):
    length = 25 if kind == "cross" and left else 24  # which cuts between two words
    found, query, text = _cut(kind, left, length), "bats night", TEXTS[3] + " " + TEXTS[6]
    frame = pd.DataFrame({"qid": ["q"], "query": [query], "docno": ["d"], "text": [text]})
    options = {"samples": 30} if method == "lime" else {"steps": 60} if method == "ig" else {}
    made = ExplainScore(found, method, **options)(frame).loc[0]
    n_of_text = length - (2 if kind == "bi" else 3 + 2)
    offsets = found.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    read = offsets[-n_of_text:] if left else offsets[:n_of_text]
    begin, end = (read[0][0], len(text)) if left else (0, read[-1][1])
    spans = made["unit_spans"]
    is_read = (spans[:, 1] > begin) & (spans[:, 0] < end)
    assert 5 < is_read.sum() < len(is_read) - 3
    assert np.isnan(made["unit_scores"]).tolist() == (~is_read).tolist()
    assert made["units"] == [text[b:e] for b, e in spans.tolist()]
    visible = text[begin:end]
    alone = ExplainScore(found, method, **options)(frame.assign(text=visible)).loc[0]
    assert alone["units"] == [text[b:e] for b, e in spans[is_read].clip(begin, end).tolist()]
    if method != "lime":  # which draws other texts for another text
        assert_near(made["unit_scores"][is_read], alone["unit_scores"], least=1 + abs(made["score"]))
    if method in ("occlusion", "lime"):
        assert_near(made["score_empty"], alone["score_empty"])
    if method == "occlusion":
        place = int(np.flatnonzero(is_read)[3])
        (b, e), shift = spans[place] - begin, found.score([query], [visible])[0]
        shorter = visible[:b].rstrip() + visible[e:]
        assert_near(made["unit_scores"][place], shift - found.score([query], [shorter])[0], least=1 + abs(shift))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_word_that_is_cut_in_two_is_told_by_the_part_that_is_read(left):
    text, query = TEXTS[3] + " " + TEXTS[6], "bats night"
    offsets = build("bert", False)[1](text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [
        n for n in range(8, len(offsets) - 8) if offsets[n][0] == offsets[n - 1][1] and text[offsets[n][0]].isalpha()
    ]
    at = inside[len(inside) // 2]  # the first token that is read, or the first that is not
    found = _cut("bi", left, 2 + (len(offsets) - at if left else at))
    frame = pd.DataFrame({"qid": ["q"], "query": [query], "docno": ["d"], "text": [text]})
    place = offsets[at][0]
    visible = text[place:] if left else text[:place]
    for absence in ("delete", "mask"):
        made = ExplainScore(found, absence=absence)(frame).loc[0]
        (unit,) = np.flatnonzero((made["unit_spans"][:, 0] < place) & (made["unit_spans"][:, 1] > place))
        missing = np.arange(len(made["units"])) < unit if left else np.arange(len(made["units"])) > unit
        assert np.isnan(made["unit_scores"]).tolist() == missing.tolist()
        if absence == "delete":
            begin, end = made["unit_spans"][unit].clip(place if left else 0, len(text) if left else place)
            shorter = text[end:].lstrip() if left else text[:begin].rstrip()
            scores = found.score([query] * 2, [visible, shorter])
            assert_near(made["unit_scores"][unit], scores[0] - scores[1], least=1 + abs(scores[0]))
        else:
            assert abs(made["unit_scores"][unit]) > 1e-4


def test_of_a_pair_that_is_too_long_the_longer_is_cut_first():
    found = _cut("cross", False, 24)
    query, text = " ".join(TEXTS[:2]), TEXTS[3]
    frame = pd.DataFrame({"qid": ["q"], "query": [query], "docno": ["d"], "text": [text]})
    for of, side in (("query", query), ("document", text)):
        made = ExplainScore(found, of=of)(frame).loc[0]
        ids = found.tokenizer(query, text, truncation="longest_first", max_length=24)
        (encoding,) = ids.encodings
        owner = int(of == "document")
        read = max(e for (_, e), who in zip(encoding.offsets, encoding.sequence_ids, strict=True) if who == owner)
        is_read = made["unit_spans"][:, 0] < read
        assert np.isnan(made["unit_scores"]).tolist() == (~is_read).tolist()
        assert is_read.sum() < len(is_read) == len(made["units"])
        assert made["units"][0] == side.split()[0]


def test_nothing_is_explained_where_nothing_fits():
    found = BiEncoder(build("bert", False), doc_prefix="night after night: ", max_length=5)
    frame = pd.DataFrame({"qid": ["q"], "query": ["bats"], "docno": ["d"], "text": [TEXTS[3]]})
    for method in ("occlusion", "gradient", "ig", "lime"):
        made = ExplainScore(found, method)(frame).loc[0]
        assert len(made["units"]) == len(made["unit_scores"]) == 11
        assert np.isnan(made["unit_scores"]).all()


# Prefixes and prompts


def test_what_is_put_before_texts_does_not_move_their_spans():
    kinds = {"query": "of the query: ", "doc": "of the 2 documents\n"}
    found = BiEncoder(build("bert", False), query_prefix=kinds["query"], doc_prefix=kinds["doc"])
    for side, prefix in (("query", kinds["query"]), ("document", kinds["doc"])):
        (reading,) = readings(found.facing(side), [""], ["High tides, bats"], "word")
        n = len(found.tokenizer(prefix, add_special_tokens=False)["input_ids"])
        assert reading.at.tolist() == [-1] * (1 + n) + [0, 1, -1, 2, -1]
        assert reading.located.spans[1 + n :].tolist() == [[0, 4], [5, 10], [10, 11], [12, 16], [0, 0]]
        assert (reading.located.spans[: 1 + n] == 0).all()


@pytest.mark.parametrize("of", ["document", "query"])
def test_a_prompt_does_not_move_the_spans_of_its_texts(of):
    template = "Document: {document}\n\nQuery: {query}\n\nyes or no:"
    found = GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM"), template=template, yes=5, no=7)
    frame = pd.DataFrame({"qid": ["q"], "query": ["why?  tides\n"], "docno": ["d"], "text": ["(High) tides."]})
    made = ExplainScore(found, absence="day", of=of, unit="token")(frame).loc[0]
    text = "(High) tides." if of == "document" else "why?  tides\n"
    assert "".join(made["units"]) == "".join(text.split())
    assert made["units"] == [text[b:e] for b, e in made["unit_spans"]]
    words = ExplainScore(found, absence="day", of=of)(frame).loc[0]
    assert words["units"] == (["High", "tides"] if of == "document" else ["why", "tides"])


# Few words


@pytest.mark.parametrize("method", ["occlusion", "gradient", "ig", "lime", "terms"])
@pytest.mark.parametrize("text", ["", "...", "  "])
def test_a_text_without_words_has_empty_arrays(text, method):
    found = ranker("splade max")
    frame = pd.DataFrame({"qid": ["q"], "query": ["high tides"], "docno": ["d"], "text": [text]})
    made = ExplainScore(found, method)(frame).loc[0]
    assert made["units"] == []
    assert made["unit_spans"].shape == (0, 2)
    assert made["unit_spans"].dtype == np.int64
    assert made["unit_scores"].shape == (0,)
    assert made["unit_scores"].dtype == np.float32
    if method in ("occlusion", "ig", "lime"):
        assert_near(made["score_empty"], made["score"])
    if method == "terms":
        assert_near(made["unit_rest"], made["score"])
        assert (made["term_units"] == -1).all()


@pytest.mark.parametrize("method", ["occlusion", "lime", "ig", "gradient"])
def test_the_one_word_of_a_text_carries_what_the_text_does(method):
    frame = pd.DataFrame({"qid": ["q"], "query": ["high tides"], "docno": ["d"], "text": ["bats"]})
    made = ExplainScore(ranker("cross bert"), method, absence="mask" if method in ("occlusion", "lime") else None)(
        frame
    ).loc[0]
    assert made["units"] == ["bats"]
    if method != "gradient":
        missed = 0 if method != "ig" else made["sum_error"]
        assert_near(made["unit_scores"][0] + made["score_empty"] + missed, made["score"])


def test_the_only_word_is_missing_where_nothing_would_be_left_to_read():
    found = ranker("bi qwen3")
    bare = BiEncoder(build_decoder("qwen3"), pooling="last")
    frame = pd.DataFrame({"qid": ["q"], "query": [QUERIES[0]], "docno": ["d"], "text": ["bats"]})
    assert not np.isnan(ExplainScore(found)(frame)["unit_scores"][0]).any()
    for method in ("occlusion", "lime"):
        for absence in ("delete", "attention"):
            made = ExplainScore(bare, method, absence=absence)(frame).loc[0]
            assert np.isnan(made["unit_scores"]).all()
            assert np.isnan(made["score_empty"])
    with pytest.raises(ValueError, match="nothing to read"):
        ExplainScore(bare)(frame.assign(text=""))


def test_a_token_is_of_a_text_only_where_it_has_characters_of_it():
    for kind in ("cross bert", "mono t5", "generative qwen2"):
        for query, text in ROWS:
            found, reading = located(kind, text)
            sequence = reading.located.sequence
            words = {found.tokenizer.decode([token]).strip().lower() for token in sequence.ids[reading.at >= 0]}
            assert words
            assert all(word.lstrip("#") in text.lower() for word in words if word), (kind, words)
            assert query
    assert replace(reading, context="x").spans is reading.spans
