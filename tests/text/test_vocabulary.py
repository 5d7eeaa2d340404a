"""Whether a text is one token, where it follows another."""

from __future__ import annotations

import pytest
from small_models import decoder_tokenizer, tokenizer

from pyterrier_mechir.text.encoding import Template, ended_alike
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
    template = Template.parse(made, "Query: {query}\nDocument: {document}\n\nyes or no:")
    texts = ["Tides rise.", "Tides rise. Tides fall"]
    sides, apart = (of(made, 1, texts) for of in (template.tokens, template.tokens_apart))
    n_last = len(template.affixes[1].ending)
    shorter, longer = sides[0].ids.tolist(), sides[1].ids.tolist()
    n = len(shorter) - n_last - 1
    assert shorter[:n] == longer[:n] and shorter[n] != longer[n]
    one, other = ended_alike(sides, apart, n_last)
    assert other is sides[1] and one is apart[0]
    assert one.ids.tolist() == [*longer[: n + 1], *longer[-n_last:]]
    assert tuple(ended_alike(sides[::-1], apart[::-1], n_last)) == (other, one)
