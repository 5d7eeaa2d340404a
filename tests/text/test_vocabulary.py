"""Whether a text is one token, where it follows another."""

from __future__ import annotations

import pytest
from small_models import decoder_tokenizer, tokenizer

from pyterrier_mechir.text.prompts import Prompt
from pyterrier_mechir.text.vocabulary import single_token, token_ids


@pytest.mark.parametrize("text", ["tides", "[SEP]"])
def test_a_text_of_one_token_gives_its_id(text):
    made = tokenizer("bert")
    assert single_token(made, text) == made.convert_tokens_to_ids(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="none"),
        pytest.param("tides rise", id="two"),
        pytest.param("insects", id="two pieces"),
        pytest.param("月", id="an unknown one"),
    ],
)
def test_any_other_text_gives_none(text):
    assert single_token(tokenizer("bert"), text) is None


def test_it_is_taken_after_what_stands_before_it():
    made = decoder_tokenizer("qwen3")
    before, whole = token_ids(made, "tides"), token_ids(made, "tides rise")
    assert whole == [*before, whole[-1]]
    assert single_token(made, " rise", after="tides") == whole[-1] == single_token(made, " rise")
    joined = token_ids(made, ".\n")
    assert len(joined) == 1 and token_ids(made, ".") != joined
    assert single_token(made, "\n") is not None and single_token(made, "\n", after=".") is None


def test_sides_end_alike_where_a_mark_is_joined_to_line_breaks():
    made = decoder_tokenizer("qwen3")
    text = "Query: {query}\nDocument: {document}\n\nyes or no:"
    template = Prompt.parse(made, text)
    texts = ["Tides rise.", "Tides rise. Tides fall"]
    shorter, longer = (made(text.format(query="why", document=one))["input_ids"] for one in texts)
    n = next(at for at, (one, other) in enumerate(zip(shorter, longer, strict=False)) if one != other)
    for columns in (texts, texts[::-1]):
        (sides,) = template.sides(made, [["why"], columns[:1]], columns[1:], 1)
        one, other = (sides.baseline, sides.perturbed)[:: 1 if columns == texts else -1]
        whole = [*sides.around[0], *sides.fixed.ids, *sides.around[1], *other.ids, *sides.around[2]]
        assert whole == longer
        assert one.ids.tolist() == other.ids[: len(one)].tolist()
        assert len(whole) - len(other) - len(sides.around[2]) + len(one) == n + 1
        assert sides.n_last == 0
