"""The table of families: the page holds it, and each component of each cell is patched as by a hook."""

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import Reference
from small_models import DECODERS, QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import widened

from pyterrier_mechir import BiEncoder, ColBERT, CrossEncoder, GenerativeReranker, MonoT5, Splade
from pyterrier_mechir.models.components import COMPONENTS
from pyterrier_mechir.models.sites import Site
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.rankers.families import cells, components, markdown

pytestmark = pytest.mark.usefixtures("one_thread")


def ranker_of(cell):
    """A tiny ranker of a cell."""
    family, architecture, stack = cell
    if family == "MonoT5":
        return MonoT5(build_t5(architecture), stack=stack)
    if family == "GenerativeReranker":
        template = "Query: {query} Document: {document} Relevant:"
        return GenerativeReranker(build_decoder(architecture, "AutoModelForCausalLM"), template=template, yes=5, no=7)
    if family == "Splade":
        return Splade(masked_lm(architecture))
    if family == "CrossEncoder":
        return CrossEncoder(build(architecture, True))
    if family == "ColBERT":
        weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        return ColBERT(build(architecture, False), projection=weight, query_marker="", doc_marker="")
    if architecture in ("t5", "mt5"):
        encoder = "T5EncoderModel" if architecture == "t5" else "MT5EncoderModel"
        return BiEncoder(build_t5(architecture, encoder), pooling="mean")
    if architecture in DECODERS:
        return BiEncoder(build_decoder(architecture), pooling="last")
    return BiEncoder(build(architecture, False))


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: "-".join(filter(None, cell)))
def test_each_component_of_each_cell_is_patched_as_by_a_hook(cell):
    ranker = ranker_of(cell)
    found = components(cell)
    assert set(ranker.sites()["component"]) == set(found)
    text = TEXTS[0]
    (pair,) = ranker.align([QUERIES[0]], [text], [f"{text} tides"], alignments=["fill"])
    inputs = ranker.query_inputs([QUERIES[0]])
    last = ranker.n_layers - 1
    sites = [
        Site(name, 0 if name == "embed" else last, 1 if ranker.anatomy.groups(activation) > 1 else None)
        for name, activation in COMPONENTS.items()
        if name in found and "pattern" not in name
    ]
    result = sweep(ranker, [pair], inputs, Plan(sites, "denoise"))
    reference = Reference(ranker.model, None, decoder=cell.stack == "decoder")
    runs = [ranker.collate([side], inputs, [0]) for side in (pair.baseline, pair.perturbed)]
    for number, site in enumerate(sites):
        expected = _patched(ranker, reference, runs, site)
        assert result.denoise[0][number] == pytest.approx(expected, rel=widened(1e-5), abs=widened(1e-5)), site.name
    assert np.ptp(result.denoise[0]) > 1e-4


@torch.no_grad()
def _patched(ranker, reference, runs, site):
    """The score of the first run with a site taken from the second, by one hook that the engine knows nothing of."""
    taken = []
    with reference.hook(site.component, site.layer, lambda value: taken.append(value.clone())):
        ranker.forward(runs[1])
    part = reference.part(site.component, site.number, taken[0].shape[-1])

    def replace(value):
        mixed = value.clone()
        mixed[..., part] = taken[0][..., part]
        return mixed

    with reference.hook(site.component, site.layer, replace):
        return float(ranker.forward(runs[0]))


def test_the_page_holds_the_table():
    page = Path(__file__).parents[2] / "docs" / "rankers" / "families.md"
    assert markdown() in page.read_text(encoding="utf-8")
