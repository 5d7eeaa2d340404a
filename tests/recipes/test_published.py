"""Published pairs and arrays are read as they are published, and give the published figures: on made-up files."""

import gzip

import numpy as np
import pytest
from lab_documents import lab_documents

from pyterrier_mechir import known_circuit, recipes
from pyterrier_mechir.recipes import published
from pyterrier_mechir.recipes.data import greatest
from pyterrier_mechir.results.frames import strongest_first
from pyterrier_mechir.text.encoding import EDIT, TOKEN_CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines("\t".join(map(str, row)) + "\n" for row in [header, *rows])


@pytest.fixture
def folder(tmp_path):
    """Files as the papers published them: a quotation mark and a missing score among them."""
    documents = lab_documents(6, (0, 1, 2, 3))
    rng = np.random.default_rng(0)
    header = ["qid", "docno", "query", "term", "text", "tasb_base", "tasb_append", "tasb_prepend"]
    rows = [
        (row.qid, row.docno, row.query, row.query.split()[-1], f'"{row.text}', 90.0, 94.0 + place % 2, 97.0)
        for place, row in enumerate(documents.itertuples())
    ]
    rows[0] = (*rows[0][:-1], "")
    write(tmp_path / "tfc1_axiomatic" / "tfc1_tasb.tsv.gz", header, rows)
    header = ["qid", "docno", "score_delta", "text", "perturbed_text", "query", "relevance"]
    rows = [
        (row.qid, row.docno, -place, row.text, f"{row.text} {row.query.split()[-1]}", row.query, row.label)
        for place, row in enumerate(documents.itertuples())
    ]
    stem = published.KINDS["bi"]
    write(tmp_path / "mechir_topk" / f"{stem}_TFC1_topk_4000.tsv.gz", header, rows)
    maps = rng.normal(size=(4, 3, 4)).astype(np.float32)
    arrays = tmp_path / "mechir_topk" / "patching"
    arrays.mkdir()
    for name, value in [("all", maps.mean(axis=0)), *((f"rel_{grade}", maps[grade]) for grade in range(4))]:
        np.save(arrays / f"{stem}_TFC1_4000_patch_head_{name}.npy", value)
    return tmp_path


def test_the_diagnostic_set_gives_the_changes_of_its_scores(folder):
    frame = published.tfc1(folder)
    assert len(frame) == 24 and frame["text"][0].startswith('"') and frame["qid"].map(type).eq(str).all()
    appended = published.changes(frame, frame["tasb_append"] - frame["tasb_base"]).iloc[0]
    assert appended["mean"] == pytest.approx(4.5) and appended["negative"] == 0 and appended["n_queries"] == 6
    prepended = published.changes(frame, frame["tasb_prepend"] - frame["tasb_base"]).iloc[0]
    assert prepended["n_pairs"] == 23 and prepended["mean"] == pytest.approx(7)


def test_pairs_by_grade_are_those_that_the_published_rule_keeps(folder):
    frame = published.topk(folder, "bi", "TFC1")
    kept = greatest(frame, "score_delta", 6)
    assert kept.groupby("label").size().tolist() == [6] * 4
    by_grade = published.changes(frame, frame["score_delta"], "label")
    assert by_grade["group"].tolist() == ["0", "1", "2", "3"]
    of_second = frame.loc[frame["label"] == 1, "score_delta"]
    assert by_grade["least"][1] == of_second.min() and by_grade["median"][1] == np.median(of_second)


def test_maps_over_all_grades_are_the_means_of_the_grades(folder):
    heads = published.maps(folder, "bi", "TFC1")
    wide = heads.pivot(index="docno", columns="qid", values="score")
    assert np.allclose(wide["all"], wide[["0", "1", "2", "3"]].mean(axis=1), atol=1e-6)
    whole = heads[heads["qid"] == "all"]
    assert strongest_first(whole)["docno"].head(2).tolist() == wide["all"].abs().nlargest(2).index.tolist()
    assert whole.loc[whole["docno"] == "L2H3", ["layer", "head"]].to_numpy().tolist() == [[2, 3]]


def blocks_of(frame, ranker, place, save):
    """An array of a pair, whose effects say their component, layer and class; ``save`` says where."""
    row = frame.iloc[place]
    pair = ranker.align([row["query"]], [row["text"]], [f"{row['text']} {row['term']}"], alignments=["fill"])[0]
    values = 100.0 * np.arange(3)[:, None, None] + 10.0 * np.arange(2)[:, None] + pair.classes + place
    values[0, 0, pair.classes != EDIT] = 0
    np.save(save / f"{row['qid']}_{row['docno']}_block.npy", values.astype(np.float32))
    return values, pair.classes


def test_block_arrays_are_binned_into_the_classes_of_their_pairs(folder, bi_encoder):
    frame = published.tfc1(folder)
    made = {place: blocks_of(frame, bi_encoder, place, folder / "tfc1_axiomatic")[1] for place in (1, 2)}
    found = published.blocks(folder, bi_encoder).set_index(["docno", "slot"])
    assert found["component"].unique().tolist() == list(published.BLOCK) and set(found["layer"]) == {0, 1}
    for slot in found.loc["L1.attn_out"].index:
        number = TOKEN_CLASSES.index(slot)
        with_class = [place for place, classes in made.items() if number in classes]
        expected = 110 + number + np.mean(with_class)
        row = found.loc["L1.attn_out", slot]
        assert row["score"] == pytest.approx(expected) and row["n_pairs"] == len(with_class)
    assert found.loc["L0.resid_pre", "EDIT"]["score"] == pytest.approx(EDIT + 1.5)
    assert found.loc["L0.resid_pre", "CLS"]["score"] == 0


def test_block_arrays_that_are_not_of_their_pairs_are_refused(folder, bi_encoder):
    frame, place = published.tfc1(folder), folder / "tfc1_axiomatic"
    with pytest.raises(ValueError, match=r"has no files '\*_block.npy'"):
        published.blocks(folder, bi_encoder)
    values, classes = blocks_of(frame, bi_encoder, 1, place)
    file = next(place.glob("*_block.npy"))
    np.save(file, values[..., 1:])
    with pytest.raises(ValueError, match=f"has {len(classes)} positions"):
        published.blocks(folder, bi_encoder)
    values[0, 0, 0] = 0.5
    np.save(file, values)
    with pytest.raises(ValueError, match="sees no edit"):
        published.blocks(folder, bi_encoder)
    file.rename(place / "none_such_block.npy")
    with pytest.raises(ValueError, match="the table has no pair"):
        published.blocks(folder, bi_encoder)


def test_recipes_run_on_published_pairs_and_set_their_figures_beside_ours(folder):
    ranker = known_circuit().ranker
    result = recipes.chen24_tfc1(ranker, published=folder, n_heads=1)
    table = result.table().set_index("figure")
    assert table.loc["mean change of TAS-B's scores in the published file", "ours"] == pytest.approx(4.5)
    assert set(result["pairs"]["term"]) == set(published.tfc1(folder)["term"])
    result = recipes.mechir25(ranker, published=folder, per_grade=4)
    assert len(result["pairs"]) == 16 and len(result["published_heads"]) == 5 * 12
    assert list(result["agreement"]["measure"]) == ["spearman", "overlap@5"]
    assert result.findings[0].startswith("In the 16 pairs that were kept for the published change, the edit")
    assert "in all" not in result.findings[0] and not result.table()["figure"].str.contains("all pairs").any()


def test_files_that_are_missing_or_lack_a_column_are_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="has 0 files 'tfc1_tasb"):
        published.tfc1(tmp_path / "mechir_topk")
    with pytest.raises(ValueError, match="unknown kind 'late'"):
        published.topk(folder, "late", "TFC1")
    with pytest.raises(ValueError, match="has 0 files"):
        published.maps(folder, "cross", "TFC1")
    write(folder / "tfc1_axiomatic" / "tfc1_tasb.tsv.gz", ["qid", "docno"], [("1", "2")])
    with pytest.raises(Exception, match="query"):
        published.tfc1(folder)
