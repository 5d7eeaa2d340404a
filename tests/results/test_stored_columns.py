"""What is stored comes back as it was, whatever a column holds, or is refused before a pair is scored."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_models import QUERIES, TEXTS

from pyterrier_mechir import PairScorer, PatchResults, PerturbDocs
from pyterrier_mechir.perturb import TFC1
from pyterrier_mechir.results.stored.tables import to_frame, to_table
from pyterrier_mechir.run import run_sweep

pytestmark = pytest.mark.usefixtures("one_thread")

N = 4
NAN = float("nan")

CELLS = {
    "texts": ["a", "", "b\x00", "\N{SNOWMAN}"],
    "texts, some missing": ["a", None, NAN, pd.NA],
    "lone surrogates": ["a\ud800", "\ud83d\ude00", "b", "\udfff"],
    "kinds among another": ["a", 1, 2.5, True],
    "truth or nothing": [True, None, False, None],
    "numbers": [0.0, -0.0, NAN, None],
    "numbers without end": [float("inf"), -float("inf"), NAN, 1.5],
    "great integers": [2**70, -(2**70), 2**63, 0],
    "bytes": [b"", b"\xff\x00", b"a", None],
    "numbers of numpy": [np.float32(0.1), np.int8(3), np.str_("a"), np.datetime64("2024-01-01")],
    "lists": [[1, 2], [], [3], None],
    "lists of two kinds": [[1, 2.0], [True, None], [[]], ["a"]],
    "lists of texts": [["a", None], [], ["\ud800"], ["b"]],
    "tuples": [(1, (2, "a")), (), (None,), (NAN,)],
    "sets": [{1, "a"}, set(), frozenset({2}), {(1, 2)}],
    "mappings": [{"a": 1}, {"b": [2]}, {}, {"c": {"d": None}}],
    "mappings that look like types": [{"$tuple": [1]}, {"$x": 1}, {1: 2}, {None: {"$dict": []}}],
    "dates and decimals": [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 2, 3), Decimal("1.00"), pd.NaT],
    "vectors": [np.arange(n, dtype=np.int64) for n in range(N)],
    "vectors and nothing": [np.float32([0, -0.0]), None, np.float32([NAN, 1]), None],
    "vectors of two types": [np.zeros(2), np.zeros(2, np.float32), np.zeros(2, ">f8"), np.zeros(2, np.float16)],
    "matrices": [np.arange(6.0).reshape(2, 3) + n for n in range(N)],
    "empty matrices": [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((0, 0)), np.zeros((1, 1))],
    "arrays of no axis": [np.array(1.5)] * N,
    "arrays of texts": [np.array(["a", None], dtype=object), np.array([], dtype=object)] * 2,
    "arrays of anything": [np.array([{"a": 1}, (2,)], dtype=object), np.array(["ab", "c"]), np.array([1j]), None],
    "nothing": [None] * N,
}


def alike(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        same = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and (
            alike(one.tolist(), other.tolist()) if one.dtype == object else one.tobytes() == other.tobytes()
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return alike(list(one.items()), list(other.items()))
    if one is pd.NA or one is pd.NaT or one != one:
        return one is other or (other is not pd.NA and one != one and other != other)
    return one == other and repr(one) == repr(other) if isinstance(one, float) else one == other


def again(frame, **options):
    """A frame as a file gives it back."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(frame, **options), sink)
    return to_frame(pq.read_table(pa.BufferReader(sink.getvalue())))


def column(values):
    return pd.DataFrame({"qid": ["q"] * N}).assign(extra=pd.Series(values, dtype=object))


@pytest.mark.parametrize("as_parts", [False, True])
@pytest.mark.parametrize("cells", CELLS)
def test_cells_come_back_as_they_were(cells, as_parts):
    frame = column(CELLS[cells])
    frame.attrs = {"note": CELLS[cells], 1: (2,)}
    read = again(frame, as_parts=as_parts)
    assert list(read.columns) == ["qid", "extra"] and read["extra"].dtype == object
    assert alike(read["extra"].tolist(), CELLS[cells])
    assert alike(read.attrs, frame.attrs)


TYPES = ["float16", "uint64", "Int64", "Float32", "boolean", "category", "string", "datetime64[ns]", "timedelta64[ns]"]


@pytest.mark.parametrize("dtype", [*TYPES, "int64[pyarrow]", "datetime64[ns, Europe/Berlin]"])
def test_types_come_back_as_they_were(dtype):
    values = [1, 2, 3, 4] if dtype in ("float16", "uint64", "timedelta64[ns]") else [1, None, 3, 4]
    values = [None if one is None else bool(one) for one in values] if dtype == "boolean" else values
    values = [None if one is None else str(one) for one in values] if dtype in ("string", "category") else values
    frame = pd.DataFrame({"extra": pd.Series(values, dtype=dtype)})
    pd.testing.assert_frame_equal(again(frame), frame)


REFUSED = {
    "objects of users": lambda: column([object()] * N),
    "one Timestamp among texts": lambda: column(["a", "b", "c", pd.Timestamp("2024-01-01")]),
    "a list in itself": lambda: column([_endless()] * N),
    "complex numbers": lambda: column([None] * N).assign(extra=np.arange(N) * 1j),
    "seconds": lambda: column([None] * N).assign(extra=np.arange(N).astype("datetime64[s]")),
    "sparse numbers": lambda: column([None] * N).assign(extra=pd.arrays.SparseArray([0, 0, 1, 0])),
}


def _endless():
    made = []
    made.append(made)
    return made


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_come_back_is_refused_by_name(what):
    with pytest.raises(ValueError, match="column 'extra'") as caught:
        to_table(REFUSED[what]())
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_names_come_back_as_they_were():
    frame = pd.DataFrame([range(5)], columns=[7, "7x", (1, "a"), None, "\ud800"])
    read = again(frame)
    assert list(read.columns) == list(frame.columns) and read.iloc[0].tolist() == [0, 1, 2, 3, 4]
    assert list(to_frame(to_table(frame), [(1, "a"), 7]).columns) == [(1, "a"), 7]
    odd = pd.DataFrame([[1, 2]], columns=pd.Index(["a", "\udfff"], dtype=object))
    assert list(again(odd).columns) == ["a", "\udfff"]
    with pytest.raises(ValueError, match="columns '7' and 7 would have one name"):
        to_table(pd.DataFrame([[1, 2]], columns=["7", 7]))
    with pytest.raises(ValueError, match="attrs cannot be stored because of a Timestamp"):
        frame.attrs = {"note": pd.Timestamp("2024-01-01")}
        to_table(frame)


def test_other_readers_see_texts_numbers_and_json(tmp_path):
    table = to_table(column(["a", None, "b", "c"]).assign(more=[{"a": 1}, {"b": [2]}, {}, {}]))
    assert table["extra"].to_pylist() == ["a", None, "b", "c"]
    assert table["more"].to_pylist() == ['{"a": 1}', '{"b": [2]}', "{}", "{}"]


class _Counting(PairScorer):
    seen = 0

    def transform(self, inp):
        _Counting.seen += len(inp)
        return super().transform(inp)


@pytest.fixture(scope="module")
def pairs():
    rows = [(f"q{i}", QUERIES[i], f"d{i}", TEXTS[i]) for i in range(N)]
    return PerturbDocs(TFC1())(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))


def test_a_run_is_refused_before_its_first_pair(bi_encoder, pairs, tmp_path):
    _Counting.seen = 0
    late = pairs.assign(extra=pd.Series(["a", "b", "c", object()], dtype=object))
    for number, write in enumerate(
        [
            lambda path: _Counting(bi_encoder).store(path, shard_size=1)(late),
            lambda path: PatchResults(path).writer(_Counting(bi_encoder), shard_size=1)(late),
            lambda path: run_sweep(_Counting(bi_encoder), late, path, shard_size=1, verbose=False),
            lambda path: PatchResults(path).writer()(PairScorer(bi_encoder)(late)),
        ]
    ):
        path = tmp_path / str(number)
        with pytest.raises(ValueError, match="column 'extra' cannot be stored because of a object"):
            write(path)
        assert not len(PatchResults(path).pairs())
    assert _Counting.seen == 0
    with pytest.raises(ValueError, match="column 'pair_hash' is one that stored results have of their own"):
        PairScorer(bi_encoder).store(tmp_path / "named")(pairs.assign(pair_hash="x"))


def test_results_come_back_in_shards_with_odd_ids_names_and_attrs(bi_encoder, pairs, tmp_path):
    docnos = pd.Series(["d\ud800", *pairs["docno"][1:]], dtype=object)
    odd = pairs.assign(docno=docnos, extra=CELLS["mappings"]).rename(columns={"extra": 7})
    odd.attrs = {**pairs.attrs, "note": np.arange(3)}
    stage = PairScorer(bi_encoder).store(tmp_path / "kept", shard_size=2)
    made = stage(odd)
    read = PatchResults(tmp_path / "kept").frame()
    assert alike(read[7].tolist(), CELLS["mappings"]) and read["docno"].tolist() == odd["docno"].tolist()
    assert alike(read.attrs["note"], np.arange(3)) and alike(made.attrs, read.attrs)
    assert list(PatchResults(tmp_path / "kept").frame([7, "rank"]).columns) == [7, "rank"]
    assert PatchResults(tmp_path / "kept").pairs()["docno"].tolist() == odd["docno"].tolist()
    other = odd.copy()
    other.attrs = {**pairs.attrs, "note": "another"}
    assert stage(other).attrs["note"] == "another"
