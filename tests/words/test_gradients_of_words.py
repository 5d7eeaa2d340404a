"""Gradients at the word embeddings are those of autograd on the plain model, and the sums hold that are claimed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from many_rankers import ROWS, Plain, columns, ranker
from small_models import build
from test_exactness import snapshot
from tolerance import assert_near, widened

from pyterrier_mechir import BiEncoder, CrossEncoder, ExplainScore
from pyterrier_mechir.text.units import units_at, word_spans

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES_OF_ROWS, TEXTS_OF_ROWS = columns()
FRAME = pd.DataFrame(
    {"qid": map(str, range(6)), "query": QUERIES_OF_ROWS, "docno": map(str, range(6)), "text": TEXTS_OF_ROWS}
)

PLAIN = (
    *("bi cls dot", "bi mean cosine", "bi last dot", "cross bert", "cross roberta", "generative qwen2", "mono t5"),
    *("splade max", "splade sum", "colbert", "cross electra", "cross mpnet", "bi gemma2"),
)
"""Rankers that the plain model is compared with."""

SMOOTH = ("bi cls dot", "bi mean cosine", "bi euclidean", "cross bert", "cross roberta", "generative qwen2")
"""Rankers whose score has no kinks, with an absence for each."""


def explained(kind, frame=FRAME, **options) -> pd.DataFrame:
    found = ranker(kind) if isinstance(kind, str) else kind
    return ExplainScore(found, **options)(frame).sort_index()


def summed(plain: Plain, text: str, carried: torch.Tensor) -> tuple[np.ndarray, float]:
    """What the positions of each word carry, and those of none."""
    spans = word_spans(text)
    at = units_at(spans, np.array(plain.spans))
    of_units = [float(carried[at == unit].sum()) for unit in range(len(spans))]
    return np.array(of_units), float(carried[at < 0].sum())


def embedding(plain: Plain) -> torch.nn.Module:
    return plain.model.get_input_embeddings()


def slope(plain: Plain, point: torch.Tensor) -> torch.Tensor:
    point = point.detach().requires_grad_()
    (found,) = torch.autograd.grad(plain.score(plain.inputs, point), point)
    return found[0]


@pytest.mark.parametrize("kind", PLAIN)
def test_gradient_times_input_is_that_of_autograd_at_the_embeddings(kind):
    out = explained(kind, method="gradient")
    for (query, text), made in zip(ROWS, out.itertuples(), strict=True):
        plain = Plain(ranker(kind), query, text)
        table = embedding(plain)(plain.inputs["input_ids"]).detach()
        wanted, rest = summed(plain, text, (slope(plain, table) * table[0]).sum(-1).detach())
        size = max(np.abs(wanted).max(), abs(rest))
        assert_near(made.unit_scores, wanted, 1e-4, size)
        assert_near(made.unit_rest, rest, 1e-4, size)
    assert np.isnan(out[["score_empty", "sum_error"]]).all(axis=None)
    assert np.abs(np.concatenate(out["unit_scores"].tolist())).max() > 1e-4


@pytest.mark.parametrize("kind", PLAIN)
def test_integrated_gradients_are_the_mean_of_gradients_on_the_way_times_the_way(kind):
    steps, absence = 4, "the"
    (token,) = ranker(kind).vocabulary.pieces([absence])[0]
    with pytest.warns(UserWarning, match="sum_error"):
        out = explained(kind, method="ig", steps=steps, absence=absence)
    for row in (1, 2, 4):
        query, text = ROWS[row]
        made, plain = out.loc[row], Plain(ranker(kind), query, text)
        inside = [at for begin, end in word_spans(text).tolist() for at in plain.places(begin, end)]
        end = embedding(plain)(plain.inputs["input_ids"]).detach()
        without = plain.with_token(inside, token)
        begin = embedding(plain)(without["input_ids"]).detach()
        slopes = [slope(plain, begin + (n + 0.5) / steps * (end - begin)) for n in range(steps)]
        carried = ((end - begin)[0] * torch.stack(slopes).mean(0)).sum(-1).detach()
        wanted, rest = summed(plain, text, carried)
        size = max(1, abs(made["score"]), np.abs(wanted).max())
        assert_near(made["unit_scores"], wanted, 2e-5, size)
        assert rest == 0 == made["unit_rest"]
        with torch.no_grad():
            whole, empty = float(plain.score(plain.inputs)), float(plain.score(without))
        assert_near(made["score_empty"], empty, 2e-5, size)
        assert_near(made["sum_error"], whole - empty - wanted.sum(), 2e-5, size)


@pytest.mark.parametrize("of", ["document", "query"])
@pytest.mark.parametrize("kind", [*SMOOTH, "splade max", "splade sum", "colbert", "mono t5", "bi llama"])
@pytest.mark.filterwarnings("ignore:the words of:UserWarning")
def test_words_rest_error_and_the_empty_score_add_up_to_the_score(kind, of):
    out = explained(kind, method="ig", of=of, steps=8)
    sums = np.array([scores.sum(dtype=np.float64) for scores in out["unit_scores"]])
    whole = sums + out["unit_rest"] + out["score_empty"] + out["sum_error"]
    assert_near(whole, out["score"], 1e-5, np.abs(out["score"]).max())
    assert (out["sum_error"].abs() > 0).all()


@pytest.mark.parametrize("kind", SMOOTH)
def test_the_error_of_the_sum_is_small_where_scores_are_smooth_and_falls_with_the_square_of_steps(kind):
    absence = None if not kind.startswith("generative") else "the"
    errors = {}
    for steps in (50, 200):
        out = explained(_calm(kind), FRAME.head(3), method="ig", absence=absence, steps=steps)
        errors[steps] = np.abs(out["sum_error"] / (out["score"] - out["score_empty"]))
    assert (errors[50] < 0.01).all()
    assert (errors[200] < errors[50] / 4 + widened(1e-4)).all()


def _calm(kind: str):
    """The ranker with weights as small as those of trained models, so that the way bends as theirs do."""
    made = {
        "bi cls dot": lambda: BiEncoder(build("bert", False, initializer_range=0.1)),
        "bi mean cosine": lambda: BiEncoder(
            build("distilbert", False, initializer_range=0.1), pooling="mean", similarity="cosine"
        ),
        "cross bert": lambda: CrossEncoder(build("bert", True, initializer_range=0.1)),
        "cross roberta": lambda: CrossEncoder(build("roberta", True, initializer_range=0.1)),
    }
    return made[kind]() if kind in made else ranker(kind)


@pytest.mark.bits
@pytest.mark.parametrize("method", ["gradient", "ig", "terms"])
def test_the_users_model_is_left_as_it_was(method):
    found = ranker("splade max")
    before = snapshot(found.model), [one.requires_grad for one in found.model.parameters()]
    scores = found.score(QUERIES_OF_ROWS, TEXTS_OF_ROWS)
    with torch.inference_mode():
        of_frame = ExplainScore(found, method, interactions=method == "terms")(FRAME)
    assert before == (snapshot(found.model), [one.requires_grad for one in found.model.parameters()])
    assert all(parameter.grad is None for parameter in found.model.parameters())
    np.testing.assert_array_equal(found.score(QUERIES_OF_ROWS, TEXTS_OF_ROWS), scores)
    assert len(of_frame) == len(FRAME)
