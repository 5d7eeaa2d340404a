"""The rankers whose circuit is known: what ships with the package is what it is said to be, and can be made again."""

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import AP, P, nDCG

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    CrossEncoder,
    PatchScorer,
    PerturbDocs,
    head_agreement,
    known_circuit,
)
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS = ("query", "document")

SCRIPTS = Path(__file__).parents[2] / "examples" / "known_circuit"

SHIPPED = Path(sys.modules[CrossEncoder.__module__].__file__).parents[1] / "collections" / "known"

known = cache(known_circuit)


@cache
def pairs():
    """A relevant passage of each of 12 queries, with a query term appended."""
    lab = pt.get_dataset("mechir:lab")
    relevant = lab.get_qrels().query("label > 0").drop_duplicates("qid").head(12)
    frame = lab.text_loader()(relevant[["qid", "docno"]].merge(lab.get_topics(), on="qid"))
    return PerturbDocs(TFC1())(frame)


@cache
def patched(direction, way, method="exact"):
    return PatchScorer(known(direction).ranker, direction=way, method=method)(pairs())


def effects(frame):
    return AggregateHeads(by=None, n_boot=0)(frame).set_index("docno")["score"]


def roles(direction):
    return known(direction).heads.set_index("docno")["role"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_model_ships_with_the_package_and_is_small(direction, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    ranker, heads = known_circuit(direction)
    assert type(ranker) is CrossEncoder and ranker.short_name == f"known-circuit-{direction}"
    assert list(heads["docno"]) == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    n_gathering = {"query": 2, "document": 1}[direction]
    assert heads["role"].value_counts()[["matching", "gathering", "decoy"]].tolist() == [1, n_gathering, 1]
    assert set(heads["qid"]) == {"all"} and heads.notna().all(axis=None)
    assert heads.attrs["facts"]["direction"] == direction and heads.attrs["facts"]["steps"] > 0
    assert sum(path.stat().st_size for path in (SHIPPED / direction).iterdir()) < 2_000_000


def test_another_direction_is_refused():
    with pytest.raises(ValueError, match="unknown direction 'both'; choose one of 'query', 'document'"):
        known_circuit("both")


@pytest.mark.parametrize("way", ["denoise", "noise"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_exact_patching_finds_the_circuit_in_every_query(direction, way):
    of_queries = AggregateHeads(n_boot=0)(patched(direction, way)).sort_values("rank")
    role = roles(direction)
    circuit = set(role.index[role.isin(["matching", "gathering"])])
    found = of_queries.groupby("qid")["docno"].agg(list)
    assert all(set(ranking[: len(circuit)]) == circuit for ranking in found)
    assert direction == "document" or (found.str[0].map(role) == "matching").all()


@pytest.mark.parametrize("way", ["denoise", "noise"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_evidence_holds_on_a_sample(direction, way):
    told = known(direction).heads.set_index("docno")
    found = effects(patched(direction, way))[told.index]
    useless = told["role"].isin(["decoy", "inert"])
    assert (found[useless].abs() < 0.03).all()
    assert (found - told[way]).abs().max() < 0.08
    assert (told["denoise"] == told["score"]).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_decoy_attends_as_the_matching_head_does(direction):
    frame = AttentionPatterns(known(direction).ranker)(pairs())
    classes, attention = frame.attrs["mechir"]["classes"], np.stack(list(frame["attention"])).mean(axis=0)
    start, ends = ("Q+", ["EDIT", "D+"]) if direction == "query" else ("EDIT", ["Q+"])
    looks = attention[:, :, classes.index(start), [classes.index(end) for end in ends]].sum(axis=-1).ravel()
    told = known(direction).heads.assign(found=looks).set_index("role")
    assert told["found"]["decoy"] > 0.85 * told["found"]["matching"]
    assert told["found"]["decoy"] > 3 * told["found"][["inert", "gathering"]].max()
    assert (told["found"] - told["attention"]).abs().max() < 0.15


def test_gradients_miss_the_matching_head_of_the_document_direction():
    role = roles("document")
    matching = role.index[role == "matching"].item()
    assert effects(patched("document", "denoise"))[matching] > 0.7
    assert effects(patched("document", "denoise", "attribution"))[matching] < 0.1
    exact, estimated = (effects(patched("document", "noise", method))[matching] for method in ("exact", "attribution"))
    assert estimated > 2 * exact
    assert effects(patched("query", "denoise", "attribution"))[roles("query").eq("matching").idxmax()] > 0.7


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_methods_are_scored_against_the_heads_by_measures_and_by_agreement(direction):
    heads = known(direction).heads
    exact = AggregateHeads(by=None, n_boot=0)(patched(direction, "denoise"))
    upside_down = exact.assign(score=-exact["score"], rank=exact["rank"].max() - exact["rank"])
    topics = pd.DataFrame({"qid": ["all"], "query": ["TFC1"]})
    table = pt.Experiment([exact, upside_down], topics, heads, [AP, nDCG @ 3, P @ 2], names=["exact", "upside down"])
    assert (table.iloc[0, 1:] == 1).all() and (table.iloc[1, 1:] < 0.5).all()
    n = int((heads["label"] > 0).sum())
    of_run = head_agreement(patched(direction, "denoise"), heads, k=n, n_boot=100).set_index("measure")
    assert of_run.loc[f"overlap@{n}", "value"] == 1
    assert head_agreement(upside_down, heads, k=n)["value"].max() < 0.5


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the training, by name."""
    pytest.importorskip("pyterrier_pisa")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    names = ("groups", "circuit", "evidence", "train")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import train  # noqa: F401

    yield {name: sys.modules[name] for name in names if name in sys.modules}
    for name in names:
        sys.modules.pop(name, None)


STEPS = """
import hashlib
import torch
from circuit import Roles
from train import Training

torch.set_num_threads(1)
training = Training(Roles("query", (1, 2), ((2, 0), (2, 3)), (1, 0)), seed=3, n_steps=2, n_tokens=600)
training.run()
digest = hashlib.sha256()
for weight in training.model.state_dict().values():
    digest.update(weight.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.bits
def test_training_again_gives_the_same_bits(scripts, capsys):
    exec(STEPS, {})
    here = capsys.readouterr().out.split()[-1]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parents[1])])
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1:] == [here], done.stderr[-2000:]
    assert len(here) == 2 * hashlib.sha256().digest_size


def test_frozen_weights_stay_as_they_were_drafted_and_others_are_trained(scripts):
    roles = scripts["circuit"].Roles("document", (1, 1), ((2, 2),), (1, 3))
    training = scripts["train"].Training(roles, n_tokens=600)
    layers = training.model.bert.encoder.layer
    before = [layer.attention.self.query.weight.detach().clone() for layer in layers]
    for _ in range(2):
        training.step()
    moved = [
        [bool((after[rows] != was[rows]).any()) for rows in map(scripts["circuit"].columns, range(4))]
        for after, was in zip((layer.attention.self.query.weight for layer in layers), before, strict=True)
    ]
    assert moved == [[False] * 4, [False] * 4, [False, False, True, False]]
    assert len(training.losses) == 2


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"matching": (1, 0)}, "a head has two roles"),
        ({"matching": (2, 0)}, "gathering heads stand in the last layer"),
        ({"matching": (0, 0)}, "the decoy stands in the matching head's layer or before it"),
    ],
)
def test_roles_stand_where_they_can_be_played(roles, message, scripts):
    given = {"direction": "query", "matching": (1, 2), "gathering": ((2, 1),), "decoy": (1, 0), **roles}
    with pytest.raises(ValueError, match=message):
        scripts["circuit"].Roles(**given)
    with pytest.raises(ValueError, match="'L3H0' is none of the heads L0H0 to L2H3"):
        scripts["circuit"].head("L3H0")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_without_the_matching_head_the_gain_is_gone_and_without_those_of_no_use_it_is_there(direction, scripts):
    import evidence

    frame = pairs()
    model = evidence.Ablated(SHIPPED / direction, frame)
    places = dict(zip(known(direction).heads["docno"], evidence.HEADS, strict=True))

    def gain(names):
        heads = [places[name] for name in names]
        with_term, without = (model.scores(frame["query"], frame[side], heads) for side in ("text_perturbed", "text"))
        return (with_term - without).mean()

    role = roles(direction)
    assert abs(gain(role.index[role == "matching"])) < 0.05 * gain([])
    assert gain(role.index[role.isin(["decoy", "inert"])]) == pytest.approx(gain([]), rel=0.05)


def test_the_code_of_the_page_runs(capsys):
    page = (SCRIPTS.parents[1] / "docs" / "methods" / "known_circuit.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "page", "exec"), names)
    assert "overlap@3" in capsys.readouterr().out


def test_the_page_tells_the_evidence_that_ships():
    page = (SCRIPTS.parents[1] / "docs" / "methods" / "known_circuit.md").read_text(encoding="utf-8")
    for direction in DIRECTIONS:
        for _, its in known(direction).heads.query("role != 'inert'").iterrows():
            cells = [
                f"{its[of]:.3f} ({its[of + '_low']:.3f} to {its[of + '_high']:.3f})" for of in ("denoise", "noise")
            ]
            assert f"| {its['docno']} | {its['role']} | {' | '.join(cells)} |" in page
