import itertools

import numpy as np
import pytest

from curvjax.allocation.exchange import Moves, exchange, marginal

COUNT = 12


def problem(seed, *, equal=False):
    draw = np.random.default_rng(seed)
    size = np.full(COUNT, 10.0) if equal else draw.integers(10, 100, COUNT).astype(float)
    up, down = -draw.uniform(0, 1, COUNT), draw.uniform(0, 1, COUNT)
    return Moves(up, down, size.copy(), size.copy()), size


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("slack", [0.0, 35.0])
def test_an_exchange_meets_the_budget_and_promises_what_its_moves_do(seed, slack):
    moves, size = problem(seed)
    found = exchange(moves, size, slack=slack, most=0.5 * size.sum())
    assert size @ found.step == pytest.approx(found.spent)
    assert found.spent <= slack + 1e-9
    changes = np.where(found.step > 0, moves.up, np.where(found.step < 0, moves.down, 0.0))
    assert found.promised == pytest.approx(changes.sum())
    assert found.promised < 0
    assert size[found.step != 0].sum() <= 0.5 * size.sum()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_at_equal_costs_and_no_limit_no_other_exchange_promises_more(seed):
    """At equal costs ups pair with downs, so that the best n ups with the best n downs of all subsets win."""
    moves, size = problem(seed, equal=True)
    moves, size = Moves(*(x[:6] for x in moves)), size[:6]
    found = exchange(moves, size, slack=0.0, most=np.inf)
    changes = [np.zeros(6), moves.up, moves.down]
    best = min(
        sum(changes[step][k] for k, step in enumerate(steps))
        for steps in itertools.product((0, 1, -1), repeat=6)
        if sum(steps) <= 0
    )
    assert found.promised == pytest.approx(best, abs=0.15)  # a unit that is best at both is not tried at the other
    assert found.promised >= best - 1e-12


def test_units_without_an_entry_stay_and_nothing_moves_where_nothing_is_gained():
    moves, size = problem(1)
    stuck = moves._replace(up=np.full(COUNT, np.inf))
    assert not exchange(stuck, size, slack=100.0, most=np.inf).step.any()
    dear = moves._replace(down=moves.down + 2.0)
    assert not exchange(dear, size, slack=0.0, most=np.inf).step.any()
    unpaid = moves._replace(down=np.full(COUNT, np.inf))
    assert not exchange(unpaid, size, slack=5.0, most=np.inf).step.any()


def test_slack_pays_for_ups_without_downs():
    moves, size = problem(2)
    found = exchange(moves._replace(down=np.full(COUNT, np.inf)), size, slack=1e9, most=np.inf)
    assert (found.step == 1).all()


def test_the_first_exchange_is_made_though_it_is_larger_than_the_limit():
    moves, size = problem(3)
    found = exchange(moves, size, slack=0.0, most=1.0)
    assert (found.step == 1).sum() == 1


def test_units_of_a_group_move_together():
    moves, size = problem(1)
    groups = np.arange(COUNT) // 3
    step = exchange(moves, size, slack=0.0, most=np.inf, groups=groups).step
    assert all(len(set(step[groups == group])) == 1 for group in range(4))


def test_a_price_is_the_mean_of_both_sides_or_the_one_there_is():
    moves = Moves(np.array([-1.0, np.inf, -3.0]), np.array([3.0, 4.0, np.inf]), np.full(3, 2.0), np.full(3, 2.0))
    np.testing.assert_allclose(marginal(moves), [1.0, 2.0, 1.5])


def test_changes_that_are_no_numbers_and_moves_for_nothing_are_refused():
    moves, size = problem(1)
    with pytest.raises(ValueError, match=r"up moves of 1 units need a number of nats and a cost above 0; got 0: nan"):
        exchange(moves._replace(up=np.where(np.arange(COUNT) == 0, np.nan, moves.up)), size, slack=0.0, most=1.0)
    with pytest.raises(ValueError, match=r"down moves of 12 units need .* at a cost of 0"):
        exchange(moves._replace(down_cost=0 * size), size, slack=0.0, most=1.0)
