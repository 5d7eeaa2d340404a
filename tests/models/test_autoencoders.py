"""Sparse autoencoders: the files of SAELens, features by hand, and patching by feature against hooks."""

import json

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from safetensors.torch import save_file
from small_models import QUERIES, TEXTS, build
from tolerance import assert_near, assert_near_effects, widened

from pyterrier_mechir import AggregateHeads, BiEncoder, PatchFeatures, PatchScorer, PerturbDocs, SparseAutoencoder
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, N_FEATURES = 32, 50


def weights(kind="standard", width=WIDTH, n=N_FEATURES):
    made = torch.Generator().manual_seed(0)
    found = {
        "W_enc": torch.randn(width, n, generator=made),
        "b_enc": torch.randn(n, generator=made) / 4,
        "W_dec": torch.randn(n, width, generator=made) / 8,
        "b_dec": torch.randn(width, generator=made) / 4,
    }
    return found | ({"threshold": torch.rand(n, generator=made)} if kind == "jumprelu" else {})


def autoencoder(kind="standard", **options):
    return SparseAutoencoder(weights(kind), kind, **({"k": 6} if kind == "topk" else {}), **options)


def pairs(n=4):
    rows = [("q", QUERIES[0], f"d{i}", text, 1.0) for i, text in enumerate(TEXTS[:n])]
    frame = pt.model.add_ranks(pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]))
    return PerturbDocs(TFC1())(frame)


# Features


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("standard", {}, [0.5, 0.0, 2.0]),
        ("standard", {"centres_input": False}, [1.5, 0.0, 3.0]),
        ("jumprelu", {}, [0.0, 0.0, 2.0]),
        ("topk", {"k": 1}, [0.0, 0.0, 2.0]),
        ("topk", {"k": 1, "rescales": True}, [5.0, 0.0, 0.0]),
        ("topk", {"k": 3}, [0.5, 0.0, 2.0]),
    ],
)
def test_features_by_hand(kind, options, expected):
    made = SparseAutoencoder(
        {
            "W_enc": torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]),
            "b_enc": torch.tensor([0.0, 0.25, 0.0]),
            "W_dec": torch.tensor([[10.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
            "b_dec": torch.tensor([1.0, 1.0]),
            "threshold": torch.tensor([1.0, 1.0, 1.0]),
        },
        kind,
        **options,
    )
    x = torch.tensor([[[1.5, 3.0]]])
    found = made.encode(x)
    assert found[0, 0].tolist() == pytest.approx(expected)
    scale = torch.tensor([10.0, 1.0, 1.0]) if made.rescales else 1
    back = (torch.tensor(expected) / scale) @ made.weights["W_dec"] + 1
    torch.testing.assert_close(made.decode(found)[0, 0], back)


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_the_files_of_saelens_are_read(kind, tmp_path):
    save_file(weights(kind), tmp_path / "sae_weights.safetensors")
    settings = {"architecture": kind, "d_in": WIDTH, "d_sae": N_FEATURES, "apply_b_dec_to_input": False, "metadata": {}}
    settings |= {"k": 6, "rescale_acts_by_decoder_norm": True} if kind == "topk" else {}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    read = SparseAutoencoder.load(tmp_path)
    made = autoencoder(kind, centres_input=False, rescales=True)
    x = torch.randn(3, 5, WIDTH)
    assert_near(read.encode(x), made.encode(x))
    assert_near(read.decode(read.encode(x)), made.decode(made.encode(x)))
    assert (read.n_features, repr(read)) == (N_FEATURES, f"SparseAutoencoder({kind!r}, d=32, n_features=50)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gated"}, "has architecture 'gated', which is not supported"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm', which is not supported"),
        ({"architecture": "topk"}, "needs k"),
        ({"architecture": "jumprelu"}, "no weights threshold"),
    ],
)
def test_what_is_not_computed_is_refused(settings, message, tmp_path):
    save_file(weights(), tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder.load(tmp_path)


def written(tmp_path, settings, **more):
    save_file(weights() | more, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(
        json.dumps({"d_in": WIDTH, "d_sae": N_FEATURES, "dtype": "torch.float32", **settings})
    )
    return tmp_path


@pytest.mark.parametrize("name", ["activation_fn", "activation_fn_str"])
@pytest.mark.parametrize(
    ("said", "kind", "options"),
    [
        (("topk", {"k": 6}), "topk", {"k": 6}),
        (("tanh-relu", {}), "standard", {"activation": "tanh-relu"}),
        (("relu", None), "standard", {}),
    ],
)
def test_files_of_earlier_versions_say_what_is_computed_by_their_activation(name, said, kind, options, tmp_path):
    settings = {"hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1, "normalize_activations": False}
    settings |= {"noise_scale": 0.1, "mse_loss_normalization": "dense_batch", "use_ghost_grads": True}
    directory = written(tmp_path, settings | {name: said[0], "activation_fn_kwargs": said[1]})
    read, made = SparseAutoencoder.load(directory), SparseAutoencoder(weights(), kind, **options)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    assert_near(read.encode(x), made.encode(x))
    before = (x - made.weights["b_dec"]) @ made.weights["W_enc"] + made.weights["b_enc"]
    if "activation" in options:
        assert_near(read.encode(x), before.relu().tanh())
    if kind == "topk":
        assert (read.encode(x) > 0).sum(-1).tolist() == [6] * 5


@pytest.mark.parametrize("name", ["finetuning_scaling_factor", "scaling_factor"])
def test_a_factor_of_each_feature_is_part_of_the_decoder(name, tmp_path):
    factor = torch.rand(N_FEATURES, generator=torch.Generator().manual_seed(2)) + 0.5
    read = SparseAutoencoder.load(written(tmp_path, {"finetuning_scaling_factor": True}, **{name: factor}))
    features = autoencoder().encode(torch.ones(3, WIDTH))
    made = weights()
    assert_near(read.decode(features), (features * factor) @ made["W_dec"] + made["b_dec"])
    assert_near(read.encode(torch.ones(3, WIDTH)), features)


ONES, TWOS = torch.ones(N_FEATURES), 2 * torch.ones(N_FEATURES)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"activation_fn_str": "gelu"}, {}, "with activation_fn 'gelu', which is not supported"),
        ({"architecture": "jumprelu", "activation_fn_str": "topk"}, {}, "'jumprelu' with activation_fn 'topk'"),
        ({"activation_fn_str": "relu", "activation_fn_kwargs": {"slope": 2}}, {}, r"activation_fn_kwargs {'slope': 2}"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "tanh"}}, {}, "'postact_fn'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {}}, {}, "needs k"),
        ({"normalize_activations": True}, {}, "normalize_activations True"),
        ({"normalize_activations": "constant_norm_rescale"}, {}, "normalize_activations 'constant_norm_rescale'"),
        ({"hook_name": "blocks.1.attn.hook_z"}, {}, "reshape_activations 'hook_z'"),
        ({"encoder_gain": 3.0}, {}, r"the setting encoder_gain 3\.0, which is not supported"),
        ({"finetuning_scaling_factor": True}, {}, "finetuning_scaling_factor True and no weights of that name"),
        ({"finetuning_scaling_factor": False}, {"scaling_factor": TWOS}, "finetuning_scaling_factor False and weights"),
        ({}, {"r_mag": ONES}, "weights r_mag, which are not known"),
    ],
)
def test_a_setting_that_is_not_followed_is_refused_by_name(settings, more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder.load(written(tmp_path, settings, **more))


def test_factors_of_one_change_nothing(tmp_path):
    read = SparseAutoencoder.load(written(tmp_path, {"finetuning_scaling_factor": False}, scaling_factor=ONES))
    assert torch.equal(read.weights["W_dec"], weights()["W_dec"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no cfg.json and no sae_weights.safetensors"):
        SparseAutoencoder.load(tmp_path)


# Patching


def hooked(ranker, made, site_module, is_input, pair, feature, direction):
    """The score of one pair with one feature patched, by a hook on the unmodified model."""
    seen = []

    def keep(module, args, output):
        seen.append((args[0] if is_input else output).clone())

    def score(side, hook=None):
        register = site_module.register_forward_pre_hook if is_input else site_module.register_forward_hook
        handle = site_module.register_forward_hook(keep) if hook is None else register(hook)
        inputs = ranker.query_inputs([QUERIES[0]])
        if hook is None:
            seen.clear()
        with torch.no_grad():
            found = float(ranker.forward(ranker.collate([side], inputs, [0])))
        handle.remove()
        return found

    source, target = (pair.perturbed, pair.baseline) if direction == "denoise" else (pair.baseline, pair.perturbed)
    handle_queries = ranker.reads_query
    assert handle_queries, "queries of bi-encoders would be hooked too"
    score(source)
    taken = made.encode(seen[0])[..., feature]

    def change(x):
        features = made.encode(x)
        new = features.clone()
        new[..., feature] = taken
        return x + made.decode(new) - made.decode(features)

    if is_input:
        return score(target, lambda module, args: (change(args[0]), *args[1:]))
    return score(target, lambda module, args, output: change(output))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("site", ["L0.resid_post", "L2.resid_post", "L1.mlp_out", "L1.attn_out", "L0.resid_pre"])
def test_patched_features_are_those_of_hooks(cross_encoder, kind, site, direction):
    made, frame = autoencoder(kind), pairs(2)
    out = PatchFeatures(cross_encoder, made, site, k=5, direction=direction)(frame)
    names = out.attrs["mechir"]["sites"]
    assert all(name.startswith(f"{site}.F") for name in names)
    layer, _, component = site.partition(".")
    block = cross_encoder.anatomy.layers[int(layer[1:])]
    module = {"mlp_out": block.output.dense, "attn_out": block.attention.output.dense}.get(component, block)
    columns = [frame[name].tolist() for name in ("query", "text", "text_perturbed")]
    aligned = cross_encoder.align(*columns, alignments=["fill"] * len(frame))
    for row, pair in enumerate(aligned):
        for place, name in enumerate(names):
            feature = int(name.rpartition("F")[2])
            expected = hooked(cross_encoder, made, module, component == "resid_pre", pair, feature, direction)
            assert out["patch_scores"].iloc[row][place] == pytest.approx(expected, rel=widened(1e-5), abs=widened(1e-5))


class _Signs:
    """An autoencoder that loses nothing: the positive and the negative part of each coordinate."""

    def encode(self, x):
        return torch.cat([x.relu(), (-x).relu()], dim=-1)

    def decode(self, features):
        positive, negative = features.chunk(2, dim=-1)
        return positive - negative


def test_all_features_of_a_lossless_autoencoder_are_the_site(ranker):
    attached = ranker.attach(_Signs(), "L1.resid_post")
    every = [f"L1.resid_post.F{feature}" for feature in range(2 * WIDTH)]
    features = PatchScorer(attached, heads=[every], direction="both")(pairs())
    whole = PatchScorer(ranker, "resid_post", layers=[1], direction="both")(pairs())
    for name in ("patch_scores", "patch_effect", "patch_effect_noise"):
        one, other = np.stack(features[name])[:, 0], np.stack(whole[name])[:, 1]
        if name == "patch_scores":
            assert_near(one, other)
        else:
            assert_near_effects(one, other, whole)


@pytest.mark.bits
def test_the_two_names_of_a_stream_are_one_site(bi_encoder):
    by_name = [
        PatchFeatures(bi_encoder, autoencoder(), site, features=[3, 7])(pairs())["patch_scores"]
        for site in ("L0.resid_post", "L1.resid_pre")
    ]
    np.testing.assert_array_equal(np.stack(by_name[0]), np.stack(by_name[1]))


def test_a_feature_that_does_not_change_has_no_effect(bi_encoder):
    made = weights()
    made["b_enc"][9] = -1e6
    out = PatchFeatures(bi_encoder, SparseAutoencoder(made), "L1.resid_post", features=[9, *range(8)])(pairs())
    effects = np.stack(out["patch_effect"])
    assert (effects[:, 0] == 0).all() and (effects[:, 1:] != 0).any()


def test_the_most_changed_features_are_taken(bi_encoder):
    frame, made = pairs(), autoencoder()
    attached = bi_encoder.attach(made, "L1.resid_post")
    columns = [frame[name].tolist() for name in ("query", "text", "text_perturbed")]
    changes = np.zeros(N_FEATURES)
    for pair in attached.align(*columns, alignments=["fill"] * len(frame)):
        sides = []
        for side in (pair.baseline, pair.perturbed):
            hook = bi_encoder.anatomy.layers[1].register_forward_hook(
                lambda _, args, out, sides=sides: sides.append(out[0])
            )
            with torch.no_grad():
                bi_encoder.encode(bi_encoder.collate([side], {}, []))
            hook.remove()
        changes += (made.encode(sides[1]) - made.encode(sides[0])).abs().sum(0).double().numpy()
    out = PatchFeatures(bi_encoder, made, "L1.resid_post", k=4)(frame)
    expected = [f"L1.resid_post.F{feature}" for feature in np.argsort(-changes)[:4]]
    assert out.attrs["mechir"]["sites"] == expected


def test_estimates_are_gradients_along_the_feature(bi_encoder):
    """An autoencoder that is scaled down, so that the score is near linear in its features."""

    class Small(_Signs):
        def decode(self, features):
            return super().decode(features) * 1e-2

    names = [f"L1.resid_post.F{feature}" for feature in range(8)]
    attached = bi_encoder.attach(Small(), "L1.resid_post")
    double = BiEncoder(build("bert", classifier=False))
    double.model.double()
    attached = double.attach(Small(), "L1.resid_post")
    moved = {}
    for method in ("exact", "attribution"):
        out = PatchScorer(attached, heads=names, method=method)(pairs())
        moved[method] = np.stack(out["patch_scores"]) - out["score_baseline"].to_numpy()[:, None]
    assert np.abs(moved["exact"]).max() > 5e-5
    np.testing.assert_allclose(moved["attribution"], moved["exact"], rtol=0.1, atol=widened(1e-5))


def test_features_are_ranked_as_heads_are_and_single_positions_are_told_apart(cross_encoder):
    heads = AggregateHeads(by=None)(PatchFeatures(cross_encoder, autoencoder(), "L1.mlp_out", k=6)(pairs()))
    assert heads["docno"].str.match(r"L1\.mlp_out\.F\d+").all() and (heads["layer"] == 1).all()
    assert set(heads["component"]) == {"mlp_out.feature"}
    each = PatchFeatures(cross_encoder, autoencoder(), "L1.mlp_out", k=2, positions="each")(pairs())
    assert each["patch_effect"].iloc[0].shape == (2, len(each["tokens"].iloc[0]))


def test_attaching_leaves_the_ranker_as_it_was(bi_encoder):
    attached = bi_encoder.attach(autoencoder(), "L1.mlp_out")
    assert attached != bi_encoder and bi_encoder.about().keys() < attached.about().keys()
    assert "SparseAutoencoder" in attached.about()["autoencoders"]["L1.mlp_out"]
    with pytest.raises(ValueError, match="no autoencoder is attached there"):
        PatchScorer(bi_encoder, heads=["L1.mlp_out.F3"])
    with pytest.raises(ValueError, match="no feature"):
        PatchScorer(attached, heads=["L1.mlp_out.F99"])
    with pytest.raises(ValueError, match="too many features"):
        PatchScorer(attached, "mlp_out.feature")
    with pytest.raises(ValueError, match="no autoencoder is attached to mlp_out of layer 0"):
        PatchScorer(attached, heads=["L0.mlp_out.F3"])


@pytest.mark.parametrize(
    ("given", "site", "error", "message"),
    [
        (object(), "L1.mlp_out", TypeError, "should have encode and decode"),
        (SparseAutoencoder(weights(width=8)), "L1.mlp_out", ValueError, "does not take activations of width 32"),
        (autoencoder(), "L9.mlp_out", ValueError, "cannot have an autoencoder"),
        (autoencoder(), "L0H1", ValueError, "cannot have an autoencoder"),
    ],
)
def test_unusable_autoencoders_are_an_error(bi_encoder, given, site, error, message):
    with pytest.raises(error, match=message):
        PatchFeatures(bi_encoder, given, site)


@pt.testing.transformer_test_class
def test_features_inspection():
    return PatchFeatures(BiEncoder(build("bert", classifier=False)), autoencoder(), "L1.mlp_out", features=[1])
