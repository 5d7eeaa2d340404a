"""How frames and rankers look in a notebook.

``register(get_ipython())``, or ``%load_ext pyterrier_mechir.notebook``, lets IPython show the frames of ``PatchScorer``
and ``AggregateHeads`` with drawings of their effects, those of ``RankingEffects`` with a sentence that says whether
they are more than noise, and those of ``ExplainScore`` as rankings whose words are coloured. All other frames look as
pandas shows them. Edits, perturbations and stored results are tables of what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pyterrier_mechir.perturb.base import Perturbation
    from pyterrier_mechir.rankers.base import Ranker

_PATCHED = {"qid", "docno", "score_baseline", "score_perturbed", "patch_scores", "patch_effect"}
_AGGREGATED = {"docno", "component", "layer", "score", "n_pairs", "n_skipped", "p_adjusted"}
_RANKINGS = {"docno", "component", "layer", "measure", "value", "score", "p_adjusted", "n_queries"}
_SHOWN = {*_PATCHED, "query", "text", "text_perturbed", "query_perturbed", "rank", "score"}
_MOST_PAIRS, _MOST_COMPONENTS = 10, 20
_MOST_CELLS = 3000
"""Effects of a pair that are drawn; of more, only the greatest is named."""
_MOST_POOLED = 5_000_000
"""Effects of a frame that are pooled for its summary."""
_LONGEST = 40

_STYLE = (
    "<style>.mechir{overflow-x:auto;font-variant-numeric:tabular-nums}.mechir p{margin:.2em 0}"
    ".mechir table{border-collapse:collapse}.mechir th{text-align:left;font-weight:600}"
    ".mechir th,.mechir td{padding:.25em .7em;vertical-align:middle;white-space:nowrap}"
    ".mechir td{text-align:left}.mechir td.n{text-align:right}.mechir svg{display:block}</style>"
)


def register(shell: Any) -> None:
    """Show frames of results as this module does, in an IPython shell.

    Args:
        shell: from ``get_ipython()``.
    """
    formatter = shell.display_formatter.formatters["text/html"]
    for module in ("pandas", "pandas.core.frame"):
        formatter.for_type_by_name(module, "DataFrame", frame_html)
    for (module, name), told in _TOLD.items():
        formatter.for_type_by_name(f"pyterrier_mechir.{module}", name, partial(_value_html, told))


def load_ipython_extension(shell: Any) -> None:
    """What ``%load_ext pyterrier_mechir.notebook`` calls."""
    register(shell)


def frame_html(frame: pd.DataFrame) -> str | None:
    """A frame as HTML: results with their effects drawn, any other as pandas gives it; it never fails.

    A dollar sign in what a stage made stays one: no notebook takes what stands between two for a formula.

    Args:
        frame: any frame. Results are recognised by their columns.
    """
    as_pandas = _as_pandas(frame)
    if as_pandas is None:
        return None
    try:
        return _results(frame) or as_pandas
    except Exception:
        return as_pandas


def _as_pandas(frame: pd.DataFrame) -> str | None:
    """A frame as pandas gives it, with the dollar signs of the texts of one that a stage made left alone."""
    import pandas as pd

    from pyterrier_mechir.results.frames import METADATA

    sets_formulas = pd.get_option("display.html.use_mathjax") and METADATA not in frame.attrs
    with pd.option_context("display.html.use_mathjax", sets_formulas):
        shown: str | None = frame._repr_html_()  # type: ignore[operator]
    if shown is None or sets_formulas or "mathjax_ignore" in shown:
        return shown
    return shown.replace("tex2jax_ignore", "tex2jax_ignore mathjax_ignore", 1)  # pandas 2 knows MathJax 2 alone


def ranker_html(ranker: Ranker) -> str:
    """A ranker as HTML: what it is, how large, and the settings that decide its scores."""
    about = ranker.about()
    n_parameters = sum(parameter.numel() for parameter in ranker.model.parameters())
    size = {
        "layers x heads": f"{ranker.n_layers} x {ranker.n_heads}",
        "parameters": f"{n_parameters:,}",
        "device": str(ranker.device),
    }
    known = {name: about.pop(name) for name in ("ranker", "name", "revision", "architecture")}
    return _value_html(lambda _: known | size | about, ranker)


def _value_html(told: Callable[[Any], Mapping[str, Any]], value: Any) -> str:
    """A value as HTML: how it is written, and what is told of it, but for what is empty."""
    rows = [
        [f'<th scope="row">{escape(name.replace("_", " "))}</th>', _cell(str(entry))]
        for name, entry in told(value).items()
        if entry not in (None, "", [], {})
    ]
    return _page(f"<p><strong>{escape(repr(value))}</strong></p>", _table([], rows))


def _of_perturbation(perturbation: Perturbation) -> dict[str, Any]:
    names = ("statement", "alignment", "sign", "change", "source")
    return {name: getattr(perturbation, name) for name in names}


_TOLD: Mapping[tuple[str, str], Callable[[Any], Mapping[str, Any]]] = {
    ("interventions.edits", "Edit"): lambda edit: edit.told(),
    ("perturb.base", "Perturbation"): _of_perturbation,
    ("results.stored.artifact", "PatchResults"): lambda results: {"pairs": len(results)} | results.about,
}
"""What is told of values, by the module and the name of their class."""


def _results(frame: pd.DataFrame) -> str | None:
    from pyterrier_mechir.plots.explained import is_explained

    columns = set(frame.columns)
    if is_explained(frame) and len(frame):
        from pyterrier_mechir.plots.word_list import ranked_words

        return ranked_words(frame)
    if columns >= _PATCHED and len(frame):
        return _patched(frame)
    if columns >= _AGGREGATED and len(frame):
        return _aggregated(frame)
    if columns >= _RANKINGS and len(frame):
        return _ranking_effects(frame)
    return None


def _patched(frame: pd.DataFrame) -> str:
    from pyterrier_mechir.results.frames import METADATA

    metadata = frame.attrs.get(METADATA, {})
    component = metadata.get("scorer", {}).get("component")
    parts = [
        f"{len(frame):,} pairs of {frame['qid'].nunique():,} queries",
        *([] if component is None else [component if isinstance(component, str) else ", ".join(component)]),
        *([metadata["direction"]] if "direction" in metadata else []),
        *_pooled(frame),
    ]
    header = ["qid", "docno", "rank", "score", "before", "after", "change", "effects", "text", "edit"]
    rows = [_pair(frame, row) for row in range(min(len(frame), _MOST_PAIRS))]
    others = [str(name) for name in frame.columns if name not in _SHOWN]
    notes = [f"{len(rows)} of {len(frame):,} pairs."] if len(frame) > len(rows) else []
    notes += [f"Other columns: {', '.join(others)}."] if others else []
    return _page(f"<p>{escape('; '.join(parts))}</p>", _table(header, rows), f"<p>{escape(' '.join(notes))}</p>")


def _pooled(frame: pd.DataFrame) -> list[str]:
    """The components of greatest absolute effect over all pairs."""
    import numpy as np

    from pyterrier_mechir.plots.markup import signed
    from pyterrier_mechir.results.aggregate import aggregate
    from pyterrier_mechir.results.frames import has_token_effects, strongest_first

    if has_token_effects(frame) or len(frame) * np.size(frame["patch_effect"].iloc[0]) > _MOST_POOLED:
        return []
    heads = aggregate(frame, by=None, n_boot=0)
    heads = strongest_first(heads[heads["score"].notna()]).head(3)
    strongest = [f"{row.docno} {signed(row.score)}" for row in heads.itertuples()]
    return [f"strongest {', '.join(strongest)}"] if strongest else []


def _pair(frame: pd.DataFrame, place: int) -> list[str]:
    from pyterrier_mechir.plots.markup import number, signed
    from pyterrier_mechir.results.effects import change
    from pyterrier_mechir.results.frames import METADATA, perturbed_side

    row = frame.iloc[place]
    field = frame.attrs.get(METADATA, {}).get("scorer", {}).get("text_field", "text")
    side = "query" if perturbed_side(frame, field) == "query" else field
    names = (field, side, f"{side}_perturbed")
    text, before, after = (row[name] if isinstance(row.get(name), str) else "" for name in names)
    scores = [row.get(name) for name in ("score", "score_baseline", "score_perturbed")]
    return [
        _cell(str(row["qid"]), title=str(row.get("query", ""))),
        _cell(str(row["docno"])),
        _cell(str(row.get("rank", "")), is_number=True),
        *(_cell(number(score), is_number=True) for score in scores),
        _cell(signed(change(row["score_baseline"], row["score_perturbed"])), is_number=True),
        f"<td>{_effects(frame, place)}</td>",
        _cell(_shortened(text), title=text),
        _cell(_around_edit(before, after), title=after),
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def _around_edit(before: str, after: str) -> str:
    """The perturbed text from shortly before the first place where it differs."""
    first = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(map(len, (before, after)))
    )
    start = max(0, first - _LONGEST // 2)
    return ("\N{HORIZONTAL ELLIPSIS}" if start else "") + _shortened(after[start:])


def _effects(frame: pd.DataFrame, place: int) -> str:
    """The effects of a pair, drawn, with the greatest named."""
    import numpy as np

    from pyterrier_mechir.plots.markup import heat_map, signed

    effects = np.asarray(frame["patch_effect"].iloc[place], dtype=np.float64)
    if not np.isfinite(effects).any():
        return "missing"
    largest = int(np.nanargmax(np.abs(effects)))
    named = f"{_name(frame, place, effects.shape, largest)} {signed(effects.ravel()[largest])}"
    matrix = _matrix(effects)
    drawn = heat_map(matrix, label=f"largest: {named}") if matrix.size <= _MOST_CELLS else ""
    return f"{drawn}<small>{escape(named)}</small>"


def _matrix(effects: np.ndarray) -> np.ndarray:
    """Effects in two axes: a strip where they have one, the greatest over positions where they have three."""
    import numpy as np

    if effects.ndim < 3:
        return np.atleast_2d(effects)
    places = np.abs(np.nan_to_num(effects)).argmax(axis=-1)
    return np.asarray(np.take_along_axis(effects, places[..., None], axis=-1)[..., 0])


def _name(frame: pd.DataFrame, place: int, shape: tuple[int, ...], index: int) -> str:
    """The site, with its position where these are apart, of a place in the flattened effects of a pair."""
    from pyterrier_mechir.results.frames import has_token_effects, labelled_sites

    sites, slots = labelled_sites(frame, shape)
    if slots is not None:
        return f"{sites[index // len(slots)].name}@{slots[index % len(slots)]}"
    if not has_token_effects(frame):
        return sites[index].name
    tokens: Sequence[str] = frame["tokens"].iloc[place]
    return f"{sites[index // len(tokens)].name} at {tokens[index % len(tokens)]}"


def _aggregated(frame: pd.DataFrame) -> str:
    from pyterrier_mechir.plots.markup import SIGNIFICANT, bar_ends, interval, interval_bar, number, p_value, signed

    shown = frame.head(_MOST_COMPONENTS)
    low, high = (shown.get(name, shown["score"]) for name in ("ci_low", "ci_high"))
    ends = bar_ends(shown["score"], low, high)
    extra = [name for name in ("qid", "estimator") if name in shown.columns and frame[name].nunique() > 1]
    header = [*extra, "rank", "component", "effect", "", "interval", "adjusted p", "pairs", "left out"]
    rows = []
    for (_, row), first, last in zip(shown.iterrows(), low, high, strict=True):
        star = " *" if row["p_adjusted"] < SIGNIFICANT else ""
        rows.append(
            [
                *(_cell(str(row[name])) for name in extra),
                _cell(str(row.get("rank", "")), is_number=True),
                _cell(str(row["docno"])),
                _cell(signed(row["score"]), is_number=True),
                f"<td>{interval_bar(row['score'], first, last, ends)}</td>",
                _cell(interval(first, last)),
                _cell(p_value(row["p_adjusted"]) + star, is_number=True),
                _cell(str(row["n_pairs"]), is_number=True),
                _cell(str(row["n_skipped"]), is_number=True),
            ]
        )
    counts = [f"{len(rows)} of {len(frame):,} rows"]
    counts += (
        [f"mean change of the score {number(frame['mean_delta'].iloc[0])}"]
        if "mean_delta" in frame.columns and not extra
        else []
    )
    marked = ["* adjusted p below 0.05"] if (shown["p_adjusted"] < SIGNIFICANT).any() else []
    return _page(f"<p>{escape('; '.join([*counts, *marked]))}</p>", _table(header, rows))


def _ranking_effects(frame: pd.DataFrame) -> str:
    """What ranking effects amount to, and those of greatest size."""
    import numpy as np

    from pyterrier_mechir.plots.markup import bar_ends, interval, interval_bar, number, p_value, signed
    from pyterrier_mechir.results.ranking_verdicts import level_of, verdicts

    largest = np.argsort(-frame["score"].abs().to_numpy(), kind="stable")[:_MOST_COMPONENTS]
    shown, alpha = frame.iloc[np.sort(largest)], level_of(frame)
    low, high = (shown.get(name, shown["score"]) for name in ("ci_low", "ci_high"))
    ends = bar_ends(shown["score"], low, high)
    header = ["measure", "rank", "component", "without it", "change", "", "interval", "adjusted p"]
    rows = [
        [
            _cell(str(row["measure"])),
            _cell(str(row.get("rank", "")), is_number=True),
            _cell(str(row["docno"])),
            _cell(number(row["value"]), is_number=True),
            _cell(signed(row["score"]), is_number=True),
            f"<td>{interval_bar(row['score'], first, last, ends)}</td>",
            _cell(interval(first, last)),
            _cell(p_value(row["p_adjusted"]) + (" *" if row["p_adjusted"] < alpha else ""), is_number=True),
        ]
        for (_, row), first, last in zip(shown.iterrows(), low, high, strict=True)
    ]
    counts = [f"The {len(rows)} greatest of {len(frame):,} changes"] if len(frame) > len(rows) else []
    counts += [f"* adjusted p below {alpha:g}"] if (shown["p_adjusted"] < alpha).any() else []
    said = "".join(f"<p>{escape(text)}</p>" for text in verdicts(frame))
    return _page(said, f"<p>{escape('; '.join(counts))}</p>", _table(header, rows))


def _cell(text: str, *, title: str = "", is_number: bool = False) -> str:
    titled = f' title="{escape(title)}"' if title and title != text else ""
    return f"<td{' class=n' if is_number else ''}{titled}>{escape(text)}</td>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    head = f"<thead><tr>{names}</tr></thead>" if header else ""
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _page(*parts: str) -> str:
    from pyterrier_mechir.plots.markup import LITERAL_CLASSES

    return f'<div class="mechir {LITERAL_CLASSES}">{_STYLE}{"".join(parts)}</div>'
