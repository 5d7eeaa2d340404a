"""Screening by cells: the most doubtful are exact, the others estimates, and a sample tells how good these are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gradients import all_sites, make
from many_rankers import ranker
from small_models import QUERIES, TEXTS
from test_exactness import PAIRS
from tolerance import assert_near, widened

from pyterrier_mechir import Attribution, ColumnReplay, IntegratedGradients, PatchResults, PatchScorer, PerturbDocs
from pyterrier_mechir.models.sites import parse_site, select_sites
from pyterrier_mechir.patching import sweep as engine
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import CellScreening, SweepResult, patched_of_pairs
from pyterrier_mechir.patching.plan import Method, Plan, method_of
from pyterrier_mechir.patching.sweep import cells_that_differ, sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import EDIT
from pyterrier_mechir.text.positions import Positions

pytestmark = pytest.mark.usefixtures("one_thread")

FILL = [pair for pair in PAIRS if pair[-1] == "fill"][:3]

FAMILIES = ["bi mean cosine", "bi llama", "cross bert", "splade max", "colbert", "mono t5"]

METHODS = [Attribution(), Attribution(qk_fix=True), Attribution(grad_drop=True), IntegratedGradients(steps=2)]


def swept(
    found: Ranker,
    components: object,
    method: Method = "exact",
    screen: float | None = None,
    *,
    positions: object = "each",
    direction: str = "both",
    batch_size: int | None = None,
    sites=None,
) -> SweepResult:
    queries, baselines, perturbed, alignments = zip(*FILL, strict=True)
    pairs = found.align(queries, baselines, perturbed, alignments=alignments)
    chosen = select_sites(components, found.anatomy).patched if sites is None else sites
    plan = Plan(chosen, direction, batch_size, Positions.of(positions))
    return sweeper(method_of(method, found.anatomy), screen)(found, pairs, found.query_inputs(queries), plan)


def moved(result: SweepResult) -> np.ndarray:
    """How far each patch moves a score."""
    return np.concatenate([(of_run - score).ravel() for score, of_run in patched_of_pairs(result)])


def assert_same(found: SweepResult, wanted: SweepResult, tolerance: float = 1e-5) -> None:
    for (_, one), (_, other) in zip(patched_of_pairs(found), patched_of_pairs(wanted), strict=True):
        assert_near(one, other, tolerance, np.maximum(1, np.nanmax(np.abs(other))))


# A sweep of chosen cells


@pytest.mark.parametrize(
    ("kind", "positions"),
    [*((kind, "each") for kind in FAMILIES), ("cross bert", "class"), ("colbert", "all"), ("mono t5 decoder", "all")],
)
def test_a_sweep_of_chosen_cells_is_that_of_all_there(kind, positions):
    found, rng = ranker(kind), np.random.default_rng(0)
    queries, baselines, perturbed, alignments = zip(*FILL, strict=True)
    pairs, inputs = found.align(queries, baselines, perturbed, alignments=alignments), found.query_inputs(queries)
    sites = select_sites(["head", "v", "mlp_out", "resid_post"], found.anatomy).patched
    plan = Plan([*sites, parse_site("L0H1+L1.mlp_out")], "both", None, Positions.of(positions))
    whole = sweep(found, pairs, inputs, plan)
    cells = [rng.random(of_run.reshape(len(plan.sites), -1).shape) < 0.2 for _, of_run in patched_of_pairs(whole)]
    cells[1][:] = False
    some = sweep(found, pairs, inputs, plan, cells=cells)
    for chosen, (_, one), (_, other) in zip(cells, patched_of_pairs(some), patched_of_pairs(whole), strict=True):
        here = chosen.reshape(one.shape)
        assert np.isnan(one[~here]).all()
        assert_near(one[here], other[here], 1e-5, np.maximum(1, np.nanmax(np.abs(other))))


def test_few_cells_of_many_pairs_share_a_forward_pass(monkeypatch):
    found, sizes, plain = ranker("cross bert"), [], engine.replay
    queries, baselines, perturbed, alignments = zip(*FILL, strict=True)
    pairs, inputs = found.align(queries, baselines, perturbed, alignments=alignments), found.query_inputs(queries)
    plan = Plan(select_sites("head", found.anatomy, layers=[1]).patched, "both", 8, Positions.of("each"))
    cells = [np.zeros((len(plan.sites), len(pair.classes)), dtype=bool) for pair in (*pairs, *pairs)]
    for number, of_run in enumerate(cells):
        of_run[1, :number] = of_run[2, 1] = True

    def replay(opened, batch, base, edits):
        sizes.append(len(batch["input_ids"]) * edits[0].mask.shape[0])
        return plain(opened, batch, base, edits)

    sweep(found, pairs, inputs, plan, cells=cells, run=replay)
    assert sizes == [sum(of_run.sum() for of_run in cells)]


def test_cells_differ_where_the_activations_of_the_two_sides_do():
    found = ranker("bi mean cosine")
    queries, baselines, perturbed, alignments = zip(*FILL, strict=True)
    pairs, inputs = found.align(queries, baselines, perturbed, alignments=alignments), found.query_inputs(queries)
    plan = Plan(select_sites("resid_pre", found.anatomy).patched, "both", None, Positions.of("each"))
    differ = cells_that_differ(found, pairs, inputs, plan)
    assert len(differ) == 2 * len(pairs)
    for number, of_run in enumerate(differ):
        pair = pairs[number % len(pairs)]
        np.testing.assert_array_equal(of_run[0], pair.baseline.ids != pair.perturbed.ids)
        assert of_run[1:, pair.is_open].all()


# Screening


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_cells_verified_are_exact(kind):
    found, components = ranker(kind), ["head", "q", "mlp_out"]
    whole = swept(found, components, "attribution", 1.0)
    assert_same(whole, swept(found, components))
    told = whole.screening
    assert (told.n_verified, told.n_sampled) == (told.n_cells, 0)
    assert np.isnan([told.mean_abs_error, told.mean_relative_error, told.spearman]).all()


@pytest.mark.parametrize("positions", ["each", "class", "all"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_chosen_cells_are_exact_and_the_others_as_without(method, positions):
    found, components = ranker("cross bert"), ["head", "k"]
    exact, estimated, mixed = (
        swept(found, components, one, screen, positions=positions)
        for one, screen in (("exact", None), (method, None), (method, 0.1))
    )
    told, (e, wanted, got) = mixed.screening, map(moved, (estimated, exact, mixed))
    assert told.n_verified == round(0.1 * told.n_cells)
    assert told.n_verified + told.n_sampled <= told.n_cells <= len(e)
    is_exact = np.concatenate([of_run.ravel() for of_run in mixed.exact])
    assert is_exact.sum() == told.n_verified
    assert not np.isnan(wanted[is_exact]).any()
    assert_near(got[is_exact], wanted[is_exact], 1e-5)
    assert_near(got[~is_exact], e[~is_exact], 1e-5)


def test_the_gradient_at_the_other_run_decides():
    found = ranker("bi mean cosine")
    estimates = {way: swept(found, "head", "attribution", direction=way) for way in ("denoise", "noise")}
    doubt = np.abs(sum(moved(one) for one in estimates.values()))
    for way in estimates:
        mixed = swept(found, "head", "attribution", 0.05, direction=way)
        is_exact = np.concatenate([of_run.ravel() for of_run in mixed.exact])
        np.testing.assert_allclose(
            doubt[is_exact].min(), np.sort(doubt)[-mixed.screening.n_verified], rtol=widened(1e-3)
        )


@pytest.mark.parametrize("kind", ["bi cls dot", "cross bert", "splade max", "colbert"])
def test_what_column_replay_patches_exactly_is_not_chosen_again(kind):
    found, components = ranker(kind), ["resid_pre", "mlp_out"]
    queries, baselines, perturbed, alignments = zip(*FILL, strict=True)
    pairs = found.align(queries, baselines, perturbed, alignments=alignments)
    of_method, mixed = (swept(found, components, ColumnReplay(), screen) for screen in (None, 0.05))
    for number, (before, after) in enumerate(zip(of_method.exact, mixed.exact, strict=True)):
        edited = pairs[number % len(pairs)].classes == EDIT
        np.testing.assert_array_equal(before, np.broadcast_to(edited, before.shape))
        assert after[:, edited].all()
    n_exact, n_before = (sum(int(of_run.sum()) for of_run in one.exact) for one in (mixed, of_method))
    assert n_exact == n_before + mixed.screening.n_verified
    exact = swept(found, components)
    is_exact = np.concatenate([of_run.ravel() for of_run in mixed.exact])
    assert_near(moved(mixed)[is_exact], moved(exact)[is_exact], 1e-5)
    assert_same(swept(found, components, ColumnReplay(), 1.0), exact)


@pytest.mark.parametrize(
    ("kind", "components", "method"),
    [
        ("bi mean cosine", ["head", "q"], "attribution"),
        ("cross bert", ["head", "k"], "attribution"),
        ("bi llama", "block", "column"),
        ("splade max", "block", "column"),
        ("colbert", "block", "column"),
    ],
)
def test_the_error_falls_as_the_share_grows(kind, components, method):
    found = ranker(kind)
    exact = moved(swept(found, components))
    results = (swept(found, components, method, share) for share in (None, 0.02, 0.1, 0.3, 0.6))
    errors = [np.nansum(np.abs(moved(result) - exact)) for result in results]
    assert np.all(np.diff(errors) < 1e-4 * errors[0])
    assert errors[3] < 0.5 * errors[0]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_one_direction_is_screened_by_itself(direction):
    found = ranker("cross bert")
    mixed = swept(found, "mlp_out", "attribution", 1.0, direction=direction)
    exact = swept(found, "mlp_out", direction=direction)
    assert_same(mixed, exact)
    assert len(mixed.exact) == len(FILL)


def test_sets_of_sites_are_cells_too():
    found = ranker("cross bert")
    sites = [parse_site(name) for name in ("L0H0+L1H2", "L1.mlp_out", "L0H1+L1.attn_out")]
    assert_same(swept(found, "head", "attribution", 1.0, sites=sites), swept(found, "head", sites=sites))


def test_the_sample_tells_the_error_of_the_rest(monkeypatch):
    from pyterrier_mechir.patching import screening

    monkeypatch.setattr(screening, "SAMPLED_CELLS", (10**6, 10**6))
    found, components = ranker("cross bert"), ["head", "mlp_out"]
    exact, mixed = swept(found, components), swept(found, components, "attribution", 0.05)
    told, (wanted, got) = mixed.screening, map(moved, (exact, mixed))
    is_rest = ~np.concatenate([of_run.ravel() for of_run in mixed.exact]) & ~np.isnan(got)
    error = np.abs(got - wanted)[is_rest]
    assert told.n_sampled == told.n_cells - told.n_verified == is_rest.sum()
    assert told.mean_abs_error == pytest.approx(error.mean(), rel=widened(1e-3))
    assert told.max_abs_error == pytest.approx(error.max(), rel=widened(1e-3))
    assert told.mean_relative_error == pytest.approx(error.sum() / np.abs(wanted[is_rest]).sum(), rel=widened(1e-2))
    assert told.percentile_95_abs_error == pytest.approx(np.percentile(error, 95), rel=widened(1e-3))
    expected = pd.Series(got[is_rest]).corr(pd.Series(wanted[is_rest]), method="spearman")
    assert told.spearman == pytest.approx(expected, abs=0.02)


def test_the_sample_is_the_same_again_and_in_other_batches():
    found = ranker("bi mean cosine")
    told, again, apart = (
        swept(found, ["head", "v"], "attribution", 0.05, batch_size=size).screening for size in (None, None, 1)
    )
    assert 32 < told.n_sampled == told.n_verified < 256
    assert told == again
    assert (apart.n_cells, apart.n_verified, apart.n_sampled) == (told.n_cells, told.n_verified, told.n_sampled)
    names = ("mean_abs_error", "percentile_95_abs_error", "max_abs_error", "mean_relative_error", "spearman")
    for name in names:
        assert getattr(apart, name) == pytest.approx(getattr(told, name), rel=widened(1e-2))


def test_at_least_one_cell_is_verified_and_no_pairs_have_none():
    found = ranker("cross bert")
    assert swept(found, "mlp_out", "attribution", 1e-9).screening.n_verified == 1
    case = make("bert", "cross")
    for sites in ((), all_sites(case.ranker)):
        plan = Plan(sites, "both")
        told = sweeper(Attribution(), 0.5)(case.ranker, [], case.ranker.query_inputs([]), plan).screening
        assert (told.n_cells, told.n_verified, told.n_sampled) == (0, 0, 0)


# The stage


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [(str(i), QUERIES[i], f"d{i}", TEXTS[i]) for i in range(3)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


@pytest.fixture(scope="module")
def bi() -> Ranker:
    return ranker("bi cls dot")


def test_the_stage_tells_how_good_the_rest_is(bi, frame, tmp_path):
    scorer = PatchScorer(bi, "mlp_out", positions="each", method="column", screen=0.1, direction="both")
    out = scorer(frame)
    told = out.attrs["mechir"]["screen"]
    assert list(told) == list(CellScreening.__dataclass_fields__)
    assert told["n_verified"] == round(0.1 * told["n_cells"])
    assert told["mean_abs_error"] <= told["percentile_95_abs_error"] <= told["max_abs_error"]
    with pytest.raises(ValueError, match="whole frame"):
        scorer.store(tmp_path / "parts")
    (scorer >> PatchResults(tmp_path / "all").writer())(frame)
    assert PatchResults(tmp_path / "all").frame().attrs["mechir"]["screen"] == told


def test_one_site_is_not_all_cells(bi, frame):
    site, cells = (PatchScorer(bi, method="attribution", screen=screen) for screen in (1, 1.0))
    assert site != cells and len({site, cells}) == 2
    assert repr(site).endswith("screen=1)") and repr(cells).endswith("screen=1.0)")
    assert cells == PatchScorer(bi, method="attribution", screen=np.float32(1))
    exact = PatchScorer(bi)(frame)
    for one, other in zip(cells(frame)["patch_scores"], exact["patch_scores"], strict=True):
        assert_near(one, other, 1e-5)


@pytest.mark.parametrize("screen", [True, False, 0, -2, 0.0, 1.5, -0.1, float("nan"), "0.1"], ids=str)
def test_what_is_neither_sites_nor_a_share_is_refused(bi, screen):
    with pytest.raises(ValueError, match=r"^screen is .*; verify at least 1 site, or a share of cells above 0 and up"):
        PatchScorer(bi, method="attribution", screen=screen)


@pytest.mark.parametrize("screen", [2, 0.05])
def test_poor_estimates_are_warned_of_at_the_users_line(bi, frame, screen, monkeypatch):
    from pyterrier_mechir.patching import screening

    scorer, plain = PatchScorer(bi, method="attribution", screen=screen), screening.errors
    monkeypatch.setattr(screening, "errors", lambda *of: replace(plain(*of), spearman=0.9))
    scorer(frame)
    monkeypatch.setattr(screening, "errors", lambda *of: replace(plain(*of), spearman=0.6543))
    with pytest.warns(UserWarning) as caught:
        scorer(frame)
    (told,) = [one for one in caught if "Spearman correlation of 0.65 with exact ones; raise" in str(one.message)]
    assert told.filename == __file__


def test_its_cost_is_told(bi, frame):
    scorer = PatchScorer(bi, method="attribution", positions="each", screen=0.2)
    assert scorer.estimate(frame, seconds=0.1).seconds > 0
