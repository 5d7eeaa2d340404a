"""Self-checks of lessons 1 to 3 name the mistake of a wrong answer, and pass the right one."""

from __future__ import annotations

import checks
import numpy as np
import pandas as pd
import torch
from judging import judge

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TFC1, perturbation


def test_verdicts_show_themselves_in_a_notebook():
    shown = {state: checks.Verdict(state, "So.")._repr_markdown_() for state in ("right", "wrong", "open")}
    assert shown == {"right": "**Right.** So.", "wrong": "**Not yet.** So.", "open": "So."}


def test_an_answer_of_another_kind_is_told_what_is_expected():
    verdict = checks.queries_needed("many")
    assert verdict.state == "wrong" and "Expected is a whole number" in verdict.message


def test_1_1_tells_which_head_and_position_it_is():
    z = torch.randn(1, 6, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = ["[CLS]", "tides", "[SEP]", "the", "tides", "[SEP]"]
    wrongs = [
        (z[0, :, 2], "shape (6, 5)"),
        (z[0, 4, 2], "L1H2 at position 4 (`tides`)"),
        (z[0, 1, 1], "L1H1 at position 1"),
        (torch.zeros(5), "no head of layer 1"),
    ]
    judge(checks.output_of_head, wrongs, z[0, 1, 2], {("z", 1): z}, tokens)


def test_1_2_tells_twins_directions_and_classes():
    classes = ["CLS", "Q-", "D-", "OTHER"]
    attention = np.full((2, 3, 4, 4), 0.01)
    attention[1, [0, 2], 1, 2] = 0.8
    attention[0, 1, 2, 1] = 0.9
    attention[0, 2, 1, 3] = 0.95
    wrongs = [
        ("L1H0", "twin"),
        ({"L0H1"}, "other direction"),
        ({"L0H2"}, "not in the query"),
        ([(1, 0), (1, 2)], "Give names"),
        (np.int64(6), "`argmax`"),
        ({"L1H0", "L1H1"}, "greatest values"),
    ]
    judge(checks.lookers, wrongs, {"L1H0", "L1H2"}, attention, classes)


def test_1_3_tells_tau_from_a_share():
    agreement = pd.DataFrame({"layer": range(7), "tau": [np.nan, 0.2, 0.55, 0.4, 0.51, 0.6, 1.0]})
    wrongs = [(6, "no share"), (3, "Off by one"), (2, "share of pairs")]
    judge(checks.settled_layer, wrongs, 4, agreement)


def test_1_4_and_2_4_say_why_each_letter_is_none():
    for check, right, letters in ((checks.what_attention_says, "c", "abcd"), (checks.which_filler, "d", "abcde")):
        others = [letter for letter in letters if letter != right]
        messages = [check(letter).message for letter in others]
        assert len(set(messages)) == len(others) and all(check(letter).state == "wrong" for letter in others)
        judge(check, [("z", "one of the letters"), (others[0].upper(), messages[0])], f" {right} ")


def test_2_1_shows_the_text_that_a_perturbation_gets_wrong():
    def of(function):
        return perturbation(function)

    def words(text):
        return [word.strip(".,?").lower() for word in text.split()]

    def appended(text, missing):
        return " ".join([text, *missing]) if missing else None

    def right(text, query):
        return appended(text, [word for word in words(query) if word not in words(text)])

    def by_alphabet(text, query):
        return appended(text, sorted(set(words(query)) - set(words(text))))

    def of_cased_query(text, query):
        return appended(text, [word for word in query.split() if word.strip("?") not in words(text)])

    def of_asked_query(text, query):
        return appended(text, [word for word in query.lower().split() if word not in words(text)])

    def split(text, query):
        missing = [word for word in query.split() if word not in text.lower().split()]
        return " ".join([text, *missing]) if missing else None

    def cased(text, query):
        missing = [word for word in query.split() if word not in text.replace(".", "").split()]
        return " ".join([text, *missing]) if missing else None

    def parts(text, query):
        missing = [word for word in query.split() if word not in text.lower()]
        return " ".join([text, *missing]) if missing else None

    def always(text, query):
        return " ".join([text, *(word for word in query.split() if word not in words(text))])

    def before(text, query):
        return f"tides {text}"

    wrongs = [
        (of(split), "punctuation"),
        (of(cased), "lower case"),
        (of(parts), "whole words"),
        (of(always), "return `None`"),
        (of(before), "append to it"),
        (of(by_alphabet), "order of the query"),
        (of(of_cased_query), "a query, too: compare its words in lower case"),
        (of(of_asked_query), "a query, too: compare its words without punctuation"),
    ]
    judge(checks.missing_terms, wrongs, of(right))
    assert checks.missing_terms(of(lambda text, query: ...)).state == "open"


def test_2_2_tells_what_was_counted():
    scored = pd.DataFrame(
        {
            "score": [0.0, 0.0, 5.0, 5.0, 0.0],
            "score_baseline": [1.0, 1.0, 1.0, 1.0, np.nan],
            "score_perturbed": [2.0, 3.0, 4.0, 0.5, np.nan],
        }
    )
    wrongs = [(0.6, "as if they disagreed"), (75, "per cent"), (0.25, "does not rise"), (0.5, "aligned baseline")]
    judge(checks.agreement_by_hand, wrongs, 0.75, scored)


def test_2_3_tells_the_term_from_the_difference():
    def frame(moved):
        return pd.DataFrame({"qid": ["1", "1", "2"], "score_baseline": 0.0, "score_perturbed": moved})

    term, control = frame([1.0, 3.0, 5.0]), frame([0.0, 1.0, 2.0])
    wrongs = [(3.5, "by itself"), (1.25, "control by itself"), (-2.25, "sign"), (2.8, "ratio"), (9.0, "each query")]
    judge(checks.over_control, wrongs, 2.25, term, control)


def test_3_1_tells_directions_signs_and_units():
    def denoise(patched, baseline, perturbed):
        return (patched - baseline) / (perturbed - baseline)

    def noise(patched, baseline, perturbed):
        return (perturbed - patched) / (perturbed - baseline)

    wrongs = [
        ((denoise, denoise), "other direction"),
        ((lambda p, b, s: (b - p) / (s - b), noise), "sign"),
        ((lambda p, b, s: p - b, noise), "score units"),
        ((lambda p, b, s: p / s, noise), "share of the whole way"),
        ((lambda p, b, s: abs(p - b) / abs(s - b), noise), "lost its sign"),
        ((denoise, lambda p, b, s: abs(s - p) / abs(s - b)), "lost its sign"),
        ((lambda *scores: min(max(denoise(*scores), 0), 1), noise), "cut off at 0 and 1"),
        ((denoise, lambda *scores: float(np.clip(noise(*scores), 0, 1))), "cut off at 0 and 1"),
        ((lambda p, b, s: (p - b) / abs(s - b), noise), "may lower the score"),
    ]
    judge(checks.two_effects, wrongs, (denoise, noise), n=2)
    assert checks.two_effects(denoise, lambda p, b, s: ...).state == "open"


def test_3_2_names_what_was_taken_for_what(known):
    right = {"matching": ["L1H2"], "gathering": ["L2H0", "L2H3"], "decoy": "L1H0"}
    wrongs = [
        (right | {"matching": "L1H0", "decoy": "L1H2"}, "went by attention"),
        (right | {"gathering": "L2H0"}, "more gathering heads"),
        (right | {"gathering": ["L2H0", "L2H3", "L2H1"]}, "L2H1"),
        (right | {"decoy": "L1H1"}, "twins"),
        (right | {"matching": "L2H0"}, "acts at [CLS]"),
        (right | {"matching": "L0H0"}, "nearly all"),
        ({"matching": "L1H2"}, "Give the roles"),
        (right | {"gathering": "L2H0, L2H3"}, "several names stand in a list: there is no head 'L2H0, L2H3'"),
        (right | {"matching": "l1h2"}, "no head 'l1h2'"),
        (right | {"matching": (1, 2)}, "like 'L1H2'"),
        (right | {"gathering": [(2, 0), (2, 3)]}, "like 'L1H2'"),
    ]
    judge(checks.named_circuit, wrongs, right, known.heads)
    assert checks.named_circuit(right | {"decoy": ...}, known.heads).state == "open"


def test_3_3_tells_a_sum_from_a_set(known, candidates):
    pairs = PerturbDocs(TFC1())(candidates.head(3))
    effects = AggregateHeads(by=None, n_boot=0)(PatchScorer(known.ranker)(pairs)).set_index("docno")["score"]
    alone = effects[["L2H0", "L2H3"]].to_dict()
    patched = PatchScorer(known.ranker, heads=[["L2H0", "L2H3"]])(pairs)
    both = AggregateHeads(by=None, n_boot=0)(patched)["score"].iloc[0]
    wrongs = [(sum(alone.values()), "sum"), (alone["L2H0"], "L2H0 alone"), (2 * both, "aggregate")]
    judge(checks.patched_together, wrongs, both, known.ranker, pairs, alone)
    of_one_row = AggregateHeads(by=None, n_boot=0)(patched)["score"]
    assert checks.patched_together(of_one_row, known.ranker, pairs, alone).state == "right"


def test_3_4_tells_what_is_read_from_what_is_written():
    by_class = pd.DataFrame(
        {
            "docno": ["L1H2@Q+", "L1H2@EDIT", "L1H2@CLS", "L1H2@Q-", "L2H0@CLS"],
            "slot": ["Q+", "EDIT", "CLS", "Q-", "CLS"],
            "score": [0.99, 0.0, 0.0, 0.0, 0.5],
        }
    )
    wrongs = [("EDIT", "looks *at*"), ("CLS", "gathering"), ("Q-", "other words"), ("L1", "among Q+, EDIT")]
    judge(checks.where_it_acts, wrongs, "Q+", by_class, "L1H2")


def test_3_4_goes_by_the_head_that_it_is_given():
    by_class = pd.DataFrame(
        {"docno": ["L1H1@EDIT", "L1H1@Q+", "L2H2@CLS"], "slot": ["EDIT", "Q+", "CLS"], "score": [0.74, 0.0, 1.0]}
    )
    wrongs = [("Q+", "query's word is what the head looks *at*"), ("D+", "among EDIT, Q+"), ("CLS", "`L1H1@...`")]
    judge(checks.where_it_acts, wrongs, "EDIT", by_class, "L1H1")
    assert "no row of L1H2" in checks.where_it_acts("EDIT", by_class, "L1H2").message
