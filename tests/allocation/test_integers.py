"""Whole units of capacity: optimal against every alternative, and honest where not."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest

from curvjax.allocation import SolutionStatus, round_capacity, whole_capacity
from tests.compilations import compilations


def best_of_all(q, cost, budget, alpha, maximum):
    """Least objective over all whole amounts within the budget, by enumeration."""
    every = np.array(list(itertools.product(*(range(int(m) + 1) for m in maximum))))
    every = every[every @ cost <= budget * (1 + 1e-12)]
    return (every @ alpha - np.log1p(every) @ q).min()


def problem(seed):
    rng = np.random.default_rng(seed)
    q = rng.gamma(0.7, size=4) * (rng.random(4) > 0.1)
    alpha = rng.choice([0.0, 0.05]) * rng.random(4)
    return rng, q, alpha, rng.integers(0, 7, 4)


@pytest.mark.parametrize("seed", range(1, 41))
def test_greedy_is_optimal_at_equal_costs(seed):
    rng, q, alpha, maximum = problem(seed)
    cost = rng.uniform(0.1, 3)
    budget = cost * rng.integers(0, 15) + rng.choice([0.0, 0.5]) * cost
    found = round_capacity(q, cost=cost, budget=budget, alpha=alpha, maximum=maximum)
    assert found.exact
    best = best_of_all(q, np.full(4, cost), budget, alpha, maximum)
    assert found.objective == pytest.approx(best, abs=1e-12)
    assert found.spent <= budget * (1 + 1e-12)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(1, 41))
def test_search_is_optimal_at_unequal_costs(seed, whole):
    rng, q, alpha, maximum = problem(seed)
    cost = rng.integers(1, 9, 4) * 6.0 if whole else rng.uniform(1, 5, 4)
    budget = rng.uniform(0, 3 * cost.sum())
    found = round_capacity(q, cost=cost, budget=budget, alpha=alpha, maximum=maximum)
    assert found.exact
    assert found.objective == pytest.approx(best_of_all(q, cost, budget, alpha, maximum), abs=1e-9)
    assert found.spent == pytest.approx(cost @ found.amount)
    assert found.spent <= budget * (1 + 1e-12)
    assert found.unspent == pytest.approx(budget - found.spent, abs=1e-9)
    assert found.gap >= 0


def test_greedy_alone_would_be_wrong_at_unequal_costs():
    # per cost the first unit is the better buy, but it leaves room that nothing fits
    q, cost = np.array([0.61, 1.0]), np.array([6.0, 10.0])
    found = round_capacity(q, cost=cost, budget=10.0, alpha=0.0, maximum=1)
    np.testing.assert_array_equal(found.amount, [0, 1])
    left = round_capacity(q, cost=cost, budget=10.0, alpha=0.0, maximum=1, states=0)
    np.testing.assert_array_equal(left.amount, [1, 0])
    assert not left.exact
    assert left.objective > found.objective
    assert left.gap > found.gap


def test_greedy_alone_takes_nothing_that_does_not_pay():
    found = round_capacity(
        np.array([1.0, 0.5]), cost=np.array([10.0, 1.0]), budget=9.0, alpha=0.2, maximum=50, states=0
    )
    np.testing.assert_array_equal(found.amount, [0, 2])


def test_a_common_divisor_of_the_costs_changes_nothing():
    q, cost = np.random.default_rng(1).gamma(1.0, size=30), np.tile([4.0, 6.0, 11.0], 10)
    plain = round_capacity(q, cost=cost, budget=500.0, alpha=0.0)
    scaled = round_capacity(q, cost=cost * 2.0**20, budget=500.5 * 2.0**20, alpha=0.0)
    assert scaled.exact
    np.testing.assert_array_equal(scaled.amount, plain.amount)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_unit_of_huge_score_hides_none_of_the_others(seed):
    rng = np.random.default_rng(seed)
    q, cost = np.r_[1e14, rng.gamma(1.0, size=4)], rng.uniform(1, 5, 5)
    found = round_capacity(q, cost=cost, budget=20.0, alpha=0.0, maximum=np.array([1, 4, 4, 4, 4]))
    rest = round_capacity(q[1:], cost=cost[1:], budget=20.0 - cost[0], alpha=0.0, maximum=4)
    assert found.exact
    np.testing.assert_array_equal(found.amount, np.r_[1, rest.amount])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_function_for_vmap_gives_the_same_units(seed):
    rng = np.random.default_rng(seed)
    q = rng.gamma(0.7, size=(20, 12)) * (rng.random((20, 12)) > 0.1)
    bound = {"cost": 0.1, "budget": 4.0, "alpha": 0.01, "maximum": 9}
    batched = jax.jit(jax.vmap(lambda scores: whole_capacity(scores, **bound)))(q)
    np.testing.assert_array_equal(batched, [round_capacity(scores, **bound).amount for scores in q])
    assert (jax.vmap(lambda budget: whole_capacity(q[0], cost=1.0, budget=budget, alpha=0.0))(-np.ones(2)) == -1).all()


def test_a_total_that_can_be_met_is_met_exactly():
    q = np.random.default_rng(1).gamma(1.0, size=30)
    found = round_capacity(q, cost=0.1, budget=0.1 * 90, alpha=0.0)
    assert found.amount.sum() == 90
    assert found.amount.dtype == np.int64
    assert found.unspent == pytest.approx(0.0, abs=1e-12)
    assert (found.status, found.exact) == (SolutionStatus.OPTIMAL, True)


def test_a_hundredth_of_a_rounding_does_not_cost_a_unit():
    assert round_capacity(np.ones(1), cost=0.1, budget=0.3, alpha=0.0).amount == [3]


def test_equal_scores_are_dealt_out_evenly_and_ties_go_to_the_first():
    found = round_capacity(np.ones(12), cost=1.0, budget=30.0, alpha=0.0)
    np.testing.assert_array_equal(found.amount, [3] * 6 + [2] * 6)


def test_whole_amounts_lie_near_the_continuous_ones_and_the_gap_says_how_near():
    q = np.random.default_rng(2).gamma(1.0, size=200)
    cost = np.tile([1152, 768, 2112, 640], 50)
    found = round_capacity(q, cost=cost, budget=500_000, alpha=0.0, maximum=64)
    assert found.exact
    assert 0 <= found.gap < 0.005 * abs(found.objective)
    assert found.unspent < cost.min()


@pytest.mark.parametrize(
    ("settings", "status", "amount"),
    [
        ({"budget": 0.0}, SolutionStatus.OPTIMAL, [0, 0, 0]),
        ({"budget": 0.9}, SolutionStatus.OPTIMAL, [0, 0, 0]),
        ({"budget": 1e6, "maximum": 4}, SolutionStatus.AT_CAPACITY, [4, 4, 0]),
        ({"budget": 1e6, "maximum": 3.9}, SolutionStatus.AT_CAPACITY, [3, 3, 0]),
        ({"budget": 1e6, "alpha": 0.3}, SolutionStatus.SLACK, [1, 2, 0]),
        ({"budget": 1e6, "alpha": 5.0}, SolutionStatus.SLACK, [0, 0, 0]),
        ({"budget": 1e6, "alpha": 0.0, "maximum": 0}, SolutionStatus.AT_CAPACITY, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("cost", [1.0, np.array([1.0, 1.5, 1.0])])
def test_what_is_left_over_is_explained(settings, status, amount, cost):
    # at price 0.3 a unit pays while log((2+e)/(1+e)) > 0.3 / q: once for q = 0.6, twice for q = 0.9
    found = round_capacity(np.array([0.6, 0.9, 0.0]), cost=cost, **({"alpha": 0.0} | settings))
    np.testing.assert_array_equal(found.amount, amount)
    assert found.status == status
    assert found.unspent == pytest.approx(settings["budget"] - found.spent)


def test_quality_exponent_and_benefit_weight_count():
    plain = round_capacity(np.array([1.0, 4.0]), cost=1.0, budget=9.0, alpha=0.01, gamma=2.0, beta=0.5)
    same = round_capacity(np.array([1.0, 2.0]), cost=1.0, budget=9.0, alpha=0.005)
    np.testing.assert_array_equal(plain.amount, same.amount)
    assert plain.objective == pytest.approx(2 * same.objective)


def test_malformed_input_is_refused():
    with pytest.raises(ValueError, match="q must be at least 0 and finite; got nan in unit 0"):
        round_capacity(np.array([np.nan]), cost=1.0, budget=1.0, alpha=0.0)
    with pytest.raises(ValueError, match="a total of -1 is out of reach"):
        round_capacity(np.ones(2), cost=1.0, budget=-1.0, alpha=0.0)
    with pytest.raises(ValueError, match=r"unit 1 could be given 1e\+17 whole units, too many to count exactly"):
        round_capacity(np.array([0.0, 1.0]), cost=1.0, budget=1e17, alpha=0.0)
    with pytest.raises(ValueError, match=r"cost must be one number; got shape \(2,\)"):
        whole_capacity(np.ones(2), cost=np.ones(2), budget=1.0, alpha=0.0)


def test_float32_callers_get_the_same_units_and_other_values_compile_nothing_new():
    q = np.random.default_rng(1).gamma(1.0, size=30)
    wide = round_capacity(q, cost=1.0, budget=90.0, alpha=0.0)
    with compilations() as compiled:
        with jax.enable_x64(False):
            narrow = round_capacity(q, cost=1.0, budget=90.0, alpha=0.0)
        round_capacity(q[::-1], cost=2.0, budget=70.0, alpha=0.01, maximum=3)
    np.testing.assert_array_equal(narrow.amount, wide.amount)
    assert not compiled["_priced"]


@pytest.mark.parametrize("seed", range(1, 25))
def test_scores_and_costs_over_hundreds_of_decades_are_rounded_to_the_optimum(seed):
    rng = np.random.default_rng(seed)
    q = rng.gamma(0.7, size=4) * 10.0 ** rng.uniform(-280, 280, 4 if seed % 3 else 1)
    cost = rng.uniform(0.5, 4, 4 if seed % 2 else 1) * np.ones(4) * 10.0 ** rng.uniform(-200, 200)
    maximum = rng.integers(0, 6, 4)
    budget = float(cost @ maximum) * rng.random()
    found = round_capacity(q, cost=cost, budget=budget, alpha=0.0, maximum=maximum)
    every = np.array(list(itertools.product(*(range(int(m) + 1) for m in maximum))))
    every = every[every @ cost <= budget * (1 + 1e-12)]
    table = [[Fraction(float(q[k] * np.log1p(e))) for e in range(6)] for k in range(4)]
    best = max(every, key=lambda choice: sum(table[k][e] for k, e in enumerate(choice)))
    lost = [table[k][best[k]] - table[k][found.amount[k]] for k in range(4) if best[k] != found.amount[k]]
    assert found.exact
    assert sum(lost) <= Fraction(1e-15) * sum(map(abs, lost))


def test_no_budget_buys_nothing_at_any_scale():
    found = round_capacity(np.full(4, 3e-197), cost=4e153, budget=0.0, alpha=4e-198, maximum=4)
    np.testing.assert_array_equal(found.amount, 0)
