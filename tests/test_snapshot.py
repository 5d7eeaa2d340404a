"""What the package gives on small models is what it gave when the reference was written.

After a change that is meant to be seen, ``python tests/snapshot.py --reference`` writes the reference anew.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import snapshot
from small_models import build
from snapshot_cases import CASES, FEW, PERTURBATIONS, RANKERS
from tolerance import widened

import pyterrier_mechir as pm

SCORES = widened(1e-5)
"""Greatest error of scores, as a share of the greatest of a column, or of 1."""

RATIOS = widened(1e-3)
"""Greatest error of what is divided by score differences, or counts resamples."""

TOLD = widened(1e-4)
"""Greatest error of the numbers that frames tell beside their columns."""

FILES = [snapshot.REFERENCE / f"reference.{kind}" for kind in ("json", "npz")]


@cache
def reference() -> dict[str, dict[str, Any]]:
    return snapshot.read(*FILES)


def differences(expected: Any, found: Any, error: float, at: str = "") -> list[str]:
    """Where two values differ by more than an error, absolute and relative."""
    if isinstance(expected, np.ndarray) or isinstance(found, np.ndarray):
        return [f"{at}: {fault}" for fault in _of_arrays(expected, found, error)]
    if isinstance(expected, dict) and isinstance(found, dict):
        apart = expected.keys() ^ found.keys()
        here = [f"{at}: {name!r} is {'missing' if name in expected else 'new'}" for name in sorted(apart)]
        common = [name for name in expected if name in found]
        order = [name for name in found if name in expected]
        here += [f"{at}: the order is {order}"] if common != order else []
        return here + [fault for n in common for fault in differences(expected[n], found[n], error, f"{at}/{n}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [fault for i, (one, other) in pairs for fault in differences(one, other, error, f"{at}/{i}")]
    if isinstance(expected, float) and isinstance(found, float):
        is_same = math.isclose(expected, found, rel_tol=error, abs_tol=error)
    else:
        is_same = type(expected) is type(found) and expected == found
    return [] if is_same else [f"{at}: {found!r}, not {expected!r}"]


def _of_arrays(expected: Any, found: Any, error: float) -> list[str]:
    kinds = [type(expected).__name__, type(found).__name__]
    if kinds != ["ndarray", "ndarray"]:
        return [f"a {kinds[1]}, not a {kinds[0]}"]
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return [f"{found.dtype} {found.shape}, not {expected.dtype} {expected.shape}"]
    if not np.array_equal(np.isnan(expected), np.isnan(found)):
        return ["other values are missing"]
    least = error * max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
    if np.allclose(found, expected, rtol=error, atol=least, equal_nan=True):
        return []
    return [f"off by up to {np.nanmax(np.abs(found - expected)):.3g}"]


def of_this_pandas(values: Any) -> Any:
    """A reference, which tells pandas 3's dtypes, as earlier ones have it."""
    if int(pd.__version__.split(".")[0]) >= 3:
        return values
    if isinstance(values, dict):
        return {name: of_this_pandas(value) for name, value in values.items()}
    return {"str": "object", "large_string": "string"}.get(values, values) if isinstance(values, str) else values


def faults(topic: str) -> list[str]:
    """What a topic gives that the reference does not, and the reverse."""
    expected, found = reference()[topic], snapshot.find(topic)
    assert found.keys() == expected.keys()
    assert found
    listed = []
    for name, value in found.items():
        is_array = isinstance(value, np.ndarray)
        error = RATIOS if topic.startswith("statistics") else SCORES if is_array else TOLD
        plain = value if is_array else json.loads(json.dumps(value))
        listed += differences(of_this_pandas(expected[name]), plain, error, name)
    return listed


def changed_names() -> list[str]:
    """Where exported names lack what they had. They may have more: attributes, and parameters by name."""
    expected, found = reference()["names"], snapshot.find("names")
    listed = [] if list(expected) == list(found) else ["other names are exported"]
    for name in expected.keys() & found.keys():
        one, other = expected[name], found[name]
        if not isinstance(one, dict) or "attributes" not in one:
            listed += differences(of_this_pandas(one), json.loads(json.dumps(other)), TOLD, name)
            continue
        had = {"(itself)": one["signature"], **one["attributes"]}
        has = {"(itself)": other["signature"], **other["attributes"]}
        listed += [f"{name}.{n}: {has.get(n)}, not {told}" for n, told in had.items() if not extends(has.get(n), told)]
    return listed


def extends(found: str | None, told: str) -> bool:
    """Whether an attribute is what it was, but for more parameters that are given by name only, or not at all."""
    if found == told or found is None:
        return found == told
    (kind, one), (other_kind, other) = (_parameters(text) for text in (told, found))
    more = [parameter for parameter in other if parameter not in one]
    rest = [parameter for parameter in other if parameter in one]
    by_name = other[other.index("*") :] if "*" in other else []
    return bool(one) and kind == other_kind and rest == one and all("=" in p and p in by_name for p in more)


def _parameters(text: str) -> tuple[str, list[str]]:
    """What comes before the parameters of a signature, and these."""
    kind, _, inside = text.partition("(")
    return kind, re.split(r", (?![^(\[]*[)\]])", inside.rpartition(")")[0])


def topics(kind: str) -> list[str]:
    return [topic for topic in snapshot.TOPICS if topic.startswith(f"{kind}: ")]


SINGLE = [topic for topic in snapshot.TOPICS if ": " not in topic]


def test_the_reference_holds_every_topic_and_nothing_else():
    assert list(reference()) == list(snapshot.TOPICS)
    kinds = ("ranker", "perturbation", "stage", "statistics", "patched")
    assert sum(len(topics(kind)) for kind in kinds) + len(SINGLE) == len(snapshot.TOPICS)
    assert [len(topics("ranker")), len(topics("perturbation"))] == [len(RANKERS), len(PERTURBATIONS)]
    assert len(topics("patched")) == len(CASES) > 60
    assert sum(file.stat().st_size for file in FILES) < 400_000


@pytest.mark.parametrize("kind", ["ranker", "patched"])
def test_the_reference_has_scores_that_differ(kind):
    for topic in topics(kind):
        values = reference()[topic]["scores" if kind == "ranker" else "column patch_scores"]
        assert np.isfinite(values).any(), topic
        assert np.nanmax(values) > np.nanmin(values), topic


def test_exported_names_have_what_they_had():
    assert not changed_names()


@pytest.mark.parametrize(
    ("found", "is_kept"),
    [
        ("method (self, a, *, b=(1, 2))", True),
        ("method (self, a, *, b=(1, 2), c=None)", True),
        ("method (self, a, *, b=(1, 2), c)", False),
        ("method (self, a, c=None, *, b=(1, 2))", False),
        ("method (self, a, *, b=(1, 3))", False),
        ("method (self, a)", False),
        ("property", False),
        (None, False),
    ],
)
def test_a_signature_may_get_longer_only(found, is_kept):
    assert extends(found, "method (self, a, *, b=(1, 2))") is is_kept
    assert not extends(found, "'denoise'")


@pytest.mark.parametrize("topic", [topic for topic in SINGLE if topic != "names"])
def test_it_is_as_it_was(topic):
    assert not faults(topic)


@pytest.mark.parametrize("topic", topics("ranker"))
def test_rankers_score_as_they_did(topic):
    assert not faults(topic)


@pytest.mark.parametrize("topic", topics("perturbation"))
def test_perturbations_make_the_pairs_that_they_made(topic):
    assert not faults(topic)


@pytest.mark.parametrize("topic", topics("stage"))
def test_stages_give_what_they_gave(topic):
    assert not faults(topic)


@pytest.mark.parametrize("topic", topics("statistics"))
def test_statistics_are_as_they_were(topic):
    assert not faults(topic)


@pytest.mark.parametrize("topic", topics("patched"))
def test_patched_scores_are_as_they_were(topic):
    assert not faults(topic)


def test_bfloat16_gives_the_columns_of_float32():
    """Their values differ among processors, and some processors have none."""
    expected = reference()["patched: head of bi"]
    made = pm.BiEncoder(build("bert", False), dtype="bfloat16")
    assert made.about()["dtype"] == "bfloat16"
    try:
        with snapshot.quietly():
            found = (pm.PerturbDocs(pm.perturb.TFC1()) >> pm.PatchScorer(made)).transform(FEW)
    except RuntimeError as error:
        if "needs the cpu support" not in str(error):
            raise
        pytest.skip("this processor does not multiply bfloat16")
    added = snapshot.of_frame(found.drop(columns=FEW.columns))
    assert added["columns"] == of_this_pandas(expected["columns"])
    assert added["column patch_scores shapes"] == expected["column patch_scores shapes"]
    told = set(expected["attrs"]["mechir"]) | {"calibration"}
    assert set(added["attrs"]["mechir"]) == told | {"ranker"}


# The comparison itself

VALUES = {"a": np.array([1.0, np.nan, 3.0], np.float32), "b": [{"c": 0.5}, "text"], "d": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a", np.array([1.001, np.nan, 3.0], np.float32)),
        ("a", np.array([1.0, 2.0, 3.0], np.float32)),
        ("a", np.array([1.0, np.nan, 3.0])),
        ("a", np.array([[1.0, np.nan, 3.0]], np.float32)),
        ("a", [1.0, None, 3.0]),
        ("b", [{"c": 0.501}, "text"]),
        ("b", [{"c": 0.5}, "texts"]),
        ("b", [{"c": 0.5, "e": 1}, "text"]),
        ("b", [{"c": 0.5}]),
        ("d", 0),
    ],
)
def test_a_difference_is_noticed(name, value):
    assert not differences(VALUES, dict(VALUES), SCORES)
    (fault,) = differences(VALUES, VALUES | {name: value}, SCORES)
    assert fault.startswith(f"/{name}")


def test_two_folders_are_compared_bit_for_bit(tmp_path):
    changed = VALUES | {"a": np.array([1.0, np.nan, np.nextafter(np.float32(3), np.float32(4))], np.float32)}
    for name, values in {"one": VALUES, "same": VALUES, "other": changed, "less": {"d": None}}.items():
        snapshot.save({"topic": values}, tmp_path / name)
    at = {name: len(snapshot.different(tmp_path / "one", tmp_path / name)) for name in ("same", "other", "less")}
    assert at == {"same": 0, "other": 1, "less": 2}
