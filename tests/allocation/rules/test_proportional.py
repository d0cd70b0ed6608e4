"""The proportional share and its two roundings."""

import numpy as np
import pytest

from curvjax.allocation import BudgetConstraint
from curvjax.allocation.rules.proportional import floored, largest_remainder, proportional

Q = np.random.default_rng(1).gamma(1.0, size=12)
PLAIN = BudgetConstraint(np.ones(12), 60, np.full(12, np.inf))


def amounts(rule, q=Q, budget=PLAIN, **settings):
    return np.asarray(rule(q, budget=budget, **settings))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_shares_follow_the_power_of_the_score(beta):
    np.testing.assert_allclose(amounts(proportional, beta=beta), 60 * Q**beta / (Q**beta).sum(), rtol=1e-12)


def test_powers_beyond_the_floating_range_are_no_hazard():
    amount = amounts(proportional, Q * 1e100, beta=5.0)
    np.testing.assert_allclose(amount, amounts(proportional, beta=5.0), rtol=1e-12)
    np.testing.assert_allclose(amounts(proportional, Q * 1e-100, beta=5.0), amount, rtol=1e-12)


def test_largest_remainder_is_the_floor_and_one_more_for_the_largest_fractions():
    share = 60 * Q / Q.sum()
    whole = np.floor(share)
    whole[np.argsort(whole - share)[: int(60 - whole.sum())]] += 1
    np.testing.assert_array_equal(amounts(largest_remainder), whole)
    np.testing.assert_array_equal(amounts(floored), np.floor(share))


def test_whole_shares_lose_nothing_to_rounding():
    assert 0.3 / 0.1 < 3
    q, budget = np.eye(12)[4], BudgetConstraint(np.full(12, 0.1), 0.3, np.full(12, np.inf))
    np.testing.assert_array_equal(amounts(floored, q, budget), 3 * q)
    np.testing.assert_array_equal(amounts(largest_remainder, q, budget), 3 * q)


def test_whole_units_stay_below_a_broken_maximum():
    budget = BudgetConstraint(np.ones(12), 60, np.full(12, 6.7))
    amount = amounts(largest_remainder, budget=budget)
    assert amount.max() == 6
    assert amount.sum() == 60


def test_maxima_that_hold_the_total_only_in_parts_are_refused():
    with pytest.raises(ValueError, match=r"a total of 62 whole units is out of reach: the maxima hold 60;"):
        amounts(largest_remainder, budget=BudgetConstraint(np.ones(12), 62, np.full(12, 5.3)))


def test_a_negative_exponent_is_refused():
    with pytest.raises(ValueError, match="beta must be at least 0"):
        amounts(proportional, beta=-1.0)
