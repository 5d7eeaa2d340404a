"""ColBERT: scores of the published formula and of sentence-transformers, exact patches, effects on query tokens."""

from __future__ import annotations

import json
import string
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from apart import Case, all_sites, assert_exact, assert_moves, assert_slots, case_of, expected, patch
from gradients import Case as GradientCase
from gradients import PairReference, fixed
from gradients import expected as estimated
from reference import Inputs, Reference
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from small_models import ARCHITECTURES, QUERIES, TEXTS, build, tokenizer
from test_exactness import assert_same
from test_paths import path_patched
from test_rankers import QUERIES_AND_LONG, TEXTS_AND_LONG
from tokenizers import processors
from tolerance import assert_near, assert_near_effects, widened
from torch import Tensor, nn

from pyterrier_mechir import (
    AggregateHeads,
    AttentionPatterns,
    BiEncoder,
    ColBERT,
    PatchScorer,
    PerturbDocs,
    PerturbQueries,
    QueryTokenScore,
    ScoreLens,
)
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.perturb import TFC1, Typos
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

MARKERS = ("[unused0]", "[unused1]")
SIDES = ("document", "query")
CASES = [
    *((name, "document") for name in ARCHITECTURES),
    *((name, "query") for name in ("bert", "roberta", "modernbert", "mpnet")),
]
PUNCTUATION = set(string.punctuation)


@cache
def loaded(architecture: str, markers: tuple[str, str] = MARKERS, **changes: Any) -> tuple[nn.Module, Any, Tensor]:
    """An encoder, a tokenizer with markers in its vocabulary, and a projection to 12 features."""
    made = deepcopy(tokenizer(architecture))
    made.add_tokens(list(markers))
    model, _ = build(architecture, classifier=False, vocab_size=len(made), **changes)
    torch.manual_seed(1)
    return model, made, torch.randn(12, 32) / 6


def colbert(architecture: str = "bert", **settings: Any) -> ColBERT:
    model, made, projection = loaded(architecture)
    return ColBERT((model, made), projection=projection, **settings)


def tokenised(made: Any, text: str, marker: str, longest: int) -> list[int]:
    """The ids of a text after the first token and its marker, cut as transformers does it."""
    ids = made(text, truncation=True, max_length=longest - 1)["input_ids"]
    return [ids[0], made.convert_tokens_to_ids(marker), *ids[1:]]


def normed(vectors: Tensor) -> list[Tensor]:
    return [vector / vector.norm() for vector in vectors]


def as_inputs(made: Any, ids: list[int], mask: list[int]) -> Inputs:
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": [0] * len(ids)}
    return {name: torch.tensor([values[name]]) for name in made.model_input_names}


def query_of(made: Any, text: str, length: int = 32, attend: bool = False, expand: bool = True) -> Inputs:
    """A query as ColBERT reads it: filled up with masks, which nothing attends to but where told."""
    ids = tokenised(made, text, MARKERS[0], length)
    lacking = (length - len(ids)) if expand else 0
    return as_inputs(made, ids + [made.mask_token_id] * lacking, [1] * len(ids) + [int(attend)] * lacking)


@torch.no_grad()
def query_vectors(model: nn.Module, made: Any, projection: Tensor, text: str, **settings: Any) -> list[Tensor]:
    return normed(model(**query_of(made, text, **settings)).last_hidden_state[0] @ projection.T)


def kept_vectors(states: Tensor, inputs: Inputs, projection: Tensor, made: Any, skips: bool = True) -> list[Tensor]:
    """The vectors of the tokens of a document that take part in MaxSim."""
    tokens = made.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    attended = inputs["attention_mask"][0].tolist()
    vectors = zip(normed(states[0] @ projection.T), tokens, attended, strict=True)
    return [vector for vector, token, is_there in vectors if is_there and not (skips and token in PUNCTUATION)]


def document_of(made: Any, text: str, longest: int) -> Inputs:
    ids = tokenised(made, text, MARKERS[1], longest)
    return as_inputs(made, ids, [1] * len(ids))


def max_sims(query: list[Tensor], document: list[Tensor]) -> Tensor:
    """The published formula: for each token of the query, its best match in the document."""
    return (torch.stack(query) @ torch.stack(document).T).max(1).values


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Scores are sums of some thirty cosines, of which each is rounded."""
    assert (np.abs(found - wanted) / np.maximum(10, np.abs(wanted))).max() <= widened(1e-5)


@torch.no_grad()
def plain_scores(architecture: str, queries, texts, longest: int = 150, skips: bool = True, **settings) -> np.ndarray:
    model, made, projection = loaded(architecture)
    scores = []
    for query, text in zip(queries, texts, strict=True):
        document = document_of(made, text, longest)
        kept = kept_vectors(model(**document).last_hidden_state, document, projection, made, skips)
        scores.append(max_sims(query_vectors(model, made, projection, query, **settings), kept).sum().item())
    return np.array(scores)


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = zip(QUERIES[:4], TEXTS[:4], strict=True)
    return pd.DataFrame([{"qid": str(i), "query": q, "docno": f"d{i}", "text": t} for i, (q, t) in enumerate(rows)])


# Scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_the_published_formula(architecture):
    found = colbert(architecture).score(QUERIES_AND_LONG, TEXTS_AND_LONG)
    assert_close(found, plain_scores(architecture, QUERIES_AND_LONG, TEXTS_AND_LONG))


@pytest.mark.parametrize(
    ("settings", "plainly"),
    [
        ({"query_length": 12, "max_length": 30}, {"length": 12, "longest": 30}),
        ({"attend_to_masks": True}, {"attend": True}),
        ({"expand_queries": False}, {"expand": False}),
        ({"mask_punctuation": False}, {"skips": False}),
    ],
    ids=lambda given: ", ".join(given),
)
def test_settings_do_what_they_say(settings, plainly):
    found = colbert("distilbert", **settings).score(QUERIES_AND_LONG, TEXTS_AND_LONG)
    assert_close(found, plain_scores("distilbert", QUERIES_AND_LONG, TEXTS_AND_LONG, **plainly))
    assert np.abs(found - colbert("distilbert").score(QUERIES_AND_LONG, TEXTS_AND_LONG)).max() > 1e-3


def test_vectors_are_of_the_tokens_of_the_text():
    ranker, (model, made, projection) = colbert(), loaded("bert")
    (_, batch, encoded), *_ = ranker.encoded([TEXTS[0]])
    inputs = document_of(made, TEXTS[0], 150)
    assert batch["input_ids"].tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    assert_same(encoded[0].numpy(), torch.stack(normed(states[0] @ projection.T)).numpy())
    assert ranker.dim == 12


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_do_not_depend_on_the_batch(batch_size):
    ranker = colbert(expand_queries=False)
    assert_same(ranker.score(QUERIES, TEXTS, batch_size=batch_size), ranker.score(QUERIES, TEXTS))
    assert ranker.score([], []).shape == (0,)
    assert_same(ranker.facing("query").score(QUERIES, TEXTS), ranker.score(QUERIES, TEXTS))


# Checkpoints


def write(directory: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(content))


def save_colbert_ir(directory: Path, metadata: dict[str, Any] | None, **changes: Any) -> Path:
    """A checkpoint as colbert-ir writes them: all weights in one file."""
    model, made, projection = loaded("bert", **changes)
    made.save_pretrained(directory)
    model.config.save_pretrained(directory)
    weights = {f"bert.{name}": weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection}, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    write(directory, {"config.json": config | {"architectures": ["HF_ColBERT"]}})
    write(directory, {} if metadata is None else {"artifact.metadata": metadata})
    return directory


def save_pylate(
    directory: Path, settings: dict[str, Any], markers=("[Q] ", "[D] "), architecture: str = "bert"
) -> Path:
    """A checkpoint as PyLate writes them: a Transformer and a Dense, and settings of its own."""
    model, made, projection = loaded(architecture, markers)
    for part in (model, made):
        part.save_pretrained(directory)
    types = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    dense = {"in_features": 32, "out_features": 12, "bias": False}
    write(
        directory,
        {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(types)
            ],
            "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False},
            "1_Dense/config.json": dense | {"activation_function": "torch.nn.modules.linear.Identity"},
            "config_sentence_transformers.json": {
                "model_type": "ColBERT",
                "similarity_fn_name": "MaxSim",
                "query_prefix": markers[0],
                "document_prefix": markers[1],
                **settings,
            },
        },
    )
    save_file({"linear.weight": projection}, directory / "1_Dense" / "model.safetensors")
    return directory


def save_multi_vector(directory: Path, expansion: dict[str, Any] | None, prompts=None, **lengths: int) -> Path:
    """A checkpoint as sentence-transformers writes them."""
    model, made, projection = loaded("distilbert", ("[Q]", "[D]"))
    for part in (model, made):
        part.save_pretrained(directory / "plain")
    encoder = Transformer(str(directory / "plain"), query_expansion=expansion, **lengths)
    dense = Dense(32, 12, False, nn.Identity(), init_weight=projection, module_input_name="token_embeddings")
    modules = [encoder, dense, MultiVectorMask(skiplist_words=[".", "day"]), Normalize("token_embeddings")]
    given = {"query": "[Q] ", "document": "[D] "} if prompts is None else prompts
    MultiVectorEncoder(modules=modules, prompts=given, device="cpu").save(str(directory / "saved"))
    return directory / "saved"


def assert_as_sentence_transformers(directory: Path) -> ColBERT:
    encoder, ranker = MultiVectorEncoder(str(directory), device="cpu"), ColBERT(directory, device="cpu")
    queries, texts = encoder.encode_query(QUERIES_AND_LONG), encoder.encode_document(TEXTS_AND_LONG)
    wanted = encoder.similarity_pairwise(queries, texts).numpy()
    assert_close(ranker.score(QUERIES_AND_LONG, TEXTS_AND_LONG), wanted)
    assert_close(ColBERT(encoder).score(QUERIES_AND_LONG, TEXTS_AND_LONG), wanted)
    assert np.ptp(wanted) > 1e-2
    return ranker


@pytest.mark.parametrize(
    "metadata",
    [
        {"query_maxlen": 20, "doc_maxlen": 40, "attend_to_mask_tokens": True, "mask_punctuation": False},
        {"query_maxlen": 32, "doc_maxlen": 60, "attend_to_mask_tokens": False, "query_token_id": MARKERS[0]},
    ],
)
def test_a_checkpoint_of_colbert_ir_is_read_with_its_settings(tmp_path, metadata):
    ranker = assert_as_sentence_transformers(save_colbert_ir(tmp_path, metadata))
    assert (ranker.max_length, ranker.max_query_length) == (metadata["doc_maxlen"], metadata["query_maxlen"])
    assert ranker.attend_to_masks == metadata["attend_to_mask_tokens"]


def test_a_checkpoint_of_colbert_ir_without_settings_has_the_published_ones(tmp_path):
    ranker = ColBERT(save_colbert_ir(tmp_path / "whole", None, max_position_embeddings=256))
    assert (ranker.max_length, ranker.max_query_length, ranker.skipped) == (220, 32, tuple(string.punctuation))
    ranker = ColBERT(save_colbert_ir(tmp_path / "fewer positions", None))
    assert ranker.max_length == ranker.model.config.max_position_embeddings < 220
    assert_same(ranker.score(QUERIES, TEXTS), plain_scores("bert", QUERIES, TEXTS, longest=ranker.max_length))


@pytest.mark.parametrize(
    "settings",
    [
        {"query_length": 32, "document_length": 60, "attend_to_expansion_tokens": False, "do_query_expansion": True},
        {"query_length": 16, "document_length": 30, "attend_to_expansion_tokens": True, "skiplist_words": ["!", "day"]},
        {"query_length": 20, "document_length": 60, "do_query_expansion": False, "skiplist_words": []},
        {"prompts": {"query": "heat house: ", "document": "day "}},
    ],
    ids=["usual", "attended", "not expanded", "prompts"],
)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_checkpoint_of_pylate_is_read_with_its_settings(tmp_path, settings, architecture):
    ranker = assert_as_sentence_transformers(save_pylate(tmp_path, settings, architecture=architecture))
    assert (ranker.query_marker, ranker.doc_marker) == ("[Q] ", "[D] ")
    assert ranker.max_query_length == settings.get("query_length", 32)


def test_pylate_keeps_the_markers_of_colbert_ir(tmp_path):
    assert_as_sentence_transformers(save_pylate(tmp_path, {"query_length": 32}, ("[unused0]", "[unused1]")))


@pytest.mark.parametrize(
    ("expansion", "options"),
    [
        (None, {"query_length": 14, "document_length": 40}),
        ({"strategy": "fixed", "attend": True, "length": 18}, {"document_length": 40}),
        ({"strategy": "min", "length": 14}, {"query_length": 24}),
        ({"strategy": "min", "length": 14}, {}),
        ({"strategy": "fixed", "length": 18}, {"prompts": {"query": "heat: ", "document": ""}}),
    ],
    ids=["none", "fixed", "min", "min without limit", "prompts"],
)
def test_a_multi_vector_encoder_is_read_with_its_settings(tmp_path, expansion, options):
    ranker = assert_as_sentence_transformers(save_multi_vector(tmp_path, expansion, **options))
    assert ranker.skipped == (".", "day")
    assert ranker.query_marker == ("" if "prompts" in options else "[Q]")


# Patches


class ColBERTReference(Reference):
    """Masks of queries are positions like any other, though nothing attends to them."""

    mask_token: int

    def is_open(self, target: Inputs, source: Inputs) -> list[bool]:
        both = [(x["attention_mask"] == 1) | (x["input_ids"] == self.mask_token) for x in (target, source)]
        return (both[0] & both[1])[0].tolist()


def made_reference(architecture: str, side: str, slow: nn.Module, context: str, which=slice(None)) -> Reference:
    """The plain score of an encoder's run against a text of the other side; or that of some tokens of the query."""
    _, made, projection = loaded(architecture)
    mask = made.mask_token_id
    if side == "document":
        fixed = query_vectors(slow, made, projection, context, length=LENGTH)

        def score(out: Any, inputs: Inputs) -> Tensor:
            kept = kept_vectors(out.last_hidden_state, inputs, projection, made)
            return max_sims(fixed, kept)[which].sum()[None]
    else:
        document = document_of(made, context, 150)
        with torch.no_grad():
            states = slow(**document).last_hidden_state
        kept_of_context = kept_vectors(states, document, projection, made)

        def score(out: Any, inputs: Inputs) -> Tensor:
            found = max_sims(normed(out.last_hidden_state[0] @ projection.T), kept_of_context)
            counted = ((inputs["attention_mask"] == 1) | (inputs["input_ids"] == mask))[0]
            return (found * counted)[which].sum()[None]

    reference = ColBERTReference(slow, score)
    reference.mask_token = mask
    return reference


LENGTH = 12
"""Of queries; every mask among them has a word within the window of ModernBERT's local attention."""


@cache
def make(architecture: str, side: str) -> Case:
    ranker = colbert(architecture, query_length=LENGTH)
    return case_of(ranker, side, lambda slow, context: made_reference(architecture, side, slow, context))


@pytest.mark.parametrize(("architecture", "side"), CASES)
def test_every_site_is_exact_in_both_directions(architecture, side):
    assert_exact(make(architecture, side), batch_size=4 if side == "document" else None)


@pytest.mark.parametrize("positions", ["each", "class", [0, 2, -1, 60]], ids=str)
@pytest.mark.parametrize(("architecture", "side"), [("xlm-roberta", "document"), ("distilbert", "query")])
def test_every_slot_is_exact(architecture, side, positions):
    rows = (1, 3) if positions == "each" else (0, 1, 2)
    assert_slots(make(architecture, side), positions, rows)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_patches_move_scores_so_that_a_wrong_one_would_be_seen(architecture, side):
    assert_moves(make(architecture, side))


@pytest.mark.parametrize("attend", [False, True])
def test_masks_of_queries_are_positions_that_are_patched(attend):
    ranker = colbert("bert", query_length=14, attend_to_masks=attend).facing("query")
    (pair,) = ranker.align([TEXTS[1]], ["bats night"], ["bats night heat"], alignments=["fill"])
    tokens = ranker.tokenizer.convert_ids_to_tokens(pair.perturbed.ids.tolist())
    assert tokens == ["[CLS]", "[unused0]", "bats", "night", "heat", "[SEP]", *["[MASK]"] * 8]
    classes = [TOKEN_CLASSES[number] for number in pair.classes]
    assert classes == ["CLS", "SEP", "Q-", "Q-", "EDIT", "SEP", *["SEP"] * 8]
    assert pair.is_open.all() and pair.perturbed.mask.tolist() == [1] * 6 + [int(attend)] * 8
    at_mask = patch(make("bert", "query"), [Site("resid_pre", 2)], positions=[-1], rows=[0])
    assert abs(at_mask.denoise[0][0, 0] - at_mask.baseline[0]) > 1e-5


def test_a_word_that_one_side_masks_takes_no_part_there():
    facing = colbert("bert", query_length=14).facing("query")
    (pair,) = facing.align([TEXTS[5]], ["iron roads"], ["iron heat roads"], alignments=["mask"])
    assert pair.baseline.mask.tolist() == [1, 1, 1, 0, 1, 1, *[0] * 8]
    assert pair.is_open.tolist() == [True, True, True, False, *[True] * 10]
    batch = facing.collate([pair.baseline, pair.perturbed], {}, [])
    assert facing.counted(batch).tolist() == [pair.is_open.tolist(), [True] * 14]


def test_a_perturbed_query_of_full_length_is_cut_as_a_plain_one():
    ranker = colbert("bert", query_length=10)
    facing = ranker.facing("query")
    queries = ["day " * 12, "day " * 11 + "heat"]
    with pytest.warns(UserWarning, match="queries are longer than the 10 tokens"):
        (pair,) = facing.align([TEXTS[0]], queries[:1], queries[1:], alignments=["swap"])
    assert len(pair.baseline.ids) == len(pair.perturbed.ids) == 10
    assert ranker.tokenizer.mask_token_id not in pair.baseline.ids
    found = patch(
        Case(facing, [pair], facing.query_inputs([TEXTS[0]]), [TEXTS[0]], []), [Site("resid_pre", 0)], positions="all"
    )
    assert_same(found.baseline, plain_scores("bert", queries[:1], TEXTS[:1], length=10))
    assert_same(found.denoise[:, 0], found.perturbed)


@pytest.mark.parametrize("side", SIDES)
def test_the_laws_of_patching_hold(side):
    case = make("bert", side)
    sites = [site for site in all_sites(case.ranker) if site.component != "pattern"]
    same = case._replace(pairs=[replace(pair, perturbed=pair.baseline) for pair in case.pairs])
    itself = patch(same, sites)
    for scores in (itself.denoise, itself.noise):
        assert_same(scores, np.broadcast_to(itself.baseline[:, None], scores.shape))
    unmasked = [row for row, pair in enumerate(case.pairs) if pair.is_open.all()]
    assert len(unmasked) == 3
    whole = patch(case, [Site("resid_pre", 0)], rows=unmasked)
    assert_same(whole.denoise[:, 0], whole.perturbed)
    assert_same(whole.noise[:, 0], whole.baseline)
    together = patch(case, sites, batch_size=len(case.pairs))
    for row in range(len(case.pairs)):
        alone = patch(case, sites, rows=[row])
        assert_same(alone.denoise[0], together.denoise[row])
        assert_same(alone.noise[0], together.noise[row])


@pytest.mark.parametrize("side", SIDES)
def test_estimates_are_those_of_the_plain_model(side):
    case = make("bert", side)
    sites = [parse_site(name) for name in ("L0H1", "L1H2.q", "L2.mlp_out", "L1N7", "L2.resid_pre", "embed")]
    found = patch(case, sites, method="attribution", direction="denoise")
    references = [PairReference(one.reference, case.ranker.tokenizer, {}) for one in case.references]
    plain = GradientCase(case.ranker, case.pairs, references)
    for row in range(len(case.pairs)):
        wanted = estimated(plain, fixed, row, False, sites)[:, 0]
        assert_near(found.denoise[row], wanted, least=max(1, abs(found.baseline[row])))


# Pipelines


def test_documents_and_queries_go_through_pipelines(frame):
    ranker = colbert()
    heads = (PerturbDocs(TFC1()) >> PatchScorer(ranker) >> AggregateHeads(by=None, n_boot=20))(frame)
    assert len(heads) == ranker.n_layers * ranker.n_heads
    assert heads["score"].notna().all() and heads["n_pairs"].eq(4).all()
    out = (PerturbQueries(Typos()) >> PatchScorer(ranker, "resid_pre", layers=[0], min_delta=0))(frame)
    assert_near_effects(np.stack(list(out["patch_effect"]))[:, 0], 1, out)
    assert_same(out["score"].to_numpy(), plain_scores("bert", frame["query"], frame["text"]))
    assert_same(AttentionPatterns(ranker, heads=["L1H2"])(frame)["score"].to_numpy(), out["score"].to_numpy())


def test_each_layer_can_be_read_by_the_projection(frame):
    out = ScoreLens(colbert())(frame)
    scores = np.stack(list(out["layer_scores"]))
    assert_same(scores[:, -1], out["score"].to_numpy())
    model, made, projection = loaded("bert")
    for row, (query, text) in enumerate(zip(frame["query"], frame["text"], strict=True)):
        inputs = document_of(made, text, 150)
        with torch.no_grad():
            of_layers = model(**inputs, output_hidden_states=True).hidden_states
        fixed = query_vectors(model, made, projection, query)
        of_layers = [kept_vectors(states, inputs, projection, made) for states in of_layers]
        wanted = [max_sims(fixed, kept).sum().item() for kept in of_layers]
        assert_same(scores[row], np.array(wanted))


def test_the_settings_tell_rankers_apart():
    ranker = colbert()
    assert ranker == colbert() and hash(ranker) == hash(colbert())
    model, made, projection = loaded("bert")
    others = [colbert(query_length=9), colbert(mask_punctuation=False), colbert(attend_to_masks=True)]
    others.append(ColBERT((model, made), projection=projection + 1))
    assert len({ranker, *others}) == 5
    weights = [one.about(fingerprint=True)["weights"] for one in (ranker, others[0], others[-1])]
    assert weights[0] == weights[1] != weights[2]
    assert repr(ranker) == "ColBERT('BertModel')"
    assert ranker.facing("query").facing("document") == ranker
    about = ranker.about()
    assert (about["ranker"], about["query_marker"], about["max_query_length"], about["dim"]) == (
        *("ColBERT", "[unused0]", 32, 12),
    )


# Single tokens of the query


@cache
def observed(side: str, token: str | int, places: tuple[tuple[int, ...], ...]) -> Case:
    """Pairs whose score is that of some tokens of the query, and the same of the plain model.

    Args:
        side: what varies.
        token: which token.
        places: its positions in the query of each pair.
    """
    number = iter(places)

    def reference(slow: nn.Module, context: str) -> Reference:
        return made_reference("distilbert", side, slow, context, list(next(number)))

    case = case_of(colbert("distilbert", query_length=LENGTH), side, reference)
    _, pairs, inputs = QueryTokenScore(token).observed(case.ranker, case.pairs, case.contexts)
    return case._replace(pairs=pairs, inputs=inputs)


@pytest.mark.parametrize(
    ("side", "token", "places"),
    [
        ("document", 2, ((2,), (2,), (2,), (2,))),
        ("document", -1, ((11,), (11,), (11,), (11,))),
        ("document", "night", ((), (3,), (), (3,))),
        ("document", "Bridge", ((), (), (3, 4), ())),
        ("document", "[unused0]", ((1,), (1,), (1,), (1,))),
        ("document", "[MASK]", ((11,), tuple(range(5, 12)), tuple(range(6, 12)), tuple(range(5, 12)))),
        ("query", 3, ((3,), (3,), (3,), (3,))),
        ("query", "high", ((), (), (3,), (5,))),
        ("query", "heat", ((4,), (3,), (4,), (3,))),
        ("query", "[MASK]", (tuple(range(6, 12)), tuple(range(7, 12)), tuple(range(6, 12)), tuple(range(7, 12)))),
    ],
)
def test_the_score_of_a_token_is_that_of_the_plain_model(side, token, places):
    case = observed(side, token, places)
    sites = [parse_site(name) for name in ("L0H1", "L1H2.v", "L2.mlp_out", "L2.resid_post", "embed")]
    found = patch(case, sites)
    for row, (at, one) in enumerate(zip(places, case.references, strict=True)):
        if not at:
            for scores in (found.baseline[row], found.perturbed[row], found.denoise[row], found.noise[row]):
                assert np.isnan(scores).all()
            continue
        assert_same(found.baseline[[row]], np.array([one.reference.score(one.baseline)]))
        assert_same(found.perturbed[[row]], np.array([one.reference.score(one.perturbed)]))
        assert_same(found.denoise[row], expected(case, row, False, sites)[:, 0])
        assert_same(found.noise[row], expected(case, row, True, sites)[:, 0])


def test_the_scores_of_all_tokens_sum_to_the_score():
    ranker = colbert(query_length=LENGTH)
    pairs = ranker.align(QUERIES, TEXTS, TEXTS, alignments=["fill"] * len(TEXTS))
    total = np.zeros(len(TEXTS))
    for position in range(LENGTH):
        _, rows, inputs = QueryTokenScore(position).observed(ranker, pairs, QUERIES)
        total += patch(Case(ranker, rows, inputs, QUERIES, []), []).baseline
    assert_same(total, ranker.score(QUERIES, TEXTS))


@pytest.mark.parametrize("receivers", [["final"], ["L2H1.v", "L2H3.q"]], ids=str)
def test_paths_may_end_at_the_score_of_a_token(receivers):
    case = observed("document", 2, ((2,), (2,), (2,), (2,)))
    senders = ["L0H1", "L1H2", "L1.mlp_out"]
    found = patch(case, [parse_site(name) for name in senders], "denoise", receivers=receivers)
    for row in (0, 1, 3):
        target, source = case.runs(row, noise=False)
        wanted = path_patched(case.references[row].reference, target, source, senders, receivers)
        assert_same(found.denoise[row], wanted)


def test_the_stage_measures_a_token_and_ranks_by_score(frame):
    ranker, rows = colbert(), PerturbDocs(TFC1())(frame)
    stage = PatchScorer(ranker, metric=QueryTokenScore("night"), receivers="final", layers=[2], min_delta=0)
    out = stage(rows)
    assert out["score_perturbed"].isna().tolist() == [True, False, True, True]
    assert_same(out["score"].to_numpy(), ranker.score(frame["query"], frame["text"]))
    assert out.attrs["mechir"]["metric"] == "QueryTokenScore(token='night')"
    of_query = (PerturbQueries(Typos()) >> PatchScorer(ranker, metric=QueryTokenScore("[MASK]"), min_delta=0))(frame)
    assert of_query["score_perturbed"].notna().all()
    assert np.isfinite(np.stack(list(of_query["patch_scores"]))).all()


def test_rankers_that_do_not_score_token_by_token_have_no_scores_of_tokens():
    with pytest.raises(ValueError, match="does not score token by token"):
        PatchScorer(BiEncoder(build("bert", classifier=False)), metric=QueryTokenScore("night"))


# What cannot be


def test_a_loaded_model_needs_a_projection_that_fits():
    model, made, projection = loaded("bert")
    with pytest.raises(ValueError, match=r"projection=weight, of shape \[dim, 32\]; this is None"):
        ColBERT((model, made))
    with pytest.raises(ValueError, match=r"this is \[32, 12\]"):
        ColBERT((model, made), projection=projection.T)


def test_a_marker_that_is_no_token_is_an_error():
    model, made = build("bert", classifier=False)
    with pytest.raises(ValueError, match=r"marker '\[unused1\]' is no token of the vocabulary"):
        ColBERT((model, made), projection=loaded("bert")[2])
    without = ColBERT((model, made), projection=loaded("bert")[2], query_marker="", doc_marker="")
    (_, batch, _), *_ = without.encoded(["tides"])
    assert batch["input_ids"][batch["attention_mask"].bool()].tolist() == made("tides")["input_ids"]


def test_a_tokenizer_that_puts_no_token_first_has_no_markers():
    model, made, projection = loaded("bert")
    bare = deepcopy(made)
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", made.sep_token_id)]
    )
    with pytest.raises(ValueError, match="markers come after the first special token"):
        ColBERT((model, bare), projection=projection)


def test_a_tokenizer_without_a_mask_cannot_expand_queries():
    model, made, projection = loaded("bert")
    without = deepcopy(made)
    without.mask_token = None
    with pytest.raises(ValueError, match="without a mask token"):
        ColBERT((model, without), projection=projection)
    assert len(ColBERT((model, without), projection=projection, expand_queries=False).score(QUERIES, TEXTS)) == 7


PLAIN = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"1_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"}}, "activation .Tanh."),
        ({"1_Dense/config.json": {"activation_function": "a.Identity", "bias": True}}, "a bias or a residual"),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "meanmaxsim"}}, "compares by meanmaxsim"),
        ({"modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""}]}, "has no Dense module"),
        ({"modules.json": [{"type": "sentence_transformers.models.Pooling", "path": ""}]}, "module 'Pooling'"),
        ({"modules.json": [{"type": "custom.Transformer", "path": ""}]}, "module 'custom.Transformer'"),
        ({"1_Dense/config.json": PLAIN | {"scale": 2}}, "the Dense of .* declares scale=2"),
    ],
    ids=["activation", "bias", "similarity", "no projection", "pooling", "custom code", "setting"],
)
def test_what_a_checkpoint_has_beside_is_an_error(tmp_path, changes, message):
    write(save_pylate(tmp_path, {}), changes)
    with pytest.raises(ValueError, match=message):
        ColBERT(tmp_path)


def test_a_plain_checkpoint_and_another_similarity_are_errors(tmp_path):
    for part in build("bert", classifier=False):
        part.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"has no linear.weight"):
        ColBERT(tmp_path / "plain")
    with pytest.raises(ValueError, match="compares by l2"):
        ColBERT(save_colbert_ir(tmp_path / "l2", {"similarity": "l2"}))
