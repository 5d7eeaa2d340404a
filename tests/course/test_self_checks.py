"""Self-checks name the mistake of a wrong answer, and pass the right one."""

from __future__ import annotations

import checks
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_mechir import Ablate, AblationScorer, AggregateHeads, PatchScorer, PerturbDocs, Scale, known_circuit
from pyterrier_mechir.perturb import TFC1, perturbation

QUERY = "why are there two high tides each day"
ABOVE = "Two high tides of the sea, each day; a tide is a tide on every coast of the land."
BELOW = "Each day there are high winds, and a store of food in each hut."


def judge(check, wrongs, right, *given, n=1):
    """Wrong answers have the words that are expected of their verdicts, and no answer is no mistake."""
    assert len(wrongs) >= 2
    messages = set()
    for answer, words in wrongs:
        verdict = check(*(answer if n > 1 else [answer]), *given)
        assert verdict.state == "wrong" and words in verdict.message, (answer, verdict)
        messages.add(verdict.message)
    assert len(messages) >= 2
    verdict = check(*(right if n > 1 else [right]), *given)
    assert verdict.state == "right", verdict
    assert check(*[...] * n, *given).state == "open"


@pytest.fixture(scope="module")
def known():
    return known_circuit("query")


@pytest.fixture(scope="module")
def candidates():
    dataset = pt.get_dataset("mechir:lab")
    few = dataset.get_topics().head(8)
    rows = dataset.get_qrels().merge(few, on="qid").groupby("qid").head(6)
    return dataset.text_loader()(rows[["qid", "query", "docno"]].reset_index(drop=True))


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


def test_4_1_tells_which_mean_it_is():
    patched = pd.DataFrame({"score_baseline": [1.0, 2.0, 3.0], "score_perturbed": [2.0, 2.1, 5.0]})
    scores = np.zeros((3, 1, 2))
    scores[:, 0, 1] = [1.5, 2.2, 3.3]
    patched["patch_scores"] = list(scores)
    moved, apart = np.array([0.5, 0.2, 0.3]), np.array([1.0, 0.1, 2.0])
    wrongs = [
        ((moved / apart).mean(), "each document's ratio"),
        (apart.mean() / moved.mean(), "Upside down"),
        (moved.mean(), "score units"),
        (np.median(moved / apart), "median"),
        (scores[:, 0, 1].mean() / apart.mean(), "subtracted"),
    ]
    judge(checks.ratio_of_means, wrongs, moved.mean() / apart.mean(), patched, 0, 1)


def test_4_1_knows_the_mean_of_the_ratios_that_the_package_keeps():
    patched = pd.DataFrame({"score_baseline": [1.0, 2.0, 3.0], "score_perturbed": [2.0, 2.0005, 5.0]})
    patched["patch_scores"] = [np.full((1, 1), score) for score in (1.5, 2.2, 3.3)]
    moved, apart = np.array([0.5, 0.2, 0.3]), np.array([1.0, 0.0005, 2.0])
    wrongs = [((0.5 + 0.15) / 2, "`mean_of_ratios`"), ((moved / apart).mean(), "each document's ratio")]
    judge(checks.ratio_of_means, wrongs, moved.mean() / apart.mean(), patched, 0, 0)


def test_4_2_tells_sides_and_the_number_of_tests():
    wrongs = [
        (6, "a single test"),
        (11, "One-sided"),
        (5, "One-sided, and"),
        (40, "2 / 2^n"),
        (np.log2(2 / 0.05 * 72), "Round up"),
    ]
    judge(checks.queries_needed, wrongs, 12)
    assert "no head that stands alone" in checks.queries_needed(12).message


def test_4_3_tells_which_queries_chose_and_which_report():
    def ratio(moved, apart, rows):
        return moved[rows].mean(0) / apart[rows].mean()

    def over(choosing, reporting):
        def answer(moved, apart, choose, report):
            rows = {"choose": choose, "report": report, "all": slice(None)}
            best = ratio(moved, apart, rows[choosing]).argmax()
            return best, ratio(moved, apart, rows[reporting])[best]

        return answer

    def by_mean_of_ratios(moved, apart, choose, report):
        best = (moved / apart[:, None])[choose].mean(0).argmax()
        return best, ratio(moved, apart, report)[best]

    def by_size(moved, apart, choose, report):
        best = np.abs(ratio(moved, apart, choose)).argmax()
        return best, ratio(moved, apart, report)[best]

    wrongs = [
        (over("choose", "choose"), "winner's curse"),
        (over("report", "report"), "chosen on `report`"),
        (over("all", "report"), "chosen on all"),
        (over("choose", "all"), "over these queries alone"),
        (lambda *_: (0, 0.0), "greatest"),
        (by_mean_of_ratios, "by the mean of ratios"),
        (by_size, "greatest"),
    ]
    judge(checks.chosen_and_reported, wrongs, over("choose", "report"))
    assert checks.chosen_and_reported(lambda *_: ...).state == "open"


def test_4_4_speaks_of_each_claim_that_was_missed():
    right = {"a": False, "b": False, "c": True, "d": False, "e": True}
    wrongs = [(right | {"a": True}, "(a)"), (right | {"e": False, "b": True}, "(b)"), ({"a": False}, "Answer each")]
    judge(checks.which_claims, wrongs, right)
    assert checks.which_claims(right | {"d": ...}).state == "open"


def test_words_are_taken_out_whole_and_everywhere():
    assert checks.without("A tide, the tides; a tide-pool and a tide.", "tide") == "A, the tides; a tide-pool and a."


def test_5_1_tells_a_sum_from_both(known):
    ranker, words = known.ranker, ("tides", "tide")
    texts = [ABOVE, *(checks.without(ABOVE, word) for word in words), checks.without(ABOVE, *words)]
    whole, no_tides, no_tide, neither = map(float, ranker.score([QUERY] * 4, texts))
    wrongs = [
        (2 * whole - no_tides - no_tide, "sum"),
        (neither - whole, "sign"),
        (neither, "score without the words"),
        (whole - no_tides, "'tides' alone"),
    ]
    judge(checks.both_forms, wrongs, whole - neither, ranker, QUERY, ABOVE, words)


def test_5_2_goes_by_intervals():
    table = pd.DataFrame(
        {
            "method": ["occlusion", "gradient", "ig", "lime", "random order"],
            "deletion_over_random_high": [-0.4, 0.1, -0.5, -0.3, 0.0],
            "deletion_over_query_terms": [0.1, 0.5, -0.02, -0.01, 0.6],
            "deletion_over_query_terms_high": [0.2, 0.6, -0.01, 0.01, 0.7],
        }
    )
    wrongs = [
        ((["gradient"], ["ig", "lime"]), "middle of the interval"),
        ((["gradient"], ["occlusion"]), "*below* 0"),
        ((["occlusion", "ig", "lime"], ["ig"]), "are* better"),
        (([], ["ig"]), "deletion_over_random"),
        ((["gradient"], []), "who lies all below"),
    ]
    judge(checks.believable, wrongs, (["gradient"], ["ig"]), table, n=2)
    assert checks.believable("gradient", "ig", table).state == "right"


def test_5_3_scores_the_texts_and_every_smaller_set(known):
    wrongs = [
        (["moon"], "Not in the first document: moon"),
        (["sea"], "still has"),
        (["tides", "tide", "high", "Two"], "alone do so"),
        ([], "no word at all"),
        (["Two", "high", "tides", "of", "the", "sea", "each", "day", "coast"], "9 words"),
    ]
    given = (known.ranker, QUERY, ABOVE, BELOW)
    longest = checks.turned_order(["tides", "tide", "high", "Two"], *given).message
    smallest = longest.partition("but [")[2].partition("]")[0].replace("'", "").split(", ")
    judge(checks.turned_order, wrongs, smallest, *given)


def test_5_3_looks_for_fewer_words_in_the_whole_text(known):
    given = (known.ranker, QUERY, ABOVE)
    wrongs = [(["tides", "tide"], "one word of the document"), (["sea"], "still has")]
    judge(checks.turned_order, wrongs, ["high"], *given, ABOVE.replace("Two", "A"))
    wrongs = [(["Two", "high", "tide"], "two words of the document"), (["high", "tides"], "still has")]
    judge(checks.turned_order, wrongs, ["tides", "tide"], *given, ABOVE.replace("Two high", "Some"))


def test_6_1_tells_the_needed_head_from_the_harmful_one():
    effects = pd.DataFrame({"docno": ["L0H1", "L1H0", "L1H2"], "score": [0.1, 0.0, -0.2]})
    wrongs = [("L1H2", "needed most"), ("L1H0", "Number 2 of 3"), ("L9H9", "no such head")]
    judge(checks.harmful_head, wrongs, "L0H1", effects)


def test_the_damage_is_in_the_weights_and_nothing_names_it(known):
    for given in ({}, {"head": "L1H1", "factor": 3.0}):
        site, factor = given.get("head", "L0H1"), given.get("factor", 20.0)
        broken = checks.damaged(known.ranker, **given)
        assert not broken.edits and site not in repr(broken)
        assert broken.score([QUERY], [ABOVE]) == pytest.approx(
            known.ranker.edited([Scale(site, factor)]).score([QUERY], [ABOVE]), rel=1e-4
        )


def test_6_2_tells_what_was_edited(known, candidates):
    broken = checks.damaged(known.ranker)
    wrongs = [
        (broken, "no edits"),
        (broken.edited([Scale("L0H1", 1.0)]), "No score has changed"),
        (broken.edited([Scale("L1H2", 0.0)]), "It edits L1H2"),
        (broken.edited([Scale("L0H1", 0.5)]), "factor of 0.5"),
        (broken.edited([Ablate("L0H1", by="mean", reference=candidates)]), "`Ablate` by 'mean' the head still writes"),
    ]
    judge(checks.repaired, wrongs, broken.edited([Scale("L0H1", 0.0)]), broken, candidates, "L0H1")
    by_zero = broken.edited([Ablate("L0H1", by="zero")])
    assert checks.repaired(by_zero, broken, candidates, "L0H1").state == "right"
    assert "It edits L0H1" in checks.repaired(by_zero, broken, candidates, "L1H1").message


def test_6_3_tells_the_queries_that_chose_from_the_held_out(known, candidates):
    broken, qrels = checks.damaged(known.ranker), pt.get_dataset("mechir:lab").get_qrels()
    scored = AblationScorer(broken, by="zero")(candidates)
    qids = candidates["qid"].unique()
    given = (scored, qrels, qids[::2], qids[1::2], "L0H1")
    rows = {name: of_l0h1(scored, qrels, part) for name, part in {"train": qids[::2], "test": qids[1::2]}.items()}
    everything = of_l0h1(scored, qrels, qids)
    assert len({rows["train"][0], rows["test"][0], everything[0]}) == 3
    wrongs = [
        (rows["train"], "*chose*"),
        (everything, "All queries"),
        ([rows["test"][0], -9, 9], "interval is"),
        ([9, 9, 9], "rows of the test queries"),
    ]
    judge(checks.held_out_change, wrongs, rows["test"], *given)
    assert checks.held_out_change([round(number, 3) for number in rows["test"]], *given).state == "right"
    assert checks.held_out_change([number + 0.001 for number in rows["test"]], *given).state == "wrong"


def of_l0h1(scored, qrels, qids):
    from ir_measures import nDCG

    from pyterrier_mechir import RankingEffects

    found = RankingEffects(qrels, [nDCG @ 10])(scored[scored["qid"].isin(qids)]).set_index("docno").loc["L0H1"]
    return [found["score"], found["ci_low"], found["ci_high"]]


def test_6_4_tells_whose_checkpoint_it_is(known, tmp_path):
    broken = checks.damaged(known.ranker)
    mended = broken.edited([Scale("L0H1", 0.0)])
    right = mended.save_pretrained(tmp_path / "right")
    unedited = broken.save_pretrained(tmp_path / "broken")
    other = broken.edited([Scale("L1H2", 0.0)]).save_pretrained(tmp_path / "other")
    wrongs = [(tmp_path, "no checkpoint"), (unedited, "without the edit"), (other, "another ranker")]
    judge(checks.saved, wrongs, right, mended, broken)
