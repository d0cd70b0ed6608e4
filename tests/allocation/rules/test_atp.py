"""ATP against its program, its slopes and their choice."""

import json
from pathlib import Path

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint, atp_slopes, choose_slope
from curvjax.allocation.rules.atp import atp, largest_slope

CASES = json.loads((Path(__file__).parents[2] / "data" / "peers.json").read_text(encoding="utf-8"))["atp"]


def sparsities(size, mean, maximum=1.0, **settings):
    budget = BudgetConstraint(size, mean * np.sum(size), np.broadcast_to(maximum, len(size)))
    return np.asarray(atp(np.ones(len(size)), budget=budget, **settings))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"S={case['S']}")
def test_equal_sizes_give_the_programs_numbers(case):
    amount = sparsities(np.full(case["L"], 7), case["S"], slope=case["beta"])
    np.testing.assert_allclose(amount, case["sparsity"], rtol=1e-12)
    assert largest_slope(case["S"], case["L"]) == pytest.approx(case["beta_max"], rel=1e-12)


def test_unequal_sizes_keep_the_slope_and_meet_the_total():
    size = np.arange(12) + 1.0
    amount = sparsities(size, 0.5, slope=0.02)
    np.testing.assert_allclose(np.diff(amount), 0.02, rtol=1e-11)
    assert size @ amount == pytest.approx(0.5 * size.sum(), rel=1e-12)


def test_the_default_is_half_of_the_largest_slope_and_the_largest_reaches_an_end():
    np.testing.assert_allclose(np.diff(sparsities(np.ones(12), 0.7)), largest_slope(0.7, 12) / 2, rtol=1e-11)
    steepest = sparsities(np.ones(12), 0.7, slope=largest_slope(0.7, 12))
    np.testing.assert_allclose(steepest, np.linspace(0.4, 1.0, 12), rtol=1e-12)


def test_a_maximum_flattens_the_end():
    amount = sparsities(np.ones(12), 0.7, 0.8, slope=0.05)
    assert (amount[-5:] == 0.8).all()
    np.testing.assert_allclose(np.diff(amount[:7]), 0.05, rtol=1e-11)
    assert amount.mean() == pytest.approx(0.7, rel=1e-12)


def test_candidate_slopes_are_the_multiples_of_the_step_in_range():
    slopes = atp_slopes(0.5, 32)
    np.testing.assert_allclose(slopes, 0.002 * np.arange(1, 17), rtol=1e-12)
    assert slopes[-1] <= largest_slope(0.5, 32) < slopes[-1] + 0.002
    assert atp_slopes(0.5, 11, step=0.1).tolist() == [0.1]  # the end itself counts
    for slope in slopes:
        sparsities(np.ones(32), 0.5, slope=slope)


def test_the_slope_of_least_loss_is_chosen_and_all_losses_are_told():
    slopes = atp_slopes(0.5, 32)
    chosen = choose_slope(slopes, lambda slope: (slope - 0.011) ** 2)
    assert chosen.slope == slopes[4]  # 0.010 and 0.012 are equally far but for rounding
    np.testing.assert_allclose(chosen.losses, (slopes - 0.011) ** 2, rtol=1e-12)
    assert choose_slope([0.1, 0.2], lambda slope: 1.0).slope == 0.1


@pytest.mark.parametrize("slope", [0.0, -0.01, 0.1, np.nan])
def test_a_slope_out_of_range_is_refused(slope):
    with pytest.raises(ValueError, match=r"slope .*(is outside \(0, 0.0909091\]|must be .* finite)"):
        sparsities(np.ones(12), 0.5, slope=slope)


@pytest.mark.parametrize(
    ("sparsity", "count", "step"), [(0.0, 12, 0.002), (1.0, 12, 0.002), (0.5, 1, 0.1), (0.5, 9, 0.0)]
)
def test_slopes_need_a_sparsity_between_the_ends_two_layers_and_a_step(sparsity, count, step):
    with pytest.raises(ValueError, match="need 0 < sparsity < 1, at least 2 layers and a positive step"):
        atp_slopes(sparsity, count, step=step)


def test_a_step_above_every_slope_is_refused():
    with pytest.raises(ValueError, match=r"no multiple of 0.5 is at most 0.0909091, the largest slope"):
        atp_slopes(0.5, 12, step=0.5)


def test_no_candidates_and_lost_losses_are_refused():
    with pytest.raises(ValueError, match="there are no slopes to choose from"):
        choose_slope([], abs)
    with pytest.raises(ValueError, match=r"the loss at slope 0.2 is NaN"):
        choose_slope([0.1, 0.2], lambda slope: np.nan if slope > 0.1 else 1.0)
