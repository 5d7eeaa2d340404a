"""What the axioms claim, counted without the package, on rows drawn at random; and what all of them have in common."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from inspect import signature

import pytest
from axioms import (
    AXIOMS,
    IDF,
    OTHERS,
    SIMILAR,
    STOP,
    asked,
    differing,
    digest,
    each_axiom,
    gaps,
    lowered,
    many,
    pairs_of,
    rows,
    some_rows,
    written,
)
from hypothesis import event, given
from hypothesis import strategies as st

from pyterrier_mechir.perturb import AND, LB1, LB2, LNC1, LNC2, MTDC, REG, TDC, TFC1, TFC2, TFC3, TFLNC

positions = st.one_of(st.sampled_from(["end", "start", "random", "beside"]), st.integers(0, 4))
without_beside = positions.filter(lambda position: position != "beside")
seeds = st.integers(0, 5)


def counts(text: str) -> Counter[str]:
    return Counter(lowered(text))


def run_put_in(text: str, longer: str, n: int) -> int:
    """The place of ``n`` space-separated words that a text has more than another."""
    before, after = text.split(), longer.split()
    places = [i for i in range(len(before) + 1) if after[:i] + after[i + n :] == before]
    assert len(after) == len(before) + n and places
    return places[-1]


@pytest.mark.parametrize("axiom", [TFC1, TFLNC])
@given(row=rows(), position=positions, n=st.integers(1, 3), seed=seeds)
@many
def test_tfc1_adds_occurrences_of_one_term_and_nothing_else(axiom, row, position, n, seed):
    text, query = row
    made = axiom(position=position, n=n, seed=seed)(text, query)
    event(f"applies: {made is not None}")
    terms = asked(query)
    fits = {"beside": set(terms) & set(lowered(text)) != set()}.get(position, True)
    fits = fits if isinstance(position, str) else position <= len(text.split())
    assert (made is not None) == (bool(terms) and fits)
    if made is None:
        return
    added = counts(made) - counts(text)
    assert not counts(text) - counts(made)
    assert len(added) == 1 and added.total() == n
    assert set(added) <= set(terms)
    place = run_put_in(text, made, n)
    if isinstance(position, int):
        assert made.split()[position : position + n] == [made.split()[place]] * n
    if position == "beside":
        assert next(iter(added)) in lowered(made.split()[place - 1])


@given(row=rows(), replace=st.sampled_from(["one", "all"]), seed=seeds)
@many
def test_tfc1_replace_takes_occurrences_of_one_term_out(row, replace, seed):
    text, query = row
    made = TFC1(replace=replace, seed=seed)(text, query)
    assert (made is not None) == (not set(asked(query)).isdisjoint(lowered(text)))
    if made is None:
        return
    removed = counts(text) - counts(made)
    assert not counts(made) - counts(text)
    assert len(removed) == 1 and set(removed) <= set(asked(query))
    ((term, count),) = removed.items()
    assert count == (1 if replace == "one" else counts(text)[term])
    assert [word for word in lowered(text) if word != term] == [word for word in lowered(made) if word != term]


@given(row=rows(), position=positions, k=st.integers(0, 3), seed=seeds)
@many
def test_tfc2_steps_join_and_have_one_length(row, position, k, seed):
    text, query = row
    pair, following = (TFC2(i, position=position, seed=seed)(text, query) for i in (k, k + 1))
    assert (pair is None) == (following is None) == (TFC1(position=position, seed=seed)(text, query) is None)
    if pair is None:
        return
    assert pair[1] == following[0]
    added = [counts(side) - counts(text) for side in pair]
    assert added[0].total() == k and added[1].total() == k + 1
    assert added[0] <= added[1] and len(added[1]) == 1 and set(added[1]) <= set(asked(query))
    filled = [TFC2(i, 4, position=position, filler="xx", seed=seed)(text, query) for i in range(5)]
    assert {tuple(map(len, map(lowered, sides))) for sides in filled} == {
        (len(lowered(text)) + 4, len(lowered(text)) + 5)
    }
    assert [counts(baseline)["xx"] for baseline, _ in filled] == [4, 3, 2, 1, 0]


def one_exchange(baseline: str, perturbed: str) -> tuple[str, str]:
    """The one word that gives way to another in its place."""
    assert gaps(baseline) == gaps(perturbed)
    (place,) = differing(written(baseline), written(perturbed))
    return lowered(baseline)[place], lowered(perturbed)[place]


def known(query: str) -> list[str]:
    return [term for term in asked(query) if term in IDF]


@given(row=rows(), seed=seeds)
@many
def test_tfc3_exchanges_terms_of_equal_idf(row, seed):
    text, query = row
    before = counts(text)
    possible = {
        (one, other)
        for one in known(query)
        for other in known(query)
        if before[one] > 1 and not before[other] and abs(IDF[one] - IDF[other]) <= 0.1 * max(IDF[one], IDF[other])
    }
    made = TFC3(IDF, seed=seed)(text, query)
    event(f"applies: {made is not None}")
    assert (made is not None) == bool(possible)
    if made is not None:
        assert one_exchange(text, made) in possible


@given(row=rows(), seed=seeds)
@many
def test_tdc_swap_keeps_the_number_of_query_terms(row, seed):
    text, query = row
    made = TDC(IDF, reading="swap", seed=seed)(text, query)
    rarest = max(known(query), key=IDF.__getitem__, default=None)
    before = counts(text)
    possible = [term for term in known(query) if IDF[term] < IDF[rarest] and before[term] > before[rarest]]
    assert (made is not None) == bool(possible)
    if made is not None:
        assert one_exchange(text, made) == (min(possible, key=IDF.__getitem__), rarest)
        present = [len([term for term in asked(query) if counts(side)[term]]) for side in (text, made)]
        assert present[1] >= present[0]
        totals = [sum(counts(side)[term] for term in asked(query)) for side in (text, made)]
        assert totals[0] == totals[1]


@given(row=rows())
@many
def test_mtdc_exchanges_the_counts_of_a_common_and_a_rare_term(row):
    text, query = row
    before = counts(text)
    possible = {
        IDF[rare] - IDF[common]: (rare, common)
        for rare in known(query)
        for common in known(query)
        if IDF[rare] > IDF[common] and before[common] > before[rare]
    }
    made = MTDC(IDF)(text, query)
    assert (made is not None) == bool(possible)
    if made is not None:
        rare, common = possible[max(possible)]
        other = {rare: common, common: rare}
        assert lowered(made) == [other.get(word, word) for word in lowered(text)]
        assert (counts(made)[rare], counts(made)[common]) == (before[common], before[rare])
        assert gaps(made) == gaps(text)


@given(row=rows(), position=without_beside, seed=seeds)
@many
def test_lower_bounds_set_a_missing_term_against_one_that_is_there(row, position, seed):
    text, query = row
    seen = {term for term in asked(query) if counts(text)[term]}
    unseen = set(asked(query)) - seen
    pair = LB1(position, seed)(text, query)
    first, further = (LB2(occurrence, position, seed=seed)(text, query) for occurrence in ("first", "further"))
    fits = isinstance(position, str) or position <= len(text.split())
    applies = bool(seen) and bool(unseen) and fits
    assert (pair is not None) == (first is not None) == (further is not None) == applies
    if not applies:
        return
    repeated, missing = one_exchange(*pair)
    assert repeated in seen and missing in unseen
    assert counts(pair[0]) == counts(text) + Counter([repeated])
    assert set(counts(first) - counts(text)) <= unseen
    assert set(counts(further) - counts(text)) <= seen
    assert {(counts(side) - counts(text)).total() for side in (first, further)} == {1}


@given(row=rows(), seed=seeds)
@many
def test_and_sides_are_of_one_length_and_one_has_all_terms(row, seed):
    text, query = row
    before = {term: counts(text)[term] for term in asked(query)}
    pair = AND(seed)(text, query)
    event(f"applies: {pair is not None}")
    assert (pair is not None) == (0 not in before.values() and 1 in before.values() and max(before.values()) > 1)
    if pair is None:
        return
    lost, spared = (counts(text) - counts(side) for side in pair)
    assert lost.total() == spared.total() == 1
    assert [before[next(iter(side))] for side in (lost, spared)] == [1, max(before[next(iter(spared))], 2)]
    assert [term for term in before if not counts(pair[0])[term]] == list(lost)
    assert all(counts(pair[1])[term] for term in before)


@pytest.mark.parametrize("similar", [{}, SIMILAR], ids=["alone", "similar"])
@given(row=rows(), seed=seeds)
@many
def test_reg_covers_the_least_covered_aspect_better(similar, row, seed):
    text, query = row
    aspects = [{term, *(word.lower() for word in similar.get(term, []))} for term in asked(query)]

    def cover(side: str) -> list[int]:
        return [sum(counts(side)[word] for word in aspect) for aspect in aspects]

    before = cover(text)
    of_one = [aspect for aspect in aspects if sum(counts(text)[word] for word in aspect) == max(before)]
    spare = any(word in aspect for aspect in of_one for word in lowered(text) if sum(word in a for a in aspects) == 1)
    made = REG(similar or None, seed)(text, query)
    event(f"applies: {made is not None}")
    assert (made is not None) == (spare and max(before) - min(before) > 1)
    if made is not None:
        one_exchange(text, made)
        changed = differing(before, cover(made))
        assert sorted(cover(made)[i] - before[i] for i in changed) == [-1, 1]
        assert {before[i] for i in changed} == {min(before), max(before)}


@given(row=rows(), n=st.integers(1, 3), position=without_beside, seed=seeds)
@many
def test_lnc1_repeats_a_content_word_outside_the_query(row, n, position, seed):
    text, query = row
    made = LNC1(position=position, n=n, seed=seed)(text, query)
    outside = set(lowered(text)) - set(lowered(query)) - set(STOP)
    fits = isinstance(position, str) or position <= len(text.split())
    assert (made is not None) == (bool(outside) and fits)
    if made is not None:
        run_put_in(text, made, n)
        added = counts(made) - counts(text)
        assert added.total() == n and len(added) == 1 and set(added) <= outside


@given(row=rows(), k=st.integers(2, 4))
@many
def test_lnc2_has_the_words_so_many_times(row, k):
    text, query = row
    made = LNC2(k)(text, query)
    assert (made is not None) == bool(written(text))
    if made is not None:
        assert written(made) == written(text) * k


@each_axiom()
def test_a_fair_share_of_the_rows_has_a_pair(axiom):
    assert sum(1 for _ in pairs_of(axiom)) >= 15


@each_axiom()
def test_every_pair_holds_and_only_that_way_round(axiom):
    for (baseline, perturbed, by), query in pairs_of(axiom):
        assert by == axiom
        assert axiom.holds(baseline, perturbed, query)
        assert not axiom.holds(perturbed, baseline, query)
        assert not axiom.holds(baseline, baseline, query)
        assert not axiom.holds(perturbed, perturbed, query)


@each_axiom()
def test_a_pair_with_another_change_does_not_hold(axiom):
    for (baseline, perturbed, _), query in pairs_of(axiom):
        words = written(perturbed)
        more = [f"{perturbed} zebras", f"zebras {perturbed}"]
        places = [i for i, word in enumerate(words) if word in OTHERS and word not in written(query)][:2]
        less = [" ".join(words[:i] + words[i + 1 :]) for i in places]
        other = [" ".join([*words[:i], "zebras", *words[i + 1 :]]) for i in places]
        unwanted = {*more, *less, *other, ""} - {perturbed}
        if axiom.name == "LNC1":
            unwanted -= set(less)
        assert [side for side in unwanted if axiom.holds(baseline, side, query)] == []


@each_axiom(lambda axiom: axiom.alignment != "permute")
def test_a_pair_of_other_words_in_another_order_does_not_hold(axiom):
    for (baseline, perturbed, _), query in pairs_of(axiom):
        words = written(perturbed)
        others = set(OTHERS) - set(written(query))
        single = [i for i, word in enumerate(words) if word in others and counts(perturbed)[word.lower()] == 1]
        if len(single) > 1:
            one, other = single[:2]
            words[one], words[other] = words[other], words[one]
            assert not axiom.holds(baseline, " ".join(words), query)


@each_axiom(lambda axiom: axiom.name != "LNC2")
def test_a_pair_does_not_hold_for_another_query(axiom):
    for (baseline, perturbed, _), query in pairs_of(axiom):
        wrong = perturbed if axiom.name == "LNC1" else '"granite walls"'
        assert not axiom.holds(baseline, perturbed, wrong), query


@each_axiom()
def test_the_same_row_has_the_same_pair_in_any_order(axiom):
    forwards = [axiom(*row) for row in some_rows()]
    again = axiom.with_settings()
    assert [again(*row) for row in some_rows()[::-1]][::-1] == forwards


@each_axiom(lambda axiom: "seed" in signature(type(axiom)).parameters)
def test_another_seed_makes_other_pairs(axiom):
    other = axiom.with_settings(seed=7)
    assert other.seed == 7 and other != axiom
    assert [axiom(*row) for row in some_rows()] != [other(*row) for row in some_rows()]


def test_pairs_are_the_same_in_every_process():
    program = "from axioms import digest; print(digest())"
    for hash_seed in ("0", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True, encoding="utf-8"
        )
        assert done.stdout.strip() == digest()


@each_axiom()
def test_axioms_survive_a_pickle(axiom):
    again = pickle.loads(pickle.dumps(axiom))
    assert again == axiom and hash(again) == hash(axiom) and repr(again) == repr(axiom)
    for attribute in ("name", "alignment", "sign", "own_baseline", "statement", "change", "source"):
        assert getattr(again, attribute) == getattr(axiom, attribute)
    assert [again(*row) for row in some_rows(60)] == [axiom(*row) for row in some_rows(60)]


def test_axioms_differ_by_kind_and_by_settings():
    assert len(set(AXIOMS)) == len(AXIOMS) == len({repr(axiom) for axiom in AXIOMS})


@pytest.mark.parametrize(
    ("axiom", "settings", "expected"),
    [
        (TFC1(), {"replace": "all", "seed": 3}, "TFC1(seed=3, replace='all')"),
        (TFC1("tides", position="beside", n=2), {"n": 1}, "TFC1(term='tides', position='beside')"),
        (TFC2(2, 4), {"k": 0}, "TFC2(k=0, k_max=4)"),
        (TFC3(IDF), {"tolerance": 0.2}, "TFC3(idf=Idf(5 terms), tolerance=0.2)"),
        (TDC(IDF), {"reading": "swap"}, "TDC(idf=Idf(5 terms), reading='swap')"),
        (MTDC(IDF), {"idf": {"tides": 1.0}}, "MTDC(idf=Idf(1 terms))"),
        (LB1(), {"position": 2}, "LB1(position=2)"),
        (LB2("further"), {"occurrence": "first", "n": 2}, "LB2(n=2)"),
        (AND(2), {}, "AND(seed=2)"),
        (REG(SIMILAR), {"seed": 1}, "REG(similar={3 terms}, seed=1)"),
        (LNC1("walls"), {"n": 3}, "LNC1(noise='walls', n=3)"),
        (LNC2(), {"k": 5}, "LNC2(k=5)"),
        (TFLNC(), {"term": "tides"}, "TFLNC(term='tides')"),
    ],
)
def test_other_settings_make_another_instance(axiom, settings, expected):
    before = repr(axiom)
    changed = axiom.with_settings(**settings)
    assert repr(changed) == expected and repr(axiom) == before
    assert type(changed) is type(axiom)
    assert changed == axiom.with_settings(**settings)
    assert (changed == axiom) == (not settings)


def test_the_reading_of_tdc_goes_with_its_settings():
    swap = TDC(IDF).with_settings(reading="swap")
    assert (swap.alignment, swap.with_settings(reading="append").alignment) == ("swap", "fill")
    assert TFC1(replace="one").with_settings(replace=None).name == "TFC1"
