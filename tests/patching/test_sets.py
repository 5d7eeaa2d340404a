"""Several sites patched together are those hooks together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from reference import shape
from small_models import QUERIES, TEXTS
from test_exactness import PAIRS, all_sites, assert_same, make, run
from test_positions import ARCHITECTURES, slots_of, swept
from tolerance import widened

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site, select_sites
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")

SETS = [
    "L0H1+L0H3",
    "L1H0+L2H1+L1.mlp_out",
    "L0H2.q+L2H0.v+L1N5+L1N6",
    "L1.resid_mid+L2H3",
    "L0.resid_post+L2.attn_out",
    "L2.resid_post+L0H0.k",
    "embed+L1H2",
    "L2.mlp_out+L2H1",
]


def expected(case, sets, noise: bool) -> np.ndarray:
    rows = []
    for pair, of_pair in zip(case.pairs, case.references, strict=True):
        target, source = of_pair.runs(pair)[::-1] if noise else of_pair.runs(pair)
        rows.append(of_pair.reference.patched_each(target, source, sets)[:, 0])
    return np.array(rows)


@pytest.mark.parametrize("batch_size", [len(PAIRS), None], ids=["padded", "by length"])
@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_set_is_exact_in_both_directions(architecture, kind, batch_size):
    case = make(architecture, kind)
    sets = [parse_site(name) for name in SETS]
    found = run(case, batch_size=batch_size, sites=sets)
    assert_same(found.denoise, expected(case, sets, noise=False))
    assert_same(found.noise, expected(case, sets, noise=True))


def test_a_set_at_single_positions_is_exact():
    case = make("bert", "cls dot")
    sets = [parse_site(name) for name in SETS]
    found = swept(case, [1, -2], sets, "denoise")
    for row, (pair, of_pair) in enumerate(zip(case.pairs, case.references, strict=True)):
        target, source = of_pair.runs(pair)
        for column, slot in enumerate(slots_of(pair, [1, -2])):
            wanted = [of_pair.reference.patched(target, source, sites, slot) for sites in sets]
            values = found.denoise[row][:, column]
            assert np.isnan(values).all() if not slot else not np.isnan(values).any()
            if slot:
                assert_same(values, np.array(wanted))


@pytest.mark.parametrize("kind", ["cls dot", "cross"])
def test_patching_everything_gives_the_source_run(kind):
    case = make("distilbert", kind)
    layers = range(case.ranker.n_layers)
    parts = [Site(component, layer) for layer in layers for component in ("attn_out", "mlp_out")]
    everything = SiteSet((*parts, Site("embed", 0)))
    rows = [0, 1, 3]
    found = run(case, sites=[everything])
    assert_same(found.denoise[rows, 0], case.perturbed[rows])
    assert_same(found.noise[rows, 0], case.baseline[rows])


def test_sets_that_resume_at_the_same_point_share_a_forward_pass(monkeypatch):
    case = make("bert", "cls dot")
    sets = [parse_site(f"L0H{i}+L1H{i}+L{i % 3}.mlp_out" if i % 2 else f"L0H{i}+L2H{i}.q") for i in range(4)]
    before, forward = [], case.ranker.forward
    monkeypatch.setattr(case.ranker, "forward", lambda batch: before.append(len(batch["input_ids"])) or forward(batch))
    run(case, "noise", batch_size=len(PAIRS), sites=sets)
    assert before == [2 * len(PAIRS), len(sets) * len(PAIRS)]


@pytest.mark.bits
def test_a_set_of_one_is_its_site():
    case = make("bert", "cross")
    sites = all_sites(case.ranker)[::5]
    alone, sets = run(case, sites=sites), run(case, sites=[SiteSet((site,)) for site in sites])
    np.testing.assert_array_equal(alone.denoise, sets.denoise)


@pytest.mark.parametrize(
    "site",
    [Site("head", 5, 8), Site("q", 0, 11), Site("neuron", 2, 1500), Site("mlp_out", 10), Site("embed", 0)],
    ids=lambda site: site.name,
)
def test_a_name_is_read_back(site):
    assert parse_site(site.name) == site
    both = SiteSet((site, Site("resid_mid", 1)))
    assert parse_site(both.name) == both


@pytest.mark.parametrize("name", ["", "H5", "L5", "L5H", "5.8", "L5.nothing", "L5H8.z", "L5H8+", "embed.0"])
def test_another_name_is_an_error(name):
    with pytest.raises(ValueError, match=r"names no site|unknown component"):
        parse_site(name)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [("1", QUERIES[0], f"d{i}", TEXTS[i]) for i in (0, 1, 4)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def test_the_stage_patches_sets_and_the_aggregate_names_them(ranker, frame):
    entries = [[(1, 2), (2, 0), "L1.mlp_out"], "L2.resid_mid", (0, 1), [(1, 2)]]
    out = PatchScorer(ranker, heads=entries)(frame)
    assert {array.shape for array in out["patch_effect"]} == {(4,)}
    heads = AggregateHeads(by=None)(out).set_index("docno")
    assert set(heads.index) == {"L1H2+L2H0+L1.mlp_out", "L2.resid_mid", "L0H1", "L1H2"}
    assert heads.loc["L1H2+L2H0+L1.mlp_out", "component"] == "set"
    assert heads["layer"].isna().sum() == 1
    plain = PatchScorer(ranker)(frame)
    np.testing.assert_allclose(
        np.stack(out["patch_scores"])[:, 3],
        np.stack(plain["patch_scores"])[:, 1, 2],
        rtol=widened(1e-5),
        atol=widened(1e-5),
    )


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([[(0, 0), (9, 9)]], r"no head \(9, 9\)"),
        ([["L9.mlp_out"]], "no layer 9"),
        (["L0N9999"], r"no neuron \(0, 9999\)"),
        ([[]], "patches nothing"),
        (["L0X3"], "names no site"),
    ],
)
def test_a_set_that_the_model_lacks_is_an_error(ranker, heads, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(ranker, heads=heads)


def test_heads_of_one_component_keep_the_shape_of_all():
    assert select_sites("q", shape(3, 4), [(0, 1)]).shape == (3, 4)
    assert select_sites("q", shape(3, 4), [[(0, 1)]]).shape == (1,)
    assert select_sites("q", shape(3, 4), [[(0, 1)]]).sites == (SiteSet((Site("q", 0, 1),)),)
