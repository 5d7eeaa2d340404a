"""The formulas of effects, by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from pyterrier_mechir.results.effects import change, moved, normalised, over, ratio_of_means
from pyterrier_mechir.results.frames import as_cells, has_token_effects, perturbed_side

BASELINE, PERTURBED = np.array([1.0, 2.0, 3.0], np.float32), np.array([2.0, 1.5, 3.0], np.float32)


def test_change_is_after_less_before_of_whatever_kind():
    assert change(1.0, 3.0) == 2.0
    np.testing.assert_array_equal(change(BASELINE, PERTURBED), [1.0, -0.5, 0.0])
    pd.testing.assert_series_equal(change(pd.Series(BASELINE), pd.Series(PERTURBED)), pd.Series(PERTURBED - BASELINE))


def test_a_patch_that_carries_everything_moves_the_score_by_its_change_in_both_directions():
    np.testing.assert_array_equal(moved("denoise", PERTURBED, BASELINE, PERTURBED), PERTURBED - BASELINE)
    np.testing.assert_array_equal(moved("noise", BASELINE, BASELINE, PERTURBED), PERTURBED - BASELINE)
    assert not moved("denoise", BASELINE, BASELINE, PERTURBED).any()
    assert not moved("noise", PERTURBED, BASELINE, PERTURBED).any()


def test_normalised_effects_are_shares_of_the_change_of_each_pair():
    patched = [np.full(shape, score, np.float32) for shape, score in [((2,), 1.5), ((2, 3), 1.5), ((1,), 9.0)]]
    effects = normalised("denoise", patched, BASELINE, PERTURBED, 0.0)
    assert [effect.shape for effect in effects] == [(2,), (2, 3), (1,)]
    assert all(effect.dtype == np.float32 for effect in effects)
    assert (effects[0] == 0.5).all() and (effects[1] == 1).all() and np.isnan(effects[2]).all()
    assert (normalised("noise", patched, BASELINE, PERTURBED, 0.0)[1] == 0).all()
    small = normalised("denoise", patched, BASELINE, PERTURBED, 0.75)
    assert [bool(np.isnan(effect).all()) for effect in small] == [False, True, True]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_ratio_of_means_leaves_missing_scores_out(direction):
    patched = np.array([[1.25, np.nan], [2.0, 1.75], [np.nan, np.nan]])
    found = ratio_of_means(direction, patched, BASELINE.astype(float), np.array([2.0, 1.5, np.nan]))
    moves = {"denoise": [0.25 + 0, -0.25], "noise": [0.75 - 0.5, -0.25]}[direction]
    np.testing.assert_allclose(found, [moves[0] / (1 - 0.5), moves[1] / -0.5])


def test_a_ratio_over_nothing_is_missing():
    assert np.isnan(ratio_of_means("denoise", np.full((2, 1), np.nan), BASELINE[:2], PERTURBED[:2])).all()
    np.testing.assert_array_equal(over(np.array([1.0, 1.0]), np.array([0.0, 2.0])), [np.nan, 0.5])


@pytest.mark.parametrize(
    ("columns", "text_field", "side"),
    [
        (["query", "text"], "text", None),
        (["text_perturbed"], "text", "document"),
        (["text_perturbed"], "body", None),
        (["body_perturbed"], "body", "document"),
        (["query_perturbed"], "body", "query"),
    ],
)
def test_the_perturbed_side_of_a_frame(columns, text_field, side):
    assert perturbed_side(pd.DataFrame(columns=columns), text_field) == side


def test_token_effects_are_those_of_all_positions():
    frame = pd.DataFrame({"patch_effect": as_cells([np.zeros((2, 3))]), "tokens": as_cells([["a", "b", "c"]])})
    assert has_token_effects(frame)
    frame.attrs = {"mechir": {"slots": ["EDIT"]}}
    assert not has_token_effects(frame)
    assert not has_token_effects(frame[["patch_effect"]])


def test_cells_hold_arrays_and_lists_of_any_length_as_they_are():
    values = [np.zeros(3), ["a"], np.ones((2, 2))]
    assert all(one is other for one, other in zip(as_cells(iter(values)), values, strict=True))
    assert all(isinstance(cell, np.ndarray) for cell in as_cells([np.zeros(2), np.zeros(2)]))


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("results.effects", ["pandas", "scipy", "pyterrier", "torch"]),
        ("results.stored.store", ["pyterrier_mechir.stages", "pyterrier_mechir.plots", "torch"]),
        ("results.stored.artifact", ["pyterrier_mechir.stages", "pyterrier_mechir.plots", "torch"]),
        ("results.agreement", ["pyterrier_mechir.stages", "pyterrier_mechir.plots", "torch"]),
        ("plots.frames", ["pyterrier_mechir.stages", "torch"]),
        ("plots.report", ["pyterrier_mechir.stages"]),
    ],
)
def test_modules_load_nothing_from_above(module, unwanted):
    program = f"import sys, pyterrier_mechir.{module}; print([name for name in {unwanted!r} if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
