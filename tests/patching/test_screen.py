"""Screening verifies the sites of greatest estimated effect exactly, and tells how good the other estimates are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from gradients import all_sites, make, run
from small_models import QUERIES, TEXTS
from test_exactness import PAIRS
from tolerance import assert_near_effects, widened

from pyterrier_mechir import (
    AggregateHeads,
    Attribution,
    IntegratedGradients,
    PatchScorer,
    PerturbDocs,
    explode_effects,
)
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.patching.outcome import rank_correlation
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")

K = 5
METHODS = [
    Attribution(),
    Attribution(grad_drop=True),
    IntegratedGradients(steps=2),
    IntegratedGradients("activations", 2),
]


def effects(result) -> np.ndarray:
    """``[site, everything else]``: how far patches move the scores."""
    columns = [
        of_pair.reshape(len(of_pair), -1) - score
        for way, scores in ((result.denoise, result.baseline), (result.noise, result.perturbed))
        for of_pair, score in zip(way, scores, strict=True)
    ]
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize(
    ("method", "positions"),
    [*((method, "all") for method in METHODS), (METHODS[0], "class"), (METHODS[2], "each")],
    ids=str,
)
def test_the_best_by_estimate_are_exact_and_the_rest_estimates(method, positions):
    case = make("bert", "cross")
    sites = all_sites(case.ranker)[:: 3 if positions == "all" else 5]
    estimated, exact = (effects(run(case, one, sites, positions=positions)) for one in (method, "exact"))
    screened = run(case, method, sites, positions=positions, screen=K)
    found, report = effects(screened), screened.screening
    best = np.argsort(-np.nansum(np.abs(estimated), axis=1), kind="stable")[:K]
    assert list(report.verified) == [sites[i].name for i in best]
    np.testing.assert_allclose(found[best], exact[best], atol=widened(1e-5))
    others = np.setdiff1d(np.arange(len(sites)), best)
    np.testing.assert_allclose(found[others], estimated[others], atol=widened(2e-6))
    assert np.nanmax(np.abs(exact[best] - estimated[best])) > 1e-3


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_with_all_others_sampled_the_error_is_that_of_all_others(method):
    case = make("bert", "cls dot")
    sites = all_sites(case.ranker)[::6][:9]
    estimated, exact = (effects(run(case, one, sites, positions="class")) for one in (method, "exact"))
    report = run(case, method, sites, positions="class", screen=5).screening
    others = [i for i, site in enumerate(sites) if site.name not in report.verified]
    known = ~np.isnan(exact[others])
    found, wanted = estimated[others][known], exact[others][known]
    if method == Attribution(grad_drop=True):
        found, wanted = np.abs(found), np.abs(wanted)
    assert report.n_sampled == known.sum()
    np.testing.assert_allclose(report.mean_abs_error, np.abs(found - wanted).mean(), rtol=widened(1e-3))
    np.testing.assert_allclose(report.max_abs_error, np.abs(found - wanted).max(), rtol=widened(1e-3))
    expected = pd.Series(found).corr(pd.Series(wanted), method="spearman")
    np.testing.assert_allclose(report.spearman, expected, atol=0.02)


def test_a_sample_has_as_many_sites_as_were_verified():
    case = make("bert", "cross")
    report = run(case, "attribution", direction="denoise", screen=4).screening
    assert report.n_sampled == 4 * len(PAIRS)
    assert 0 < report.mean_abs_error < report.max_abs_error


@pytest.mark.bits
def test_the_same_sample_is_drawn_again():
    case = make("bert", "cross")
    report, again = (run(case, "attribution", direction="denoise", screen=4).screening for _ in range(2))
    assert again == report


def test_more_than_all_sites_are_all_exact():
    case = make("bert", "cross")
    sites = [Site("head", 0, 1), Site("mlp_out", 2), parse_site("L0H0+L1H0")]
    screened, exact = run(case, "attribution", sites, screen=10), run(case, "exact", sites)
    np.testing.assert_allclose(screened.denoise, exact.denoise, atol=widened(1e-6))
    np.testing.assert_allclose(screened.noise, exact.noise, atol=widened(1e-6))
    assert sorted(screened.screening.verified) == sorted(site.name for site in sites)
    assert screened.screening.n_sampled == 0
    assert np.isnan(screened.screening.mean_abs_error)


def test_no_pairs_leave_nothing_to_compare():
    case = make("bert", "cross")
    report = run(case, "attribution", rows=[], screen=2).screening
    assert (len(report.verified), report.n_sampled) == (2, 0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 1, 2, 3], [1, 2, 2, 9], 5 / 6),
        ([1, 1], [1, 2], np.nan),
    ],
)
def test_rank_correlation_averages_the_ranks_of_ties(a, b, expected):
    np.testing.assert_allclose(rank_correlation(np.array(a, float), np.array(b, float)), expected)


# The stage


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [(str(i), QUERIES[i], f"d{i}", TEXTS[i]) for i in range(4)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def stacked(out: pd.DataFrame, column: str) -> np.ndarray:
    return np.stack(list(out[column]))


@pytest.mark.parametrize("direction", ["denoise", "noise", "both"])
def test_the_stage_gives_estimates_in_the_place_of_patched_scores(ranker, frame, direction):
    scorer = PatchScorer(ranker, direction=direction, method="attribution")
    out = scorer(frame)
    exact = PatchScorer(ranker, direction=direction)(frame)
    assert list(out.columns) == list(exact.columns)
    for column in ("score", "score_baseline", "score_perturbed"):
        np.testing.assert_allclose(out[column], exact[column], atol=widened(1e-5))
    base, perturbed = (out[name].to_numpy()[:, None, None] for name in ("score_baseline", "score_perturbed"))
    scores, effect = stacked(out, "patch_scores"), stacked(out, "patch_effect")
    moved = perturbed - scores if direction == "noise" else scores - base
    assert_near_effects(effect, moved / (perturbed - base), out, 1e-6)
    assert np.abs(scores - stacked(exact, "patch_scores")).max() > 1e-4
    assert AggregateHeads(by=None)(out)["score"].notna().all()


def test_effects_of_grad_drop_are_never_negative(ranker, frame):
    back = frame.assign(
        docno=frame["docno"] + "_back", text=frame["text_perturbed"], text_perturbed=frame["text"] + " a"
    )
    both = pd.concat([frame, back], ignore_index=True)
    out = PatchScorer(ranker, direction="both", method=Attribution(grad_drop=True))(both)
    rises = out["score_perturbed"] > out["score_baseline"]
    assert rises.any() and not rises.all()
    assert stacked(out, "patch_effect").min() > -1e-5
    assert stacked(out, "patch_effect_noise").min() > -1e-5


def test_estimates_are_averaged_over_fillers(ranker, frame):
    fillers = ["a", "the"]
    out = PatchScorer(ranker, filler=fillers, method="ig")(frame)
    each = [stacked(PatchScorer(ranker, filler=filler, method="ig")(frame), "patch_scores") for filler in fillers]
    np.testing.assert_allclose(stacked(out, "patch_scores"), np.mean(each, axis=0), atol=widened(1e-5))


def test_the_report_is_in_the_attrs(ranker, frame):
    out = PatchScorer(ranker, ["head", "mlp_out"], method="attribution", screen=3)(frame)
    report = out.attrs["mechir"]["screen"]
    assert set(report) == {"verified", "n_sampled", "mean_abs_error", "max_abs_error", "spearman"}
    assert len(report["verified"]) == 3
    sites = out.attrs["mechir"]["sites"]
    exact = PatchScorer(ranker, ["head", "mlp_out"])(frame)
    verified = [sites.index(name) for name in report["verified"]]
    np.testing.assert_allclose(
        stacked(out, "patch_effect")[:, verified],
        stacked(exact, "patch_effect")[:, verified],
        rtol=widened(1e-3),
        atol=1e-4,
    )
    assert "screen" not in PatchScorer(ranker, method="attribution")(frame).attrs["mechir"]


def test_each_position_is_screened_and_exploded(ranker, frame):
    out = PatchScorer(ranker, "resid_pre", positions="each", method="attribution", screen=1)(frame)
    assert set(explode_effects(out)["docno"]) == set(frame["docno"])
    verified = out.attrs["mechir"]["sites"].index(out.attrs["mechir"]["screen"]["verified"][0])
    exact = PatchScorer(ranker, "resid_pre", positions="each")(frame)
    for row, other in zip(out["patch_scores"], exact["patch_scores"], strict=True):
        np.testing.assert_allclose(row[verified], other[verified], atol=widened(1e-4))


@pytest.mark.parametrize("options", [{"method": "attribution"}, {"method": "ig", "screen": 2}], ids=str)
def test_the_stage_keeps_the_conventions(ranker, frame, options):
    scorer = PatchScorer(ranker, **options)
    assert len(scorer(frame.head(0))) == 0
    assert pt.inspect.transformer_outputs(scorer, list(frame.columns))
    before = frame.copy(deep=True)
    scorer(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_name_means_its_default_options(ranker):
    assert PatchScorer(ranker, method="attribution") == PatchScorer(ranker, method=Attribution())
    assert PatchScorer(ranker, method="ig") == PatchScorer(ranker, method=IntegratedGradients())
    assert PatchScorer(ranker, method="ig") != PatchScorer(ranker, method=IntegratedGradients(steps=5))
    assert PatchScorer(ranker, method="ig") != PatchScorer(ranker, method="ig", screen=5)
    assert len({PatchScorer(ranker, method="attribution"), PatchScorer(ranker), PatchScorer(ranker)}) == 2
    assert repr(PatchScorer(ranker)) == f"PatchScorer({ranker!r})"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "unknown method 'guess'.*'exact', 'attribution', 'ig'"),
        ({"screen": 5}, "screen=5 verifies estimates"),
        ({"method": "ig", "screen": 0}, "screen is 0"),
    ],
)
def test_an_unusable_option_is_an_error_at_once(ranker, options, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(ranker, **options)
