"""Gates of heads: their gradients, what they learn, and what a report says of them."""

import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from learned_frames import FAMILIES, candidates, judgments, of_the_lab
from small_models import QUERIES, TEXTS, build, masked_lm
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, CrossEncoder, HeadGates, Scale, Splade, known_circuit
from pyterrier_mechir.interventions.candidates import Candidates
from pyterrier_mechir.interventions.gates import Gates, edits_of, role_scores, roles_of
from pyterrier_mechir.interventions.losses import calibrated, mean_loss
from pyterrier_mechir.interventions.pulled_back import pulled_back

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the ranker's scores of the training candidates tell next to nothing"),
]

QUICK = {"steps": 4, "validate_every": 2, "batch_queries": 3}


def fitted(ranker, **options):
    return HeadGates(ranker, **{**QUICK, **options}).fit(candidates(0, 3), judgments(), candidates(3, 5), judgments())


@pytest.fixture(scope="module")
def learned():
    """Gates of a small bi-encoder that have moved."""
    ranker = BiEncoder(build("bert", False), pooling="mean")
    return fitted(ranker, l1=0.0, lr=0.2, steps=8, loss="listwise", pull="removal")


@pytest.mark.bits
def test_gradients_at_gates_are_those_of_finite_differences(family):
    ranker = FAMILIES[family]()
    frame = candidates(0, 3, 4)
    queries, texts = frame["query"].tolist(), frame["text"].tolist()
    groups, gains = list(np.arange(12).reshape(3, 4)), np.tile([2.0, 0.0, 1.0, 0.0], 3)
    rng = np.random.default_rng(0)
    start = rng.uniform(0.6, 1.4, (ranker.n_layers, ranker.n_heads))
    heat = torch.tensor(0.3, dtype=torch.float64)

    def loss_of(gates):
        scores = ranker.edited(edits_of(gates)).score(queries, texts).astype(np.float64)
        return float(mean_loss("listwise", torch.from_numpy(scores), gains, groups, heat))

    learner = Gates(ranker, start, 2.0, 0.0, "retention")
    scores = torch.from_numpy(learner.ranker.score(queries, texts).astype(np.float64)).requires_grad_()
    mean_loss("listwise", scores, gains, groups, heat).backward()
    found = learner.gradients(pulled_back(learner.ranker, learner.leaves, queries, texts, scores.grad, 5))[0].numpy()
    size, wanted = 1e-3, np.empty_like(found)
    for place in np.ndindex(*start.shape):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * size
            ends.append(loss_of(moved))
        wanted[place] = (ends[0] - ends[1]) / (2 * size)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", list(FAMILIES))


@pytest.mark.bits
def test_gates_of_one_change_no_score(family):
    ranker = FAMILIES[family]()
    frame = candidates(0, 2)
    gated = Gates(ranker, np.ones((ranker.n_layers, ranker.n_heads)), 2.0, 0.5, "removal").ranker
    pairs = frame["query"].tolist(), frame["text"].tolist()
    assert_near(gated.score(*pairs), ranker.score(*pairs), 1e-6)
    assert edits_of(np.ones((2, 3))) == ()


@pytest.mark.bits
def test_fitting_leaves_the_ranker_and_its_weights_alone(family):
    ranker = FAMILIES[family]()
    before, flags = ranker.about(fingerprint=True), [p.requires_grad for p in ranker.model.parameters()]
    scores = ranker.score(QUERIES, TEXTS)
    gates = fitted(ranker, loss="pairwise", l1=0.0, steps=2, pull="removal")
    assert ranker.about(fingerprint=True) == before
    assert [p.requires_grad for p in ranker.model.parameters()] == flags
    assert all(p.grad is None for p in ranker.model.parameters())
    np.testing.assert_array_equal(ranker.score(QUERIES, TEXTS), scores)
    assert len(gates.gates) == ranker.n_layers * ranker.n_heads


def test_what_was_learned_ranks_as_the_ranker_under_its_edits(learned):
    frame = candidates(5, 7)
    out = learned(frame)
    assert all(isinstance(edit, Scale) for edit in learned.edits)
    assert len(learned.edits) == 12
    edited = learned.ranker.edited(learned.edits).scorer()(frame)
    pd.testing.assert_frame_equal(out, edited)
    assert learned.learned == learned.ranker.edited(learned.edits)
    factors = {edit.site: edit.factor for edit in learned.edits}
    assert learned.gates.set_index("docno")["gate"].to_dict() == factors


def test_gates_stay_in_their_bounds_and_the_loss_falls(learned):
    assert learned.gates["gate"].between(0, 2).all()
    history = learned.history.dropna()
    assert learned.history["step"].tolist() == list(range(9))
    assert learned.history["validation_loss"].notna().sum() == 5
    best = history.loc[history["validation_loss"].idxmin()]
    assert best["validation_loss"] < learned.history["validation_loss"].iloc[0]
    assert learned.temperature == best["temperature"]


def test_the_same_seed_learns_the_same_and_another_stage_is_not_equal():
    ranker = CrossEncoder(build("bert", True))
    one, same = (fitted(ranker, l1=0.0, pull="removal") for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    np.testing.assert_array_equal(one.gates["gate"], same.gates["gate"])
    assert one != HeadGates(ranker, **QUICK, l1=0.0, pull="removal")
    assert "HeadGates" in repr(one)


def test_distilling_without_a_pull_keeps_gates_at_one():
    gates = HeadGates(CrossEncoder(build("bert", True)), loss="distill", l1=0.0, **QUICK)
    gates.fit(candidates(0, 3), None, candidates(3, 5), None)
    np.testing.assert_array_equal(gates.gates["gate"], 1.0)
    assert gates.edits == ()
    assert gates.learned is gates.ranker
    assert gates.history["validation"].isna().all()


@pytest.fixture(scope="module")
def circuit():
    """The roles of a ranker's heads as they were built, and gates with roles that were learned without judgments."""
    ranker, truth = known_circuit("query")
    frame, qrels = of_the_lab()
    topics = frame["qid"].unique()
    parts = [frame[frame["qid"].isin(topics[start : start + 8])] for start in (0, 8)]
    options = {"steps": 15, "lr": 0.15, "validate_every": 5, "batch_size": 64}
    gates = HeadGates(ranker, loss="distill", roles=True, pull="removal", **options).fit(parts[0], None, parts[1], None)
    return truth, gates, frame[frame["qid"].isin(topics[16:28])], qrels


def test_gates_that_are_pulled_shut_keep_the_circuit(circuit):
    truth, gates, _, _ = circuit
    removal = gates.gates.set_index("docno")["removal"]
    needed = truth["role"].isin(["matching", "gathering"]).to_numpy()
    assert removal[needed].min() > 0.7
    assert removal[~needed].max() < 0.1


def test_roles_come_out_as_built(circuit):
    truth, gates, _, _ = circuit
    needed = truth["role"].isin(["matching", "gathering"])
    wanted = np.where(needed, "facilitating", "irrelevant")
    assert gates.gates["role"].tolist() == wanted.tolist()
    assert set(gates.history["stage"]) == {"none", "retention", "removal"}
    assert gates.gates["gate"].tolist() == gates.gates["removal"].tolist()


def test_a_circuit_alone_ranks_as_the_whole(circuit):
    _, gates, held_out, qrels = circuit
    report = gates.report(held_out, qrels, n_permuted=20)
    assert abs(report.learned["score"]) < 0.03
    assert not report.improves
    assert "none to shuffle" in str(report)


def test_the_table_of_roles():
    retention, removal = np.array([1.0, 0.0, 1.0, 0.9]), np.array([1.0, 0.0, 0.0, 0.2])
    assert roles_of(retention, removal).tolist() == ["facilitating", "interfering", "irrelevant", "irrelevant"]
    scores = role_scores(retention, removal)
    np.testing.assert_allclose(scores["facilitating"], removal)
    np.testing.assert_allclose(scores["interfering"], [0, 1, 0, 0.1])
    np.testing.assert_allclose(scores["irrelevant"], [0, 0, 1, 0.72])


PLANTED = {"loss": "pairwise", "l1": 0.3, "steps": 15, "lr": 0.12, "roles": True, "batch_docs": 12, "batch_size": 96}


@pytest.fixture(scope="module")
def planted():
    """A ranker with a head that writes noise, gates with roles, and held-out candidates with judgments.

    What is judged relevant is what the ranker ranks first without the noise.
    """
    ranker, _ = known_circuit("query")
    frame, _ = of_the_lab()
    topics = frame["qid"].unique()
    scores = frame.assign(label=ranker.score(frame["query"].tolist(), frame["text"].tolist()))
    qrels = scores.assign(label=2 * (scores.groupby("qid")["label"].rank(pct=True) > 0.7).astype(int))
    model = deepcopy(ranker.model)
    weight = model.get_submodule("bert.encoder.layer.0.attention.output.dense").weight
    noise = torch.randn(96, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight[:, 24:48] = noise * 10 * weight.norm() / noise.norm()
    parts = [frame[frame["qid"].isin(topics[start:stop])] for start, stop in ((0, 12), (12, 20), (20, 44))]
    gates = HeadGates(CrossEncoder((model, ranker.tokenizer)), **PLANTED)
    return gates.fit(parts[0], qrels, parts[1], qrels), parts[2], qrels


def test_a_planted_head_interferes(planted, circuit):
    gates, _, _ = planted
    wanted = circuit[1].gates["role"].mask(gates.gates["docno"] == "L0H1", "interfering")
    assert gates.gates["role"].tolist() == wanted.tolist()
    assert gates.gates["retention"].idxmin() == 1


def test_closing_a_planted_head_is_an_improvement_beyond_chance(planted):
    gates, held_out, qrels = planted
    report = gates.report(held_out, qrels, n_shuffled=0)
    assert report.improves
    assert report.n_beaten >= 19
    assert report.learned["ci_low"] > 0
    assert "An improvement." in str(report)


def test_permuted_gates_are_the_same_numbers_and_the_same_for_a_seed(learned):
    permuted = learned.permuted(20)
    own = learned.gates["gate"].to_numpy()
    for gates in permuted:
        np.testing.assert_array_equal(np.sort(gates.ravel()), np.sort(own))
    assert len({gates.tobytes() for gates in permuted}) == 20
    again = learned.permuted(20)
    np.testing.assert_array_equal(permuted, again)
    np.testing.assert_array_equal(learned.permuted(3), again[:3])


def test_a_report_measures_what_it_says(learned):
    held_out, qrels = candidates(5, 7), judgments()
    report = learned.report(held_out, qrels, n_permuted=3, n_seeds=1)
    rows = report.rows.set_index("name")
    assert rows["kind"].value_counts().to_dict() == {
        "control": 3, "unchanged": 1, "learned": 1, "shuffled": 1, "seed": 1, "mix": 1,
    }  # fmt: skip
    pipelines = [learned.ranker.scorer(), learned, learned.ranker.edited(edits_of(learned.permuted(2)[1])).scorer()]
    measured = pt.Experiment(
        [p(held_out) for p in pipelines], held_out[["qid", "query"]].drop_duplicates(), qrels, ["ndcg_cut_10"]
    )
    found = rows.loc[["unchanged", "learned", "permuted 2"], "value"]
    np.testing.assert_allclose(found, measured["ndcg_cut_10"], atol=1e-6)
    assert rows.loc["learned", "score"] == pytest.approx(found["learned"] - found["unchanged"])
    assert np.isfinite(report.agreement)
    assert "nDCG@10 of 2 held-out queries" in report._repr_html_()
    assert not report.improves


def test_a_report_without_a_first_stage_has_no_mix(learned):
    rows = learned.report(candidates(5, 7).drop(columns="score"), judgments(), n_permuted=0, n_shuffled=0).rows
    assert set(rows["kind"]) == {"unchanged", "learned"}


def test_a_temperature_is_the_best_of_the_scores():
    rng = np.random.default_rng(0)
    groups, gains = list(np.arange(60).reshape(6, 10)), np.tile([1.0] * 2 + [0.0] * 8, 6)
    scores = rng.normal(size=60) + 2 * gains
    temperature, worth = calibrated("listwise", scores, gains, groups, scores.std())
    heats = np.log(temperature) + np.array([-0.05, 0.0, 0.05])
    at = [float(mean_loss("listwise", torch.from_numpy(scores), gains, groups, torch.tensor(h))) for h in heats]
    assert at[1] < min(at[0], at[2])
    assert worth == pytest.approx(np.log(10) - at[1])
    ten, _ = calibrated("listwise", 10 * scores, gains, groups, 10 * scores.std())
    assert ten == pytest.approx(10 * temperature, rel=1e-3)


def test_a_pipeline_is_fitted():
    ranker = CrossEncoder(build("bert", True))
    every = candidates(0, 5)
    first_stage = pt.Transformer.from_df(every)
    pipeline = first_stage >> HeadGates(ranker, **QUICK)
    topics = every[["qid", "query"]].drop_duplicates()
    pipeline.fit(topics[:3], judgments(), topics[3:], judgments())
    assert len(pipeline(topics[:1])) == len(TEXTS)
    with pytest.raises(ValueError, match="keeps the best step by validation queries"):
        pipeline.fit(topics[:3], judgments())


def test_queries_that_teach_nothing_are_counted_and_left_out():
    ranker = CrossEncoder(build("bert", True))
    known = judgments()
    some = known[known["qid"] != "q1"]
    with pytest.warns(UserWarning, match="1 of 3 training queries have no judgments"):
        gates = HeadGates(ranker, **QUICK).fit(candidates(0, 3), some, candidates(3, 5), known)
    assert len(gates._data[0].groups) == 2
    with pytest.raises(ValueError, match="all 3 training queries have no judgments"):
        HeadGates(ranker).fit(candidates(0, 3), known[known["qid"] > "q3"], candidates(3, 5), known)
    flat = known.assign(label=np.where(known["qid"] == "q0", 0, known["label"]))
    with pytest.warns(UserWarning, match="1 of 3 training queries have no candidate that is judged better"):
        HeadGates(ranker, **QUICK).fit(candidates(0, 3), flat, candidates(3, 5), known)
    with pytest.raises(ValueError, match="nothing to learn"):
        HeadGates(ranker).fit(candidates(0, 3), known.assign(label=0), candidates(3, 5), known)


def test_scores_that_tell_nothing_of_the_judgments_are_said_to():
    ranker = CrossEncoder(build("bert", True))
    frame = candidates(0, 3)
    worst = frame.assign(label=-ranker.score(frame["query"].tolist(), frame["text"].tolist()))
    worst["label"] = worst.groupby("qid")["label"].rank().astype(int)
    with pytest.warns(UserWarning, match="tell next to nothing of their judgments"):
        HeadGates(ranker, **QUICK).fit(frame, worst, candidates(3, 5), judgments())


def test_queries_must_differ(learned):
    gates = HeadGates(learned.ranker, **QUICK)
    with pytest.raises(ValueError, match="1 validation queries are training queries too, such as qid 'q2'"):
        gates.fit(candidates(0, 3), judgments(), candidates(2, 5), judgments())
    renamed = candidates(0, 1).assign(qid="other")
    with pytest.raises(ValueError, match="such as query"):
        gates.fit(candidates(0, 3), judgments(), renamed, judgments().assign(qid="other"))
    with pytest.raises(ValueError, match="held-out queries were learned or validated on, such as qid 'q4'"):
        learned.report(candidates(4, 7), judgments())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"pull": "up"}, "unknown pull 'up'"),
        ({"l1": -1}, "l1 is -1"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"max_gate": 0.5}, "gates begin at 1"),
        ({"batch_docs": 1}, "batch_docs is 1"),
    ],
)
def test_bad_options(cross_encoder, options, message):
    with pytest.raises(ValueError, match=message):
        HeadGates(cross_encoder, **options)


def test_two_encoders_of_different_shapes_have_no_gates_in_common():
    ranker = Splade(masked_lm("bert"), query_model=masked_lm("bert", num_hidden_layers=2))
    with pytest.raises(ValueError, match="2 layers of 4 heads, and one of documents with 3 of 4"):
        fitted(ranker)


def test_the_pull_is_stronger_where_gates_are_kept(cross_encoder):
    given = [({}, 3.0), ({"pull": "removal"}, 0.5), ({"roles": True}, 0.5), ({"l1": 0.2, "pull": "removal"}, 0.2)]
    assert [HeadGates(cross_encoder, **options)._strength for options, _ in given] == [wanted for _, wanted in given]


def test_before_fit_nothing_can_be_asked(cross_encoder):
    gates = HeadGates(cross_encoder)
    for ask in (lambda: gates(candidates(0, 1)), lambda: gates.gates, lambda: gates.edits, lambda: gates.history,
                lambda: gates.temperature, lambda: gates.report(candidates(0, 1), judgments())):  # fmt: skip
        with pytest.raises(ValueError, match=r"has learned nothing yet; call fit\(\) first"):
            ask()
    with pytest.raises(ValueError, match="needs judgments"):
        gates.fit(candidates(0, 1), None, candidates(1, 2), None)


def test_a_temperature_that_diverges_is_an_error(cross_encoder):
    with pytest.raises(ValueError, match="diverged: at step"):
        fitted(cross_encoder, lr=50.0, steps=6)


def test_judgments_are_shuffled_within_candidates():
    found = Candidates.of(candidates(0, 3), judgments(), "text", "training")
    shuffled = found.shuffled(1)
    for rows in found.groups:
        assert sorted(shuffled.gains[rows]) == sorted(found.gains[rows])
    assert not np.array_equal(shuffled.gains, found.gains)
    np.testing.assert_array_equal(shuffled.gains, found.shuffled(1).gains)
    assert found.ndcg(found.gains).tolist() == [1.0, 1.0, 1.0]
    assert shuffled.ndcg(shuffled.gains).tolist() == [1.0, 1.0, 1.0]
    assert found.ndcg(-found.gains).max() < 1


def test_batches_take_relevant_candidates_and_others():
    found, rng = Candidates.of(candidates(0, 2), judgments(), "text", "training"), np.random.default_rng(0)
    rows = found.drawn(rng, np.array([0, 1]), 4)
    assert len(rows) == 8
    assert [int((found.gains[rows[rows // 7 == query]] > 0).sum()) for query in (0, 1)] == [2, 2]
    assert found.drawn(rng, np.array([1]), None).tolist() == list(range(7, 14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(found.that_teach().groups) == 2
