"""The score of each text with each of many sites ablated, in one sweep.

1. What takes the place of each activation (zeros, means, another text's) is found once.
2. Of rankers that encode texts apart, the queries are encoded under each ablation.
3. A batch of texts is recorded once; copies of it, one for each ablation of a layer, resume there
   (:mod:`~pyterrier_mechir.models.replay`), so that what comes before the layer is not computed again.
4. Each copy is compared with the queries under the same ablation.

Shapes: ``N`` pairs, ``B`` texts of a batch, ``n`` ablations that resume at the same point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.interventions.edits import Ablate
from pyterrier_mechir.interventions.references import ByClass, Drawn, drawn, means
from pyterrier_mechir.models.edits import Affine, Placed, Rows
from pyterrier_mechir.models.modes import as_alone
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.products import packed_products
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.replay import Edit, needed_to_replay, replay
from pyterrier_mechir.models.sites import Site, SiteSet, activation_of
from pyterrier_mechir.patching.cost import Cost, peak_memory
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.rankers.batches import SharedBatch
from pyterrier_mechir.text.encoding import unique

Given = Mapping[Key, Any]
"""What takes the place of each activation as a whole: a tensor ``[D]``, or what gives one for the rows of a batch."""


class _Step(NamedTuple):
    """Ablations of which runs resume at the same point.

    Args:
        numbers: which of all ablations they are.
        heads: for each, the heads, groups or neurons that it takes of each activation; 0 for the whole.
    """

    numbers: list[int]
    heads: list[dict[Key, list[int]]]


def given_for(ranker: Ranker, sites: Sequence[Site | SiteSet], ablate: Ablate) -> Given:
    """What takes the place of the activations of some sites.

    Args:
        ranker: the ranker.
        sites: the sites, or sets of sites.
        ablate: how, with its reference; its site plays no part.

    Raises:
        ValueError: a reference without texts, or a ranker whose texts cannot be told apart.
    """
    keys = sorted({activation_of(site, ranker.n_layers) for one in sites for site in one.members})
    if ablate.by == "zero":
        return {key: torch.zeros(ranker.anatomy.width(key[1]), device=ranker.device) for key in keys}
    if ablate.by == "resample":
        wholes = {key: slice(0, ranker.anatomy.width(key[1])) for key in keys}
        return {key: drawn(ranker, ablate.reference, key, whole, ablate.seed) for key, whole in wholes.items()}
    known = ablate.reference
    if not (isinstance(known, Mapping) and set(keys) <= known.keys()):
        known = means(ranker, known, keys, ablate.per)
    found: dict[Key, Any] = {}
    special = torch.tensor(ranker.tokenizer.all_special_ids)
    for key in keys:
        table = torch.from_numpy(known[key]).to(ranker.device)
        found[key] = ByClass(table, special) if table.ndim == 2 else table
    return found


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
    steps = _steps(ranker, sites)
    with_queries = side != "document" and not ranker.reads_query
    of_queries = [_query_inputs(ranker, one, given, distinct) for one in sites] if with_queries else []
    opened, anatomy = ranker.opened.encoding, ranker.anatomy
    wanted = sorted({key for step in steps for key in needed_to_replay(list(_keys(step)))})
    scores, ablated = np.empty(len(texts), np.float32), np.empty((len(texts), len(sites)), np.float32)
    with packed_products(opened.anatomy):
        for shared in ranker.parts(queries, texts, batch_size=batch_size):
            base = record(opened, shared.batch, wanted)
            scores[shared.rows] = ranker.compare(base.scores[shared.places], shared.inputs).cpu().numpy()
            asked = [which_query[row] for row in shared.rows]
            if side == "query":
                for number in range(len(sites)):
                    inputs = _with_queries(shared, of_queries, number, asked)
                    ablated[shared.rows, number] = ranker.compare(base.scores[shared.places], inputs).cpu().numpy()
            for step in steps if side != "query" else ():
                n_tokens = shared.batch["input_ids"].numel()
                at_once = max(1, ranker.batch_tokens // n_tokens)
                for start in range(0, len(step.numbers), at_once):
                    part = _Step(step.numbers[start : start + at_once], step.heads[start : start + at_once])
                    edits = _edits(part, given, shared.batch, base, anatomy.groups)
                    for number, encoded in zip(part.numbers, replay(opened, shared.batch, base, edits), strict=True):
                        inputs = _with_queries(shared, of_queries, number, asked)
                        found = ranker.compare(encoded[shared.places], inputs)
                        ablated[shared.rows, number] = found.cpu().numpy()
            if progress is not None:
                progress(len(shared.rows))
    return scores, ablated


def _with_queries(shared: SharedBatch, of_queries: Sequence[Batch], number: int, asked: list[int]) -> Batch:
    """The inputs of a batch's rows, with the queries as one ablation makes them."""
    if not of_queries:
        return shared.inputs
    return shared.inputs | {name: value[asked] for name, value in of_queries[number].items()}


def _query_inputs(ranker: Ranker, one: Site | SiteSet, given: Given, queries: Sequence[str]) -> Batch:
    """What scores read of queries that are encoded with some sites ablated."""
    return ranker.under(placed_ablations(ranker, one, given), "query").query_inputs(queries)


def placed_ablations(ranker: Ranker, one: Site | SiteSet, given: Given) -> list[Affine | Placed]:
    """The ablation of a site, or of the sites of a set, as edits of the model."""
    made: list[Affine | Placed] = []
    decoder = ranker.anatomy.cross_attends
    for key, numbers in _taken(ranker, one).items():
        size = ranker.anatomy.width(key[1]) // ranker.anatomy.groups(key[1])
        for number in numbers:
            columns = (
                slice(0, None) if ranker.anatomy.groups(key[1]) == 1 else slice(number * size, (number + 1) * size)
            )
            columns = slice(columns.start, columns.stop or ranker.anatomy.width(key[1]))
            value = given[key]
            if isinstance(value, Tensor):
                made.append(Affine(key, columns, 0.0, value[columns], decoder))
            elif isinstance(value, ByClass):
                made.append(Placed(key, columns, ByClass(value.table[:, columns], value.special), decoder))
            else:
                part = Drawn(value.table[..., columns], value.sizes, value.known, value.factors)
                made.append(Placed(key, columns, part, decoder))
    return made


def _taken(ranker: Ranker, one: Site | SiteSet) -> dict[Key, list[int]]:
    taken: dict[Key, list[int]] = {}
    for site in one.members:
        taken.setdefault(activation_of(site, ranker.n_layers), []).append(site.number or 0)
    return taken


def _steps(ranker: Ranker, sites: Sequence[Site | SiteSet]) -> list[_Step]:
    steps: dict[tuple[Key, ...], _Step] = {}
    for number, one in enumerate(sites):
        taken = _taken(ranker, one)
        step = steps.setdefault(tuple(needed_to_replay(list(taken))), _Step([], []))
        step.numbers.append(number)
        step.heads.append(taken)
    return list(steps.values())


def _keys(step: _Step) -> list[Key]:
    return sorted({key for taken in step.heads for key in taken})


def _edits(step: _Step, given: Given, batch: Batch, base: Recording, groups: Callable[[str], int]) -> list[Edit]:
    """The edits of the copies of a step, ``n`` of each recorded run."""
    rows, made = Rows(batch["input_ids"], batch["attention_mask"]), []
    n_runs, length = batch["input_ids"].shape
    for key in _keys(step):
        is_head = np.zeros((len(step.numbers), groups(key[1])), dtype=bool)
        for copy, taken in enumerate(step.heads):
            is_head[copy, taken.get(key, [])] = True
        value = given[key]
        if not isinstance(value, Tensor):
            value = value(torch.zeros((n_runs, length, 1), device=base.scores.device), rows)
        source = value.expand(n_runs, length, -1) if value.ndim == 1 else value
        mask = torch.from_numpy(is_head).to(base.scores.device)[:, None, None, :]
        made.append(Edit(*key, source, mask))
    return made


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
    given, n, took, share = given_for(ranker, sites, Ablate("", "zero")), 1, 0.0, 1.0
    while len(rows) and perf_counter() - begin + 2 * took < seconds:
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
