"""The report: everything that a run found, as one HTML file that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from pyterrier_mechir._version import __version__
from pyterrier_mechir.plots.colours import STEPS, scale
from pyterrier_mechir.plots.explained import is_explained
from pyterrier_mechir.plots.markup import LITERAL_CLASSES, number, signed
from pyterrier_mechir.plots.report.effects import effect_maps, strongest
from pyterrier_mechir.plots.report.examples import Examples, make_examples
from pyterrier_mechir.plots.report.ranking import spared
from pyterrier_mechir.plots.report.tables import as_given, definitions, effectiveness, pair_rows, run_of
from pyterrier_mechir.plots.report.words import words_of
from pyterrier_mechir.plots.word_markup import RULES
from pyterrier_mechir.results.aggregate import aggregate
from pyterrier_mechir.results.effects import change
from pyterrier_mechir.results.frames import METADATA, check_columns, has_token_effects

_NO_EFFECTS: dict[str, Any] = {"maps": [], "strongest": [], "n_components": 0, "has_p": False}


def write_report(
    frame: pd.DataFrame,
    path: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    qrels: pd.DataFrame | None = None,
    experiment: pd.DataFrame | None = None,
    examples: pd.DataFrame | None = None,
    title: str | None = None,
    ranking_effects: pd.DataFrame | None = None,
    words: pd.DataFrame | None = None,
) -> Path:
    """Write what a run found as one HTML file, which loads nothing and works offline.

    It has what was run, the effectiveness of the ranking, maps of the effects of components with intervals and
    p-values, the strongest components, example pairs, a table of all pairs, the words behind scores, how to read it and
    what to cite. What the frame does not have is left out: that of explained scores has words and no pairs.

    Args:
        frame: the output of :class:`~pyterrier_mechir.PatchScorer` or :class:`~pyterrier_mechir.PairScorer`: ``qid,
            query, docno, score, score_baseline, score_perturbed`` and, for effects, ``patch_scores, patch_effect``; or
            that of :class:`~pyterrier_mechir.ExplainScore`.
        path: of the file; its directory has to be there.
        about: what was run, beside what the frame says: a nested mapping.
        qrels: judgments, ``qid, docno, label``, for nDCG@10, RR and AP of the ranking.
        experiment: a frame of ``pt.Experiment``, which is shown in their place.
        examples: the output of ``PatchScorer(positions="each")`` for a few of the pairs, whose effects colour the
            tokens of the texts. A frame that has these itself needs none.
        title: of the report.
        ranking_effects: the output of :class:`~pyterrier_mechir.RankingEffects`, for what the ranking can spare.
        words: the output of :class:`~pyterrier_mechir.ExplainScore`, for the words behind scores.

    Returns:
        The path.

    Raises:
        pt.validate.InputValidationError: a column is missing.
        ValueError: the frame is empty, is of ablations, or does not say which components its arrays hold; examples of
            a frame without pairs; or units that do not stand in the text of their row.
    """
    found = _words(frame, examples) if is_explained(frame) else _pairs(frame, examples, qrels)
    run = run_of(frame, about)
    if words is not None:
        found["words"] = words_of(words)
    page = _template().render(
        title=title or _title(run, has_pairs=bool(found["n_pairs"])),
        run=definitions(run),
        measured=effectiveness(frame, qrels) if experiment is None else as_given(experiment),
        spared=[] if ranking_effects is None else spared(ranking_effects),
        version=__version__,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **found,
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _pairs(frame: pd.DataFrame, examples: pd.DataFrame | None, qrels: pd.DataFrame | None) -> dict[str, Any]:
    """What the page has of pairs."""
    needed = ["qid", "query", "docno", "score", "score_baseline", "score_perturbed"]
    if "ablated_scores" in frame.columns and "score_perturbed" not in frame.columns:
        raise ValueError(
            "these are scores of ablations, which have no pairs to report; give RankingEffects(qrels) of them to the "
            "report of patched pairs, as ranking_effects=, or to plot_heads."
        )
    check_columns(frame, needed)
    if not len(frame):
        raise ValueError("the frame holds no pairs, so there is nothing to report.")
    text_field = frame.attrs.get(METADATA, {}).get("scorer", {}).get("text_field", "text")
    if examples is not None:
        check_columns(examples, needed)
    shown = make_examples(frame if examples is None else examples, text_field, spread=examples is None)
    return {
        "facts": _facts(frame),
        **_effects(frame),
        "examples": shown,
        "grades": _grades(qrels),
        "data": _data(shown),
        "pairs": pair_rows(frame, text_field),
        "n_pairs": len(frame),
        "words": {},
    }


def _words(frame: pd.DataFrame, examples: pd.DataFrame | None) -> dict[str, Any]:
    """What the page has of explained scores, and the places of pairs, which are empty."""
    if examples is not None:
        raise ValueError("examples are of pairs, of which a frame of explained scores has none; leave them out.")
    if not len(frame):
        raise ValueError("the frame holds no documents, so there is nothing to report.")
    nothing = Examples([], "document", [], 0, [], [])
    return {
        **_NO_EFFECTS,
        "notes": [],
        "facts": [("documents", f"{len(frame):,}"), ("queries", f"{frame['qid'].nunique():,}")],
        "examples": nothing,
        "grades": {},
        "data": _data(nothing),
        "pairs": [],
        "n_pairs": 0,
        "words": words_of(frame),
    }


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pyterrier_mechir.plots", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    style, script = ((files(__package__) / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment.globals |= {
        "literal": LITERAL_CLASSES,
        "number": number,
        "signed": signed,
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": b64encode(sha256(script.encode()).digest()).decode(),
        "scale": scale(),
        "word_rules": Markup(RULES),
    }
    return environment.get_template("report.html")


def _title(run: Mapping[str, Any], *, has_pairs: bool) -> str:
    ranker = run.get("ranker")
    name = ranker.get("name") if isinstance(ranker, Mapping) else ranker
    perturbation = run.get("perturbation")
    of = f" of {Path(str(name)).name}" if name else ""
    if not has_pairs:
        return f"Words behind the scores{of}"
    under = f" under {str(perturbation).partition('(')[0]}" if perturbation else ""
    return f"Activation patching{of}{under}"


def _facts(frame: pd.DataFrame) -> list[tuple[str, str]]:
    delta = change(frame["score_baseline"], frame["score_perturbed"])
    return [
        ("pairs", f"{len(frame):,}"),
        ("queries", f"{frame['qid'].nunique():,}"),
        ("pairs without scores", f"{int(delta.isna().sum()):,}"),
        ("mean change of the score", signed(delta.mean())),
    ]


def _effects(frame: pd.DataFrame) -> dict[str, Any]:
    """The maps, the strongest components, how many there are, and what is to be said about them."""
    if "patch_effect" not in frame.columns:
        return _NO_EFFECTS | {"notes": ["Nothing was patched: these are the scores of both sides of each pair."]}
    if has_token_effects(frame):
        note = "Effects of single positions belong to one text each and are not aggregated: see the example pairs."
        return _NO_EFFECTS | {"notes": [note]}
    heads = aggregate(frame, by=None)
    maps, notes = effect_maps(heads)
    metadata = frame.attrs.get(METADATA, {})
    if metadata.get("direction") == "both":
        notes.append("Both directions were swept; these are the effects of the first, denoise.")
    if "metric" in metadata:
        notes.append(f"What is measured before and after is {metadata['metric']}, not the ranker's score.")
    if heads["score"].isna().all():
        notes.append("No effect could be measured: the perturbation applies to none of the pairs.")
    return {
        "maps": maps,
        "strongest": strongest(heads),
        "n_components": len(heads),
        "has_p": bool(heads["p_adjusted"].notna().any()),
        "notes": notes,
    }


def _grades(qrels: pd.DataFrame | None) -> dict[tuple[str, str], Any]:
    if qrels is None:
        return {}
    return dict(
        zip(zip(qrels["qid"].astype(str), qrels["docno"].astype(str), strict=True), qrels["label"], strict=True)
    )


def _data(examples: Examples) -> dict[str, Any]:
    """What the script needs to colour the tokens by another site."""
    effects = [of_pair.astype(object) for of_pair in examples.effects]
    for of_pair in effects:
        of_pair[of_pair != of_pair] = None
    return {
        "steps": STEPS,
        "chosen": examples.chosen,
        "sites": [name for name, _ in examples.sites],
        "layers": [layer for _, layer in examples.sites],
        "pairs": [
            {"limit": round(pair.limit, 4), "effects": of_pair.tolist()}
            for pair, of_pair in zip(examples.pairs, effects, strict=False)
        ],
    }
