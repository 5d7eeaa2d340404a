"""The checks, in the order in which they run."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyterrier_mechir.models.components import TABLE
from pyterrier_mechir.models.opened import Batch
from pyterrier_mechir.models.precision import Reduced, in_full, precision_of
from pyterrier_mechir.models.recording import record
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.sites import Site, SiteSet
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.positions import ALL, Positions
from pyterrier_mechir.verify.hooks import COMPONENTS as HOOKED
from pyterrier_mechir.verify.memory import fits, n_bytes
from pyterrier_mechir.verify.outcome import FAIL, OK, WARN
from pyterrier_mechir.verify.readings import formula, own_ways, reading_of
from pyterrier_mechir.verify.subject import TOLERANCES, Subject, names_of, share

_MOST_SITES = 120
"""Sites that are compared with hooks, each in both directions, two pairs, and twice."""

_MOST_QUIET = 24
"""Sites without an effect that are looked at by hooks."""

_LOOSER = 10
"""By how much more than two ways to compute in float32 differ, one of them may differ from float64."""

_STILL = 1e-6
"""A site is without effect whose patches move no score by more than this share."""


class Finding(NamedTuple):
    """What a check found.

    Args:
        found: a sentence.
        figure: what was measured; the check fails where it is above the tolerance.
        tolerance: the greatest figure that is well.
        status: what the check comes to; None tells it by figure and tolerance.
    """

    found: str
    figure: float | None = None
    tolerance: float | None = None
    status: str | None = None

    @property
    def outcome(self) -> str:
        """The status."""
        if self.status is not None:
            return self.status
        return FAIL if self.figure is None or self.tolerance is None or not self.figure <= self.tolerance else OK


class Kind(NamedTuple):
    """A check.

    Args:
        name: what it is called.
        meaning: what it asks, in a sentence.
        advice: what to do where it fails.
        run: finds out; raises LookupError, with the reason, where it cannot be asked of a ranker.
    """

    name: str
    meaning: str
    advice: str
    run: Callable[[Subject], Finding]


def checkpoint(subject: Subject) -> Finding:
    """The scores against those of a library that reads the same files."""
    if not fits(n_bytes(subject.ranker.model, torch.float32), subject.ranker.device):
        raise LookupError("there is not enough memory to load the model once more beside it")
    reading = reading_of(subject.ranker, subject.given, subject.copied)
    wanted = reading.score(subject.queries, subject.texts)
    is_read = ~np.isnan(wanted)
    off = share(subject.scores[is_read], wanted[is_read])
    n_cut = int(subject.ranker.cuts(subject.queries, subject.texts).sum())
    told = f"Compared with {reading.by}, on {subject.source}, {n_cut} of them cut to {subject.ranker.max_length} tokens"
    told += f" ({(~is_read).sum()} too long for its prompt left out)." if not is_read.all() else "."
    if off > subject.tolerance:
        worst = int(np.argmax(np.abs(subject.scores[is_read] - wanted[is_read])))
        told += f" The worst pair has {subject.scores[is_read][worst]:.5f} in place of {wanted[is_read][worst]:.5f}."
    elif not reading.is_apart:
        told += " No files were at hand, so weights and settings are compared with themselves."
    return Finding(told, off, max(subject.tolerance, TOLERANCES["float32"]))


def weights(subject: Subject) -> Finding:
    """The scores against the model's own forward, with the weights that it has now."""
    found = []
    for query, text in zip(subject.queries, subject.texts, strict=True):
        (part,) = subject.slow.parts([query], [text])
        with torch.no_grad():
            found.append(float(subject.slow.forward(part.inputs)))
    off = share(subject.scores, np.array(found))
    told = "Each pair was run alone through a copy of the model with the weights that it has now."
    if off > subject.tolerance:
        told += _first_difference(subject)
    return Finding(told, off, subject.tolerance)


@torch.no_grad()
def _first_difference(subject: Subject) -> str:
    """In which layer a run of the ranker parts from that of the model's copy."""
    (pair, *_), _ = subject.aligned
    inputs, _ = subject.sides(pair)
    layers = range(subject.ranker.n_layers)
    recorded = record(subject.ranker.opened, inputs, [(layer, "resid_pre") for layer in layers])
    own = subject.hooks.activations([("resid_pre", layer) for layer in layers], lambda: subject.run(inputs))
    for layer in layers:
        sides = (recorded[layer, "resid_pre"], own["resid_pre", layer])
        if share(*(side.float().cpu().numpy() for side in sides)) > 1e-4:
            what = f"layer {layer - 1}" if layer else "the embeddings"
            return f" The two part in {what}."
    return f" The two part in layer {subject.ranker.n_layers - 1}, or after it."


def batches(subject: Subject) -> Finding:
    """The scores of all pairs at once against those of single pairs, and of the pairs in another order."""
    ranker, n = subject.ranker, len(subject.texts)
    single = np.concatenate([ranker.score([q], [t]) for q, t in zip(subject.queries, subject.texts, strict=True)])
    order = [*reversed(range(n)), 0]
    shuffled = ranker.score([subject.queries[i] for i in order], [subject.texts[i] for i in order], batch_size=3)
    off = max(share(subject.scores, single), share(shuffled, single[order]))
    return Finding(f"{n} pairs at once, one by one, and backwards in batches of 3.", off, subject.tolerance)


@torch.no_grad()
def padding(subject: Subject) -> Finding:
    """The score of the shortest sequence beside the longest against its score alone."""
    ranker, lengths = subject.ranker, [len(text) for text in subject.texts]
    which = [int(np.argmin(lengths)), int(np.argmax(lengths))]
    queries, texts = ([column[i] for i in which] for column in (subject.queries, subject.texts))
    sequences = ranker.sequences.plain(queries if ranker.reads_query else [], texts)
    inputs = ranker.query_inputs(queries)
    both, alone = (ranker.forward(ranker.collate(sequences[:n], inputs, range(n)))[0] for n in (2, 1))
    short, long = (len(sequence.ids) for sequence in sequences)
    told = f"A sequence of {short} tokens alone, and padded to {long}."
    if short == long:
        raise LookupError("all texts are of one length in tokens, so that nothing is padded")
    return Finding(told, share(float(both), float(alone)), subject.tolerance)


def precision(subject: Subject) -> Finding:
    """The scores against the same formula in float64, or against float32 where products have fewer bits."""
    ranker, model = subject.ranker, subject.ranker.model
    claimed, is_reduced = precision_of(model), any(isinstance(module, Reduced) for module in model.modules())
    if own_ways(ranker):
        raise LookupError(f"{type(ranker).__name__} computes its scores in its own way, which is not known in float64")
    known = [i for i in range(len(subject.texts)) if i % 3 == 0]
    pairs = [subject.queries[i] for i in known], [subject.texts[i] for i in known]
    if is_reduced:
        with in_full(subject.copied):
            wanted = formula(ranker, subject.copied)(*pairs)
        other = "float32"
    else:
        if not fits(n_bytes(model, torch.float64), ranker.device) or ranker.device.type == "mps":
            raise LookupError("there is not enough memory for the model in float64")
        wanted, other = formula(ranker, deepcopy(subject.copied).double())(*pairs), "float64"
    is_read = ~np.isnan(wanted)
    off = share(subject.scores[known][is_read], wanted[is_read])
    name = str(claimed).removeprefix("torch.")
    told = f"The weights are {name}; {len(known)} scores were compared with {other}."
    return Finding(told, off, subject.tolerance if is_reduced else _LOOSER * subject.tolerance)


def self_patch(subject: Subject) -> Finding:
    """Patching a run into itself against leaving it."""
    pairs, inputs = subject.aligned
    same = [replace(pair, perturbed=pair.baseline) for pair in pairs]
    sites = _all_sites(subject, skip=("neuron",))
    result = sweep(subject.ranker, same, inputs, Plan(sites, "both"))
    off = [share(_of(way), result.baseline[:, None]) for way in (result.denoise, result.noise)]
    return Finding(f"{len(sites)} sites of {len(pairs)} pairs, in both directions.", max(off), subject.tolerance)


def everything(subject: Subject) -> Finding:
    """Patching all that enters the model against the score of the other side."""
    pairs, inputs = subject.aligned
    if subject.is_decoder:
        layers = range(subject.ranker.n_layers)
        whole: Any = SiteSet(tuple(Site("cross_attn_out", layer) for layer in layers))
        what = "all that the decoder reads of the text (cross_attn_out of every layer)"
    else:
        whole, what = Site("resid_pre", 0), "the stream that enters the first layer (L0.resid_pre)"
    result = sweep(subject.ranker, pairs, inputs, Plan([whole], "both"), run=partial(replay))
    off = max(
        share(_of(result.denoise)[:, 0], result.perturbed),
        share(_of(result.noise)[:, 0], result.baseline),
    )
    moved = share(result.perturbed, result.baseline)
    told = f"Patching {what} at all positions gives the other side's score; the two sides differ by {moved:.1e}."
    return Finding(told, off, subject.tolerance)


def _of(patched: Any) -> np.ndarray:
    return np.stack([np.asarray(values, np.float64) for values in patched])


def _all_sites(subject: Subject, skip: tuple[str, ...] = ()) -> list[Site]:
    """Every site of the ranker but those of some components."""
    rows: list[Site] = []
    for component, layer, n_parts in subject.ranker.sites()[["component", "layer", "n_parts"]].to_numpy():
        if component not in skip:
            rows += [Site(component, layer, number) for number in (range(n_parts) if TABLE[component].part else [None])]
    return rows


def _sampled(sites: list[Site], most: int) -> list[Site]:
    """Some sites, of every component and layer at least one, drawn at random under a seed."""
    groups: dict[tuple[str, int], list[Site]] = {}
    for site in random.Random(0).sample(sites, len(sites)):
        groups.setdefault((site.component, site.layer), []).append(site)
    found: list[Site] = []
    while len(found) < max(most, len(groups)) and any(groups.values()):
        found += [of_group.pop() for of_group in groups.values() if of_group]
    return sorted(found, key=sites.index)


def hooked(subject: Subject) -> Finding:
    """Patched scores against one hook on the model's copy, site by site."""
    known = [site for site in _all_sites(subject) if site.component in HOOKED]
    sites = _sampled(known, _MOST_SITES)
    off = dict(zip(sites, _off_hooks(subject, sites), strict=True))
    wrong = {site: value for site, value in off.items() if not value <= subject.tolerance}
    told = f"{len(sites)} of {len(known)} sites, of every component and layer, at all positions and at one of the edit."
    if any("pattern" in name for name in subject.ranker.sites()["component"]):
        told += " Attention patterns are no module's output, and are not among them."
    if wrong:
        worst = sorted(wrong, key=lambda site: -wrong[site])
        told += f" Off at {len(wrong)}, the worst first: {names_of([site.name for site in worst])}."
    return Finding(told, max(off.values()), subject.tolerance)


def _off_hooks(subject: Subject, sites: list[Site]) -> list[float]:
    """How far each site's patched scores are from those by hooks, over pairs, directions and positions.

    Every pair is patched at all positions at once, and at one: at all, a stream is the other side's wherever it is.
    """
    off = np.zeros(len(sites))
    pairs, inputs = subject.aligned
    for pair in pairs:
        edited = int(np.flatnonzero(pair.classes == TOKEN_CLASSES.index("EDIT"))[0])
        for positions in (ALL,) if subject.is_decoder else (ALL, Positions("chosen", (edited,))):
            result = sweep(subject.ranker, [pair], inputs, Plan(sites, "both", positions=positions))
            places = slice(None) if positions == ALL else slice(edited, edited + 1)
            for way, sides in ((result.denoise, subject.sides(pair)), (result.noise, subject.sides(pair)[::-1])):
                found, wanted = _of(way).reshape(len(sites)), _patched(subject, sites, *sides, places)
                off = np.maximum(off, [share(*scores) for scores in zip(found, wanted, strict=True)])
    return [float(value) for value in off]


@torch.no_grad()
def _patched(subject: Subject, sites: list[Site], target: Batch, source: Batch, places: slice) -> list[float]:
    """The score of the target with each site taken at some places from the source, by one hook at a time."""
    taken = subject.hooks.activations(((site.component, site.layer) for site in sites), lambda: subject.run(source))
    scores = []
    for site in sites:
        value = taken[site.component, site.layer]
        mix = partial(_mixed, taken=value, places=places, part=subject.hooks.part(*site[::2], value.shape[-1]))
        with subject.hooks.hook(site.component, site.layer, mix):
            scores.append(subject.run(target))
    return scores


def _mixed(value: Tensor, taken: Tensor, places: slice, part: slice) -> Tensor:
    mixed = value.clone()
    mixed[:, places, part] = taken[:, places, part]
    return mixed


def quiet(subject: Subject) -> Finding:
    """Sites whose patches change no score, though hooks say that they do."""
    pairs, inputs = subject.aligned
    sites = _all_sites(subject, skip=("neuron",))
    result = sweep(subject.ranker, pairs, inputs, Plan(sites, "both"))
    moved = [
        np.abs(_of(way) - target[:, None]) / np.maximum(1, np.abs(target[:, None]))
        for way, target in ((result.denoise, result.baseline), (result.noise, result.perturbed))
    ]
    still = [site for i, site in enumerate(sites) if max(part[:, i].max() for part in moved) <= _STILL]
    hooks_know = [site for site in still if site.component in HOOKED]
    looked_at = sorted(random.Random(0).sample(hooks_know, min(len(hooks_know), _MOST_QUIET)), key=sites.index)
    off = dict(zip(looked_at, _off_hooks(subject, looked_at) if looked_at else [], strict=True))
    dead = [site.name for site, value in off.items() if value > subject.tolerance]
    told = f"{len(sites)} sites of every component but single neurons; {len(still)} move no score"
    if dead:
        return Finding(f"{told}, of which hooks say that they do: {names_of(dead)}.", float(len(dead)), 0, FAIL)
    if not still:
        return Finding(f"{told}.", 0.0, 0.0)
    told += f" ({names_of([site.name for site in still])}), nor do hooks" if looked_at else ""
    return Finding(f"{told}.", 0.0, 0.0, WARN if len(still) > len(sites) / 4 else OK)


KINDS = (
    Kind(
        "checkpoint",
        "Are the scores those of the library that the checkpoint was made for?",
        "the checkpoint is read another way than its library does: leave out pooling, similarity, prefixes, prompt and "
        "lengths that you gave, or give those that it was trained with; if you changed weights or settings on purpose, "
        "this is the size of the change.",
        checkpoint,
    ),
    Kind(
        "weights",
        "Are the scores those of the model with the weights that it has now?",
        "make the ranker again after changing the model; if that does not help, report it with this output.",
        weights,
    ),
    Kind(
        "batches",
        "Is a pair's score the same whatever it is scored together with?",
        "something in the model or the ranker mixes the rows of a batch; score with batch_size=1 until it is mended.",
        batches,
    ),
    Kind(
        "padding",
        "Is a score the same with padding and without?",
        "the model does not see which positions are padding: its forward must take attention_mask; until it does, "
        "score with batch_size=1.",
        padding,
    ),
    Kind(
        "precision",
        "Are the scores as precise as the weights say?",
        "something computes with fewer bits than the weights have: look for autocast, casts in a forward, or a "
        "device's reduced products (torch.set_float32_matmul_precision).",
        precision,
    ),
    Kind(
        "self-patch",
        "Does patching a run into itself change nothing?",
        "a patch does something else than to take an activation; do not use effects of this ranker, and report it.",
        self_patch,
    ),
    Kind(
        "patch everything",
        "Does patching all that the model reads give the other side's score?",
        "something reaches the score that is not patched, such as a second input of the model; effects are then shares "
        "of less than the whole change.",
        everything,
    ),
    Kind(
        "hooks",
        "Is every patched score that of one hook of torch on the unmodified model?",
        "the sites named are not where the architecture's row says; do not use their effects, and report it.",
        hooked,
    ),
    Kind(
        "quiet sites",
        "Has every site an effect, unless the model itself gives it none?",
        "the sites named are not patched at all; do not use their effects, and report it.",
        quiet,
    ),
)
"""All checks but that of the caller's model, which comes after them."""
