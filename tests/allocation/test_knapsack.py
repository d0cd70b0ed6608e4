"""The one exact integer solver against every choice there is, in rational numbers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from curvjax.allocation.knapsack import best_choice
from curvjax.allocation.whole_numbers import whole_menu

UNITS, ENTRIES = 5, 4
EVERY = np.array(list(itertools.product(range(ENTRIES), repeat=UNITS)))
ROWS = np.arange(UNITS)
ALONE = np.arange(UNITS)


def table(rng, kind):
    value, cost = rng.normal(size=(UNITS, ENTRIES)), rng.uniform(0, 5, (UNITS, ENTRIES))
    match kind:
        case "offsets":
            value += 10.0 ** rng.uniform(-3, 12, (UNITS, 1))
        case "scales":
            value *= 10.0 ** rng.uniform(-300, 300, (UNITS, 1))
        case "entries over all magnitudes":
            value *= 10.0 ** rng.uniform(-300, 300, value.shape)
            cost = rng.integers(0, 9, cost.shape).astype(float)
        case "whole costs":
            cost = rng.integers(0, 9, cost.shape).astype(float)
        case "many equal":
            value, cost = (rng.integers(0, 4, value.shape).astype(float) for _ in range(2))
        case "tiny or huge costs":
            cost *= 10.0 ** rng.uniform(-290, 290)
        case "one huge cost":
            cost[0, -1] = 1e250
        case "missing entries":
            value[:, 1:][rng.random((UNITS, ENTRIES - 1)) < 0.4] = np.inf
    return value, cost


KINDS = (
    "plain",
    "offsets",
    "scales",
    "entries over all magnitudes",
    "whole costs",
    "many equal",
    "tiny or huge costs",
    "one huge cost",
    "missing entries",
)


def exact_sum(value, choice):
    return sum((Fraction(value[unit, column].item()) for unit, column in enumerate(choice)), Fraction(0))


def least(value, cost, room, groups=ALONE):
    """Least total in rational numbers over all choices that fit and choose alike in groups."""
    fits = (cost[ROWS, EVERY].sum(1) <= room) & np.isfinite(value[ROWS, EVERY]).all(1)
    alike = (EVERY[:, [np.flatnonzero(groups == group)[0] for group in groups]] == EVERY).all(1)
    return min(exact_sum(value, choice) for choice in EVERY[fits & alike])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(1, 9))
def test_no_choice_is_better_in_rational_numbers(seed, kind):
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    value, cost = table(rng, kind)
    cheapest = np.where(np.isfinite(value), cost, np.inf).min(1).sum()
    span = 10.0 if kind == "one huge cost" else cost.max(1).sum() - cheapest
    room = cheapest * (1 + 1e-12) + span * rng.choice([0.0, rng.random(), 1.0])
    found = best_choice(value, cost, room, groups=ALONE, states=10_000)
    assert found.exact
    assert exact_sum(value, found.choice) == least(value, cost, room)
    assert cost[ROWS, found.choice].sum() <= room * (1 + 1e-14)
    assert found.gap >= 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tied_unit_of_another_scale_hides_nothing(seed):
    rng = np.random.default_rng(seed)
    value, cost = table(rng, "plain")
    groups = np.array([0, 1, 0, 2, 1])
    value[0] = 1e14  # added in floating point it would leave its partner two digits
    room = 0.6 * cost.max(1).sum()
    found = best_choice(value, cost, room, groups=groups, states=10_000)
    assert found.exact
    assert exact_sum(value, found.choice) == least(value, cost, room, groups)


def test_a_search_cut_short_says_so_and_still_spends_within_the_budget():
    rng = np.random.default_rng(1)
    cost = rng.uniform(0.5, 4, (40, 1)) * np.array([2.0, 3.0, 4.0, 8.0])
    value = -cost  # all entries are equally good buys: the hardest there is
    room = 0.6 * cost.max(1).sum()
    few, more = (best_choice(value, cost, room, groups=np.arange(40), states=states) for states in (5, 500))
    none = best_choice(value, cost, room, groups=np.arange(40), states=0)
    assert not few.exact
    assert none.gap >= few.gap >= more.gap > 0
    for found in (none, few, more):
        assert cost[np.arange(40), found.choice].sum() <= room


def test_the_gap_is_to_the_best_mixture_of_entries():
    value, cost = np.array([[4.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 3.0]])
    found = best_choice(value, cost, 4.0, groups=np.arange(2), states=10)
    np.testing.assert_array_equal(found.choice, [1, 0])  # the mixture: all of the first, two thirds of the second
    assert (found.gap, found.price, found.exact) == (2.0, 1.0, True)


def test_whole_costs_lose_their_common_divisor_and_what_it_leaves_over():
    cost = np.array([[6.0, 12.0], [6.0, 24.0]])
    found = whole_menu(np.zeros((2, 2)), cost, 29.0, np.arange(2))
    np.testing.assert_array_equal(found.cost, [[0, 1], [0, np.inf]])
    assert (found.left, found.cost_unit) == (2.0, 6)


def test_values_are_taken_to_the_last_bit():
    value = np.array([[1e300, 1e300], [5e-324, 0.0]])
    found = whole_menu(value, np.zeros((2, 2)), 0.0, np.arange(2))
    np.testing.assert_array_equal(found.value, [[0, 0], [1, 0]])
    assert found.value_unit == Fraction(5e-324)
