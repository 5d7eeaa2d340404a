"""Path patching is the three runs of its definition, made with plain hooks on the unmodified model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest
import torch
from reference import Inputs, Reference, repeated, shape
from small_models import ARCHITECTURES, QUERIES, TEXTS
from test_exactness import PAIRS, assert_same, prepare, snapshot
from test_positions import slots_of
from tolerance import widened

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.models.sites import Site, SiteSet, parse_site
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.receivers import parse_receivers
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.positions import ALL, Positions
from pyterrier_mechir.text.sequences import unique

pytestmark = pytest.mark.usefixtures("one_thread")

Hook = Callable[[torch.Tensor], "torch.Tensor | None"]

SENDERS = [
    "L0H1",
    "L1H2",
    "L0.mlp_out",
    "L1.resid_pre",
    "L1H3.k",
    "embed",
    "L0H0+L1H0.q+L1H2+L0.attn_out",
    "L0H2+L1H0.k",
]

RECEIVERS = {
    "final": ["final"],
    "q": ["L2H1.q"],
    "k": ["L2H3.k"],
    "v": ["L2H0.v"],
    "two layers": ["L1H0.k", "L1H3.v", "L2H1.q", "L2H0.q", "L2H2.v"],
}


def path_patched(
    reference: Reference,
    target: Inputs,
    source: Inputs,
    senders: list[str],
    receivers: list[str],
    positions: list[int] | None = None,
) -> np.ndarray:
    """The scores of target runs, each with the receivers as one sender alone makes them, where neither run masks.

    The run of each sender is a row of a batch: in the first, heads are held as they were but for what the sender moves,
    which gives the receivers; in the second these are put in.
    """
    are_open = (target["attention_mask"] & source["attention_mask"])[0].bool().tolist()
    places = [i for i in (range(len(are_open)) if positions is None else positions) if are_open[i]]
    final = Site("resid_post", reference.n_layers - 1)
    ends = [final if name == "final" else parse_site(name) for name in receivers]
    by_row = [parse_site(name).members for name in senders]
    own = reference.activations_of(target, [("head", layer) for layer in range(reference.n_layers)])
    taken = reference.activations_of(source, [(site.component, site.layer) for members in by_row for site in members])
    read: dict[Site, torch.Tensor] = {}
    hooks = [(end, keep(read, end)) for end in ends]
    for row, members in enumerate(by_row):
        for layer in range(reference.n_layers):
            inputs = [site for site in members if site.layer == layer and site.component in ("q", "k", "v")]
            moving = {head for site in inputs for head in reference.readers(site.component, site.number)}
            frozen = [Site("head", layer, head) for head in range(reference.n_heads) if head not in moving]
            hooks += [(site, taking(reference, site, own["head", layer], [row])) for site in frozen]
        for site in members:
            hooks.append((site, taking(reference, site, taken[site.component, site.layer], [row], places)))
    rows = repeated(target, len(senders))
    hooked(reference, rows, hooks)
    everywhere = range(len(senders))
    return hooked(reference, rows, [(end, taking(reference, end, value, everywhere)) for end, value in read.items()])


@torch.no_grad()
def hooked(reference: Reference, inputs: Inputs, hooks: list[tuple[Site, Hook]]) -> np.ndarray:
    with ExitStack() as stack:
        for site, function in hooks:
            stack.enter_context(reference.hook(site.component, site.layer, function))
        return reference.scores(inputs).numpy()


def keep(read: dict[Site, torch.Tensor], site: Site) -> Hook:
    return lambda value: read.__setitem__(site, value.clone())


def taking(
    reference: Reference, site: Site, taken: torch.Tensor, rows: Sequence[int], positions: list[int] | None = None
) -> Hook:
    """A hook that changes a site in some rows to what was taken: of the same row, or of the only one."""

    def replace(value: torch.Tensor) -> torch.Tensor:
        mixed, part = value.clone(), reference.part(site.component, site.number, value.shape[-1])
        places = slice(None) if positions is None else positions
        for row in rows:
            mixed[row, places, part] = taken[row % len(taken), places, part]
        return mixed

    return replace


def patch(
    ranker: Ranker,
    pairs,
    senders: list[str],
    receivers: list[str] | None,
    direction: str = "denoise",
    batch_size: int | None = None,
    positions: Positions = ALL,
) -> SweepResult:
    inputs = ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])
    sites, ends = [parse_site(name) for name in senders], parse_receivers(receivers, ranker.anatomy)
    return sweep(ranker, pairs, inputs, Plan(sites, direction, batch_size, positions=positions, receivers=ends))


@pytest.mark.parametrize("receivers", RECEIVERS)
@pytest.mark.parametrize("kind", ["cls dot", "cross"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_path_is_exact(architecture, kind, receivers):
    ranker, pairs, references = prepare(architecture, kind)
    found = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], "both", batch_size=len(pairs))
    number = ARCHITECTURES.index(architecture) + list(RECEIVERS).index(receivers) + len(kind)
    for row, way in [((1, 0), (2, 1)), ((3, 0), (0, 1))][number % 2]:
        target, source = references[row].runs(pairs[row])[:: -1 if way else 1]
        wanted = path_patched(references[row].reference, target, source, SENDERS, RECEIVERS[receivers])
        assert_same((found.denoise, found.noise)[way][row], wanted)


@pytest.mark.parametrize("receivers", ["final", "two layers"])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "mean cosine"), ("modernbert", "cross"), ("distilbert", "cls dot"), ("mpnet", "last dot")],
)
def test_every_position_of_a_sender_is_exact(architecture, kind, receivers):
    ranker, pairs, references = prepare(architecture, kind)
    pairs, references = pairs[1::2], references[1::2]
    each = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], positions=Positions.of("each"), batch_size=len(pairs))
    chosen = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], positions=Positions.of([-2, 9]))
    for row, (pair, of_pair) in enumerate(zip(pairs, references, strict=True)):
        slots = slots_of(pair, "each")
        for at in {0, 1, len(slots) - 2}:
            runs = of_pair.runs(pair)
            wanted = path_patched(of_pair.reference, *runs, SENDERS, RECEIVERS[receivers], slots[at])
            assert_same(each.denoise[row][:, at], wanted)
        np.testing.assert_allclose(
            chosen.denoise[row][:, 0], each.denoise[row][:, -2], rtol=widened(1e-5), atol=widened(1e-5)
        )
        assert np.isnan(chosen.denoise[row][:, 1]).all() == (len(slots) <= 9)


@pytest.mark.parametrize("receivers", ["final", "two layers"])
def test_small_token_budgets_change_no_score(receivers, monkeypatch):
    ranker, pairs, _ = prepare("bert", "cross")
    whole = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], "both")
    monkeypatch.setattr(ranker, "batch_tokens", 150)
    parts = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], "both")
    np.testing.assert_allclose(parts.denoise, whole.denoise, rtol=widened(1e-5), atol=widened(1e-5))
    np.testing.assert_allclose(parts.noise, whole.noise, rtol=widened(1e-5), atol=widened(1e-5))


@pytest.mark.parametrize("receivers", RECEIVERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_paths_move_scores_so_that_a_wrong_one_would_be_seen(architecture, receivers):
    ranker, pairs, _ = prepare(architecture, "cross")
    found = patch(ranker, pairs[:2], SENDERS, RECEIVERS[receivers]).denoise
    plain = patch(ranker, pairs[:2], SENDERS, None)
    for other in (plain.baseline[:, None], plain.denoise, np.roll(found, 1, axis=1)):
        assert np.median(np.abs(found - other) / np.maximum(1, np.abs(other))) > 1e-4


@pytest.mark.parametrize("receivers", RECEIVERS)
@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ["electra", "modernbert", "mpnet"])
def test_a_path_from_a_run_to_itself_is_a_no_op_and_leaves_the_model_as_it_was(architecture, kind, receivers):
    ranker, _, _ = prepare(architecture, kind)
    queries, _, texts, _ = zip(*PAIRS, strict=True)
    pairs = ranker.align(queries, texts, texts, alignments=["fill"] * len(PAIRS))
    before = snapshot(ranker.model)
    found = patch(ranker, pairs, SENDERS, RECEIVERS[receivers], "both", batch_size=len(pairs))
    assert_same(found.denoise, np.broadcast_to(found.perturbed[:, None], found.denoise.shape))
    assert_same(found.noise, np.broadcast_to(found.baseline[:, None], found.noise.shape))
    assert snapshot(ranker.model) == before


@pytest.mark.parametrize("kind", ["cls dot", "mean cosine", "cross"])
@pytest.mark.parametrize("architecture", ["roberta", "modernbert", "distilbert"])
class TestLaws:
    """Paths that are patches of another kind; pairs whose sides have the same attention mask."""

    ROWS = (0, 1, 3)

    def pairs(self, architecture, kind):
        ranker, pairs, _ = prepare(architecture, kind)
        return ranker, [pairs[row] for row in self.ROWS]

    def test_after_the_last_attention_all_paths_lead_straight_to_the_final_stream(self, architecture, kind):
        ranker, pairs = self.pairs(architecture, kind)
        senders = ["L2H1", "L2H3.q", "L2H0.v", "L2.attn_out", "L2.resid_mid", "L2N5", "L2.mlp_out", "L2.resid_post"]
        assert_same(patch(ranker, pairs, senders, ["final"]).denoise, patch(ranker, pairs, senders, None).denoise)

    def test_all_that_is_not_computed_from_the_rest_gives_the_source_run(self, architecture, kind):
        ranker, pairs = self.pairs(architecture, kind)
        heads = [f"L{layer}H{head}" for layer in range(ranker.n_layers) for head in range(ranker.n_heads)]
        senders = ["+".join([first, *heads]) for first in ("embed", "L0.resid_pre")]
        found = patch(ranker, pairs, senders, ["final"], "both")
        assert_same(found.denoise, found.perturbed[:, None])
        assert_same(found.noise, found.baseline[:, None])

    def test_the_first_stream_reaches_the_inputs_of_a_first_head_and_nothing_else(self, architecture, kind):
        ranker, pairs = self.pairs(architecture, kind)
        for receivers, plain in {("q",): "L0H1.q", ("k",): "L0H1.k", ("q", "k", "v"): "L0H1"}.items():
            ends = [f"L0H1.{name}" for name in receivers]
            found = patch(ranker, pairs, ["L0.resid_pre", "embed"], ends).denoise
            assert_same(found, np.repeat(patch(ranker, pairs, [plain], None).denoise, 2, axis=1))

    def test_inputs_of_all_first_heads_are_the_attention_of_the_first_layer(self, architecture, kind):
        ranker, pairs = self.pairs(architecture, kind)
        ends = [f"L0H{head}.{name}" for head in range(ranker.n_heads) for name in "qkv"]
        found = patch(ranker, pairs, ["L0.resid_pre"], ends).denoise
        assert_same(found, patch(ranker, pairs, ["L0.attn_out"], None).denoise)

    def test_a_receiver_that_a_sender_does_not_reach_changes_nothing(self, architecture, kind):
        ranker, pairs = self.pairs(architecture, kind)
        senders = ["L1H2", "L1.mlp_out", "L1H1.k"]
        found = patch(ranker, pairs, senders, ["L0H1.v", "L1H1.k", "L1H3.q", "L2H0.k"]).denoise
        assert_same(found, patch(ranker, pairs, senders, ["L2H0.k"]).denoise)


def calls(modules: dict[str, torch.nn.Module], function) -> dict[str, list[int]]:
    """How many positions each module is called with, call by call."""
    seen: dict[str, list[int]] = {name: [] for name in modules}
    with ExitStack() as stack:
        for name, module in modules.items():

            def count(module, args, name=name):
                seen[name].append(args[0].shape[1])

            stack.enter_context(module.register_forward_pre_hook(count))
        function()
    return seen


def test_nothing_is_computed_that_a_path_does_not_pass():
    ranker, pairs, _ = prepare("bert", "cls dot")
    anatomy, n = ranker.anatomy, max(len(pair.classes) for pair in pairs)
    modules = {f"mlp {layer}": anatomy.port(layer, "mlp_post").module for layer in range(3)} | {
        f"q {layer}": anatomy.port(layer, "q").module for layer in range(3)
    }
    inputs = ranker.query_inputs(unique([query for query, *_ in PAIRS])[0])

    def seen(receivers: list[str]) -> dict[str, list[int]]:
        ends = parse_receivers(receivers, shape(3, 4))
        sites = [Site("head", 0, head) for head in range(4)]
        return calls(modules, lambda: sweep(ranker, pairs, inputs, Plan(sites, batch_size=len(pairs), receivers=ends)))

    assert seen(["final"]) == {f"q {layer}": [n] for layer in range(3)} | {f"mlp {i}": [n, 1] for i in range(3)}
    assert seen(["L1H0.k"]) == {"mlp 0": [n, n], "mlp 1": [n, n], "mlp 2": [n, 1]} | {
        "q 0": [n],
        "q 1": [n, n],
        "q 2": [n, 1],
    }


@pytest.mark.parametrize(("sender", "runs"), [("L0H2", "one"), ("L0.mlp_out", "one"), ("L0H2.k", "each")])
@pytest.mark.parametrize("receivers", ["final", "L1H0.k"])
def test_one_run_serves_all_positions_of_a_sender_that_keeps_to_them(sender, runs, receivers, monkeypatch):
    ranker, pairs, _ = prepare("modernbert", "cross mean")
    monkeypatch.setattr(ranker, "batch_tokens", 10**6)
    edited = [int(((one.baseline.ids != one.perturbed.ids) & one.is_open).sum()) for one in pairs]
    number, rows = int(np.argmax(edited)), list[int]()
    assert edited[number] > 1  # at the other positions, the first layer's keys are the same on both sides
    with ranker.anatomy.port(0, "mlp_out").module.register_forward_hook(lambda *args: rows.append(len(args[1][0]))):
        patch(ranker, pairs[number : number + 1], [sender], [receivers], positions=Positions.of("each"))
    assert rows == [2, edited[number] if runs == "each" else 1]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rows = [("1", QUERIES[0], f"d{i}", TEXTS[i]) for i in (0, 1, 4)]
    return PerturbDocs(TFC1("tides"))(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def test_the_stage_patches_the_sites_upstream_of_a_receiver(ranker, frame):
    receivers = ["L2H1.q", "L1H0.k"]
    out = PatchScorer(ranker, receivers=receivers, direction="both")(frame)
    for column in ("patch_scores", "patch_effect", "patch_effect_noise"):
        values = np.stack(out[column])
        assert values.shape == (3, ranker.n_layers, ranker.n_heads)
        assert np.isfinite(values[:, :2]).all()
        assert np.isnan(values[:, 2]).all()
    assert out.attrs["mechir"]["receivers"] == receivers
    heads = AggregateHeads(by=None)(out)
    assert set(heads["docno"]) == {f"L{layer}H{head}" for layer in (0, 1) for head in range(ranker.n_heads)}
    streams = PatchScorer(ranker, "resid_pre", receivers="L1H0.k")(frame)
    assert np.isfinite(np.stack(streams["patch_scores"])).tolist() == [[True, True, False]] * 3


def test_the_stage_gives_effects_of_paths_by_token_class(ranker, frame):
    out = PatchScorer(ranker, "mlp_out", receivers="final", positions="class", filler=["a", "mask"])(frame)
    assert out.attrs["mechir"]["receivers"] == ["final"]
    for scores, classes in zip(out["patch_scores"], out["token_classes"], strict=True):
        present = np.isfinite(scores)
        assert (present == present[0]).all()
        assert present[0].sum() == len(set(classes))


def test_a_stage_is_known_by_its_receivers(ranker):
    one, same, other = (PatchScorer(ranker, receivers=name) for name in ("final", "final", "L1H0.q"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != PatchScorer(ranker)
    assert repr(other) == f"PatchScorer({ranker!r}, receivers='L1H0.q')"
    assert PatchScorer(ranker, receivers=["L1H0.q", "L2H0.v"]) == PatchScorer(ranker, receivers=("L1H0.q", "L2H0.v"))
    assert "receivers" not in PatchScorer(ranker).measure.told(None)


def test_names_of_receivers():
    assert parse_receivers("final", shape(6, 12)) == (Site("resid_post", 5),)
    both = (Site("k", 4, 1), Site("v", 4, 1))
    assert parse_receivers(["L4H1.k", "L4H1.v", "L4H1.k"], shape(6, 12)) == both
    assert parse_receivers(SiteSet(both).name, shape(6, 12)) == both


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"receivers": "L1H0"}, "'L1H0' is no receiver"),
        ({"receivers": ["L1.mlp_out"]}, "'L1.mlp_out' is no receiver"),
        ({"receivers": "last"}, "'last' is no receiver"),
        ({"receivers": [(1, 0)]}, r"\(1, 0\) is no receiver"),
        ({"receivers": []}, "no receivers given"),
        ({"receivers": ["final", "L1H0.q"]}, "by itself"),
        ({"receivers": "L3H0.q"}, r"no head \(3, 0\)"),
        ({"receivers": ["L2H0.q", "L1H4.v"]}, r"no head \(1, 4\)"),
        ({"receivers": "L0H0.q"}, "no component to patch lies before L0H0.q"),
        ({"receivers": ["L1H0.q", "L2H0.k"], "layers": [2]}, "no component to patch lies before L1H0.q, L2H0.k"),
        ({"receivers": "L1H0.q", "heads": [[(1, 1), "L2.mlp_out"]]}, "no component to patch lies before"),
    ],
)
def test_receivers_that_cannot_be_are_an_error(ranker, options, message):
    with pytest.raises(ValueError, match=message):
        PatchScorer(ranker, **options)
