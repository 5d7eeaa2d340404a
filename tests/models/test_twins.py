"""What runs are modules of the package's own: the caller's are never touched, and what changes in them is followed."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import MethodType

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import QUERIES, TEXTS, build, build_decoder, build_t5, masked_lm
from tolerance import assert_near, widened
from torch import nn

from pyterrier_mechir import (
    AttentionPatterns,
    BiEncoder,
    ColBERT,
    CrossEncoder,
    GenerativeReranker,
    MonoT5,
    PatchScorer,
    ScoreAttribution,
    ScoreLens,
    Splade,
)
from pyterrier_mechir.models.twins import Twins, twin_of, unwrapped
from pyterrier_mechir.patching.metrics import AttentionTo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def frame():
    return pd.DataFrame(
        {"qid": list("abc"), "query": QUERIES[:3], "docno": list("xyz"), "text": TEXTS[:3], "score": 0.0, "rank": 0}
    )


def bi_encoder() -> BiEncoder:
    return BiEncoder(build("bert", classifier=False))


def state(model: nn.Module) -> list[tuple]:
    """What a run could leave in any module of the caller's."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, type(module), module.training, list(vars(module)), [list(getattr(module, each)) for each in hooks])
        for name, module in model.named_modules()
    ] + [(name, weight.requires_grad, weight.data_ptr()) for name, weight in model.named_parameters()]


def effects(made: pd.DataFrame) -> np.ndarray:
    return np.stack(made["patch_scores"].to_list())


# A twin


def test_a_twin_has_modules_of_its_own_and_the_very_weights():
    model, _ = build("bert", classifier=False)
    twin = twin_of(model)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    assert all(own is not made and type(own) is type(made) for own, made in pairs)
    assert all(one is other for one, other in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(one is other for one, other in zip(model.buffers(), twin.buffers(), strict=True))


def test_modules_that_are_shared_or_held_elsewhere_are_those_of_the_twin():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.same = nn.Linear(2, 2)
            self.listed, self.named, self.method = [self.one], {"one": self.one}, self.one.forward

    made = twin_of(model := Holding())
    assert made.one is made.same is made.listed[0] is made.named["one"] is made.method.__self__
    assert made.one is not model.one


def test_a_twin_is_made_once_for_a_thread_and_again_when_a_part_is_replaced():
    model, _ = build("bert", classifier=False)
    twins = Twins(model)
    first = twins.current()
    assert twins.current() is first
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(twins.current).result() is not first
    model.encoder.layer[0] = deepcopy(model.encoder.layer[1])
    assert twins.current() is not first
    assert Twins.of_all_threads(twins.current()).current() is twins.current()


# The caller's model is never touched


STAGES: dict[str, Callable[[BiEncoder], Callable]] = {
    "exact": PatchScorer,
    "attribution": lambda ranker: PatchScorer(ranker, method="attribution"),
    "integrated gradients": lambda ranker: PatchScorer(ranker, method="ig", heads=[(1, 1)]),
    "paths": lambda ranker: PatchScorer(ranker, receivers="final"),
    "pattern": lambda ranker: PatchScorer(ranker, "pattern"),
    "attention": lambda ranker: PatchScorer(ranker, metric=AttentionTo((1, 1), "CLS", "SEP")),
    "patterns": AttentionPatterns,
    "lens": ScoreLens,
    "terms": ScoreAttribution,
}


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_in_the_callers_modules_while_a_stage_runs(stage, frame):
    model, tokenizer = build("bert", classifier=False)
    scorer = STAGES[stage](BiEncoder((model, tokenizer)))
    before: list[tuple] = []
    seen: list[bool] = []
    hook = model.encoder.layer[1].register_forward_hook(lambda *args: seen.append(state(model) == before))
    before += state(model)
    scorer(frame)
    assert seen and all(seen)
    hook.remove()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_a_sweep_is_interrupted(error, frame):
    model, tokenizer = build("bert", classifier=False)
    scorer = PatchScorer(BiEncoder((model, tokenizer)))
    wanted, before, calls = effects(scorer(frame)), state(model), []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error

    with model.encoder.layer[1].register_forward_hook(stop), pytest.raises(error):
        scorer(frame)
    assert state(model) == before
    assert_near(effects(scorer(frame)), wanted)


def test_a_score_is_never_drawn_with_dropout(frame):
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    wanted = effects(PatchScorer(ranker)(frame))
    model.train()
    assert_near(effects(PatchScorer(ranker)(frame)), wanted)
    assert model.training


def test_the_callers_tokenizer_keeps_its_settings_and_these_change_nothing(frame):
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    wanted, backend = effects(PatchScorer(ranker)(frame)), tokenizer.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding(length=200)
    settings = (backend.truncation, backend.padding)
    assert_near(effects(PatchScorer(ranker)(frame)), wanted)
    assert (backend.truncation, backend.padding) == settings


# Threads


class Pausing(nn.Module):
    """A map that lets other threads run before it gives its result, so that their runs overlap within it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        made = self.inner(*args)
        time.sleep(0.002)
        return made


def test_runs_of_two_threads_do_not_meet(frame):
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    wanted_scores, wanted = ranker.score(QUERIES, TEXTS), effects(PatchScorer(ranker)(frame))
    layer = model.encoder.layer[0]
    layer.intermediate = Pausing(layer.intermediate)
    jobs = [lambda: ranker.score(QUERIES, TEXTS), lambda: effects(PatchScorer(BiEncoder((model, tokenizer)))(frame))]
    with ThreadPoolExecutor(4) as pool:
        scores, patched = zip(*(pool.map(lambda job: job(), jobs) for _ in range(2)), strict=True)
    for found, expected in [(one, wanted_scores) for one in scores] + [(one, wanted) for one in patched]:
        assert_near(found, expected, 1e-4)


def test_each_thread_has_a_lens_of_its_own():
    ranker = bi_encoder()
    wanted, _ = ranker.run_with_cache(QUERIES[0], TEXTS)
    assert ranker.lens is ranker.lens
    with ThreadPoolExecutor(2) as pool:
        lenses = list(pool.map(lambda _: (threading.get_ident(), ranker.lens), range(2)))
        found = list(pool.map(lambda _: ranker.run_with_cache(QUERIES[0], TEXTS)[0], range(2)))
    assert all(lens is not ranker.lens for _, lens in lenses)
    for scores in found:
        torch.testing.assert_close(scores, wanted, rtol=widened(1e-5), atol=widened(1e-5))


def test_a_ranker_can_be_pickled_and_copied_after_it_has_run():
    ranker = bi_encoder()
    wanted = ranker.score(QUERIES, TEXTS)
    for other in (pickle.loads(pickle.dumps(ranker)), deepcopy(ranker)):
        assert other.model is not ranker.model
        assert_near(other.score(QUERIES, TEXTS), wanted)


# What changes is followed


def anew(model, tokenizer, texts=TEXTS):
    """The scores of a ranker that is made of a copy of a model as it is now."""
    return BiEncoder((deepcopy(model), tokenizer)).score(QUERIES, texts)


def with_another_layer(model):
    model.encoder.layer[0] = deepcopy(model.encoder.layer[1])


def with_another_map(model):
    linear = nn.Linear(32, 32)
    model.encoder.layer[1].attention.self.value = linear


def with_another_class(model):
    class Negated(nn.Linear):
        def forward(self, value):
            return -super().forward(value)

    model.encoder.layer[1].attention.output.dense.__class__ = Negated


def with_a_hook(model):
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: output * 2)


def with_a_bound_forward(model):
    linear = model.encoder.layer[1].output.dense
    linear.forward = MethodType(lambda self, value: nn.functional.linear(value, self.weight) * 3, linear)


def in_float64(model):
    model.double()
    model.encoder.layer[0].output.dense.weight.data *= 2


@pytest.mark.parametrize(
    "change",
    [with_another_layer, with_another_map, with_another_class, with_a_hook, with_a_bound_forward, in_float64],
)
def test_parts_that_are_replaced_after_the_ranker_was_made_are_followed(change, frame):
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    before = ranker.score(QUERIES, TEXTS)
    change(model)
    found = ranker.score(QUERIES, TEXTS)
    assert np.abs(found - before).max() > 1e-3
    assert_near(found, anew(model, tokenizer))
    wanted = PatchScorer(BiEncoder((deepcopy(model), tokenizer)))(frame)
    assert_near(effects(PatchScorer(ranker)(frame)), effects(wanted), 1e-4)


def test_a_model_of_another_shape_is_no_longer_the_rankers():
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    del model.encoder.layer[1]
    with pytest.raises(
        ValueError, match=r"had Anatomy\(n_layers=3, .* and has Anatomy\(n_layers=2, .* make the ranker"
    ):
        ranker.score(QUERIES, TEXTS)


# Wrapped models


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def with_a_compiled_part(model):
    model.encoder = torch.compile(model.encoder, backend="eager")
    return model


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, compiled_in_place, with_a_compiled_part])
def test_what_is_wrapped_around_a_model_is_taken_off(wrap, frame):
    model, tokenizer = build("bert", classifier=False)
    wanted = PatchScorer(BiEncoder((deepcopy(model), tokenizer)))(frame)
    found = PatchScorer(BiEncoder((wrap(model), tokenizer)))(frame)
    assert_near(effects(found), effects(wanted))
    assert unwrapped(model) is model


def test_a_scripted_module_is_refused():
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    model.encoder.layer[0].output.dense = torch.jit.script(nn.Linear(64, 32))
    with pytest.raises(ValueError, match="compiled to TorchScript"):
        ranker.score(QUERIES, TEXTS)


def test_a_forward_that_hides_its_modules_is_refused():
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    layer = model.encoder.layer[0]
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(ValueError, match="a BertLayer of the model has another forward than its class"):
        ranker.score(QUERIES, TEXTS)


def test_weights_that_are_kept_elsewhere_are_refused(frame):
    accelerate = pytest.importorskip("accelerate")
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for use in (lambda: ranker.score(QUERIES, TEXTS), lambda: BiEncoder((model, tokenizer))):
        with pytest.raises(ValueError, match="offloading"):
            use()


FAMILIES = {
    "BiEncoder": (BiEncoder, lambda: build("bert", classifier=False), ["query", "value"]),
    "CrossEncoder": (CrossEncoder, lambda: build("bert", classifier=True), ["query", "dense"]),
    "Splade": (Splade, lambda: masked_lm("bert"), ["key", "value"]),
    "MonoT5": (MonoT5, lambda: build_t5("t5"), ["q", "v"]),
    "GenerativeReranker": (
        GenerativeReranker,
        lambda: build_decoder("qwen3", "AutoModelForCausalLM"),
        ["q_proj", "o_proj"],
    ),
    "ColBERT": (
        lambda pair: ColBERT(pair, projection=torch.eye(8, 32), query_marker="", doc_marker=""),
        lambda: build("bert", classifier=False),
        ["query", "dense"],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_followed_when_they_are_added_merged_and_switched_off(family):
    peft = pytest.importorskip("peft")
    make, load, targets = FAMILIES[family]
    model, tokenizer = load()
    ranker = make((model, tokenizer))
    plain = ranker.score(QUERIES, TEXTS)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with_adapter = ranker.score(QUERIES, TEXTS)
    assert np.abs(with_adapter - plain).max() > 1e-4
    assert_near(make((adapted, tokenizer)).score(QUERIES, TEXTS), with_adapter, 1e-4)
    with adapted.disable_adapter():
        assert_near(ranker.score(QUERIES, TEXTS), plain, 1e-4)
    adapted.merge_adapter()
    assert_near(ranker.score(QUERIES, TEXTS), with_adapter, 1e-3)
    adapted.unmerge_adapter()
    assert_near(ranker.score(QUERIES, TEXTS), with_adapter, 1e-3)
    merged = adapted.merge_and_unload()
    assert_near(make((merged, tokenizer)).score(QUERIES, TEXTS), with_adapter, 1e-3)


def test_heads_of_an_adapted_model_are_patched_with_their_adapters(frame):
    peft = pytest.importorskip("peft")
    model, tokenizer = build("bert", classifier=False)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["query", "value", "dense"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    found = effects(PatchScorer(BiEncoder((adapted, tokenizer)))(frame))
    wanted = effects(PatchScorer(BiEncoder((adapted.merge_and_unload(), tokenizer)))(frame))
    assert_near(found, wanted, 1e-3)


def test_adapters_that_change_more_than_layers_are_refused():
    peft = pytest.importorskip("peft")
    model, tokenizer = build("bert", classifier=False)
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="changes more than the layers of its model"):
        BiEncoder((peft.get_peft_model(model, config), tokenizer))
