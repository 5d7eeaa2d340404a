"""A prompt is tokenised as its whole, whatever a text begins or ends with, and its pairs correspond."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_models import build_decoder, decoder_tokenizer, t5_tokenizer

from pyterrier_mechir import GenerativeReranker
from pyterrier_mechir.text.encoding import SPECIAL
from pyterrier_mechir.text.prompts import Prompt

ENDS = ["", ".", "?", ").", '"', "...", "\n", " ", ".\n", "  ", "\n\n", "\t", "\u00a0", "5", "。"]
BEGINS = ["", "(", '"', "1. ", " ", "\n", "'", "  ", "["]
PROMPTS = [
    "query: {query} document: {document}",
    "Document: {document}\n\nQuery: {query}\nRelevant:",
    "[{query}] [{document}] =",
    "<{document}>\n({query})\n",
]


def filled(text, query, document):
    return text.replace("{query}", query).replace("{document}", document)


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("style", ["qwen3", "llama", "gemma", "t5"])
def test_the_parts_of_any_prompt_are_the_tokens_of_the_whole(style, text):
    tokenizer = t5_tokenizer() if style == "t5" else decoder_tokenizer(style)
    if style == "llama" and text in PROMPTS[2:]:
        # this tokenizer has no token of some of these marks, so that offsets do not tell where texts are
        with pytest.raises(ValueError, match="cannot be told apart in this prompt"):
            Prompt.parse(tokenizer, text)
        return
    template = Prompt.parse(tokenizer, text)
    texts = [f"{begin}high tides{end}" for begin, end in itertools.product(BEGINS, ENDS)]
    columns = [texts, texts[::-1]]
    wholes = tokenizer([filled(text, *pair) for pair in zip(*columns, strict=True)])["input_ids"]
    plain = template.plain(tokenizer, columns, 10**6, lambda parts: parts)
    assert [ids.tolist() for ids, _, _ in plain] == wholes
    try:
        parts = template.parts(tokenizer, columns)
    except ValueError as error:
        assert style in ("llama", "gemma") and "cannot be told apart" in str(error)
        return
    for one, whole in zip(parts, wholes, strict=True):
        ids, _, owners = template.build(one)
        assert ids.tolist() == whole
        assert set(owners.tolist()) == {SPECIAL, 0, 1}


@pytest.mark.parametrize("text", PROMPTS)
def test_the_sides_of_a_pair_have_one_length_and_the_perturbed_one_is_the_whole_prompt(text):
    ranker = GenerativeReranker(build_decoder("qwen3", "AutoModelForCausalLM"), template=text, yes=5, no=7)
    for begin, end in itertools.product(BEGINS, ENDS):
        baseline = f"{begin}The moon pulls the ocean{end}"
        for changed in (f"tides {baseline}", f"{baseline} tides"):
            (pair,) = ranker.align(["why tides?"], [baseline], [changed], alignments=["fill"])
            whole = ranker.tokenizer(filled(text, "why tides?", changed))["input_ids"]
            assert pair.perturbed.ids.tolist() == whole
            assert len(pair.baseline.ids) == len(whole)


@pytest.mark.parametrize("text", ["{query}{document}", "a{query} {document}", "{query}s {document}"])
def test_texts_that_cannot_be_told_from_their_prompt_are_refused(text):
    with pytest.raises(ValueError, match="joins words of its own to the query or the document, or these to each other"):
        Prompt.parse(decoder_tokenizer("qwen3"), text)


def test_the_prompts_own_words_stay_where_a_joined_text_is_cut():
    loaded = build_decoder("qwen3", "AutoModelForCausalLM")
    text = "Document: {document}\n\nQuery: {query}\n\nyes or no:"
    ranker = GenerativeReranker(loaded, template=text, yes=5, no=7, max_length=40)
    whole = GenerativeReranker(loaded, template=text, yes=5, no=7)
    (cut,), (uncut,) = (one.sequences.plain(["why?"], ["The moon. " * 20 + "."]) for one in (ranker, whole))
    assert len(cut.ids) == 40 < len(uncut.ids)
    decoded = ranker.tokenizer.decode(cut.ids)
    assert decoded.startswith("Document: The moon.") and decoded.endswith("\n\nQuery: why?\n\nyes or no:")
    assert np.array_equal(cut.ids[:15], uncut.ids[:15])
