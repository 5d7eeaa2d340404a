"""What ``pyterrier-mechir recipe`` does: run a published experiment, and print its figures beside the published."""

from __future__ import annotations

import sys
import textwrap
import time
from argparse import Namespace
from typing import Any

import pyterrier as pt

from pyterrier_mechir._options import one_of
from pyterrier_mechir.commands.collection import collection
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.commands.notes import own_warnings
from pyterrier_mechir.commands.rankers import of_family, of_kind, quiet_transformers, setting
from pyterrier_mechir.commands.tables import read
from pyterrier_mechir.recipes.catalogue import RECIPES, by_name

_PAPER = "paper"


def show() -> None:
    """Print the recipes: what each does, what it needs and what it costs."""
    for one in RECIPES:
        print(one.name)
        told = f"{one.does} Documents need {one.needs}. Ranker of the paper: {one.ranker}. "
        told += f"Seconds of a core on the lab collection: {one.seconds}."
        print(textwrap.indent(textwrap.fill(told, 100), "    "))


def run(options: Namespace) -> None:
    """Run a recipe; see ``pyterrier-mechir recipe --help`` for the options.

    Raises:
        CommandError: the ranker or the documents cannot be had, or the recipe cannot run on them.
    """
    begin = time.perf_counter()
    quiet_transformers()
    try:
        recipe = by_name()[one_of("recipe", options.name, by_name())]
        given = dict(setting(text, "a recipe", "num_queries=20") for text in options.option)
        for name in given:
            one_of("option", name, recipe.options)
        ranker = _ranker(options)
        with own_warnings():
            result = recipe.run(ranker, _data(options), **given, verbose=sys.stderr.isatty())
        print(result, flush=True)
        if options.out is not None:
            files = result.save(options.out)
            print(f"\nWrote {len(files)} files to {options.out} in {time.perf_counter() - begin:.0f} s.")
    except (ValueError, TypeError, OSError, KeyError, pt.validate.InputValidationError) as error:
        raise CommandError(str(error)) from error


def _ranker(options: Namespace) -> Any:
    """The ranker that is named; None for the paper's."""
    if options.ranker == _PAPER:
        return None
    if options.ranker is None:
        return of_kind(None, options.type)
    return of_family(options.ranker, options.family, options.setting, verbose=False)


def _data(options: Namespace) -> Any:
    """The documents of a file, else a dataset."""
    if options.data is not None:
        frame = read(options.data, "qid, query, docno and text")
        return frame.astype({name: "str" for name in ("qid", "docno") if name in frame.columns})
    if options.dataset is None:
        return None
    (dataset,) = collection(options.dataset)
    return dataset
