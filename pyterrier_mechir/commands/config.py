"""A long run as a file: what ``pyterrier-mechir run`` reads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.commands.collection import collection
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.catalogue import by_name
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.load import choose, load_ranker
from pyterrier_mechir.results.stored.artifact import PatchResults
from pyterrier_mechir.retrieval import MODELS, first_stage
from pyterrier_mechir.run import run_sweep
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.stages.perturb_docs import PerturbDocs

_RUN = ("out", "engine", "n_workers", "shard_size")

_TABLES = ("ranker", "perturbation", "scorer", "input")

_INPUT = ("frame", "dataset", "index", "num_results", "wmodel")

_OBJECTS = ("ranker", "perturbation", "metric", "screen", "verbose")
"""Options of PatchScorer that a file cannot name, or a run cannot have."""


def run_file(path: Path, *, verbose: bool = True) -> PatchResults:
    """Run what a TOML file says; its paths are relative to the current directory.

    Args:
        path: of the file. At its top are ``out`` and, if they are not the defaults, ``engine``, ``n_workers`` and
            ``shard_size``, as for :func:`~pyterrier_mechir.run_sweep`. ``[ranker]`` has ``checkpoint`` and options of
            :func:`~pyterrier_mechir.load_ranker`. ``[perturbation]`` has ``name``, as ``pyterrier-mechir
            perturbations`` prints it, and its settings; ``idf`` is that of the index, else the name of a dataset, or a
            table. Without it, texts that are not perturbed yet get ``TFC1``. ``[scorer]`` has options of
            :class:`~pyterrier_mechir.PatchScorer`. ``[input]`` has ``frame``, the path of Parquet files, or
            ``dataset``, whose topics are run, with ``index`` (the path of its index, which is made if it is not
            there), ``num_results`` (100) and ``wmodel`` (``bm25``).
        verbose: show a progress bar.

    Raises:
        CommandError: the file cannot be read, or says something that cannot be done.
    """
    told = _read(path)
    _check(told, (*_RUN, *_TABLES), "at the top")
    tables = {name: told.pop(name, {}) for name in _TABLES}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise CommandError(f"{name} = {table!r} should be a table: write [{name}], and its keys below.")
    if "out" not in told:
        raise CommandError(f'{path} does not say where results go: write out = "directory" at the top.')
    _check(tables["input"], _INPUT, "in [input]")
    _check(tables["scorer"], _parameters(PatchScorer, _OBJECTS), "in [scorer]")
    try:
        ranker = _ranker(dict(tables["ranker"]))
        before, frame, idf = _input(tables["input"])
        if tables["perturbation"]:
            before.append(PerturbDocs(_perturbation(dict(tables["perturbation"]), idf, ranker)))
        pipeline = pt.Compose(*before, PatchScorer(ranker, **tables["scorer"]))
        return run_sweep(pipeline, frame, verbose=verbose, **told)
    except (ValueError, TypeError, ImportError, pt.validate.InputValidationError) as error:
        raise CommandError(str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise CommandError(f"cannot read {str(path)!r}: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise CommandError(f"{path} is not TOML: {error}.") from error


def _check(told: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in told:
        if key not in known:
            near = get_close_matches(key, known, n=3, cutoff=0.5) or known
            raise CommandError(f"unknown key {key!r} {where}; did you mean {' or '.join(map(repr, near))}?")


def _needed(table: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in table:
        raise CommandError(f'[{name}] has no {key}; write {key} = "..." into it.')
    return table[key]


def _parameters(made: Any, without: Iterable[str] = ()) -> list[str]:
    return [name for name in signature(made).parameters if name not in without]


def _ranker(options: dict[str, Any]) -> Ranker:
    checkpoint = _needed(options, "checkpoint", "ranker")
    _check(options, ["checkpoint", *_parameters(choose(checkpoint).of_class, ("model",))], "in [ranker]")
    return load_ranker(options.pop("checkpoint"), **options)


def _perturbation(settings: dict[str, Any], idf: Any, ranker: Ranker) -> Perturbation:
    known = by_name()
    name = _needed(settings, "name", "perturbation")
    if name not in known:
        near = get_close_matches(str(name), known, n=3, cutoff=0.3) or known
        raise CommandError(f"unknown perturbation {name!r}; did you mean {' or '.join(map(repr, near))}?")
    parameters = _parameters(known[name])
    _check(settings, ["name", *parameters], "in [perturbation]")
    del settings["name"]
    if isinstance(settings.get("idf"), str):
        settings["idf"] = collection(settings["idf"])[0]
    elif "idf" in parameters and idf is not None:
        settings["idf"] = idf
    return known[name](**settings).bind(ranker)


def _input(told: Mapping[str, Any]) -> tuple[list[pt.Transformer], pd.DataFrame | str, Any]:
    """What comes before the perturbation, what goes into it, and where document frequencies are to be read."""
    if ("frame" in told) == ("dataset" in told):
        raise CommandError('[input] needs one of frame = "pairs.parquet" and dataset = "irds:...".')
    if "frame" in told:
        if len(told) > 1:
            raise CommandError(f"{', '.join(sorted(told.keys() - {'frame'}))} go with a dataset, not with a frame.")
        return [], told["frame"], None
    index, wmodel = _needed(told, "index", "input"), told.get("wmodel", MODELS[0])
    if wmodel not in MODELS:
        raise CommandError(f"unknown wmodel {wmodel!r}; choose one of {', '.join(MODELS)}.")
    dataset, topics = collection(told["dataset"], "topics")
    retriever, idf = first_stage(dataset, Path(index), told.get("num_results", 100), wmodel, say=_say)
    return [retriever], topics, idf


def _say(text: str) -> None:
    print(text, flush=True)
