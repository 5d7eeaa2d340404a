"""Check before you trust: whether a ranker's scores are its checkpoint's, and its patches what they say.

:func:`check_ranker` asks the questions of :data:`~pyterrier_mechir.verify.checks.KINDS` of a ranker of the user's own.
What it compares with is computed apart: by the library that a checkpoint was made for
(:mod:`~pyterrier_mechir.verify.readings`), and by one hook at a time on a copy of the model
(:mod:`~pyterrier_mechir.verify.hooks`).
"""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd

from pyterrier_mechir._version import installed
from pyterrier_mechir.rankers.unwrap import as_ranker
from pyterrier_mechir.verify.checks import KINDS, Finding, Kind
from pyterrier_mechir.verify.outcome import FAIL, OK, SKIPPED, WARN, Check, Verification
from pyterrier_mechir.verify.subject import Subject, pairs_of
from pyterrier_mechir.verify.untouched import untouched

_PACKAGES = (
    *("pyterrier-mechir", "torch", "transformers", "tokenizers", "sentence-transformers", "transformer_lens"),
    *("python-terrier", "pyterrier-pisa", "numpy", "pandas", "pyarrow"),
)


def check_ranker(
    ranker: Any, frame: pd.DataFrame | None = None, *, progress: Callable[[Check], object] | None = None
) -> Verification:
    """Check that a ranker can be trusted: its scores, and what patching says of it.

    Args:
        ranker: a ranker, or what stages take in its place, such as a model of sentence-transformers.
        frame: pairs to check by, with ``query`` and ``text``; of many, twelve of unequal lengths are taken. None takes
            passages of the lab collection.
        progress: called with each :class:`~pyterrier_mechir.verify.outcome.Check` as it is done.

    Returns:
        A :class:`~pyterrier_mechir.verify.outcome.Verification`: a row per check, each ``ok``, ``warn``, ``fail`` or
        ``skipped``, with its figure, its tolerance and what to do. It shows itself in a notebook; ``passed`` says
        whether no check failed, ``frame()`` and ``to_json()`` give it to other programs. Figures of scores are
        differences as shares of the score, or of 1 where it is smaller. A check that breaks off is ``fail``, with the
        error's last line, and the others still run.

    Raises:
        TypeError: ``ranker`` is no ranker, nor does it hold one.
        pt.validate.InputValidationError: the frame lacks a column.
        ValueError: the frame has no row with a query and a text, or the ranker is edited.
    """
    made = as_ranker(ranker).facing("document")
    if made.edits:
        raise ValueError(f"{made!r} is edited, and its checkpoint is not; check the ranker before its edits.")
    queries, texts, source = pairs_of(frame, made)
    subject = Subject(made, None if made is ranker else ranker, queries, texts, source)
    is_as_before = untouched(subject)
    last = Kind(
        "untouched",
        "Is the model that was given as it was before?",
        "something writes to the model that it was given; load it again, and report this output.",
        lambda _: is_as_before(),
    )
    checks = []
    for kind in (*KINDS, last):
        check = _run(kind, subject)
        checks.append(check)
        if progress is not None:
            progress(check)
    versions = {"python": platform.python_version(), "system": platform.platform()}
    versions |= installed(*_PACKAGES)
    return Verification(made.about(), tuple(checks), versions)


def _run(kind: Kind, subject: Subject) -> Check:
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            finding = kind.run(subject)
        except LookupError as reason:
            is_reason = type(reason) is LookupError
            finding = Finding(f"Skipped: {reason}.", status=SKIPPED) if is_reason else _broken(reason)
        except Exception as error:
            finding = _broken(error)
    status = finding.outcome
    return Check(
        kind.name,
        status,
        finding.found,
        kind.meaning,
        kind.advice if status in (FAIL, WARN) else "",
        finding.figure,
        finding.tolerance,
        time.perf_counter() - begin,
    )


def _broken(error: Exception) -> Finding:
    last = (str(error).strip().splitlines() or [""])[-1]
    return Finding(f"The check broke off: {type(error).__name__}: {last}", status=FAIL)


__all__ = ["FAIL", "OK", "SKIPPED", "WARN", "Check", "Verification", "check_ranker"]
