"""Long runs: streamed, resumed, described by a file, and on workers that die."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from small_models import QUERIES, TEXTS, build
from tolerance import widened

from pyterrier_mechir import BiEncoder, PairScorer, PatchResults, PatchScorer, PerturbDocs
from pyterrier_mechir.commands.cli import main
from pyterrier_mechir.perturb import AND, TFC1
from pyterrier_mechir.results.stored.ledger import Index
from pyterrier_mechir.run import run_sweep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results"


def _retrieved(n_copies=1, n_queries=7):
    """The documents of each query, the copies of which differ in a word; queries do not come one after the other."""
    return pd.DataFrame(
        [
            {"qid": f"q{q}", "query": QUERIES[q], "docno": f"d{d}-{copy}", "text": f"{text} {copy}"}
            for copy in range(n_copies)
            for d, text in enumerate(TEXTS)
            for q in range(n_queries)
        ]
    )


def _in_order(frame):
    return frame.sort_values(["qid", "docno"]).reset_index(drop=True)


def _assert_same(results, expected):
    """The same rows in any order, scores that are the same but for rounding, and ranks in the order of the scores."""
    found, expected = _in_order(results), _in_order(expected)
    arrays = [name for name in expected.columns if isinstance(expected[name].iloc[0], np.ndarray)]
    scores = ["score", "score_baseline", "score_perturbed"]
    assert set(found.columns) == set(expected.columns) and found.attrs == expected.attrs
    plain = [name for name in expected.columns if name not in (*arrays, *scores, "rank")]
    pd.testing.assert_frame_equal(found[plain], expected[plain])
    rounding = widened(1e-5) * expected[scores].abs().to_numpy().max()
    np.testing.assert_allclose(found[scores], expected[scores], rtol=0, atol=rounding)
    assert (results.sort_values("rank").groupby("qid")["score"].diff().dropna() <= 0).all()
    assert sorted(results["rank"]) == sorted(expected["rank"])
    if arrays:
        patched = [np.stack(frame["patch_scores"]) for frame in (found, expected)]
        np.testing.assert_allclose(*patched, rtol=0, atol=rounding)


class _Watched(PatchScorer):
    """Writes down what it is given, one line for each part, and in which process."""

    def transform(self, inp):
        with Path(self.log).open("a") as log:
            log.write(f"{os.getpid()} {len(inp)}\n")
        return super().transform(inp)


def _watched(ranker, log, kind=_Watched, **settings):
    scorer = kind(ranker, **settings)
    scorer.log = str(log)
    return scorer


def _sizes(log):
    return [int(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("scorer", [PatchScorer, PairScorer])
def test_a_local_run_writes_what_the_pipeline_gives(bi_encoder, path, scorer):
    pipeline, frame = PerturbDocs(TFC1()) >> scorer(bi_encoder), _retrieved()
    results = run_sweep(pipeline, frame, path, shard_size=16, verbose=False)
    assert [len(shard) for shard in results.shards(["qid"])] == [16, 16, 16, 1]
    _assert_same(results.frame(), pipeline(frame))


def test_all_kinds_of_input_give_the_same(bi_encoder, path, tmp_path):
    pipeline, frame = PerturbDocs(TFC1()) >> PatchScorer(bi_encoder), _retrieved()
    (tmp_path / "parts").mkdir()
    frame.iloc[:30].to_parquet(tmp_path / "parts/0.parquet")
    frame.iloc[30:].to_parquet(tmp_path / "parts/1.parquet")
    frame.to_parquet(tmp_path / "whole.parquet")
    inputs = {
        "iterable": (frame.iloc[start : start + 5] for start in range(0, len(frame), 5)),
        "directory": tmp_path / "parts",
        "file": str(tmp_path / "whole.parquet"),
        "perturbed": PerturbDocs(TFC1())(frame),
    }
    expected = pipeline(frame)
    for name, given in inputs.items():
        pipeline_of = pipeline if name != "perturbed" else pipeline[-1]
        results = run_sweep(pipeline_of, given, path.with_name(name), shard_size=16, verbose=False)
        assert [len(shard) for shard in results.shards(["qid"])] == [16, 16, 16, 1]
        assert results.about["perturbation"] == TFC1().described()
        _assert_same(results.frame(), expected)


def test_perturbed_files_keep_what_perturbed_them(bi_encoder, path, tmp_path):
    PerturbDocs(AND())(_retrieved()).to_parquet(tmp_path / "pairs.parquet")
    results = run_sweep(PatchScorer(bi_encoder), tmp_path / "pairs.parquet", path, verbose=False)
    assert results.about["perturbation"] == AND().described()


def test_a_run_that_dies_goes_on(bi_encoder, path, tmp_path):
    log, frame = tmp_path / "log", _retrieved()
    pipeline = PerturbDocs(TFC1()) >> _watched(bi_encoder, log)

    def dying():
        yield frame.iloc[:20]
        raise RuntimeError("the power went off")

    with pytest.raises(RuntimeError, match="power"):
        run_sweep(pipeline, dying(), path, shard_size=8, verbose=False)
    assert len(PatchResults(path)) == sum(_sizes(log)) == 16
    _assert_same(run_sweep(pipeline, frame, path, shard_size=8, verbose=False).frame(), pipeline(frame))
    assert sum(_sizes(log)) == len(frame) + len(frame)  # the second time by the pipeline, for the comparison
    before = len(_sizes(log))
    run_sweep(pipeline, frame, path, shard_size=8, verbose=False)
    assert len(_sizes(log)) == before


def test_stages_that_need_whole_queries_get_whole_queries(bi_encoder, path):
    frame, seen = _retrieved(), []

    def best(of_block):
        seen.append(of_block["qid"].tolist())
        return of_block.groupby("qid").head(2)

    results = run_sweep(pt.apply.generic(best) >> PatchScorer(bi_encoder), frame, path, shard_size=10, verbose=False)
    assert [len(block) for block in seen] == [14, 14, 14, 7]
    assert results.frame()["qid"].value_counts().eq(2).all() and len(results) == 14


def test_topics_are_retrieved_for_a_few_at_a_time(bi_encoder, path):
    seen = []

    def retrieve(topics):
        seen.append(len(topics))
        return topics.merge(_retrieved().drop(columns="query"), on="qid")

    topics = pd.DataFrame({"qid": [f"q{q}" for q in range(7)] + ["none"] * 5, "query": QUERIES + ["none"] * 5})
    topics["qid"] = [qid if qid != "none" else f"none{at}" for at, qid in enumerate(topics["qid"])]
    results = run_sweep(pt.apply.generic(retrieve) >> PatchScorer(bi_encoder), topics, path, verbose=False)
    assert seen == [8, 4] and len(results) == 49


def test_warnings_are_told_once_with_their_sum(path):
    short = BiEncoder(build("bert", classifier=False, max_position_embeddings=40))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_sweep(PerturbDocs(TFC1()) >> PatchScorer(short), _retrieved(), path, shard_size=10, verbose=False)
    told = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(told) == 1 and told[0].startswith("7 documents are longer than the 40 tokens")


def test_the_bar_counts_what_is_written_but_not_as_time(bi_encoder, path, capfd):
    frame = _retrieved()
    run_sweep(PatchScorer(bi_encoder), frame.iloc[:20], path)
    assert "20/20" in capfd.readouterr().err
    run_sweep(PatchScorer(bi_encoder), frame, path)
    assert "49/49" in capfd.readouterr().err
    run_sweep(PatchScorer(bi_encoder), frame, path, verbose=False)
    assert not capfd.readouterr().err


def test_what_cannot_be_run_is_said(bi_encoder, path, tmp_path):
    scorer, frame = PatchScorer(bi_encoder), _retrieved()
    (tmp_path / "text").write_text("no parquet")
    refused = [
        (lambda: run_sweep(scorer >> pt.RankCutoff(3), frame, path), TypeError, "should be or end with a PatchScorer"),
        (lambda: run_sweep(scorer, 3, path), TypeError, "not a int"),
        (lambda: run_sweep(scorer, [frame["qid"]], path), TypeError, "not a Series in an iterable"),
        (lambda: run_sweep(scorer, tmp_path / "nothing", path), ValueError, "nothing.* as Parquet"),
        (lambda: run_sweep(scorer, tmp_path / "text", path), ValueError, "text.* as Parquet"),
        (lambda: run_sweep(scorer, frame, path, engine="spark"), ValueError, "unknown engine 'spark'"),
        (lambda: run_sweep(scorer, frame, path, n_workers=2), ValueError, "n_workers=2"),
        (lambda: run_sweep(scorer, frame, path, shard_size=0), ValueError, "at least 1"),
    ]
    for run, kind, message in refused:
        with pytest.raises(kind, match=message):
            run()
    assert not path.exists()
    mixed = [PerturbDocs(perturbation)(frame) for perturbation in (TFC1(), TFC1(seed=1))]
    with pytest.raises(ValueError, match=r"differ in perturbation.*seed=0.*seed=1"):
        run_sweep(scorer, mixed, path, verbose=False)


def test_without_ray_the_run_says_what_to_install(bi_encoder, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "pyterrier-mechir\[ray\]"'):
        run_sweep(PatchScorer(bi_encoder), _retrieved(), path, engine="ray", verbose=False)


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Writes a configuration beside a checkpoint and a frame, with changes of its lines; gives the arguments."""
    monkeypatch.chdir(tmp_path)
    for part in build("bert", classifier=False):
        part.save_pretrained(tmp_path / "checkpoint")
    _retrieved().to_parquet(tmp_path / "pairs.parquet")
    lines = """
        out = "results"
        shard_size = 16
        [ranker]
        checkpoint = "checkpoint"
        pooling = "mean"
        [perturbation]
        name = "TFC1"
        position = "start"
        [scorer]
        component = "mlp_out"
        layers = [1]
        [input]
        frame = "pairs.parquet"
        """

    def write(old="", new=""):
        assert old in lines
        (tmp_path / "run.toml").write_text(lines.replace(old, new) if old else lines)
        return ["run", "run.toml", "--quiet"]

    return write


def test_a_file_says_what_is_run(configured, capfd):
    assert main(configured()) == 0
    assert "results holds 49 pairs" in capfd.readouterr().out
    ranker = BiEncoder("checkpoint", pooling="mean")
    pipeline = PerturbDocs(TFC1(position="start")) >> PatchScorer(ranker, "mlp_out", layers=[1])
    results = PatchResults("results")
    _assert_same(results.frame(), pipeline(pd.read_parquet("pairs.parquet")))
    assert [len(shard) for shard in results.shards(["qid"])] == [16, 16, 16, 1]
    before = sorted(Path("results/shards").iterdir())
    assert main(configured()) == 0 and sorted(Path("results/shards").iterdir()) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shard_size", "shard_sise", "unknown key 'shard_sise' at the top; did you mean 'shard_size'?"),
        ("pooling", "poling", "unknown key 'poling' in [ranker]; did you mean 'pooling'"),
        ("position", "positon", "unknown key 'positon' in [perturbation]; did you mean 'position'"),
        ("component", "components", "unknown key 'components' in [scorer]; did you mean 'component'"),
        ("frame", "frames", "unknown key 'frames' in [input]; did you mean 'frame'?"),
        ("TFC1", "TFC", "unknown perturbation 'TFC'; did you mean 'TFC"),
        ("mlp_out", "mlp", "unknown component 'mlp'"),
        ("pairs.parquet", "nothing.parquet", "cannot read 'nothing.parquet' as Parquet"),
        ('checkpoint = "checkpoint"', 'checkpoint = "no/such"', "cannot load 'no/such'"),
        ('checkpoint = "checkpoint"', "", "[ranker] has no checkpoint"),
        ('out = "results"', "", "does not say where results go"),
        ("layers = [1]", "layers = [", "is not TOML"),
        ('frame = "pairs.parquet"', "", "[input] needs one of frame"),
        ('frame = "pairs.parquet"', 'frame = "pairs.parquet"\nnum_results = 3', "num_results go with a dataset"),
        ("shard_size = 16", "ranker = 16", "is not TOML"),
        ("shard_size = 16", 'engine = "rei"', "unknown engine 'rei'"),
    ],
)
def test_what_a_file_says_wrong_is_one_sentence(configured, capfd, old, new, message):
    assert main(configured(old, new)) == 2
    printed = capfd.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not Path("results").exists()


def test_a_file_that_is_not_there_is_one_sentence(capfd):
    assert main(["run", "nothing.toml"]) == 2
    assert "cannot read 'nothing.toml': No such file" in capfd.readouterr().err


def test_the_example_is_a_run_of_retrieved_documents(configured, capfd):
    pytest.importorskip("pyterrier_pisa")
    example = (Path(__file__).parents[2] / "examples/run.toml").read_text()
    changes = {
        "tasb-tfc1": "results",
        "sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco": "checkpoint",
        "irds:msmarco-passage/trec-dl-2019/judged": "mechir:lab",
        "num_results = 100": "num_results = 2",
        'name = "TFC1"\nseed = 0': 'name = "TDC"',
    }
    configured()
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    Path("run.toml").write_text(example)
    assert main(["run", "run.toml", "--quiet"]) == 0
    results = PatchResults("results")
    assert set(results.frame()["perturbation"]) == {"TDC"} and "msmarco-passage.pisa" in results.about["perturbation"]
    assert len(results) == 2 * len(pt.get_dataset("mechir:lab").get_topics())
    assert Path("msmarco-passage.pisa").exists() and not Path("msmarco-passage.pisa.part").exists()
    n_shards = len(list(Path("results/shards").iterdir()))
    assert main(["run", "run.toml", "--quiet"]) == 0
    assert len(list(Path("results/shards").iterdir())) == n_shards


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with two cores and little memory; its address."""
    ray = pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    sizes = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **sizes)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class _Dying(_Watched):
    """Kills its own process once, when a few parts are scored, if it is told to."""

    def transform(self, inp):
        dead = Path(f"{self.log}.dead")
        if len(_sizes(Path(self.log))) >= 4 and Path(f"{self.log}.deadly").exists() and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().transform(inp)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX does")
def test_a_run_on_workers_goes_on_with_a_local_one_though_a_worker_is_killed(bi_encoder, path, tmp_path, cluster):
    frame, log = _retrieved(3), tmp_path / "log"
    short = BiEncoder(build("bert", classifier=False, max_position_embeddings=40))
    pipeline = PerturbDocs(TFC1()) >> _watched(short, log, _Dying)
    with pytest.warns(UserWarning, match="^7 documents"):
        run_sweep(pipeline, frame.iloc[:60], path, shard_size=10, verbose=False)
    n_local = len(_sizes(log))
    log.unlink()
    Path(f"{log}.deadly").touch()
    with pytest.warns(UserWarning, match="^14 documents are longer than the 40 tokens") as told:
        results = run_sweep(pipeline, frame, path, engine="ray", n_workers=2, shard_size=10, verbose=False)
    assert n_local == 6 and len([one for one in told if one.category is UserWarning]) == 1
    assert Path(f"{log}.dead").exists()
    processes = {line.split()[0] for line in log.read_text().splitlines()}
    assert len(processes) >= 2 and str(os.getpid()) not in processes
    assert sum(_sizes(log)) < len(frame) - 60 + 2 * 10 + 1  # what the killed worker was at is computed again
    expected = PerturbDocs(TFC1()) >> _watched(short, tmp_path / "expected", _Dying)
    with pytest.warns(UserWarning, match="21 of 147"):
        _assert_same(results.frame(), expected(frame))


def long_run(path):
    """A run on the workers of the cluster that RAY_ADDRESS names, in a process that is killed meanwhile."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    scorer = _watched(BiEncoder(build("bert", classifier=False)), f"{path}.log")
    run_sweep(PerturbDocs(TFC1()) >> scorer, _retrieved(5), path, engine="ray", n_workers=1, shard_size=8)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX does")
def test_a_run_on_workers_that_is_killed_goes_on(bi_encoder, path, cluster):
    command = [sys.executable, "-c", "import sys, test_run; test_run.long_run(sys.argv[1])", str(path)]
    path_of_modules = os.pathsep.join(sys.path)
    environment = {**os.environ, "RAY_ADDRESS": cluster, "OMP_NUM_THREADS": "1", "PYTHONPATH": path_of_modules}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    until = time.monotonic() + 240
    while len(list(path.glob("shards/[0-9]*"))) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()[-3000:]
    process.stderr.close()
    n_written, frame, log = len(PatchResults(path)), _retrieved(5), path.with_name("log")
    assert 24 <= n_written < len(frame)
    pipeline = PerturbDocs(TFC1()) >> _watched(bi_encoder, log)
    results = run_sweep(pipeline, frame, path, shard_size=8, verbose=False)
    assert sum(_sizes(log)) == len(frame) - n_written
    assert len(results) == len(results.frame().drop_duplicates(["qid", "docno"])) == len(frame)
    _assert_same(results.frame(), pipeline(frame))


def test_files_go_to_workers_and_their_errors_come_back(bi_encoder, path, tmp_path, cluster):
    frame = _retrieved()
    frame.to_parquet(tmp_path / "pairs.parquet")
    pipeline = PerturbDocs(TFC1()) >> PairScorer(bi_encoder)
    results = run_sweep(pipeline, tmp_path / "pairs.parquet", path, engine="ray", shard_size=16, verbose=False)
    _assert_same(results.frame(), pipeline(frame))
    frame.loc[40, "text"] = None
    with pytest.raises(ValueError, match=r"^column 'text' is missing for qid 'q5', docno 'd5-0'"):
        run_sweep(pipeline, frame, path.with_name("other"), engine="ray", n_workers=1, verbose=False)
    lock = threading.Lock()
    locked = pt.apply.generic(lambda block: block if lock else None)
    with pytest.raises(ValueError, match=r"cannot be sent to Ray's workers.*run it first"):
        run_sweep(locked >> PairScorer(bi_encoder), _retrieved(), path, engine="ray", verbose=False)


def test_the_index_of_written_pairs_is_small_and_exact():
    n, size = 20_000, 250
    digits = [hashlib.md5(str(number).encode()).hexdigest() for number in range(2 * n)]
    pairs = pd.DataFrame({"qid": "q", "docno": [f"d{number}" for number in range(2 * n)], "pair_hash": digits})
    index = Index("results")
    for number in range(n // size):
        index.add(number, pairs.iloc[number * size : (number + 1) * size])
    assert len(index) == n and len(pickle.dumps(index)) < 50 * n
    assert index.lacking(pairs).tolist() == list(range(n, 2 * n))
    places = index.places(digits[n - 1 :: -1])
    assert (places["shard"] * size + places["row"]).tolist() == list(range(n - 1, -1, -1))
    index.add(n // size, pairs.iloc[:size])
    assert len(index) == n and index.places(digits[:1])["shard"] == 0
    with pytest.raises(ValueError, match=r"'results' holds \(qid, docno\) = \('q', 'd3'\) with other texts"):
        index.lacking(pairs.iloc[:5].assign(pair_hash=digits[n : n + 5]).iloc[3:])
