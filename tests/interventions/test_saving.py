"""A saved directory: what stands in it, who reads it, and what a save that fails leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from saved import PAIRS, assert_read_back, edited
from small_models import QUERIES, TEXTS, build
from tolerance import assert_near

from pyterrier_mechir import (
    Ablate,
    BiEncoder,
    Scale,
    load_ranker,
)
from pyterrier_mechir.interventions import saving

pytestmark = pytest.mark.usefixtures("one_thread")


# Without this package


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pyterrier_mechir", "pyterrier"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import json, numpy, torch, transformers
from sentence_transformers import SentenceTransformer
queries, texts = json.load(sys.stdin)
model = SentenceTransformer(sys.argv[1], device="cpu")
scores = model.similarity_pairwise(model.encode_query(queries), model.encode_document(texts)).tolist()
plain, tokenizer = (of.from_pretrained(sys.argv[1]) for of in (transformers.AutoModel, transformers.AutoTokenizer))
def pooled(given):
    tokens = tokenizer(given, padding=True, truncation=True, return_tensors="pt")
    mask = tokens["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = plain.eval()(**tokens).last_hidden_state
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
assert not any(name.startswith("pyterrier") for name in sys.modules)
print(json.dumps([scores, (pooled(queries) * pooled(texts)).sum(-1).tolist()]))
"""


def test_a_process_without_this_package_scores_alike(tmp_path):
    ranker = edited(BiEncoder(build("bert", False), pooling="mean", similarity="cosine"))
    directory = ranker.save_pretrained(tmp_path / "made")
    given = json.dumps([QUERIES, TEXTS])
    command = [sys.executable, "-c", ALONE, str(directory)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=tmp_path)
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert_near(found, ranker.score(QUERIES, TEXTS))


# The directory


def small() -> BiEncoder:
    return BiEncoder(build("bert", False), pooling="mean", similarity="cosine")


def test_the_manifest_tells_what_it_was_made_of(tmp_path, capsys):
    plain = small()
    directory = plain.edited([Scale("L0H1", 0.25), Ablate("L1H2")]).save_pretrained(tmp_path / "made")
    told = json.loads((directory / "mechir_edits.json").read_text())
    assert told["base"] == "BertModel" and told["ranker"] == "BiEncoder"
    assert told["base_weights"] == plain.about(fingerprint=True)["weights"]
    edits = [
        {"side": "both", "edit": "Scale", "site": "L0H1", "factor": 0.25},
        {"side": "both", "edit": "Ablate", "site": "L1H2", "by": "zero"},
    ]
    assert told["edits"] == edits and {"torch", "transformers", "pyterrier-mechir"} <= told["versions"].keys()
    assert told["measured"]["n_pairs"] > 5 and told["measured"]["as_share"] < 1e-5
    read = load_ranker(directory)
    printed = capsys.readouterr().err
    assert "Scale L0H1 (factor 0.25), Ablate L1H2 (by zero)" in printed and "BertModel" in printed
    assert read.about()["baked_edits"] == edits and "baked_edits" not in plain.about()
    again = read.edited([Scale("L0H0", 2.0)]).save_pretrained(tmp_path / "again")
    later = json.loads((again / "mechir_edits.json").read_text())
    assert later["edits_before"] == edits and [edit["site"] for edit in later["edits"]] == ["L0H0"]
    assert load_ranker(again, verbose=False).about()["baked_edits"] == [*edits, *later["edits"]]


@pytest.mark.parametrize("content", ['{"ranker": 3}', "no json", '{"ranker": "Bm25", "options": {}, "edits": []}'])
def test_a_file_that_is_no_manifest_is_said(content, tmp_path):
    directory = small().save_pretrained(tmp_path / "made")
    (directory / "mechir_edits.json").write_text(content)
    with pytest.raises(ValueError, match=r"the mechir_edits\.json of .* (is none that|tells of a Bm25)"):
        load_ranker(directory, verbose=False)


def test_an_unedited_ranker_is_copied_with_its_settings(tmp_path):
    plain = small()
    directory = plain.save_pretrained(tmp_path / "made")
    read = assert_read_back(plain, directory)
    assert read.about(fingerprint=True)["weights"] == plain.about(fingerprint=True)["weights"]
    assert "A copy of BertModel" in (directory / "README.md").read_text()


def test_the_card_tells_edits_and_effects(tmp_path):
    columns = ["docno", "measure", "value", "score", "ci_low", "ci_high", "p_adjusted"]
    rows = [("L0H1", "nDCG@10", 0.42, 0.011, -0.002, 0.024, 0.3), ("L2H3", "nDCG@10", 0.40, -0.01, -0.02, 0.0, 0.04)]
    effects = pd.DataFrame(rows, columns=columns)
    directory = small().edited([Scale("L0H1", 0.0)]).save_pretrained(tmp_path / "made", effects=effects)
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n---\n") and "base_model" not in card
    assert "| Scale | L0H1 | both | factor = 0.0 |" in card
    assert "| L0H1 | nDCG@10 | 0.4200 | +0.0110 | [-0.0020, +0.0240] | 0.3 |" in card and "L2H3" not in card
    with pytest.raises(Exception, match="p_adjusted"):
        small().save_pretrained(tmp_path / "other", effects=effects.drop(columns="p_adjusted"))
    assert not (tmp_path / "other").exists()


def test_a_directory_that_is_not_empty_is_refused_and_an_empty_one_taken(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for target in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(ValueError, match="exists and is not empty; give a directory that does not exist"):
            small().save_pretrained(target)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert BiEncoder(small().save_pretrained(tmp_path / "empty")).pooling == "mean"


@pytest.mark.parametrize("dies", ["write", "model_card"])
def test_a_save_that_dies_leaves_nothing(dies, tmp_path, monkeypatch):
    def killed(*args: Any) -> None:
        if dies == "write":
            args[1]["both"].save_pretrained(args[2])
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, dies, killed)
    with pytest.raises(KeyboardInterrupt):
        small().save_pretrained(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_files_that_score_otherwise_are_not_kept(tmp_path):
    model, tokenizer = build("bert", False)
    model.encoder.layer[1].register_forward_hook(lambda module, given, output: output * 1.1)
    with pytest.raises(ValueError, match="nothing was saved: the files score a pair"):
        BiEncoder((model, tokenizer)).edited([Scale("L0H1", 0.3)]).save_pretrained(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_pairs_of_a_sample_are_those_that_are_compared(tmp_path):
    sample = pd.DataFrame(PAIRS[:3], columns=["query", "text"])
    directory = small().save_pretrained(tmp_path / "made", sample=sample)
    assert json.loads((directory / "mechir_edits.json").read_text())["measured"]["n_pairs"] == 3
    with pytest.raises(ValueError, match="the sample has no pairs"):
        small().save_pretrained(tmp_path / "other", sample=sample[:0])


def test_what_cannot_be_baked_is_not_saved(tmp_path):
    ranker = small().edited([Ablate("L0H1", by="resample", reference=TEXTS)])
    with pytest.raises(ValueError, match="cannot be in weights"):
        ranker.save_pretrained(tmp_path / "made")
    assert not list(tmp_path.iterdir())
