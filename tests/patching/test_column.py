"""Column replay as a method: exact where it says so, the same however it is asked, refused where it is wrong."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import MethodType

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from gradients import make, run
from many_rankers import KINDS, ranker
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5
from test_columns import COVERED, each_kind
from test_exactness import PAIRS, snapshot
from tolerance import assert_near

from pyterrier_mechir import (
    Ablate,
    Add,
    AttentionTo,
    BiEncoder,
    CrossEncoder,
    FairAttention,
    MonoT5,
    PatchScorer,
    PerturbDocs,
    Scale,
    TermWeight,
    known_circuit,
)
from pyterrier_mechir.models import columns
from pyterrier_mechir.models.components import STARTS
from pyterrier_mechir.models.sites import select_sites
from pyterrier_mechir.patching.methods import sweeper
from pyterrier_mechir.patching.outcome import ROUNDING, SweepResult, rank_correlation
from pyterrier_mechir.patching.plan import ColumnReplay, Method, Plan, method_of
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.encoding import EDIT, TOKEN_CLASSES
from pyterrier_mechir.text.positions import TOP_UNITS, Positions

pytestmark = pytest.mark.usefixtures("one_thread")

COLUMN = ColumnReplay("column")
FILL = [pair for pair in PAIRS if pair[-1] == "fill"]
WAYS = ("denoise", "noise")


def pairs_of(found: Ranker, texts=FILL):
    queries, baselines, perturbed, alignments = zip(*texts, strict=True)
    return found.align(queries, baselines, perturbed, alignments=alignments), found.query_inputs(queries)


def swept(
    found: Ranker,
    method: Method = COLUMN,
    positions: object = "each",
    batch_size: int | None = None,
    pairs=None,
    components=STARTS,
    screen: int | None = None,
) -> SweepResult:
    """Both directions of some pairs."""
    aligned, inputs = pairs_of(found) if pairs is None else pairs
    chosen = positions if isinstance(positions, Positions) else Positions.of(positions)
    sites = select_sites(list(components), found.anatomy).patched
    plan = Plan(sites, "both", batch_size, chosen)
    return sweeper(method_of(method, found.anatomy), screen)(found, aligned, inputs, plan)


def assert_same(found: SweepResult, wanted: SweepResult, tolerance: float = 1e-5) -> None:
    assert_near(found.baseline, wanted.baseline, tolerance)
    for way in WAYS:
        for one, other in zip(getattr(found, way), getattr(wanted, way), strict=True):
            assert_near(one, other, tolerance, np.maximum(1, np.nanmax(np.abs(other))))


def moved(found: SweepResult) -> np.ndarray:
    """How far patches move scores, of all pairs and directions."""
    sides = ("denoise", found.baseline), ("noise", found.perturbed)
    return np.concatenate(
        [(one - s).ravel() for way, of in sides for one, s in zip(getattr(found, way), of, strict=True)]
    )


@each_kind
def test_all_positions_at_once_are_exact(kind):
    found = ranker(kind)
    exact = swept(found, "exact", "all")
    assert_same(swept(found, COLUMN, "all"), exact)
    assert np.abs(moved(exact)).max() > 1e-2


@pytest.mark.parametrize("kind", COVERED)
def test_batches_and_padding_change_nothing(kind):
    found = ranker(kind)
    alone = swept(found, batch_size=1)
    assert_same(swept(found, batch_size=len(FILL)), alone)
    assert_same(swept(found), alone)


@pytest.mark.parametrize("positions", ["class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize("kind", ["cross", "mean cosine"])
def test_masked_positions_and_missing_ones_are_those_of_exact_patches(kind, positions):
    case = make("distilbert", kind)
    sites = select_sites(list(STARTS), case.ranker.anatomy).patched
    found, exact = (run(case, method, sites, positions=positions) for method in (COLUMN, "exact"))
    for way in WAYS:
        for one, other in zip(getattr(found, way), getattr(exact, way), strict=True):
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    assert rank_correlation(*(np.nan_to_num(moved(one)) for one in (found, exact))) > 0.7
    alone = run(case, COLUMN, sites, positions=positions, batch_size=1)
    assert_same(found, alone)


@pytest.mark.parametrize("kind", ["bi mean cosine", "bi euclidean", "bi qwen3", "cross bert", "mono t5", "colbert"])
def test_a_slot_is_the_same_whatever_the_other_slots_are(kind):
    found = ranker(kind)
    pairs, inputs = pairs_of(found)
    each, chosen, classes = (swept(found, positions=kind) for kind in ("each", [1, -2], "class"))
    n_compared = 0
    for row, pair in enumerate(pairs):
        members = [np.flatnonzero(pair.classes == number) for number in range(len(TOKEN_CLASSES))]
        single = [number for number, places in enumerate(members) if len(places) == 1]
        several = [number for number, places in enumerate(members) if len(places) > 1]
        n_compared += len(single) * len(several) > 0
        own = [replace(pair, slots=np.stack([pair.classes == number])) for number in several]
        apart = [swept(found, positions=(TOP_UNITS, 1), pairs=([one], inputs)) for one in own]
        for way in WAYS:
            of_each, of_classes = getattr(each, way)[row], getattr(classes, way)[row]
            size = np.abs(of_each).max()
            assert_near(getattr(chosen, way)[row], of_each[:, [1, -2]], 1e-5, max(1, size))
            assert_near(of_classes[:, single], of_each[:, [int(members[n][0]) for n in single]], 1e-5, max(1, size))
            of_own = np.concatenate([getattr(one, way)[0] for one in apart], axis=1)
            assert_near(of_classes[:, several], of_own, 1e-5, max(1, size))
    assert n_compared > 0


@pytest.mark.parametrize("kind", ["bi mean cosine", "cross bert", "bi llama"])
def test_positions_that_are_named_twice_or_coincide_are_each_as_alone(kind):
    found = ranker(kind)
    pairs, _ = pairs_of(found)
    length = len(pairs[1].classes)
    names = [2, 2 - length, 1, 2, -1]
    together = swept(found, positions=names)
    for number, name in enumerate(names):
        alone = swept(found, positions=[name])
        for way in WAYS:
            for one, other in zip(getattr(together, way), getattr(alone, way), strict=True):
                assert_near(
                    one[:, number : number + 1], other, 1e-5, np.maximum(1, np.nanmax(np.abs(other), initial=1))
                )
    assert_near(together.denoise[1][:, 0], together.denoise[1][:, 1], 1e-5, np.abs(together.denoise[1]).max())


@pytest.mark.bits
@each_kind
def test_sides_that_are_the_same_have_exactly_the_score_of_the_run(kind):
    found = ranker(kind)
    pairs, inputs = pairs_of(found)
    same = [replace(pair, perturbed=pair.baseline) for pair in pairs], inputs
    for method in (COLUMN, ColumnReplay()):
        result = swept(found, method, pairs=same)
        for values, score in zip(result.denoise, result.baseline, strict=True):
            np.testing.assert_array_equal(values, np.full_like(values, score))


@pytest.mark.bits
@each_kind
def test_tokens_that_are_the_same_move_nothing_where_nothing_was_read_yet(kind):
    found = ranker(kind)
    pairs, _ = pairs_of(found)
    for method in (COLUMN, ColumnReplay()):
        result = swept(found, method, components=["resid_pre"])
        for pair, values, score in zip(pairs, result.denoise, result.baseline, strict=True):
            differs = pair.baseline.ids != pair.perturbed.ids
            np.testing.assert_array_equal(values[0, ~differs], score)
            if found.anatomy.n_layers > 1 and not kind.startswith(("bi last", "bi llama", "bi qwen3", "bi gemma2")):
                assert (values[0, differs] != score).any()


@pytest.mark.parametrize("positions", ["each", "class", "all", [1, -3]], ids=str)
@pytest.mark.parametrize("kind", ["bi cls dot", "bi t5", "cross roberta", "splade max", "generative qwen2"])
def test_slots_with_an_edited_position_are_exact_and_others_as_without(kind, positions):
    found = ranker(kind)
    pairs, _ = pairs_of(found)
    estimated, exact, mixed = (swept(found, method, positions) for method in (COLUMN, "exact", ColumnReplay()))
    n_edited = 0
    for row, pair in enumerate(pairs):
        masks = np.broadcast_to(
            Positions.of(positions).masks([pair])[:, 0], (Positions.of(positions).count(pair), len(pair.classes))
        )
        edited = masks[:, pair.classes == EDIT].any(axis=1)
        n_edited += edited.sum()
        for way in WAYS:
            found_of, estimated_of, exact_of = (
                np.asarray(getattr(one, way)[row]).reshape(-1, len(edited)) for one in (mixed, estimated, exact)
            )
            size = max(1, np.nanmax(np.abs(exact_of)))
            assert_near(found_of[:, ~edited], estimated_of[:, ~edited], 1e-5, size)
            assert_near(found_of[:, edited], exact_of[:, edited], 1e-5, size)
    assert n_edited > 0 or positions == [1, -3]
    if positions == "each":
        assert np.abs(moved(mixed) - moved(estimated)).max() > 1e-4


def test_one_direction_alone_is_that_of_both():
    case = make("bert", "cross")
    sites = select_sites(list(STARTS), case.ranker.anatomy).patched
    for method in (COLUMN, ColumnReplay()):
        both = run(case, method, sites, positions="each")
        for way, other in (WAYS, WAYS[::-1]):
            alone = run(case, method, sites, way, positions="each")
            assert getattr(alone, other) is None
            for one, wanted in zip(getattr(alone, way), getattr(both, way), strict=True):
                assert_near(one, wanted, 1e-5, np.maximum(1, np.nanmax(np.abs(wanted))))


@pytest.mark.parametrize("cells", [1, 2000])
def test_small_budgets_change_nothing(cells, monkeypatch):
    found = ranker("bi mean cosine")
    wanted = swept(found)
    monkeypatch.setattr(columns, "_CELLS", cells)
    monkeypatch.setattr(found, "batch_tokens", 40)
    assert_same(swept(found), wanted)


def test_no_sites_and_no_pairs_give_empty_results():
    case = make("bert", "cross")
    assert run(case, "column", [], positions="each").denoise[0].shape[0] == 0
    assert run(case, "column", select_sites("mlp_out", case.ranker.anatomy).patched, rows=[]).denoise.shape[0] == 0


EDITS = [
    Scale("L0H1", 0.3),
    Scale("L1.mlp_out", -0.5),
    Scale("L1H2.k", 1.7),
    Scale("L0.resid_mid", 1.2),
]


@pytest.mark.parametrize(
    "kind", ["bi mean cosine", "bi euclidean", "bi gemma2", "bi t5", "cross bert", "mono t5", "colbert"]
)
def test_rankers_that_are_edited_are_replayed_under_their_edits(kind):
    plain = ranker(kind)
    edits = EDITS if plain.anatomy.n_kv_heads == plain.anatomy.n_heads else [*EDITS[:2], *EDITS[3:]]
    width = plain.anatomy.width("attn_out")
    last = f"L{plain.n_layers - 1}.resid_post"
    found = plain.edited([*edits, Add("L1.attn_out", np.linspace(-1, 1, width)), Scale(last, 1.5)])
    assert_same(swept(found, COLUMN, "all"), swept(found, "exact", "all"))
    assert np.abs(moved(swept(found)) - moved(swept(plain))).max() > 1e-3
    assert rank_correlation(moved(swept(found)), moved(swept(found, "exact"))) > 0.5


def test_a_stream_that_an_edit_changes_on_its_way_is_not_patched_within_the_layer():
    found = ranker("bi llama").edited(Scale("L1.resid_pre", 0.8))
    with pytest.raises(ValueError, match=r"L1.resid_mid is read as the stream .* patch L1.resid_post"):
        PatchScorer(found, "resid_mid")
    PatchScorer(found, "resid_mid", layers=[0])
    PatchScorer(ranker("cross bert").edited(Scale("L1.resid_pre", 0.8)), "resid_mid")


class Halved(BiEncoder):
    """A bi-encoder that makes its vectors in a way of its own."""

    def encode(self, batch):
        states = self.twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return states[:, 0].float().relu() + 0.5 * states[:, 1].float()


def test_a_bi_encoder_with_an_encode_of_its_own_is_scored_by_it():
    found = Halved(build("bert", classifier=False), pooling="mean")
    assert_same(swept(found, COLUMN, "all"), swept(found, "exact", "all"))


def frame(**columns: list[str]) -> pd.DataFrame:
    made = pd.DataFrame({"qid": list("abc"), "query": QUERIES[:3], "docno": list("xyz"), "text": TEXTS[:3]})
    return made.assign(score=0.0, rank=0, **columns)


def of_side(side: str) -> pd.DataFrame:
    """Documents or queries that are perturbed, and one that is not."""
    made = frame()
    column = "text" if side == "document" else "query"
    if side == "query":
        return made.assign(query_perturbed=[f"{text} day" for text in made[column]], alignment="fill")
    perturbed = [*(f"{text} {query}" for text, query in zip(made["text"][:2], made["query"], strict=False)), None]
    return made.assign(text_perturbed=perturbed, alignment="fill")


@pytest.mark.parametrize("side", ["document", "query"])
@pytest.mark.parametrize("kind", ["bi mean cosine", "bi euclidean", "cross bert", "splade max", "colbert"])
def test_the_stage_patches_documents_and_queries(kind, side):
    components, given = list(STARTS), of_side(side)
    whole, exact = (
        PatchScorer(ranker(kind), components, method=method, direction="both")(given) for method in (COLUMN, "exact")
    )
    for row in range(len(given)):
        one, other = whole["patch_scores"].iloc[row], exact["patch_scores"].iloc[row]
        assert_near(one, other, 1e-5, np.maximum(1, np.nanmax(np.abs(other), initial=1)))
    named, made = (
        PatchScorer(ranker(kind), components, positions="each", method=method)(given)
        for method in ("column", ColumnReplay())
    )
    for one, other in zip(named["patch_scores"], made["patch_scores"], strict=True):
        assert_near(one, other, 1e-5, np.maximum(1, np.nanmax(np.abs(other), initial=1)))


def test_the_best_of_the_estimates_can_be_verified():
    found = ranker("cross bert")
    result, exact = swept(found, COLUMN, screen=2), swept(found, "exact")
    names = [site.name for site in select_sites(list(STARTS), found.anatomy).patched]
    verified = [names.index(name) for name in result.screening.verified]
    assert len(verified) == 2
    for one, other in zip(result.denoise, exact.denoise, strict=True):
        assert_near(one[verified], other[verified], 1e-5, np.abs(other).max())
    assert result.screening.n_sampled > 0 and result.screening.spearman > 0.5


@pytest.mark.parametrize(
    "component", ["head", "q", "k", "v", "pattern", "neuron", "embed", ["mlp_out", "head"]], ids=str
)
def test_other_components_are_refused(component):
    with pytest.raises(ValueError, match=r"patches one of resid_pre, .* at a time, and .* is none; use method='attr"):
        PatchScorer(ranker("cross bert"), component, method="column", positions="each")


def test_sets_of_sites_and_features_are_refused():
    found = ranker("cross bert")
    with pytest.raises(ValueError, match=r"at a time, and L0.mlp_out\+L1.mlp_out is none"):
        PatchScorer(found, heads=[["L0.mlp_out", "L1.mlp_out"]], method="column")
    PatchScorer(found, heads=["L0.mlp_out", "L1.mlp_out"], method="column")


def test_what_is_measured_before_the_end_is_refused():
    found = ranker("cross bert")
    with pytest.raises(ValueError, match=r"final states, and not AttentionTo\(.*method='attribution', or 'exact'"):
        PatchScorer(found, "mlp_out", metric=AttentionTo((2, 1), "Q+", "EDIT"), method=COLUMN)


def test_a_metric_of_the_final_states_is_estimated():
    found = ranker("splade max")
    stages = [PatchScorer(found, "mlp_out", metric=TermWeight("night"), method=name) for name in (COLUMN, "exact")]
    estimated, exact = (np.stack(stage(of_side("document"))["patch_scores"][:2]) for stage in stages)
    assert_near(estimated, exact)


@pytest.mark.parametrize(
    "edit",
    [
        Ablate("L1.mlp_out", by="resample", reference=TEXTS),
        Ablate("L1H0", by="mean", per="position class", reference=TEXTS),
        FairAttention(baskets=4),
    ],
    ids=["resample", "position class", "FairAttention"],
)
def test_edits_that_differ_from_place_to_place_are_refused(edit):
    found = ranker("bi mean cosine").edited([edit])
    PatchScorer(found, "mlp_out", method="exact")
    with pytest.raises(ValueError, match=r"same at every position of every text, and not FairAttention.*'exact'"):
        PatchScorer(found, "mlp_out", method="column")


def test_constants_in_the_place_of_activations_are_followed():
    found = ranker("bi mean cosine").edited([Ablate("L1.mlp_out", by="mean", reference=TEXTS), Ablate("L0H1")])
    assert_same(swept(found, COLUMN, "all"), swept(found, "exact", "all"))


@pytest.mark.parametrize("kind", sorted(set(KINDS).difference(COVERED)))
def test_rankers_whose_attention_cannot_be_computed_apart_are_refused(kind):
    with pytest.raises(ValueError, match=r"^column replay .*[Uu]se method='exact'\.$"):
        PatchScorer(ranker(kind), "mlp_out", method="column")


def test_paths_are_refused_and_so_are_unknown_options():
    with pytest.raises(ValueError, match="patched exactly"):
        PatchScorer(ranker("cross bert"), "mlp_out", method="column", receivers="final")
    with pytest.raises(ValueError, match=r"unknown edited 'all'"):
        ColumnReplay("all")


MADE = {
    "bi": lambda: BiEncoder(build("bert", classifier=False), pooling="mean"),
    "cross": lambda: CrossEncoder(build("distilbert", True)),
    "eager": lambda: CrossEncoder(_eager(build("bert", True))),
    "llama": lambda: BiEncoder(build_decoder("llama"), pooling="last"),
    "t5": lambda: MonoT5(build_t5(), stack="encoder"),
}


def _eager(loaded):
    loaded[0].set_attn_implementation("eager")
    return loaded


@pytest.mark.bits
@pytest.mark.parametrize("failing_call", [None, 1, 2, 3])
@pytest.mark.parametrize("kind", MADE)
def test_the_callers_model_is_left_as_it_was(kind, failing_call, monkeypatch):
    found = MADE[kind]()
    for weight in list(found.model.parameters())[::3]:
        weight.requires_grad_(False)

    def state() -> list[object]:
        weights = [(weight.requires_grad, weight.grad, weight.data_ptr()) for weight in found.model.parameters()]
        attention = found.anatomy.attention(0)
        config = attention.config
        return [snapshot(found.model), weights, id(config), config._attn_implementation, hasattr(config, "computed_by")]

    before, last, calls = state(), found.anatomy.layers[-1], []
    wanted = found.score(QUERIES[:2], TEXTS[:2])

    def fail(layer, *args, **kwargs):
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return type(layer).forward(layer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setitem(last.__dict__, "forward", MethodType(fail, last))
        if failing_call is None:
            swept(found)
        else:
            with pytest.raises(RuntimeError, match="out of memory"):
                swept(found)
    assert calls
    assert state() == before
    np.testing.assert_array_equal(found.score(QUERIES[:2], TEXTS[:2]), wanted)


def test_threads_do_not_see_each_other():
    found = ranker("bi mean cosine")
    pairs, inputs = pairs_of(found)
    wanted = [swept(found, pairs=([pair], inputs)) for pair in pairs]
    made: dict[int, SweepResult] = {}

    def work(number: int) -> None:
        for _ in range(3):
            made[number] = swept(found, pairs=([pairs[number % len(pairs)]], inputs))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 1, 2, 3]
    for number, result in made.items():
        assert_same(result, wanted[number % len(pairs)])


def test_on_the_ranker_whose_circuit_is_known_estimates_are_near_exact_patches():
    lab = pt.get_dataset("mechir:lab")
    rows = lab.get_qrels().merge(lab.get_topics(), on="qid").drop(columns="label").head(3)
    pairs = PerturbDocs(TFC1())(lab.text_loader()(rows).assign(score=0.0, rank=0))
    found = known_circuit("query").ranker
    for direction in WAYS:
        effects = {}
        for method in ("exact", ColumnReplay(), COLUMN):
            stage = PatchScorer(found, "block", positions="each", direction=direction, method=method)
            made = stage(pairs)
            base = made["score_baseline" if direction == "denoise" else "score_perturbed"]
            effects[method] = np.concatenate(
                [(one - score).ravel() for one, score in zip(made["patch_scores"], base, strict=True)]
            )
        exact = effects["exact"]
        is_seen = np.abs(exact) > ROUNDING * np.abs(base).max()
        assert is_seen.sum() > 100
        for method in (ColumnReplay(), COLUMN):
            assert np.abs(effects[method] - exact).sum() <= 0.1 * np.abs(exact).sum()
            assert rank_correlation(effects[method][is_seen], exact[is_seen]) >= 0.95
