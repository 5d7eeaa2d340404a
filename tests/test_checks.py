"""Warnings are shown at the line of the user that led to them, and what is deprecated keeps its promises."""

import ast
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from threading import Thread

import pandas as pd
import pyterrier as pt
import pytest
import torch
from small_models import QUERIES, TEXTS

import pyterrier_mechir
from pyterrier_mechir import PairScorer, PatchResults, PerturbDocs
from pyterrier_mechir.checks import deprecated, warn
from pyterrier_mechir.perturb import TFC1


def _of_package(source: str, **names):
    """What a module of the package would define."""
    variables = {"__name__": "pyterrier_mechir.stages.made_up", "warn": warn, "pt": pt, "torch": torch, **names}
    exec(compile(source, "made_up.py", "exec"), variables)
    return variables


STAGE = _of_package(
    """
from contextlib import contextmanager

@contextmanager
def session():
    warn("mind the gap")
    yield

class Stage(pt.Transformer):
    @torch.no_grad()
    def transform(self, inp):
        with session():
            return inp
"""
)["Stage"]

TOPICS = pd.DataFrame({"qid": ["1"], "query": ["a"], "docno": ["d"], "score": [1.0], "rank": [0]})
QRELS = pd.DataFrame({"qid": ["1"], "docno": ["d"], "label": [1]})


def _here() -> int:
    return inspect.currentframe().f_back.f_lineno


def _lines(caught) -> list[tuple[str, int]]:
    return [(Path(one.filename).name, one.lineno) for one in caught if "mind the gap" in str(one.message)]


@pytest.mark.parametrize(
    "run",
    [
        lambda: (_here(), STAGE()(TOPICS)),
        lambda: (_here(), STAGE().transform(TOPICS)),
        lambda: (_here(), (STAGE() >> pt.apply.generic(lambda frame: frame) % 1)(TOPICS)),
        lambda: (_here(), (pt.apply.generic(lambda frame: frame) >> STAGE()).search("a")),
        lambda: (_here(), pt.Experiment([STAGE()], TOPICS, QRELS, ["map"])),
        lambda: (_here(), pd.Series([0]).map(lambda _: None), _of_package("def say(): warn('mind the gap')")["say"]()),
        lambda: (_here(), warn("mind the gap")),
    ],
    ids=["call", "transform", "pipeline", "search", "experiment", "function", "itself"],
)
def test_a_warning_is_shown_at_the_users_line(run):
    with pytest.warns(UserWarning, match="mind the gap") as caught:
        line, *_ = run()
    assert set(_lines(caught)) == {("test_checks.py", line)}


def test_a_warning_has_its_category():
    with pytest.warns(DeprecationWarning, match="^old$") as caught:
        warn("old", DeprecationWarning)
    assert [one.filename for one in caught] == [__file__]


def test_a_warning_of_a_thread_of_the_package_is_shown_nevertheless():
    says = _of_package("def say(): warn('mind the gap')")["say"]
    with pytest.warns(UserWarning, match="mind the gap"):
        thread = Thread(target=says)
        thread.start()
        thread.join()


@pytest.mark.usefixtures("one_thread")
def test_a_damaged_shard_is_told_at_the_line_that_runs_the_pipeline(bi_encoder, tmp_path):
    rows = [
        {"qid": "q", "query": QUERIES[0], "docno": str(i), "text": text, "score": 0.0, "rank": i}
        for i, text in enumerate(TEXTS[:4])
    ]
    pipeline = PerturbDocs(TFC1()) >> PatchResults(tmp_path / "results").writer(PairScorer(bi_encoder), shard_size=2)
    pipeline(pd.DataFrame(rows))
    sorted((tmp_path / "results" / "shards").iterdir())[0].unlink()
    with pytest.warns(UserWarning, match="shard 0 is missing") as caught:
        line, _ = _here(), pipeline(pd.DataFrame(rows))
    told = [(one.filename, one.lineno) for one in caught if "shard 0" in str(one.message)]
    assert told == [(__file__, line)]


def test_what_is_deprecated_is_told_once_for_each_line_of_the_user():
    old = _of_package(
        "def old(): deprecated('old()', since='1.1', until='1.3', instead='new()')", deprecated=deprecated
    )["old"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            old()
        old()
    assert [one.filename for one in caught] == [__file__] * 2
    assert str(caught[0].message) == "old() is deprecated since 1.1 and goes in 1.3; use new()."


def test_what_is_deprecated_is_shown_without_being_asked_for():
    program = "from pyterrier_mechir.checks import deprecated as d\nd('a', since='1.0', until='2.0', instead='b')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "FutureWarning: a is deprecated since 1.0 and goes in 2.0; use b." in done.stderr


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def _broken_promises(source: str, version: str) -> list[str]:
    """What a source deprecates for too short a time, or keeps for longer than it said."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "deprecated":
            told = {keyword.arg: keyword.value.value for keyword in node.keywords if keyword.arg in ("since", "until")}
            since, until, now = (_minor(text) for text in (told["since"], told["until"], version))
            if now >= until or (until[0] == since[0] and until[1] < since[1] + 2):
                found.append(ast.unparse(node))
    return found


def test_deprecations_last_two_minor_versions_and_then_end():
    for file in Path(pyterrier_mechir.__file__).parent.rglob("*.py"):
        assert _broken_promises(file.read_text(encoding="utf-8"), pyterrier_mechir.__version__) == [], file


@pytest.mark.parametrize(
    ("since", "until", "version", "is_broken"),
    [
        ("0.2", "0.4", "0.3.1", False),
        ("0.2", "0.3", "0.2.0", True),
        ("0.2", "0.4", "0.4.0", True),
        ("0.9", "1.0", "0.9", False),
    ],
)
def test_a_broken_promise_is_found(since, until, version, is_broken):
    source = f"deprecated('it', since={since!r}, until={until!r}, instead='that')"
    assert bool(_broken_promises(source, version)) == is_broken
