"""No file of a checkpoint or of stored results runs code: SECURITY.md says so."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from small_models import QUERIES, TEXTS, build

import pyterrier_mechir
from pyterrier_mechir import BiEncoder, CrossEncoder, PatchResults, SparseAutoencoder, load_ranker
from pyterrier_mechir.models.checkpoints import read_tensors

pytestmark = pytest.mark.usefixtures("one_thread")

PACKAGE = Path(pyterrier_mechir.__file__).parent


class _Writes:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of one label, and a file that is there once code of it has run."""
    model, tokenizer = build("bert", classifier=True)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model", tmp_path / "ran"


def _with_code(directory: Path, ran: Path, **changes: object) -> None:
    """Point a checkpoint's configuration at code of its own, which leaves a file where it runs."""
    (directory / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import BertConfig as Config, BertForSequenceClassification as Model\n",
        encoding="utf-8",
    )
    file = directory / "config.json"
    said = json.loads(file.read_text(encoding="utf-8")) | changes
    said["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.Model"}
    file.write_text(json.dumps(said), encoding="utf-8")


def test_code_of_a_checkpoint_of_a_known_architecture_is_left_alone(saved):
    directory, ran = saved
    expected = CrossEncoder(str(directory)).score(QUERIES[:1], TEXTS[:1])
    _with_code(directory, ran)
    assert CrossEncoder(str(directory)).score(QUERIES[:1], TEXTS[:1]) == pytest.approx(expected)
    assert not ran.exists()


@pytest.mark.parametrize("load", [CrossEncoder, load_ranker])
def test_a_checkpoint_that_needs_its_own_code_is_refused(saved, load):
    directory, ran = saved
    _with_code(directory, ran, model_type="mine", architectures=["Model"])
    with pytest.raises(ValueError, match=r"a loaded \(model, tokenizer\).*custom code"):
        load(str(directory))
    assert not ran.exists()


def test_pickled_weights_run_no_code(saved):
    directory, ran = saved
    (directory / "model.safetensors").unlink()
    torch.save({"classifier.bias": _Writes(ran)}, directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"objects that are no tensors.*safetensors"):
        CrossEncoder(str(directory))
    assert not ran.exists()


def test_pickled_weights_of_a_module_run_no_code(tmp_path):
    torch.save({"linear.weight": _Writes(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnpicklingError):
        read_tensors(str(tmp_path), "")
    assert not (tmp_path / "ran").exists()


def test_a_module_of_custom_code_is_refused(saved, tmp_path):
    directory, ran = saved
    (directory / "mine.py").write_text(f"open({str(ran)!r}, 'w')", encoding="utf-8")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "mine.Module"}]
    (directory / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.Module"):
        BiEncoder(str(directory))
    assert not ran.exists()


def test_an_autoencoder_and_stored_results_are_read_from_tables_of_numbers_alone(tmp_path):
    ran = tmp_path / "ran"
    for name in ("sae_weights.pt", "pt_meta.pkl"):
        torch.save(_Writes(ran), tmp_path / name)
    with pytest.raises((ValueError, OSError)):
        SparseAutoencoder.load(tmp_path)
    with pytest.raises((ValueError, OSError)):
        PatchResults(tmp_path).frame()
    assert not ran.exists()


UNPICKLES = {"run/on_ray.py": 1}
"""Where the package unpickles: what this very process sends to its own workers."""


def _calls(file: Path) -> list[ast.Call]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_the_package_unpickles_nothing_but_what_it_sent_to_its_own_workers():
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in _calls(file):
            name = ast.unparse(call.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            is_safe = (name, given.get("weights_only"), given.get("allow_pickle")) in (
                ("torch.load", "True", None),
                ("np.load", None, "False"),
            )
            if name.split(".")[0] in ("pickle", "cloudpickle", "joblib", "dill") or name in ("eval", "exec"):
                found[str(file)] = name
            if name in ("torch.load", "np.load", "pd.read_pickle") and not is_safe:
                place = file.relative_to(PACKAGE).as_posix()
                found[place] = found.get(place, 0) + 1
    assert found == UNPICKLES


def test_whatever_transformers_loads_by_a_name_is_told_to_run_no_code_of_it():
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in _calls(file):
            if ast.unparse(call.func).endswith(".from_pretrained"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("trust_remote_code") == "False" or None in given, (file, ast.unparse(call))
