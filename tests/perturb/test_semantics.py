"""Words that are similar to a query term: where they come from, and what is made of them."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import build

from pyterrier_mechir import BiEncoder, CrossEncoder, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import DIV, STMC1, STMC2, STMC3, Synonym, WordNet
from pyterrier_mechir.text.similar import Similar

pytestmark = pytest.mark.usefixtures("one_thread")

SIMILAR = {"tides": ["currents", "waves"], "ocean": ["sea"], "neap": "ebb", "moon": ["satellite", "luna"]}
EACH = [STMC1, STMC2, STMC3, Synonym, DIV]
MADE = [*(made(SIMILAR) for made in EACH), STMC1(SIMILAR, "start", n=2), STMC2(SIMILAR, 3, "random"), STMC3(SIMILAR, 1)]


def outcomes(made, text: str, query: str, **settings: object) -> set:
    return {made(SIMILAR, seed=seed, **settings)(text, query) for seed in range(60)}


@pytest.mark.parametrize(
    ("made", "settings", "text", "query", "expected"),
    [
        (STMC1, {}, "High.", "Tides", {"High. currents"}),
        (STMC1, {"position": "start", "n": 2}, "High.", "tides", {"currents currents High."}),
        (STMC1, {"position": 1}, "a, b", "tides ocean", {"a, currents b", "a, sea b"}),
        (STMC1, {"position": 3}, "a, b", "tides", {None}),
        (STMC1, {}, "", "ocean", {"sea"}),
        (STMC1, {}, "The Currents", "tides", {"The Currents waves"}),
        (STMC1, {}, "The Currents, WAVES", "tides", {None}),
        (STMC1, {}, "a", "tides and currents", {"a waves"}),
        (STMC1, {}, "a", "zebra, the 月", {None}),
        (STMC1, {}, "a", "", {None}),
        (STMC2, {}, "a.", "Tides", {("a. currents", "a. Tides")}),
        (STMC2, {"n": 3, "position": "start"}, "a", "neap", {("ebb ebb ebb a", "neap a")}),
        (STMC2, {}, "a", "ocean neap", {("a sea", "a ocean"), ("a ebb", "a neap")}),
        (STMC2, {"position": "random"}, "a", "neap", {("ebb a", "neap a"), ("a ebb", "a neap")}),
        (STMC2, {}, "", "neap", {("ebb", "neap")}),
        (STMC2, {}, "ebb", "neap", {None}),
        (STMC2, {"position": 2}, "a", "neap", {None}),
        (STMC3, {}, "Tides rise", "neap tides", {("Tides rise tides", "Tides rise ebb")}),
        (STMC3, {"position": 0}, "moon", "Moon, neap ocean", {("Moon moon", "ebb moon"), ("Moon moon", "sea moon")}),
        (STMC3, {}, "Neap tides", "neap tides", {None}),
        (STMC3, {}, "rise", "neap tides", {None}),
        (STMC3, {}, "tides", "zebra tides", {None}),
        (STMC3, {}, "tides ebb", "neap tides", {None}),
        (STMC3, {}, "", "neap tides", {None}),
        (Synonym, {}, "The tides, TIDES: tides-like", "tides", {"The currents, CURRENTS: tides-like"}),
        (Synonym, {}, "Tides of the ocean", "ocean tides", {"Currents of the ocean", "Tides of the sea"}),
        (Synonym, {}, "Tides, currents", "tides", {"Waves, currents"}),
        (Synonym, {}, "The zebra", "zebra tides", {None}),
        (Synonym, {}, "", "tides", {None}),
        (Synonym, {}, "tides", "", {None}),
        (DIV, {}, "Moon and tides", "moon", {"Satellite and tides"}),
    ],
)
def test_a_text_becomes(made, settings, text, query, expected):
    assert outcomes(made, text, query, **settings) == expected


def test_a_query_is_its_own_text():
    assert Synonym(SIMILAR)("high Tides", "high Tides") == "high Currents"


@pytest.mark.parametrize("made", EACH)
def test_every_use_says_that_no_similar_words_are_known(made):
    name = made.__name__
    message = rf"{name}\(\) has no similar words: write {name}\(similar=ranker\) .*, or .* a mapping .*, or WordNet\(\)"
    for unbound in (made(), pickle.loads(pickle.dumps(made(seed=2)))):
        with pytest.raises(ValueError, match=message):
            unbound("the tides", "neap tides")
    frame = pd.DataFrame([{"qid": "1", "query": "neap tides", "docno": "d", "text": "The tides."}])
    with pytest.raises(ValueError, match=message):
        PerturbDocs(made())(frame)


@pytest.mark.parametrize("source", [3, "tides", object(), ["tides"]])
def test_similar_words_of_another_kind_are_an_error(source):
    with pytest.raises(TypeError, match="a mapping, a function, a ranker or WordNet"):
        Synonym(source)


@pytest.mark.parametrize("made", [STMC1, STMC2, STMC3])
def test_an_unusable_option_is_an_error(made):
    with pytest.raises(ValueError, match="'beside' is next to the same term"):
        made(SIMILAR, position="beside")
    with pytest.raises(ValueError, match="unknown position 'middle'"):
        made(SIMILAR, position="middle")
    if made is not STMC3:
        with pytest.raises(ValueError, match="n is 0; give at least 1"):
            made(SIMILAR, n=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tide", "tidesman", "Tides", "flow"], "flow"),
        (["spring tide", "ebb and flow", "flow"], "flow"),
        (["", "U.S.A.", "a/b", "?", "flow"], "flow"),
        (["ebb-and-flow"], "ebb-and-flow"),
        ("flow", "flow"),
        ([], None),
        ("tide", None),
    ],
)
def test_a_similar_word_is_one_word_and_no_other_form_of_the_term(words, expected):
    pair = Synonym({"tides": words}).pair("The tides", "tides")
    assert (pair and pair.perturbed) == (expected and f"The {expected}")
    assert pair is None or Synonym({"tides": words}).holds(*pair[:2], "tides")


def test_a_function_gives_one_word_or_several():
    def several(term: str) -> list[str]:
        return [term[::-1], "flow"]

    assert Synonym(several)("The Tides", "TIDES") == "The Sedit"
    assert Synonym(lambda term: "flow")("The tides", "tides") == "The flow"
    assert Synonym(lambda term: ())("The tides", "tides") is None
    assert (Synonym(several), repr(Synonym(several))) == (Synonym(several), "Synonym(similar=several)")
    assert Synonym(several) != Synonym(SIMILAR)


DIRECTIONS = {
    "tides": {"x": 1.0},
    "ocean": {"x": 0.8, "y": 0.6},
    "moon": {"x": 50.0, "y": 50.0},
    "rome": {"x": -1.0},
    "inse": {"y": 1.0, "z": 0.1},
    "##cts": {"z": 1.0},
    "stone": {"y": 1.0, "z": 1.0},
    "heat": {"w": 1.0},
    "heats": {"w": 2.0},
    "warm": {"w": 1.0, "x": 0.5},
    "[UNK]": {"v": 1.0},
    "bread": {"v": 1.0},
}


def by_hand(kind=BiEncoder):
    """A ranker in whose embedding table only the words above are something."""
    ranker = kind(build("bert", classifier=kind is CrossEncoder))
    table = ranker.model.get_input_embeddings().weight
    with torch.no_grad():
        table.zero_()
        for token, vector in DIRECTIONS.items():
            for axis, value in vector.items():
                table[ranker.tokenizer.convert_tokens_to_ids(token), "xyzwv".index(axis)] = value
    return ranker


@pytest.fixture(scope="module")
def ranker():
    return by_hand()


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        pytest.param("tides", ["ocean", "moon"], id="by cosine, not by dot product"),
        pytest.param("TIDES", ["ocean", "moon"], id="whatever the case"),
        pytest.param("heat", ["warm"], id="no other form of the term"),
        pytest.param("insects", ["stone"], id="the mean of the pieces, and not the first piece"),
    ],
)
@pytest.mark.parametrize("kind", [BiEncoder, CrossEncoder])
def test_the_nearest_words_in_the_embedding_table(kind, term, expected):
    found = Similar.of(by_hand(kind))(term)
    assert list(found[: len(expected)]) == expected
    assert len(found) == 10


def test_neighbours_are_those_of_a_plain_search(bi_encoder):
    table = bi_encoder.model.get_input_embeddings().weight.detach().numpy()
    vocabulary = {token: i for token, i in bi_encoder.tokenizer.get_vocab().items() if re.fullmatch("[a-z]{3,}", token)}
    for term in ("tides", "night", "bridge"):
        vector = table[bi_encoder.tokenizer(term, add_special_tokens=False)["input_ids"]].mean(axis=0)
        cosine = {w: table[i] @ vector / np.linalg.norm(table[i]) for w, i in vocabulary.items()}
        others = [w for w in vocabulary if not w.startswith(term) and not term.startswith(w)]
        assert list(Similar.of(bi_encoder)(term)) == sorted(others, key=lambda w: -cosine[w])[:10]


@pytest.mark.parametrize("term", ["月", "", "über月"])
def test_a_term_that_the_tokenizer_does_not_know_has_no_neighbours(ranker, term):
    assert list(Similar.of(ranker)(term)) == []


def test_without_similar_words_those_of_the_ranker_are_taken(ranker):
    for made in EACH:
        assert made().bind(ranker) == made(ranker) != made()
        assert made(SIMILAR).bind(ranker) == made(SIMILAR)
        assert made(ranker).bind(by_hand()) == made(ranker)
    bound = STMC2(n=2, position="start", seed=3).bind(ranker)
    assert bound == STMC2(ranker, 2, "start", 3)
    assert bound("a", "tides") == ("ocean ocean a", "tides a")


def test_patch_scorer_binds_its_own_ranker(bi_encoder):
    frame = pd.DataFrame([{"qid": "1", "query": "tides", "docno": "d", "text": "Tides in the ocean."}])
    for made in (STMC1, Synonym):
        of_scorer = PatchScorer(bi_encoder, layers=[0], perturbation=made())(frame)
        assert of_scorer["text_perturbed"].tolist() == [made(bi_encoder)(*frame.loc[0, ["text", "query"]])]
        assert np.isfinite(of_scorer["score_perturbed"]).all()


LEXICON = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
<Lexicon id="tiny" label="Tiny" language="en" email="tiny@example.org" license="https://example.org" version="1">
{entries}
<Synset id="tiny-flow" ili="" partOfSpeech="n">
  <SynsetRelation relType="hypernym" target="tiny-motion"/><SynsetRelation relType="hyponym" target="tiny-neap"/>
</Synset>
<Synset id="tiny-motion" ili="" partOfSpeech="n"/>
<Synset id="tiny-neap" ili="" partOfSpeech="n"/>
</Lexicon></LexicalResource>"""
SYNSETS = {"flow": ["tide", "tidal flow", "flow", "Ebb"], "motion": ["motion"], "neap": ["neap tide", "neap"]}


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    wn = pytest.importorskip("wn")
    folder = tmp_path_factory.mktemp("wordnet")
    entries = [
        f'<LexicalEntry id="tiny-{synset}{i}"><Lemma writtenForm="{form}" partOfSpeech="n"/>'
        f'<Sense id="tiny-{synset}{i}-s" synset="tiny-{synset}"/></LexicalEntry>'
        for synset, forms in SYNSETS.items()
        for i, form in enumerate(forms)
    ]
    (folder / "tiny.xml").write_text(LEXICON.format(entries="\n".join(entries)), encoding="utf-8")
    before = wn.config.database_path.parent
    wn.config.data_directory = folder / "data"
    wn.add(folder / "tiny.xml", progress_handler=None)
    yield WordNet("tiny:1")
    wn.config.data_directory = before


def test_wordnet_has_synonyms_then_hypernyms_and_hyponyms(wordnet):
    assert list(wordnet("tide")) == ["flow", "Ebb", "motion", "neap"]
    assert list(wordnet("TIDE")) == list(wordnet("tide"))
    assert list(wordnet("zebra")) == []
    assert Synonym(wordnet)("The tide, the flow", "tide") == "The Ebb, the flow"
    assert STMC1(wordnet)("The ebb", "tide") == "The ebb flow"


def test_wordnet_finds_the_base_form_of_an_inflected_term(wordnet):
    assert list(wordnet("tides")) == ["flow", "Ebb", "motion", "neap"]


def test_wordnets_of_one_lexicon_are_equal(wordnet):
    same = pickle.loads(pickle.dumps(STMC1(wordnet)))
    assert (same, hash(same), repr(same)) == (STMC1(wordnet), hash(STMC1(wordnet)), "STMC1(similar=WordNet('tiny:1'))")
    assert same("a", "tide") == "a flow"


@pytest.mark.parametrize("lexicon", ["oewn:2024", "tiny:2", "nothing"])
def test_a_lexicon_that_is_not_here_is_an_error_that_says_how_to_get_it(wordnet, lexicon):
    with pytest.raises(ValueError, match=f"python -m wn download {lexicon}"):
        WordNet(lexicon)


def test_wordnet_without_its_library_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wn", None)
    with pytest.raises(ImportError, match=r'pip install "pyterrier-mechir\[wordnet\]"'):
        WordNet()


WORDS = ["Tides", "tides,", "ocean.", "sea", "neap", "the", "Moon", "luna!", "3.5", "can't", "月"]
text = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
some = settings(max_examples=150, deadline=None, derandomize=True)


def counts(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+(?:['-]\w+)*", text.lower()))


@some
@given(text, text, st.integers(0, 5))
def test_what_is_made_is_what_is_claimed(text, query, seed):
    asked, before = counts(query), counts(text)
    for one in MADE:
        made = one.with_settings(seed=seed)
        pair = made.pair(text, query)
        if pair is None:
            continue
        assert made.holds(*pair[:2], query), made
        added, gone = counts(pair.perturbed) - counts(pair.baseline), counts(pair.baseline) - counts(pair.perturbed)
        similar = gone if isinstance(made, STMC2) else added
        (word,) = similar
        assert word not in asked
        assert word not in before
        assert any(word in SIMILAR.get(term, ()) for term in asked)
        if isinstance(made, Synonym):
            ((term, n),) = gone.items()
            assert n == before[term] == added[word]
            similar = [SIMILAR[term]] if isinstance(SIMILAR[term], str) else SIMILAR[term]
            assert word == next(word for word in similar if not asked[word] and not before[word])
        else:
            assert similar[word] == getattr(made, "n", 1)
            assert counts(pair.baseline) >= before if made.own_baseline else pair.baseline == text


@pytest.mark.parametrize(
    ("made", "query", "baseline", "perturbed"),
    [
        (STMC1, "tides", "a b", "a b c"),
        (STMC1, "tides", "a b", "a b currents currents"),
        (STMC1, "tides", "a b", "a c currents"),
        (STMC1, "tides", "a b", "b a currents"),
        (STMC1, "tides", "a b", "a b tides"),
        (STMC1, "tides currents", "a b", "a b currents"),
        (STMC1, "tides", "a currents", "a currents currents"),
        (STMC2, "tides", "a currents currents", "a tides"),
        (STMC2, "tides", "a sea", "a tides"),
        (STMC2, "tides", "a tides", "a currents"),
        (STMC2, "tides", "a b currents", "b a tides"),
        (STMC3, "neap tides", "tides", "ebb"),
        (STMC3, "neap tides", "tides tides", "tides currents"),
        (STMC3, "neap tides", "a tides tides", "ebb tides a"),
        (STMC3, "neap tides", "a tides tides", "b tides ebb"),
        (Synonym, "tides", "a tides tides", "a currents tides"),
        (Synonym, "tides", "a tides", "b currents"),
        (Synonym, "tides", "a tides", "currents a"),
        (Synonym, "tides", "a tides", "a sea"),
        (Synonym, "tides", "currents tides", "currents currents"),
        (Synonym, "tides", "a ocean", "a sea"),
        (DIV, "tides", "a tides", "a tides currents"),
    ],
)
def test_a_pair_beside_the_claim_does_not_hold(made, query, baseline, perturbed):
    assert not made(SIMILAR).holds(baseline, perturbed, query)
    assert not made(SIMILAR).holds(perturbed, perturbed, query)


TEXTS = [f"{a} of the {b}." for a in ("Tides", "Moon", "Neap") for b in ("ocean", "moon", "tides")]


def drawn() -> list:
    return [made(text, "neap tides ocean moon") for made in MADE for text in TEXTS]


def test_rows_are_perturbed_alike_in_every_order_and_process():
    assert [made(text, "neap tides ocean moon") for made in MADE[::-1] for text in TEXTS[::-1]][::-1] == drawn()
    program = "import sys, pickle, test_semantics; sys.stdout.buffer.write(pickle.dumps(test_semantics.drawn()))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert pickle.loads(done.stdout) == drawn()


def test_equal_settings_are_equal(ranker):
    for one in [*MADE, STMC1(ranker), Synonym(ranker), STMC3()]:
        same = pickle.loads(pickle.dumps(one))
        assert hash(one) == hash(one.with_settings())
        assert one == one.with_settings()
        assert repr(same) == repr(one)
    assert pickle.loads(pickle.dumps(MADE)) == MADE
    assert len({*MADE, STMC1(dict(SIMILAR)), STMC1({}), Synonym(ranker), Synonym(by_hand())}) == len(MADE) + 3
    assert Synonym(SIMILAR) != DIV(SIMILAR)


@pytest.mark.parametrize("made", EACH)
def test_reprs_name_what_differs_from_the_default(made, ranker):
    assert repr(made()) == f"{made.__name__}()"
    assert repr(made(SIMILAR, seed=1)) == f"{made.__name__}(similar={{4 terms}}, seed=1)"
    assert repr(made(ranker)) == f"{made.__name__}(similar=BiEncoder('BertModel'))"


@pytest.mark.parametrize(("term", "form"), [("run", "ran"), ("city", "cities"), ("mice", "mouse"), ("tide", "tides")])
def test_an_inflection_is_no_similar_word(term, form):
    assert Synonym({term: form})(f"the {term}", term) is None
    assert Synonym({term: [form, "other"]})(f"the {term}", term) == "the other"
