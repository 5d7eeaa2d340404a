"""What ``pyterrier-mechir verify`` does: check a checkpoint, row by row, on a terminal or as JSON."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.commands.errors import CommandError

_READERS: dict[str, Callable[..., pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".tsv": pd.read_table,
    ".jsonl": pd.read_json,
}


def run(options: Namespace) -> int:
    """Check a ranker; see ``pyterrier-mechir verify --help`` for the options.

    Returns:
        The exit status: 0 where no check failed, else 1.

    Raises:
        CommandError: the ranker or the pairs cannot be had, or there is not enough memory.
    """
    from transformers.utils import logging

    from pyterrier_mechir.verify import check_ranker

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        frame = None if options.data is None else _read(options.data)
        ranker = _ranker(options)
        if not options.json:
            print(f"Checking {ranker!r}.\n", flush=True)
        found = check_ranker(ranker, frame, progress=None if options.json else _say)
    except (ValueError, TypeError, OSError) as error:
        raise CommandError(str(error)) from error
    print(found.to_json() if options.json else f"\n{found.summary}")
    return 0 if found.passed else 1


def _say(check: Any) -> None:
    print(check, flush=True)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix not in _READERS:
        raise ValueError(f"{str(path)!r} is none of {', '.join(_READERS)}; give pairs with columns query and text.")
    options: dict[str, Any] = {"lines": True} if path.suffix == ".jsonl" else {}
    return _READERS[path.suffix](path, **options)


def _ranker(options: Namespace) -> Any:
    from pyterrier_mechir.rankers.load import FAMILIES, load_ranker
    from pyterrier_mechir.verify.memory import check_memory

    check_memory(options.ranker)
    given = dict(_setting(one) for one in options.setting)
    if options.family is None:
        return load_ranker(options.ranker, verbose=not options.json, **given)
    families: dict[str, Any] = {family.__name__: family for family in FAMILIES}
    return families[one_of("family", options.family, tuple(families))](options.ranker, **given)


def _setting(text: str) -> tuple[str, Any]:
    """An option of a ranker, ``pooling=mean`` or ``max_length=128``."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"{text!r} is no option of a ranker; write it as pooling=mean or max_length=128.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
