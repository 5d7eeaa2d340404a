"""The axioms of term frequency, discrimination, coverage and length, on texts made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from pyterrier_mechir import Sweep
from pyterrier_mechir.perturb import (
    AND,
    ANTI_REG,
    LB1,
    LB2,
    LNC1,
    LNC2,
    MTDC,
    REG,
    TDC,
    TFC1,
    TFC2,
    TFC3,
    TFLNC,
    Idf,
    Perturbation,
)

IDF = {"ocean": 3.0, "spring": 2.7, "moon": 2.69, "tides": 4.0, "neap": 6.0}


def results(made: Callable[[int], Perturbation], text: str, query: str) -> set:
    """What seeds make of a row."""
    return {made(seed)(text, query) for seed in range(40)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The tides, they say, rise.", {"The tides, tides they say, rise."}),
        ("TIDES\nrise", {"TIDES\ntides rise"}),
        ("(tides) rise", {"(tides) tides rise"}),
        ("Rise, tides!", {"Rise, tides! tides"}),
        ("tides rise tides", {"tides tides rise tides", "tides rise tides tides"}),
        ("high-tides rise", {None}),
        ("tide", {None}),
        ("", {None}),
    ],
)
def test_tfc1_beside_puts_the_term_after_an_occurrence(text, expected):
    assert results(lambda seed: TFC1(position="beside", seed=seed), text, "the tides?") == expected


def test_tfc1_beside_draws_a_term_that_occurs():
    beside = results(lambda seed: TFC1(position="beside", seed=seed), "Größe zählt", "neap GRÖSSE größe tides")
    assert beside == {"Größe größe zählt"}
    assert TFC1("moon", position="beside")("tides rise", "tides") is None


def test_tfc1_adds_several_occurrences_in_one_place():
    assert TFC1(n=3)("It rises.", "Tides?") == "It rises. Tides Tides Tides"
    assert TFC1(n=2, position="beside")("The tides rise", "tides") == "The tides tides tides rise"
    assert TFC1("high water", n=2, position=1)("The end", "tides") == "The high water high water end"


def test_numbers_may_be_of_numpy():
    assert TFC1("tides", np.int64(1), n=np.int64(2))("It rises", "q") == "It tides tides rises"
    assert TFC2(np.int64(0), np.int64(1))("It", "tides") == ("It a", "It tides a")
    assert LNC2(np.int64(2))("It", "q") == "It It"


@pytest.mark.parametrize(
    ("text", "one", "every"),
    [
        ("The tides rise.", {"The rise."}, "The rise."),
        ("Tides, tides!", {", tides!", "Tides,!"}, ",!"),
        ("Tides of (neap) tides", {"of (neap) tides", "Tides of (neap)"}, "of (neap)"),
        ("The tides' rise, the high-tides", {"The' rise, the high-tides"}, "The' rise, the high-tides"),
        ("tide of Tides's", {None}, None),
        ("", {None}, None),
    ],
)
def test_tfc1_replace_takes_out_one_or_all_occurrences(text, one, every):
    assert results(lambda seed: TFC1(replace="one", seed=seed), text, "tides zebra") == one
    assert TFC1(replace="all")(text, "tides zebra") == every


def test_tfc1_replace_draws_a_term_that_occurs():
    taken = results(lambda seed: TFC1(replace="all", seed=seed), "Moon and tides", "moon tides neap")
    assert taken == {"and tides", "Moon and"}
    assert TFC1("neap", replace="one")("Moon and tides", "moon") is None
    assert TFC1("Moon", replace="one")("The moon", "tides") == "The"


def test_tfc1_replace_expects_a_lower_score():
    assert (TFC1().name, TFC1().sign) == ("TFC1", "+")
    for replace in ("one", "all"):
        assert (TFC1(replace=replace).name, TFC1(replace=replace).sign) == ("TFC1-R", "-")


@pytest.mark.parametrize("term", ["Tides!", "high water", "water water", "O'Brien's", "Größe", "«İzmir»"])
@pytest.mark.parametrize("n", [1, 2])
def test_pairs_of_a_given_term_hold(term, n):
    made = TFC1(term, n=n)
    text = "High, the tide."
    assert made.holds(text, made(text, "q"), "q")
    assert not made.holds(text, f"{made(text, 'q')} water", "q")
    assert not made.holds(text, f"{text} zebra", "q")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (TFC2(0), ("It rises.", "It rises. tides")),
        (TFC2(), ("It rises. tides", "It rises. tides tides")),
        (TFC2(2, position="start"), ("tides tides It rises.", "tides tides tides It rises.")),
        (TFC2(0, 2), ("It rises. a a", "It rises. tides a a")),
        (TFC2(1, 2, position=1, filler="so"), ("It tides so rises.", "It tides tides so rises.")),
        (TFC2(2, 2), ("It rises. tides tides", "It rises. tides tides tides")),
        (TFC2(1, term="the moon"), ("It rises. the moon", "It rises. the moon the moon")),
        (TFC2(position=3), None),
        (TFC2(position="beside"), None),
    ],
)
def test_tfc2_goes_from_k_to_one_more(made, expected):
    assert made("It rises.", "the tides") == expected


def test_sweeping_tfc2_shows_whether_the_gain_diminishes():
    frame = pd.DataFrame([{"qid": "1", "query": "tides", "docno": "d", "text": "It rises."}])
    made = [stage(frame).iloc[0] for stage in Sweep(TFC2, k=range(5), k_max=4).values()]
    sides = [(row["text_baseline"], row["text_perturbed"]) for row in made]
    assert {tuple(len(side.split()) for side in pair) for pair in sides} == {(6, 7)}
    assert [tuple(side.split().count("tides") for side in pair) for pair in sides] == [(k, k + 1) for k in range(5)]
    assert all(TFC2(k, 4).holds(*pair, "tides") for k, pair in enumerate(sides))
    assert {row["expected_sign"] for row in made} == {"+"}


def test_tfc2_does_not_apply_to_a_query_without_words():
    assert TFC2()("tides", " ?") is None
    assert TFC2(0)("", "tides") == ("", "tides")


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Ocean, of ocean.", "Spring OCEAN", {"Spring, of ocean.", "Ocean, of Spring."}),
        ("ocean ocean ocean", "ocean spring", {"spring ocean ocean", "ocean spring ocean", "ocean ocean spring"}),
        ("ocean ocean", "ocean moon", {None}),
        ("ocean rises", "ocean spring", {None}),
        ("ocean ocean spring", "ocean spring", {None}),
        ("ocean ocean", "ocean zebra", {None}),
        ("ocean ocean", "ocean ocean", {None}),
        ("rise", "ocean spring", {None}),
        ("", "", {None}),
    ],
)
def test_tfc3_gives_a_repeated_term_up_for_one_as_rare(text, query, expected):
    assert results(lambda seed: TFC3(IDF, seed=seed), text, query) == expected


def test_tfc3_compares_idf_within_its_tolerance():
    assert TFC3(IDF, tolerance=0.11)("ocean ocean", "ocean moon") is not None
    assert TFC3(IDF, tolerance=0)("ocean ocean", "ocean spring") is None
    assert TFC3({"a1": 2.0, "b1": 2.0}, tolerance=0)("a1 a1", "a1 b1") is not None


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("The Moon, the moon.", "moon Neap tides", {"The Neap, the moon.", "The Moon, the Neap."}),
        ("tides and moon rise", "moon neap tides", {"tides and neap rise"}),
        ("neap tides", "moon neap tides", {None}),
        ("neap tides tides", "moon neap tides", {"neap neap tides", "neap tides neap"}),
        ("neap tides", "Neap", {None}),
        ("neap", "moon neap", {None}),
        ("zebra tides", "zebra tides", {None}),
        ("the rise", "tides neap", {None}),
        ("tides", "?", {None}),
        ("", "tides neap", {None}),
    ],
)
def test_tdc_swap_exchanges_the_commonest_term_for_the_rarest(text, query, expected):
    assert results(lambda seed: TDC(IDF, reading="swap", seed=seed), text, query) == expected


def test_tdc_appends_beside_and_several_times():
    made = TDC(IDF, position="beside", n=2)
    assert made("The neap, low", "neap tides") == "The neap, neap neap low"
    assert made("The tides, low", "neap tides") is None


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("The ocean, Ocean; neap!", "Neap ocean", "The Neap, Neap; ocean!"),
        ("ocean rises", "neap ocean", "neap rises"),
        ("moon moon ocean ocean", "moon ocean neap", "neap neap ocean ocean"),
        ("ocean neap", "neap ocean", None),
        ("neap neap ocean", "neap ocean", None),
        ("ocean ocean", "ocean zebra", None),
        ("ocean ocean", "ocean", None),
        ("rise", "neap ocean", None),
        ("", "", None),
    ],
)
def test_mtdc_exchanges_the_counts_of_two_terms(text, query, expected):
    assert MTDC(IDF)(text, query) == expected


@pytest.mark.parametrize("axiom", [TDC, TFC3, MTDC])
def test_an_idf_keeps_the_analysis_that_made_it(axiom):
    with pytest.raises(ValueError, match="analyse"):
        axiom(Idf.of(IDF), analyse=str.split)


@pytest.mark.parametrize("axiom", [TDC, TFC3, MTDC])
def test_other_settings_keep_the_analysis(axiom):
    made = axiom({"ti": 1.0, "oc": 2.0}, analyse=first_two)
    assert made.idf.analyse is first_two
    assert made.analyse is None and "analyse" not in repr(made)
    assert made.with_settings() == made and hash(made.with_settings()) == hash(made)
    assert made.with_settings(idf={"mo": 1.0}, analyse=first_two).idf("moons") == 1.0


def first_two(text: str) -> list[str]:
    return [word[:2] for word in text.lower().split()]


@pytest.mark.parametrize(
    ("axiom", "text"), [(lambda *idf: TDC(*idf, reading="swap"), "moon"), (MTDC, "moon moon NASA"), (TFC3, "moon moon")]
)
def test_terms_are_looked_up_as_the_query_writes_them(axiom, text):
    idf = Idf({"NASA": 2.0, "moon": 1.9 if axiom is TFC3 else 1.0}, str.split, "case-sensitive")
    assert "NASA" in axiom(idf)(text, "NASA moon")


def test_lb1_exchanges_an_added_term_for_one_that_is_missing():
    pairs = results(lambda seed: LB1(seed=seed), "Tides rise, moon!", "the TIDES, Moon neap")
    assert pairs == {(f"Tides rise, moon! {term}", "Tides rise, moon! neap") for term in ("TIDES", "Moon")}
    assert LB1(1)("Tides rise", "tides neap") == ("Tides tides rise", "Tides neap rise")
    assert results(lambda seed: LB1("random", seed), "Tides rise", "neap tides") == {
        ("tides Tides rise", "neap Tides rise"),
        ("Tides tides rise", "Tides neap rise"),
        ("Tides rise tides", "Tides rise neap"),
    }


@pytest.mark.parametrize("made", [LB1(), LB2("first"), LB2("further")])
@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("tides", "tides"),
        ("neap tides", "tides neap"),
        ("rise", "tides neap"),
        ("", "tides"),
        ("tides", ""),
        ("!", "?"),
    ],
)
def test_lower_bounds_need_a_term_that_is_there_and_one_that_is_not(made, text, query):
    assert made(text, query) is None


def test_lower_bounds_do_not_apply_beyond_the_text():
    assert LB1(3)("Tides rise", "tides neap") is None
    assert LB2("first", 3)("Tides rise", "tides neap") is None


def test_lb2_adds_a_missing_or_a_further_term():
    text, query = "Tides rise.", "of the tides and neap moon"
    assert results(lambda seed: LB2("first", seed=seed), text, query) == {"Tides rise. neap", "Tides rise. moon"}
    assert results(lambda seed: LB2("further", seed=seed), text, query) == {"Tides rise. tides"}
    assert LB2("further", "start", n=2)(text, query) == "tides tides Tides rise."


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Tides of the moon, tides!", "moon tides", {("Tides of the, tides!", x) for x in
            ("of the moon, tides!", "Tides of the moon,!")}),
        ("neap tides tides moon", "tides neap moon", {(b, p)
            for b in ("tides tides moon", "neap tides tides") for p in ("neap tides moon",)}),
        ("tides tides", "tides", {None}),
        ("tides moon", "tides moon", {None}),
        ("tides tides moon moon", "tides moon", {None}),
        ("tides tides moon", "tides moon neap", {None}),
        ("", "tides", {None}),
        ("tides", "", {None}),
    ],
)  # fmt: skip
def test_and_lacks_a_term_against_fewer_of_another(text, query, expected):
    assert results(lambda seed: AND(seed), text, query) == expected


@pytest.mark.parametrize("axiom", [REG, ANTI_REG])
@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("Tides rise, tides fall.", "Neap tides", {"Neap rise, tides fall.", "Tides rise, Neap fall."}),
        ("tides tides moon moon moon", "tides moon neap", {f"tides tides {m}" for m in
            ("neap moon moon", "moon neap moon", "moon moon neap")}),
        ("tides tides tides", "tides", {None}),
        ("tides", "tides neap", {None}),
        ("tides tides neap neap", "tides neap", {None}),
        ("rise", "tides neap", {None}),
        ("", "", {None}),
    ],
)  # fmt: skip
def test_reg_gives_an_extra_term_to_the_least_covered_aspect(axiom, text, query, expected):
    assert results(lambda seed: axiom(seed=seed), text, query) == expected


@pytest.mark.parametrize(
    ("axiom", "text", "query"),
    [
        (LB1, "Ocean rises", "ocean {}"),
        (AND, "ocean ocean {}", "ocean {}"),
        (REG, "ocean, Ocean", "ocean {}"),
        (ANTI_REG, "ocean, Ocean", "ocean {}"),
    ],
)
def test_with_an_idf_only_terms_as_rare_are_exchanged(axiom, text, query):
    def pair(term: str, **settings: object):
        return axiom(**settings).pair(text.format(term), query.format(term))

    assert pair("neap", idf=IDF) is None
    assert pair("zebra", idf=IDF) is None
    for term, settings in (("spring", {"idf": IDF}), ("neap", {})):
        made = pair(term, **settings)
        assert made.by.holds(*made[:2], query.format(term))
        assert axiom(idf=IDF).holds(*made[:2], query.format(term)) == (term == "spring")


def test_reg_compares_the_rarity_of_the_word_that_is_spared():
    made = [REG({"ocean": ["sea"]}, seed, {"ocean": 9.0, "sea": 3.0, "neap": 3.1}) for seed in range(9)]
    assert {one("ocean sea ocean", "ocean neap") for one in made} == {"ocean neap ocean"}


def test_reg_does_not_let_two_aspects_trade_places():
    assert REG()("tides tides neap", "tides neap") is None


def test_reg_counts_similar_words():
    similar = {"tides": ["Water", "currents"], "moon": "orb"}
    assert results(lambda seed: REG(similar, seed), "water, CURRENTS", "tides moon") == {
        "moon, CURRENTS",
        "water, MOON",
    }
    assert REG(similar)("water orb", "tides moon") is None
    assert REG({"tides": ["moon"]})("tides moon", "moon tides") is None
    assert REG({"moon": ["tides"]})("tides tides", "tides moon neap") in ("neap tides", "tides neap")


def test_reg_spares_a_word_that_covers_both_aspects():
    similar = {"tides": ["water"], "ocean": ["water"]}
    assert results(lambda seed: REG(similar, seed), "tides tides water", "tides ocean") == {
        "ocean tides water",
        "tides ocean water",
    }


def test_anti_reg_makes_the_pair_of_reg_and_expects_the_opposite():
    row = ("tides tides moon moon", "tides moon neap")
    assert [ANTI_REG(seed=seed)(*row) for seed in range(9)] == [REG(seed=seed)(*row) for seed in range(9)]
    assert (REG().sign, ANTI_REG().sign) == ("+", "-")
    assert REG() != ANTI_REG()


def test_lnc1_adds_words_that_the_query_lacks():
    assert LNC1("stone walls")("Tides rise.", "tides") == "Tides rise. stone walls"
    assert LNC1("wall", "start", 2)("Tides rise.", "tides") == "wall wall Tides rise."
    drawn = results(lambda seed: LNC1(["wall", "the tides", "of stone"], seed=seed), "It rises.", "Tides")
    assert drawn == {"It rises. wall", "It rises. of stone"}
    assert results(lambda seed: LNC1(seed=seed), "The Tides rise HIGH", "tides") == {
        "The Tides rise HIGH rise",
        "The Tides rise HIGH high",
    }
    rare = LNC1(Idf.of({"granite": 4.1, "tides": 4.0, "neap": 4.0, "moon": 4.2}))
    assert rare("the moon", "neap tides") == "the moon granite"


@pytest.mark.parametrize(
    ("noise", "text", "query"),
    [
        ("high tides", "It rises.", "tides"),
        (["tides", "Tides, too"], "It rises.", "tides"),
        (None, "the tides", "tides"),
        (None, "", "tides"),
        (Idf.of({"tides": 4.0}), "rise", "tides"),
        (Idf.of({"tides": 4.0}), "rise", ""),
    ],
)
def test_lnc1_does_not_apply_where_nothing_can_be_added(noise, text, query):
    assert LNC1(noise)(text, query) is None


@pytest.mark.parametrize(
    ("made", "perturbed"),
    [
        (LNC1("stone"), "Tides rise. walls"),
        (LNC1("stone"), "Tides rise. stone stone"),
        (LNC1("stone"), "Tides rise. stone walls"),
        (LNC1("stone", n=2), "Tides rise. stone"),
        (LNC1(["stone", "walls"]), "Tides rise. stone walls"),
        (LNC1(), "Tides rise. walls"),
        (LNC1(n=2), "Tides rise. rise"),
    ],
)
def test_lnc1_refuses_other_words_than_its_own(made, perturbed):
    assert not made.holds("Tides rise.", perturbed, "tides")


def test_lnc2_repeats_the_text():
    assert LNC2()("Tides rise.", "q") == "Tides rise. Tides rise."
    assert LNC2(3)("-tides'", "") == "-tides' -tides' -tides'"
    assert [LNC2()(text, "q") for text in ("", "  ", "?!", "«»")] == [None] * 4


def test_tflnc_adds_a_term_against_masked_positions():
    assert TFLNC(n=2)("It rises.", "the tides") == "It rises. tides tides"
    assert TFLNC("moon", "start")("", "tides") == "moon"
    assert TFLNC()("tides", "?") is None
    assert (TFLNC().name, TFLNC().alignment, TFLNC().sign) == ("TFLNC", "mask", "+")


@pytest.mark.parametrize(
    ("axiom", "baseline", "perturbed", "query"),
    [
        (TFC1(replace="one"), "tides tides rise", "rise", "tides"),
        (TFC1(replace="all"), "tides tides rise", "tides rise", "tides"),
        (TFC1(replace="all"), "tides rise", "tides", "tides"),
        (TFC1(n=2), "It rises.", "It rises. tides moon", "tides moon"),
        (TFC2(2), "It rises. tides", "It rises. tides tides", "tides"),
        (TFC3(IDF), "ocean ocean", "spring spring", "ocean spring"),
        (TFC3(IDF), "ocean rise", "spring rise", "ocean spring"),
        (TDC(IDF), "rise", "rise ocean", "ocean neap"),
        (TDC(IDF, reading="swap"), "ocean moon", "neap moon", "ocean moon neap"),
        (TDC(IDF, reading="swap"), "ocean moon", "ocean tides", "ocean moon tides neap"),
        (MTDC(IDF), "ocean ocean ocean", "neap ocean ocean", "neap ocean"),
        (MTDC(IDF), "neap neap ocean", "ocean ocean neap", "neap ocean"),
        (LB1(), "It rises. tides", "It rises. neap", "tides neap"),
        (LB1(), "tides rise rise", "tides rise neap", "tides neap"),
        (LB2("first"), "tides", "tides tides", "tides neap"),
        (LB2("further"), "tides", "tides neap", "tides neap"),
        (AND(), "tides tides moon", "tides moon moon", "tides moon"),
        (AND(), "rise rise tides tides", "moon rise tides tides", "tides moon"),
        (AND(), "tides tides", "moon tides", "tides moon neap"),
        (AND(), "tides", "moon", "tides moon"),
        (REG(), "tides tides tides rise", "tides tides tides neap", "tides neap"),
        (REG(), "tides tides tides moon", "tides tides moon moon", "tides moon neap"),
        (LNC2(3), "It rises.", "It rises. It rises.", "q"),
    ],
)
def test_a_pair_that_breaks_one_premise_does_not_hold(axiom, baseline, perturbed, query):
    assert not axiom.holds(baseline, perturbed, query)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda: TFC1(replace="some"), ValueError, "unknown replace 'some'; choose one of 'one', 'all'"),
        (lambda: TFC1(n=0), ValueError, "n is 0; give at least 1"),
        (lambda: TFC1(n=1.5), (TypeError, ValueError), "n is 1.5"),
        (lambda: TFC1(n="2"), (TypeError, ValueError), "n is '2'"),
        (lambda: TFC2(-1), ValueError, "k is -1; give at least 0"),
        (lambda: TFC2(3, 2), ValueError, "k_max is 2; give at least 3"),
        (lambda: TFC2(position="last"), ValueError, "unknown position 'last'"),
        (lambda: TFC2(2, 2).with_settings(k=3), ValueError, "k_max is 2; give at least 3"),
        (lambda: TFC3(3), TypeError, "idf should be .* not int"),
        (lambda: TFC3({"Tides": 1.0}), ValueError, "'Tides'"),
        (lambda: TFC3(IDF, tolerance=-0.1), ValueError, "tolerance is -0.1"),
        (lambda: TDC(IDF, reading="both"), ValueError, "unknown reading 'both'; choose one of 'append', 'swap'"),
        (lambda: TDC(IDF, n=-2), ValueError, "n is -2; give at least 1"),
        (lambda: MTDC("tides"), TypeError, "idf should be .* not str"),
        (lambda: LB1("beside"), ValueError, "position 'beside' is next to the same term"),
        (lambda: LB1(-1), ValueError, "unknown position -1"),
        (lambda: LB2("second"), ValueError, "unknown occurrence 'second'; choose one of 'first', 'further'"),
        (lambda: LB2(position="beside"), ValueError, "position 'beside' is next to the same term"),
        (lambda: LB2(n=0), ValueError, "n is 0; give at least 1"),
        (lambda: REG(3), TypeError, "similar should be a mapping, .* not int"),
        (lambda: LNC1(position="last"), ValueError, "unknown position 'last'"),
        (lambda: LNC1(n=0), ValueError, "n is 0; give at least 1"),
        (lambda: LNC2(1), ValueError, "k is 1; give at least 2"),
        (lambda: TFLNC(n=0), ValueError, "n is 0; give at least 1"),
        (lambda: TFLNC(replace="one"), TypeError, "replace"),
        (lambda: AND().with_settings(k=1), TypeError, "'k'"),
    ],
)
def test_a_wrong_setting_is_named(made, error, message):
    with pytest.raises(error, match=message):
        made()
