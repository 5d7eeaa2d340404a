"""Steering: what is added to activations, where, and what comes of it."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from small_models import QUERIES, TEXTS, build
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder, PerturbDocs, Steer, steering_vectors
from pyterrier_mechir.perturb import TFC1, Identity

pytestmark = pytest.mark.usefixtures("one_thread")


def retrieved(n=5):
    rows = [("q", QUERIES[0], f"d{i}", text, 1.0) for i, text in enumerate(TEXTS[:n])]
    return pt.model.add_ranks(pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]))


def hooked(ranker, module, change, is_input=False):
    """Scores of the retrieved with a hook on the unmodified model, one document at a time; queries without it."""

    def before(module, args):
        return (change(args[0]), *args[1:])

    def after(module, args, output):
        return change(output)

    scores, frame = [], retrieved()
    for query, text in zip(frame["query"], frame["text"], strict=True):
        if not ranker.reads_query:
            query_vector = ranker.query_inputs([query])["query_vector"]
        hook = module.register_forward_pre_hook(before) if is_input else module.register_forward_hook(after)
        try:
            if ranker.reads_query:
                scores.append(ranker.score([query], [text])[0])
            else:
                with torch.no_grad():
                    part = next(ranker.parts([query], [text]))
                    hook.remove()
                    batch = part.batch
                    hook = module.register_forward_pre_hook(before) if is_input else module.register_forward_hook(after)
                    scores.append(float((ranker.encode(batch) * query_vector).sum()))
        finally:
            hook.remove()
    return np.array(scores, np.float32)


@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_a_vector_is_added_to_the_stream_of_documents(architecture, kind, alpha):
    ranker = (
        BiEncoder(build(architecture, False), pooling="last")
        if kind == "bi"
        else CrossEncoder(build(architecture, True))
    )
    vector = torch.linspace(-1, 1, 32)
    out = Steer(ranker, {"L0.resid_post": vector}, alpha)(retrieved())
    layer = ranker.anatomy.layers[1]
    expected = hooked(ranker, layer, lambda value: value + alpha * vector, is_input=True)
    np.testing.assert_allclose(out["score"], expected, rtol=widened(1e-5), atol=widened(1e-5))
    assert not np.allclose(out["score"], ranker.scorer()(retrieved())["score"])


def test_a_head_is_steered_alone(ranker):
    vector = np.arange(8) / 8
    out = Steer(ranker, {"L1H2": vector}, 2.0)(retrieved())

    def change(z):
        changed = z.clone()
        changed[..., 16:24] += 2 * torch.from_numpy(vector).float()
        return changed

    expected = hooked(ranker, ranker.anatomy.out_proj(1), change, is_input=True)
    np.testing.assert_allclose(out["score"], expected, rtol=widened(1e-5), atol=widened(1e-5))


def test_alpha_of_nought_changes_nothing_and_ranks_follow_the_score(ranker):
    plain = ranker.scorer()(retrieved())
    pd.testing.assert_frame_equal(Steer(ranker, {"L1.mlp_out": np.ones(32)}, 0.0)(retrieved()), plain)
    steered = Steer(ranker, {"L1.mlp_out": np.linspace(-2, 2, 32)})(retrieved())
    assert steered["rank"].tolist() == (-steered["score"]).rank().sub(1).astype(int).tolist()
    np.testing.assert_allclose(ranker.score([QUERIES[0]], TEXTS[:1]), plain["score"].iloc[:1], rtol=widened(1e-5))


def test_several_sites_are_steered_at_once(ranker):
    both = {"L0.attn_out": np.ones(32), "L1.mlp_out": np.linspace(-1, 1, 32)}
    scores = [Steer(ranker, vectors)(retrieved())["score"].tolist() for vectors in (both, {"L0.attn_out": np.ones(32)})]
    assert scores[0] != scores[1]


@pytest.mark.parametrize("sites", [["L1.resid_post"], ["L1H2", "L0.mlp_out", "L2.resid_pre"]])
def test_steering_vectors_are_mean_differences(ranker, sites):
    frame = PerturbDocs(TFC1())(retrieved())
    vectors = steering_vectors(frame, ranker, sites)
    found, n = {name: np.zeros(len(vector)) for name, vector in vectors.items()}, 0
    pairs = ranker.align(frame["query"].tolist(), frame["text"].tolist(), frame["text_perturbed"].tolist(),
                         alignments=["fill"] * len(frame))  # fmt: skip
    ports = {
        "L1.resid_post": (ranker.anatomy.layers[1], False, slice(None)),
        "L2.resid_pre": (ranker.anatomy.layers[1], False, slice(None)),
        "L1H2": (ranker.anatomy.out_proj(1), True, slice(16, 24)),
        "L0.mlp_out": (ranker.anatomy.layers[0].output.dense, False, slice(None)),
    }
    for pair in pairs:
        read = {name: [] for name in sites}
        for side in (pair.baseline, pair.perturbed):
            hooks = []
            for name in sites:
                module, is_input, part = ports[name]

                def keep(module, args, output, name=name, is_input=is_input, part=part, read=read):
                    read[name].append((args[0] if is_input else output)[0, :, part].double().numpy())

                hooks.append(module.register_forward_hook(keep))
            with torch.no_grad():
                ranker.encode(ranker.collate([side], {}, []))
            for hook in hooks:
                hook.remove()
        n += len(pair.classes)
        for name, (baseline, perturbed) in read.items():
            found[name] += (perturbed - baseline).sum(axis=0)
    for name, vector in vectors.items():
        np.testing.assert_allclose(vector, found[name] / n, atol=widened(1e-5))


def test_a_perturbation_that_does_nothing_gives_no_vectors(ranker):
    with pytest.raises(ValueError, match="none of the pairs can be aligned"):
        steering_vectors(PerturbDocs(Identity())(retrieved()), ranker, ["L0.resid_post"])


def test_queries_may_be_what_varies(bi_encoder):
    from pyterrier_mechir import PerturbQueries
    from pyterrier_mechir.perturb import RemoveTerm

    frame = PerturbQueries(RemoveTerm())(retrieved())
    vectors = steering_vectors(frame, bi_encoder, ["L1.resid_post"])
    assert np.abs(vectors["L1.resid_post"]).max() > 0


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "no vectors to steer by"),
        ({"L9.resid_post": np.ones(32)}, "no layer 9"),
        ({"L0H9": np.ones(8)}, "no head"),
        ({"L0.resid_post": np.ones(8)}, r"shape \(8,\); it should be \(32,\)"),
        ({"L0H1": np.ones(32)}, r"shape \(32,\); it should be \(8,\)"),
        ({"L0H1.pattern": np.ones(32)}, "no site to edit"),
        ({"somewhere": np.ones(32)}, "names no site"),
    ],
)
def test_unusable_vectors_are_an_error(bi_encoder, vectors, message):
    with pytest.raises(ValueError, match=message):
        Steer(bi_encoder, vectors)


def test_equal_steering_is_equal(bi_encoder):
    one, same, other = (Steer(bi_encoder, {"L0.resid_post": np.ones(32) * size}) for size in (1, 1, 2))
    assert one == same and hash(one) == hash(same) and one != other
    assert "'L0.resid_post': [32]" in repr(one)


@pt.testing.transformer_test_class
def test_steer_inspection():
    return Steer(BiEncoder(build("bert", classifier=False)), {"L0.resid_post": np.ones(32)})
