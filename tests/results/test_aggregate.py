"""The plain functions of aggregation and comparison, of which the stages are calls."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from test_statistics import frame_of

from pyterrier_mechir import AggregateHeads, CompareHeads, compare_heads, head_agreement, split_halves
from pyterrier_mechir.results.aggregate import aggregate

RNG = np.random.default_rng(0)
FRAME = frame_of(RNG.normal(size=(12, 3)), RNG.normal(size=12) + 3, [str(i % 4) for i in range(12)])
FRAME = FRAME.assign(docno=[f"d{i}" for i in range(12)], grade=[i % 2 for i in range(12)], weight=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": None, "n_boot": 50, "seed": 3},
        {"by": "grade", "estimator": ["difference", "ratio_of_means"], "n_boot": 20, "ci": 0.5},
        {"by": None, "estimator": "mean_of_ratios", "weights": "weight", "n_boot": 0},
    ],
)
def test_the_stage_calls_the_function(options):
    pd.testing.assert_frame_equal(aggregate(FRAME, **options), AggregateHeads(**options)(FRAME), check_exact=True)
    empty = FRAME.iloc[:0]
    pd.testing.assert_frame_equal(aggregate(empty, **options), AggregateHeads(**options)(empty), check_exact=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "mode"}, "unknown estimator 'mode'"),
        ({"estimator": []}, "estimator is empty"),
        ({"estimator": "median", "weights": "weight"}, "the median takes no weights"),
        ({"ci": 1.0}, "ci is 1.0"),
        ({"n_boot": -1}, "n_boot is -1"),
    ],
)
def test_the_function_refuses_what_the_stage_refuses(options, message):
    for made in (lambda: aggregate(FRAME, **options), lambda: AggregateHeads(**options)):
        with pytest.raises(ValueError, match=message):
            made()


def test_a_missing_column_is_named():
    for made in (aggregate, AggregateHeads()):
        with pytest.raises(pt.validate.InputValidationError, match="patch_scores"):
            made(FRAME.drop(columns="patch_scores"))


def test_a_comparison_has_the_rows_of_the_functions():
    other = FRAME.assign(patch_scores=[scores + 0.1 for scores in FRAME["patch_scores"]])
    stages = [pt.apply.generic(lambda _, frame=frame: frame) for frame in (FRAME, other)]
    out = CompareHeads(*stages, k=2, n_boot=50, seed=1)(FRAME)
    pd.testing.assert_frame_equal(out, compare_heads(FRAME, other, n_boot=50, seed=1), check_exact=True)
    told = out.attrs["mechir"]
    assert told["agreement"] == head_agreement(FRAME, other, k=2, n_boot=50, seed=1).to_dict("records")
    halves = {"first": FRAME, "second": other}
    for name, frame in halves.items():
        pd.testing.assert_frame_equal(pd.DataFrame(told["stability"][name]), split_halves(frame, k=2, seed=1))
