"""What a run will cost, told before it is paid."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_models import QUERIES, TEXTS, build

from pyterrier_mechir import BiEncoder, PairScorer, PatchScorer
from pyterrier_mechir.patching import cost as module
from pyterrier_mechir.patching.cost import SAMPLED_ROWS, Probe, _work
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.perturb import perturbation

pytestmark = pytest.mark.usefixtures("one_thread")


_LETTERS = str.maketrans("012", "xyz")


def frame_of(n: int) -> pd.DataFrame:
    numbers = [str(number) for number in range(n)]
    return pd.DataFrame(
        {
            "qid": numbers,
            "query": [QUERIES[i % len(QUERIES)] for i in range(n)],
            "docno": numbers,
            "text": [
                f"{TEXTS[i % len(TEXTS)]} {' '.join(np.base_repr(i, 3).zfill(6).translate(_LETTERS))}" for i in range(n)
            ],
            "score": 0.0,
            "rank": 0,
        }
    )


@pytest.fixture(scope="module")
def ranker():
    return BiEncoder(build("bert", classifier=False))


def lengths(frame: pd.DataFrame, ranker: BiEncoder) -> np.ndarray:
    """Tokens of each pair: the text's, the word appended, and two special ones."""
    return np.array([len(ids) for ids in ranker.tokenizer([f"{text} x" for text in frame["text"]])["input_ids"]])


@perturbation(alignment="fill")
def append_x(text):
    return f"{text} x"


@pytest.mark.parametrize(
    ("options", "patches"),
    [
        ({}, lambda tokens: 12 + 0 * tokens),
        ({"direction": "both"}, lambda tokens: 24 + 0 * tokens),
        ({"component": "block", "positions": "each"}, lambda tokens: 8 * tokens + 1),
        ({"component": "block"}, lambda tokens: 6 + 0 * tokens),
        ({"component": "q", "positions": "each"}, lambda tokens: 8 * tokens + 4),
        ({"heads": [(1, 2)]}, lambda tokens: 1 + 0 * tokens),
        ({"method": "attribution"}, lambda tokens: 0 * tokens),
        ({"receivers": "L2H0.q"}, lambda tokens: 8 + 0 * tokens),
    ],
)
def test_passes_and_tokens_are_counted(ranker, options, patches):
    frame = frame_of(5)
    found = PatchScorer(ranker, perturbation=append_x, **options).estimate(frame, seconds=0.1)
    tokens = lengths(frame, ranker)
    passes = 3 + patches(tokens)
    assert found.n_pairs == 5
    assert found.forward_passes == passes.sum()
    np.testing.assert_allclose(found.tokens, (passes * tokens).sum(), rtol=1e-6)
    assert found.seconds > 0
    assert found.memory > 2**20
    assert str(found).startswith(f"5 pairs x {found.n_sites} sites: {found.forward_passes:,} forward passes")


def test_a_screening_is_probed_as_a_whole(ranker):
    scorer = PatchScorer(ranker, perturbation=append_x, method="attribution", screen=2)
    assert scorer.estimate(frame_of(5), seconds=0.1).seconds > 0


def test_pairs_that_are_scored_only_have_both_sides_and_the_text(ranker):
    found = PairScorer(ranker, perturbation=append_x).estimate(frame_of(4), seconds=0.1)
    assert (found.n_sites, found.forward_passes) == (0, 12)


def test_a_sample_stands_for_many_rows(ranker):
    frame = frame_of(3 * SAMPLED_ROWS)
    found = PatchScorer(ranker, perturbation=append_x, layers=[2]).estimate(frame, seconds=0.1)
    assert found.n_pairs == len(frame)
    assert found.forward_passes == len(frame) * (3 + 4)
    np.testing.assert_allclose(found.tokens, 7 * lengths(frame, ranker).sum(), rtol=0.05)


def test_rows_to_which_the_perturbation_does_not_apply_cost_their_own_score_only(ranker):
    @perturbation(alignment="fill")
    def sometimes(text):
        return f"{text} x" if text.startswith("The moon") else None

    found = PatchScorer(ranker, perturbation=sometimes).estimate(frame_of(7), seconds=0.1)
    assert (found.n_pairs, found.forward_passes) == (1, 14 + 7)
    none = PatchScorer(ranker, perturbation=sometimes).estimate(frame_of(7).tail(3), seconds=0.1)
    assert (none.n_pairs, none.forward_passes) == (0, 3)


def test_a_column_that_is_missing_is_named(ranker):
    with pytest.raises(Exception, match="text"):
        PatchScorer(ranker).estimate(frame_of(2).drop(columns="text"))


@pytest.mark.parametrize("limit", [1.0, 20.0, 1e9])
@pytest.mark.parametrize("is_exact", [True, False])
def test_whatever_is_probed_is_scaled_to_all(ranker, monkeypatch, limit, is_exact):
    """On a clock that goes on by what each pair and each site of it costs, the estimate is the whole cost."""
    frame = frame_of(20)
    keys = [(query, text, f"{text} x", "fill") for query, text in zip(frame["query"], frame["text"], strict=True)]
    aligned = ranker.align(*zip(*[key[:3] for key in keys], strict=True), alignments=["fill"] * 20)
    sites = PatchScorer(ranker).sites.sites
    now, swept = [0.0], []

    def run(pairs, plan):
        swept.append((len(pairs), len(plan.sites)))
        work = _work(ranker, np.array([len(pair.classes) for pair in pairs])).sum() / 1e6
        now[0] += work * (1 + (0.3 * len(plan.sites) if is_exact else 2.0 * bool(plan.sites)))

    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    probe = Probe(ranker, aligned, Plan(sites), is_exact, run)
    work = _work(ranker, probe.lengths).sum() / 1e6
    wanted = work * (1.5 + (0.3 * len(sites) if is_exact else 2.0))
    np.testing.assert_allclose(probe.seconds(limit), wanted, rtol=1e-6)
    assert limit > 1e6 or now[0] < 3 * limit + 10
    assert ((20, len(sites)) in swept) == (limit > 1e6)
