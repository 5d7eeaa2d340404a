"""Warnings are shown at the line of the user that led to them."""

import inspect
from pathlib import Path
from threading import Thread

import pandas as pd
import pyterrier as pt
import pytest
import torch
from small_models import QUERIES, TEXTS

from pyterrier_mechir import PairScorer, PatchResults, PerturbDocs
from pyterrier_mechir.checks import warn
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
