"""The main job on one command: index, retrieve, perturb, patch, aggregate, evaluate, draw."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from argparse import Namespace
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_mechir.commands.collection import collection
from pyterrier_mechir.commands.errors import CommandError
from pyterrier_mechir.commands.notes import own_warnings
from pyterrier_mechir.commands.rankers import of_kind
from pyterrier_mechir.perturb.base import Perturbation
from pyterrier_mechir.perturb.catalogue import by_name
from pyterrier_mechir.plots.heads import plot_heads
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.interactive import Interactive
from pyterrier_mechir.results.effects import change
from pyterrier_mechir.results.stored.artifact import PatchResults
from pyterrier_mechir.retrieval import first_stage, quiet
from pyterrier_mechir.stages.aggregate_heads import AggregateHeads
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.stages.perturb_docs import PerturbDocs

_EXAMPLES = 3


def run(options: Namespace) -> None:
    """Run the demo; see ``pyterrier-mechir demo --help`` for the options.

    Writes ``report.html``, ``heads.png``, ``heads.parquet`` (components and their effects) and the artifact
    ``results`` (a row per document) to ``options.out``.

    Raises:
        CommandError: the dataset or the ranker cannot be had.
    """
    begin = time.perf_counter()
    ranker = of_kind(options.ranker, options.type)
    dataset, topics, qrels = collection(options.dataset, "topics", "qrels")
    topics = topics.sample(min(options.num_queries, len(topics)), random_state=options.seed)
    with tempfile.TemporaryDirectory() as directory:
        bm25, idf = first_stage(dataset, Path(directory) / "index", options.num_results, say=_say)
        with quiet():
            retrieved = bm25.transform(topics)
        _say(f"Retrieved {len(retrieved)} documents for {topics['qid'].nunique()} queries with BM25.")
        perturbation = _perturbation(options.perturbation, idf, ranker, options.seed)
        results = _results(options.out / "results")
        scorer = PatchScorer(ranker, direction=options.direction, verbose=True)
        patching = PerturbDocs(perturbation) >> results.writer(scorer, shard_size=12)
        shape = f"{ranker.n_layers} x {ranker.n_heads}"
        _say(f"Patching {shape} heads of {ranker!r} under {perturbation.name} ({options.direction}).")
        with own_warnings():
            pairs = patching.transform(retrieved)
        if pairs["score_perturbed"].isna().all():
            raise CommandError(
                f"{perturbation.name} applies to none of the documents; retrieve more with --num-results."
            )
        with own_warnings():
            heads = AggregateHeads(by=None).transform(pairs)
        table = _experiment(bm25, ranker, pairs, topics, qrels)
    _say(f"Patching single positions of {_EXAMPLES} examples for the report.")
    examples = _examples(ranker, pairs, options.direction)
    files = _write(options, ranker, results, heads, table, examples)
    _report(heads, table)
    _say(f"\nWrote {', '.join(map(str, files))} in {time.perf_counter() - begin:.0f} s.")


def _perturbation(name: str, idf: Any, ranker: Ranker, seed: int) -> Perturbation:
    known = by_name()
    if name not in known:
        raise CommandError(f"unknown perturbation {name!r}; choose one of {', '.join(sorted(known))}.")
    parameters = signature(known[name]).parameters
    given = {"idf": idf, "seed": seed, "sentence": "This is not about the question."}
    return known[name](**{key: value for key, value in given.items() if key in parameters}).bind(ranker)


def _say(text: str) -> None:
    print(text, flush=True)


def _experiment(
    bm25: pt.Transformer, ranker: Interactive, pairs: pd.DataFrame, topics: pd.DataFrame, qrels: pd.DataFrame
) -> pd.DataFrame:
    from ir_measures import AP, RR, nDCG

    measures = [nDCG @ 10, RR, AP]
    names = ["BM25", f"BM25 >> {ranker.short_name}", "... >> PerturbDocs >> PatchScorer"]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pt.Experiment([bm25, bm25 >> ranker.scorer(), pairs], topics, qrels, measures, names=names)
    return table[["name", *map(str, measures)]]


def _results(path: Path) -> PatchResults:
    """An artifact without results; those of an earlier demo are removed."""
    try:
        if PatchResults(path).about["versions"]:
            shutil.rmtree(path)
        return PatchResults(path)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _examples(ranker: Ranker, pairs: pd.DataFrame, direction: str) -> pd.DataFrame:
    """The pairs of the largest score changes, each of another query, with the effects of their single positions."""
    moved = change(pairs["score_baseline"], pairs["score_perturbed"]).abs().dropna().sort_values(ascending=False)
    chosen = pairs.loc[moved.index].drop_duplicates("qid").head(_EXAMPLES)
    scorer = PatchScorer(ranker, "attn_out", positions="each", direction=direction, verbose=True)
    with own_warnings():
        return scorer.transform(chosen)


def _write(
    options: Namespace,
    ranker: Interactive,
    results: PatchResults,
    heads: pd.DataFrame,
    table: pd.DataFrame,
    examples: pd.DataFrame,
) -> list[Path]:
    report, figure, frame = (options.out / name for name in ("report.html", "heads.png", "heads.parquet"))
    heads.to_parquet(frame)
    title = f"{ranker.short_name}: effect of each head under {options.perturbation} ({options.direction})"
    drawn = plot_heads(heads, title=title).get_figure(root=True)
    assert drawn is not None
    drawn.savefig(figure, dpi=150)
    results.report(report, experiment=table, examples=examples, title=title)
    return [report, figure, frame, options.out / "results"]


def _report(heads: pd.DataFrame, table: pd.DataFrame) -> None:
    first = heads.iloc[0]
    _say(
        f"\nThe perturbation moves the score by {first['mean_delta']:+.3f} on average ({first['n_pairs']} pairs, "
        f"{first['n_skipped']} skipped).\nThe heads that carry most of it, as a fraction of that change:\n"
    )
    strongest = heads.reindex(heads["score"].abs().sort_values(ascending=False).index).head(10)
    columns = {"docno": "name", "layer": "layer", "head": "head", "score": "effect", "ci_low": "from", "ci_high": "to"}
    rows = strongest[[*columns]].rename(columns=columns).dropna(axis=1, how="all")  # one query has no intervals
    _say(rows.to_string(index=False, float_format="{:+.3f}".format))
    _say("\npt.Experiment on the same queries:\n")
    _say(table.to_string(index=False, float_format="{:.3f}".format))
