"""``method="auto"`` gives each component what its best method gives alone, and says which that is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from gradients import make
from many_rankers import ranker
from small_models import QUERIES, TEXTS
from tolerance import assert_near

from pyterrier_mechir import AttentionTo, Attribution, Auto, ColumnReplay, FairAttention, PatchScorer, PerturbDocs
from pyterrier_mechir.models.components import TABLE
from pyterrier_mechir.models.sites import parse_site
from pyterrier_mechir.patching.best import BEST, methods_of
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import SweepResult, joined, rank_correlation
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.text.positions import Positions

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = ["head", "q", "resid_pre", "attn_out", "embed"]
POSITIONS = ["all", "class", "each", [1, -2]]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [(str(i), QUERIES[i], f"d{i}", TEXTS[i]) for i in range(4)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def values(out: pd.DataFrame, column: str = "patch_scores") -> list[np.ndarray]:
    return [np.asarray(value).reshape(len(value), -1) for value in out[column]]


def told(found, component, positions="all", metric=None, **options) -> dict[str, str]:
    return PatchScorer(found, component, positions=positions, method="auto", metric=metric, **options).measure.told(
        None
    )["methods"]


@pytest.mark.bits
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("kind", ["cross bert", "bi qwen3"])
def test_each_component_has_what_its_method_gives_alone(kind, positions, frame):
    found = ranker(kind)
    options = {"positions": positions, "direction": "both"}
    scorer = PatchScorer(found, MIXED, method="auto", **options)
    out, sites = scorer(frame), scorer.sites.sites
    by_method: dict[str, list[str]] = {}
    for name, method in out.attrs["mechir"]["methods"].items():
        by_method.setdefault(method, []).append(name)
    assert by_method.keys() == {"exact", "attribution"} | ({"column"} if positions not in ("all", "class") else set())
    for method, components in by_method.items():
        alone = PatchScorer(found, components, method=method, **options)(frame)
        numbers = [number for number, site in enumerate(sites) if site.component in components]
        for one, other in zip(values(out), values(alone), strict=True):
            if method == "exact":
                np.testing.assert_array_equal(one[numbers], other)
            assert_near(one[numbers], other)
        for row, (one, other) in enumerate(
            zip(*(values(of, "patch_effect_noise") for of in (out, alone)), strict=True)
        ):
            delta = abs(out["score_perturbed"][row] - out["score_baseline"][row])
            assert_near(one[numbers] * delta, other * delta)
        if method == "exact":
            for column in ("score", "score_baseline", "score_perturbed"):
                np.testing.assert_array_equal(out[column], alone[column])


def test_every_component_has_a_best_method():
    assert BEST.keys() == TABLE.keys()


@pytest.mark.parametrize(
    ("positions", "stream"), [("all", "exact"), ("class", "exact"), ("each", "column"), ([0], "column")], ids=str
)
def test_parts_of_layers_are_estimated_and_streams_where_single_positions_are_patched(positions, stream):
    streams = dict.fromkeys(["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"], stream)
    parts = dict.fromkeys(["head", "q", "k", "v", "pattern", "neuron"], "attribution")
    assert told(ranker("cross bert"), [*streams, *parts, "embed"], positions) == {**streams, **parts, "embed": "exact"}


def test_column_replay_gives_way_to_exact_patches_where_it_cannot_follow():
    streams = ["resid_pre", "mlp_out"]
    exact, column = dict.fromkeys(streams, "exact"), dict.fromkeys(streams, "column")
    bert = ranker("cross bert")
    assert told(bert, streams, "each") == column
    assert told(make("mpnet", "cross").ranker, streams, "each") == exact
    assert told(bert.edited([FairAttention()]), streams, "each") == exact
    assert told(bert, streams, "each", AttentionTo((2, 0), "D-", "OTHER")) == exact
    assert told(bert, "head", "each", AttentionTo((2, 0), "D-", "OTHER")) == {"head": "attribution"}


def test_sets_are_estimated_where_one_method_is_the_best_of_each_and_takes_sets():
    named = {
        "L0H1+L1H0.q": "attribution",
        "L0H1+L0.mlp_out": "exact",
        "L0.attn_out+L0.mlp_out": "exact",
        "L2.mlp_out": "column",
    }
    found = told(ranker("cross bert"), "head", "each", heads=list(named))
    assert found == {name if "+" in name else "mlp_out": method for name, method in named.items()}


def test_the_fix_falls_back_as_attribution_does():
    scorer = PatchScorer(make("mpnet", "cross").ranker, ["q", "mlp_out"], method="auto")
    assert scorer.measure.told(None) | {"sites": 0} == {
        "sites": 0,
        "direction": "denoise",
        "methods": {"q": "attribution", "mlp_out": "exact"},
        "qk_fix": False,
    }


def test_it_is_near_the_exact_effects(frame):
    found, options = ranker("bi mean cosine"), {"positions": "each"}
    auto, exact = (
        PatchScorer(found, [*MIXED, "mlp_out"], method=method, **options)(frame) for method in ("auto", "exact")
    )
    ranks = [
        np.concatenate([(of - s).ravel() for of, s in zip(values(out), out["score_baseline"], strict=True)])
        for out in (auto, exact)
    ]
    assert rank_correlation(*ranks) > 0.95


def test_screening_verifies_the_best_of_those_that_are_estimated(frame):
    found, options = ranker("cross bert"), {"positions": "each"}
    scorer = PatchScorer(found, MIXED, method="auto", screen=4, **options)
    out = scorer(frame)
    exact = PatchScorer(found, MIXED, **options)(frame)
    plain = PatchScorer(found, MIXED, method="auto", **options)(frame)
    names = [site.name for site in scorer.sites.sites]
    verified = out.attrs["mechir"]["screen"]["verified"]
    assert len(verified) == 4 and "embed" not in verified
    best = [names.index(name) for name in verified]
    others = [number for number in range(len(names)) if number not in best]
    for one, wanted, estimated in zip(values(out), values(exact), values(plain), strict=True):
        assert_near(one[best], wanted[best])
        assert_near(one[others], estimated[others])
    nothing = PatchScorer(found, ["resid_pre"], method="auto", screen=4)(frame)
    assert "screen" not in nothing.attrs["mechir"]


def test_what_it_costs_is_the_sum_of_its_parts(frame):
    found, options = ranker("cross bert"), {"positions": "each"}
    cost = PatchScorer(found, MIXED, method="auto", **options).estimate(frame, seconds=0.3)
    exact = PatchScorer(found, "embed", **options).estimate(frame, seconds=0.1)
    assert cost.forward_passes == exact.forward_passes + 2 * len(frame)
    assert cost.n_sites == len(PatchScorer(found, MIXED).sites.sites)
    assert cost.seconds > 0


def test_the_stage_keeps_the_conventions(frame):
    found = ranker("cross bert")
    scorer = PatchScorer(found, MIXED, method="auto")
    assert scorer == PatchScorer(found, MIXED, method=Auto()) != PatchScorer(found, MIXED, method="attribution")
    assert hash(scorer) == hash(PatchScorer(found, MIXED, method=Auto()))
    assert repr(scorer).endswith("method=Auto())")
    assert scorer.about()["scorer"]["method"] == "Auto()"
    assert len(scorer(frame.head(0))) == 0
    assert pt.inspect.transformer_outputs(scorer, list(frame.columns))
    with pytest.raises(ValueError, match="paths to receivers are patched exactly"):
        PatchScorer(found, method="auto", receivers="final")


def test_one_method_has_no_methods_of_sites():
    found, sites = ranker("cross bert"), [parse_site("L0H1"), parse_site("L1.mlp_out")]
    assert methods_of(ColumnReplay(), sites, Positions.of("each"), found) == dict.fromkeys(sites, ColumnReplay())
    with pytest.raises(ValueError, match="Auto is a method for each site"):
        sweeper(Auto())
    assert Attribution() != Auto()


def test_joined_results_have_the_scores_of_the_first_and_the_moves_of_all():
    def result(baseline, patched) -> SweepResult:
        return SweepResult(np.array(baseline, np.float32), np.zeros(2, np.float32), np.array(patched, np.float32), None)

    first = result([1, 2], [[3], [4]])
    second = result([1.5, 2], [[1.5, 7.5], [2, np.nan]])
    found = joined([([1], first), ([0, 2], second)])
    np.testing.assert_array_equal(found.denoise, np.array([[1, 3, 7], [2, 4, np.nan]], np.float32))
    np.testing.assert_array_equal(found.baseline, first.baseline)
    assert found.noise is None
    assert joined([([0], first.at([])), ([1], first.at([]))]).denoise.shape == (0, 2)
