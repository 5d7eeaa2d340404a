"""The output weights of chosen sites: what is tuned, what stays, and what comes out."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
import transformers
from learned_frames import FAMILIES, candidates, favourite, judgments
from small_models import QUERIES, TEXTS, build, build_decoder, masked_lm
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, CrossEncoder, GenerativeReranker, Scale, SiteTuning, Splade
from pyterrier_mechir.interventions.losses import mean_loss
from pyterrier_mechir.interventions.pulled_back import pulled_back
from pyterrier_mechir.interventions.tuning import Tuning, random_sites

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the ranker's scores of the training candidates tell next to nothing"),
]

QUICK = {"steps": 4, "validate_every": 2, "batch_queries": 3}
SITES = ["L0H1", "L1.mlp_out", "L0H3"]


def fitted(ranker, sites=SITES, qrels=None, **options):
    tuning = SiteTuning(ranker, sites, **{**QUICK, **options})
    known = judgments() if qrels is None else qrels
    return tuning.fit(candidates(0, 3), known, candidates(3, 5), known)


def moved(ranker, sites=SITES):
    """Tuned to rank a text first that it ranks last."""
    frame = candidates(0, 5)
    last = frame.assign(score=ranker.score(frame["query"].tolist(), frame["text"].tolist()))
    docno = last.groupby("docno")["score"].mean().idxmin()
    made = fitted(ranker, sites, favourite(docno), loss="pairwise", lr=0.02, steps=8)
    assert made.history["validation"].max() > made.history["validation"].iloc[0]
    return made


def changed(before, after):
    """The names of weights that differ, and the columns in which they do."""
    found = {}
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        if not torch.equal(old, new):
            found[name] = torch.nonzero((old != new).any(0))[:, 0].tolist()
    return found


@pytest.fixture(scope="module")
def tuned():
    return moved(BiEncoder(build("bert", False), pooling="mean"))


def test_only_the_columns_of_the_sites_change(tuned):
    found = changed(tuned.ranker.model, tuned.learned.model)
    heads = "encoder.layer.0.attention.output.dense.weight"
    assert found == {heads: [*range(8, 16), *range(24, 32)], "encoder.layer.1.output.dense.weight": [*range(48)]}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.bits
def test_the_ranker_and_its_weights_are_left_alone(family):
    ranker = FAMILIES[family]()
    flags = [p.requires_grad for p in ranker.model.parameters()]
    before, scores = ranker.about(fingerprint=True), ranker.score(QUERIES, TEXTS)
    tuning = fitted(ranker, loss="pairwise", lr=0.01)
    assert ranker.about(fingerprint=True) == before
    assert [p.requires_grad for p in ranker.model.parameters()] == flags
    assert all(p.grad is None for p in ranker.model.parameters())
    np.testing.assert_array_equal(ranker.score(QUERIES, TEXTS), scores)
    assert not any(p.requires_grad for p in tuning.learned.model.parameters())


@pytest.mark.bits
@pytest.mark.parametrize("family", list(FAMILIES))
def test_gradients_at_weights_are_those_of_finite_differences(family):
    ranker = FAMILIES[family]()
    frame = candidates(0, 3, 4)
    queries, texts = frame["query"].tolist(), frame["text"].tolist()
    groups, gains = list(np.arange(12).reshape(3, 4)), np.tile([2.0, 0.0, 1.0, 0.0], 3)
    heat = torch.tensor(0.3, dtype=torch.float64)
    learner = Tuning(ranker, SITES, 0.0)

    def loss_of():
        scores = torch.from_numpy(learner.ranker.score(queries, texts).astype(np.float64)).requires_grad_()
        return scores, mean_loss("listwise", scores, gains, groups, heat)

    scores, loss = loss_of()
    loss.backward()
    found = learner.gradients(pulled_back(learner.ranker, learner.leaves, queries, texts, scores.grad, 5))
    for number, gradient in zip(learner.numbers, found, strict=True):
        assert number.shape == gradient.shape
        direction = (
            gradient / gradient.norm()
            + 0.3 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)) / gradient.numel() ** 0.5
        )
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                number.copy_(sign * 3e-4 * direction)
            learner.put()
            ends.append(float(loss_of()[1].detach()))
        with torch.no_grad():
            number.zero_()
        learner.put()
        wanted = float((direction * gradient).sum())
        assert wanted > 1e-3
        assert (ends[0] - ends[1]) / 6e-4 == pytest.approx(wanted, rel=0.03)


def test_what_comes_out_is_an_ordinary_checkpoint(tuned, tmp_path):
    tuned.learned.model.save_pretrained(tmp_path)
    tuned.learned.tokenizer.save_pretrained(tmp_path)
    loaded = BiEncoder(tmp_path, pooling="mean")
    assert_near(loaded.score(QUERIES, TEXTS), tuned.learned.score(QUERIES, TEXTS), 1e-6)
    assert type(transformers.AutoModel.from_pretrained(tmp_path)) is type(tuned.ranker.model)
    assert not np.allclose(loaded.score(QUERIES, TEXTS), tuned.ranker.score(QUERIES, TEXTS))


def test_what_was_tuned_ranks_and_is_another_ranker(tuned):
    frame = candidates(5, 7)
    pd.testing.assert_frame_equal(tuned(frame), tuned.learned.scorer()(frame))
    assert tuned.learned != tuned.ranker
    assert tuned.learned.about(fingerprint=True)["weights"] != tuned.ranker.about(fingerprint=True)["weights"]
    assert tuned.learned.name != tuned.ranker.name


def test_both_towers_of_a_bi_encoder_are_tuned(tuned):
    before, after = (each.query_inputs(QUERIES[:2])["query_vector"] for each in (tuned.ranker, tuned.learned))
    assert not torch.allclose(before, after)
    model = tuned.learned.model
    alone = BiEncoder((model, tuned.ranker.tokenizer), pooling="mean")
    assert_near(alone.score(QUERIES, TEXTS), tuned.learned.score(QUERIES, TEXTS), 1e-6)


def test_a_tuned_ranker_keeps_the_edits_of_its_base():
    base = BiEncoder(build("bert", False)).edited(Scale("L2H0", 0.5), side="query")
    tuning = moved(base, ["L1H1"])
    assert tuning.learned.edits == base.edits
    plain = BiEncoder((tuning.learned.model, base.tokenizer))
    wanted = plain.edited(Scale("L2H0", 0.5), side="query").score(QUERIES, TEXTS)
    assert_near(tuning.learned.score(QUERIES, TEXTS), wanted, 1e-6)


def test_neurons_and_grouped_heads_are_tuned():
    ranker = GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM"))
    tuning = moved(ranker, ["L1N7", "L0H2", "L1.attn_out"])
    found = changed(ranker.model, tuning.learned.model)
    assert found["model.layers.1.mlp.down_proj.weight"] == [7]
    assert found["model.layers.0.self_attn.o_proj.weight"] == list(range(24, 36))
    assert found["model.layers.1.self_attn.o_proj.weight"] == list(range(48))
    assert len(found) == 3


def test_tuning_undoes_damage():
    """What was judged is the ranking before a head's output weights were turned round."""
    model, tokenizer = build("bert", True)
    whole = CrossEncoder((model, tokenizer))
    frame = candidates(0, 7)
    scores = frame.assign(label=whole.score(frame["query"].tolist(), frame["text"].tolist()))
    qrels = scores.assign(label=(scores.groupby("qid")["label"].rank() - 1).astype(int))
    damaged = deepcopy(model)
    with torch.no_grad():
        damaged.get_submodule("bert.encoder.layer.2.attention.output.dense").weight[:, :8] *= -3
    ranker = CrossEncoder((damaged, tokenizer))
    tuning = SiteTuning(ranker, ["L2H0"], steps=30, lr=0.02)
    tuning.fit(candidates(0, 4), qrels, candidates(4, 7), qrels)
    history = tuning.history.dropna(subset=["validation"])
    assert history["validation"].max() > history["validation"].iloc[0] + 0.02
    best = history.loc[history["validation"].idxmax()]
    assert best["step"] > 0


def test_pulling_back_keeps_weights_nearer():
    ranker = CrossEncoder(build("bert", True))
    free, held = (fitted(ranker, loss="pairwise", lr=0.01, steps=8, l2=l2)._changes for l2 in (0.0, 1e4))
    assert np.abs(held).sum() < np.abs(free).sum()


def test_random_sites_are_other_sets_of_the_same_layers():
    ranker = CrossEncoder(build("bert", True))
    sites = ["L0H1", "L1H0", "L1H2", "L1.mlp_out"]
    drawn = random_sites(ranker, sites, 40, np.random.default_rng(0))
    sets = {frozenset(found) for found in drawn}
    assert len(sets) == 40 and frozenset(sites) not in sets
    for found in sets:
        assert sorted(name[:3] for name in found if "H" in name) == ["L0H", "L1H", "L1H"]
        assert sum(name.endswith(".mlp_out") for name in found) == 1
    assert len({name for found in sets for name in found}) == 4 + 4 + 3


def test_no_set_of_random_sites_comes_twice_and_where_there_is_none_it_is_said():
    ranker, rng = CrossEncoder(build("bert", True)), np.random.default_rng(0)
    assert sorted(random_sites(ranker, ["L1H1"], 20, rng)) == [("L1H0",), ("L1H2",), ("L1H3",)]
    with pytest.raises(ValueError, match="no other sites like L1H1, L1H0"):
        random_sites(ranker, [f"L1H{head}" for head in (1, 0, 2, 3)], 20, rng)


def test_a_report_tunes_random_sites_in_the_same_way(tuned):
    report = tuned.report(candidates(5, 7), judgments(), n_random=2, n_seeds=1)
    assert report.rows["kind"].tolist() == [
        "unchanged", "learned", "control", "control", "shuffled", "seed", "mix",
    ]  # fmt: skip
    rng = np.random.default_rng([0, 1])
    first = SiteTuning(**{**tuned_options(tuned), "sites": random_sites(tuned.ranker, SITES, 2, rng)[0]})
    first.fit(candidates(0, 3), tuned._data[0].qrels, candidates(3, 5), tuned._data[1].qrels)
    frame = candidates(5, 7)
    measured = pt.Experiment([first(frame)], frame[["qid", "query"]].drop_duplicates(), judgments(), ["ndcg_cut_10"])
    assert report.rows["value"].iloc[2] == pytest.approx(measured["ndcg_cut_10"].iloc[0], abs=1e-6)
    assert not report.improves
    assert "random sites" in str(report)


def tuned_options(stage):
    return {a.name: a.value for a in pt.inspect.transformer_attributes(stage)}


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([], "no sites to tune"),
        (["L9H0"], "L9H0|layer 9|9"),
        (["L0H1", "L0H1"], "L0H1 and L0H1 are of the same weights"),
        (["L0H1", "L0.attn_out"], "L0H1 and L0.attn_out are of the same weights"),
        (["L0.resid_post"], "has no output weights"),
        (["L0H1.q"], "has no output weights"),
    ],
)
def test_bad_sites(cross_encoder, sites, message):
    with pytest.raises(ValueError, match=message):
        SiteTuning(cross_encoder, sites)


def test_weights_of_few_bits_are_not_tuned():
    with pytest.raises(ValueError, match="are not learned; give a ranker of plain linear maps in float32"):
        SiteTuning(CrossEncoder(build("bert", True), dtype="bfloat16"), ["L0H1"])


def test_before_fit_there_is_nothing(cross_encoder):
    tuning = SiteTuning(cross_encoder, "L0H1")
    assert tuning.sites == ("L0H1",)
    with pytest.raises(ValueError, match="has learned nothing yet"):
        tuning(candidates(0, 1))
    with pytest.raises(ValueError, match="unknown loss"):
        SiteTuning(cross_encoder, "L0H1", loss="mse")


def test_training_that_diverges_is_an_error(cross_encoder):
    with pytest.raises(ValueError, match=r"SiteTuning diverged: at step .*[Gg]ive a smaller lr"):
        fitted(cross_encoder, lr=1e30, steps=6)


@pytest.mark.bits
def test_a_splade_of_two_models_has_its_documents_model_tuned():
    ranker = Splade(masked_lm("bert"), query_model=masked_lm("bert"))
    tuning = moved(ranker, ["L2H1"])
    assert changed(ranker.model, tuning.learned.model)
    queries = [each.query_inputs(QUERIES[:2])["query_weights"] for each in (ranker, tuning.learned)]
    assert torch.equal(*queries)
