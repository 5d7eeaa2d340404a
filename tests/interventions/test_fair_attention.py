"""Attention calibrated for position: an edit of patterns, by the published formula."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from ir_measures import RR
from small_models import QUERIES, TEXTS, build, build_decoder
from tolerance import assert_near

from pyterrier_mechir import BiEncoder, CrossEncoder, FairAttention, PatchScorer, PerturbDocs, position_sensitivity
from pyterrier_mechir.interventions.fair_attention import Calibrated
from pyterrier_mechir.models.edits import Rows
from pyterrier_mechir.perturb import TFC1

pytestmark = pytest.mark.usefixtures("one_thread")


def test_baskets_get_the_same_share_and_keep_their_proportions():
    weights = torch.tensor([[[[0.1, 0.3, 0.2, 0.05, 0.15, 0.2]]]])  # [CLS] a b | c d [SEP]
    rows = Rows(torch.tensor([[2, 7, 8, 9, 6, 3]]), torch.ones((1, 6), dtype=torch.long))
    special = torch.tensor([2, 3])
    found = Calibrated(1, 2, 1.0, special, "all")(weights.flatten(2), rows)[0, 0]
    assert_near(found, [0.1, 0.35 * 0.6, 0.35 * 0.4, 0.35 * 0.25, 0.35 * 0.75, 0.2])
    half = Calibrated(1, 2, 0.5, special, "all")(weights.flatten(2), rows)[0, 0]
    assert_near(half, (found + weights[0, 0, 0]) / 2)
    assert_near(half.sum(), 1.0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_encoder_scores_as_one_whose_attention_is_calibrated_by_hand(pooling):
    model, tokenizer = build("bert", classifier=False)
    ranker = BiEncoder((model, tokenizer), pooling=pooling)
    fair = ranker.edited([FairAttention(baskets=5, strength=0.5, layers=[1, 2])], side="document")
    slow = deepcopy(model)
    slow.set_attn_implementation("eager")
    query = ranker.query_inputs(QUERIES[:1])["query_vector"][0]
    for text in (TEXTS[5], TEXTS[0], TEXTS[4]):
        inputs = tokenizer(text, return_tensors="pt")
        calibrated = Calibrated(
            4, 5, 0.5, torch.tensor(tokenizer.all_special_ids), "first" if pooling == "cls" else "all"
        )
        for layer in (1, 2):
            attention = slow.encoder.layer[layer].attention.self
            attention.forward = _by_hand(attention, calibrated, inputs)
        with torch.no_grad():
            states = slow(**inputs).last_hidden_state[0]
        vector = states[0] if pooling == "cls" else states.mean(0)
        assert_near(fair.score(QUERIES[:1], [text])[0], float(vector @ query))
    assert abs(float(fair.score(QUERIES[:1], [TEXTS[5]])[0] - ranker.score(QUERIES[:1], [TEXTS[5]])[0])) > 1e-4


def _by_hand(attention, calibrated, inputs):
    def forward(hidden_states, *args, **kwargs):
        q, k, v = (
            part(hidden_states).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        weights = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
        edited = calibrated(weights.transpose(1, 2).flatten(2), Rows(inputs["input_ids"], inputs["attention_mask"]))
        return (edited.unflatten(-1, (4, -1)).transpose(1, 2) @ v).transpose(1, 2).flatten(2), None

    return forward


def test_padding_and_patching_stay_exact():
    ranker = CrossEncoder(build("bert", classifier=True)).edited([FairAttention(baskets=4)])
    whole = ranker.score(QUERIES, TEXTS)
    assert_near(whole, np.concatenate([ranker.score([q], [t]) for q, t in zip(QUERIES, TEXTS, strict=True)]))
    frame = pd.DataFrame({"qid": "1", "query": QUERIES[0], "docno": list("ab"), "text": [TEXTS[0], TEXTS[5]]})
    out = PatchScorer(ranker, "resid_pre")(PerturbDocs(TFC1())(frame))
    assert_near([scores[0] for scores in out["patch_scores"]], out["score_perturbed"])


@pytest.mark.bits
def test_short_texts_and_no_strength_change_nothing(bi_encoder):
    for edit in (FairAttention(), FairAttention(baskets=4, strength=0.0)):
        found = bi_encoder.edited([edit]).score(QUERIES, TEXTS)
        assert_near(found, bi_encoder.score(QUERIES, TEXTS), 1e-6)


def test_a_decoder_that_pools_its_last_token_is_edited_in_its_row():
    ranker = BiEncoder(build_decoder("qwen2"), pooling="last")
    fair = ranker.edited([FairAttention(baskets=4, strength=1.0)], side="document")
    assert np.abs(fair.score(QUERIES, TEXTS) - ranker.score(QUERIES, TEXTS)).max() > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"baskets": 0}, "at least 1 token"), ({"strength": 1.5}, "from 0 to 1"), ({"layers": "all"}, "last half")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FairAttention(**options)


def test_a_layer_that_is_not_there_is_refused(bi_encoder):
    with pytest.raises(ValueError, match="no layer 7"):
        bi_encoder.edited([FairAttention(layers=[7])])


def test_the_position_sensitivity_index_is_that_of_the_worst_and_the_best_position():
    results = pd.DataFrame(
        [("1", "a", 2.0), ("1", "b", 1.0), ("2", "a", 2.0), ("2", "b", 1.0), ("3", "a", 1.0)],
        columns=["qid", "docno", "score"],
    )
    qrels = pd.DataFrame([("1", "a", 1), ("2", "b", 1), ("3", "a", 1)], columns=["qid", "docno", "label"])
    found = position_sensitivity(results, qrels, {"1": "begin", "2": "end", "3": "begin"}, RR)
    assert found["value"].tolist() == [1.0, 0.5] and found["n_queries"].tolist() == [2, 1]
    assert found.attrs["mechir"]["position_sensitivity"] == 0.5
    with pytest.raises(ValueError, match="two or more"):
        position_sensitivity(results, qrels, {"1": "begin", "3": "begin"})
