import numpy as np
import pytest

from curvjax.allocation import Bits, Ranks, Sparsity
from curvjax.layers import UnitShape
from curvjax.runs.ladders import ladder, rank_bounds, uniform_ranks

SIDES = ((16, 24), (24, 16), (16, 8), (16, 16))
SHAPES = tuple(UnitShape(f"layers.{k}.mlp.up_proj", k, {f"layers.{k}.mlp.up_proj": s}) for k, s in enumerate(SIDES))
SIZE = np.asarray([a * b for a, b in SIDES], np.float64)
COST = np.asarray([a + b for a, b in SIDES], np.float64)


def of(program, start=None, *, rung=0.05):
    posed = program.pose(SHAPES)
    start = np.full(len(SHAPES), program.budget) if start is None else start
    return ladder(program, posed, SHAPES, np.asarray(start, np.float64), rung=rung)


def test_n_of_m_are_shares_from_the_most_to_none_and_cost_what_stays():
    found = of(Sparsity(0.5, pattern=8, max_sparsity=0.75, frozen=(SHAPES[2].name,)))
    np.testing.assert_array_equal(found.amount[0], np.arange(6, -1, -1) / 8)
    np.testing.assert_array_equal(found.amount[2], np.zeros(7))
    np.testing.assert_array_equal(found.cost, SIZE[:, None] * (1 - found.amount))
    assert found.budget == 0.5 * SIZE.sum()


def test_widths_are_those_allowed_and_frozen_units_have_the_largest_alone():
    found = of(Bits(4.0, allowed=(8, 3, 4), frozen=(SHAPES[1].name,)))
    np.testing.assert_array_equal(found.amount[0], [3, 4, 8])
    np.testing.assert_array_equal(found.amount[1], [8, 8, 8])
    np.testing.assert_array_equal(found.cost, SIZE[:, None] * found.amount)


def test_uniform_ranks_keep_one_share_of_the_parameters_to_within_a_rank():
    share = 0.6
    program = Ranks(share * SIZE.sum() / COST.sum())
    ranks = uniform_ranks(program, program.pose(SHAPES), SHAPES)
    np.testing.assert_array_equal(ranks, np.floor(share * SIZE / COST))
    assert COST @ ranks <= share * SIZE.sum()
    frozen = Ranks(program.budget, frozen=(SHAPES[0].name,))
    held = uniform_ranks(frozen, frozen.pose(SHAPES), SHAPES)
    assert held[0] == 1
    assert program.budget * COST.sum() - COST[1:].sum() < COST @ held <= program.budget * COST.sum()


def test_ranks_go_in_steps_from_the_start_to_the_one_at_which_nothing_is_saved():
    found = of(Ranks(5, minimum=2), [5, 5, 3, 5], rung=0.2)
    np.testing.assert_array_equal(found.amount[0], [3, 5, 7, 9, 10])  # whole at 9.6: 10, in steps of 2
    np.testing.assert_array_equal(found.amount[2], [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(found.amount[3], [3, 5, 7, 8, 8])
    np.testing.assert_array_equal(found.cost, COST[:, None] * found.amount)
    least, whole = rank_bounds(Ranks(5, minimum=0).pose(SHAPES), SHAPES)
    np.testing.assert_array_equal(least, [1, 1, 1, 1])
    np.testing.assert_array_equal(whole, [10, 10, 6, 8])


def test_ranks_allowed_are_the_menu_and_frozen_ones_stay_at_the_minimum():
    program = Ranks(5, minimum=2, allowed=(2, 4, 8), frozen=(SHAPES[1].name,))
    start = uniform_ranks(program, program.pose(SHAPES), SHAPES)
    found = of(program, start)
    np.testing.assert_array_equal(found.amount[0], [2, 4, 8])
    np.testing.assert_array_equal(found.amount[1], [2, 2, 2])
    np.testing.assert_array_equal(found.amount[2], [2, 4, 6])
    place = found.places(start)
    np.testing.assert_array_equal(found.amounts(place), start)
    assert found.costs(place).sum() <= found.budget


def test_a_budget_that_keeps_all_parameters_is_refused():
    program = Ranks(9)
    with pytest.raises(ValueError, match=r"a total of 1,224 is out of reach: the bounds allow from 136 to 1,200"):
        uniform_ranks(program, program.pose(SHAPES), SHAPES)
