"""Edits that are carried on through their layer come to the same as edits that are not, and as little is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from small_models import DECODERS, build, build_decoder, build_t5
from test_exactness import PAIRS, assert_same

from pyterrier_mechir import Ablate, BiEncoder, CrossEncoder, MonoT5
from pyterrier_mechir.models import replay as replaying
from pyterrier_mechir.models import resuming
from pyterrier_mechir.models.resuming import Edit
from pyterrier_mechir.models.sites import Site, SiteSet
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.positions import Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

BY_ROW = {"q": 1, "pattern": 1, "head": 1, "neuron": 7, "attn_out": None, "resid_mid": None, "mlp_out": None}
"""Components of a layer that change it at the patched positions alone, and the number of one."""

SEEN = {"k": 1, "v": 1}
"""Those of a head whose outputs change at other positions too."""

SETS = [
    SiteSet((Site("head", 0, 2), Site("mlp_out", 0))),
    SiteSet((Site("q", 0, 1), Site("k", 0, 0), Site("head", 0, 3))),
    SiteSet((Site("q", 0, 1), Site("q", 0, 2), Site("mlp_out", 0))),
    SiteSet((Site("pattern", 0, 1), Site("resid_post", 0))),
    SiteSet((Site("mlp_out", 0), Site("head", 1, 1))),
    SiteSet((Site("attn_out", 0), Site("v", 1, 0))),
]
"""Sets with sites of one layer, of the next, and of the stream between them."""

MODELS = ("bert", "bert cross", "distilbert", "modernbert", "mpnet", "t5", *DECODERS)


@cache
def ranker_of(model: str) -> Ranker:
    if model == "t5":
        return MonoT5(build_t5())
    if model in DECODERS:
        return BiEncoder(build_decoder(model), pooling="last")
    architecture, is_cross = model.partition(" ")[0], model.endswith("cross")
    made = build(architecture, is_cross)
    return CrossEncoder(made) if is_cross else BiEncoder(made, pooling="mean")


def sites_of(ranker: Ranker, layer: int) -> list[Site | SiteSet]:
    lacks = ranker.anatomy.lacks
    single = [Site(name, layer, number) for name, number in {**BY_ROW, **SEEN}.items()]
    return [one for one in (*single, *SETS) if not any(site.component in lacks for site in one.members)]


def swept(ranker: Ranker, sites, positions, direction="both"):
    queries, baselines, perturbed, alignments = zip(*PAIRS[1:], strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=alignments)
    plan = Plan(sites, direction, positions=Positions.of(positions))
    return sweep(ranker, pairs, ranker.query_inputs(unique(queries)[0]), plan)


@pytest.fixture
def carrying(monkeypatch) -> Iterator[Callable[[bool], list[Edit]]]:
    """Has edits carried on, or not; gives those that the runs then have."""

    def switched(is_on: bool) -> list[Edit]:
        made: list[Edit] = []
        monkeypatch.undo()
        carried = replaying.carried if is_on else lambda opened, batch, base, edits: edits

        def kept(*args) -> list[Edit]:
            made.extend(edits := carried(*args))
            return edits

        monkeypatch.setattr(replaying, "carried", kept)
        if not is_on:
            monkeypatch.setattr(resuming, "_spared", lambda *args: [])
        return made

    yield switched


@pytest.mark.parametrize("positions", ["all", "class", [1, 3, -2]], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_carried_on_comes_to_the_same(model, positions, carrying):
    ranker = ranker_of(model)
    for layer in (0, ranker.n_layers - 1):
        sites = sites_of(ranker, layer)
        carrying(False)
        expected = swept(ranker, sites, positions)
        carrying(True)
        found = swept(ranker, sites, positions)
        for one, other in ((found.denoise, expected.denoise), (found.noise, expected.noise)):
            for values, wanted in zip(one, other, strict=True):
                assert (np.isnan(values) == np.isnan(wanted)).all()
                assert_same(np.nan_to_num(values), np.nan_to_num(wanted))


@pytest.mark.parametrize("component", BY_ROW)
def test_what_changes_its_own_position_is_an_edit_of_the_stream_there(component, carrying):
    made = carrying(True)
    swept(ranker_of("bert"), [Site(component, 1, BY_ROW[component])], [1])
    assert {edit.key for edit in made} == {(1, "resid_post")}
    assert all(edit.source.ndim == 2 and (edit.mask.sum((2, 3)) <= 1).all() for edit in made)


@pytest.mark.parametrize("component", SEEN)
def test_what_others_attend_to_is_an_edit_of_the_outputs_of_its_head(component, carrying):
    made = carrying(True)
    swept(ranker_of("bert"), [Site(component, 1, SEEN[component])], [1])
    assert {edit.key for edit in made} == {(1, "z")}
    assert all(not edit.mask[..., [0, 2, 3]].any() for edit in made)


def with_a_hook(ranker: Ranker) -> Ranker:
    model, tokenizer = build("bert", classifier=False)
    first = torch.arange(200)[:, None] == 0
    model.encoder.layer[1].output.register_forward_hook(lambda module, args, out: out * (1 + first[: out.shape[1]]))
    return BiEncoder((model, tokenizer), pooling="mean")


def with_another_text(ranker: Ranker) -> Ranker:
    return ranker.edited([Ablate("L1H0", by="resample", reference=["tides in the night", "a bridge of iron"])])


@pytest.mark.parametrize("change", [with_a_hook, with_another_text])
def test_nothing_is_carried_on_where_positions_are_told_apart(change, carrying):
    ranker = change(ranker_of("bert"))
    made = carrying(True)
    sites = [Site("mlp_out", 1), Site("q", 1, 1), Site("resid_pre", 1)]
    found = swept(ranker, sites, [1, 3])
    assert {edit.key for edit in made} == {(1, "mlp_out"), (1, "q"), (1, "resid_pre")}
    carrying(False)
    for values, wanted in zip(found.denoise, swept(ranker, sites, [1, 3]).denoise, strict=True):
        assert_same(np.nan_to_num(values), np.nan_to_num(wanted))


@pytest.mark.parametrize("component", ["resid_pre", "q", "mlp_out"])
def test_maps_of_queries_keys_and_values_are_computed_where_the_stream_changes(component, monkeypatch):
    """Those of the layer that it enters: for each copy at one position, beside what all copies share."""
    ranker = ranker_of("bert")
    inputs = ranker.query_inputs([PAIRS[1][0]])
    key = ranker.anatomy.of(ranker.twin).layers[1 if component == "resid_pre" else 2].attention.self.key
    shapes, forward = [], key.forward
    monkeypatch.setitem(vars(key), "forward", lambda value: shapes.append(value.shape[:2]) or forward(value))
    [pair] = ranker.align(*([text] for text in PAIRS[1][:3]), alignments=["fill"])
    plan = Plan([Site(component, 1, BY_ROW.get(component))], positions=Positions.of("each"))
    sweep(ranker, [pair], inputs, plan)
    length = len(pair.classes)
    assert shapes[0] == (2, length)
    assert len(shapes) > 1
    assert all(n == 1 and length < n_rows <= 2 * length for n, n_rows in shapes[1:])
