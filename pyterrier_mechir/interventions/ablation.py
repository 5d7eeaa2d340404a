"""The score of each text with each of many sites ablated, in one sweep.

1. What takes the place of each activation (zeros, means, another text's) is found once.
2. Of rankers that encode texts apart, the queries are encoded under each ablation.
3. A batch of texts is recorded once; copies of it, one for each ablation of a layer, resume there
   (:mod:`~pyterrier_mechir.models.replay`), so that what comes before the layer is not computed again.
4. Each copy is compared with the queries under the same ablation.

Shapes: ``N`` pairs, ``B`` texts of a batch, ``n`` ablations that resume at the same point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.interventions.references import Given, given_for, placed_at
from pyterrier_mechir.interventions.vectors import place_of
from pyterrier_mechir.models.edits import Rows
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.products import packed_products
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.resuming import Edit
from pyterrier_mechir.models.sites import Site, SiteSet, activation_of
from pyterrier_mechir.patching.cost import Cost, peak_memory
from pyterrier_mechir.patching.steps import Step, steps_of
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.batches import SharedBatch
from pyterrier_mechir.text.encoding import unique


def keys_of(ranker: Ranker, sites: Sequence[Site | SiteSet]) -> list[Key]:
    """The (layer, activation) of all that some sites, or sets of sites, are in."""
    return sorted({activation_of(site, ranker.n_layers) for one in sites for site in one.members})


@as_alone()
@torch.no_grad()
def ablated_scores(
    ranker: Ranker,
    queries: Sequence[str],
    texts: Sequence[str],
    sites: Sequence[Site | SiteSet],
    given: Given,
    side: str = "both",
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of pairs, as they are and with each site ablated.

    Args:
        ranker: the ranker, whose pairs vary on the document.
        queries: the ``N`` queries.
        texts: the ``N`` texts.
        sites: the sites, or sets of sites, each ablated by itself.
        given: what takes the place of their activations.
        side: of rankers that encode texts apart, which side is ablated: ``both``, ``query`` or ``document``.
        batch_size: texts in a batch; None forms batches by length.
        progress: called with the number of pairs done, as they are done.

    Returns:
        float32 ``[N]`` and ``[N, site]``.
    """
    distinct, which_query = unique(queries)
    with_queries = side != "document" and not ranker.reads_query
    of_queries = [_query_inputs(ranker, one, given, distinct) for one in sites] if with_queries else []
    steps = steps_of(sites, ranker.n_layers) if side != "query" else []
    opened = ranker.opened.encoding
    wanted = sorted({key for step in steps for key in step.needs})
    scores, ablated = np.empty(len(texts), np.float32), np.empty((len(texts), len(sites)), np.float32)
    with packed_products(opened.anatomy):
        for shared in ranker.parts(queries, texts, batch_size=batch_size):
            base = record(opened, shared.batch, wanted)
            scores[shared.rows] = ranker.compare(base.scores[shared.places], shared.inputs).cpu().numpy()
            asked = [which_query[row] for row in shared.rows]
            encoded = _encoded(opened, shared.batch, base, steps, given, ranker.batch_tokens)
            if side == "query":
                encoded = ((number, base.scores) for number in range(len(sites)))
            for number, of_texts in encoded:
                inputs = _with_queries(shared, of_queries, number, asked)
                ablated[shared.rows, number] = ranker.compare(of_texts[shared.places], inputs).cpu().numpy()
            if progress is not None:
                progress(len(shared.rows))
    return scores, ablated


def _encoded(
    opened: Opened, batch: Batch, base: Recording, steps: Sequence[Step], given: Given, batch_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """The number of each site, and what the model makes of a batch's texts with the site ablated, ``[B, ...]``."""
    rows, (n_runs, length) = Rows(batch["input_ids"], batch["attention_mask"]), batch["input_ids"].shape
    at_once = max(1, batch_tokens // (n_runs * length))
    for step in steps:
        sources = {}
        for key in step.activations:
            value = given[key]
            like = base.scores.new_zeros((n_runs, length, 1))
            sources[key] = value.expand(n_runs, length, -1) if isinstance(value, Tensor) else value(like, rows)
        for start in range(0, len(step.sites), at_once):
            numbers, edits = step.sites[start : start + at_once], []
            for key, source in sources.items():
                is_head = step.takes(numbers, key, opened.anatomy.groups(key[1]))
                mask = torch.from_numpy(is_head).to(source.device)[:, None, None, :]
                edits.append(Edit(*key, source, mask))
            yield from zip(numbers, replay(opened, batch, base, edits), strict=True)


def _with_queries(shared: SharedBatch, of_queries: Sequence[Batch], number: int, asked: list[int]) -> Batch:
    """The inputs of a batch's rows, with the queries as one ablation makes them."""
    if not of_queries:
        return shared.inputs
    return shared.inputs | {name: value[asked] for name, value in of_queries[number].items()}


def _query_inputs(ranker: Ranker, one: Site | SiteSet, given: Given, queries: Sequence[str]) -> Batch:
    """What scores read of queries that are encoded with some sites ablated."""
    decoder = ranker.anatomy.cross_attends
    places = [place_of(ranker, site.name) for site in one.members]
    edits = [placed_at(key, columns, given[key], decoder) for key, columns in places]
    return ranker.under(edits, "query").query_inputs(queries)


def estimated(
    ranker: Ranker,
    queries: Sequence[str],
    texts: Sequence[str],
    sites: Sequence[Site | SiteSet],
    side: str,
    seconds: float,
) -> Cost:
    """What :func:`ablated_scores` will cost, found out by growing numbers of texts.

    Args:
        ranker: the ranker.
        queries: as there.
        texts: as there.
        sites: as there.
        side: as there.
        seconds: about how long the probe may take.
    """
    begin = perf_counter()
    items = list(dict.fromkeys(zip(queries, texts, strict=True))) if ranker.reads_query else list(dict.fromkeys(texts))
    columns = tuple(map(list, zip(*items, strict=True))) if ranker.reads_query else ([], items)
    n_tokens = sum(len(one.ids) for one in ranker.sequences.plain(*columns)) if items else 0
    n_queries = 0 if ranker.reads_query or side == "document" else len(set(queries))
    n_copies = len(sites) if side != "query" else 0
    rows = np.random.default_rng(0).permutation(len(texts))
    given, n, took, share = given_for(ranker, keys_of(ranker, sites), "zero"), 1, 0.0, 1.0
    while len(rows) and (not took or perf_counter() - begin + 2 * took < seconds):
        some, began = rows[:n], perf_counter()
        ablated_scores(ranker, [queries[i] for i in some], [texts[i] for i in some], sites, given, side)
        took = perf_counter() - began
        share = sum(len(texts[i]) for i in some) / max(1, sum(map(len, texts)))
        if n >= len(rows):
            break
        n *= 2
    return Cost(
        n_pairs=len(texts),
        n_sites=len(sites),
        forward_passes=len(items) * (1 + n_copies) + n_queries * (1 + len(sites)),
        tokens=n_tokens * (1 + n_copies),
        seconds=float(took / share) if len(rows) else 0.0,
        memory=peak_memory(ranker) + 4.0 * len(texts) * len(sites),
        device=str(ranker.device),
        probe_seconds=perf_counter() - begin,
    )
