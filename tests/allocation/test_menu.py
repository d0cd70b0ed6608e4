"""One entry per unit: exact against all choices, and honest about what is proven."""

import itertools
import math

import numpy as np
import pytest

from curvjax.allocation import allocate_bits

BITS = np.array([2, 3, 4, 6, 8])


def brute(value, cost, budget, ties=()):
    """Least total over all choices within the budget."""
    best = np.inf
    for choice in itertools.product(range(value.shape[1]), repeat=len(value)):
        if any(len({choice[unit] for unit in group}) > 1 for group in ties):
            continue
        rows = np.arange(len(value))
        if cost[rows, choice].sum() <= budget * (1 + 1e-12):
            best = min(best, value[rows, choice].sum())
    return best


def problem(seed, *, units=5, kind="whole"):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 9, units) if kind == "whole" else rng.uniform(0.5, 4, units)
    cost = size[:, None] * BITS
    value = rng.gamma(1.0, size=(units, 1)) * 4.0 ** (2 - BITS) * rng.uniform(0.5, 1.5, (units, BITS.size))
    if kind == "ragged":
        value = rng.normal(size=value.shape)
        value[0, 1:] = np.inf
    return value, cost, rng.uniform(cost.min(1).sum(), cost.max(1).sum())


@pytest.mark.parametrize("kind", ["whole", "real", "ragged"])
@pytest.mark.parametrize("seed", range(1, 13))
def test_the_choice_is_the_best_of_all(seed, kind):
    value, cost, budget = problem(seed, kind=kind)
    found = allocate_bits(value, cost, budget=budget)
    assert found.exact
    assert found.objective == pytest.approx(brute(value, cost, budget), rel=1e-12, abs=1e-12)
    rows = np.arange(len(value))
    assert found.spent == math.fsum(cost[rows, found.choice]) <= budget * (1 + 1e-12)
    assert found.unspent == pytest.approx(budget - found.spent)
    assert found.bound <= found.objective
    assert found.gap == pytest.approx(found.objective - found.bound, abs=1e-12)


@pytest.mark.parametrize("seed", range(1, 7))
def test_tied_units_choose_alike_and_best(seed):
    value, cost, _ = problem(seed, units=6)
    ties = [(0, 3), (1, 2, 5)]
    budget = 0.6 * cost.max(1).sum()
    found = allocate_bits(value, cost, budget=budget, ties=ties)
    assert all(len(set(found.choice[list(group)])) == 1 for group in ties)
    assert found.objective == pytest.approx(brute(value, cost, budget, ties), rel=1e-12)


def test_a_real_sized_menu_is_proven_and_near_its_bound():
    rng = np.random.default_rng(1)
    size = rng.choice([331776, 110592, 884736], 210)
    value = rng.gamma(1.0, size=(210, 1)) * 4.0 ** (2.0 - BITS)
    found = allocate_bits(value, size[:, None] * BITS, budget=4.0 * size.sum())
    assert found.exact
    assert found.gap < 1e-3 * found.objective
    assert found.unspent < BITS[-1] * size.max()


def test_many_units_with_costs_that_are_not_whole_are_proven():
    value, cost, budget = problem(3, units=40, kind="real")
    found = allocate_bits(value, cost, budget=budget)
    assert found.exact
    step = (value.max(1) - value.min(1)).max()
    assert found.gap <= step  # a relaxed optimum mixes two entries of one unit only


def test_without_a_search_the_rounded_choice_stands_and_says_so():
    value, cost, budget = problem(5, units=60, kind="real")
    found = allocate_bits(value, cost, budget=budget, states=0)
    assert not found.exact
    assert found.spent <= budget * (1 + 1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_units_offset_and_scale_do_not_change_the_others_choice(seed):
    value, cost, budget = problem(seed, units=8, kind="real")
    plain = allocate_bits(value, cost, budget=budget)
    value[0] += 2.0**20  # moves no bit of its differences that decides
    lifted = allocate_bits(value, cost, budget=budget)
    np.testing.assert_array_equal(lifted.choice, plain.choice)
    assert lifted.exact
    assert lifted.gap == pytest.approx(plain.gap, rel=1e-6)
    value[0] = np.where(np.arange(BITS.size) == plain.choice[0], 0.0, 1e9)  # may have nothing else
    forced = allocate_bits(value, cost, budget=budget)
    np.testing.assert_array_equal(forced.choice, plain.choice)
    assert forced.exact


def test_an_entry_dearer_than_the_whole_budget_is_passed_over():
    found = allocate_bits(np.array([[3.0, 1.0], [2.0, 0.0]]), np.array([[1.0, 2.0], [1.0, 5.0]]), budget=3.0)
    np.testing.assert_array_equal(found.choice, [1, 0])
    assert (found.exact, found.spent) == (True, 3.0)


def test_a_loose_budget_buys_the_best_entry_everywhere_at_no_price():
    value, cost, _ = problem(2)
    found = allocate_bits(value, cost, budget=1e9)
    np.testing.assert_array_equal(found.choice, value.argmin(1))
    assert (found.price, found.exact) == (0.0, True)
    assert found.gap < 1e-15 * value.sum()


def test_the_tightest_budget_buys_the_cheapest_entries():
    value, cost, _ = problem(2)
    found = allocate_bits(value, cost, budget=float(cost.min(1).sum()))
    np.testing.assert_array_equal(found.choice, 0)
    assert found.unspent == 0


def test_the_price_is_what_more_budget_buys():
    value, cost, _ = problem(4, units=200, kind="real")
    near = [allocate_bits(value, cost, budget=b).bound for b in (1999.9, 2000.1)]
    price = allocate_bits(value, cost, budget=2000.0).price
    assert price == pytest.approx((near[0] - near[1]) / 0.2, rel=0.05)


def test_entries_of_equal_cost_and_of_cost_zero():
    value = np.array([[3.0, 1.0, 2.0], [5.0, 4.0, 0.0]])
    found = allocate_bits(value, np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 2.0]]), budget=1.0)
    np.testing.assert_array_equal(found.choice, [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"cost": np.ones((2, 2))},
            r"need one row of entries per unit in both: sensitivity \(2, 3\), cost \(2, 2\)",
            marks=pytest.mark.bad_shapes,
        ),
        ({"sensitivity": np.zeros((0, 3)), "cost": np.zeros((0, 3))}, "need one row of entries"),
        ({"sensitivity": np.array([[1, 2, 3], [1, np.nan, 2]])}, "unit 1 has sensitivities"),
        ({"sensitivity": np.array([[np.inf] * 3, [1, 2, 3]])}, "one of them finite in each unit; unit 0"),
        ({"cost": np.array([[1, -1, 1], [1, 1, 1]])}, "costs must be finite and at least 0.*unit 0"),
        ({"budget": 1.0}, r"a budget of 1 is out of reach: the cheapest choices cost 3 together, 2 more; units \[1\]"),
        ({"budget": np.nan}, "out of reach"),
        ({"ties": [(0, 0)]}, r"each at most once; got \[\[0, 0\]\]"),
        ({"ties": [(0, 2)]}, "ties must name units from 0 to 1"),
        (
            {"sensitivity": np.array([[1, np.inf, np.inf], [np.inf, 1, 1]]), "ties": [(0, 1)]},
            r"tied units \[0, 1\] have no entry that all of them can take",
        ),
    ],
)
def test_malformed_menus_are_refused(change, message):
    settings = {
        "sensitivity": np.array([[3.0, 2, 1], [3, 2, 1]]),
        "cost": np.array([[1.0, 2, 3], [2, 4, 6]]),
        "budget": 5.0,
    } | change
    with pytest.raises(ValueError, match=message):
        allocate_bits(settings.pop("sensitivity"), settings.pop("cost"), **settings)
