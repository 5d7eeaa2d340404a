"""Laws of patching that hold for any text and any architecture."""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_models import ARCHITECTURES, TEXTS, build
from tolerance import widened

from pyterrier_mechir import BiEncoder, CrossEncoder
from pyterrier_mechir.models.components import COMPONENTS
from pyterrier_mechir.models.sites import Site, select_sites
from pyterrier_mechir.patching.outcome import SweepResult
from pyterrier_mechir.patching.plan import Plan
from pyterrier_mechir.patching.sweep import sweep
from pyterrier_mechir.rankers.base import Ranker
from pyterrier_mechir.text.sequences import unique

WORDS = sorted(set(re.findall(r"\w+", " ".join(TEXTS))))

some_words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
document = st.lists(st.sampled_from(WORDS), max_size=30)

few = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

each_ranker = pytest.mark.parametrize(
    ("architecture", "kind"),
    [(architecture, kind) for architecture in ARCHITECTURES for kind in ("cls dot", "mean cosine", "cross")],
)

_N_NEURONS = 12
"""Few, since each is a site, and all have the same place in their layer."""

pytestmark = pytest.mark.usefixtures("one_thread")


class Texts(NamedTuple):
    query: str
    baseline: str
    perturbed: str


@st.composite
def perturbations(draw: st.DrawFn) -> Texts:
    """A query, a document, and the document with a few words put in somewhere."""
    query, words, inserted = draw(some_words), draw(document), draw(some_words)
    at = draw(st.integers(0, len(words)))
    return Texts(" ".join(query), " ".join(words), " ".join([*words[:at], *inserted, *words[at:]]))


several = st.lists(perturbations(), min_size=2, max_size=4)


@cache
def ranker(architecture: str, kind: str) -> Ranker:
    model = build(architecture, classifier=kind == "cross", intermediate_size=_N_NEURONS)
    if kind == "cross":
        return CrossEncoder(model)
    pooling, similarity = kind.split()
    return BiEncoder(model, pooling=pooling, similarity=similarity)


def patch(
    ranker: Ranker, texts: list[Texts], batch_size: int | None = None, sites: tuple[Site, ...] | None = None
) -> SweepResult:
    queries, baselines, perturbed = zip(*texts, strict=True)
    pairs = ranker.align(queries, baselines, perturbed, alignments=["fill"] * len(texts))
    had = [component for component, activation in COMPONENTS.items() if activation not in ranker.anatomy.lacks]
    sites = sites or select_sites(had, ranker.anatomy).sites
    return sweep(ranker, pairs, ranker.query_inputs(unique(queries)[0]), Plan(sites, "both", batch_size))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=widened(1e-5), atol=widened(5e-5))


def assert_same_results(found: SweepResult, expected: list[SweepResult]) -> None:
    for name in ("baseline", "perturbed", "denoise", "noise"):
        assert_close(getattr(found, name), np.concatenate([getattr(result, name) for result in expected]))


@each_ranker
@few
@given(texts=several)
def test_patching_a_run_into_itself_is_a_no_op(architecture, kind, texts):
    same = [Texts(query, perturbed, perturbed) for query, _, perturbed in texts]
    result = patch(ranker(architecture, kind), same, batch_size=len(same))
    scores = ranker(architecture, kind).score([t.query for t in same], [t.baseline for t in same])
    for scored in (result.baseline, result.perturbed):
        assert_close(scored, scores)
    for patched in (result.denoise, result.noise):
        assert_close(patched, np.broadcast_to(scores[:, None], patched.shape))


@each_ranker
@few
@given(texts=several)
def test_patching_the_input_of_the_first_layer_gives_the_score_of_the_source(architecture, kind, texts):
    result = patch(ranker(architecture, kind), texts, batch_size=len(texts), sites=(Site("resid_pre", 0),))
    assert_close(result.denoise[:, 0], result.perturbed)
    assert_close(result.noise[:, 0], result.baseline)


@each_ranker
@few
@given(texts=several, batch_size=st.sampled_from([None, 2, 4]))
def test_a_batch_gives_what_its_pairs_give_one_by_one(architecture, kind, texts, batch_size):
    model = ranker(architecture, kind)
    assert_same_results(patch(model, texts, batch_size), [patch(model, [text]) for text in texts])


@each_ranker
@few
@given(text=perturbations(), longer=st.lists(st.sampled_from(WORDS), min_size=40, max_size=40))
def test_padding_changes_nothing(architecture, kind, text, longer):
    model = ranker(architecture, kind)
    neighbour = Texts("tides", " ".join(longer), " ".join([*longer, "tides"]))
    padded, alone = patch(model, [text, neighbour], batch_size=2), patch(model, [text], batch_size=1)
    for name in ("baseline", "perturbed", "denoise", "noise"):
        assert_close(getattr(padded, name)[:1], getattr(alone, name))


@each_ranker
@few
@given(texts=several, data=st.data())
def test_the_order_of_pairs_changes_nothing(architecture, kind, texts, data):
    model = ranker(architecture, kind)
    order = data.draw(st.permutations(range(len(texts))))
    found, expected = patch(model, [texts[i] for i in order]), patch(model, texts)
    for name in ("baseline", "perturbed", "denoise", "noise"):
        assert_close(getattr(found, name), getattr(expected, name)[list(order)])


@each_ranker
@few
@given(texts=several, batch_size=st.sampled_from([None, 1, 2, 8]))
def test_scores_do_not_depend_on_the_batch(architecture, kind, texts, batch_size):
    model = ranker(architecture, kind)
    queries, documents, _ = zip(*texts, strict=True)
    together = model.score([*queries, *queries], [*documents, *documents], batch_size=batch_size)
    one_by_one = [model.score([query], [text])[0] for query, text in zip(queries, documents, strict=True)]
    assert_close(together, np.array([*one_by_one, *one_by_one]))


@each_ranker
@few
@given(query=some_words, words=document)
def test_a_side_without_an_insertion_keeps_the_score_of_its_text(architecture, kind, query, words):
    text = Texts(" ".join(query), " ".join(words), " ".join([*words, *query]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = patch(ranker(architecture, kind), [text], sites=(Site("resid_pre", 0),))
    assert_close(result.perturbed, ranker(architecture, kind).score([text.query], [text.perturbed]))
