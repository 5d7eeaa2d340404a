"""What other queries and keys do to the outputs of an attention is what softmax makes of them, whatever their size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pyterrier_mechir.models.attention import Heads
from pyterrier_mechir.models.softmax import Keyed, moved_by_queries

B, H, Q, S, D = 2, 3, 5, 7, 4
SLOTS = {
    "all": [range(S)],
    "each": [[place] for place in range(S)],
    "some": [[0, 2], [], [3], [2, 3, 6]],
}
each_mask = pytest.mark.parametrize("cap", [None, 2.0])


def drawn(
    cap: float | None = None, size: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Heads, Heads, Tensor]:
    """What an attention computes with, in two runs, and the gradient at its outputs."""
    torch.manual_seed(0)
    heads = []
    for _ in range(2):
        q, k, v = (size**0.5 * torch.randn(B, H, n, D, dtype=dtype) for n in (Q, S, S))
        mask = torch.randn(B, 1, Q, S, dtype=dtype)
        mask[1, :, :, S - 1] = torch.finfo(dtype).min
        heads.append(Heads(q, k, v, mask, 0.7, cap))
    return *heads, torch.randn(B, H, Q, D, dtype=dtype)


def members(slots) -> Tensor:
    found = torch.zeros(B, S, len(slots), dtype=torch.float64)
    for number, slot in enumerate(slots):
        found[:, list(slot), number] = 1
    return found


def seen(heads: Heads, slope: Tensor) -> Tensor:
    """What each row of z adds to the score, to first order."""
    logits = heads.query @ heads.key.transpose(-1, -2) * heads.scale
    if heads.cap is not None:
        logits = heads.cap * (logits / heads.cap).tanh()
    return (slope * ((logits + heads.mask).softmax(-1) @ heads.value)).sum(-1)


def slow(heads: Heads, other: Heads, slope: Tensor, slots, values: bool) -> Tensor:
    """The change of :func:`seen` where the keys of each slot are others, and the values where ``values`` says so."""
    found = []
    for slot in slots:
        key, value = heads.key.clone(), heads.value.clone()
        key[:, :, list(slot)] = other.key[:, :, list(slot)]
        if values:
            value[:, :, list(slot)] = other.value[:, :, list(slot)]
        found.append(seen(replace(heads, key=key, value=value), slope) - seen(heads, slope))
    return torch.stack(found, -1)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
@each_mask
def test_keys_and_values_of_slots_move_rows_as_softmax_does(cap, slots, values):
    heads, other, slope = drawn(cap)
    keyed = Keyed(heads, slope, members(slots))
    assert keyed.are_positions == (len(slots) == S)
    found = keyed.moved(torch.stack([other.key, heads.key]), torch.stack([other.value if values else heads.value] * 2))
    np.testing.assert_allclose(found[0], slow(heads, other, slope, slots, values), atol=1e-12)
    if not values:
        np.testing.assert_array_equal(found[1], np.zeros_like(found[1]))


@each_mask
def test_queries_move_rows_as_softmax_does(cap):
    heads, other, slope = drawn(cap)
    wanted = seen(replace(heads, query=other.query), slope) - seen(heads, slope)
    np.testing.assert_allclose(moved_by_queries(heads, slope, other.query), wanted, atol=1e-12)
    np.testing.assert_array_equal(moved_by_queries(heads, slope, heads.query), np.zeros((B, H, Q)))


@pytest.mark.parametrize("shift", [-500.0, -90.0, 90.0, 500.0])
def test_logits_may_rise_or_fall_by_any_size(shift):
    """All keys move along one direction, so that every logit of a row moves by as much, and nothing happens."""
    heads, other, slope = drawn(dtype=torch.float32)
    along = torch.tensor([1.0, 0, 0, 0])
    query = heads.query.clone()
    query[..., 0] = 1.0
    heads = replace(heads, query=query)
    key = other.key + shift / heads.scale * along
    found = Keyed(heads, slope, members(SLOTS["all"]).float()).moved(key, heads.value)
    wanted = slow(heads, other, slope, SLOTS["all"], values=False)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
def test_logits_of_any_size_give_finite_changes(slots):
    heads, other, slope = drawn(size=30.0, dtype=torch.float32)
    found = Keyed(heads, slope, members(slots).float()).moved(other.key, heads.value)
    wanted = slow(heads, other, slope, slots, values=False)
    assert wanted.abs().max() > 10
    np.testing.assert_allclose(found, wanted, atol=2e-4 * float(wanted.abs().max()))


@each_mask
def test_small_changes_have_the_gradient(cap):
    """Over the change, what is not of first order falls in proportion to the change."""
    heads, other, slope = drawn(cap)
    query, key = (part.clone().requires_grad_() for part in (heads.query, heads.key))
    of_query, of_key = torch.autograd.grad(seen(replace(heads, query=query, key=key), slope).sum(), [query, key])
    wanted_q = (of_query * (other.query - heads.query)).sum(-1)
    wanted_k = (of_key * (other.key - heads.key)).sum(-1)
    keyed = Keyed(heads, slope, members(SLOTS["each"]))
    errors = []
    for share in (1e-3, 1e-4):
        of_queries = moved_by_queries(heads, slope, torch.lerp(heads.query, other.query, share)) / share
        of_keys = keyed.moved(torch.lerp(heads.key, other.key, share), heads.value).sum(2) / share
        errors.append([(of_queries - wanted_q).abs().max().item(), (of_keys - wanted_k).abs().max().item()])
    np.testing.assert_allclose(np.divide(*errors), 10, rtol=0.05)
