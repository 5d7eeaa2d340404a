"""Perturbations made of others, of settings and of plain functions."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import RR
from small_models import TEXTS

from pyterrier_mechir import PatchScorer, PerturbDocs, PerturbQueries, Sweep
from pyterrier_mechir.perturb import (
    STMC1,
    TFC1,
    TFC2,
    AddTerm,
    CaseFold,
    Chain,
    Identity,
    OneOf,
    Perturbation,
    RandomTerm,
    RemoveTerm,
    ShuffleWords,
    Typos,
    perturbation,
)
from pyterrier_mechir.text.alignment import ALIGNMENTS
from pyterrier_mechir.text.encoding import TOKEN_CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = "ocean tides"
TEXT = "The moon pulls the ocean, so tides rise."


def of(alignment: str, sign: str | None = None, **claims) -> Perturbation:
    return perturbation(alignment=alignment, sign=sign, **claims)(lambda text: f"{text} {alignment}")


@pytest.fixture
def frame():
    texts = [*TEXTS, TEXT]
    return pd.DataFrame({"qid": "1", "query": QUERY, "docno": [f"d{i}" for i in range(len(texts))], "text": texts})


# Chain


def test_a_chain_applies_one_after_the_other():
    chain = TFC1("tides") | CaseFold() | (lambda text, query: f"{text} {len(query)}")
    assert chain(TEXT, QUERY) == f"{TEXT.lower()} tides 11"
    assert chain.name == "TFC1|CaseFold|<lambda>"
    assert chain.pair(TEXT, QUERY).by is chain
    assert chain.holds(TEXT, f"{TEXT.lower()} tides 11", QUERY)
    assert not chain.holds(TEXT, TEXT.lower(), QUERY)
    assert repr(TFC1("tides") | CaseFold()) == "TFC1(term='tides') | CaseFold()"


def test_the_second_sees_what_the_first_made():
    assert (RemoveTerm() | perturbation(lambda text: text if "ocean" in text else None))("ocean rise", "ocean") is None
    assert (AddTerm("day") | perturbation(lambda text: text[::-1]))("ab", "q") == "yad ba"


def test_a_chain_does_not_apply_where_either_does_not():
    nothing = perturbation(lambda text: None)
    assert (nothing | TFC1())(TEXT, QUERY) is None
    assert (TFC1() | nothing)(TEXT, QUERY) is None
    assert (TFC1() | nothing).pair(TEXT, QUERY) is None


JOINT = {
    ("fill", "mask"): "fill",
    ("fill", "swap"): "fill",
    ("fill", "permute"): "fill",
    ("mask", "swap"): "mask",
    ("mask", "permute"): "mask",
    ("swap", "permute"): "fill",
}


@pytest.mark.parametrize(("first", "second"), list(product(ALIGNMENTS, repeat=2)))
def test_the_alignment_of_a_chain_is_one_that_both_allow(first, second):
    expected = "free" if "free" in (first, second) else JOINT.get((first, second), JOINT.get((second, first), first))
    assert (of(first) | of(second)).alignment == expected
    assert OneOf([of(first), of(second)]).alignment == expected


@pytest.mark.parametrize(("first", "second", "joint"), [("+", "+", "+"), ("+", "-", None), ("-0", None, None)])
def test_the_sign_of_a_chain_is_that_of_both(first, second, joint):
    assert (of("fill", first) | of("fill", second)).sign == joint
    assert OneOf([of("fill", first), of("fill", second)]).sign == joint


def test_only_the_first_may_have_a_baseline_of_its_own():
    chain = TFC2(term="tides") | CaseFold()
    assert chain.own_baseline
    assert chain(TEXT, QUERY) == (f"{TEXT} tides", f"{TEXT.lower()} tides tides")
    assert chain.pair(TEXT, QUERY)[:2] == chain(TEXT, QUERY)
    with pytest.raises(ValueError, match=r"TFC2\(\) has a baseline of its own"):
        CaseFold() | TFC2()
    with pytest.raises(ValueError, match="baseline of its own"):
        CaseFold() | OneOf([TFC1(), TFC2()])


@pytest.mark.parametrize("other", [3, "TFC1", None, TFC1])
def test_what_is_no_perturbation_cannot_be_chained(other):
    with pytest.raises(TypeError):
        TFC1() | other


def test_equal_chains_are_equal():
    assert (TFC1() | CaseFold()) == Chain(TFC1(), CaseFold()) != (CaseFold() | TFC1())
    assert (TFC1() | CaseFold()) != (TFC1(seed=1) | CaseFold())
    assert len({TFC1() | CaseFold(), TFC1() | CaseFold()}) == 1
    assert pickle.loads(pickle.dumps(TFC1() | CaseFold())) == (TFC1() | CaseFold())


def test_members_are_bound_to_the_ranker(bi_encoder):
    for made in (STMC1() | CaseFold(), OneOf([STMC1()], seed=3), RandomTerm(STMC1(), [TEXT])):
        bound = made.bind(bi_encoder)
        assert "BertModel" in repr(bound)
        assert "BertModel" not in repr(made)
        assert type(bound) is type(made)
    assert OneOf([STMC1()], seed=3).bind(bi_encoder).seed == 3
    given = STMC1({"tides": ["currents"]})
    assert (given | CaseFold()).bind(bi_encoder) == (given | CaseFold())


# OneOf


def test_one_of_those_that_apply_is_drawn_for_each_row():
    some = OneOf([TFC1("heat"), perturbation(lambda text: None), AddTerm("night"), RemoveTerm()])
    drawn = Counter(some(f"text {i}", QUERY).split()[-1] for i in range(200))
    assert set(drawn) == {"heat", "night"}
    assert min(drawn.values()) > 60
    assert [some(f"text {i}", QUERY) for i in range(20)] == [some(f"text {i}", QUERY) for i in range(20)]
    other = some.with_settings(seed=1)
    assert [some(f"text {i}", QUERY) for i in range(20)] != [other(f"text {i}", QUERY) for i in range(20)]
    assert OneOf([RemoveTerm()])("heat", QUERY) is None


def test_what_is_drawn_does_not_decide_what_it_draws():
    some = OneOf([TFC1(position="end"), TFC1(position="start")])
    made = {re.sub(r"\d+", "", some(f"text{i}", QUERY)) for i in range(100)}
    assert made == {"text ocean", "text tides", "ocean text", "tides text"}


def test_every_one_of_nested_choices_is_drawn():
    a, b, c, d = (perturbation(lambda text, letter=letter: text + letter) for letter in "abcd")
    some = OneOf([OneOf([a, b]), OneOf([c, d])])
    assert {some(f"text{i}", QUERY)[-1] for i in range(100)} == set("abcd")


def test_each_row_has_the_columns_of_the_one_that_was_drawn(frame):
    some = OneOf([TFC1("heat"), CaseFold(), TFC2(term="day"), Identity() | ShuffleWords()])
    texts = [f"{text} Number {i}" for text in frame["text"] for i in range(5)]
    rows = frame.loc[frame.index.repeat(5)].assign(text=texts, docno=[f"d{i}" for i in range(len(texts))])
    out = PerturbDocs(some)(rows.reset_index(drop=True))
    assert set(out["perturbation"]) == {"TFC1", "CaseFold", "TFC2", "Identity|ShuffleWords"}
    expected = {
        "TFC1": ("fill", "+"),
        "CaseFold": ("swap", "0"),
        "TFC2": ("fill", "+"),
        "Identity|ShuffleWords": ("fill", None),
    }
    for name, group in out.groupby("perturbation"):
        assert set(group["alignment"]) == {expected[name][0]}
        assert set(group["expected_sign"]) == {expected[name][1] or "none"}
        appended = " day" if name == "TFC2" else ""
        assert group["text_baseline"].tolist() == [text + appended for text in group["text"]]


def test_a_row_to_which_none_applies_is_missing_under_the_common_name(frame):
    out = PerturbDocs(OneOf([RemoveTerm(), TFC2(term="heat", position="beside")]))(frame)
    none = out[out["text_perturbed"].isna()]
    assert len(none) and set(none["perturbation"]) == {"OneOf"}
    assert none["text_baseline"].isna().all()


def test_one_of_keeps_its_settings():
    assert OneOf([TFC1(), CaseFold()]) == OneOf((TFC1(), CaseFold())) != OneOf([TFC1(), CaseFold()], seed=1)
    assert hash(OneOf([TFC1()])) == hash(OneOf((TFC1(),)))
    assert OneOf([TFC1(), CaseFold()]).holds(TEXT, TEXT.lower(), QUERY)
    assert not OneOf([TFC1(), CaseFold()]).holds(TEXT, TEXT[:5], QUERY)
    assert OneOf([TFC2(term="tides")])(TEXT, QUERY) == (f"{TEXT} tides", f"{TEXT} tides tides")
    with pytest.raises(ValueError, match="no perturbations"):
        OneOf([])
    with pytest.raises(TypeError):
        OneOf([3])


# Sweep

BESIDE = {"TFC1(n=1)": f"{TEXT} tides", "TFC1(n=2)": f"{TEXT} tides tides"}


@perturbation
def repeat(text, query, times=1, mark="!"):
    """The query, again and again."""
    return f"{text} {' '.join([query] * times)}{mark}"


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        (Sweep(TFC1, n=range(1, 3), term="tides"), ["TFC1(n=1)", "TFC1(n=2)"]),
        (Sweep(TFC1("tides"), n=(1, 2)), ["TFC1(n=1)", "TFC1(n=2)"]),
        (Sweep(TFC1("ocean", replace="all"), seed=[1, 2]), ["TFC1-R(seed=1)", "TFC1-R(seed=2)"]),
        (Sweep(repeat, times=[1, 2], mark="?"), ["repeat(times=1)", "repeat(times=2)"]),
        (Sweep(repeat, mark=["?", "."], times=2), ["repeat(mark=?)", "repeat(mark=.)"]),
        (Sweep(lambda n: PerturbDocs(TFC1(n=n)), n=[3]), ["<lambda>(n=3)"]),
        (Sweep(lambda n: TFC1(n=n) | CaseFold(), n=[3]), ["<lambda>(n=3)"]),
        (
            Sweep(TFC1, n=[1, 2], position=["start", "end"]),
            [f"TFC1(n={n}, position={at})" for n in (1, 2) for at in ("start", "end")],
        ),
    ],
)
def test_a_sweep_has_a_stage_for_each_setting(sweep, names, frame):
    assert list(sweep) == names
    assert len(sweep) == len(names)
    assert repr(sweep) == f"Sweep({', '.join(names)})"
    for name, stage in sweep.items():
        assert sweep[name] is stage
        assert isinstance(stage, pt.Transformer)
        assert stage(frame)["text_perturbed"].notna().any()


def test_a_sweep_sets_what_it_is_told(frame):
    for sweep in (Sweep(TFC1, n=[1, 2], term="tides"), Sweep(TFC1("tides"), n=[1, 2])):
        assert {name: stage(frame)["text_perturbed"].iloc[-1] for name, stage in sweep.items()} == BESIDE
    out = Sweep(repeat, times=[2], mark="?")["repeat(times=2)"](frame)
    assert out["text_perturbed"].iloc[-1] == f"{TEXT} ocean tides ocean tides?"
    assert set(out["perturbation"]) == {"repeat"}
    queries = Sweep(lambda n: PerturbQueries(TFC1("tides", n=n)), n=[2])["<lambda>(n=2)"]
    assert queries(frame)["query_perturbed"].iloc[0] == "ocean tides tides tides"


def test_a_sweep_of_the_numbers_of_numpy():
    sweep = Sweep(TFC1("tides"), position=np.arange(0, 4, 2))
    assert list(sweep) == ["TFC1(position=0)", "TFC1(position=2)"]
    assert sweep["TFC1(position=0)"].perturbation(TEXT, QUERY) == f"tides {TEXT}"


def test_pipelines_go_into_an_experiment(frame):
    before = pt.Transformer.from_df(frame.assign(score=1.0, rank=range(len(frame))))
    scored = pt.apply.doc_score(lambda row: float(len(row["text_perturbed"])))
    sweep = Sweep(TFC1("tides"), n=[1, 2])
    pipelines = sweep.pipelines(before, scored)
    assert list(pipelines) == list(sweep)
    qrels = pd.DataFrame({"qid": ["1"], "docno": ["d5"], "label": [1]})
    topics = frame[["qid", "query"]].drop_duplicates()
    out = pt.Experiment(pipelines, topics, qrels, [RR])
    assert out["name"].tolist() == ["TFC1(n=1)", "TFC1(n=2)"]
    assert out["RR"].tolist() == [1.0, 1.0]
    assert sweep.pipelines() == dict(sweep)
    out = sweep.pipelines(before=before)["TFC1(n=2)"](topics)
    assert out["text_perturbed"].iloc[-1] == BESIDE["TFC1(n=2)"]


@pytest.mark.parametrize("settings", [{}, {"n": 2}, {"position": "end"}, {"n": []}])
def test_a_sweep_of_nothing_is_an_error(settings):
    with pytest.raises(ValueError, match="nothing to sweep"):
        Sweep(TFC1, **settings)


def test_what_makes_no_perturbation_or_has_no_such_setting_is_an_error():
    with pytest.raises(TypeError, match="should be a Perturbation"):
        Sweep(lambda n: 3, n=[1])
    with pytest.raises(ValueError, match="unknown setting of repeat 'colour'; choose one of 'mark', 'times'"):
        Sweep(repeat, colour=["red"])
    for made in (TFC1, TFC1()):
        with pytest.raises(TypeError, match="colour"):
            Sweep(made, colour=["red"])


def test_a_sweep_passes_the_options_of_its_stages(frame):
    idf = {"zzab": 1.0, "zzac": 1.1, "tides": 1.05}
    sweep = Sweep(TFC1("tides"), {"control": "random_term", "idf": idf}, n=[1, 2])
    assert list(sweep) == ["TFC1(n=1)", "TFC1(n=2)"]
    for n, stage in zip((1, 2), sweep.values(), strict=True):
        assert stage == PerturbDocs(TFC1("tides", n=n), control="random_term", idf=idf)


def test_a_corpus_is_no_setting_to_sweep():
    sweep = Sweep(TFC1("tides"), seed=[1, 2], position="end")
    assert len(sweep) == 2
    with pytest.raises(ValueError, match="nothing to sweep"):
        Sweep(TFC1, term=pd.Series(["tides"]))


class Forgetful(TFC1):
    def __init__(self, term=None, colour="red"):
        super().__init__(term)


def test_a_setting_that_is_not_kept_is_an_error():
    with pytest.raises(AttributeError, match="does not keep its setting 'colour'"):
        Forgetful().with_settings(term="tides")


@pytest.mark.parametrize(("settings", "error"), [({"term": 5}, TypeError), ({"n": True}, ValueError)])
def test_settings_of_another_kind_are_errors(settings, error):
    with pytest.raises(error, match=r"term should be a word|n is True"):
        TFC1(**settings)


def test_tfc1_adds_several_occurrences(bi_encoder):
    made = TFC1("tides", n=3)
    assert made(TEXT, QUERY) == f"{TEXT} tides tides tides"
    assert TFC1("tides", "start", n=3)(TEXT, QUERY) == f"tides tides tides {TEXT}"
    assert made.holds(TEXT, made(TEXT, QUERY), QUERY)
    assert not made.holds(TEXT, f"{TEXT} tides tides", QUERY)
    assert repr(made) == "TFC1(term='tides', n=3)"
    (pair,) = bi_encoder.align([QUERY], [TEXT], [made(TEXT, QUERY)], alignments=["fill"])
    assert [TOKEN_CLASSES[i] for i in pair.classes].count("EDIT") == 3
    with pytest.raises(ValueError, match="n is 0"):
        TFC1(n=0)


# Plain functions


def warm(baseline: str, perturbed: str, query: str) -> bool:
    return perturbed.count("warm") > baseline.count("warm")


@perturbation(alignment="mask", sign="+0", own_baseline=True, check=warm)
def warmed(text, query, by="warm", times=1):
    return (f"{text} day", f"{text} day{f' {by}' * times}") if query else None


def test_a_decorated_function_claims_what_it_is_told(frame):
    assert (warmed.alignment, warmed.sign, warmed.own_baseline) == ("mask", "+0", True)
    assert warmed.pair("a", "q") == ("a day", "a day warm", warmed)
    assert warmed.pair("a", "") is None
    assert warmed.holds("a day", "a day warm", "q")
    assert not warmed.holds("a day", "a day hot", "q")
    assert not warmed.holds("a day", "warm a", "q")
    out = PerturbDocs(warmed)(frame)
    assert list(out.columns[-5:]) == ["text_perturbed", "perturbation", "text_baseline", "alignment", "expected_sign"]
    assert out.iloc[-1, -4:].tolist() == ["warmed", f"{TEXT} day", "mask", "+0"]


def test_settings_make_another_of_the_same_name():
    twice = warmed.with_settings(times=2)
    assert twice("a", "q") == ("a day", "a day warm warm")
    assert (twice.name, repr(twice), repr(warmed)) == ("warmed", "warmed(times=2)", "warmed")
    assert (twice.alignment, twice.sign, twice.check) == ("mask", "+0", warm)
    assert twice == warmed.with_settings(times=2) != warmed
    assert hash(twice) == hash(warmed.with_settings(times=2))
    assert twice.with_settings(by="hot")("a", "q") == ("a day", "a day hot hot")
    assert warmed.with_settings(alignment="fill").alignment == "fill"
    with pytest.raises(ValueError, match="unknown setting of warmed 'text'; choose one of 'by', 'times'"):
        warmed.with_settings(text="b")


@perturbation(check=lambda baseline, perturbed, query: len(perturbed) > len(baseline))
def longer(text, by=1):
    return f"{text}{' day' * by}"


@pytest.mark.parametrize("made", [warmed, repeat, longer])
def test_decorated_functions_survive_pickling_with_their_settings(made):
    assert pickle.loads(pickle.dumps(made)) is made
    for settings in ({"alignment": "free"}, {"times": 2} if made is not longer else {"by": 2}):
        copy = made.with_settings(**settings)
        loaded = pickle.loads(pickle.dumps(copy))
        assert loaded == copy
        assert loaded.pair(TEXT, QUERY)[:2] == copy.pair(TEXT, QUERY)[:2]
    assert pickle.loads(pickle.dumps(PerturbDocs(made.with_settings() | CaseFold()))).perturbation.second == CaseFold()


@pytest.mark.parametrize(
    ("own_baseline", "value"),
    [
        *((False, value) for value in (3, b"text", ["text"], float("nan"), ("a", "b"))),
        *((True, value) for value in (3, ["a", "b"], ("a", None), (1, "b"), ("a",), ("a", "b", "c"), ())),
    ],
)
def test_what_is_no_text_is_an_error_that_says_what_is_wanted(own_baseline, value, frame):
    @perturbation(own_baseline=own_baseline)
    def wrong(text):
        return value

    wanted = r"\(baseline, perturbed\)" if own_baseline else "the perturbed text"
    for call in (lambda: wrong.pair(TEXT, QUERY), lambda: PerturbDocs(wrong)(frame)):
        with pytest.raises(TypeError, match=f"'wrong' gave .* it should give {wanted}"):
            call()


def test_a_query_that_may_be_left_out_is_passed():
    @perturbation
    def asked(text, query=None, times=1):
        return f"{text} {query}" * times

    assert asked.pair("a", "q").perturbed == "a q"
    assert asked.with_settings(times=2).pair("a", "q").perturbed == "a qa q"


def test_five_lines_of_ones_own_get_everything(bi_encoder, frame):
    @perturbation(sign="+")
    def louder(text, query, times=1):
        return f"{text} {' '.join([query] * times)}"

    out = (PerturbDocs(louder) >> PatchScorer(bi_encoder, "resid_pre", layers=[0]))(frame)
    np.testing.assert_allclose(np.stack(list(out["patch_effect"]))[:, 0], 1, atol=1e-2)
    (pair,) = bi_encoder.align(["ocean"], ["two ocean"], [louder("two ocean", "ocean")], alignments=[louder.alignment])
    assert [TOKEN_CLASSES[i] for i in pair.classes] == ["CLS", "OTHER", "D+", "EDIT", "SEP"]
    assert louder.holds(TEXT, louder(TEXT, QUERY), QUERY)
    assert not louder.holds(TEXT, "tides ocean", QUERY)
    assert list(Sweep(louder, times=[1, 2])) == ["louder(times=1)", "louder(times=2)"]
    assert (louder | Typos()).name == "louder|Typos"
