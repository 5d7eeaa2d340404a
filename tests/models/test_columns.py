"""Columns obey the laws of their estimate in every family, and are those of a loop over slots, starts and rows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
import torch
from many_rankers import KINDS, ranker
from reference import pool
from small_models import QUERIES, TEXTS, build
from test_exactness import snapshot
from tolerance import assert_near, widened
from torch import Tensor, nn

from pyterrier_mechir import BiEncoder
from pyterrier_mechir.models import columns
from pyterrier_mechir.models.columns import Slots, Target, record_target, replay_columns
from pyterrier_mechir.models.components import STARTS
from pyterrier_mechir.models.gradients import differentiable, gradients, record_graph
from pyterrier_mechir.models.opened import Batch, Opened
from pyterrier_mechir.models.recording import Key, Recording, record
from pyterrier_mechir.models.replay import replay
from pyterrier_mechir.models.resuming import Edit
from pyterrier_mechir.rankers.base import Ranker

pytestmark = pytest.mark.usefixtures("one_thread")

COVERED = tuple(kind for kind in KINDS if kind not in ("bi prefixed", "cross mpnet", "mono t5 decoder"))
"""Two are MPNets, which compute attention outside the interface; the third is a decoder of one position."""

each_kind = pytest.mark.parametrize("kind", COVERED)
each_way = pytest.mark.parametrize("noise", [False, True], ids=["denoise", "noise"])

PAIRS = [
    (QUERIES[0], TEXTS[4], "neap tides"),
    (QUERIES[0], TEXTS[3], f"{TEXTS[3]} tides tides"),
    (QUERIES[1], TEXTS[1], f"night bats {TEXTS[1]}"),
]
"""Queries, baselines and perturbed texts, of 3 to 25 tokens."""

ALL_AT_ONCE = 10**6


class Case(NamedTuple):
    """Runs that are patched, those that are taken from, and what is patched."""

    opened: Opened
    inputs: Batch
    target: Target
    source: Recording
    base: Recording
    starts: list[Key]

    @property
    def shape(self) -> tuple[int, int]:
        """Runs and positions."""
        n_runs, length = self.inputs["input_ids"].shape
        return n_runs, length

    def moved(self, slots: Slots, starts: Sequence[Key] | None = None, at_once: int = ALL_AT_ONCE) -> np.ndarray:
        """What patches do to the score, ``[start, run, slot]``."""
        args = self.opened, self.inputs, self.target, self.source
        return replay_columns(*args, starts or self.starts, slots, at_once).numpy()

    def positions(self) -> Slots:
        """A slot for each position."""
        n_runs, length = self.shape
        return Slots(torch.arange(length).expand(n_runs, length), length)


def case_of(found: Ranker, noise: bool, pairs: Sequence[tuple[str, str, str]] = PAIRS) -> Case:
    queries, baselines, perturbed = zip(*pairs, strict=True)
    alignments = ["swap" if len(one.split()) < 4 else "fill" for one in baselines]
    aligned = found.align(queries, baselines, perturbed, alignments=alignments)
    of_queries, opened, rows = found.query_inputs(queries), found.opened, list(range(len(pairs)))
    sides = [pair.baseline for pair in aligned], [pair.perturbed for pair in aligned]
    inputs, others = (found.collate(side, of_queries, rows) for side in (sides[::-1] if noise else sides))
    last = opened.anatomy.n_layers - 1
    starts = [(layer, name) for layer in range(last + 1) for name in STARTS if name != "resid_post"]
    starts.append((last, "resid_post"))
    with torch.no_grad():
        base, source = record(opened, inputs, starts), record(opened, others, starts)
    with differentiable(opened):
        target = record_target(opened, inputs)
    return Case(opened, inputs, target, source, base, starts)


@cache
def case(kind: str, noise: bool) -> Case:
    return case_of(ranker(kind), noise)


def grouped(shape: tuple[int, int], *groups: Sequence[int]) -> Slots:
    """The slots of some groups of positions, the same in each run; other positions are in none."""
    n_runs, length = shape
    of = len(groups) + torch.arange(length)
    for number, group in enumerate(groups):
        of[list(group)] = number
    return Slots(of.expand(n_runs, length), len(groups))


@each_way
@each_kind
def test_the_target_has_the_scores_of_its_runs(kind, noise):
    found = case(kind, noise)
    assert_near(found.target.scores.numpy(), found.base.scores.numpy())


@each_way
@each_kind
def test_one_slot_of_all_positions_is_exact(kind, noise):
    found = case(kind, noise)
    exact = []
    for layer, name in found.starts:
        edit = Edit(layer, name, found.source[layer, name], torch.ones((1, 1, 1, 1), dtype=torch.bool))
        needed = {(layer, "resid_pre"), (layer, "z"), *found.starts}
        with torch.no_grad():
            base = record(found.opened, found.inputs, sorted(needed))
            exact.append(replay(found.opened, found.inputs, base, [edit])[0])
    wanted = torch.stack(exact).numpy()[..., None] - found.base.scores.numpy()[None, :, None]
    moved = found.moved(grouped(found.shape, range(found.shape[1])))
    size = np.abs(found.base.scores.numpy())[None, :, None]
    assert np.abs(wanted).max() > 1e-2
    assert_near(moved, wanted, 1e-5, np.maximum(1, size))


@each_way
@pytest.mark.parametrize("kind", [kind for kind in COVERED if kind != "colbert bare"])
def test_small_changes_do_what_the_gradient_says_and_the_error_falls_as_they_do(kind, noise):
    """One ColBERT is left out, two of whose cosines are nearly the greatest: its gradient tells of one alone."""
    has_kinks = kind.startswith(("splade", "colbert"))
    found = case_of(ranker(kind), noise, PAIRS[:2]) if has_kinks else case(kind, noise)
    with differentiable(found.opened):
        run = record_graph(found.opened, found.inputs, found.starts)
        slopes = gradients(run, found.starts)
    wanted = np.stack(
        [((found.source[key] - found.base[key]) * slopes[key]).sum(-1).detach().numpy() for key in found.starts]
    )

    def error(eps: float) -> float:
        near = {key: found.base[key] + eps * (found.source[key] - found.base[key]) for key in found.starts}
        moved = found._replace(source=Recording(found.source.scores, near)).moved(found.positions())
        return float(np.abs(moved / eps - wanted).sum() / np.abs(wanted).sum())

    rounding = widened(1e-4)
    assert error(1 / 64) <= (0.1 if has_kinks else 0.04) + rounding
    assert error(1 / 64) <= (0.3 if has_kinks else 0.2) * error(1 / 8) + rounding


@each_way
@each_kind
def test_a_slot_does_not_depend_on_how_the_others_are_parted(kind, noise):
    found = case(kind, noise)
    length = found.shape[1]
    rest = [position for position in range(length) if position not in (1, 2, 3)]
    each = found.moved(found.positions())
    backwards = found.moved(grouped(found.shape, *[[position] for position in reversed(range(length))]))
    few = found.moved(grouped(found.shape, [2], [0]))
    with_pair = found.moved(grouped(found.shape, [2], [1, 3], rest))
    pair_alone = found.moved(grouped(found.shape, [3, 1]))
    size = np.maximum(1, np.abs(found.base.scores.numpy()))[:, None]
    assert_near(backwards[..., ::-1], each, least=size)
    assert_near(few, each[..., [2, 0]], least=size)
    assert_near(with_pair[..., :1], each[..., 2:3], least=size)
    assert_near(with_pair[..., 1:2], pair_alone, least=size)


@each_way
@each_kind
def test_starts_at_once_are_those_one_by_one(kind, noise):
    found = case(kind, noise)
    slots = grouped(found.shape, [0], [1, 2], range(3, found.shape[1]))
    together, size = found.moved(slots), np.maximum(1, np.abs(found.base.scores.numpy()))[:, None]
    alone = np.concatenate([found.moved(slots, [start]) for start in found.starts])
    assert_near(together, alone, least=size)
    backwards = found.moved(slots, found.starts[::-1])
    assert_near(backwards[::-1], alone, least=size)
    of_layer = [alone[found.starts.index((1, name))] for name in ("resid_pre", "attn_out", "mlp_out")]
    assert min(np.abs(one - other).max() for one, other in combinations(of_layer, 2)) > 1e-4


@each_kind
def test_what_is_computed_at_once_changes_nothing(kind, monkeypatch):
    found = case(kind, False)
    every = [found.positions(), grouped(found.shape, [0], [1, 2], [3])]
    size = np.maximum(1, np.abs(found.base.scores.numpy()))[:, None]
    wanted = [found.moved(slots) for slots in every]
    in_parts = [found.moved(slots, at_once=2 * slots.of.numel()) for slots in every]
    monkeypatch.setattr(columns, "_CELLS", 1)
    one_by_one = [found.moved(slots, at_once=1) for slots in every]
    for made in (in_parts, one_by_one):
        for of_slots, wanted_of_slots in zip(made, wanted, strict=True):
            assert_near(of_slots, wanted_of_slots, least=size)


@each_kind
def test_what_is_patched_with_itself_moves_nothing_but_for_rounding(kind):
    found = case(kind, False)
    moved = found._replace(source=found.base).moved(found.positions())
    assert_near(moved, np.zeros_like(moved), least=np.maximum(1, np.abs(found.base.scores.numpy()))[:, None])


def test_as_many_runs_as_positions_are_told_apart():
    for kind in ("bi llama", "bi t5", "bi euclidean", "cross bert"):
        pair = case_of(ranker(kind), False, PAIRS[:1])
        many = case_of(ranker(kind), False, [PAIRS[0]] * pair.shape[1])
        assert many.shape[0] == many.shape[1]
        assert_near(many.moved(many.positions()), np.repeat(pair.moved(pair.positions()), many.shape[0], axis=1))


def copies_at_end(found: Case, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many copies of the runs are scored, or encoded, once each position has been patched with each start."""
    n_copies: list[int] = []

    def counted(opened: Opened, inputs: Batch, base: Recording, edits: Sequence[Edit]) -> Tensor:
        n_copies.append(len(edits[0].mask))
        return replay(opened, inputs, base, edits)

    monkeypatch.setattr(columns, "replay", counted)
    found.moved(found.positions())
    return sum(n_copies)


@pytest.mark.parametrize("kind", ["generative llama", "generative qwen2", "cross bert", "cross roberta"])
def test_where_a_score_reads_one_position_its_slot_alone_is_scored(kind, monkeypatch):
    found = case(kind, False)
    read = found.opened.reads_at(found.inputs)
    assert copies_at_end(found, monkeypatch) == len(found.starts) * len(read.unique())


@pytest.mark.parametrize("kind", ["splade max", "splade sum", "colbert"])
def test_what_is_made_of_each_final_state_is_made_once_for_all_slots(kind, monkeypatch):
    found = case(kind, False)
    assert copies_at_end(found, monkeypatch) == 1 + len(found.starts)


@pytest.mark.parametrize("failing_call", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bi cls dot", "bi llama", "mono t5", "cross bert"])
def test_nothing_is_left_in_the_model_whether_it_fails_or_not(kind, failing_call):
    found = case(kind, False)
    attention = found.opened.anatomy.attention(1)
    before = snapshot(found.opened.anatomy.model), attention.config, attention.config._attn_implementation
    calls: list[int] = []

    def fail(*args: object) -> None:
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")

    def run() -> None:
        with differentiable(found.opened):
            made = record_target(found.opened, found.inputs)
        found._replace(target=made).moved(found.positions(), at_once=found.positions().of.numel())

    with found.opened.anatomy.out_proj(1).register_forward_hook(fail), pytest.raises(RuntimeError, match="memory"):
        run()
    assert (snapshot(found.opened.anatomy.model), attention.config, attention.config._attn_implementation) == before
    run()
    assert (snapshot(found.opened.anatomy.model), attention.config, attention.config._attn_implementation) == before


class Looped:
    """Columns of a bi-encoder of BERT by its formulas, in float64: one start, one slot and one row at a time.

    Args:
        model: the BERT, which stays as it is.
        query: the vector of the query.
        cosine: whether the score is the cosine of the mean vector, rather than the product.
    """

    def __init__(self, model: nn.Module, query: Tensor, cosine: bool):
        self.model, self.query, self.cosine = deepcopy(model).double(), query.double(), cosine
        self.blocks = self.model.encoder.layer
        self.n_heads = model.config.num_attention_heads

    def heads(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (self.n_heads, -1))

    def qkv(self, layer: int, x: Tensor) -> list[Tensor]:
        own = self.blocks[layer].attention.self
        q, k, v = (self.heads(part(x)) for part in (own.query, own.key, own.value))
        return [q / q.shape[-1] ** 0.5, k, v]

    def attn_out(self, layer: int, z: Tensor) -> Tensor:
        return self.blocks[layer].attention.output.dense(z.flatten(-2))

    def mid(self, layer: int, x: Tensor, attn_out: Tensor) -> Tensor:
        return self.blocks[layer].attention.output.LayerNorm(x + attn_out)

    def mlp_out(self, layer: int, mid: Tensor) -> Tensor:
        return self.blocks[layer].output.dense(self.blocks[layer].intermediate(mid))

    def post(self, layer: int, mid: Tensor, mlp_out: Tensor) -> Tensor:
        return self.blocks[layer].output.LayerNorm(mid + mlp_out)

    def score(self, states: Tensor) -> Tensor:
        mean = states.mean(0)
        product = mean @ self.query
        return product / mean.norm() / self.query.norm() if self.cosine else product

    def recorded(self, ids: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The score of a text, and all that is computed of it in each layer, with the slope of z."""
        layers: list[dict[str, Tensor]] = []
        x = self.model.embeddings(ids[None])[0].detach().requires_grad_()
        for layer in range(len(self.blocks)):
            q, k, v = self.qkv(layer, x)
            z = torch.einsum("hij,jhd->ihd", torch.einsum("ihd,jhd->hij", q, k).softmax(-1), v)
            attn_out = self.attn_out(layer, z)
            mid = self.mid(layer, x, attn_out)
            mlp_out = self.mlp_out(layer, mid)
            names = {"resid_pre": x, "q": q, "k": k, "v": v, "z": z, "attn_out": attn_out, "resid_mid": mid}
            x = self.post(layer, mid, mlp_out)
            layers.append(names | {"mlp_out": mlp_out, "resid_post": x})
        score = self.score(x)
        slopes = torch.autograd.grad(score, [of["z"] for of in layers])
        for of, slope in zip(layers, slopes, strict=True):
            of["slope"] = slope
        return score.detach(), [{name: value.detach() for name, value in of.items()} for of in layers]

    @torch.no_grad()
    def moved(self, score: Tensor, target: list[dict[str, Tensor]], source: list, start: Key, slot: list[int]) -> float:
        """What patching a start at a slot does to the score."""
        first, name = start
        effect = 0.0
        x = {i: source[first][name][i] for i in slot}
        for layer in range(first, len(self.blocks)):
            base = target[layer]
            if layer > first or name == "resid_pre":
                made = {i: self.qkv(layer, x[i]) for i in slot}
                mids = {}
                for i in slot:
                    keys = torch.stack([made[j][1] if j in slot else base["k"][j] for j in range(len(base["k"]))])
                    values = torch.stack([made[j][2] if j in slot else base["v"][j] for j in range(len(base["v"]))])
                    weights = torch.einsum("hd,jhd->hj", made[i][0], keys).softmax(-1)
                    attn_out = self.attn_out(layer, torch.einsum("hj,jhd->hd", weights, values))
                    mids[i] = self.mid(layer, x[i], attn_out)
                for i in set(range(len(base["k"]))).difference(slot):
                    effect += self._noticed(base, made, i)
                x = {i: self.post(layer, mids[i], self.mlp_out(layer, mids[i])) for i in slot}
            elif name == "resid_post":
                pass
            elif name == "mlp_out":
                x = {i: self.post(layer, base["resid_mid"][i], x[i]) for i in slot}
            else:
                mid = x if name == "resid_mid" else {i: self.mid(layer, base["resid_pre"][i], x[i]) for i in slot}
                x = {i: self.post(layer, mid[i], self.mlp_out(layer, mid[i])) for i in slot}
        states = target[-1]["resid_post"].clone()
        for i in slot:
            states[i] = x[i]
        return float(effect + self.score(states) - score)

    def _noticed(self, base: dict[str, Tensor], made: dict[int, list[Tensor]], i: int) -> Tensor:
        """What a row outside a slot notices of it in a layer."""
        logits = torch.einsum("hd,jhd->jh", base["q"][i], base["k"])
        gains = torch.einsum("hd,jhd->jh", base["slope"][i], base["v"])
        before = (logits.softmax(0) * gains).sum(0)
        for j, (_, key, value) in made.items():
            logits[j], gains[j] = (base["q"][i] * key).sum(-1), (base["slope"][i] * value).sum(-1)
        return ((logits.softmax(0) * gains).sum(0) - before).sum()


PAIR = QUERIES[1], "Bats find a house at night.", "Moon pulls a house at night."
"""Of sides that have as many tokens."""


def beside_a_loop(loaded: tuple, similarity: str, noise: bool) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Columns of a pair, of positions and of groups, what a loop gives, and the size of the score."""
    model, tokenizer = loaded
    found = case_of(BiEncoder(loaded, pooling="mean", similarity=similarity), noise, [PAIR])
    encoded = dict(tokenizer(PAIR[0], return_tensors="pt"))
    with torch.no_grad():
        query = pool(model(**encoded).last_hidden_state, encoded["attention_mask"], "mean")[0]
    slow = Looped(model, query, similarity == "cosine")
    sides = [torch.tensor(tokenizer(text).input_ids) for text in (PAIR[:0:-1] if noise else PAIR[1:])]
    (score, target), (_, source) = (slow.recorded(ids) for ids in sides)
    length, groups, made = found.shape[1], [[0, 4], [2, 3, 5]], []
    assert len(sides[0]) == len(sides[1]) == length
    for slots, of in ((found.positions(), [[i] for i in range(length)]), (grouped(found.shape, *groups), groups)):
        wanted = np.array([[slow.moved(score, target, source, start, slot) for slot in of] for start in found.starts])
        made.append((found.moved(slots)[:, 0], wanted, max(1.0, abs(float(score)))))
    return made


@each_way
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_columns_are_those_of_a_loop_over_slots_starts_and_rows(similarity, noise):
    for moved, wanted, size in beside_a_loop(build("bert", classifier=False), similarity, noise):
        assert np.abs(wanted).max() > 0.01 * size
        assert_near(moved, wanted, 1e-5, size)


def saturated(factor: float) -> tuple:
    model, tokenizer = build("bert", classifier=False)
    with torch.no_grad():
        for block in model.encoder.layer:
            block.attention.self.query.weight.mul_(factor)
            block.attention.self.query.bias.mul_(factor)
    return model, tokenizer


@each_way
def test_attention_that_leaves_a_sink_is_followed(noise):
    for moved, wanted, size in beside_a_loop(saturated(10), "dot", noise):
        assert_near(moved, wanted, 2e-4, size)
    for moved, _, _ in beside_a_loop(saturated(300), "dot", noise):
        assert np.isfinite(moved).all()
