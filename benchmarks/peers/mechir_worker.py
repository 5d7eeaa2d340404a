"""MechIR's own ``Dot.patch``, under MechIR's own libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from mechir import Dot
from mechir.data import DotDataCollator
from protocol import Answer, Ask, Pairs, Site, lacking, serve

SWEEPS = {"head": "head_all", "block": "block_all"}


class Sweep:
    """One call of ``patch``: keeps the score of each patched run, and leaves out the runs that are not asked for.

    MechIR gives the mean of an effect over a batch; the metric that it is given here hands it the scores of all pairs.

    Args:
        model: the ranker, whose ``_run_patched`` this takes the place of.
        sites: the sites that are asked for.

    Attributes:
        scores: the patched scores of each site.
        seconds: what the runs of these sites took.
        first: when the first of all runs began.
    """

    def __init__(self, model: Dot, sites: Sequence[Site]):
        self.model, self.sites = model, set(sites)
        self.scores: dict[Site, np.ndarray] = {}
        self.seconds = self.first = self.begin = 0.0
        self.site: Site | None = None
        model._run_patched = self.run

    def run(self, batch, component, layer, hook):
        """What MechIR does for a site that is asked for; nothing for another."""
        self.begin = time.perf_counter()
        self.first = self.first or self.begin
        head = hook.keywords.get("head_index")
        self.site = Site(component, layer, hook.keywords["pos"]) if head is None else Site("head", layer, head)
        if self.site not in self.sites:
            return torch.zeros(())
        return Dot._run_patched(self.model, batch, component, layer, hook)

    def keep(self, patched, score, score_perturbed):
        """The metric: the scores themselves."""
        if self.site in self.sites:
            self.scores[self.site] = patched.numpy()
            self.seconds += time.perf_counter() - self.begin
        return patched


def load(pairs: Pairs) -> Callable[[Ask], Answer]:
    model = Dot(str(pairs.directory), pooling_type=pairs.pooling)
    collator = DotDataCollator(model.tokenizer, pre_perturbed=True)

    def run(ask: Ask) -> Answer:
        scores = np.full((len(ask.rows), len(ask.sites)), np.nan)
        seconds = 0.0
        for at in pairs.batches(ask):
            rows = np.array(ask.rows)[at]
            queries = pairs.inputs("queries", rows, collator.q_max_length if ask.width else 0)
            baseline, perturbed = (pairs.inputs(side, rows, ask.width) for side in ("baseline", "perturbed"))
            width = baseline["input_ids"].shape[1]
            sweep = Sweep(model, ask.sites)
            begin = time.perf_counter()
            model.patch(queries, baseline, perturbed, SWEEPS[ask.task], patching_metric=sweep.keep)
            for number, site in enumerate(ask.sites):
                if site in sweep.scores:
                    scores[at, number] = sweep.scores[site]
            each = sweep.seconds / len(sweep.scores)
            seconds += sweep.first - begin + each * pairs.n_sites(ask.task, width)
        scores[lacking(pairs, ask.task, np.array(ask.rows), ask.sites)] = np.nan
        return Answer(scores, seconds)

    return run


if __name__ == "__main__":
    serve(load, "mechir", "transformer-lens")
