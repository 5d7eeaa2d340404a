"""What the package gives on small models, as text and numbers, to be held against what it gave before.

Everything is reached by public names, so that definitions may move between modules. As a program::

    python tests/snapshot.py DIRECTORY            # write what is found
    python tests/snapshot.py --same FIRST SECOND  # compare what two runs wrote, bit for bit

What is found is a mapping from topics to mappings from names to values, which are JSON or arrays.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parent))

import ir_measures
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyterrier as pt
import torch
from small_models import QUERIES, TEXTS, build
from snapshot_cases import CASES, FEW, MANY, PERTURBATIONS, RANKERS, documents, patched, ranker

import pyterrier_mechir as pm
from pyterrier_mechir import perturb, recipes

ROOT = Path(__file__).parents[1]

REFERENCE = Path(__file__).parent / "snapshot"

EFFECTS = ("patch_effect", "patch_effect_noise")
"""Columns divided by score differences, which may be small: only where they are missing is held."""

DROPPED = ("versions", "weights", "revision")
"""What tells the environment rather than the results."""

WORKINGS = ("direction", "method", "metric", "min_delta", "paths_to", "screen", "sites", "slots")
"""What scorers tell their own sweeps by; options of theirs are held by their signatures, and properties as such."""

MEASURES = [
    pm.AxiomAgreement,
    pm.AxiomAgreement(band=0.1) @ 2,
    pm.AxiomAgreement(sign="-"),
    pm.ScoreShift,
    pm.ScoreShift @ 1,
    pm.RankShift,
    pm.RankShift @ 2,
    pm.PatchEffect(layer=1, head=2),
    pm.EffectConcentration,
    ir_measures.RR,
]


# Values


def plain(value: Any) -> Any:
    """A value as JSON holds it, without what tells the environment."""
    if isinstance(value, dict):
        return {str(key): "(environment)" if key in DROPPED else plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr_of(value)


def repr_of(value: Any) -> str:
    """A repr without addresses and folders."""
    return re.sub(r" at 0x[0-9a-f]+|(?<=')/\S*/(?=\w+')", "", repr(value))


def of_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """The columns, dtypes, attrs and values of a frame, by name."""
    found: dict[str, Any] = {
        "columns": {str(name): str(dtype) for name, dtype in frame.dtypes.items()},
        "attrs": plain(frame.attrs),
        "rows": len(frame),
    }
    for name in frame.columns:
        found |= {f"column {name}{part}": value for part, value in _of_column(frame[name]).items()}
    return found


def _of_column(values: pd.Series) -> dict[str, Any]:
    if pd.api.types.is_float_dtype(values.dtype) and isinstance(values.dtype, np.dtype):
        return _numbers(values.name, values.to_numpy())
    cells = [math.nan if cell is None else cell for cell in values.tolist()]  # pandas 3 has no None in columns of text
    if not any(isinstance(cell, np.ndarray) for cell in cells):
        return {"": plain(cells)}
    shapes = [[str(cell.dtype), list(cell.shape)] for cell in cells]
    shapes = shapes[:1] if all(shape == shapes[0] for shape in shapes) else shapes
    return {" shapes": shapes, **_numbers(values.name, np.concatenate([cell.ravel() for cell in cells]))}


def _numbers(name: object, values: np.ndarray) -> dict[str, Any]:
    if name in EFFECTS:
        return {" missing": "".join("-" if isnan else "+" for isnan in np.isnan(values.astype(np.float64)))}
    return {"": values}


# Names


def members(owner: Any) -> list[str]:
    """The public attributes of a class that the package defines."""
    homes = {name: next((base for base in owner.__mro__ if name in vars(base)), owner) for name in dir(owner)}
    public = [n for n, home in homes.items() if not n.startswith("_") and home.__module__.startswith(pm.__name__)]
    return [n for n in public if n not in WORKINGS or isinstance(inspect.getattr_static(owner, n), property)]


def signature(of: Any) -> str:
    """The parameters of a function or a class, with their kinds and defaults, without types."""
    try:
        found = inspect.signature(of)
        if inspect.isclass(of) and str(found) == "(*args, **kwargs)":  # what Python 3.10 says of PyTerrier's stages
            found = inspect.signature(partial(of.__init__, None))
    except (TypeError, ValueError):
        return "(none)"
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return re.sub(r" at 0x[0-9a-f]+", "", str(found.replace(parameters=bare, return_annotation=found.empty)))


def described(of: Any) -> Any:
    """A class, function or other object by its signature and attributes."""
    if not inspect.isclass(of):
        return {"signature": signature(of)} if inspect.isroutine(of) else {"repr": repr_of(of)}
    attributes = {name: inspect.getattr_static(of, name) for name in members(of)}
    return {
        "signature": signature(of),
        "attributes": {name: _kind(attribute) for name, attribute in attributes.items()},
    }


def _kind(attribute: Any) -> str:
    if isinstance(attribute, (staticmethod, classmethod)):
        return f"{type(attribute).__name__} {signature(attribute.__func__)}"
    if inspect.isfunction(attribute):
        return f"method {signature(attribute)}"
    if isinstance(attribute, (property, cached_property)):
        return "property"
    simple = attribute is None or isinstance(attribute, (str, int, float, bool))
    return repr(attribute) if simple else "value"


def names() -> dict[str, Any]:
    """What the package exports, and how each is called."""
    found: dict[str, Any] = {"__all__": sorted(pm.__all__), "perturb.__all__": sorted(perturb.__all__)}
    found |= {name: described(getattr(pm, name)) for name in pm.__all__}
    found |= {f"perturb.{name}": described(getattr(perturb, name)) for name in perturb.__all__}
    return found | {f"recipes.{name}": described(getattr(recipes, name)) for name in recipes.__all__}


def measures_declared() -> dict[str, Any]:
    """What the measures say of themselves."""
    declared = ("AxiomAgreement", "ScoreShift", "RankShift", "PatchEffect", "EffectConcentration")
    found = {}
    for name in declared:
        measure = getattr(pm, name)
        parameters = {key: repr_of(info.dtype) for key, info in measure.SUPPORTED_PARAMS.items()}
        found[name] = [measure.NAME, measure.PRETTY_NAME, measure.SHORT_DESC, parameters, list(measure.NEEDED)]
    return found


# Rankers and perturbations


def of_ranker(name: str) -> dict[str, Any]:
    """What a ranker of the table says of itself, what can be patched in it, and its scores."""
    made = ranker(name)
    sites = made.sites()
    return {
        "repr": repr(made),
        "about": plain(made.about()),
        "attributes": sorted(key for key in vars(made) if not key.startswith("_")),
        "sites": sites["component"].value_counts(sort=False).to_dict(),
        "hooks": sites.drop_duplicates("component")["hook"].tolist(),
        "parts": sites.drop_duplicates("component")["n_parts"].tolist(),
        "scores": made.score(QUERIES[:4], TEXTS[:4]),
    }


def of_perturbation(name: str) -> dict[str, Any]:
    """The pair that a perturbation of the table makes, and what it claims."""
    made, query, text = PERTURBATIONS[name]
    pair = made.pair(text, query)
    claims = [made.name, made.alignment, made.sign, made.own_baseline, made.fits_queries]
    return {
        "pair": [pair.baseline, pair.perturbed],
        "holds": bool(made.holds(pair.baseline, pair.perturbed, query)),
        "claims": claims,
        "described": repr_of(made.described()),
        "repr": repr_of(made),
    }


def lens() -> dict[str, Any]:
    """What is done by hand with a ranker: hook points, activations and their replacement."""
    made = ranker("cross")
    scores, cache = made.run_with_cache(QUERIES[0], TEXTS[1])
    zeroed = made.run_with_hooks(QUERIES[0], TEXTS[1], fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)])
    return {
        "hooks": sorted(made.hook_dict),
        "kept": sorted(cache.keys()),
        "scores": scores.detach().numpy(),
        "z": cache["z", 1][0, 3].detach().numpy(),
        "zeroed": zeroed.detach().numpy(),
    }


def loaded() -> dict[str, Any]:
    """Rankers made of directories."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, classifier in (("bi", False), ("cross", True)):
            path = Path(folder) / kind
            for part in build("bert", classifier):
                part.save_pretrained(path)
            made = pm.load_ranker(str(path), device="cpu")
            about = {key: value for key, value in plain(made.about()).items() if key != "name"}
            found |= {f"{kind} about": about, f"{kind} scores": made.score(QUERIES[:2], TEXTS[:2])}
    return found


# Stages


def of_stage(stage: Any, frame: pd.DataFrame) -> dict[str, Any]:
    """A stage's output, its name, its attributes and the columns that it tells beforehand."""
    columns = list(frame.columns)
    try:
        told = sorted(pt.inspect.transformer_outputs(stage, columns))
    except pt.inspect.InspectError as error:
        told = [type(error).__name__]
    about = getattr(stage, "about", None)
    return {
        "repr": repr_of(stage),
        "attributes": sorted(
            key for key in vars(stage) if not key.startswith("_") and key not in ("paths_to", "slots")
        ),
        "outputs": told,
        "schematic": plain(getattr(stage, "schematic", None)),
        "about": None if about is None else plain(about()),
        "inner": sorted(pt.inspect.subtransformers(stage)),
        **of_frame(stage.transform(frame)),
    }


def _autoencoder() -> Any:
    made = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (32, 50), "b_enc": (50,), "W_dec": (50, 32), "b_dec": (32,)}
    return pm.SparseAutoencoder({name: torch.randn(shape, generator=made) / 4 for name, shape in shapes.items()})


def _pairs(frame: pd.DataFrame = FEW) -> pd.DataFrame:
    return pm.PerturbDocs(perturb.TFC1()).transform(frame)


def _results(name: str = "cross", **options: Any) -> pd.DataFrame:
    return pm.PatchScorer(ranker(name), **options).transform(_pairs(MANY))


def _attention(name: str, **options: Any) -> dict[str, Any]:
    return of_stage(pm.AttentionPatterns(ranker(name), heads=["L1H2", (2, 0)], **options), _pairs())


def _control() -> Any:
    return pm.PerturbDocs(perturb.TFC1(), control="random_term", idf=perturb.Idf.of(TEXTS), ranker=ranker("bi"))


def _compared() -> Any:
    return pm.CompareHeads(pm.PatchScorer(ranker("cross")), pm.PatchScorer(ranker("cross"), filler="mask"), n_boot=50)


def _sweep() -> dict[str, Any]:
    made = pm.Sweep(perturb.TFC1, position=["start", "end"], n=[1, 2])
    last = made["TFC1(position=start, n=2)"]
    pipelines = made.pipelines(after=pm.PairScorer(ranker("bi")))
    return {"repr": repr(made), "names": list(pipelines), **of_stage(last, FEW)}


STAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "Scorer": lambda: of_stage(ranker("bi").scorer(), FEW),
    "PairScorer": lambda: of_stage(pm.PairScorer(ranker("cross")), FEW),
    "PairScorer, both sides": lambda: of_stage(pm.PairScorer(ranker("bi"), perturbation=perturb.TFC2()), FEW),
    "PairScorer, free": lambda: of_stage(
        pm.PairScorer(ranker("bi")), FEW.assign(text_perturbed="night day", alignment="free")
    ),
    "PairScorer, missing": lambda: of_stage(
        pm.PairScorer(ranker("cross")), FEW.assign(text_perturbed=[None, "tides day", None])
    ),
    "PatchScorer": lambda: of_stage(pm.PatchScorer(ranker("cross"), direction="both"), FEW),
    "PatchScorer, no rows": lambda: of_stage(pm.PatchScorer(ranker("cross")), FEW.head(0)),
    "PatchScorer, other field": lambda: of_stage(
        pm.PatchScorer(ranker("bi"), "mlp_out", text_field="body", perturbation=perturb.TFC1("heat")),
        FEW.rename(columns={"text": "body"}),
    ),
    "PatchFeatures": lambda: of_stage(pm.PatchFeatures(ranker("bi"), _autoencoder(), "L1.resid_post", k=4), _pairs()),
    "PatchFeatures, chosen": lambda: of_stage(
        pm.PatchFeatures(ranker("cross"), _autoencoder(), "L1.mlp_out", features=[3, 9]), _pairs()
    ),
    "PerturbDocs": lambda: of_stage(pm.PerturbDocs(perturb.TFC1()), FEW),
    "PerturbDocs, own baseline": lambda: of_stage(pm.PerturbDocs(perturb.TFC2()), FEW),
    "PerturbDocs, control": lambda: of_stage(_control(), FEW),
    "PerturbDocs, similar": lambda: of_stage(pm.PerturbDocs(perturb.STMC1(), ranker=ranker("bi")), FEW),
    "PerturbQueries": lambda: of_stage(pm.PerturbQueries(perturb.Typos()), FEW[["qid", "query"]]),
    "AttentionPatterns": lambda: _attention("bi"),
    "AttentionPatterns, features": lambda: _attention(
        "cross", features=("lexical_match", "rarity", "interaction"), idf=TEXTS, rare_above=1.0
    ),
    "ScoreLens": lambda: of_stage(pm.ScoreLens(ranker("cross")), FEW),
    "ScoreLens of a bi-encoder": lambda: of_stage(pm.ScoreLens(ranker("bi mean")), FEW),
    "ScoreAttribution": lambda: of_stage(pm.ScoreAttribution(ranker("bi")), FEW),
    "ScoreAttribution, mean": lambda: of_stage(pm.ScoreAttribution(ranker("bi mean")), FEW),
    "Steer": lambda: of_stage(
        pm.Steer(ranker("cross"), {"L0.resid_post": np.linspace(-1, 1, 32), "L1H2": np.ones(8)}, 0.5), FEW
    ),
    "Sweep": _sweep,
}

STATISTICS: dict[str, Callable[[], dict[str, Any]]] = {
    "AggregateHeads": lambda: of_stage(pm.AggregateHeads(by=None, n_boot=100), _results()),
    "AggregateHeads, by query": lambda: of_stage(pm.AggregateHeads(estimator="difference"), _results().head(6)),
    "AggregateHeads, several": lambda: of_stage(
        pm.AggregateHeads(by=None, estimator=["ratio_of_means", "median", "mean_of_ratios", "difference"], n_boot=20),
        _results(component="mlp_out", min_delta=0.1),
    ),
    "AggregateHeads, weights": lambda: of_stage(
        pm.AggregateHeads(by=None, weights="grade", n_boot=0), _results(layers=[1]).assign(grade=[1, 0, 2] * 5)
    ),
    "AggregateHeads, classes": lambda: of_stage(
        pm.AggregateHeads(by=None, n_boot=0), _results(component="attn_out", positions="class", layers=[0, 1])
    ),
    "CompareHeads": lambda: of_stage(_compared(), MANY),
    "compare_heads": lambda: of_frame(pm.compare_heads(_results(), _results(filler="mask"), n_boot=50)),
    "head_agreement": lambda: of_frame(pm.head_agreement(_results(), _results(filler="mask"), k=3, n_boot=50)),
    "split_halves": lambda: of_frame(pm.split_halves(_results(), k=3, n_splits=20)),
    "explode_effects": lambda: of_frame(
        pm.explode_effects(_results("bi", heads=[(1, 2)], positions="each").head(4)).drop(columns="patch_effect")
    ),
    "head_qrels": lambda: of_frame(pm.head_qrels(pm.AggregateHeads(by=None, n_boot=0)(_results()), k=5)),
    "lens_agreement": lambda: of_frame(pm.lens_agreement(pm.ScoreLens(ranker("cross"))(MANY))),
    "measures": lambda: of_measures(_results()),
    "experiment": lambda: of_experiment(),
    "circuit": lambda: of_circuit(growth="top_k"),
    "circuit, greedy": lambda: of_circuit(growth="greedy", component="mlp_out"),
}
"""What divides by score differences, or counts resamples."""


def of_measures(frame: pd.DataFrame) -> dict[str, Any]:
    """The measures of one frame, query by query and over all."""
    run = frame.rename(columns={"qid": "query_id", "docno": "doc_id"})
    qrels = run[["query_id", "doc_id"]].assign(relevance=1)
    each = [[str(one.measure), one.query_id, one.value] for one in ir_measures.iter_calc(MEASURES, qrels, run)]
    overall = ir_measures.calc_aggregate(MEASURES, qrels, run)
    return {"each": plain(sorted(each, key=str)), "all": {str(name): plain(overall[name]) for name in MEASURES}}


def of_experiment() -> dict[str, Any]:
    """The measures in an experiment of two pipelines."""
    made = ranker("cross")
    systems = [made.scorer(), pm.PerturbDocs(perturb.TFC1()) >> pm.PatchScorer(made)]
    pipelines = [pt.Transformer.from_df(MANY) >> system for system in systems]
    qrels = MANY[["qid", "docno"]].assign(label=1)
    topics = MANY[["qid", "query"]].drop_duplicates()
    found = pt.Experiment(pipelines, topics, qrels, MEASURES, names=["plain", "patched"])
    return of_frame(found[sorted(found.columns)])


def of_circuit(**options: Any) -> dict[str, Any]:
    """A curve of circuits and its measures."""
    curve = pm.grow_circuit(ranker("cross"), _pairs(), n_random=2, **options)
    return of_frame(curve) | {"measures": plain(pm.circuit_measures(curve))}


def functions() -> dict[str, Any]:
    """What the functions beside the stages give."""
    read = pm.attention_of(ranker("cross"), QUERIES[1], TEXTS[1], ["L1H2", (0, 3)])
    vectors = pm.steering_vectors(_pairs(), ranker("bi"), ["L1.resid_post", "L0H2"])
    kinds = [_autoencoder().encode(torch.linspace(-1, 1, 32)), _autoencoder().decode(torch.linspace(-1, 1, 50))]
    return {
        "attention_of": [read.tokens, read.token_classes],
        "attention_of weights": read.weights,
        **{f"steering_vectors {name}": np.asarray(vector) for name, vector in vectors.items()},
        "autoencoder": repr(_autoencoder()),
        "autoencoder encoded": kinds[0].numpy(),
        "autoencoder decoded": kinds[1].numpy(),
        "expansion": of_expansion(),
    }


def of_expansion() -> list[Any]:
    """The heaviest terms of a text."""
    return ranker("splade").expand(TEXTS[1]).iloc[:5, 0].tolist()


def warned() -> dict[str, Any]:
    """What the scorers warn of."""
    frames = {
        "cut": ("bi short", documents((0, 5), (1, 5))),
        "same": ("bi", FEW.assign(text_perturbed=[FEW["text"].iloc[0], "tides day", "bats"])),
        "untouched": ("bi", FEW.assign(text_perturbed="a", alignment="free")),
    }
    found = {}
    for name, (of_ranker_, frame) in frames.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pm.PatchScorer(ranker(of_ranker_)).transform(frame)
                error = ""
            except ValueError as raised:
                error = str(raised)
        told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        found[name] = [*told, error]
    return found


# What is written


def artifact() -> dict[str, Any]:
    """An artifact: its files, its description, its columns, and what is read of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results"
        stage = pm.PatchScorer(ranker("cross"), direction="both").store(path, shard_size=2)
        written = of_frame(stage.transform(_pairs()))
        results = pm.PatchResults(path)
        shards = sorted(path.glob("shards/*.parquet"))
        schema = pq.read_schema(shards[0])
        found = {
            "meta": plain(json.loads((path / "pt_meta.json").read_text())),
            "files": _layout(path),
            "schema": {field.name: str(field.type) for field in schema},
            "schema metadata": sorted(key.decode() for key in schema.metadata or {}),
            "repr": repr_of(stage),
            "digest": results.digest,
            "about": plain(results.about),
            "length": len(results),
        }
        found |= {f"written {name}": value for name, value in written.items()}
        found |= {f"pairs {name}": value for name, value in of_frame(results.pairs()).items()}
        found |= {f"read {name}": value for name, value in of_frame(results.frame()).items()}
        stage.transform(_pairs())
        return found | {"files, run again": _layout(path)}


def _layout(path: Path) -> list[str]:
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return [re.sub(r"[0-9a-f]{32}", "(digest)", name) for name in files]


def long_run() -> dict[str, Any]:
    """An artifact that a long run writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        pipeline = pm.PerturbDocs(perturb.TFC1()) >> pm.PatchScorer(ranker("bi"), "mlp_out")
        results = pm.run_sweep(pipeline, FEW, path, shard_size=2, verbose=False)
        return {"files": _layout(path), "digest": results.digest, **of_frame(results.frame())}


# Ways in


def entry_points() -> dict[str, Any]:
    """The entry points of the distribution and the names of what they point to; all are imported."""
    tables = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tables.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"scripts": project["scripts"], **project["entry-points"]}
    return {
        group: {name: getattr(import_module(at.partition(":")[0]), at.partition(":")[2]).__name__
                for name, at in points.items()}
        for group, points in groups.items()
    }  # fmt: skip


def command_line() -> dict[str, Any]:
    """The commands and their options."""
    found: dict[str, Any] = {}
    for command in ("", "demo", "run", "report", "perturbations"):
        arguments = [sys.executable, "-m", "pyterrier_mechir", *filter(None, [command]), "--help"]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120)
        options = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.stdout)))
        found[command or "(none)"] = {"status": done.returncode, "options": options}
        if not command:
            found["commands"] = re.findall(r"^ {4}(\w+)", done.stdout, re.MULTILINE)
    return found


def notebook() -> dict[str, Any]:
    """How frames and rankers look in a notebook; numbers are left out."""
    from IPython.core.interactiveshell import InteractiveShell

    with tempfile.TemporaryDirectory() as folder:
        shell = InteractiveShell(ipython_dir=folder)
        shell.history_manager.end_session()
        shell.run_line_magic("load_ext", "pyterrier_mechir.notebook")
        results = pm.PatchScorer(ranker("bi")).transform(_pairs())
        shown = {
            "results": results,
            "components": pm.AggregateHeads(by=None, n_boot=0)(results),
            "ranker": ranker("bi"),
        }
        pages = {name: shell.display_formatter.format(thing)[0] for name, thing in shown.items()}
        return {name: [sorted(page), _words(page.get("text/html", ""))] for name, page in pages.items()}


def _words(page: str) -> list[str]:
    """The words of a page, of which those with a digit are left out."""
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return [word for word in text.split() if not re.search(r"\d", word)]


def of_case(name: str) -> dict[str, Any]:
    """The results of a patched run, and whether they still have what was put in, and tell the ranker."""
    case = CASES[name]
    frame = patched(case)
    inputs = list(case.frame.columns)
    told = frame.attrs["mechir"].pop("ranker")
    return {
        "inputs": list(frame.columns[: len(inputs)]) == inputs and frame[inputs].equals(case.frame),
        "ranker": told == ranker(case.ranker).about(),
        **of_frame(frame.drop(columns=inputs)),
    }


TOPICS: dict[str, Callable[[], dict[str, Any]]] = {
    "names": names,
    "measures declared": measures_declared,
    "lens": lens,
    "loaded": loaded,
    "functions": functions,
    "warnings": warned,
    "artifact": artifact,
    "long run": long_run,
    "entry points": entry_points,
    "command line": command_line,
    "notebook": notebook,
    **{f"ranker: {name}": lambda name=name: of_ranker(name) for name in RANKERS},
    **{f"perturbation: {name}": lambda name=name: of_perturbation(name) for name in PERTURBATIONS},
    **{f"stage: {name}": made for name, made in STAGES.items()},
    **{f"statistics: {name}": made for name, made in STATISTICS.items()},
    **{f"patched: {name}": lambda name=name: of_case(name) for name in CASES},
}
"""How each topic is found."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """On one thread, without warnings, progress bars and what is printed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pt.documentation._cached_objects_inv = {}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)


def find(topic: str) -> dict[str, Any]:
    """What the package gives of a topic."""
    with quietly():
        return TOPICS[topic]()


# Files


def save(found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write a snapshot to a folder."""
    write(found, folder / "snapshot.json", folder / "snapshot.npz")


def write(found: dict[str, dict[str, Any]], text: Path, numbers: Path) -> None:
    """Write a snapshot to two files.

    The arrays of each dtype stand one after the other, in the order of the text. A long value that an earlier topic has
    under the same name is told by that topic.
    """
    text.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, list[np.ndarray]] = {}
    told: dict[str, dict[str, Any]] = {}
    firsts: dict[tuple[str, str], str] = {}
    for topic, values in found.items():
        told[topic] = {}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                arrays.setdefault(str(value.dtype), []).append(value.ravel())
                value = {"array": [str(value.dtype), list(value.shape)]}
            first = firsts.setdefault((name, json.dumps(value)), topic)
            is_repeated = first != topic and len(json.dumps(value)) > 60
            told[topic][name] = {"as": first} if is_repeated else value
    text.write_text(json.dumps(told, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    np.savez_compressed(numbers, **{dtype: np.concatenate(parts) for dtype, parts in arrays.items()})


def read(text: Path, numbers: Path) -> dict[str, dict[str, Any]]:
    """What :func:`write` wrote."""
    found = json.loads(text.read_text())
    with np.load(numbers) as file:
        flat = {name: file[name] for name in file.files}
    at = dict.fromkeys(flat, 0)
    for values in found.values():
        for name, value in values.items():
            if isinstance(value, dict) and list(value) == ["array"]:
                dtype, shape = value["array"]
                size = math.prod(shape)
                values[name] = flat[dtype][at[dtype] : at[dtype] + size].reshape(shape)
                at[dtype] += size
            elif isinstance(value, dict) and list(value) == ["as"]:
                values[name] = found[value["as"]][name]
    return found


def different(first: Path, second: Path) -> list[str]:
    """What is not the same, to the bit, in two folders."""
    one, other = (read(folder / "snapshot.json", folder / "snapshot.npz") for folder in (first, second))
    faults = []
    for topic in [*one, *(topic for topic in other if topic not in one)]:
        sides = one.get(topic, {}), other.get(topic, {})
        for name in [*sides[0], *(name for name in sides[1] if name not in sides[0])]:
            if name not in sides[0] or name not in sides[1]:
                faults.append(f"{topic}: {name}: only in {first if name in sides[0] else second}")
            elif not _is_same(sides[0][name], sides[1][name]):
                faults.append(f"{topic}: {name}: {_shown(sides[0][name])} and {_shown(sides[1][name])}")
    return faults


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return type(one) is type(other) and bool(json.dumps(one) == json.dumps(other))


def _shown(value: Any) -> str:
    shown = np.array2string(value, threshold=8) if isinstance(value, np.ndarray) else json.dumps(value)
    return shown if len(shown) < 200 else f"{shown[:200]}..."


def main() -> int:
    """Write what is found, or compare what was written."""
    parser = argparse.ArgumentParser(description="What the package gives on small models.")
    parser.add_argument("--same", action="store_true", help="compare two directories, bit for bit")
    parser.add_argument("--reference", action="store_true", help="write the reference of the tests instead")
    parser.add_argument("directories", nargs="*", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    if options.same:
        faults = different(*options.directories)
        print("\n".join(faults) or "the same")
        return 1 if faults else 0
    found = {topic: find(topic) for topic in TOPICS}
    if options.reference:
        write(found, REFERENCE / "reference.json", REFERENCE / "reference.npz")
    for folder in options.directories:
        save(found, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
