"""Whole pipelines: the embedded collection, pt.Experiment, ir_datasets, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import RR, nDCG
from small_models import QUERIES, TEXTS

from pyterrier_mechir import AggregateHeads, PatchScorer, PerturbDocs
from pyterrier_mechir.perturb import TDC, TFC1

pytestmark = pytest.mark.filterwarnings("ignore:.*documents are longer", "ignore:There are shared pipeline components")

AGGREGATED = [
    *["qid", "docno", "score", "rank", "component", "layer", "head", "n_pairs", "n_skipped", "mean_delta"],
    *["ci_low", "ci_high", "p_value", "p_adjusted"],
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab():
    return pt.get_dataset("mechir:lab")


@pytest.fixture(scope="module")
def index(lab, tmp_path_factory):
    pisa = pytest.importorskip("pyterrier_pisa")
    documents = list(lab.get_corpus_iter())
    made = pisa.PisaIndex(str(tmp_path_factory.mktemp("lab") / "index"), text_field="text").index(iter(documents))
    assert len(made) == len(documents)
    return made


@pytest.fixture(scope="module")
def bm25(index, lab):
    return (index.bm25(num_results=20) % 3) >> lab.text_loader("text")


# The lab collection


def test_the_lab_has_passages_of_some_length(lab):
    documents = list(lab.get_corpus_iter(verbose=False))
    assert len(documents) >= 300
    assert len({document["docno"] for document in documents}) == len(documents)
    assert {tuple(document) for document in documents} == {("docno", "text")}
    lengths = [len(document["text"].split()) for document in documents]
    assert (min(lengths) >= 40, max(lengths) <= 120) == (True, True)
    assert len({document["text"] for document in documents}) == len(documents)


def test_the_lab_has_graded_judgements_of_its_topics(lab):
    topics, qrels = lab.get_topics(), lab.get_qrels()
    assert list(topics.columns) == ["qid", "query"]
    assert list(qrels.columns) == ["qid", "docno", "label"]
    assert len(topics) >= 30
    assert topics["qid"].is_unique
    assert set(qrels["label"]) == {0, 1, 2, 3}
    assert set(qrels["qid"]) == set(topics["qid"])
    assert qrels.groupby("qid").size().min() >= 8
    assert not qrels.duplicated(["qid", "docno"]).any()
    assert set(qrels["docno"]) <= {document["docno"] for document in lab.get_corpus_iter()}
    assert (qrels.groupby("qid")["label"].max() == 3).all()


def test_the_lab_is_small():
    folder = files("pyterrier_mechir.collections") / "lab"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 1_000_000


def test_the_text_loader_of_the_lab(lab):
    document = next(iter(lab.get_corpus_iter()))
    given = pd.DataFrame({"qid": ["1"], "docno": [document["docno"]]}, index=[7])
    for loader in (
        lab.text_loader(),
        lab.text_loader("text"),
        lab.text_loader(["text"]),
        pt.text.get_text(lab, "text"),
    ):
        out = loader(given)
        assert out["text"].tolist() == [document["text"]]
        assert list(out.columns) == ["qid", "docno", "text"]
        assert list(loader(given.iloc[:0]).columns) == ["qid", "docno", "text"]
    assert list(given.columns) == ["qid", "docno"]
    assert lab.text_loader() == pt.get_dataset("mechir:lab").text_loader()


def test_the_text_loader_refuses_what_the_lab_does_not_have(lab):
    with pytest.raises(KeyError, match="no document 'nosuch'"):
        lab.text_loader()(pd.DataFrame({"docno": ["nosuch"]}))
    with pytest.raises(ValueError, match="one field, 'text'"):
        lab.text_loader("title")
    with pytest.raises(pt.validate.InputValidationError, match="docno"):
        lab.text_loader()(pd.DataFrame({"qid": ["1"]}))


def test_an_unknown_collection_is_an_error():
    with pytest.raises(KeyError, match="mechir:nosuch") as raised:
        pt.get_dataset("mechir:nosuch")
    assert "lab" in str(raised.value.__cause__)


# pt.Experiment


@pytest.mark.parametrize("plan", ["linear", "tree"])
def test_an_experiment_over_patched_rankings(lab, bm25, ranker, plan):
    topics = lab.get_topics().head(4)
    systems = [bm25, bm25 >> ranker.scorer(), bm25 >> PerturbDocs(TFC1()) >> PatchScorer(ranker)]
    names = ["BM25", "plain", "patched"]
    out = pt.Experiment(
        systems, topics, lab.get_qrels(), [nDCG @ 10, RR], names=names, validate="error", plan=plan
    ).set_index("name")
    assert list(out.index) == names
    assert np.isfinite(out[["nDCG@10", "RR"]].to_numpy(float)).all()
    assert out.loc["plain", "nDCG@10"] == out.loc["patched", "nDCG@10"] > 0
    assert out.loc["plain", "RR"] == out.loc["patched", "RR"]
    assert not pt.java.started()


def test_equal_stages_are_run_once_in_a_tree(lab, bm25, bi_encoder, monkeypatch):
    rows = []
    forward = bi_encoder.forward

    def counted(batch):
        rows.append(len(batch["input_ids"]))
        return forward(batch)

    monkeypatch.setattr(bi_encoder, "forward", counted)
    systems = [bm25 >> PerturbDocs(TFC1()) >> PatchScorer(bi_encoder) for _ in range(3)]
    systems = [systems[0], systems[1] % 2, systems[2] % 1]
    topics, n_rows = lab.get_topics().head(2), []
    for some in (systems[:1], systems):
        rows.clear()
        pt.Experiment(some, topics, lab.get_qrels(), [nDCG @ 10], names=list("abc")[: len(some)], plan="tree")
        n_rows.append(sum(rows))
    assert n_rows[1] == n_rows[0] > 0


def test_an_experiment_batch_by_batch_equals_one_at_once(lab, bm25, bi_encoder):
    topics, systems = lab.get_topics().head(3), [bm25 >> PatchScorer(bi_encoder)]
    measures = [nDCG @ 10, RR]
    at_once = pt.Experiment(systems, topics, lab.get_qrels(), measures, names=["patched"])
    batched = pt.Experiment(systems, topics, lab.get_qrels(), measures, names=["patched"], batch_size=1)
    pd.testing.assert_frame_equal(at_once[["nDCG@10", "RR"]], batched[["nDCG@10", "RR"]])


def test_a_pipeline_ends_in_ranked_components(lab, index, bm25, ranker):
    topics = lab.get_topics().head(3)
    out = (bm25 >> PerturbDocs(TDC(index)) >> PatchScorer(ranker) >> AggregateHeads())(topics)
    assert list(out.columns) == AGGREGATED
    assert list(dict.fromkeys(out["qid"])) == topics["qid"].tolist()
    assert (out.groupby("qid").size() == 12).all()
    for _, group in out.groupby("qid"):
        assert group["rank"].tolist() == list(range(12))
        assert group["score"].is_monotonic_decreasing
        assert set(group["docno"]) == {f"L{layer}H{head}" for layer in range(3) for head in range(4)}
    assert set(out["n_pairs"]) == {3}


def test_components_are_evaluated_against_components(lab, bm25, bi_encoder):
    topics = lab.get_topics().head(3)
    patched = (bm25 >> PatchScorer(bi_encoder))(topics)
    reference = AggregateHeads()(patched)
    qrels = reference.assign(label=(reference["rank"] < 3).astype(int))[["qid", "docno", "label"]]
    systems = [AggregateHeads(), AggregateHeads(estimator="mean_of_ratios")]
    runs = [system(patched) for system in systems]
    out = pt.Experiment(runs, topics, qrels, [nDCG @ 3], names=["same", "other"]).set_index("name")
    assert out.loc["same", "nDCG@3"] == pytest.approx(1.0)


def test_a_pipeline_can_be_inspected_and_drawn(bm25, bi_encoder):
    pipeline = bm25 >> PerturbDocs(TFC1()) >> PatchScorer(bi_encoder) >> AggregateHeads()
    assert pt.inspect.transformer_outputs(pipeline, ["qid", "query"]) == AGGREGATED
    assert "PatchScorer" in pt.schematic.draw(pipeline)


def test_a_pipeline_without_a_text_loader_says_so(index, lab, bi_encoder):
    with pytest.raises(pt.validate.InputValidationError, match="text_loader"):
        (index.bm25() >> PatchScorer(bi_encoder))(lab.get_topics().head(1))


def test_topics_without_results_are_legal(bm25, bi_encoder):
    topics = pd.DataFrame({"qid": ["1"], "query": ["xyzzy plugh"]})
    assert list((bm25 >> PatchScorer(bi_encoder) >> AggregateHeads())(topics).columns) == AGGREGATED


# ir_datasets


@pytest.fixture
def irds(tmp_path):
    documents, queries, qrels = (tmp_path / name for name in ("docs.tsv", "queries.tsv", "qrels.txt"))
    documents.write_text("".join(f"d{i}\t{text}\n" for i, text in enumerate(TEXTS)), encoding="utf-8")
    queries.write_text("".join(f"q{i}\t{query}\n" for i, query in enumerate(QUERIES)), encoding="utf-8")
    qrels.write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(len(QUERIES))), encoding="utf-8")
    name = "mechir-test-tsv"
    made = ir_datasets.create_dataset(docs_tsv=str(documents), queries_tsv=str(queries), qrels_trec=str(qrels))
    ir_datasets.registry.register(name, made)
    yield pt.get_dataset(f"irds:{name}")
    del ir_datasets.registry._registered[name]


@pytest.mark.filterwarnings("ignore:text_field not specified")
def test_a_dataset_of_ir_datasets_goes_through_the_same_pipeline(irds, ranker, tmp_path):
    pisa = pytest.importorskip("pyterrier_pisa")
    index = pisa.PisaIndex(str(tmp_path / "index"), text_field="text").index(irds.get_corpus_iter(verbose=False))
    first = (index.bm25(num_results=20) % 3) >> irds.text_loader("text")
    topics, qrels = irds.get_topics(), irds.get_qrels()
    systems = [first, first >> ranker.scorer(), first >> PerturbDocs(TFC1()) >> PatchScorer(ranker)]
    out = pt.Experiment(
        systems, topics, qrels, [nDCG @ 10, RR], names=["BM25", "plain", "patched"], validate="error"
    ).set_index("name")
    assert out.loc["plain", "nDCG@10"] == out.loc["patched", "nDCG@10"] > 0
    heads = (systems[2] >> AggregateHeads(by=None))(topics)
    assert len(heads) == 12
    assert heads["n_pairs"].min() >= len(topics)
    assert np.isfinite(heads["score"]).all()


# Importing

IMPORTS = """
import sys
import pyterrier_mechir
from pyterrier_mechir import AggregateHeads, BiEncoder, CrossEncoder, PatchScorer, PerturbDocs, plot_heads
from pyterrier_mechir.perturb import TDC, TFC1
import pyterrier as pt
assert not pt.java.started()
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "transformers", "matplotlib", "transformer_lens", "jnius", "pyterrier_pisa"}))
print(set(pyterrier_mechir.__all__) <= set(dir(pyterrier_mechir)))
"""


def test_an_import_loads_no_model_library_and_starts_no_java():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import pyterrier_mechir

    with pytest.raises(AttributeError, match="no attribute 'Nosuch'"):
        _ = pyterrier_mechir.Nosuch
