"""Circuits: sets of components that carry an effect together, grown and measured by exact patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pyterrier_mechir._options import one_of
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.results.aggregate import aggregate
from pyterrier_mechir.results.frames import METADATA, perturbed_side
from pyterrier_mechir.stages.patch_scorer import PatchScorer
from pyterrier_mechir.text.fillers import Filler

GROWTHS = ("top_k", "greedy")


def grow_circuit(
    ranker: Ranker,
    pairs: pd.DataFrame,
    order: pd.DataFrame | Sequence[Any] | None = None,
    *,
    component: str | Sequence[str] = "head",
    growth: str = "top_k",
    sizes: Sequence[int] | None = None,
    n_random: int = 10,
    seed: int = 0,
    filler: Filler | Sequence[Filler] = "a",
    batch_size: int | None = None,
    verbose: bool = False,
) -> pd.DataFrame:
    """How much of an effect the circuits of growing size carry, against random circuits of the same sizes.

    M is the set of all components asked for, and C, a circuit, a part of it. m(C) is the mean over the pairs of the
    score of the perturbed side when every component of M outside C takes its activation from the baseline run, all at
    once. So m(M) is the mean s_p. What is no part of M runs on: m(empty) is the mean s_b where the effect has no way
    round M, such as for heads and a ranker that reads the first token, to which only attention brings anything; with
    mean pooling, embeddings and MLPs carry a part of it past the heads.

    - faithfulness f(C) = [m(C) - m(empty)] / [m(M) - m(empty)], 0 for the empty circuit and 1 for M;
    - completeness = 1 - [m(M without C) - m(empty)] / [m(M) - m(empty)] = 1 - f(M without C), 0 for the empty circuit
      and 1 where nothing of the effect is left once C is taken from the baseline;
    - CPR, the circuit performance ratio, is the area under f over the share of components k / n; CMD, the
      circuit-model distance, that of abs(1 - f): see :func:`circuit_measures`.

    Faithfulness and completeness go back to Wang et al. (2023, arXiv:2211.00593), who compare m(C without K) with m(M
    without K) for parts K of C: this completeness is the case K = C. The normalised form, CPR and CMD are those of MIB
    (Mueller et al. 2025, arXiv:2504.13151), here with components for edges. All are ratios of means over the pairs.

    An order that is found on the pairs on which it is measured flatters the circuit: find it on one half of the queries
    and measure on the other. So does greedy growth, whose ``attrs["mechir"]["order"]`` can be measured on other pairs
    in the same way.

    Args:
        ranker: a ranker, such as :class:`~pyterrier_mechir.BiEncoder`.
        pairs: minimal pairs as :class:`~pyterrier_mechir.PerturbDocs` or ``PerturbQueries`` give them: ``qid, query,
            docno, text`` and a perturbed side.
        order: components, the most important first: an :class:`~pyterrier_mechir.AggregateHeads` frame (by falling
            ``score``, averaged over its groups), or a list of (layer, head) and names such as ``"L5.mlp_out"``. It may
            name some of the components only; circuits then grow to its length, and M is the next. None orders the
            components by their single effects on these pairs, in the noise direction. With greedy growth, the
            components that may be added; None is all of them.
        component: what M is made of, as in :class:`~pyterrier_mechir.PatchScorer`; ``["head", "mlp_out"]`` leaves
            nothing but the embeddings outside. Components that hold one another (a head and its ``attn_out``) make
            little sense together.
        growth: ``top_k``: the first k of the order. ``greedy``: from the empty circuit, each step adds the component
            that raises f most, all of them tried exactly; this patches about n k sets, for all n of them n^2 / 2.
        sizes: sizes of the circuits; None takes 1, 2, 5, 10, 20, 50 and so on. 0 and n are always among them.
        n_random: random orders of the components that serve as controls.
        seed: of these.
        filler: as in :class:`~pyterrier_mechir.PatchScorer`.
        batch_size: pairs that are patched together; None batches by length.
        verbose: show a progress bar.

    Returns:
        One row per size: ``k``; ``site``, the name of the last component added, missing for the empty circuit and where
        the order does not name it; ``faithfulness``; ``completeness``; ``faithfulness_random``,
        ``faithfulness_random_low``, ``faithfulness_random_high``: mean, 2.5th and 97.5th percentile over the random
        orders; ``score`` and ``score_without``: m(C) and m(M without C), in score units. ``attrs["mechir"]`` has
        ``order`` (the names in the order in which they were added), ``n_components``, ``n_pairs``, ``n_skipped`` (pairs
        without patched scores) and the :func:`circuit_measures`. f is missing where m(M) = m(empty).

    Raises:
        ValueError: an unknown option; an order or sizes that the components do not have; no perturbed side, or no pair
            that can be patched.
    """
    one_of("growth", growth, GROWTHS)
    if n_random < 0:
        raise ValueError(f"n_random is {n_random}; give the number of random orders, 0 for none.")
    scorer = partial(PatchScorer, ranker, direction="noise", filler=filler, batch_size=batch_size, verbose=verbose)
    single = scorer(component)
    universe = single.sites.sites
    if perturbed_side(pairs) is None:
        raise ValueError("the pairs have no text_perturbed or query_perturbed; PerturbDocs and PerturbQueries add it.")
    if order is None:
        order = aggregate(single.transform(pairs), by=None, n_boot=0) if growth == "top_k" else universe
    ordered = _places(order, universe)
    steps, longest = _sizes(sizes, len(ordered), len(universe))
    scores = partial(_scores, scorer, pairs, universe)
    if growth == "greedy":
        ordered = _greedy(scores, ordered, len(universe), longest)
    return _curve(scores, ordered, universe, steps, np.random.default_rng(seed), n_random, len(pairs))


def circuit_measures(curve: pd.DataFrame) -> dict[str, float]:
    """CPR and CMD of a circuit's curve.

    Areas over the share of components k / n, from 0 to 1, by trapezoids between the sizes measured; the more sizes, the
    closer.

    Args:
        curve: ``k, faithfulness`` and, optionally, ``faithfulness_random``, as :func:`grow_circuit` gives them; its
            largest k is n.

    Returns:
        ``cpr``, the area under faithfulness: the higher, the sooner circuits carry the effect; ``cmd``, the area of
        abs(1 - faithfulness): 0 where every circuit does just what the model does; and ``cpr_random``, the mean CPR of
        the random orders, 1/2 where components add up and missing without random orders.

    Raises:
        ValueError: a column is missing, or the curve does not begin at k = 0.
    """
    if not {"k", "faithfulness"} <= set(curve.columns) or len(curve) < 2 or curve["k"].min() != 0:
        raise ValueError("circuit_measures reads the curve of grow_circuit: columns k, from 0 to n, and faithfulness.")
    curve = curve.sort_values("k")
    share = curve["k"].to_numpy(np.float64) / curve["k"].max()

    def area(values: Any) -> float:
        heights = np.asarray(values, dtype=np.float64)
        return float((np.diff(share) * (heights[1:] + heights[:-1]) / 2).sum())

    random = curve["faithfulness_random"] if "faithfulness_random" in curve.columns else np.full(len(curve), np.nan)
    return {
        "cpr": area(curve["faithfulness"]),
        "cmd": area((1 - curve["faithfulness"]).abs()),
        "cpr_random": area(random),
    }


def _places(order: pd.DataFrame | Sequence[Any], universe: Sequence[Site | SiteSet]) -> list[int]:
    """The numbers of the components that an order names."""
    if isinstance(order, pd.DataFrame):
        if not {"docno", "score", "component"} <= set(order.columns):
            raise ValueError(
                "an order is a frame of AggregateHeads or a list; this frame has no docno and score of each."
            )
        effects = order.groupby("docno", sort=False)["score"].mean().dropna()
        order = list(effects.sort_values(ascending=False, kind="stable").index)
    number_of = {site.name: number for number, site in enumerate(universe)}
    with_heads = sorted({site.component for site in universe if site.number is not None})
    found: dict[int, None] = {}
    site: Site | SiteSet
    for entry in order:
        if isinstance(entry, str):
            site = parse_site(entry)
        elif isinstance(entry, Site):
            site = entry
        elif len(with_heads) == 1:
            layer, head = entry
            site = Site(with_heads[0], int(layer), int(head))
        else:
            raise ValueError(f"{entry!r} could be more than one site; give its name, such as 'L5H8.q'.")
        if site.name not in number_of:
            names = list(number_of)
            raise ValueError(
                f"the order names {site.name}, which is none of the {len(names)} components {names[0]} to {names[-1]}; "
                "component= says which there are."
            )
        if number_of[site.name] in found:
            raise ValueError(f"the order names {site.name} twice.")
        found[number_of[site.name]] = None
    if not found:
        raise ValueError("the order names no component.")
    return list(found)


def _sizes(sizes: Sequence[int] | None, n_ordered: int, n: int) -> tuple[list[int], int]:
    """The sizes of a curve, with 0 and n, and the largest for which the order is needed."""
    if sizes is None:
        series = (digit * 10**power for power in range(len(str(n_ordered))) for digit in (1, 2, 5))
        sizes = [*(k for k in series if k < n_ordered), n_ordered]
    wrong = [k for k in sizes if k != n and not 0 <= k <= n_ordered]
    if wrong:
        raise ValueError(f"no circuit of {wrong[0]} components: {n_ordered} of {n} are in the order.")
    return sorted({0, *sizes, n}), max((k for k in sizes if k <= n_ordered), default=0)


def _scores(
    scorer: Callable[..., PatchScorer], pairs: pd.DataFrame, universe: Sequence[Site | SiteSet], taken: np.ndarray
) -> np.ndarray:
    """Scores ``[pair, set]`` of the perturbed sides with sets of components taken from the baseline run.

    Args:
        scorer: makes a stage that patches in the noise direction.
        pairs: the pairs; those that cannot be patched are left out of the scores.
        universe: the ``n`` components.
        taken: which of them each set has, bool ``[set, n]``; at least one set has some.
    """
    distinct, which = np.unique(taken, axis=0, return_inverse=True)
    sets = [SiteSet(tuple(site for i in row.nonzero()[0] for site in universe[i].members)) for row in distinct]
    patched = scorer(heads=[one for one in sets if one.members]).transform(pairs)
    patched = patched[[np.isfinite(of_pair).all() for of_pair in patched["patch_scores"]]]
    if not len(patched):
        raise ValueError("none of the pairs can be patched; give pairs whose perturbed side is not the text itself.")
    has_some = distinct.any(axis=1)
    scores = np.empty((len(patched), len(distinct)))
    scores[:, has_some] = np.stack(patched["patch_scores"].to_list())
    scores[:, ~has_some] = patched["score_perturbed"].to_numpy()[:, None]
    return scores[:, which.ravel()]


def _greedy(scores: Callable[[np.ndarray], np.ndarray], candidates: Sequence[int], n: int, size: int) -> list[int]:
    """The candidates in the order in which each raises faithfulness most, up to a size."""
    outside = np.ones(n, dtype=bool)
    nothing, everything = scores(np.stack([outside, ~outside])).mean(axis=0)
    circuit: list[int] = []
    while len(circuit) < size:
        left = [candidate for candidate in candidates if outside[candidate]]
        tried = np.tile(outside, (len(left), 1))
        tried[range(len(left)), left] = False
        gains = scores(tried).mean(axis=0) * np.sign(everything - nothing) if len(left) > 1 else np.zeros(1)
        circuit.append(left[int(gains.argmax())])
        outside[circuit[-1]] = False
    return circuit


def _curve(
    scores: Callable[[np.ndarray], np.ndarray],
    ordered: Sequence[int],
    universe: Sequence[Site | SiteSet],
    sizes: Sequence[int],
    rng: np.random.Generator,
    n_random: int,
    n_rows: int,
) -> pd.DataFrame:
    n = len(universe)
    ranks = np.full((1 + n_random, n), n - 1)
    ranks[0, list(ordered)] = np.arange(len(ordered))
    for row in ranks[1:]:
        row[:] = rng.permutation(n)
    inside = ranks[:, None, :] < np.array(sizes)[:, None]
    of_pairs = scores(np.concatenate([~inside, inside[:1]]).reshape(-1, n))
    means = of_pairs.mean(axis=0).reshape(2 + n_random, len(sizes))
    nothing, everything = means[0, [0, -1]]
    effect = everything - nothing
    faithful = (means - nothing) / effect if effect else np.full(means.shape, np.nan)
    random = faithful[1:-1] if n_random else np.full((1, len(sizes)), np.nan)
    curve = pd.DataFrame(
        {
            "k": sizes,
            "site": [universe[ordered[k - 1]].name if 0 < k <= len(ordered) else None for k in sizes],
            "faithfulness": faithful[0],
            "completeness": 1 - faithful[-1],
            "faithfulness_random": random.mean(axis=0),
            "faithfulness_random_low": np.percentile(random, 2.5, axis=0),
            "faithfulness_random_high": np.percentile(random, 97.5, axis=0),
            "score": means[0],
            "score_without": means[-1],
        }
    )
    curve.attrs[METADATA] = {
        "order": [universe[i].name for i in ordered],
        "n_components": n,
        "n_pairs": len(of_pairs),
        "n_skipped": n_rows - len(of_pairs),
        **circuit_measures(curve),
    }
    return curve
