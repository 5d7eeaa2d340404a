"""What pages take from the code itself: ``{generated} NAME``, the Markdown that the function of that name gives."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from textwrap import fill, indent
from typing import Any

import pyterrier as pt
from docutils import nodes
from ir_measures.measures.base import BaseMeasure
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

import pyterrier_mechir
from pyterrier_mechir import known_circuit, perturb
from pyterrier_mechir.commands.cli import _parser
from pyterrier_mechir.models.architectures import ARCHITECTURES, Architecture
from pyterrier_mechir.models.components import TABLE
from pyterrier_mechir.rankers import families as kinds
from pyterrier_mechir.results import measures as of_results

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyterrier_mechir"

CONTRACT = ["qid", "query", "docno", "text"]
"""The columns that a retrieval with texts gives."""


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(*names: object) -> str:
    """Names as code, in one cell."""
    return ", ".join(f"`{name}`" for name in names)


def first_sentence(of: object) -> str:
    """The first sentence of a docstring, as Markdown."""
    text = " ".join((inspect.getdoc(of) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text).replace("``", "`")
    return re.split(r"(?<=[.:])\s", f"{text} ")[0].rstrip(": ")


def homes() -> dict[str, list[str]]:
    """The public names by the folder of the package that each comes from."""
    found: dict[str, list[str]] = {}
    for name in pyterrier_mechir.__all__:
        found.setdefault(pyterrier_mechir._HOMES[name].partition(".")[0], []).append(name)
    return found


def documented(module: str, *names: str) -> str:
    """Names of a module, with their docstrings; of constants, the text that stands under them."""
    parts = []
    for name in names:
        value = getattr(__import__(module, fromlist=[name]), name)
        if inspect.isclass(value):
            inherited = "Transformer, Mapping, tuple"
            parts.append(f".. autoclass:: {module}.{name}\n   :members:\n   :inherited-members: {inherited}\n")
        elif inspect.isroutine(value):
            parts.append(f".. autofunction:: {module}.{name}\n")
        elif name.isupper():
            parts.append(f".. autodata:: {module}.{name}\n")
        else:
            text = str(GoogleDocstring(inspect.getdoc(type(value)) or ""))
            parts.append(f".. py:data:: {module}.{name}\n\n" + indent(text, "   ") + "\n")
    return "```{eval-rst}\n" + "\n".join(parts) + "```"


def names_of(*folders: str) -> str:
    """The public names of some folders of the package, with their docstrings."""
    return documented("pyterrier_mechir", *(name for folder in folders for name in homes()[folder]))


def names_of_perturb() -> str:
    """The public names of ``pyterrier_mechir.perturb``, with their docstrings."""
    return documented("pyterrier_mechir.perturb", *perturb.__all__)


@cache
def _bi_encoder() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    tokenizer = known_circuit().ranker.tokenizer
    return pyterrier_mechir.BiEncoder((BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)), tokenizer))


def stages_by_columns() -> list[tuple[str, pt.Transformer, list[str]]]:
    """How each stage is written, the stage, and the columns that come to it."""
    from pyterrier_mechir import (
        AblationScorer,
        AggregateHeads,
        AttentionPatterns,
        ExplainScore,
        PairScorer,
        PatchScorer,
        PerturbDocs,
        PerturbQueries,
        RankingEffects,
        ScoreAttribution,
        ScoreLens,
        Steer,
    )

    ranker, bi_encoder = known_circuit().ranker, _bi_encoder()
    pairs = [*CONTRACT, "text_perturbed"]
    patched = pt.inspect.transformer_outputs(PatchScorer(ranker), pairs)
    ablated = [*CONTRACT, "score", "rank", "ablated_scores"]
    qrels = pt.get_dataset("mechir:lab").get_qrels()
    features = {"features": ["lexical_match"]}
    return [
        ("PerturbDocs(perturbation)", PerturbDocs(perturb.TFC1()), CONTRACT),
        ("PerturbQueries(perturbation)", PerturbQueries(perturb.Typos()), ["qid", "query"]),
        ("PatchScorer(ranker)", PatchScorer(ranker), pairs),
        ('PatchScorer(ranker, direction="both")', PatchScorer(ranker, direction="both"), pairs),
        ('PatchScorer(ranker, positions="each")', PatchScorer(ranker, positions="each"), pairs),
        (
            'PatchScorer(ranker, positions="top_units")',
            PatchScorer(ranker, positions="top_units"),
            [*pairs, "units", "unit_spans", "unit_scores"],
        ),
        ("PairScorer(ranker)", PairScorer(ranker), pairs),
        ("AggregateHeads()", AggregateHeads(), patched),
        ("AttentionPatterns(ranker)", AttentionPatterns(ranker), CONTRACT),
        ("AttentionPatterns(ranker, features=...)", AttentionPatterns(ranker, **features), CONTRACT),
        ("ExplainScore(ranker)", ExplainScore(ranker), CONTRACT),
        ('ExplainScore(ranker, "ig", against="next")', ExplainScore(ranker, "ig", against="next"), CONTRACT),
        ("ScoreLens(ranker)", ScoreLens(ranker), CONTRACT),
        ("ScoreAttribution(bi_encoder)", ScoreAttribution(bi_encoder), CONTRACT),
        ("AblationScorer(ranker)", AblationScorer(ranker), CONTRACT),
        ("RankingEffects(qrels, measures)", RankingEffects(qrels, ["nDCG@10"]), ablated),
        ("Steer(ranker, vectors)", Steer(ranker, {"L1.resid_post": [0.0] * ranker.model.config.hidden_size}), CONTRACT),
        ("ranker.scorer()", ranker.scorer(), CONTRACT),
    ]


def stages() -> str:
    """What each stage needs and adds, as ``pt.inspect`` finds it."""
    rows = []
    for written, stage, given in stages_by_columns():
        out = pt.inspect.transformer_outputs(stage, given)
        kept = set(given) <= set(out)
        needs = pt.inspect.transformer_inputs(stage)[0]
        rows.append(
            [
                f"`{written}`",
                code(*needs),
                code(*(column for column in out if column not in given or not kept)) + ("" if kept else " (new rows)"),
            ]
        )
    return table(["stage", "needs at least", "adds"], rows)


def measures() -> str:
    """The measures of the package for ``pt.Experiment``."""
    rows = []
    for name, value in vars(of_results).items():
        measure = value if isinstance(value, BaseMeasure) else None
        if measure is None or name not in pyterrier_mechir.__all__:
            continue
        options = [option for option in measure.SUPPORTED_PARAMS if option != "cutoff"]
        cutoff = f"`{name} @ 10`" if "cutoff" in measure.SUPPORTED_PARAMS else ""
        rows.append([f"`{name}`", first_sentence(type(measure)), code(*options), cutoff])
    return table(["measure", "what it is", "options", "with a cutoff"], rows)


def sites() -> str:
    """The components that can be patched."""
    rows = [
        [f"`{name}`", f"`{row.written.format(layer=5, number=8)}`", row.hook and f"`{row.hook}`", row.stands]
        for name, row in TABLE.items()
    ]
    return table(["component", "a site of it", "TransformerLens", "where in its layer"], rows)


def architectures() -> str:
    """The rows of the table of architectures."""
    found: dict[Architecture, list[str]] = {}
    for name, row in ARCHITECTURES.items():
        found.setdefault(row, []).append(name)
    rows = [
        [
            code(*names),
            "decoder" if row.is_decoder or row.cross_attention else "encoder",
            "before" if row.final_norm else "after",
            code(row.layers),
            code(row.out_proj),
            code(row.mlp_out),
            "yes" if row.attention_interface else "no",
        ]
        for row, names in found.items()
    ]
    heads = ["`config.model_type`", "stack", "norms", "layers", "output projection", "MLP's last map", "patterns"]
    return table(heads, rows)


def architecture_fields() -> str:
    """What a row of the table of architectures says."""
    of_fields = (inspect.getdoc(Architecture) or "").partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.+?)(?=^    \w+:|\Z)", of_fields, re.MULTILINE | re.DOTALL)
    texts = {name: " ".join(text.split()).replace("``", "`") for name, text in found}
    return table(["field", "what it is"], [[f"`{field.name}`", texts[field.name]] for field in fields(Architecture)])


def families() -> str:
    """Kinds of rankers, over which architectures, and what can be patched in each."""
    return kinds.markdown()


def _commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = action.help or ""
    default = action.default if action.option_strings and action.nargs != 0 else None
    told = "default" in text or default in (None, [], argparse.SUPPRESS)
    return text.replace("%(prog)s", parser.prog) + ("" if told else f" (default: {default})")


def commands() -> str:
    """The commands of ``pyterrier-mechir``, one after the other."""
    return "\n\n".join(f"## {name}\n\n{command(parser)}" for name, parser in _commands().items())


def command(parser: argparse.ArgumentParser) -> str:
    """A command: what it does, how it is called, and its options."""
    rows = [
        [code(*(action.option_strings or [action.metavar or action.dest])), _help(parser, action)]
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    usage = fill(" ".join(parser.format_usage().removeprefix("usage: ").split()), 84, subsequent_indent="    ")
    options = table(["option", "what it says"], rows) if rows else "It has no options."
    return f"{parser.description}\n\n```text\n{usage}\n```\n\n{options}"


_RAISED = ("ValueError", "TypeError", "KeyError", "CommandError", "RuntimeError", "NotImplementedError")


def _sentence(node: ast.expr) -> str | None:
    """The text of a message, with an ellipsis for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


def sentences() -> dict[str, list[str]]:
    """The messages of the errors that the package raises, by folder or module, in the order of the code."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        home = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _RAISED and call.args:
                text = _sentence(call.args[0])
                if text and len(text.replace("…", "").split()) > 3 and text not in found.get(home, []):
                    found.setdefault(home, []).append(text)
    return found


def errors() -> str:
    """The sentences of errors, folder by folder."""
    parts = []
    for home, texts in sentences().items():
        items = "\n".join("- " + _plain(text) for text in texts)
        parts.append(f"**`{home}`**\n\n{items}")
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Text in which no mark of Markdown is one."""
    return re.sub(r"([\\`*_{}\[\]<>#$|~^])", r"\\\1", " ".join(text.split()))


def included(file: str, page: str | Path) -> str:
    """A file of the repository's root, without its title, with the links that the page has that includes it."""
    path = ROOT / file
    if not path.exists():
        return f"`{file}` is not in this copy of the repository."
    text = re.sub(r"\A# .*\n+", "", path.read_text(encoding="utf-8"))
    here = Path(page).parent

    def link(found: re.Match[str]) -> str:
        return f"]({os.path.relpath(ROOT / found[1], here)}{found[2] or ''})"

    return offered(re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text), here)


class Generated(SphinxDirective):
    """``{generated} NAME ARGUMENT ...``: what the function of that name gives, as a part of the page."""

    required_arguments = 1
    optional_arguments = 20

    def run(self) -> list[nodes.Node]:
        """Parse what the function gives."""
        name, *arguments = self.arguments
        self.env.note_reread()
        if name == "included":
            arguments.append(self.env.doc2path(self.env.docname))
        return self.parse_text_to_nodes(globals()[name](*arguments), allow_section_headings=True)


_LINK = re.compile(r"\[([^]\[]+)\]\(((?:\.\./)+[^)#\s]+\.md)(?:#[^)\s]*)?\)")


def offered(text: str, folder: Path) -> str:
    """The text of a page, in which Markdown files that are no pages are offered as files."""

    def link(found: re.Match[str]) -> str:
        is_page = (folder / found[2]).resolve().is_relative_to(ROOT / "docs")
        return found[0] if is_page else f"{{download}}`{found[1].strip('`')} <{found[2]}>`"

    return _LINK.sub(link, text)


def _sign(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """The signature of a stage is that of its ``__init__``, which PyTerrier's base class hides."""
    if what != "class" or not issubclass(value, pt.Transformer):
        return None
    _, *parameters = inspect.signature(value.__init__).parameters.values()
    return stringify_signature(inspect.Signature(parameters), show_annotation=False), returns


def _leave_whole(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Break the first line of a property or a constant after a colon: what stands before one is taken for its type."""
    if what in ("property", "data") and lines:
        lines[:1] = lines[0].replace(": ", ":\n", 1).split("\n")


def _offer(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = offered(source[0], Path(app.env.doc2path(page)).parent)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.add_directive("generated", Generated)
    app.connect("source-read", _offer)
    app.connect("autodoc-process-signature", _sign)
    app.connect("autodoc-process-docstring", _leave_whole, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
