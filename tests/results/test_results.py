"""Results on disk: the same frames again, what was run, resuming, damage, and sharing."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import QUERIES, TEXTS, build

from pyterrier_mechir import AggregateHeads, BiEncoder, PairScorer, PatchResults, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1, perturbation
from pyterrier_mechir.results.stored.tables import to_frame, to_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results"


def _retrieved(n_queries=3, n_documents=5):
    """Every document for every query, with a score that is to be replaced."""
    rows = [
        {"qid": f"q{q}", "query": QUERIES[q], "docno": f"d{d}", "text": TEXTS[d], "score": 1.0 / (d + 1)}
        for q in range(n_queries)
        for d in range(n_documents)
    ]
    return pt.model.add_ranks(pd.DataFrame(rows))


def _perturbed(**sizes):
    return PerturbDocs(TFC1())(_retrieved(**sizes))


def _assert_bitwise(one, other):
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True), check_exact=True)
    assert one.attrs == other.attrs
    for name in one.columns:
        if isinstance(one[name].iloc[0], np.ndarray):
            assert [a.tobytes() for a in one[name]] == [a.tobytes() for a in other[name]], name
            assert [(a.shape, a.dtype) for a in one[name]] == [(a.shape, a.dtype) for a in other[name]], name


class _Counting(PatchScorer):
    """Says how many pairs it scored, and fails at a given one."""

    fails_at = None

    def transform(self, inp):
        self.seen.extend(zip(inp["qid"], inp["docno"], strict=True))
        if self.fails_at is not None and len(self.seen) > self.fails_at:
            raise RuntimeError("the machine died")
        return super().transform(inp)


@pytest.fixture
def counting(bi_encoder):
    def make(fails_at=None, **settings):
        scorer = _Counting(bi_encoder, **settings)
        scorer.seen, scorer.fails_at = [], fails_at
        return scorer

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"component": "block", "positions": "each", "direction": "both"},
        {"component": "mlp_out", "positions": "class"},
        {"heads": [[(0, 1), "L1.mlp_out"], (1, 1)]},
        {"method": "attribution", "layers": [1]},
    ],
    ids=str,
)
def test_a_reload_gives_the_frame_bit_for_bit(ranker, path, settings):
    out = PatchScorer(ranker, **settings).store(path, shard_size=4)(_perturbed())
    again = PatchResults(path).frame()
    _assert_bitwise(out, again)
    assert len(PatchResults(path)) == len(out) == 15
    if settings.get("positions") != "each":
        pd.testing.assert_frame_equal(AggregateHeads(by=None)(out), AggregateHeads(by=None)(again))


@pytest.mark.bits
def test_what_is_stored_is_what_the_scorer_gives(ranker, path):
    frame, scorer = _perturbed(), PatchScorer(ranker)
    stored, direct = scorer.store(path, shard_size=1000)(frame), scorer(frame)
    assert list(stored.columns) == list(direct.columns)
    _assert_bitwise(stored, direct)
    shards = scorer.store(path.with_name("other"), shard_size=2)(frame)
    for name in ("score", "score_baseline", "score_perturbed", "patch_scores"):
        np.testing.assert_allclose(np.stack(shards[name]), np.stack(direct[name]), rtol=1e-5, atol=1e-5)
    assert (shards["rank"] == direct["rank"]).all()


def test_scores_of_pairs_are_stored_without_patches(ranker, path):
    frame = _perturbed()
    _assert_bitwise(PairScorer(ranker).store(path)(frame), PatchResults(path).frame())


def test_what_is_written_is_not_computed_again(counting, path):
    frame, scorer = _perturbed(), counting()
    first = scorer.store(path, shard_size=4)(frame)
    assert len(scorer.seen) == 15
    again = counting(fails_at=0).store(path, shard_size=4)(frame)
    _assert_bitwise(first, again)
    more = counting()
    more.store(path)(_perturbed(n_documents=6))
    assert more.seen == [("q0", "d5"), ("q1", "d5"), ("q2", "d5")]


@pytest.mark.bits
def test_a_run_that_dies_loses_at_most_a_shard(counting, path):
    frame = _perturbed()
    undisturbed = counting().store(path.with_name("undisturbed"), shard_size=4)(frame)
    with pytest.raises(RuntimeError, match="died"):
        counting(fails_at=10).store(path, shard_size=4)(frame)
    assert len(PatchResults(path)) == 8
    resumed = counting()
    _assert_bitwise(resumed.store(path, shard_size=4)(frame), undisturbed)
    assert len(resumed.seen) == 7
    _assert_bitwise(PatchResults(path).frame(), PatchResults(path.with_name("undisturbed")).frame())


def test_queries_may_come_one_by_one(counting, path):
    pipeline = PerturbDocs(TFC1()) >> counting().store(path)
    frame = _retrieved()
    parts = [pipeline(part) for _, part in frame.groupby("qid")]
    _assert_bitwise(PatchResults(path).frame(), pd.concat(parts).pipe(lambda it: _with_attrs(it, parts[0])))
    assert PatchResults(path).frame()["rank"].max() == 4


def _with_attrs(frame, other):
    frame.attrs = other.attrs
    return frame


def test_the_default_perturbation_is_applied_and_recorded(bi_encoder, path):
    PatchScorer(bi_encoder).store(path)(_retrieved())
    assert PatchResults(path).about["perturbation"] == TFC1().described()
    assert set(PatchResults(path).frame()["perturbation"]) == {"TFC1"}


def test_what_was_run_is_written(bi_encoder, path):
    scorer = PatchScorer(bi_encoder, "mlp_out", filler=["a", "mask"])
    scorer.store(path)(PerturbDocs(TFC1(seed=7, position="start"))(_retrieved()))
    results = PatchResults(path)
    about = results.about
    assert about["perturbation"] == "TFC1(term=None, position='start', seed=7, n=1, replace=None)"
    assert about["scorer"]["component"] == "mlp_out" and about["scorer"]["filler"] == ["a", "mask"]
    assert about["scorer"]["stage"] == "PatchScorer" and about["scorer"]["min_delta"] == 1e-3
    assert about["ranker"] == bi_encoder.about(fingerprint=True) and len(about["ranker"]["weights"]) == 32
    assert about["versions"][0]["torch"] and about["versions"][0]["pyterrier-mechir"]
    pairs = results.pairs()
    assert pairs["pair_hash"].is_unique and list(pairs.columns) == ["qid", "docno", "pair_hash"]
    other = path.with_name("other")
    PatchScorer(bi_encoder).store(other)(PerturbDocs(TFC1(seed=7, position="start"))(_retrieved().iloc[::-1]))
    assert PatchResults(other).digest == results.digest
    third = path.with_name("third")
    PatchScorer(bi_encoder).store(third)(PerturbDocs(TFC1(seed=8))(_retrieved()))
    assert PatchResults(third).digest != results.digest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda ranker: (PatchScorer(ranker, "mlp_out"), TFC1()), "scorer.component 'head', not 'mlp_out'"),
        (lambda ranker: (PatchScorer(ranker, filler="mask"), TFC1()), "scorer.filler 'a', not 'mask'"),
        (lambda ranker: (PatchScorer(ranker), TFC1(seed=3)), 'perturbation "TFC1('),
        (lambda ranker: (PatchScorer(ranker), TFC1(position="start")), 'perturbation "TFC1('),
        (lambda ranker: (PairScorer(ranker), TFC1()), "scorer.stage 'PatchScorer', not 'PairScorer'"),
        (
            lambda _: (PatchScorer(BiEncoder(build("bert", classifier=False), pooling="mean")), TFC1()),
            "ranker.pooling 'cls', not 'mean'",
        ),
        (
            lambda _: (PatchScorer(BiEncoder(build("bert", classifier=False, initializer_range=0.1))), TFC1()),
            "ranker.weights",
        ),
    ],
)
def test_two_configurations_in_one_artifact_are_refused(bi_encoder, path, change, named):
    PatchScorer(bi_encoder).store(path)(_perturbed())
    before = sorted(path.rglob("*"))
    scorer, perturbed = change(bi_encoder)
    with pytest.raises(ValueError, match="another configuration") as error:
        scorer.store(path)(PerturbDocs(perturbed)(_retrieved()))
    assert named in str(error.value)
    assert sorted(path.rglob("*")) == before


def test_the_same_weights_elsewhere_go_on(bi_encoder, path, counting):
    PatchScorer(bi_encoder).store(path)(_perturbed(n_queries=1))
    moved = BiEncoder(build("bert", classifier=False))
    moved.name = "another/place"
    PatchScorer(moved).store(path)(_perturbed())
    assert len(PatchResults(path)) == 15


def test_a_document_with_other_texts_is_refused(bi_encoder, path):
    @perturbation
    def changed(text):
        return text + " moon"

    PatchScorer(bi_encoder).store(path)(PerturbDocs(changed)(_retrieved()))

    @perturbation
    def changed(text):
        return text + " bats"

    with pytest.raises(ValueError, match=r"'q0', 'd0'\) with other texts"):
        PatchScorer(bi_encoder).store(path)(PerturbDocs(changed)(_retrieved()))


@pytest.mark.bits
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "delete the last"])
def test_a_damaged_shard_is_named_and_redone(counting, path, damage):
    frame = _perturbed()
    undisturbed = counting().store(path, shard_size=4)(frame)
    shard = sorted((path / "shards").iterdir())[3 if damage == "delete the last" else 1]
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    else:
        shard.unlink()
    number = 3 if damage == "delete the last" else 1
    for read in (PatchResults(path).frame, PatchResults(path).pairs, lambda: len(PatchResults(path))):
        with pytest.raises(ValueError, match=f"shard {number} is (damaged|missing)"):
            read()
    redone = counting()
    with pytest.warns(UserWarning, match=f"shard {number} is (damaged|missing)"):
        again = redone.store(path, shard_size=4)(frame)
    _assert_bitwise(again, undisturbed)
    _assert_bitwise(PatchResults(path).frame(), undisturbed)
    assert len(redone.seen) == (3 if number == 3 else 4)
    assert len(list((path / "shards").iterdir())) == 4


def test_pairs_of_a_damaged_shard_that_do_not_come_again_are_not_forgotten(counting, path):
    counting().store(path, shard_size=5)(_perturbed())
    sorted((path / "shards").iterdir())[0].unlink()
    with pytest.warns(UserWarning, match="shard 0 is missing"):
        counting().store(path, shard_size=5)(_perturbed().iloc[:2])
    with pytest.raises(ValueError, match="3 of 15 pairs are missing"):
        PatchResults(path).frame()


def test_a_shard_that_was_put_in_by_hand_under_another_name_is_no_shard(bi_encoder, path):
    out = PatchScorer(bi_encoder).store(path)(_perturbed())
    shard = next((path / "shards").iterdir())
    shutil.copy(shard, shard.with_name("copy.parquet"))
    shard.with_name(".000001-0.parquet.part").write_bytes(b"half")
    _assert_bitwise(PatchResults(path).frame(), out)


def test_two_runs_do_not_write_at_once(bi_encoder, path):
    results = PatchResults(path)
    with results.session({}, "cpu"), pytest.raises(ValueError, match="being written by another run"):
        PatchScorer(bi_encoder).store(path)(_perturbed())


def test_a_directory_with_something_else_is_refused(bi_encoder, path):
    path.mkdir()
    (path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="holds something other than patch results"):
        PatchScorer(bi_encoder).store(path)
    with pytest.raises(ValueError, match="path of a directory"):
        PatchResults(pt.Artifact.NO_PATH)


def test_an_artifact_without_results_says_so(path):
    with pytest.raises(ValueError, match="holds no results yet"):
        PatchResults(path).frame()
    assert len(PatchResults(path)) == 0 and not path.exists()


def test_some_columns_can_be_read(bi_encoder, path):
    out = PatchScorer(bi_encoder).store(path, shard_size=4)(_perturbed())
    results = PatchResults(path)
    assert list(results.frame(["docno", "rank"]).columns) == ["docno", "rank"]
    assert (results.frame(["docno", "rank"])["rank"].to_numpy() == out["rank"].to_numpy()).all()
    with pytest.raises(ValueError, match="no column 'patch_effects'"):
        results.frame(["patch_effects"])
    assert [len(part) for part in results.shards(["qid"])] == [4, 4, 4, 3]


@pytest.mark.bits
def test_writer_stands_before_or_around_the_scorer(counting, path):
    frame, results = _perturbed(), PatchResults(path)
    around = results.writer(counting())(frame)
    behind = counting() >> PatchResults(path.with_name("behind")).writer()
    after = behind(frame)
    _assert_bitwise(after, around)
    _assert_bitwise(PatchResults(path.with_name("behind")).frame(), around)
    assert "weights" not in PatchResults(path.with_name("behind")).about["ranker"]
    fused = (counting(fails_at=0) >> PatchResults(path).writer()).compile()
    _assert_bitwise(fused(frame), around)


def test_writer_alone_wants_a_scorer_before_it(path):
    with pytest.raises(ValueError, match="put a PatchScorer before it"):
        PatchResults(path).writer()(_retrieved())
    with pytest.raises(TypeError, match="not a Scorer"):
        PatchResults(path).writer(BiEncoder(build("bert", classifier=False)).scorer())


def test_screening_cannot_be_written_in_parts(bi_encoder, path):
    screened = PatchScorer(bi_encoder, method="attribution", screen=2)
    with pytest.raises(ValueError, match="screened"):
        screened.store(path)
    out = (screened >> PatchResults(path).writer())(_perturbed())
    assert PatchResults(path).frame().attrs["mechir"]["screen"] == out.attrs["mechir"]["screen"]


def test_a_column_that_no_file_holds_is_named(bi_encoder, path):
    odd = _perturbed().assign(odd=[object() for _ in range(15)])
    with pytest.raises(ValueError, match="column 'odd' cannot be stored"):
        PatchScorer(bi_encoder).store(path)(odd)


def test_the_writer_is_an_ordinary_stage(bi_encoder, path):
    writer = PatchScorer(bi_encoder).store(path)
    assert writer == PatchScorer(bi_encoder).store(path) and hash(writer) == hash(PatchScorer(bi_encoder).store(path))
    assert writer != PatchScorer(bi_encoder).store(path, shard_size=7)
    frame = _perturbed()
    before = frame.copy(deep=True)
    writer(frame)
    pd.testing.assert_frame_equal(frame, before)
    empty = writer(frame.iloc[:0])
    assert list(empty.columns) == list(PatchScorer(bi_encoder)(frame.iloc[:0]).columns) and not len(empty)
    assert set(pt.inspect.transformer_outputs(writer, list(_retrieved().columns))) >= {"patch_effect", "rank"}
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        writer(frame.drop(columns="text"))


@pt.testing.transformer_test_class
def test_writer_inspection():
    return PatchScorer(BiEncoder(build("bert", classifier=False))).store("never-written")


def test_an_experiment_writes_and_reads(bi_encoder, path):
    from ir_measures import nDCG

    topics = _retrieved()[["qid", "query"]].drop_duplicates()
    qrels = pd.DataFrame({"qid": ["q0", "q1", "q2"], "docno": ["d0", "d1", "d2"], "label": 1})
    first = pt.Transformer.from_df(_retrieved(), uniform=False)
    systems = [first >> bi_encoder.scorer(), first >> PerturbDocs(TFC1()) >> PatchScorer(bi_encoder).store(path)]
    for batch_size in (1, None):
        table = pt.Experiment(systems, topics, qrels, [nDCG @ 10], batch_size=batch_size)
        assert table["nDCG@10"].nunique() == 1
    assert len(PatchResults(path)) == 15


@contextmanager
def _served(directory):
    """The files of a directory, over the machine's own network."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_package_holds_it_all(bi_encoder, path, tmp_path, monkeypatch):
    out = PatchScorer(bi_encoder).store(path, shard_size=4)(_perturbed())
    package = PatchResults(path).build_package(str(tmp_path / "package.tar.lz4"), verbose=False)
    contents = {entry["path"] for entry in json.loads(Path(f"{package}.json").read_text())["contents"]}
    assert "pt_meta.json" in contents and len(contents) == 5 and not any(".lock" in name for name in contents)
    monkeypatch.setattr(pt.io, "pyterrier_home", lambda: str(tmp_path / "home"))
    with _served(tmp_path) as address:
        loaded = pt.Artifact.from_url(f"{address}/package.tar.lz4")
    assert isinstance(loaded, PatchResults) and loaded.about == PatchResults(path).about
    _assert_bitwise(loaded.frame(), out)


def test_load_knows_the_artifact(bi_encoder, path):
    PatchScorer(bi_encoder).store(path)(_perturbed())
    assert isinstance(pt.Artifact.load(str(path)), PatchResults)
    meta = json.loads((path / "pt_meta.json").read_text())
    assert (meta["type"], meta["format"], meta["package_hint"]) == ("patch_results", "parquet", "pyterrier-mechir")


def test_the_hub_and_back(bi_encoder, path, tmp_path, monkeypatch):
    """What to_hf uploads is what from_hf loads; the hub itself is a directory."""
    import huggingface_hub

    out = PatchScorer(bi_encoder).store(path)(_perturbed())
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *a, **k: None)
    monkeypatch.setattr(huggingface_hub, "create_branch", lambda *a, **k: None)
    monkeypatch.setattr(
        huggingface_hub, "upload_folder", lambda *, folder_path, **_: str(shutil.copytree(folder_path, hub))
    )
    PatchResults(path).to_hf("group/results", pretty_name="Results")
    assert "patch_results.parquet" in (hub / "README.md").read_text()

    def local(url, **_):
        name = url.rsplit("/", 1)[-1]
        return (hub / name).open("rb") if (hub / name).exists() else _missing(name)

    def _missing(name):
        raise OSError(name)

    monkeypatch.setattr(pt.io, "pyterrier_home", lambda: str(tmp_path / "home"))
    monkeypatch.setattr(pt.io, "open_or_download_stream", local)
    _assert_bitwise(PatchResults.from_hf("group/results").frame(), out)


def test_other_readers_see_arrays_as_lists(bi_encoder, path):
    out = PatchScorer(bi_encoder).store(path)(_perturbed())
    plain = pd.read_parquet(path / "shards")
    assert plain["patch_effect"][3][2][1] == pytest.approx(out["patch_effect"].iloc[3][2, 1], nan_ok=True)
    assert plain["pair_hash"].is_unique


@pytest.mark.parametrize("n_rows", [0, 1, 4])
def test_tables_keep_types_and_bits(n_rows):
    frame = pd.DataFrame(
        {
            "words": pd.array(["a", None, "", "d"], dtype="str"),
            "single": np.array([1, np.nan, -0.0, np.inf], np.float32),
            "counted": pd.array([1, None, 3, 4], dtype="Int64"),
            "flag": [True, False, True, False],
        }
    ).assign(
        ragged=pd.Series([np.ones((2, 3, n), np.float32) * -np.nan for n in (4, 0, 1, 2)], dtype=object).to_numpy(),
        flat=pd.Series([np.arange(n, dtype=np.float64) for n in (0, 2, 0, 3)], dtype=object).to_numpy(),
        tokens=pd.Series([["a", "b"], [], ["c"], [""]], dtype=object).to_numpy(),
    )
    frame.attrs = {"mechir": {"sites": ["L0H0"]}}
    frame = frame.iloc[:n_rows]
    again = to_frame(to_table(frame))
    pd.testing.assert_frame_equal(frame, again)
    assert again.attrs == frame.attrs
    for name in ("ragged", "flat"):
        assert [(a.tobytes(), a.shape, a.dtype) for a in frame[name]] == [
            (a.tobytes(), a.shape, a.dtype) for a in again[name]
        ]
    assert list(to_frame(to_table(frame), ["tokens", "single"]).columns) == ["tokens", "single"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks its runs")
def test_a_run_killed_twenty_times_and_resumed_is_the_undisturbed_one(tmp_path):
    script = Path(__file__).parents[1] / "killed_runs.py"
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]
    said = json.loads(process.stdout.splitlines()[-1])
    assert said["kills"] == 20 and said["progressed"] >= 5
    undisturbed, resumed = PatchResults(tmp_path / "undisturbed"), PatchResults(tmp_path / "killed")
    _assert_bitwise(undisturbed.frame(), resumed.frame())
    names = [sorted(file.name for file in (results.path / "shards").iterdir()) for results in (undisturbed, resumed)]
    assert [n for n in names[0] if not n.startswith(".")] == [n for n in names[1] if not n.startswith(".")]
