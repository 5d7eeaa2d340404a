"""The fit of lime: exact where scores are linear, honest about its errors where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from many_rankers import columns, ranker
from scipy import stats
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import ExplainScore
from pyterrier_mechir.observe.words.explained import Asked
from pyterrier_mechir.observe.words.left_out import _fitted, _subsets
from pyterrier_mechir.observe.words.readings import readings

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = np.array([1.5, -2.0, 0.0, 0.25, 3.0, -0.5])
WIDTH = 25.0


def subsets(n: int, rng: np.random.Generator) -> np.ndarray:
    """The whole, nothing, and random subsets of all sizes."""
    drawn = rng.random((n, 6)).argsort(1) >= rng.integers(1, 7, size=(n, 1))
    return np.concatenate([[[True] * 6, [False] * 6], drawn])


def test_a_linear_function_is_fitted_exactly_whatever_the_width():
    z = subsets(60, np.random.default_rng(0))
    for width in (5.0, WIDTH, 1e6):
        fit = _fitted(z, z @ WEIGHTS + 7.0, width)
        np.testing.assert_allclose(fit.weights, WEIGHTS, atol=1e-8)
        np.testing.assert_allclose(fit.errors, 0, atol=1e-8)
        assert fit.r2 > 1 - 1e-9


def test_subsets_that_could_not_be_scored_take_no_part():
    z = subsets(60, np.random.default_rng(0))
    labels = z @ WEIGHTS
    with_gaps, is_gap = labels.copy(), np.arange(len(z)) % 7 == 1
    with_gaps[is_gap] = np.nan
    fit, without = _fitted(z, with_gaps, WIDTH), _fitted(z[~is_gap], labels[~is_gap], WIDTH)
    np.testing.assert_array_equal(fit.weights, without.weights)
    assert fit.r2 == without.r2
    empty = _fitted(z, np.full(len(z), np.nan), WIDTH)
    assert np.isnan([*empty.weights, *empty.errors, empty.r2]).all()


def test_the_fit_is_that_of_the_normal_equations():
    rng = np.random.default_rng(1)
    z = subsets(50, rng)
    labels = z @ WEIGHTS + rng.normal(size=len(z))
    distance = [100 * (1 - row.sum() / np.sqrt(row.sum() * 6)) if row.any() else 100 for row in z]
    root = np.exp(-((np.array(distance) / WIDTH) ** 2) / 2)
    design = np.column_stack([z, np.ones(len(z))])
    wanted = np.linalg.lstsq(design * root[:, None], labels * root, rcond=None)[0]
    np.testing.assert_allclose(_fitted(z, labels, WIDTH).weights, wanted[:-1], atol=1e-10)


@pytest.mark.parametrize("noise", ["even", "uneven"])
def test_standard_errors_cover_the_weights_of_a_noisy_linear_function(noise):
    rng, inside = np.random.default_rng(2), []
    for _ in range(700):
        z = subsets(200, rng)
        spread = 1.0 if noise == "even" else 0.2 + 2 * z[:, 0]
        fit = _fitted(z, z @ WEIGHTS + spread * rng.normal(size=len(z)), WIDTH)
        inside.append(np.abs(fit.weights - WEIGHTS) <= stats.norm.ppf(0.975) * fit.errors)
    assert 0.93 <= np.mean(inside) <= 0.97


def test_the_share_that_is_predicted_is_near_none_of_noise_and_as_large_as_the_signal():
    rng = np.random.default_rng(3)
    of_noise, of_both = [], []
    for _ in range(100):
        z = subsets(200, rng)
        even = rng.normal(size=len(z))
        of_noise.append(_fitted(z, even, 1e6).r2)
        signal = z @ WEIGHTS
        of_both.append(_fitted(z, signal + signal.std() * even, 1e6).r2)
    assert -0.12 < np.mean(of_noise) < 0
    assert 0.44 < np.mean(of_both) < 0.5
    assert np.isnan(_fitted(z, np.ones(len(z)), WIDTH).r2)


def test_subsets_are_of_all_sizes_alike_and_begin_with_the_whole_and_with_nothing():
    (reading,) = readings(ranker("bi cls dot"), [QUERIES[0]], [TEXTS[3]], "word")
    n, asked = len(reading.read), Asked("lime", samples=4000, seed=5)
    z = _subsets(reading, np.arange(n), asked)
    assert z.shape == (4002, n)
    assert z[0].all()
    assert not z[1].any()
    sizes = np.bincount(z[2:].sum(1), minlength=n + 1)
    assert sizes[n] == 0
    assert stats.chisquare(sizes[:n]).pvalue > 0.001
    assert stats.chisquare(z[2:].sum(0)).pvalue > 0.001
    np.testing.assert_array_equal(z, _subsets(reading, np.arange(n), asked))
    assert (z != _subsets(reading, np.arange(n), replace(asked, seed=6))).any()
    assert len(_subsets(reading, np.arange(n), replace(asked, samples=None))) == 202


@pytest.mark.bits
def test_the_same_seed_gives_the_same_and_another_does_not():
    queries, texts = columns()
    frame = pd.DataFrame({"qid": map(str, range(6)), "query": queries, "docno": map(str, range(6)), "text": texts})
    one, same, other = (
        ExplainScore(ranker("cross bert"), "lime", samples=40, seed=seed)(frame)["unit_scores"] for seed in (0, 0, 1)
    )
    for found, again, different in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(found, again)
        assert len(found) == 1 or not np.array_equal(found, different)


def test_the_fit_of_a_ranker_is_of_its_own_scores_of_the_texts_with_some_words():
    found, query, text = ranker("cross roberta"), "roman roads", "Old Rome built roads of stone"
    frame = pd.DataFrame({"qid": ["q"], "query": [query], "docno": ["d"], "text": [text]})
    made = ExplainScore(found, "lime", samples=50, kernel_width=40.0)(frame).loc[0]
    (reading,) = readings(found, [query], [text], "word")
    z = _subsets(reading, np.arange(6), Asked("lime", samples=50))
    words = text.split()
    texts = [" ".join(word for word, is_there in zip(words, row, strict=True) if is_there) for row in z]
    fit = _fitted(z, found.score([query] * len(z), texts), 40.0)
    assert_near(made["unit_scores"], fit.weights, 1e-4)
    assert_near(made["unit_errors"], fit.errors, 1e-4)
    assert_near(made["fit_r2"], fit.r2, 1e-4)
    assert_near(made["score_empty"], found.score([query], [""])[0])
