"""A generative reranker scores as the plain model does on the whole prompt, and is patched exactly."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from reference import Reference, inputs_of
from small_models import DECODERS, QUERIES, TEXTS, build, build_decoder, tokenizer
from test_exactness import assert_same, snapshot
from test_positions import assert_equal, slots_of
from tolerance import assert_near_effects, widened

from pyterrier_mechir import PatchScorer, PerturbDocs, PerturbQueries
from pyterrier_mechir.models.sites import Site, parse_site
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.rankers.generative import INSTRUCTION, QWEN3_RERANKER, GenerativeReranker
from pyterrier_mechir.text.encoding import TOKEN_CLASSES
from pyterrier_mechir.text.positions import Positions

pytestmark = pytest.mark.usefixtures("one_thread")

LM, HEAD = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
INLINE = "Query: {query} Document: {document} yes or no:"
LINES = "Document: {document}\nQuery: {query}\n{instruction}\n\nyes or no:"
BELOW = "Document:\n{document}\n\nQuery:\n{query}\n"
LONG = " ".join(TEXTS)
ODD = [(QUERIES[0], LONG), ("why? where?", "a\nb.\n"), ("", TEXTS[1]), ("tides", ""), (f"{LONG}", "tides (neap)")]
PAIRS = [*zip(QUERIES, TEXTS, strict=True), *ODD]


def filled(template: str, query: str, document: str, instruction: str = "") -> str:
    return template.replace("{instruction}", instruction).replace("{query}", query).replace("{document}", document)


@torch.no_grad()
def plain_scores(model, tokenizer, template: str, yes: str, no: str, instruction: str = "", pairs=PAIRS) -> np.ndarray:
    """The logit of one answer minus that of another after the whole prompt, one pair at a time."""
    answers = [tokenizer.convert_tokens_to_ids(answer) for answer in (yes, no)]
    assert tokenizer.unk_token_id not in answers
    scores = []
    for query, document in pairs:
        inputs = tokenizer(filled(template, query, document, instruction), return_tensors="pt", verbose=False)
        logits = model(input_ids=inputs["input_ids"]).logits[0, -1]
        scores.append((logits[answers[0]] - logits[answers[1]]).item())
    return np.array(scores)


def scored(ranker: GenerativeReranker, pairs=PAIRS, **options: Any) -> np.ndarray:
    return ranker.score(*zip(*pairs, strict=True), **options)


def unlimited(architecture: str, auto_class: str = LM, **options: Any):
    model, tokenizer = build_decoder(architecture, auto_class, **options)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings = 2000
    return model, tokenizer


MARKS = {"qwen": "Ġ", "gemm": "▁", "llam": "▁", "mist": "▁"}


@pytest.mark.parametrize("template", [INLINE, LINES, BELOW], ids=["inline", "lines", "below"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_any_prompt_is_scored_as_the_plain_model_scores_it(architecture, template):
    loaded = unlimited(architecture)
    space = "" if template == BELOW else MARKS[architecture[:4]]
    pairs = [pair for pair in PAIRS if template != BELOW or all(pair)]
    options = {"instruction": "Find day, night"} if "{instruction}" in template else {}
    wanted = plain_scores(*loaded, template, f"{space}yes", f"{space}no", options.get("instruction", ""), pairs)
    assert np.ptp(wanted) > 0.1
    ranker = GenerativeReranker(loaded, template=template, **options)
    for batch_size in (None, 1, 5):
        assert_same(scored(ranker, pairs, batch_size=batch_size), wanted)


@pytest.mark.parametrize("instruction", [None, "Given a claim, find documents that refute the claim"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_the_prompt_is_that_of_qwen3_reranker_unless_another_is_given(architecture, instruction):
    loaded = unlimited(architecture)
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {instruction or INSTRUCTION}\n<Query>: {{query}}\n<Document>: {{document}}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    ranker = GenerativeReranker(loaded, instruction=instruction)
    assert_same(scored(ranker), plain_scores(*loaded, text, "yes", "no"))
    assert ranker.template == QWEN3_RERANKER


def test_a_capped_logit_is_the_models_own():
    model, tokenizer = unlimited("gemma2")
    capped = scored(GenerativeReranker((model, tokenizer), template=INLINE))
    model.config.final_logit_softcapping = None
    raw = scored(GenerativeReranker((model, tokenizer), template=INLINE))
    assert np.abs(raw - capped).min() > 1e-3


@pytest.mark.parametrize(
    ("template", "yes", "token"),
    [
        (INLINE, "yes", "Ġyes"),
        (INLINE, "the", "Ġthe"),
        (BELOW, "yes", "yes"),
        (BELOW, "moon", "Ġmoon"),
        ("{query} {document}<|im_end|>", "yes", "yes"),
        ("{query} {document}<think>", "yes", "yes"),
        ("{query} {document}", "yes", "Ġyes"),
        (BELOW, " yes", "Ġyes"),
        (INLINE, 77, 77),
    ],
)
def test_an_answer_is_the_token_that_follows_the_prompt(template, yes, token):
    model, tokenizer = build_decoder("qwen3", LM)
    ranker = GenerativeReranker((model, tokenizer), template=template, yes=yes, no=None)
    number = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else token
    with torch.no_grad():
        wanted = [
            model(**tokenizer(filled(template, query, text), return_tensors="pt")).logits[0, -1, number].item()
            for query, text in PAIRS[:3]
        ]
    assert_same(scored(ranker, PAIRS[:3]), np.array(wanted))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_directory_gives_the_scores_of_the_loaded_model(tied, dtype, tmp_path):
    loaded = build_decoder("qwen3", LM, tie_word_embeddings=tied)
    for part in loaded:
        part.save_pretrained(tmp_path)
    wanted = scored(GenerativeReranker(loaded), PAIRS[:5])
    found = scored(GenerativeReranker(tmp_path, device="cpu", dtype=dtype), PAIRS[:5])
    np.testing.assert_allclose(found, wanted, rtol=widened(1e-5), atol=0.3 if dtype == "bfloat16" else widened(1e-5))


def test_only_the_answers_are_projected_and_only_at_the_last_position():
    ranker = GenerativeReranker(build_decoder("llama", LM), template=INLINE)
    seen: list[tuple[int, ...]] = []
    before = snapshot(ranker.model)
    with ranker.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape))):
        scored(ranker, PAIRS[:6], batch_size=3)
    assert seen == [(3, 2), (3, 2)]
    assert snapshot(ranker.model) == before


# Length


@pytest.mark.parametrize(
    "template", [INLINE, LINES, BELOW, "{query}\n{document}\n"], ids=["inline", "lines", "below", "bare"]
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma"])
def test_long_texts_are_cut_and_the_prompt_around_them_stays(architecture, template):
    options = {"instruction": "find day and night"} if template == LINES else {}
    ranker = GenerativeReranker(unlimited(architecture), template=template, max_length=80, **options)
    ends = GenerativeReranker(unlimited(architecture), template=template, **options)
    decode = ranker.tokenizer.decode
    for query, document in ((QUERIES[0], LONG), (LONG, "tides"), (LONG, LONG), (QUERIES[0], TEXTS[0])):
        cut, whole = (one.sequences.plain([query], [document])[0].ids.tolist() for one in (ranker, ends))
        assert len(cut) == min(80, len(whole))
        pieces = filled(template, "\0", "\0", *options.values()).split("\0")
        at = 0
        for piece in pieces:
            at = decode(cut).index(piece.strip(" "), at) + len(piece.strip(" "))
        assert decode(cut).endswith(pieces[-1])
        assert document[:4] in decode(cut)
        assert query[:4] in decode(cut)


def test_pairs_are_cut_as_texts_are():
    ranker = GenerativeReranker(unlimited("qwen3"), template=LINES, max_length=70)
    with pytest.warns(UserWarning, match="cut so that the perturbation stays"):
        (pair,) = ranker.align([QUERIES[0]], [LONG], [f"tides {LONG}"], alignments=["fill"])
    assert_same(scored(ranker, [(QUERIES[0], f"tides {LONG}")]), forward(ranker, pair.perturbed))
    assert len(pair.baseline.ids) == 70


def forward(ranker: GenerativeReranker, *sides) -> np.ndarray:
    with torch.no_grad():
        return ranker.forward(ranker.collate(sides, {}, [])).numpy()


# Pairs


def ids_of(ranker: GenerativeReranker, query: str, document: str) -> list[int]:
    return ranker.tokenizer(filled(ranker.template, query, document, ranker.instruction))["input_ids"]


@pytest.mark.parametrize("template", [INLINE, LINES, BELOW], ids=["inline", "lines", "below"])
@pytest.mark.parametrize("text", ["The moon pulls the ocean.", "The moon pulls the ocean", 'She said "tides."'])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
def test_sides_are_the_prompts_of_their_texts_though_marks_join_line_breaks(architecture, text, template):
    ranker = GenerativeReranker(build_decoder(architecture, LM), template=template)
    query = "why are there tides?"
    changes = [f"{text} tides", f"tides {text}", f"{text} tides tides.", f"{text},"]
    pairs = ranker.align([query] * 4, [text] * 4, changes, alignments=["fill"] * 4)
    for pair, changed in zip(pairs, changes, strict=True):
        assert pair.perturbed.ids.tolist() == ids_of(ranker, query, changed)
        edited = pair.classes == TOKEN_CLASSES.index("EDIT")
        tokens = ranker.tokenizer.decode(pair.perturbed.ids[edited]).strip()
        assert tokens in {"tides", "tides tides.", ". tides tides", ",", ".,", '.",'}
    assert pairs[0].baseline.ids.tolist() == ids_of(ranker, query, f"{text} a")
    if architecture == "qwen3" and template == LINES and text.endswith("n"):
        assert pairs[2].baseline.ids.tolist() == ids_of(ranker, query, f"{text} a a")


def test_line_breaks_of_the_prompt_are_special():
    ranker = GenerativeReranker(build_decoder("qwen3", LM), template=LINES)
    (pair,) = ranker.align(["why tides"], ["The moon\npulls"], ["The moon\npulls tides"], alignments=["fill"])
    tokens = ranker.tokenizer.convert_ids_to_tokens(pair.perturbed.ids)
    breaks = [TOKEN_CLASSES[pair.classes[i]] for i, token in enumerate(tokens) if "Ċ" in token]
    assert breaks == ["OTHER", *["SEP"] * (len(breaks) - 1)]
    assert pair.classes[0] == TOKEN_CLASSES.index("CLS")
    of_query = [token for token, class_ in zip(tokens, pair.classes, strict=True) if TOKEN_CLASSES[class_][0] == "Q"]
    assert ranker.tokenizer.convert_tokens_to_string(of_query) == " why tides"


# Patching

SITES = [
    parse_site(name)
    for name in (
        "L0H1",
        "L1H3",
        "L0H1.k",
        "L1H0.v",
        "L1H2.q",
        "L0.attn_out",
        "L1.mlp_out",
        "L0N7",
        "L1.resid_mid",
        "embed",
    )
]
TRIPLES = [
    (QUERIES[0], TEXTS[0], f"{TEXTS[0]} tides tides", "fill"),
    (QUERIES[1], TEXTS[1], f"night bats {TEXTS[1]}", "mask"),
    ("heat", "A warm day.", "A cold day.", "swap"),
]


@pytest.mark.parametrize("side", ["document", "query"])
@pytest.mark.parametrize("positions", ["all", "class"])
@pytest.mark.parametrize(
    ("architecture", "template"),
    [("qwen3", None), ("gemma2", LINES), ("llama", INLINE), ("mistral", BELOW), ("gemma3_text", INLINE)],
)
def test_every_patch_is_that_of_one_hook_on_the_plain_model(architecture, template, positions, side):
    model, tokenizer = build_decoder(architecture, LM)
    ranker = GenerativeReranker((model, tokenizer), template=template).facing(side)
    contexts, baselines, perturbed, alignments = zip(*TRIPLES, strict=True)
    pairs = ranker.align(contexts, baselines, perturbed, alignments=alignments)
    found = sweep(ranker, pairs, {}, Plan(SITES, "both", len(pairs), positions=Positions.of(positions)))
    spaced = "" if template in (None, BELOW) else MARKS[architecture[:4]]
    reference = Reference.generative(model, *tokenizer.convert_tokens_to_ids([f"{spaced}yes", f"{spaced}no"]))
    for row, pair in enumerate(pairs):
        x_b, x_p = (inputs_of(one, tokenizer) for one in (pair.baseline, pair.perturbed))
        slots = [None] if positions == "all" else slots_of(pair, "class")
        for target, source, patched in ((x_b, x_p, found.denoise), (x_p, x_b, found.noise)):
            wanted = reference.patched_each(target, source, SITES, slots)
            assert_equal(patched[row].reshape(len(SITES), -1), wanted)
        assert_same(found.baseline[row], np.array(reference.score(x_b)))


def test_the_stage_reranks_and_patches_documents_and_queries():
    ranker = GenerativeReranker(build_decoder("qwen3", LM))
    frame = pd.DataFrame({"qid": list("1234"), "query": QUERIES[:4], "docno": list("abcd"), "text": TEXTS[:4]})
    for perturb in (PerturbDocs(TFC1()), PerturbQueries(TFC1())):
        out = PatchScorer(ranker, positions="class", direction="both")(perturb(frame))
        assert_same(out["score"].to_numpy(), scored(ranker, PAIRS[:4]))
        assert out["patch_effect"].iloc[0].shape == (2, 4, 8)
        out = PatchScorer(ranker, "resid_pre", layers=[0])(perturb(frame))
        assert_near_effects(np.stack(out["patch_effect"])[:, 0], 1, out)
    groups = PatchScorer(ranker, "v", method="attribution")(PerturbDocs(TFC1())(frame))
    assert groups["patch_effect"].iloc[0].shape == (2, 2)


# Classification heads


@torch.no_grad()
def plain_head(model, tokenizer, template: str) -> np.ndarray:
    plain = copy.deepcopy(model)
    plain.config.pad_token_id = None
    inputs = [tokenizer(filled(template, *pair), return_tensors="pt", verbose=False) for pair in PAIRS]
    return np.array([plain(input_ids=one["input_ids"]).logits[0, 0].item() for one in inputs])


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("architecture", DECODERS)
def test_a_classification_head_is_read_at_the_end_token_of_the_input_of_rankllama(architecture, ends, tmp_path):
    model, tokenizer = unlimited(architecture, HEAD, ends=ends)
    template = "query: {query} document: {document}" + ("" if ends else tokenizer.eos_token)
    wanted = plain_head(model, tokenizer, template)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    for ranker in (GenerativeReranker((model, tokenizer)), GenerativeReranker(tmp_path, device="cpu")):
        assert_same(scored(ranker), wanted)
        assert_same(scored(ranker, batch_size=4), wanted)
    ids = ranker.sequences.plain(["a"], ["a"])[0].ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("pad", ["eos", "word", None])
def test_the_last_position_is_found_whatever_the_padding_token(pad):
    model, tokenizer = unlimited("llama", HEAD)
    wanted = plain_head(model, tokenizer, INLINE)
    tokenizer.pad_token = {"eos": tokenizer.eos_token, "word": "a", None: None}[pad]
    model.config.pad_token_id = tokenizer.pad_token_id
    assert_same(scored(GenerativeReranker((model, tokenizer), template=INLINE), batch_size=12), wanted)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{query} yes or no:"}, r"should have \{query\} and \{document\} once each"),
        ({"template": INLINE, "instruction": "Find"}, r"the template has no \{instruction\} in it"),
        ({"template": INLINE, "yes": "absolutely"}, "yes='absolutely' is not one token after the template"),
        ({"template": INLINE, "no": ""}, "no='' is not one token after the template"),
        ({"template": "{query} {document} "}, "without a space"),
    ],
)
def test_a_prompt_or_an_answer_that_cannot_be_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        GenerativeReranker(build_decoder("qwen3", LM), **options)


def test_a_prompt_that_is_one_word_with_its_query_is_an_error():
    model, _ = build_decoder("qwen3", LM)
    with pytest.raises(ValueError, match="put spaces, line breaks or special tokens around"):
        GenerativeReranker((model, tokenizer("bert")), template="{query} {document}s")


def test_a_model_that_is_no_generative_reranker_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"GenerativeReranker\('BertModel'\) is no decoder"):
        GenerativeReranker(build("bert", classifier=False), template=INLINE)
    with pytest.raises(ValueError, match=r"'Qwen3Model'.* has no language-model head, nor one that classifies"):
        GenerativeReranker(build_decoder("qwen3"))
    with pytest.raises(ValueError, match="has 3 labels; a reranker's head has one"):
        GenerativeReranker(build_decoder("qwen3", HEAD, num_labels=3))
    with pytest.raises(ValueError, match="cannot load 'no-one/no-such-ranker'"):
        GenerativeReranker("no-one/no-such-ranker")
    for part in build_decoder("qwen3"):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load .*the checkpoint has no weights for lm_head"):
        GenerativeReranker(tmp_path, device="cpu")


# Identity


def test_rerankers_of_the_same_settings_are_equal():
    loaded = build_decoder("qwen3", LM)
    ranker = GenerativeReranker(loaded)
    assert ranker == GenerativeReranker(loaded, template=QWEN3_RERANKER, instruction=INSTRUCTION)
    assert repr(ranker) == "GenerativeReranker('Qwen3ForCausalLM')"
    for options in ({"template": INLINE}, {"instruction": "Find"}, {"yes": "no"}, {"no": None}, {"max_length": 390}):
        assert ranker != GenerativeReranker(loaded, **options)
    about = ranker.about()
    assert (about["ranker"], about["architecture"]) == ("GenerativeReranker", "Qwen3ForCausalLM")
    assert (about["template"], about["instruction"]) == (QWEN3_RERANKER, INSTRUCTION)
    assert Site("k", 0, 1) in PatchScorer(ranker, "k").sites.sites
