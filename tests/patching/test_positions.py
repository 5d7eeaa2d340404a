"""Patches at single positions, token classes and chosen positions are those of one hook at a time."""

from __future__ import annotations

import numpy as np
import pytest
from test_exactness import PAIRS, Case, assert_same, make
from tolerance import widened

from pyterrier_mechir.models.components import COMPONENTS
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = [
    Site("head", 1, 2),
    Site("q", 2, 1),
    Site("k", 0, 3),
    Site("v", 2, 0),
    Site("attn_out", 1),
    Site("mlp_out", 2),
    Site("neuron", 1, 7),
    Site("resid_pre", 1),
    Site("resid_mid", 2),
    Site("resid_mid", 0),
    Site("resid_post", 0),
    Site("resid_post", 2),
    Site("embed", 0),
]
ARCHITECTURES = ["bert", "distilbert", "electra", "xlm-roberta", "modernbert", "mpnet"]


def swept(case: Case, positions: str | list[int], sites=SITES, direction="both", batch_size=None) -> SweepResult:
    inputs = case.ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    made = Positions.of(positions)
    return sweep(case.ranker, case.pairs, inputs, Plan(sites, direction, batch_size, positions=made))


def slots_of(pair, positions: str | list[int]) -> list[list[int]]:
    """The positions of each slot of a pair that are attended to on both sides."""
    n = len(pair.classes)
    slots = [[i + n * (i < 0)] if -n <= i < n else [] for i in positions] if isinstance(positions, list) else []
    if positions == "each":
        slots = [[i] for i in range(n)]
    if positions == "class":
        slots = [[i for i in range(n) if pair.classes[i] == c] for c in range(len(TOKEN_CLASSES))]
    return [[i for i in slot if pair.baseline.mask[i] and pair.perturbed.mask[i]] for slot in slots]


def expected(case: Case, row: int, positions: str | list[int], noise: bool, sites=SITES) -> np.ndarray:
    pair = case.pairs[row]
    runs = case.references[row].runs(pair)
    target, source = runs[::-1] if noise else runs
    return case.references[row].reference.patched_each(target, source, sites, slots_of(pair, positions))


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize("positions", ["class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_slot_is_exact_in_both_directions(architecture, kind, positions, batch_size):
    case = make(architecture, kind)
    found = swept(case, positions, batch_size=batch_size)
    for row in range(len(PAIRS)):
        assert_equal(found.denoise[row], expected(case, row, positions, noise=False))
        assert_equal(found.noise[row], expected(case, row, positions, noise=True))


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_position_is_exact(architecture, kind):
    case = make(architecture, kind)
    sites = SITES[:: 1 + ARCHITECTURES.index(architecture) % 2]
    found = swept(case, "each", sites, "denoise", batch_size=len(PAIRS))
    for row in (1, 3):
        assert found.denoise[row].shape == (len(sites), len(case.pairs[row].classes))
        assert_equal(found.denoise[row], expected(case, row, "each", noise=False, sites=sites))
    assert found.noise is None


def assert_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    assert (np.isnan(found) == np.isnan(wanted)).all()
    assert_same(np.nan_to_num(found), np.nan_to_num(wanted))


@pytest.mark.parametrize("positions", ["all", "each", "class", [1, -2]], ids=str)
def test_small_token_budgets_split_the_slots_without_changing_a_score(positions, monkeypatch):
    case = make("bert", "cross")
    everything = swept(case, positions)
    monkeypatch.setattr(case.ranker, "batch_tokens", 150)
    split = swept(case, positions)
    for one, other in zip(everything.denoise, split.denoise, strict=True):
        np.testing.assert_allclose(one, other, rtol=widened(1e-5), atol=widened(1e-5))


def test_edited_positions_of_the_first_stream_carry_the_whole_difference():
    case = make("bert", "cross")
    found = swept(case, "class", [Site("resid_pre", 0)])
    edit = TOKEN_CLASSES.index("EDIT")
    for row in (0, 1, 3):
        np.testing.assert_allclose(found.denoise[row][0, edit], case.perturbed[row], rtol=widened(1e-4))
        others = np.delete(found.denoise[row][0], edit)
        np.testing.assert_allclose(others[~np.isnan(others)], case.baseline[row], rtol=widened(1e-4))


@pytest.mark.parametrize("positions", ["every", [], [1.5], ["CLS"]], ids=str)
def test_unknown_positions_are_an_error(positions):
    with pytest.raises(ValueError, match="positions"):
        Positions.of(positions)


def test_every_component_is_among_the_sites():
    """But for attention weights and cross-attention, which test_pattern.py and test_mono_t5.py check."""
    others = {"pattern", *(component for component in COMPONENTS if component.startswith("cross_"))}
    assert {site.component for site in SITES} == set(COMPONENTS) - others
