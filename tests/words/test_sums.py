"""What SPLADE's and ColBERT's words add makes their score exactly; what pairs of words add, that of bi-encoders."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from many_rankers import ROWS, columns, ranker
from small_models import build
from test_colbert import document_of, loaded, query_of, query_vectors
from test_splade import KINDS, masked_lm
from tolerance import assert_near
from torch import Tensor

from pyterrier_mechir import BiEncoder, ColBERT, ExplainScore, Splade
from pyterrier_mechir.text.units import units_at, word_spans

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES_OF_ROWS, TEXTS_OF_ROWS = columns()
FRAME = pd.DataFrame(
    {"qid": map(str, range(6)), "query": QUERIES_OF_ROWS, "docno": map(str, range(6)), "text": TEXTS_OF_ROWS}
)

SUMS = ("splade max", "splade sum", "splade query_model", "colbert", "colbert attended", "colbert bare")


def explained(kind, frame=FRAME, method="terms", **options) -> pd.DataFrame:
    found = ranker(kind) if isinstance(kind, str) else kind
    return ExplainScore(found, method, **options)(frame).sort_index()


def units_of(tokenizer, text: str, marker: bool = False) -> list[int]:
    """The word that each position of a text is of, the number of words for none, as the tokenizer's offsets tell."""
    (encoding,) = tokenizer(text).encodings
    spans = [
        span if owner == 0 else (0, 0) for span, owner in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]
    if marker:
        spans.insert(1, (0, 0))
    at = units_at(word_spans(text), np.array(spans))
    return np.where(at < 0, len(word_spans(text)), at).tolist()


@pytest.mark.parametrize("of", ["document", "query"])
@pytest.mark.parametrize("kind", SUMS)
def test_what_words_and_the_rest_add_is_the_score(kind, of):
    out = explained(kind, of=of)
    sums = np.array([scores.sum(dtype=np.float64) for scores in out["unit_scores"]])
    assert_near(out["score"], ranker(kind).score(QUERIES_OF_ROWS, TEXTS_OF_ROWS))
    assert_near(sums + out["unit_rest"], out["score"])
    assert_near(out["sum_error"], np.zeros(6), 1e-5, out["score"].abs())
    assert (out["score_empty"] == 0).all()
    assert np.abs(np.concatenate(out["unit_scores"].tolist())).max() > 0.1
    singles = pd.concat([explained(kind, FRAME.iloc[[row]], of=of, batch_size=1) for row in range(6)])
    for one, other in zip(out["unit_scores"], singles["unit_scores"], strict=True):
        assert_near(one, other, 1e-5, out["score"].max())


@pytest.mark.parametrize("kind", SUMS)
def test_pairs_of_words_sum_to_the_score_and_their_columns_to_its_words(kind):
    out, of_queries = explained(kind, interactions=True), explained(kind, of="query")
    for row, made in enumerate(out.itertuples()):
        pairs, least = made.interactions.astype(np.float64), made.score
        assert made.query_units == of_queries["units"][row]
        assert pairs.shape == (len(made.query_units) + 1, len(made.units) + 1)
        assert_near(pairs.sum(), made.score)
        assert_near(pairs.sum(0), [*made.unit_scores, made.unit_rest], 1e-5, least)
        other = of_queries.loc[row]
        assert_near(pairs.sum(1), [*other["unit_scores"], other["unit_rest"]], 1e-5, least)


@pytest.mark.parametrize("of", ["document", "query"])
@pytest.mark.parametrize("kind", ["max", "sum"])
def test_each_term_of_a_splade_is_added_by_the_positions_that_raise_it(kind, of):
    model, tokenizer = masked_lm("bert")
    found = Splade((model, tokenizer), **KINDS[kind])
    out = explained(found, of=of, interactions=True) if of == "document" else explained(found, of=of)
    for (query, text), made in zip(ROWS, out.itertuples(), strict=True):
        weights = [_weights(model, tokenizer, one, kind) for one in (query, text)]
        pooled = [one.max(0) if kind == "max" else one.sum(0) for one in weights]
        at = [units_of(tokenizer, one) for one in (query, text)]
        shares = [_shares(one, kind) for one in weights]
        pairs = np.zeros((max(at[0]) + 1, max(at[1]) + 1))
        for i, unit in enumerate(at[0]):
            for j, other in enumerate(at[1]):
                pairs[unit, other] += shares[0][i] @ shares[1][j]
        of_units = pairs.sum(0) if of == "document" else pairs.sum(1)
        assert_near([*made.unit_scores, made.unit_rest], of_units, 1e-5, made.score)
        if of == "document":
            assert_near(made.interactions, pairs, 1e-5, made.score)

        wanted = pooled[0] * pooled[1]
        ids = np.array(tokenizer.convert_tokens_to_ids(made.terms))
        assert set(ids) == set(np.flatnonzero(wanted))
        assert_near(made.term_scores, wanted[ids])
        assert_near(made.term_scores.sum(), made.score)
        assert all(one >= other for one, other in pairwise(made.term_scores))
        assert made.term_scores.dtype == np.float32
        side = int(of == "document")
        units = np.array(at[side])[weights[side].argmax(0)[ids]]
        assert made.term_units.tolist() == np.where(units == max(at[side]), -1, units).tolist()
        if kind == "max":
            by_unit = np.bincount(made.term_units + 1, made.term_scores, len(made.units) + 1)
            assert_near(by_unit, [made.unit_rest, *made.unit_scores], 1e-5, made.score)


@torch.no_grad()
def _weights(model, tokenizer, text: str, kind: str) -> np.ndarray:
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
    weights = torch.log1p(logits.clamp(min=0)).double()
    return (weights if kind == "max" else torch.log1p(weights)).numpy()


def _shares(weights: np.ndarray, kind: str) -> np.ndarray:
    """What each position adds to the weight of each term."""
    if kind == "sum":
        return weights
    is_first = np.arange(len(weights))[:, None] == weights.argmax(0)
    return weights * is_first


@pytest.mark.parametrize("settings", [{}, {"expand_queries": False}, {"attend_to_masks": True}], ids=str)
def test_each_match_of_a_colbert_is_added_by_the_token_that_matches_best(settings):
    model, tokenizer, projection = loaded("bert")
    found = ColBERT((model, tokenizer), projection=projection, **settings)
    out = explained(found, interactions=True)
    length = {"attend": settings.get("attend_to_masks", False), "expand": settings.get("expand_queries", True)}
    for (query, text), made in zip(ROWS, out.itertuples(), strict=True):
        of_query = torch.stack(query_vectors(model, tokenizer, projection, query, **length))
        inputs = document_of(tokenizer, text, 150)
        of_text = _normed(model(**inputs).last_hidden_state[0] @ projection.T).detach()
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        cosines = (of_query @ of_text.T).detach()
        cosines[:, [token in ".,;!()" for token in tokens]] = -2
        at = [units_of(tokenizer, query, marker=True), units_of(tokenizer, text, marker=True)]
        n_masks = query_of(tokenizer, query, **length)["input_ids"].shape[1] - len(at[0])
        at[0] += [max(at[0])] * n_masks
        pairs = np.zeros((max(at[0]) + 1, max(at[1]) + 1))
        for unit, row in zip(at[0], cosines, strict=True):
            pairs[unit, at[1][int(row.argmax())]] += float(row.max())
        assert_near(made.interactions, pairs)
        assert_near([*made.unit_scores, made.unit_rest], pairs.sum(0))
        assert n_masks or "expand_queries" in settings


def _normed(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


# Pairs of words of bi-encoders

BI = {
    "cls dot": ("bert", "cls", "dot"),
    "mean cosine": ("distilbert", "mean", "cosine"),
    "mean dot": ("bert", "mean", "dot"),
    "cls cosine": ("roberta", "cls", "cosine"),
}


def _bi(kind: str) -> BiEncoder:
    architecture, pooling, similarity = BI[kind]
    return BiEncoder(build(architecture, False), pooling=pooling, similarity=similarity)


def _vector(found: BiEncoder, ids: Tensor, embedded: Tensor | None = None) -> Tensor:
    """The vector of token ids by the plain model, with other word embeddings where they are given."""
    given = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded}
    states = found.model(**given).last_hidden_state[0]
    vector = states[0] if found.pooling == "cls" else states.mean(0)
    return vector / vector.norm() if found.similarity == "cosine" else vector


def _moved(found: BiEncoder, text: str, steps: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """The vectors of a text with and without its words, and how far each word moves the one to the other."""
    ids, at = found.tokenizer(text, return_tensors="pt")["input_ids"], np.array(units_of(found.tokenizer, text))
    without = ids.clone()
    without[0, torch.from_numpy(at < at.max())] = found.tokenizer.mask_token_id
    table = found.model.get_input_embeddings()
    end, begin = table(ids).detach(), table(without).detach()
    moved = np.zeros((at.max() + 1, 32))
    for step in range(steps):
        point = begin + (step + 0.5) / steps * (end - begin)
        jacobian = torch.autograd.functional.jacobian(lambda one: _vector(found, ids, one), point)[:, 0]
        carried = torch.einsum("fsd,sd->sf", jacobian, (end - begin)[0]).double().numpy() / steps
        np.add.at(moved, at, carried)
    with torch.no_grad():
        return _vector(found, ids), _vector(found, without), moved


@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
@pytest.mark.parametrize("kind", BI)
def test_pairs_of_a_bi_encoders_words_are_products_of_how_each_moves_its_vector(kind):
    found, rows, steps = _bi(kind), [1, 2, 4], 3
    out = explained(found, FRAME.iloc[rows], "ig", interactions=True, steps=steps, absence="mask")
    for row in rows:
        query, text = ROWS[row]
        made = out.loc[row]
        (a, a_empty, of_query), (b, b_empty, of_text) = (_moved(found, one, steps) for one in (query, text))
        pairs = of_query @ of_text.T
        size = max(1, abs(made["score"]))
        assert made["interactions"].shape == pairs.shape
        assert_near(made["interactions"], pairs, 2e-5, size)
        assert_near(made["unit_scores"], pairs[:, :-1].sum(0), 2e-5, size)
        terms = made["interaction_terms"]
        wanted = {"empty_document": a @ b_empty, "empty_query": a_empty @ b, "both_empty": a_empty @ b_empty}
        assert terms.keys() == {"score", *wanted}
        assert_near(terms["score"], float(a @ b), 1e-5)
        for name, value in wanted.items():
            assert_near(terms[name], float(value), 1e-5)
        assert_near(made["score_empty"], float(a @ b_empty + a_empty @ b - a_empty @ b_empty))
        assert_near(made["sum_error"], float((a - a_empty) @ (b - b_empty)) - pairs.sum(), 2e-5, size)
        assert made["unit_rest"] == 0


@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
@pytest.mark.parametrize("kind", BI)
def test_rows_and_columns_are_integrated_gradients_of_the_other_sides_movement(kind):
    found, steps = _bi(kind), 3
    frame = FRAME.iloc[[1]]
    made = explained(found, frame, "ig", interactions=True, steps=steps).loc[1]
    query, text = ROWS[1]
    moved = {one: _moved(found, one, steps) for one in (query, text)}
    for own, other, sums in ((text, query, made["interactions"].sum(0)), (query, text, made["interactions"].sum(1))):
        of_units = moved[other][2].sum(0)  # what the estimate says of f(b) - f(r_b)
        direction = torch.from_numpy(of_units).float()
        ids, at = found.tokenizer(own, return_tensors="pt")["input_ids"], np.array(units_of(found.tokenizer, own))
        without = ids.clone()
        without[0, torch.from_numpy(at < at.max())] = found.tokenizer.mask_token_id
        table = found.model.get_input_embeddings()
        end, begin = table(ids).detach(), table(without).detach()
        carried = np.zeros(at.max() + 1)
        for step in range(steps):
            point = (begin + (step + 0.5) / steps * (end - begin)).requires_grad_()
            (slope,) = torch.autograd.grad(_vector(found, ids, point) @ direction, point)
            np.add.at(carried, at, (slope * (end - begin))[0].sum(-1).double().numpy() / steps)
        assert_near(sums, carried, 2e-5, max(1, abs(made["score"])))


@pytest.mark.parametrize("kind", ["mean cosine", "cls dot"])
def test_pairs_of_words_and_the_three_empty_terms_make_the_score(kind):
    architecture, pooling, similarity = BI[kind]
    found = BiEncoder(build(architecture, False, initializer_range=0.1), pooling=pooling, similarity=similarity)
    out = explained(found, FRAME.head(3), "ig", interactions=True, steps=60)
    for made in out.itertuples():
        total = float(made.interactions.sum(dtype=np.float64))
        assert_near(total + made.sum_error + made.score_empty, made.score, 1e-5)
        assert abs(made.sum_error) < 0.01 * abs(total) + 1e-6
