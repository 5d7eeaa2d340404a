"""Circuits: their scores are those of hooks together, and their curves follow from these by hand."""

from __future__ import annotations

from functools import cache

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import QUERIES, TEXTS
from test_exactness import PAIRS, assert_same, make
from tolerance import assert_near, near, widened

from pyterrier_mechir import (
    AggregateHeads,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    circuit_measures,
    grow_circuit,
    plot_circuit,
)
from pyterrier_mechir.models.sites import SiteSet, select_sites
from pyterrier_mechir.perturb import TFC1, Typos

matplotlib.use("Agg")

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = pd.DataFrame(
    [(str(i), query, f"d{i}", text, perturbed, kind) for i, (query, text, perturbed, kind) in enumerate(PAIRS)],
    columns=["qid", "query", "docno", "text", "text_perturbed", "alignment"],
)
LAYERS = ["attn_out", "mlp_out"]


def names_of(case, component) -> list[str]:
    return [site.name for site in select_sites(component, case.ranker.anatomy).sites]


def slow_score(case, component, circuit) -> float:
    """m(C): the mean score of the perturbed sides with all but the circuit hooked in from the baseline runs."""
    sites = select_sites(component, case.ranker.anatomy).sites
    outside = SiteSet(tuple(site for site in sites if site.name not in circuit))
    scores = []
    for pair, of_pair in zip(case.pairs, case.references, strict=True):
        baseline, perturbed = of_pair.runs(pair)
        scores.append(of_pair.reference.patched(perturbed, baseline, outside))
    return float(np.mean(scores))


def added(curve) -> list[str]:
    return curve["site"].fillna("").tolist()


@cache
def curve_of(kind: str = "cls dot") -> pd.DataFrame:
    return grow_circuit(make("bert", kind).ranker, FRAME)


def assert_same_curve(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Two curves are the same, shares of the effect in units of the score."""
    assert list(found.columns) == list(wanted.columns)
    scores = wanted["score"].to_numpy()
    effect, size = scores[-1] - scores[0], np.abs(scores).max()
    for name, values in wanted.items():
        if not pd.api.types.is_float_dtype(values):
            assert found[name].tolist() == values.tolist()
        elif name.startswith(("faithfulness", "completeness")):
            assert_near(found[name] * effect, values * effect, least=size)
        else:
            assert_near(found[name], values)


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize(
    ("architecture", "kind", "component"),
    [
        ("bert", "cls dot", "head"),
        ("distilbert", "mean cosine", ["head", "mlp_out"]),
        ("modernbert", "cross", ["mlp_out", "head"]),
        ("bert", "cross", ["q", "v"]),
        ("bert", "cross", "block"),
    ],
)
def test_a_curve_is_that_of_hooks_together(architecture, kind, component, batch_size):
    case = make(architecture, kind)
    names = names_of(case, component)
    order = list(np.random.default_rng(1).permutation(names))
    curve = grow_circuit(
        case.ranker, FRAME, order, component=component, sizes=[1, 4, 7], n_random=2, batch_size=batch_size
    )
    assert curve["k"].tolist() == [0, 1, 4, 7, len(names)]
    assert added(curve) == ["", order[0], order[3], order[6], order[-1]]
    inside = np.array([slow_score(case, component, order[:k]) for k in curve["k"]])
    without = np.array([slow_score(case, component, order[k:]) for k in curve["k"]])
    assert_same(curve["score"], inside)
    assert_same(curve["score_without"], without)
    effect = inside[-1] - inside[0]
    assert_near(curve["faithfulness"] * effect, inside - inside[0], 1e-5, np.abs(inside).max())
    assert_near(curve["completeness"] * effect, inside[-1] - without, 1e-5, np.abs(inside).max())
    assert np.ptp(curve["faithfulness"].iloc[1:4]) > 0.01


@pytest.mark.parametrize("kind", ["cls dot", "cross"])
def test_the_empty_circuit_carries_nothing_and_all_components_everything(kind):
    curve = curve_of(kind)
    assert curve["k"].tolist() == [0, 1, 2, 5, 10, 12]
    columns = ["faithfulness", "completeness", *(c for c in curve.columns if c.startswith("faithfulness_random"))]
    assert (curve[columns].iloc[0] == 0).all()
    assert (curve[columns].iloc[-1] == 1).all()


@pytest.mark.parametrize(
    ("kind", "component", "is_baseline"),
    [
        ("cls dot", "head", True),
        ("cls dot", "mlp_out", False),
        ("mean cosine", "head", False),
        ("mean cosine", ["head", "mlp_out", "embed"], True),
    ],
)
def test_what_the_empty_circuit_leaves_is_what_goes_round_the_components(kind, component, is_baseline):
    case = make("bert", kind)
    curve = grow_circuit(case.ranker, FRAME.iloc[[1]], component=component, sizes=[], n_random=0)
    assert curve["score"][1] == pytest.approx(case.perturbed[1], rel=widened(1e-5))
    assert (curve["score"][0] == near(case.baseline[1])) == is_baseline


def test_without_an_order_the_components_come_by_their_single_noise_effects():
    case = make("bert", "cls dot")
    heads = AggregateHeads(by=None)(PatchScorer(case.ranker, direction="noise")(FRAME))
    order = heads["docno"].tolist()
    assert curve_of().attrs["mechir"]["order"] == order
    assert_same_curve(grow_circuit(case.ranker, FRAME, heads), curve_of())
    assert_same_curve(grow_circuit(case.ranker, FRAME, order), curve_of())
    pairs = list(zip(heads["layer"], heads["head"], strict=True))
    assert_same_curve(grow_circuit(case.ranker, FRAME, pairs), curve_of())
    shuffled = heads.sample(frac=1, random_state=0)
    assert grow_circuit(case.ranker, FRAME, shuffled, sizes=[1]).attrs["mechir"]["order"] == order


def test_an_order_of_several_groups_goes_by_their_mean():
    case = make("bert", "cls dot")
    groups = [("1", "L0H0", 3.0), ("1", "L0H1", 0.0), ("2", "L0H0", -3.0), ("2", "L0H1", 1.0), ("2", "L1H1", None)]
    order = pd.DataFrame(groups, columns=["qid", "docno", "score"]).assign(component="head")
    assert grow_circuit(case.ranker, FRAME, order, n_random=0).attrs["mechir"]["order"] == ["L0H1", "L0H0"]


def test_a_short_order_ends_at_its_length_and_all_come_last():
    case = make("bert", "cls dot")
    curve = grow_circuit(case.ranker, FRAME, [(1, 2), "L0H3", (2, 0)], n_random=0)
    assert curve["k"].tolist() == [0, 1, 2, 3, 12]
    assert added(curve) == ["", "L1H2", "L0H3", "L2H0", ""]
    assert curve["faithfulness"].iloc[-1] == curve["completeness"].iloc[-1] == 1


@pytest.mark.parametrize(("kind", "swap"), [("cls dot", False), ("cross", False), ("cross", True)])
def test_greedy_growth_adds_what_raises_faithfulness_most(kind, swap):
    case = make("bert", kind)
    frame = FRAME.rename(columns={"text": "text_perturbed", "text_perturbed": "text"}) if swap else FRAME
    curve = grow_circuit(case.ranker, frame, component=LAYERS, growth="greedy", n_random=0, sizes=range(7))
    order = curve.attrs["mechir"]["order"]
    names = names_of(case, LAYERS)
    assert sorted(order) == sorted(names)
    for k in range(5):
        found = {
            name: grow_circuit(case.ranker, frame, [*order[:k], name], component=LAYERS, sizes=[k + 1], n_random=0)
            for name in names
            if name not in order[:k]
        }
        gains = {name: other["faithfulness"].iloc[-2] for name, other in found.items()}
        assert max(gains, key=gains.get) == order[k]
        assert curve["faithfulness"][k + 1] == pytest.approx(gains[order[k]], abs=widened(1e-4))


def test_greedy_growth_stops_at_the_largest_size_and_keeps_to_its_candidates():
    case = make("bert", "cross")
    candidates = ["L2H1", "L0H0", "L1H3", "L1H2"]
    curve = grow_circuit(case.ranker, FRAME, candidates, growth="greedy", sizes=[2], n_random=0)
    assert curve["k"].tolist() == [0, 2, 12]
    order = curve.attrs["mechir"]["order"]
    assert len(order) == 2
    assert set(order) < set(candidates)
    every = grow_circuit(case.ranker, FRAME, candidates, growth="greedy", n_random=0)
    grown = every.attrs["mechir"]["order"]
    assert added(every) == ["", grown[0], grown[1], grown[3], ""]
    assert sorted(grown) == sorted(candidates)
    assert grown[:2] == order


def test_random_circuits_are_drawn_from_all_components_by_the_seed():
    case = make("bert", "cls dot")
    names = names_of(case, "attn_out")
    singles = [
        grow_circuit(case.ranker, FRAME, [name], component="attn_out", n_random=0)["faithfulness"][1] for name in names
    ]
    curve = grow_circuit(case.ranker, FRAME, [names[0]], component="attn_out", n_random=60)
    row = curve.iloc[1]
    assert row["faithfulness_random_low"] == pytest.approx(min(singles), abs=widened(1e-4))
    assert row["faithfulness_random_high"] == pytest.approx(max(singles), abs=widened(1e-4))
    assert row["faithfulness_random"] == pytest.approx(np.mean(singles), abs=0.3 * np.ptp(singles))
    np.testing.assert_allclose(curve["faithfulness"][1], singles[0], atol=widened(1e-4))


@pytest.mark.bits
def test_random_circuits_are_the_same_for_the_same_seed():
    case = make("bert", "cls dot")
    first, again, other = (grow_circuit(case.ranker, FRAME, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert abs(first["faithfulness_random"] - other["faithfulness_random"]).max() > 1e-3
    scores = first["score"].to_numpy()
    least = np.abs(scores).max() / abs(scores[-1] - scores[0])
    assert_near(first["faithfulness"], other["faithfulness"], least=least)


def test_without_random_orders_their_columns_are_missing():
    curve = grow_circuit(make("bert", "cls dot").ranker, FRAME, [(0, 0)], n_random=0)
    assert curve.filter(like="random").isna().all(axis=None)
    assert np.isnan(curve.attrs["mechir"]["cpr_random"])


def test_pairs_that_cannot_be_patched_are_left_out_and_counted():
    case = make("bert", "cls dot")
    more = FRAME.iloc[[0, 1]].assign(docno=["none", "same"], text_perturbed=[None, FRAME["text"][1]])
    frame = pd.concat([more, FRAME], ignore_index=True)
    before = frame.copy()
    with pytest.warns(UserWarning, match="the same after the perturbation"):
        curve = grow_circuit(case.ranker, frame)
    pd.testing.assert_frame_equal(frame, before)
    assert_same_curve(curve, curve_of())
    assert {name: curve.attrs["mechir"][name] for name in ("n_components", "n_pairs", "n_skipped")} == {
        "n_components": 12,
        "n_pairs": len(PAIRS),
        "n_skipped": 2,
    }
    with pytest.raises(ValueError, match="none of the pairs can be patched"):
        grow_circuit(case.ranker, more.iloc[:1], [(0, 0)])


@pytest.mark.parametrize("perturb", [PerturbDocs(TFC1("tides")), PerturbQueries(Typos())], ids=["document", "query"])
def test_circuits_of_either_side_grow_from_what_the_stages_give(ranker, perturb):
    rows = [(str(i), query, f"d{i}", text) for i, (query, text) in enumerate(zip(QUERIES, TEXTS, strict=True))]
    pairs = perturb(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))
    curve = grow_circuit(ranker, pairs, filler=["a", "mask"])
    out = PatchScorer(ranker, filler=["a", "mask"])(pairs)
    assert curve["score"].iloc[-1] == pytest.approx(out["score_perturbed"].mean(), rel=widened(1e-5))
    assert curve.attrs["mechir"]["n_pairs"] == out["score_perturbed"].notna().sum() > 1


def test_cpr_and_cmd_by_hand():
    curve = pd.DataFrame({"k": [0, 1, 2, 10], "faithfulness": [0, 0.5, 1.5, 1], "faithfulness_random": [0, 0, 0.5, 1]})
    found = circuit_measures(curve)
    assert found["cpr"] == pytest.approx(0.1 * 0.25 + 0.1 * 1.0 + 0.8 * 1.25)
    assert found["cmd"] == pytest.approx(0.1 * 0.75 + 0.1 * 0.5 + 0.8 * 0.25)
    assert found["cpr_random"] == pytest.approx(0.1 * 0.25 + 0.8 * 0.75)
    assert np.isnan(circuit_measures(curve[["k", "faithfulness"]])["cpr_random"])
    assert circuit_measures(curve.iloc[::-1]) == found


def test_the_measures_come_with_the_curve():
    found = circuit_measures(curve_of())
    assert {name: curve_of().attrs["mechir"][name] for name in found} == found


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 100))
def test_where_no_circuit_overshoots_cpr_and_cmd_add_up_to_one(values, last):
    sizes = [*range(len(values)), len(values) + last]
    found = circuit_measures(pd.DataFrame({"k": sizes, "faithfulness": [*values, 1.0]}))
    assert found["cpr"] + found["cmd"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": "beam"}, "unknown growth 'beam'; choose one of 'top_k', 'greedy'"),
        ({"component": "brain"}, "unknown component 'brain'"),
        ({"order": ["L0H0", "L1.mlp_out"]}, "order names L1.mlp_out, which is none of the 12 components L0H0 to L2H3"),
        ({"order": [(0, 9)]}, "names L0H9, which is none of"),
        ({"order": ["H5"]}, "'H5' names no site"),
        ({"order": [(0, 1), "L0H1"]}, "names L0H1 twice"),
        ({"order": []}, "names no component"),
        ({"order": [(0, 1)], "component": ["q", "k"]}, r"\(0, 1\) could be more than one site"),
        ({"order": [(0, 1)], "component": "mlp_out"}, r"\(0, 1\) could be|is none of"),
        ({"order": FRAME}, "an order is a frame of AggregateHeads or a list"),
        ({"order": [(0, 1), (0, 2)], "sizes": [3]}, "no circuit of 3 components: 2 of 12 are in the order"),
        ({"sizes": [13]}, "no circuit of 13 components"),
        ({"sizes": [-1]}, "no circuit of -1 components"),
        ({"n_random": -1}, "n_random is -1"),
        ({"pairs": FRAME.drop(columns="text_perturbed")}, "no text_perturbed or query_perturbed"),
        ({"pairs": FRAME.iloc[:0], "order": [(0, 1)]}, "none of the pairs can be patched"),
    ],
)
def test_what_cannot_be_grown_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        grow_circuit(make("bert", "cls dot").ranker, **{"pairs": FRAME, **options})


def test_measures_of_something_else_are_an_error():
    for frame in (FRAME, curve_of().iloc[1:], curve_of().iloc[:1]):
        with pytest.raises(ValueError, match="reads the curve of grow_circuit"):
            circuit_measures(frame)


def test_the_curve_is_drawn():
    from matplotlib import pyplot

    axes = plot_circuit(curve_of(), title="Heads")
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    np.testing.assert_array_equal(drawn["faithfulness"], curve_of()["faithfulness"])
    np.testing.assert_array_equal(drawn["completeness"], curve_of()["completeness"])
    np.testing.assert_array_equal(drawn["faithfulness, random circuits"], curve_of()["faithfulness_random"])
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == curve_of()["faithfulness_random_high"].max()
    assert axes.get_title() == "Heads"
    _, (left, right) = pyplot.subplots(1, 2)
    plain = curve_of().assign(**dict.fromkeys(curve_of().filter(like="random"), np.nan))
    assert plot_circuit(plain, ax=right) is right
    assert not right.collections and not left.lines
    pyplot.close("all")
    with pytest.raises(ValueError, match="has no completeness"):
        plot_circuit(curve_of().drop(columns="completeness"))
