from dataclasses import replace

import numpy as np
import pytest

from curvjax.report.profile import (
    extent,
    gain_profile,
    leading,
    proved_ranks,
    restless,
    shares,
    telling,
)
from tests.report.values import gains_of, with_bracket, with_evidence, with_unit


def test_the_grid_is_sorted_and_the_policy_kept_apart(whole):
    profile = gain_profile(whole.gains)
    assert np.all(np.diff(profile.dampings) > 0)
    assert profile.labels[10:] == ("10", "11")
    assert profile.titles[2] == "layer 2"
    tenth = [next(each.lower for each in unit.gain.brackets[1:] if each.damping == 0.1) for unit in whole.gains.units]
    assert np.array_equal(profile.grid.lower[:, list(profile.dampings).index(0.1)], tenth)
    assert np.array_equal(profile.chosen.lower, whole.gains.lower)
    assert np.allclose(profile.chosen.step, 0.02, rtol=1e-9)


def test_the_gap_is_relative_and_zero_without_a_gradient():
    gains = with_bracket(gains_of(3), 0, lower=3.0, upper=4.0)
    gains = with_bracket(with_bracket(gains, 1, lower=0.0, upper=0.0), 2, lower=None, upper=None)
    gap = gain_profile(gains).chosen.gap
    assert gap[0] == 0.25
    assert gap[1] == 0
    assert np.isnan(gap[2])


def test_different_grids_are_refused():
    gains = gains_of(3)
    gains = with_evidence(gains, 1, brackets=gains.units[1].gain.brackets[:-1])
    with pytest.raises(ValueError, match=r"layers.1 has dampings \[1.0, .*layers.0 has"):
        gain_profile(gains)


def test_gains_without_any_bracket_are_refused():
    gains = gains_of(2)
    for k in range(2):
        gains = with_bracket(gains, k, lower=None, upper=None, status="negative_curvature")
    with pytest.raises(ValueError, match=r"no unit has a bracket .*negative_curvature"):
        gain_profile(gains)


def test_scores_other_than_gains_are_refused():
    with pytest.raises(ValueError, match="scores 'owl': no gain was measured of 1 units; use `gain`"):
        gain_profile(replace(with_unit(gains_of(2), 1, gain=None), score="owl"))


def test_shares_leading_and_extent_pass_over_the_unknown():
    values = np.array([1.0, np.nan, 3.0])
    assert np.array_equal(shares(values), [0.25, np.nan, 0.75], equal_nan=True)
    assert leading(values, 3) == [2, 0]
    assert extent(values) == (1.0, 3.0)
    assert np.isnan(extent(np.array([np.nan]))).all()


def test_the_restless_layer_is_the_one_that_changes_rank():
    gains = gains_of(5)
    for k, unit in enumerate(gains.units):
        for place, bracket in enumerate(unit.gain.brackets[1:], start=1):
            value = k + 1.0 if k != 2 or bracket.damping > 0.05 else 99.0
            gains = with_bracket(gains, k, place, lower=value, upper=value)
    assert restless(gain_profile(gains), 1) == [2]


def test_few_units_are_all_told_apart_and_of_many_the_telling_ones():
    few, many = (gain_profile(gains_of(layers)) for layers in (5, 30))
    assert sorted(telling(few)) == [0, 1, 2, 3, 4]
    assert telling(few)[:3] == leading(few.chosen.middle, 3)
    assert telling(many) == list(dict.fromkeys(leading(many.chosen.middle, 3) + restless(many, 3)))


def test_a_rank_is_proved_where_the_bracket_meets_no_other():
    lower = np.array([[1.0, 1.0], [2.0, 2.0], [2.5, np.nan]])
    upper = np.array([[1.5, 2.0], [3.0, 3.0], [4.0, np.nan]])
    assert proved_ranks(lower, upper).tolist() == [[True, False], [False, False], [False, False]]
    assert proved_ranks(lower[:1], upper[:1]).tolist() == [[True, True]]
