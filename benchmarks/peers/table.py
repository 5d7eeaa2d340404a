"""The table and the figure of a comparison."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import pyplot as plt

from pyterrier_mechir.plots.style import QUALITATIVE, QUIET, SMALL, finish

TASKS = {
    "head": "every head, at all positions",
    "block": "resid_pre, attn_out and mlp_out of every layer, at each position",
}
TITLES = {"head": "heads", "block": "blocks x positions"}


class Row(NamedTuple):
    """What one system took; ``seconds`` is the median of the rounds, per pair."""

    model: str
    task: str
    system: str
    seconds: float
    times_ours: float
    seconds_of_rounds: list[float]
    batch_size: int
    padded_to: int
    n_pairs: int
    sites_timed: str
    agreement: str
    note: str


COLUMNS = {
    "system": "system",
    "seconds": "s per pair",
    "times_ours": "times ours",
    "batch_size": "batch",
    "padded_to": "padded to",
    "n_pairs": "pairs",
    "sites_timed": "sites timed",
    "agreement": "agreement",
    "note": "note",
}


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(rows: list[Row], conditions: list[str], directory: Path) -> str:
    """Write ``table.md``, ``table.csv`` and ``figure.png``; returns the Markdown."""
    directory.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(directory / "table.csv", index=False)
    parts = [f"- {line}\n" for line in conditions]
    for (model, task), of_task in frame.groupby(["model", "task"], sort=False):
        parts.append(f"\n**{model}: {TASKS[str(task)]}**\n\n{_markdown(of_task)}")
    text = "".join(parts)
    (directory / "table.md").write_text(text)
    _figure(frame, directory / "figure.png")
    return text


def _short(value: float, digits: int = 3) -> str:
    """A number of so many digits, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):g}"


def _markdown(frame: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "system": frame["system"],
            "seconds": frame["seconds"].map(_short),
            "times_ours": frame["times_ours"].map(lambda times: _short(times, 2)),
            "batch_size": frame["batch_size"].replace(0, "its own").astype(str),
            "padded_to": frame["padded_to"].replace(0, "longest").astype(str),
            **{name: frame[name].astype(str) for name in ("n_pairs", "sites_timed", "agreement", "note")},
        }
    )
    header = [COLUMNS[name] for name in shown]
    lines = [header, ["---"] * len(header), *shown.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figure(frame: pd.DataFrame, path: Path) -> None:
    """Seconds per pair of each system, on a logarithmic scale, a panel for each model and task."""
    panels = list(frame.groupby(["model", "task"], sort=False))
    height = sum(0.6 + 0.3 * len(of_task) for _, of_task in panels)
    ratios = [len(of_task) + 2 for _, of_task in panels]
    figure, axes = plt.subplots(
        len(panels), figsize=(7, height), height_ratios=ratios, squeeze=False, layout="constrained"
    )
    for ax, ((model, task), of_task) in zip(axes[:, 0], panels, strict=True):
        colours = [QUALITATIVE[0] if name.startswith("pyterrier") else QUIET for name in of_task["system"]]
        bars = ax.barh(of_task["system"], of_task["seconds"], color=colours)
        labels = [
            f"{_short(s)} s ({_short(t, 2)} x)" for s, t in zip(of_task["seconds"], of_task["times_ours"], strict=True)
        ]
        ax.bar_label(bars, labels, padding=3, fontsize=SMALL)
        ax.set_xscale("log")
        ax.set_xlim(of_task["seconds"].min() / 2, of_task["seconds"].max() * 6)
        ax.invert_yaxis()
        finish(ax, f"{model}, {TITLES[str(task)]}", "seconds per pair", "")
    figure.savefig(path, dpi=150)
    plt.close(figure)
