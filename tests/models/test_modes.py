"""What a ranker computes is the model's, whatever mode of torch is set around the call."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from threading import Barrier, Thread

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import assert_near

from pyterrier_mechir import (
    AttentionPatterns,
    AttentionTo,
    BiEncoder,
    ColBERT,
    CrossEncoder,
    GenerativeReranker,
    IntegratedGradients,
    MonoT5,
    PatchFeatures,
    PatchScorer,
    PerturbDocs,
    ScoreAttribution,
    ScoreLens,
    SparseAutoencoder,
    Splade,
    Steer,
    attention_of,
    steering_vectors,
)
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"num_hidden_layers": 2}


def projection():
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


FAMILIES = {
    "BiEncoder": lambda: BiEncoder(build("bert", classifier=False, **SMALL)),
    "CrossEncoder": lambda: CrossEncoder(build("electra", classifier=True, **SMALL)),
    "Splade": lambda: Splade(masked_lm("bert", **SMALL)),
    "ColBERT": lambda: ColBERT(
        build("bert", classifier=False, **SMALL), projection=projection(), query_marker="a", doc_marker="the"
    ),
    "MonoT5": lambda: MonoT5(build_t5(num_layers=2)),
    "GenerativeReranker": lambda: GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM")),
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)
        with suppress(AttributeError):  # torch 2.6 asks what it has unset for its device
            del torch._GLOBAL_DEVICE_CONTEXT.device_context


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "deterministic": deterministic,
}


@pytest.fixture(scope="module")
def pairs():
    frame = pd.DataFrame(
        {"qid": ["1", "2"], "query": QUERIES[:2], "docno": ["a", "b"], "text": TEXTS[:2], "score": [2.0, 1.0]}
    )
    return PerturbDocs(TFC1())(pt.model.add_ranks(frame))


def results(ranker, pairs):
    """Scores, and patched scores by gradients at activations, by integrals of them, and by hand."""
    found = [ranker.score(QUERIES[:2], TEXTS[:2])]
    for method in ("attribution", IntegratedGradients(steps=1), "exact"):
        made = PatchScorer(ranker, layers=[1], method=method)(pairs)
        found.append(np.stack(made["patch_scores"].to_list()).ravel())
    return np.concatenate(found)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, pairs):
    """How a ranker of a family is made, one of them, and its results."""
    ranker = FAMILIES[request.param]()
    return FAMILIES[request.param], ranker, results(ranker, pairs)


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad", "autocast", "float64", "meta"])
def test_no_mode_changes_what_a_ranker_computes(family, mode, pairs):
    _, ranker, expected = family
    with MODES[mode]():
        found = results(ranker, pairs)
    assert_near(found, expected)


def test_a_model_that_was_made_in_inference_mode_is_differentiated(family, pairs):
    make, _, expected = family
    with torch.inference_mode():
        model_of_user = make()
        assert_near(results(model_of_user, pairs), expected)
    assert_near(results(model_of_user, pairs), expected)


@pytest.mark.parametrize("mode", ["inference_mode", "float16", "default device", "deterministic"])
def test_no_mode_changes_what_is_loaded(mode, tmp_path):
    for part in build("bert", classifier=True, **SMALL):
        part.save_pretrained(tmp_path)
    expected = CrossEncoder(tmp_path)
    with MODES[mode]():
        loaded = CrossEncoder(tmp_path)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert_near(loaded.score(QUERIES[:2], TEXTS[:2]), expected.score(QUERIES[:2], TEXTS[:2]))


def autoencoder():
    made = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (32, 6), "b_enc": (6,), "W_dec": (6, 32), "b_dec": (32,)}
    return SparseAutoencoder({name: torch.randn(shape, generator=made) for name, shape in shapes.items()})


def of_stages(ranker, encoder, pairs):
    """What else runs a model: stages, metrics, features, functions."""
    features = PatchFeatures(ranker, encoder, "L1.resid_pre", features=[0, 1])
    named = {"heads": ["L1.resid_pre.F0", "L1.resid_pre.F1"], "method": "attribution"}
    by_gradients = PatchScorer(ranker.attach(encoder, "L1.resid_pre"), "resid_pre.feature", **named)
    looks = PatchScorer(ranker, layers=[0], metric=AttentionTo((1, 0), "D-", "OTHER"), method="attribution")
    scores, cache = ranker.run_with_cache(QUERIES[:2], TEXTS[:2])
    vectors = steering_vectors(pairs, ranker, ["L0.resid_post"])
    return [
        *(np.stack(stage(pairs)["patch_scores"].to_list()) for stage in (features, by_gradients, looks)),
        np.stack(ScoreAttribution(ranker)(pairs)["score_terms"].to_list()),
        np.stack(ScoreLens(ranker)(pairs)["layer_scores"].to_list()),
        np.stack(AttentionPatterns(ranker)(pairs)["attention"].to_list()),
        Steer(ranker, vectors)(pairs)["score"].to_numpy(),
        attention_of(ranker, QUERIES[0], TEXTS[0], ["L1H0"]).weights,
        scores.detach().numpy(),
        cache["resid_post", 1].detach().numpy(),
    ]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def bi_encoder_of_stages(pairs):
    ranker, encoder = FAMILIES["BiEncoder"](), autoencoder()
    return ranker, encoder, of_stages(ranker, encoder, pairs)


@pytest.mark.parametrize("mode", ["inference_mode", "autocast", "float64", "meta"])
def test_no_mode_changes_what_a_stage_computes(mode, bi_encoder_of_stages, pairs):
    ranker, encoder, expected = bi_encoder_of_stages
    with MODES[mode]():
        assert_same(of_stages(ranker, encoder, pairs), expected)


def test_an_autoencoder_that_was_made_in_inference_mode_is_differentiated(bi_encoder_of_stages, pairs):
    ranker, _, expected = bi_encoder_of_stages
    with torch.inference_mode():
        encoder = autoencoder()
    assert_same(of_stages(ranker, encoder, pairs), expected)


def test_a_projection_that_was_made_in_inference_mode_is_differentiated(pairs):
    make = FAMILIES["ColBERT"]
    expected = PatchScorer(make(), method="attribution")(pairs)
    with torch.inference_mode():
        ranker = make()
    assert_same(PatchScorer(ranker, method="attribution")(pairs)["patch_scores"], expected["patch_scores"])


# The context itself


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_as_before_afterwards(mode):
    def state():
        return (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_dtype(),
            torch.empty(0).device,
            torch.are_deterministic_algorithms_enabled(),
        )

    with MODES[mode]():
        before = state()
        with pytest.raises(KeyboardInterrupt), as_alone():
            assert (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float32, "cpu")
            assert not torch.zeros(1).is_inference()
            assert torch.is_grad_enabled() == before[0]
            raise KeyboardInterrupt
        assert state() == before


def test_the_default_dtype_comes_back_when_the_last_thread_has_left():
    inside, first_has_left, seen = Barrier(2), Barrier(2), []

    def first():
        with as_alone():
            inside.wait()
        first_has_left.wait()

    def second():
        with as_alone():
            inside.wait()
            first_has_left.wait()
            seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        threads = [Thread(target=run) for run in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64


def test_scores_follow_gradients_that_are_on_or_off():
    ranker = FAMILIES["CrossEncoder"]()
    assert ranker.run_with_cache(QUERIES[0], TEXTS[0])[0].requires_grad
    with torch.no_grad():
        assert not ranker.run_with_cache(QUERIES[0], TEXTS[0])[0].requires_grad
