"""The command ``pyterrier-mechir``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyterrier_mechir._version import __version__
from pyterrier_mechir.commands.completion import SHELLS, script
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.patching.plan import DIRECTIONS

_EXAMPLES = {
    "demo": "pyterrier-mechir demo --type cross --perturbation PROX1",
    "run": "pyterrier-mechir run examples/run.toml",
    "report": "pyterrier-mechir report mechir-demo/results --dataset mechir:lab",
    "verify": "pyterrier-mechir verify sentence-transformers/all-MiniLM-L6-v2",
    "explain": 'pyterrier-mechir explain "why tides rise" --text "The moon pulls the ocean."',
    "recipe": "pyterrier-mechir recipe chen24_tfc1 --option num_queries=20",
    "recipes": "pyterrier-mechir recipes",
    "perturbations": "pyterrier-mechir perturbations > perturbations.md",
    "completion": 'eval "$(pyterrier-mechir completion bash)"',
}
"""Of each command, one example."""

_CODES = "exit codes: 0 done; 1 verify found a check to fail; 2 it cannot be done, stderr says why; 130 interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 1 where ``verify`` found a check to fail; 2 where something that was asked for cannot be
        done; 130 where it was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command == "completion":
        print(script(parser, options.shell), end="")
        return 0
    if options.command == "perturbations":
        from pyterrier_mechir.perturb.catalogue import markdown

        print(markdown(), end="")
        return 0
    try:
        if options.command == "report":
            _report(options)
        elif options.command == "run":
            _run(options)
        elif options.command == "verify":
            from pyterrier_mechir.commands.verify import run as verify

            return verify(options)
        elif options.command == "recipes":
            from pyterrier_mechir.commands.recipe import show

            show()
        elif options.command == "recipe":
            from pyterrier_mechir.commands.recipe import run as recipe

            recipe(options)
        elif options.command == "explain":
            from pyterrier_mechir.commands.explain import run as explain

            explain(options)
        else:
            from pyterrier_mechir.commands.demo import run

            run(options)
    except CommandError as error:
        print(f"pyterrier-mechir: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyterrier-mechir: interrupted.", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    from pyterrier_mechir.commands.config import run_file

    results = run_file(options.config, verbose=not options.quiet)
    print(f"{results.path} holds {len(results)} pairs.")


def _report(options: argparse.Namespace) -> None:
    from pyterrier_mechir.results.stored.artifact import PatchResults

    out = options.out or options.results / "report.html"
    try:
        qrels = None
        if options.dataset is not None:
            import pyterrier as pt

            qrels = pt.get_dataset(options.dataset).get_qrels()
        examples = None if options.examples is None else PatchResults(options.examples)
        PatchResults(options.results).report(out, qrels=qrels, examples=examples, title=options.title)
    except (ValueError, KeyError, OSError) as error:
        raise CommandError(str(error.args[0] if error.args else error)) from error
    print(f"Wrote {out}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyterrier-mechir",
        description="Mechanistic interpretability of neural rankers as PyTerrier pipelines.",
        epilog="\n".join(["examples:", *(f"  {example}" for example in _EXAMPLES.values()), "", _CODES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="which attention heads cause the score change when a query term is added?",
        description="Retrieve with BM25, perturb, patch every attention head of a ranker, and show the strongest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--dataset", default="mechir:lab", help="any PyTerrier dataset with a corpus, topics and qrels")
    demo.add_argument(
        "--ranker",
        metavar="ID_OR_DIR",
        help="Hugging Face id or directory (default: all-MiniLM-L6-v2, or for --type cross the small cross-encoder of "
        "the package, whose circuit is known)",
    )
    demo.add_argument("--type", choices=("bi", "cross"), default="bi", help="bi-encoder or cross-encoder")
    demo.add_argument(
        "--perturbation",
        default="TFC1",
        metavar="NAME",
        help="what is done to texts; the command perturbations lists all",
    )
    demo.add_argument("--num-queries", type=_positive, default=8, metavar="N", help="queries, drawn at random")
    demo.add_argument("--num-results", type=_positive, default=6, metavar="N", help="documents for each query")
    demo.add_argument(
        "--direction", choices=DIRECTIONS[:2], default="denoise", help="denoise: sufficiency; noise: necessity"
    )
    demo.add_argument("--seed", type=int, default=0, help="of the choice of queries and terms")
    demo.add_argument(
        "--out", type=Path, default=Path("mechir-demo"), metavar="DIR", help="where the results are written"
    )
    run = commands.add_parser(
        "run",
        help="a long run that a TOML file describes; started again, it goes on where it was",
        description="Run what a TOML file describes, and write the results as they are computed. Started again, the "
        "same command goes on where it was.",
    )
    run.add_argument("config", type=Path, metavar="FILE", help="such as examples/run.toml")
    run.add_argument("--quiet", action="store_true", help="show no progress bar")
    report = commands.add_parser(
        "report",
        help="write a report of stored results: one HTML page",
        description="Write a report of stored results: one HTML page that needs no network.",
    )
    report.add_argument("results", type=Path, metavar="DIR", help="directory of a PatchResults artifact")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page (default: DIR/report.html)")
    report.add_argument("--dataset", metavar="NAME", help="PyTerrier dataset with the judgments, such as mechir:lab")
    report.add_argument(
        "--examples", type=Path, metavar="DIR", help="artifact of single positions, whose effects colour the examples"
    )
    report.add_argument("--title", help="of the page")
    _add_verify(commands)
    _add_explain(commands)
    _add_recipe(commands)
    commands.add_parser(
        "perturbations",
        help="print the table of all perturbations, in Markdown",
        description="Print the table of all perturbations, with what each claims and an example, in Markdown.",
    )
    completion = commands.add_parser(
        "completion",
        help="print what lets a shell complete these commands and their options",
        description="Print what lets a shell complete these commands: put the example's line into your shell's startup "
        "file (fish: pyterrier-mechir completion fish | source).",
    )
    completion.add_argument("shell", choices=SHELLS)
    for name, of_command in commands.choices.items():
        of_command.epilog = f"example: {_EXAMPLES[name]}"
    return parser


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser(
        "verify",
        help="can a ranker be trusted? Its scores and its patches, checked on your own checkpoint",
        description="Check a checkpoint: whether its scores are those of the library that it was made for, and whether "
        "patches do what they say. Exits with 1 where a check fails.",
    )
    verify.add_argument("ranker", metavar="ID_OR_DIRECTORY", help="Hugging Face id or directory")
    _add_family(verify)
    verify.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="pairs to check by: .parquet, .csv, .tsv or .jsonl with query and text (default: the lab collection)",
    )
    verify.add_argument("--json", action="store_true", help="print JSON and nothing else")


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser(
        "explain",
        help="which words make the scores of these texts?",
        description="Rank texts for a query and colour their words by what each does to the score.",
    )
    explain.add_argument("query", help="what is searched for")
    explain.add_argument("--text", action="append", default=[], help="a text to rank; may be repeated")
    explain.add_argument("--file", type=Path, metavar="FILE", help="a file with a text on each line")
    explain.add_argument(
        "--ranker",
        metavar="ID_OR_DIR",
        help="Hugging Face id or directory (default: all-MiniLM-L6-v2, or for --type cross the small cross-encoder of "
        "the package)",
    )
    explain.add_argument("--type", choices=("bi", "cross"), help="of the default ranker: bi (the default) or cross")
    _add_family(explain)
    explain.add_argument(
        "--method", default="occlusion", metavar="NAME", help="occlusion (default), gradient, ig, lime or terms"
    )
    explain.add_argument("--unit", default="word", metavar="NAME", help="word (default), token or sentence")
    explain.add_argument("--of", default="document", metavar="SIDE", help="whose words: document (default) or query")
    explain.add_argument(
        "--absence",
        metavar="NAME",
        help="what stands in the place of a word that is left out, such as delete, attention, mask or random",
    )
    explain.add_argument("--out", type=Path, metavar="FILE", help="an HTML page to write beside what is printed")


def _add_recipe(commands: Any) -> None:
    recipe = commands.add_parser(
        "recipe",
        help="run a published experiment, and see its figures beside the published",
        description="Run a published experiment on a ranker, and print its figures beside the published.",
    )
    recipe.add_argument("name", metavar="NAME", help="of a recipe; the command recipes lists them")
    recipe.add_argument(
        "--ranker",
        metavar="ID_OR_DIR",
        help="Hugging Face id or directory, or paper for the paper's own (default: that of --type)",
    )
    recipe.add_argument(
        "--type",
        choices=("bi", "cross"),
        default="cross",
        help="of the default ranker: cross, the small one of the package (default), or bi, all-MiniLM-L6-v2",
    )
    _add_family(recipe)
    recipe.add_argument(
        "--dataset", metavar="NAME", help="PyTerrier dataset with a corpus and topics (default: mechir:lab)"
    )
    recipe.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="documents in place of a dataset: .parquet, .csv, .tsv or .jsonl with qid, query, docno, text",
    )
    recipe.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the recipe; may be repeated"
    )
    recipe.add_argument("--out", type=Path, metavar="DIR", help="where its frames, figure and page are written")
    commands.add_parser(
        "recipes",
        help="list the recipes, with what each needs and costs",
        description="List the published experiments that can be run, with what each needs and costs.",
    )


def _add_family(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--family",
        metavar="CLASS",
        help="the class of the ranker, such as ColBERT (default: what the checkpoint's files tell)",
    )
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of that class, such as pooling=mean or dtype=bfloat16; may be repeated",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a number of at least 1")
    return value
