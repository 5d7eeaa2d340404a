"""Self-checks of lessons 4 to 6 name the mistake of a wrong answer, and pass the right one."""

from __future__ import annotations

import checks
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from judging import judge

from pyterrier_mechir import Ablate, AblationScorer, Scale

QUERY = "why are there two high tides each day"
ABOVE = "Two high tides of the sea, each day; a tide is a tide on every coast of the land."
BELOW = "Each day there are high winds, and a store of food in each hut."


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
