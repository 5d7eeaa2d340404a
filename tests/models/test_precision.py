"""Layers that multiply fewer bits, and products by packed weights."""

from __future__ import annotations

import pickle
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, build_t5
from tolerance import assert_near, widened
from torch import nn

from pyterrier_mechir import BiEncoder, CrossEncoder, MonoT5, PairScorer, PatchScorer
from pyterrier_mechir.models import precision, products
from pyterrier_mechir.models.precision import Reduced, in_full, is_x86, packs, precision_of
from pyterrier_mechir.models.products import packed_products

pytestmark = pytest.mark.usefixtures("one_thread")


def reduced(kind: str = "bert", dtype: str = "bfloat16") -> BiEncoder:
    return BiEncoder(build(kind, classifier=False), dtype=dtype)


@pytest.fixture
def frame():
    return pd.DataFrame(
        {"qid": list("abc"), "query": QUERIES[:3], "docno": list("xyz"), "text": TEXTS[:3], "score": 0.0, "rank": 0}
    )


# Fewer bits


def test_only_products_of_the_layers_have_fewer_bits():
    model = reduced().model
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert {name for name in kept if ".weight" in name and "layer." in name} == {
        name for name, _ in model.named_parameters() if "LayerNorm.weight" in name and "layer." in name
    }
    assert any("embeddings" in name for name in kept)
    assert precision_of(model) == torch.bfloat16


def test_a_map_multiplies_rounded_factors_and_gives_float32():
    linear = reduced().anatomy.out_proj(0)
    value = torch.randn(5, 32)
    given = linear(value)
    factors = (x.to(torch.bfloat16).double() for x in (value, linear.original))
    wanted = nn.functional.linear(*factors, linear.bias.double())
    assert given.dtype == torch.float32
    torch.testing.assert_close(given.double(), wanted, rtol=2**-7, atol=1e-2)
    assert not torch.equal(given, nn.functional.linear(value, linear.original, linear.bias))


@pytest.mark.bits
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_near_those_of_float32_and_equal_to_them_in_full(architecture):
    loaded = build(architecture, classifier=True)
    plain, fewer = CrossEncoder(loaded), CrossEncoder(loaded, dtype="bfloat16")
    wanted, found = plain.score(QUERIES, TEXTS), fewer.score(QUERIES, TEXTS)
    assert found.dtype == np.float32
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=0.1 * np.abs(wanted).max())
    with in_full(fewer.model):
        np.testing.assert_allclose(fewer.score(QUERIES, TEXTS), wanted, rtol=widened(1e-5), atol=widened(1e-5))
    assert np.array_equal(fewer.score(QUERIES, TEXTS), found)


def test_the_model_that_was_given_stays_as_it_was():
    model, tokenizer = build("bert", classifier=False)
    before = deepcopy(model.state_dict())
    BiEncoder((model, tokenizer), dtype="bfloat16")
    assert not any(isinstance(module, Reduced) for module in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.bits
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_checkpoint_is_read_in_the_precision_that_it_is_stored_in(stored, tmp_path):
    model, tokenizer = build("bert", classifier=False)
    loaded = deepcopy(model).to(getattr(torch, stored))
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ranker = BiEncoder(tmp_path, device="cpu", dtype="bfloat16")
    linear = ranker.anatomy.out_proj(0)
    assert (linear.original is None) == (stored == "bfloat16")
    assert ranker.about()["dtype"] == "bfloat16"
    wanted = BiEncoder((loaded.float(), tokenizer), dtype="bfloat16").score(QUERIES, TEXTS)
    np.testing.assert_allclose(ranker.score(QUERIES, TEXTS), wanted, rtol=widened(1e-5))


@pytest.mark.bits
def test_a_ranker_of_fewer_bits_can_be_pickled():
    ranker = reduced()
    other = pickle.loads(pickle.dumps(ranker))
    assert np.array_equal(other.score(QUERIES, TEXTS), ranker.score(QUERIES, TEXTS))


def test_both_stacks_of_an_encoder_decoder_have_fewer_bits():
    ranker = MonoT5(build_t5("t5"), dtype="bfloat16")
    for stack in ("encoder", "decoder"):
        assert isinstance(ranker.on(stack).anatomy.out_proj(0), Reduced)
    assert not isinstance(ranker.model.lm_head, Reduced)


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_effects_come_with_their_distance_from_float32(frame, method):
    loaded = build("bert", classifier=False)
    wanted = PatchScorer(BiEncoder(loaded), method=method).transform(frame)
    scorer = PatchScorer(BiEncoder(loaded, dtype="bfloat16"), method=method)
    with pytest.warns(UserWarning, match=r"bfloat16: on a sample of 3 pairs, scores are within .* 12 of 12 sites"):
        found = scorer.transform(frame)
    calibration = found.attrs["mechir"]["calibration"]
    apart = {
        column: np.abs(np.stack(found[column].to_list()) - np.stack(wanted[column].to_list()))
        for column in ("score_baseline", "score_perturbed", "patch_scores")
    }
    largest = max(apart["score_baseline"].max(), apart["score_perturbed"].max())
    np.testing.assert_allclose(calibration["max_score_error"], largest, rtol=0.01)
    moved = [out["patch_scores"].map(np.asarray) - out["score_baseline"] for out in (found, wanted)]
    errors = np.abs(np.stack((moved[0] - moved[1]).to_list()))
    np.testing.assert_allclose(calibration["max_abs_error"], errors.max(), rtol=0.01)
    np.testing.assert_allclose(calibration["mean_abs_error"], errors.mean(), rtol=0.01)
    assert 0.9 < calibration["spearman"] < 1
    assert 0 < apart["patch_scores"].max() < 0.05 * np.abs(np.stack(wanted["patch_scores"].to_list())).max()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert scorer.transform(frame).attrs["mechir"]["calibration"] == calibration


def test_the_parts_of_a_stored_run_are_compared_once(frame, tmp_path):
    stored = PatchScorer(BiEncoder(build("bert", classifier=False), dtype="bfloat16")).store(tmp_path, shard_size=1)
    with pytest.warns(UserWarning, match="bfloat16: on a sample of 1 pairs") as told:
        stored.transform(frame)
    assert len([warning for warning in told if "on a sample" in str(warning.message)]) == 1


def test_scores_without_patches_come_with_their_distance_too(frame):
    scorer = PairScorer(BiEncoder(build("bert", classifier=False), dtype="bfloat16"))
    with pytest.warns(UserWarning, match=r"scores are within [^ ]* of float32's\.$"):
        out = scorer.transform(frame)
    assert out.attrs["mechir"]["calibration"]["n_sites"] == 0


def test_float32_has_nothing_to_tell(frame):
    assert "calibration" not in PatchScorer(BiEncoder(build("bert", classifier=False))).transform(frame).attrs["mechir"]


# What a class keeps in float32


def overflowing(kind):
    """A T5 within whose MLPs are numbers that float16 does not hold, though its scores are ordinary."""
    model, tokenizer = build_t5(kind)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "DenseReluDense" in name:
                weight *= 4000.0 if name.endswith("wo.weight") else 40.0
    return model, tokenizer


@pytest.mark.parametrize("kind", ["t5", "flan", "mt5"])
def test_float16_leaves_in_float32_what_the_class_of_t5_does(kind, tmp_path):
    made = overflowing(kind)
    for part in made:
        part.save_pretrained(tmp_path)
    full = MonoT5(made).score(QUERIES[:3], TEXTS[:3])
    for given in (made, tmp_path):
        ranker = MonoT5(given, dtype="float16")
        np.testing.assert_allclose(ranker.score(QUERIES[:3], TEXTS[:3]), full, rtol=0.05, atol=0.05)
        dtypes = {name.split(".")[-2]: weight.dtype for name, weight in ranker.model.named_parameters()}
        assert (dtypes["wo"], dtypes["o"]) == (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("dtype", "declared", "kept"),
    [
        ("float16", "_keep_in_fp32_modules", True),
        ("bfloat16", "_keep_in_fp32_modules", False),
        ("float16", "_keep_in_fp32_modules_strict", True),
        ("bfloat16", "_keep_in_fp32_modules_strict", True),
    ],
)
def test_any_class_may_declare_what_is_kept_in_float32(dtype, declared, kept):
    model, tokenizer = build("bert", classifier=False)
    setattr(model, declared, ["layer.*.intermediate", "quer"])
    layer = BiEncoder((model, tokenizer), dtype=dtype).anatomy.layers[1]
    assert isinstance(layer.intermediate.dense, Reduced) != kept
    assert isinstance(layer.attention.self.query, Reduced), "parts of a name are none"
    assert layer.intermediate.dense.weight.dtype == (torch.float32 if kept else getattr(torch, dtype))


def test_scores_that_float16_cannot_hold_are_refused():
    model, tokenizer = build("bert", classifier=True)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight *= 1e6
    ranker = CrossEncoder((model, tokenizer), dtype="float16")
    with pytest.raises(
        ValueError, match="2 of 2 scores are no finite numbers: float16 holds nothing beyond 65504; use"
    ):
        ranker.score(QUERIES[:2], TEXTS[:2])


# Kernels


@pytest.fixture
def no_answers():
    """What was found out about kernels is forgotten, before and after."""
    found_out = (precision.packs, precision._fails, precision._warn_of_slowness)
    for known in found_out:
        known.cache_clear()
    yield
    for known in found_out:
        known.cache_clear()


def refuses(*args, **kwargs):
    raise RuntimeError("no such kernel\non this processor")


@pytest.mark.usefixtures("no_answers")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("broken", [refuses, lambda value, *_: torch.zeros_like(value)])
def test_layers_multiply_plainly_where_packed_kernels_fail_whatever_the_processor_says(dtype, broken, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, *_: weight)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", broken)
    monkeypatch.setattr(precision.platform, "machine", lambda: "AMD64")
    full = reduced(dtype="float32").score(QUERIES[:3], TEXTS[:3])
    with pytest.warns(
        UserWarning, match=f"no kernels for {dtype}: scores are those of that precision, but take longer"
    ):
        ranker = reduced(dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduced(dtype=dtype)
    np.testing.assert_allclose(ranker.score(QUERIES[:3], TEXTS[:3]), full, rtol=0.05)


@pytest.mark.usefixtures("no_answers")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("broken", [refuses, lambda value, *_: 3 * value])
def test_a_device_that_does_not_multiply_in_a_precision_is_refused(dtype, broken, monkeypatch):
    model, tokenizer = build("bert", classifier=False)
    monkeypatch.setattr(precision.nn.functional, "linear", broken)
    reason = "no such kernel" if broken is refuses else "the products are wrong"
    with pytest.raises(ValueError, match=rf"^dtype='{dtype}' cannot be computed on 'cpu' \({reason}\); use 'float32'"):
        BiEncoder((model.double() if dtype == "float64" else model, tokenizer), dtype=dtype)


# Packed weights


@pytest.fixture
def layouts(monkeypatch):
    """The weights that are laid out during a test."""
    made = []
    reorder = products._laid_out
    monkeypatch.setattr(products, "_WORTH", 0)
    monkeypatch.setattr(products, "_is_faster", lambda precision: True)
    monkeypatch.setattr(products, "_laid_out", lambda weight: made.append(weight) or reorder(weight))
    return made


@pytest.mark.bits
@pytest.mark.skipif(not (is_x86() and packs(torch.float32)), reason="this processor has no packed products")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_packed_products_are_those_of_the_model(architecture, dtype, layouts):
    ranker = CrossEncoder(build(architecture, classifier=True), dtype=dtype)
    (batch,) = (part.batch for part in ranker.parts(QUERIES, TEXTS, batch_size=len(TEXTS)))
    with torch.no_grad():
        wanted = ranker.encode(batch)
        opened = ranker.opened
        with packed_products(opened.anatomy):
            found = opened.encode(batch)
        again = ranker.encode(batch)
    n_maps = sum(isinstance(m, nn.Linear) for layer in ranker.anatomy.layers for m in layer.modules())
    assert len(layouts) == (n_maps if products._is_supported(getattr(torch, dtype)) else 0)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(again, wanted)


def doubled_under_no_grad(linear, factor):
    with torch.no_grad():
        linear.weight.mul_(factor)


def doubled_through_data(linear, factor):
    linear.weight.data.mul_(factor)


def doubled_through_numpy(linear, factor):
    view = linear.weight.detach().numpy()
    view *= factor


def doubled_by_loading(linear, factor):
    linear.load_state_dict(
        {name: value * (factor if name == "weight" else 1) for name, value in linear.state_dict().items()}
    )


def doubled_by_assigning(linear, factor):
    linear.load_state_dict({"weight": linear.weight * factor, "bias": linear.bias}, assign=True)


def doubled_by_another_parameter(linear, factor):
    linear.weight = nn.Parameter(linear.weight.detach() * factor)


EDITS = (
    doubled_under_no_grad,
    doubled_through_data,
    doubled_through_numpy,
    doubled_by_loading,
    doubled_by_assigning,
    doubled_by_another_parameter,
)


@pytest.mark.parametrize("edit", EDITS)
def test_weights_that_somebody_changed_are_the_ones_that_score(edit, layouts):
    model, tokenizer = build("bert", classifier=True)
    ranker = CrossEncoder((model, tokenizer))
    before, linear = ranker.score(QUERIES, TEXTS), model.bert.encoder.layer[1].attention.output.dense
    edit(linear, 2)
    changed = ranker.score(QUERIES, TEXTS)
    assert_near(changed, CrossEncoder((deepcopy(model), tokenizer)).score(QUERIES, TEXTS))
    assert np.abs(changed - before).max() > 1e-3
    edit(linear, 0.5)
    assert_near(ranker.score(QUERIES, TEXTS), before)


def test_gradients_are_those_of_the_weights_as_they_are_now(frame, layouts):
    model, tokenizer = build("bert", classifier=False)
    scorer = PatchScorer(BiEncoder((model, tokenizer)), method="attribution")
    scorer.transform(frame)
    for edit in EDITS[1:3]:
        edit(model.encoder.layer[1].output.dense, 3)
    wanted = PatchScorer(BiEncoder((deepcopy(model), tokenizer)), method="attribution").transform(frame)
    found = scorer.transform(frame)
    for column in ("score_baseline", "patch_scores"):
        assert_near(*(np.stack(out[column].to_list()) for out in (found, wanted)))


def test_few_rows_are_not_worth_laying_weights_out(bi_encoder, monkeypatch):
    made = []
    monkeypatch.setattr(products, "_laid_out", made.append)
    bi_encoder.score(QUERIES[:1], TEXTS[:1])
    assert made == []


def test_gradients_pass_through_the_plain_maps(bi_encoder):
    (batch,) = (part.batch for part in bi_encoder.parts(QUERIES, TEXTS, batch_size=len(TEXTS)))
    seen = {}
    keep = bi_encoder.anatomy.out_proj(0).register_forward_pre_hook(
        lambda module, args: (seen.setdefault("z", args[0].detach().requires_grad_()),)
    )
    opened = bi_encoder.opened
    with packed_products(opened.anatomy):
        opened.encode(batch).sum().backward()
    keep.remove()
    assert seen["z"].grad.abs().sum() > 0


def test_a_hook_before_the_gelu_sees_what_goes_into_it(bi_encoder):
    layer, seen = bi_encoder.model.encoder.layer[0], []
    keep = layer.intermediate.dense.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    bi_encoder.score(QUERIES[:1], TEXTS[:1])
    keep.remove()
    given, product = seen[-1]
    torch.testing.assert_close(product, layer.intermediate.dense(given), rtol=widened(1e-5), atol=widened(1e-5))
    assert (product < -1).any()


def test_weights_made_in_inference_mode_are_left_alone():
    model, tokenizer = build("bert", classifier=False)
    with torch.inference_mode():
        made = deepcopy(model)
    wanted = BiEncoder((model, tokenizer)).score(QUERIES, TEXTS)
    np.testing.assert_allclose(BiEncoder((made, tokenizer)).score(QUERIES, TEXTS), wanted, rtol=widened(1e-5))


def test_large_models_are_not_kept_twice(bi_encoder, layouts, monkeypatch):
    monkeypatch.setattr(products, "LARGEST", 1000)
    with packed_products(bi_encoder.anatomy):
        pass
    assert layouts == []


def test_a_forward_that_somebody_replaced_stays(bi_encoder):
    linear = bi_encoder.anatomy.out_proj(0)
    linear.forward = lambda value: torch.zeros_like(value)
    try:
        with packed_products(bi_encoder.anatomy), torch.no_grad():
            assert not linear(torch.ones(2, 32)).any()
    finally:
        del linear.forward
