"""What ``pyterrier-mechir explain`` does: rank texts for a query, and tell which words make their scores."""

from __future__ import annotations

import sys
from argparse import Namespace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_mechir.commands.coloured_text import coloured_text, colours_of, legend, plain
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.commands.notes import own_warnings
from pyterrier_mechir.commands.rankers import of_family, of_kind, quiet_transformers
from pyterrier_mechir.plots.explained import Query, error_sentence, queries, sentence
from pyterrier_mechir.plots.markup import number, signed
from pyterrier_mechir.plots.word_markup import digits

_STRONGEST = 10


def run(options: Namespace) -> None:
    """Rank and explain; see ``pyterrier-mechir explain --help`` for the options.

    Raises:
        CommandError: the ranker or the texts cannot be had, the explanation cannot be made, or a file not be written.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    texts = [*options.text, *_lines(options.file)]
    if not texts:
        raise CommandError('there is no text to explain; give --text "..." or --file, or several.')
    names = [f"text {place + 1}" for place in range(len(texts))]
    frame = pd.DataFrame({"qid": "1", "query": options.query, "docno": names, "text": texts}, dtype=object)
    explained = _explained(options, frame)
    _print(explained)
    if options.out is not None:
        from pyterrier_mechir.plots.report import write_report

        try:
            write_report(explained, options.out)
        except OSError as error:
            raise CommandError(f"cannot write {str(options.out)!r}: {error.strerror}.") from error
        print(f"\nWrote {options.out}.")


def _lines(file: Path | None) -> list[str]:
    """The lines of a file that are not blank."""
    if file is None:
        return []
    try:
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise CommandError(f"cannot read {str(file)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{str(file)!r} is no text in UTF-8 with a document on each line.") from error


def _explained(options: Namespace, frame: pd.DataFrame) -> pd.DataFrame:
    from pyterrier_mechir.stages.explain_score import ExplainScore

    ranker = _ranker(options)
    try:
        told = {"absence": options.absence, "verbose": sys.stderr.isatty()}
        stage = ExplainScore(ranker, options.method, options.unit, options.of, **told)
        with own_warnings():
            return stage.transform(frame)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error


def _ranker(options: Namespace) -> Any:
    if options.ranker is None:
        if options.family or options.setting:
            raise CommandError("--family and --setting are of a checkpoint; name it with --ranker.")
        return of_kind(None, options.type or "bi")
    if options.type is not None:
        raise CommandError("--type chooses among the default rankers; with --ranker, give --family.")
    quiet_transformers()
    try:
        return of_family(options.ranker, options.family, options.setting, verbose=False)
    except (ValueError, TypeError, OSError) as error:
        raise CommandError(str(error)) from error


def _print(frame: pd.DataFrame) -> None:
    """Print the texts in their ranks, then the strongest words of all."""
    (query,) = queries(frame, "explain")
    colours = colours_of(sys.stdout)
    ranker = frame.attrs["mechir"]["ranker"]
    print(f"{ranker['ranker']} {Path(str(ranker['name'])).name}: {sentence(frame)}.")
    print(f"query: {plain(query.query)}")
    for document in query.documents:
        print(f"\nrank {document.rank}, {document.docno}, score {number(document.score)}")
        print(coloured_text(document, query.limit, colours))
    lacks = any(document.is_cut for document in query.documents)
    print(f"\n{legend(query.limit, colours, lacks=lacks)}")
    if said := error_sentence(frame):
        print(said)
    if table := _strongest(query):
        print(f"\nThe strongest:\n\n{table}")


def _strongest(query: Query) -> str:
    """The units of greatest absolute score of all texts, as a table."""
    named = [(unit, score, one.docno) for one in query.documents for unit, score in one.strongest(_STRONGEST)]
    named.sort(key=lambda row: -abs(row[1]))
    decimals = digits(query.limit)
    shown = named[:_STRONGEST]
    rows = [(signed(score, decimals), docno, " ".join(plain(unit).split())) for unit, score, docno in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return "\n".join(f"  {score:>{widths[0]}}  {docno:<{widths[1]}}  {unit}" for score, docno, unit in rows)
